//! `loupe people`: the register of those who may sign reviews, feedback and actions.
//!
//! Names, not accounts: nothing is proved, but what is signed names a person who is known here, at the centre too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::ledger_desk::{Place, Writer, in_words, open};
use super::review::post;
use crate::dashboard::{PeopleCall, PeopleFn, ReviewRefusal};
use crate::ledger::{Ledger, LedgerError, LedgerReader, check_person_order};
use crate::limits::DASHBOARD_FEEDBACK_MAX;
use crate::types::{Person, PersonOrder, Role};

/// Registers the people who may sign reviews, feedback and actions at this device.
///
/// While nobody is registered any name is taken. As soon as one person is, only registered and active ones may sign.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register somebody, or bring back somebody who has retired, with the role given.
    Add {
        /// What the person signs with: 3 characters at least, unique without regard to case.
        username: String,
        /// The whole name.
        #[arg(long, value_name = "NAME")]
        full_name: Option<String>,
        /// What the person is here; noted, and not enforced while there are no logins.
        #[arg(long, value_enum, default_value_t = RoleArg::Operator)]
        role: RoleArg,
        #[command(flatten)]
        signed: Signed,
    },
    /// List who may sign, and with --all who has retired.
    List {
        /// Also those who have retired.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
    /// End somebody's signing; what was signed stays as it is.
    Retire {
        /// What the person signs with.
        username: String,
        #[command(flatten)]
        signed: Signed,
    },
    /// Give somebody another name to sign with, or another full name; what was signed keeps the old one.
    Rename {
        /// What the person signs with now.
        username: String,
        /// What the person signs with from now on.
        #[arg(required_unless_present = "full_name")]
        new_username: Option<String>,
        /// The whole name from now on.
        #[arg(long, value_name = "NAME")]
        full_name: Option<String>,
        #[command(flatten)]
        signed: Signed,
    },
}

/// Who signs, and where it is kept.
#[derive(Debug, clap::Args)]
pub(super) struct Signed {
    /// Who says so; a registered person, once there is one.
    #[arg(long, visible_alias = "by", value_name = "NAME")]
    pub author: String,
    #[command(flatten)]
    pub place: Place,
}

/// [`Role`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Runs the device.
    Admin,
    /// Runs the line.
    Manager,
    /// Works at the line.
    Operator,
    /// Looks only.
    Viewer,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Admin => Role::Admin,
            RoleArg::Manager => Role::Manager,
            RoleArg::Operator => Role::Operator,
            RoleArg::Viewer => Role::Viewer,
        }
    }
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used or the order is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (order, signed) = match args.command {
        Command::List { all, place } => return list(all, &place),
        Command::Add { username, full_name, role, signed } => {
            let by = signed.author.clone();
            (PersonOrder::Add { username, full_name, role: role.into(), by }, signed)
        }
        Command::Retire { username, signed } => {
            let by = signed.author.clone();
            (PersonOrder::Retire { username, by }, signed)
        }
        Command::Rename { username, new_username, full_name, signed } => {
            let by = signed.author.clone();
            (PersonOrder::Rename { username, new_username, full_name, by }, signed)
        }
    };
    // Before the way to the daemon, which reads short bodies only.
    check_person_order(&order).map_err(|fault| anyhow!(fault))?;
    let done = hand_over(&signed.place, "/api/v1/people", &order, |ledger| ledger.person(order.clone()))?;
    if signed.place.json {
        println!("{}", serde_json::to_string_pretty(&done)?);
    } else {
        println!("{}", line(&serde_json::from_value(done)?));
    }
    Ok(())
}

fn list(all: bool, place: &Place) -> anyhow::Result<()> {
    let people = place.reader()?.people(all)?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "people": people }))?);
        return Ok(());
    }
    people.iter().for_each(|person| println!("{}", line(person)));
    if people.is_empty() {
        println!("nobody is registered: any name may sign");
    }
    Ok(())
}

fn line(person: &Person) -> String {
    let full_name = person.full_name.as_deref().unwrap_or("-");
    let state = if person.is_active { "" } else { "  retired" };
    format!(
        "{:<16} {:<9} {full_name}{state}  (version {}, {} by {})",
        person.username,
        person.role.as_str(),
        person.version,
        person.changed_at,
        person.changed_by
    )
}

/// Have an order done by whoever writes the ledger: `here`, or the daemon at `path`.
pub(super) fn hand_over(
    place: &Place,
    path: &str,
    order: &impl Serialize,
    here: impl FnOnce(&Ledger) -> Result<Value, LedgerError>,
) -> anyhow::Result<Value> {
    match open(&place.state_dir()?)? {
        Writer::Here(ledger) => {
            let done = here(&ledger);
            ledger.close()?;
            done.map_err(|error| anyhow!(in_words(&error)))
        }
        Writer::There(address) => post(address, path, &json!(order)),
    }
}

/// Answers the dashboard's calls about people and feedback.
#[must_use]
pub fn desk(ledger: Ledger, state_dir: PathBuf) -> PeopleFn {
    Arc::new(move |call| {
        let done = match call {
            PeopleCall::People => read_people(&state_dir),
            PeopleCall::Feedback => read_feedback(&state_dir),
            PeopleCall::ChangePerson(order) => ledger.person(order),
            PeopleCall::Say(order) => ledger.feedback(order),
        };
        done.map_err(|error| match error.is_about_the_row() {
            true => ReviewRefusal::Order(in_words(&error)),
            false => ReviewRefusal::Machine(error.to_string()),
        })
    })
}

fn read_people(state_dir: &Path) -> Result<Value, LedgerError> {
    Ok(json!({ "people": LedgerReader::open(state_dir)?.people(false)? }))
}

fn read_feedback(state_dir: &Path) -> Result<Value, LedgerError> {
    let reader = LedgerReader::open(state_dir)?;
    let (feedback, actions) = (reader.feedback(DASHBOARD_FEEDBACK_MAX)?, reader.actions_taken(DASHBOARD_FEEDBACK_MAX)?);
    Ok(json!({ "feedback": feedback, "actions": actions }))
}
