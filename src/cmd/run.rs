//! `loupe run`: the daemon, and the composition root that `demo` shares.
//!
//! Order of a start: configuration → ONNX Runtime → goldens → ledger → engines and pipeline → dashboard → uplink → READY.
//! Order of a stop: capture → pipeline → uplink → ledger → dashboard, within `limits::SHUTDOWN_GRACE`; the uplink goes
//! before the ledger because it tells the ledger what was delivered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tracing::{error, info, warn};

use super::Failure;
use super::board::Board;
use super::config_record::ConfigRecorder;
use super::late::{self, Late, Waiting, note_serving};
use super::live_recipe::LiveRecipes;
use super::{central_fit, central_recipe};
use crate::capture::{self, SourceKind, SourceSpec};
use crate::clock::Clock;
use crate::config::{Config, Recipe, StationRecipe};
use crate::dashboard::{
    Dashboard, DashboardHandle, DashboardState, Feed, HoldFn, KitFn, PeopleFn, ReviewFn, StationInfo,
};
use crate::failpoint;
use crate::inference::{ModelPool, Runtime};
use crate::ledger::{self, Ledger, LedgerReader, RecipeOrigin};
use crate::limits::SHUTDOWN_GRACE;
use crate::notify::{self, Watchdog};
use crate::pipeline::{Housekeeping, Outcome, Pipeline, Recipes, Reviewer, Shared, StationInput};
use crate::shutdown::Shutdown;
use crate::types::{InspectionId, WatchedFile};
use crate::uplink::{self, DownlinkConfig, Uplink};

/// Run the daemon: inspect what the stations' sources bring, until stopped.
///
/// SIGTERM or SIGINT stops in order: what was captured is inspected and committed first. A second signal exits at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/loupe/loupe.toml")]
    config: PathBuf,
}

/// How long the service goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Stopped,
    /// Also ends when every source has ended.
    SourcesEnd,
}

/// Run the command.
///
/// # Errors
/// When the configuration is wrong or something it names cannot be used.
pub fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config).map_err(|error| Failure::config(error.into()))?;
    serve(config, Until::Stopped, |address| info!("dashboard on http://{address}/"), |_| {})
}

