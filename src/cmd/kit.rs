//! `loupe kit`: counting trays against a kit.

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::catalog::{self, ImportArgs};
use super::ledger_desk::{Place, order};
use crate::kit::KitCount;
use crate::ledger::LedgerReader;
use crate::types::{InspectionId, KitOrder, KitSession};

/// Sessions listed without --all.
const SESSIONS_LISTED_MAX: usize = 1_000;

/// Counts inspected trays against a kit: a set, a bill of materials.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import kits from CSV or JSON: kit_code, part_number, quantity, and where needed color_id, is_spare, alternate_group, kit_name.
    Import(ImportArgs),
    /// List the kits.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show a kit's lines.
    Show {
        /// The kit.
        kit_code: String,
        #[command(flatten)]
        place: Place,
    },
    /// Begin a session: from now on each still frame inspected at the station counts against the kit.
    Start {
        /// The kit.
        kit_code: String,
        /// Station whose frames count; without it only trays added by `kit add` do.
        #[arg(long)]
        station: Option<String>,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        place: Place,
    },
    /// Say what is found, missing, over and in doubt; without SESSION, list the open sessions.
    Status {
        /// The session; any part of its id that only it has.
        session: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Count an inspection that is in the ledger already.
    Add {
        /// The session.
        session: String,
        /// Code of the inspection, INS-….
        inspection: String,
        #[command(flatten)]
        place: Place,
    },
    /// Count a tray no more, so that it can be inspected again; without INSPECTION the last one.
    UndoTray {
        /// The session.
        session: String,
        /// Code of the inspection, INS-….
        inspection: Option<String>,
        /// Why, in a sentence.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        place: Place,
    },
    /// End a session and book what was counted into the stock. Refused while something is missing, over or in doubt.
    Finish {
        /// The session.
        session: String,
        /// Finish it as it is.
        #[arg(long)]
        incomplete: bool,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        place: Place,
    },
    /// End a session without booking anything.
    Cancel {
        /// The session.
        session: String,
        /// Why, in a sentence.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, clap::Args)]
struct Who {
    /// Who does this; default: the login name.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used or the order is refused.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Import(args) => catalog::import(&args),
        Command::List { place } => list(&place),
        Command::Show { kit_code, place } => show(&kit_code, &place),
        Command::Start { kit_code, station, who, place } => {
            let done = order(&place, KitOrder::Start { kit_code, station, by: who.by })?;
            print(&place, &done, |done| {
                let station = done["station"].as_str().map(|name| format!(" at station {name}")).unwrap_or_default();
                format!("session {} counts{station}", words(&done["session"]))
            })
        }
        Command::Status { session, place } => status(session.as_deref(), &place),
        Command::Add { session, inspection, place } => {
            let reader = place.reader()?;
            let (session, inspection) = (find(&reader, &session)?.id, inspection_of(&reader, &inspection)?);
            order(&place, KitOrder::AddTray { session, inspection })?;
            status(Some(&session.to_string()), &place)
        }
        Command::UndoTray { session, inspection, reason, who, place } => {
            let reader = place.reader()?;
            let session = find(&reader, &session)?.id;
            let inspection = inspection.map(|code| inspection_of(&reader, &code)).transpose()?;
            order(&place, KitOrder::RemoveTray { session, inspection, by: who.by, reason })?;
            status(Some(&session.to_string()), &place)
        }
        Command::Finish { session, incomplete, who, place } => {
            let session = find(&place.reader()?, &session)?.id;
            let done = order(&place, KitOrder::Finish { session, by: who.by, accept_incomplete: incomplete })?;
            print(&place, &done, |done| {
                format!("session {session} is finished; {} items are in stock", words(&done["count"]["accepted"]))
            })
        }
        Command::Cancel { session, reason, who, place } => {
            let session = find(&place.reader()?, &session)?.id;
            let done = order(&place, KitOrder::Cancel { session, by: who.by, reason })?;
            print(&place, &done, |_| format!("session {session} is cancelled; nothing was booked"))
        }
    }
}

fn print(place: &Place, done: &Value, text: impl Fn(&Value) -> String) -> anyhow::Result<()> {
    println!("{}", if place.json { serde_json::to_string_pretty(done)? } else { text(done) });
    Ok(())
}

fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(place: &Place) -> anyhow::Result<()> {
    let kits = place.reader()?.kits()?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "kits": kits }))?);
        return Ok(());
    }
    for kit in &kits {
        let items: u32 = kit.lines.iter().filter(|line| !line.is_spare).map(|line| line.quantity).sum();
        println!("{:<20} {:>4} lines {items:>6} items  {}", kit.kit_code, kit.lines.len(), kit.name);
    }
    if kits.is_empty() {
        println!("no kits; see `loupe kit import --help`");
    }
    Ok(())
}

