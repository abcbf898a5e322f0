//! `loupe review`: what people say of decisions, and what is counted from it.
//!
//! The ledger has one writer. Where the daemon runs, a review is handed to its dashboard, whose address stands in
//! `dashboard.addr` of the state folder; where it does not, this command opens the ledger itself.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Failure;
use super::ledger_desk::StateFolder;
use crate::clock::Clock;
use crate::config::{Recipe, StationRecipe};
use crate::dashboard::{ReviewCall, ReviewFn, ReviewRefusal};
use crate::inference::Runtime;
use crate::ledger::{Ledger, LedgerError, LedgerReader, database_path};
use crate::limits::{DASHBOARD_REQUEST_TIME_MAX, DASHBOARD_REVIEWS_MAX};
use crate::matching::Deltas;
use crate::pipeline::{Recipes, Reviewer};
use crate::types::{Review, ReviewAction, ReviewOrder, ReviewStatus};

/// File in the state folder with the address of the running daemon's dashboard.
pub const ADDRESS_FILE: &str = "dashboard.addr";
/// Longest answer read from the daemon.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Says of an inspected item what it really is: right, another part, or none of the catalogue.
///
/// A correction to a part teaches the index: the item's crop becomes a template that is searched from then on, without a
/// restart. The last review of an item wins.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    add: AddArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the last reviews, newest first.
    List(ListArgs),
    /// Take a review back; what it taught is searched no more.
    Undo(UndoArgs),
    /// List which part was shown for which other, by the reviews that stand.
    Confusions(ListArgs),
    /// List items decided to be unknown, counted by the catalogue part they look like.
    Unknowns(ListArgs),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The item: an inspection's code or id with /N for its Nth item from 0 (not needed where there is one), or an item's id.
    #[arg(value_name = "ITEM", required = true)]
    subject: Option<String>,
    /// It is this part; its crop becomes a template.
    #[arg(long, value_name = "PART", conflicts_with_all = ["confirm", "unknown"], required_unless_present_any = ["confirm", "unknown"])]
    part: Option<String>,
    /// Colour of the part.
    #[arg(long, value_name = "COLOR", requires = "part")]
    color: Option<String>,
    /// The part may be one that the index does not know yet.
    #[arg(long, requires = "part")]
    new_part: bool,
    /// Store the correction without learning from it.
    #[arg(long, requires = "part")]
    no_teach: bool,
    /// What was shown is right.
    #[arg(long, conflicts_with = "unknown")]
    confirm: bool,
    /// It is no part of the catalogue.
    #[arg(long)]
    unknown: bool,
    /// Who says so.
    #[arg(long, required = true)]
    author: Option<String>,
    /// Why, in a sentence.
    #[arg(long)]
    reason: Option<String>,
    /// The recipe that the inspection was decided by; needed to learn while the daemon is stopped and --config is not given.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// ONNX Runtime's library; default: ORT_DYLIB_PATH, else /usr/lib/loupe/libonnxruntime.so.
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct UndoArgs {
    /// The review's id, as `loupe review list` prints it.
    id: Uuid,
    /// Who takes it back.
    #[arg(long)]
    author: String,
    /// Why, in a sentence.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
}

/// Which ledger.
#[derive(Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    folder: StateFolder,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// A state folder and the recipes that are run on it.
struct Site {
    state_dir: PathBuf,
    recipes: Vec<Arc<Recipe>>,
    onnxruntime: Option<PathBuf>,
}

impl Place {
    fn site(&self) -> anyhow::Result<Site> {
        if self.folder.is_named() {
            return Ok(Site { state_dir: self.folder.path()?, recipes: Vec::new(), onnxruntime: None });
        }
        let config = self.folder.config()?;
        let mut recipes = Vec::with_capacity(config.stations.len());
        for station in config.stations {
            let recipe = match station.recipe {
                StationRecipe::File(recipe) => Some(*recipe),
                StationRecipe::Central { folder } => {
                    super::central_recipe::taken(&config.storage.state_dir, &station.name, &folder)?
                }
            };
            recipes.extend(recipe.map(Arc::new));
        }
        Ok(Site { state_dir: config.storage.state_dir, recipes, onnxruntime: config.onnxruntime })
    }
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used or the review is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::List(args)) => list(&args),
        Some(Command::Undo(args)) => undo(args),
        Some(Command::Confusions(args)) => confusions(&args),
        Some(Command::Unknowns(args)) => unknowns(&args),
        None => add(args.add),
    }
}

