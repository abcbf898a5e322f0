//! `loupe feedback`: what people think of inspections and of the site, and what they did about it.

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::ledger_desk::Place;
use super::people::{Signed, hand_over};
use crate::ledger::check_feedback_order;
use crate::types::{ActionResult, ActionTaken, Feedback, FeedbackOrder, FeedbackType};

/// Keeps what people think of inspections and of the site, and what they did about it; both go to the centre.
///
/// What an item really is, `loupe review` says: that also teaches the index.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what you think of an inspection, of one of its items, or of the site.
    Add {
        /// An inspection's code or id, with /N for its Nth item from 0.
        #[arg(value_name = "INSPECTION", required_unless_present = "site", conflicts_with = "site")]
        subject: Option<String>,
        /// It is about the site as a whole: an opinion, with a rating or notes.
        #[arg(long)]
        site: bool,
        /// What you say.
        #[arg(long = "type", value_name = "TYPE", value_enum)]
        kind: TypeArg,
        /// 1 poor to 5 excellent.
        #[arg(long, value_name = "1-5", value_parser = clap::value_parser!(u8).range(1..=5))]
        rating: Option<u8>,
        /// What the defect should have been: 1 slight to 5 critical.
        #[arg(long, value_name = "1-5", value_parser = clap::value_parser!(u8).range(1..=5))]
        expected_severity: Option<u8>,
        /// In your words, 1000 characters at most.
        #[arg(long, value_name = "TEXT")]
        notes: Option<String>,
        #[command(flatten)]
        signed: Signed,
    },
    /// Log what was done about an inspection; `resolved` closes what was complained of before.
    Action {
        /// The inspection's code or id.
        #[arg(value_name = "INSPECTION")]
        inspection: String,
        /// What was done, 200 characters at most.
        #[arg(long, value_name = "TEXT")]
        taken: String,
        /// What came of it.
        #[arg(long, value_enum)]
        result: ResultArg,
        /// In your words, 1000 characters at most.
        #[arg(long, value_name = "TEXT")]
        notes: Option<String>,
        #[command(flatten)]
        signed: Signed,
    },
    /// List what was said and done, newest first.
    List {
        /// Only complaints that no action has resolved.
        #[arg(long)]
        open: bool,
        #[command(flatten)]
        place: Place,
    },
}

/// [`FeedbackType`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum TypeArg {
    /// The decision was right.
    Accurate,
    /// A good part was failed or held.
    FalsePositive,
    /// A bad part was passed, or a defect of it not seen.
    MissedDefect,
    /// The defect is graver or slighter than was said.
    SeverityWrong,
    /// How well it sees, as a rating.
    DetectionAccuracy,
    /// How you like to work with it, as a rating.
    Satisfaction,
}

impl From<TypeArg> for FeedbackType {
    fn from(kind: TypeArg) -> Self {
        match kind {
            TypeArg::Accurate => FeedbackType::Accurate,
            TypeArg::FalsePositive => FeedbackType::FalsePositive,
            TypeArg::MissedDefect => FeedbackType::MissedDefect,
            TypeArg::SeverityWrong => FeedbackType::SeverityWrong,
            TypeArg::DetectionAccuracy => FeedbackType::DetectionAccuracy,
            TypeArg::Satisfaction => FeedbackType::Satisfaction,
        }
    }
}

/// [`ActionResult`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ResultArg {
    /// Nothing is left to do.
    Resolved,
    /// Something is still to be done.
    Pending,
    /// It did not help.
    Failed,
    /// It was put off.
    Deferred,
}

impl From<ResultArg> for ActionResult {
    fn from(result: ResultArg) -> Self {
        match result {
            ResultArg::Resolved => ActionResult::Resolved,
            ResultArg::Pending => ActionResult::Pending,
            ResultArg::Failed => ActionResult::Failed,
            ResultArg::Deferred => ActionResult::Deferred,
        }
    }
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used or the order is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (order, signed) = match args.command {
        Command::List { open, place } => return list(open, &place),
        Command::Add { subject, site: _, kind, rating, expected_severity, notes, signed } => {
            let (feedback_type, by) = (kind.into(), signed.author.clone());
            (FeedbackOrder::Say { subject, feedback_type, rating, expected_severity, notes, by }, signed)
        }
        Command::Action { inspection, taken, result, notes, signed } => {
            let by = signed.author.clone();
            (FeedbackOrder::Act { inspection, action_taken: taken, action_result: result.into(), notes, by }, signed)
        }
    };
    // Before the way to the daemon, which reads short bodies only.
    check_feedback_order(&order).map_err(|fault| anyhow!(fault))?;
    let done = hand_over(&signed.place, "/api/v1/feedback", &order, |ledger| ledger.feedback(order.clone()))?;
    if signed.place.json {
        println!("{}", serde_json::to_string_pretty(&done)?);
    } else if matches!(order, FeedbackOrder::Say { .. }) {
        println!("{}", said(&serde_json::from_value(done)?));
    } else {
        println!("{}", acted(&serde_json::from_value(done)?));
    }
    Ok(())
}

fn list(open: bool, place: &Place) -> anyhow::Result<()> {
    let reader = place.reader()?;
    let feedback: Vec<Feedback> =
        reader.feedback(usize::MAX)?.into_iter().filter(|feedback| !open || feedback.is_open).collect();
    let actions = if open { Vec::new() } else { reader.actions_taken(usize::MAX)? };
    if place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "feedback": feedback, "actions": actions }))?);
        return Ok(());
    }
    feedback.iter().for_each(|feedback| println!("{}", said(feedback)));
    actions.iter().for_each(|action| println!("{}", acted(action)));
    if feedback.is_empty() && actions.is_empty() {
        println!("{}", if open { "nothing is open" } else { "no feedback" });
    }
    Ok(())
}

fn said(feedback: &Feedback) -> String {
    let subject = match (&feedback.code, feedback.ordinal) {
        (Some(code), Some(ordinal)) => format!("{code}/{ordinal}"),
        (Some(code), None) => code.clone(),
        (None, _) => "the site".to_owned(),
    };
    let rating = feedback.rating.map(|rating| format!(" {rating}/5")).unwrap_or_default();
    let severity =
        feedback.expected_severity.map(|severity| format!(", severity should be {severity}")).unwrap_or_default();
    let notes = feedback.notes.as_deref().map(|notes| format!(": {notes}")).unwrap_or_default();
    let state = if feedback.is_open { "  (open)" } else { "" };
    let (at, kind, author) = (feedback.occurred_at, feedback.feedback_type.as_str(), &feedback.author);
    format!("{}  {at}  {subject}  {kind}{rating}{severity}, by {author}{notes}{state}", feedback.id)
}

fn acted(action: &ActionTaken) -> String {
    let notes = action.notes.as_deref().map(|notes| format!(": {notes}")).unwrap_or_default();
    format!(
        "{}  {}  {}  {} → {}, by {}{notes}",
        action.id,
        action.occurred_at,
        action.code,
        action.action_taken,
        action.action_result.as_str(),
        action.action_by
    )
}