fn show(kit_code: &str, place: &Place) -> anyhow::Result<()> {
    let reader = place.reader()?;
    let kit = reader
        .kit(kit_code)?
        .ok_or_else(|| anyhow!("kit `{kit_code}` is not in the catalogue; see `loupe kit list`"))?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&kit)?);
        return Ok(());
    }
    println!("{}  {}", kit.kit_code, kit.name);
    for line in &kit.lines {
        let color = line.color_id.map(|color| format!(" in colour {color}")).unwrap_or_default();
        let group = line.alternate_group.as_ref().map(|group| format!(" or another of {group}")).unwrap_or_default();
        let spare = if line.is_spare { " (spare)" } else { "" };
        println!("  {:>5} × {}{color}{group}{spare}", line.quantity, line.part_number);
    }
    Ok(())
}

fn inspection_of(reader: &LedgerReader, code: &str) -> anyhow::Result<InspectionId> {
    reader.id_of_code(code)?.with_context(|| format!("no inspection is called `{code}`"))
}

/// The one session whose id contains `text`; `open`: the one that is open.
fn find(reader: &LedgerReader, text: &str) -> anyhow::Result<KitSession> {
    if let Ok(id) = text.parse::<Uuid>() {
        return reader.kit_session(id)?.with_context(|| format!("there is no session {id}"));
    }
    let mut found: Vec<KitSession> = reader
        .kit_sessions(text == "open", SESSIONS_LISTED_MAX)?
        .into_iter()
        .filter(|session| text == "open" || session.id.to_string().contains(text))
        .collect();
    match (found.pop(), found.len()) {
        (Some(session), 0) => Ok(session),
        (None, _) => Err(anyhow!("no session's id contains `{text}`; see `loupe kit status`")),
        (Some(_), others) => Err(anyhow!("{} sessions' ids contain `{text}`; give more of it", others + 1)),
    }
}

fn status(session: Option<&str>, place: &Place) -> anyhow::Result<()> {
    let reader = place.reader()?;
    let Some(session) = session else { return list_sessions(&reader, place) };
    let session = find(&reader, session)?;
    let count = reader.kit_count(&session)?;
    let trays = reader.kit_trays(session.id)?;
    if place.json {
        let document = json!({ "session": session, "count": count, "trays": trays });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let state = session.outcome.as_deref().unwrap_or("open");
    println!("session   {} ({state}), kit {}", session.id, session.kit.kit_code);
    let codes: Vec<&str> = trays.iter().map(|tray| tray.code.as_str()).collect();
    println!("trays     {}", if codes.is_empty() { "none yet".to_owned() } else { codes.join(" ") });
    write_count(&mut std::io::stdout().lock(), &count)?;
    Ok(())
}

fn list_sessions(reader: &LedgerReader, place: &Place) -> anyhow::Result<()> {
    let sessions = reader.kit_sessions(true, SESSIONS_LISTED_MAX)?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "sessions": sessions }))?);
        return Ok(());
    }
    for session in &sessions {
        let count = reader.kit_count(session)?;
        let station = session.station.as_deref().unwrap_or("-");
        println!(
            "{}  {:<16} {station:<12} {}/{} found, {} over, {} in doubt",
            session.id, session.kit.kit_code, count.found, count.expected, count.surplus, count.doubtful
        );
    }
    if sessions.is_empty() {
        println!("no session is open; see `loupe kit start --help`");
    }
    Ok(())
}

/// What was counted, for people.
///
/// # Errors
/// When `out` refuses.
pub fn write_count(out: &mut impl std::io::Write, count: &KitCount) -> std::io::Result<()> {
    let state = if count.is_complete { "COMPLETE" } else { "not complete" };
    writeln!(
        out,
        "kit {}   {state}: {} of {} found, {} missing, {} over, {} in doubt, {} spare",
        count.kit_code, count.found, count.expected, count.missing, count.surplus, count.doubtful, count.spares
    )?;
    for line in count.lines.iter().filter(|line| line.missing > 0) {
        let color = line.color_id.map(|color| format!(" in colour {color}")).unwrap_or_default();
        writeln!(out, "missing   {:>4} × {}{color}", line.missing, line.parts.join(" or "))?;
    }
    for surplus in &count.surplus_items {
        let color = surplus.color.as_ref().map(|color| format!(" in colour {color}")).unwrap_or_default();
        let note = if surplus.is_in_kit { "" } else { " (not in this kit)" };
        writeln!(out, "over      {:>4} × {}{color}{note}", surplus.count, surplus.part_number)?;
    }
    for doubt in &count.doubts {
        let item = doubt.ordinal.map_or_else(|| "the picture".to_owned(), |ordinal| format!("item {ordinal}"));
        let like = doubt.looks_like.as_ref().map(|part| format!(", looks like {part}")).unwrap_or_default();
        writeln!(out, "in doubt  {} {item}{like}: {}", doubt.inspection, doubt.reasons.join(", "))?;
    }
    Ok(())
}