/// Answers the dashboard's review calls.
#[must_use]
pub fn desk(reviewer: Reviewer, state_dir: PathBuf) -> ReviewFn {
    Arc::new(move |call| answer(&reviewer, &state_dir, call))
}

fn answer(reviewer: &Reviewer, state_dir: &Path, call: ReviewCall) -> Result<Value, ReviewRefusal> {
    let read = || LedgerReader::open(state_dir);
    let of_ledger = |error: LedgerError| ReviewRefusal::Machine(error.to_string());
    let of_review = |error: crate::pipeline::ReviewError| match error.is_order() {
        true => ReviewRefusal::Order(error.to_string()),
        false => ReviewRefusal::Machine(error.to_string()),
    };
    match call {
        ReviewCall::List => {
            let reviews = read().and_then(|reader| reader.reviews(DASHBOARD_REVIEWS_MAX)).map_err(of_ledger)?;
            Ok(json!({ "reviews": reviews }))
        }
        ReviewCall::Confusions => {
            let pairs = read().and_then(|reader| reader.confusions()).map_err(of_ledger)?;
            Ok(json!({ "confusions": pairs }))
        }
        ReviewCall::Unknowns => {
            let parts = read().and_then(|reader| reader.unknown_parts()).map_err(of_ledger)?;
            Ok(json!({ "unknowns": parts }))
        }
        ReviewCall::Add(order) => reviewer.review(order).map(|review| json!(review)).map_err(of_review),
        ReviewCall::Undo { id, reviewer: who, reason } => {
            reviewer.undo(id, &who, reason).map(|review| json!(review)).map_err(of_review)
        }
    }
}

fn add(args: AddArgs) -> anyhow::Result<()> {
    // The parser insists on both, unless a subcommand stands there.
    let (Some(subject), Some(reviewer)) = (args.subject, args.author) else {
        return Err(Failure::usage(anyhow!("say which item to review and who you are (--author)")).into());
    };
    let mut site = args.place.site()?;
    if let Some(path) = &args.recipe {
        site.recipes.push(Arc::new(Recipe::load(path).map_err(|error| Failure::config(error.into()))?));
    }
    site.onnxruntime = args.onnxruntime.or(site.onnxruntime);
    let action = match args.part {
        Some(part_id) => ReviewAction::Part { part_id, color_id: args.color },
        None if args.confirm => ReviewAction::Confirm,
        None => ReviewAction::Unknown,
    };
    let teach = !args.no_teach && matches!(action, ReviewAction::Part { .. });
    let order = ReviewOrder { subject, action, reviewer, reason: args.reason, teach, is_new_part: args.new_part };
    let review = match open(&site, teach)? {
        Opened::Here(reviewer) => reviewer.review(order)?,
        Opened::There(address) => post(address, "/api/v1/reviews", &json!(order))?,
    };
    print_review(&review, args.place.json)
}

fn undo(args: UndoArgs) -> anyhow::Result<()> {
    let site = args.place.site()?;
    let review = match open(&site, false)? {
        Opened::Here(reviewer) => reviewer.undo(args.id, &args.author, args.reason)?,
        Opened::There(address) => {
            let body = json!({ "reviewer": args.author, "reason": args.reason });
            post(address, &format!("/api/v1/reviews/{}/undo", args.id), &body)?
        }
    };
    print_review(&review, args.place.json)
}

/// Who writes: this process, or the daemon whose dashboard is there.
enum Opened {
    Here(Reviewer),
    There(SocketAddr),
}

