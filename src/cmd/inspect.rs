//! `loupe inspect`: one shot over images, folders and videos.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use crossbeam_channel::bounded;

use super::Failure;
use super::console::{self, InspectionLine};
use crate::capture;
use crate::clock::{Clock, Stopwatch};
use crate::config::{ArtifactPolicy, Recipe};
use crate::inference::{ModelPool, Runtime};
use crate::kit::{KitCount, count};
use crate::ledger::{Ledger, LedgerReader};
use crate::matching::Deltas;
use crate::notify;
use crate::pipeline::{Outcome, Pipeline, Progress, Shared, StationInput};
use crate::shutdown::Shutdown;
use crate::types::{Inspection, Kit, Verdict};

/// Outcomes on their way to the printer.
const OUTCOME_QUEUE: usize = 64;

/// Inspect images, folders or videos once and print a result for each.
///
/// Every result is committed to the ledger in the state folder before it is printed. Exit code 0 says that everything
/// was inspected, whatever the verdicts; 1 that something was not stored.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe to inspect by.
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Images, folders of images, or videos.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// So many pictures make one frame: views of one item, named UNIT_VIEW.ext (box7_left.jpg, box7_top.jpg).
    #[arg(long, value_name = "N")]
    views: Option<usize>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Where the ledger and the pictures go.
    #[arg(long, value_name = "DIR", default_value_os_t = default_state_dir())]
    state: PathBuf,
    /// Which inspections keep pictures: all, exceptions (FAIL and HOLD) or none.
    #[arg(long, value_name = "POLICY", default_value = "exceptions", value_parser = parse_policy)]
    artifacts: ArtifactPolicy,
    /// Worker threads; 0 = one a core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Count each inspection by itself against this kit of the state folder's catalogue, and print what is missing, over
    /// and in doubt.
    #[arg(long, value_name = "KIT")]
    kit: Option<String>,
    /// Print the whole run's times to stderr when done.
    #[arg(long)]
    stats: bool,
}

/// `$XDG_STATE_HOME/loupe-inspect`, else `~/.local/state/loupe-inspect`.
fn default_state_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("loupe-inspect")
}

fn parse_policy(text: &str) -> Result<ArtifactPolicy, String> {
    match text {
        "all" => Ok(ArtifactPolicy::All),
        "exceptions" => Ok(ArtifactPolicy::Exceptions),
        "none" => Ok(ArtifactPolicy::None),
        other => Err(format!("`{other}` is none of all, exceptions, none")),
    }
}

/// Run the command.
///
/// # Errors
/// When the recipe, a path, a model or the ledger cannot be used, or an inspection could not be stored.
pub fn run(args: Args) -> anyhow::Result<()> {
    let recipe = Arc::new(Recipe::load(&args.recipe).map_err(|error| Failure::config(error.into()))?);
    if let Some(fault) = recipe.fault_of_source_views(args.views) {
        return Err(Failure::config(anyhow::anyhow!("{}: {fault}", args.recipe.display())).into());
    }
    let clock = Clock::system();
    let shutdown = Shutdown::new();
    super::signals::stop_on_signal(&shutdown)?;
    let source = capture::paths_source(&args.paths, args.views, clock.clone(), &shutdown)?;
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let ledger = Ledger::open(&args.state, clock.clone())
        .with_context(|| format!("state folder {} (choose another with --state)", args.state.display()))?;
    let kit = args.kit.as_deref().map(|code| kit_called(&args.state, code)).transpose()?;
    let progress = Progress::default();
    let models = ModelPool::new(Arc::clone(&runtime), clock.clone(), super::model::decode);
    let shared = Shared {
        runtime,
        models,
        ledger: ledger.clone(),
        clock,
        shutdown,
        progress: progress.clone(),
        deltas: Deltas::default(),
        workers: args.workers,
    };
    let input = StationInput {
        name: "inspect".to_owned(),
        recipe,
        source,
        artifacts: args.artifacts,
        progress: notify::Progress::new("inspect"),
    };
    let (sender, outcomes) = bounded(OUTCOME_QUEUE);
    let pipeline = Pipeline::start(vec![input], &shared, move |outcome| {
        // The printer is gone only when stdout is: nothing is lost, the ledger has it.
        let _sent = sender.send(outcome);
    })?;
    let watch = Stopwatch::start();
    let printed = print_all(&args, kit.as_ref(), &outcomes);
    shared.shutdown_if(printed.is_err());
    drop(outcomes);
    pipeline.join();
    let wall_ms = watch.ms();
    let counters = ledger.counters()?;
    ledger.close()?;
    let totals = printed?;
    if args.stats {
        eprintln!(
            "{} frames in {wall_ms:.0} ms, {:.1} frames/s; {:.0} ms of it inside ONNX Runtime (summed over workers); ledger: {} committed",
            progress.finished(),
            progress.finished() as f64 / f64::from(wall_ms) * 1_000.0,
            progress.session_ms(),
            counters.committed,
        );
    }
    anyhow::ensure!(
        totals.unstored == 0,
        "{} inspections could not be stored: see the messages above",
        totals.unstored
    );
    Ok(())
}

impl Shared {
    fn shutdown_if(&self, stop: bool) {
        if stop {
            self.shutdown.request();
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    by_verdict: [u64; 3],
    refused: u64,
    unstored: u64,
}

fn kit_called(state: &std::path::Path, code: &str) -> anyhow::Result<Kit> {
    let kit = LedgerReader::open(state)?.kit(code)?;
    kit.with_context(|| {
        let state = state.display();
        format!(
            "kit `{code}` is not in the catalogue of {state}, where this command keeps what it inspects; \
             `loupe catalog import` and `loupe kit import` with --state {state} put it there"
        )
    })
}

/// The inspection's object with its count beside it.
#[derive(serde::Serialize)]
struct Counted<'a> {
    #[serde(flatten)]
    inspection: &'a Inspection,
    kit: KitCount,
}

fn print_all(
    args: &Args,
    kit: Option<&Kit>,
    outcomes: &crossbeam_channel::Receiver<Outcome>,
) -> anyhow::Result<Totals> {
    let mut out = std::io::stdout().lock();
    let mut totals = Totals::default();
    for outcome in outcomes {
        let inspection = match outcome {
            Outcome::Committed(inspection) => inspection,
            Outcome::Unstored { inspection, message } => {
                eprintln!("loupe: {} was not stored: {message}", inspection.source);
                totals.unstored += 1;
                inspection
            }
            Outcome::Refused { .. } => {
                totals.refused += 1;
                continue;
            }
        };
        totals.by_verdict[inspection.verdict as usize] += 1;
        if args.json {
            match kit {
                None => serde_json::to_writer(&mut out, &*inspection)?,
                Some(kit) => {
                    let counted = Counted { inspection: &inspection, kit: count(kit, [&*inspection]) };
                    serde_json::to_writer(&mut out, &counted)?;
                }
            }
            writeln!(out)?;
        } else {
            writeln!(out, "{}", InspectionLine(&inspection))?;
            if let Some(kit) = kit {
                super::kit::write_count(&mut out, &count(kit, [&*inspection]))?;
            }
        }
    }
    if !args.json {
        let [pass, hold, fail] = totals.by_verdict;
        let tally = [(Verdict::Pass, pass), (Verdict::Fail, fail), (Verdict::Hold, hold)];
        writeln!(out, "{}", console::tally(&tally, totals.refused))?;
    }
    Ok(totals)
}