/// Compose all rooms by `config` and serve. `on_ready` hears the dashboard's address, `on_outcome` each outcome.
///
/// # Errors
/// When a library, the ledger, an engine, a source, the dashboard or a thread cannot be started.
pub fn serve(
    config: Config,
    until: Until,
    on_ready: impl FnOnce(SocketAddr),
    on_outcome: impl FnMut(&Outcome) + Send + 'static,
) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let shutdown = Shutdown::new();
    super::signals::stop_on_signal(&shutdown)?;
    let clock = Clock::system();
    let runtime = Runtime::load(config.onnxruntime.as_deref())?;
    super::model::verify_recipes(&runtime, super::model::recipes_in_files(&config))?;
    let state_dir = config.storage.state_dir.clone();
    let ledger = Ledger::open(&state_dir, clock.clone())
        .with_context(|| format!("state folder {} (storage.state_dir)", state_dir.display()))?;
    failpoint::hit("daemon.start.ledger");
    let models = ModelPool::new(Arc::clone(&runtime), clock.clone(), super::model::decode);
    let shared = Shared {
        runtime,
        models,
        ledger: ledger.clone(),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
        progress: crate::pipeline::Progress::default(),
        deltas: crate::matching::Deltas::default(),
        workers: config.workers,
    };

    let Opened { inputs, origins, infos: stations, progress, waiting } = open_stations(&config, &shared)?;
    let recipes: Vec<Arc<Recipe>> = inputs.iter().map(|input| Arc::clone(&input.recipe)).collect();
    let names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
    let board = Board::new(shared.progress.clone(), ledger.clone(), clock.clone());
    let feed = Feed::new();
    let sink = {
        let (board, feed, on_outcome) = (board.clone(), feed.clone(), Arc::new(Mutex::new(on_outcome)));
        move |outcome| {
            board.note(&outcome);
            if let Outcome::Committed(inspection) = &outcome {
                feed.publish(Arc::clone(inspection));
            }
            (on_outcome.lock().unwrap_or_else(PoisonError::into_inner))(&outcome);
        }
    };
    let mut pipeline = Pipeline::start(inputs, &shared, sink.clone())?;
    let recorder = ConfigRecorder::new(&config, &ledger);
    for ((name, recipe), origin) in names.iter().zip(&recipes).zip(origins) {
        note_serving(&ledger, name, recipe, origin)?;
        recorder.runs(name, recipe, origin);
    }
    recorder.record_start();
    let mut statuses = pipeline.stations().to_vec();
    board.set_stations(&statuses);
    failpoint::hit("daemon.start.pipeline");

    let stop_dashboard = Shutdown::new();
    let recipes = Recipes::new(recipes);
    let live = LiveRecipes::new(&config, &ledger, &board, (recipes.clone(), recorder.clone()));
    let runtime = Some(Arc::clone(&shared.runtime));
    let reviewer = Reviewer::new(runtime, ledger.clone(), shared.deltas.clone(), recipes.clone());
    let desk = super::review::desk(reviewer, state_dir.clone());
    let hides = config.dashboard.as_ref().is_some_and(|dashboard| !dashboard.listen.ip().is_loopback());
    let names = stations.iter().map(|station| station.name.clone()).collect();
    let kits = super::ledger_desk::desk(ledger.clone(), state_dir.clone(), hides, names);
    let holds = super::storage::desk(ledger.clone());
    let people = super::people::desk(ledger.clone(), state_dir.clone());
    let dashboard = start_dashboard(
        &config,
        &board,
        &feed,
        &clock,
        (stations, progress.clone()),
        (desk, kits, holds, people),
        &stop_dashboard,
    )?;
    let stop_uplink = Shutdown::new();
    let uplink = match &config.uplink {
        None => None,
        Some(uplink) => {
            let options = uplink::UplinkConfig { dsn: uplink.dsn.clone(), site_id: config.site_id };
            let downlink = Some(downlink_of(&config, uplink.pull_interval_s, &shared, &live));
            let uplink =
                Uplink::spawn_with_downlink(ledger.clone(), options, downlink, clock.clone(), stop_uplink.clone())?;
            board.set_uplink(uplink.status());
            Some(uplink)
        }
    };
    let housekeeping = Housekeeping::start(&ledger, config.storage.policy, &clock, board.metrics())?;
    let telemetry = super::telemetry::start(&config, &board, &ledger, &clock, &stop_dashboard)?;
    let watchdog = Watchdog::new(progress).spawn(stop_dashboard.clone())?;
    notify::ready();
    let mut late = Late::new(waiting);
    say_status(statuses.len(), late.waiting_count());
    // Where `loupe review` finds the one who writes the ledger; a file that stays behind only names nobody.
    let address_file = state_dir.join(super::review::ADDRESS_FILE);
    if let Some(dashboard) = &dashboard {
        std::fs::write(&address_file, format!("{}\n", dashboard.addr))
            .with_context(|| format!("cannot write {}", address_file.display()))?;
        on_ready(dashboard.addr);
    }

    failpoint::hit("daemon.start.ready");
    if until == Until::Stopped {
        let pause = if live.is_empty() { late.pause() } else { late::LOOK_INTERVAL };
        while !shutdown.wait_timeout(pause) {
            let mut changed = late.start_ready(&shared, &sink, (&recipes, &recorder));
            changed.extend(live.take_up(std::iter::once(&mut pipeline).chain(late.pipelines())));
            if !changed.is_empty() {
                statuses.retain(|known| changed.iter().all(|changed| changed.name != known.name));
                statuses.extend(changed);
                board.set_stations(&statuses);
                say_status(statuses.len(), late.waiting_count());
            }
        }
    }
    let grace = shutdown.clone();
    std::thread::Builder::new().name("grace".to_owned()).spawn(move || exit_after_grace(&grace))?;
    pipeline.join();
    late.join();
    failpoint::hit("daemon.stop.pipeline");
    notify::stopping();
    info!("stopping: everything captured is committed");
    stop_uplink.request();
    if let Some(uplink) = uplink {
        uplink.join();
    }
    failpoint::hit("daemon.stop.uplink");
    if dashboard.is_some() {
        // Gone already is as good.
        drop(std::fs::remove_file(&address_file));
    }
    stop_dashboard.request();
    housekeeping.stop();
    let closed = ledger.close();
    failpoint::hit("daemon.stop.ledger");
    for thread in [telemetry].into_iter().chain(watchdog) {
        if thread.join().is_err() {
            error!("a helper thread panicked");
        }
    }
    if let Some(dashboard) = dashboard {
        dashboard.join();
    }
    closed.context("closing the ledger")
}

/// After a stop was requested the whole must end in time: a hung driver must not hold up the machine's shutdown.
fn exit_after_grace(shutdown: &Shutdown) {
    while !shutdown.wait_timeout(Duration::from_secs(3600)) {}
    std::thread::sleep(SHUTDOWN_GRACE);
    error!("the stop took longer than {} s: exiting; what was committed is safe", SHUTDOWN_GRACE.as_secs());
    std::process::exit(1);
}

fn say_status(running: usize, waiting: usize) {
    let waits = match waiting {
        0 => String::new(),
        waiting => format!("; {waiting} wait for their recipe from the centre (see `loupe provisioning status`)"),
    };
    notify::status(&format!("inspecting at {running} stations{waits}"));
    if waiting > 0 {
        info!("inspecting at {running} stations{waits}");
    }
}