fn open(site: &Site, needs_model: bool) -> anyhow::Result<Opened> {
    let path = database_path(&site.state_dir);
    if !path.exists() {
        return Err(LedgerError::Missing { path }.into());
    }
    match Ledger::open(&site.state_dir, Clock::system()) {
        Ok(ledger) => {
            let runtime = if needs_model { Some(Runtime::load(site.onnxruntime.as_deref())?) } else { None };
            Ok(Opened::Here(Reviewer::new(runtime, ledger, Deltas::default(), Recipes::new(site.recipes.clone()))))
        }
        Err(locked @ LedgerError::Locked { .. }) => {
            let address = std::fs::read_to_string(site.state_dir.join(ADDRESS_FILE));
            match address.ok().and_then(|text| text.trim().parse().ok()) {
                Some(address) => Ok(Opened::There(address)),
                None => Err(anyhow!(locked).context(
                    "the process that has the ledger shows no dashboard to hand the review to; add [dashboard] to its \
                     configuration, or stop it",
                )),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Hand something to the running daemon; its answer.
pub(super) fn post<T: serde::de::DeserializeOwned>(address: SocketAddr, path: &str, body: &Value) -> anyhow::Result<T> {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, DASHBOARD_REQUEST_TIME_MAX)?;
        // The daemon answers within its own limit; a little more for the way.
        stream.set_read_timeout(Some(DASHBOARD_REQUEST_TIME_MAX * 2))?;
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(|| {
        format!("the daemon that has the ledger does not answer at http://{address}/; is it stopping?")
    })?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("the daemon's answer is no HTTP")?;
    let status: u16 =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the daemon's answer is no HTTP")?;
    let value: Value = serde_json::from_str(body).context("the daemon's answer is no JSON")?;
    if status == 201 {
        return serde_json::from_value(value).context("the daemon's answer is not what was asked for");
    }
    bail!("the daemon refuses: {}", value["error"]["message"].as_str().unwrap_or("without a reason"))
}

fn print_review(review: &Review, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string(review)?);
        return Ok(());
    }
    println!("{}", line(review));
    if let Some(template) = review.template {
        println!("learned template {template}; the next frame is compared with it");
    }
    if review.undoes_id.is_some() {
        println!("what it taught is searched no more; a generation that took it in keeps it until the next build");
    }
    Ok(())
}

fn line(review: &Review) -> String {
    let subject = match review.ordinal {
        Some(ordinal) => format!("{}/{ordinal}", review.code),
        None => review.code.clone(),
    };
    let shown = review.shown_part_id.as_deref().unwrap_or("-");
    let said = match (review.status, &review.corrected_part_id, review.undoes_id) {
        (ReviewStatus::Confirmed, ..) => format!("{shown} confirmed"),
        (ReviewStatus::Rejected, Some(part), _) => format!("{shown} is {part}"),
        (ReviewStatus::Rejected, None, _) => format!("{shown} is none of the catalogue"),
        (ReviewStatus::Pending, _, Some(id)) => format!("takes back {id}"),
        (ReviewStatus::Pending, _, None) => "not reviewed".to_owned(),
    };
    let reason = review.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}  {}  {subject}  {said}, by {}{reason}", review.id, review.occurred_at, review.reviewer)
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let reviews = LedgerReader::open(&args.place.site()?.state_dir)?.reviews(usize::MAX)?;
    if args.place.json {
        println!("{}", json!({ "reviews": reviews }));
        return Ok(());
    }
    for review in &reviews {
        let mark = match (review.is_last, review.template) {
            (true, Some(template)) => format!("  template {template}"),
            (true, None) => String::new(),
            (false, _) => "  (replaced)".to_owned(),
        };
        println!("{}{mark}", line(review));
    }
    if reviews.is_empty() {
        println!("no reviews");
    }
    Ok(())
}

fn confusions(args: &ListArgs) -> anyhow::Result<()> {
    let pairs = LedgerReader::open(&args.place.site()?.state_dir)?.confusions()?;
    if args.place.json {
        println!("{}", json!({ "confusions": pairs }));
        return Ok(());
    }
    println!("{:<16} {:<16} {:>6}  last", "shown", "really", "count");
    for pair in &pairs {
        println!("{:<16} {:<16} {:>6}  {}", pair.shown_part_id, pair.true_part_id, pair.count, pair.last_at);
    }
    Ok(())
}

fn unknowns(args: &ListArgs) -> anyhow::Result<()> {
    let parts = LedgerReader::open(&args.place.site()?.state_dir)?.unknown_parts()?;
    if args.place.json {
        println!("{}", json!({ "unknowns": parts }));
        return Ok(());
    }
    println!("{:<16} {:>6} {:>8}  {:<28} example", "looks like", "count", "nearest", "last");
    for part in &parts {
        println!(
            "{:<16} {:>6} {:>8.3}  {:<28} {}/{}",
            part.best_part_id,
            part.detected_count,
            part.nearest_similarity,
            part.last_detected_at.to_string(),
            part.example_code,
            part.example_ordinal
        );
    }
    Ok(())
}