/// What the uplink is to fetch.
fn downlink_of(config: &Config, interval_s: u32, shared: &Shared, live: &LiveRecipes) -> DownlinkConfig {
    let central = config.stations.iter().filter_map(|station| match &station.recipe {
        StationRecipe::Central { folder } => Some((station.name.clone(), folder.clone())),
        StationRecipe::File(_) => None,
    });
    let (stations, folders): (Vec<String>, Vec<PathBuf>) = central.unzip();
    let folder = folders.into_iter().next().unwrap_or_default();
    DownlinkConfig {
        interval: Duration::from_secs(u64::from(interval_s)),
        stations,
        prove: central_recipe::prover(Arc::clone(&shared.runtime), &folder),
        keep_fit: central_fit::keeper(&config.stations, &config.storage.state_dir),
        hear: live.listener(),
    }
}

/// The configured stations: those that can begin, and those that wait for a recipe.
struct Opened {
    inputs: Vec<StationInput>,
    /// Where the inputs' recipes came from.
    origins: Vec<RecipeOrigin>,
    /// Of all stations.
    infos: Vec<StationInfo>,
    /// Of all stations.
    progress: Vec<notify::Progress>,
    waiting: Vec<Waiting>,
}

fn open_stations(config: &Config, shared: &Shared) -> anyhow::Result<Opened> {
    let mut opened = Opened {
        inputs: Vec::new(),
        origins: Vec::new(),
        infos: Vec::new(),
        progress: Vec::new(),
        waiting: Vec::new(),
    };
    for station in &config.stations {
        let progress = notify::Progress::new(&station.name);
        // Until the first frame comes, waiting is all there is to do.
        progress.set_idle(true);
        opened.progress.push(progress.clone());
        let (recipe, origin) = match &station.recipe {
            StationRecipe::File(recipe) => (Some((**recipe).clone()), RecipeOrigin::File),
            StationRecipe::Central { folder } => {
                let recipe = central_recipe::at_start(&shared.runtime, &shared.ledger, &station.name, folder)?;
                if recipe.is_none() {
                    opened.waiting.push(Waiting {
                        name: station.name.clone(),
                        folder: folder.clone(),
                        source: station.source.clone(),
                        artifacts: config.storage.artifacts,
                        progress: progress.clone(),
                    });
                }
                (recipe, RecipeOrigin::Central)
            }
        };
        opened.infos.push(StationInfo {
            name: station.name.clone(),
            recipe: recipe.as_ref().map_or_else(|| "from the centre".to_owned(), |recipe| recipe.name.clone()),
            source: describe(&station.source),
        });
        let Some(recipe) = recipe else { continue };
        let taken = taken_before(&shared.ledger, &station.name, &station.source)?;
        let source = capture::open_source(&station.source, taken, shared.clock.clone(), &shared.shutdown)
            .with_context(|| format!("station {}", station.name))?;
        opened.origins.push(origin);
        opened.inputs.push(StationInput {
            name: station.name.clone(),
            recipe: Arc::new(recipe),
            source,
            artifacts: config.storage.artifacts,
            progress,
        });
    }
    Ok(opened)
}

/// What `station` has inspected of the folder that it watches, so that a start does not inspect it again.
pub(super) fn taken_before(ledger: &Ledger, station: &str, source: &SourceSpec) -> anyhow::Result<Vec<WatchedFile>> {
    if !source.watch {
        return Ok(Vec::new());
    }
    Ok(LedgerReader::open(ledger.state_dir())?.watched_files(station)?)
}

fn describe(source: &SourceSpec) -> String {
    let kind = match source.kind {
        SourceKind::Folder if source.watch => "watched folder",
        SourceKind::Folder => "folder",
        SourceKind::List => "list",
        SourceKind::Video => "video",
    };
    format!("{kind} {}", source.path.display())
}

fn start_dashboard(
    config: &Config,
    board: &Board,
    feed: &Feed,
    clock: &Clock,
    (stations, progress): (Vec<StationInfo>, Vec<notify::Progress>),
    (desk, kits, holds, people): (ReviewFn, KitFn, HoldFn, PeopleFn),
    stop: &Shutdown,
) -> anyhow::Result<Option<DashboardHandle>> {
    let Some(dashboard) = &config.dashboard else { return Ok(None) };
    let snapshot = board.clone();
    let state_dir = config.storage.state_dir.clone();
    let state = DashboardState {
        artifacts_dir: ledger::artifacts_dir(&state_dir),
        site: config.site_name.clone(),
        stations,
        snapshot: Arc::new(move || snapshot.snapshot()),
        lookup: Some(Arc::new(move |id| {
            let found = LedgerReader::open(&state_dir).and_then(|reader| reader.get(InspectionId(id)));
            found.unwrap_or_else(|error| {
                warn!(%id, error = %error, "an old inspection could not be read for the dashboard");
                None
            })
        })),
        gone: Some(super::storage::gone(config.storage.state_dir.clone(), config.storage.policy)),
        reviews: Some(desk),
        kits: Some(kits),
        holds: Some(holds),
        people: Some(people),
        metrics: board.metrics().clone(),
        progress,
        clock: clock.clone(),
        allow_remote: dashboard.allow_remote,
        allowed_hosts: Vec::new(),
    };
    Ok(Some(Dashboard::spawn(dashboard.listen, feed.clone(), state, stop.clone())?))
}
