//! `loupe run`: the daemon, and the composition root that `demo` shares.
//!
//! Order of a start: configuration → ONNX Runtime → goldens → ledger → engines and pipeline → dashboard → uplink → READY.
//! Order of a stop: capture → pipeline → uplink → ledger → dashboard, within `limits::SHUTDOWN_GRACE`; the uplink goes
//! before the ledger because it tells the ledger what was delivered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tracing::{error, info, warn};

use super::Failure;
use super::board::Board;
use crate::capture::{self, SourceKind, SourceSpec};
use crate::clock::Clock;
use crate::config::Config;
use crate::dashboard::{Dashboard, DashboardHandle, DashboardState, Feed, KitFn, ReviewFn, StationInfo};
use crate::failpoint;
use crate::inference::Runtime;
use crate::ledger::{self, Ledger, LedgerReader};
use crate::limits::SHUTDOWN_GRACE;
use crate::notify::{self, Watchdog};
use crate::observe::GpuSampler;
use crate::pipeline::{Outcome, Pipeline, Reviewer, Shared, StationInput};
use crate::shutdown::Shutdown;
use crate::types::InspectionId;
use crate::uplink::{self, Uplink};

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
    mut on_outcome: impl FnMut(&Outcome) + Send + 'static,
) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    super::signals::stop_on_signal(&shutdown)?;
    let clock = Clock::system();
    let runtime = Runtime::load(config.onnxruntime.as_deref())?;
    super::model::verify_recipes(&runtime, config.stations.iter().map(|station| &station.recipe))?;
    let state_dir = config.storage.state_dir.clone();
    let ledger = Ledger::open(&state_dir, clock.clone())
        .with_context(|| format!("state folder {} (storage.state_dir)", state_dir.display()))?;
    failpoint::hit("daemon.start.ledger");
    let shared = Shared {
        runtime,
        ledger: ledger.clone(),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
        progress: crate::pipeline::Progress::default(),
        deltas: crate::matching::Deltas::default(),
        workers: config.workers,
    };

    let (inputs, stations) = open_stations(&config, &clock, &shutdown)?;
    let progress: Vec<notify::Progress> = inputs.iter().map(|input| input.progress.clone()).collect();
    let board = Board::new(shared.progress.clone(), ledger.clone(), clock.clone());
    let feed = Feed::new();
    let pipeline = {
        let (board, feed) = (board.clone(), feed.clone());
        Pipeline::start(inputs, &shared, move |outcome| {
            board.note(&outcome);
            if let Outcome::Committed(inspection) = &outcome {
                feed.publish(Arc::clone(inspection));
            }
            on_outcome(&outcome);
        })?
    };
    board.set_stations(pipeline.stations());
    failpoint::hit("daemon.start.pipeline");

    let stop_dashboard = Shutdown::new();
    let recipes = config.stations.iter().map(|station| Arc::new(station.recipe.clone())).collect();
    let reviewer = Reviewer::new(Some(Arc::clone(&shared.runtime)), ledger.clone(), shared.deltas.clone(), recipes);
    let desk = super::review::desk(reviewer, state_dir.clone());
    let hides = config.dashboard.as_ref().is_some_and(|dashboard| !dashboard.listen.ip().is_loopback());
    let names = stations.iter().map(|station| station.name.clone()).collect();
    let kits = super::ledger_desk::desk(ledger.clone(), state_dir.clone(), hides, names);
    let dashboard =
        start_dashboard(&config, &board, &feed, &clock, (stations, progress.clone()), (desk, kits), &stop_dashboard)?;
    let stop_uplink = Shutdown::new();
    let uplink = match &config.uplink {
        None => None,
        Some(uplink) => {
            let options = uplink::UplinkConfig { dsn: uplink.dsn.clone(), site_id: config.site_id };
            let uplink = Uplink::spawn(ledger.clone(), options, clock.clone(), stop_uplink.clone())?;
            board.set_uplink(uplink.status());
            Some(uplink)
        }
    };
    let telemetry = start_telemetry(&board, &ledger, &clock, config.gpu_interval_s, &stop_dashboard)?;
    let watchdog = Watchdog::new(progress).spawn(stop_dashboard.clone())?;
    notify::ready();
    notify::status(&format!("inspecting at {} stations", pipeline.stations().len()));
    // Where `loupe review` finds the one who writes the ledger; a file that stays behind only names nobody.
    let address_file = state_dir.join(super::review::ADDRESS_FILE);
    if let Some(dashboard) = &dashboard {
        std::fs::write(&address_file, format!("{}\n", dashboard.addr))
            .with_context(|| format!("cannot write {}", address_file.display()))?;
        on_ready(dashboard.addr);
    }

    failpoint::hit("daemon.start.ready");
    if until == Until::Stopped {
        while !shutdown.wait_timeout(Duration::from_secs(3600)) {}
    }
    let grace = shutdown.clone();
    std::thread::Builder::new().name("grace".to_owned()).spawn(move || exit_after_grace(&grace))?;
    pipeline.join();
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

fn open_stations(
    config: &Config,
    clock: &Clock,
    shutdown: &Shutdown,
) -> anyhow::Result<(Vec<StationInput>, Vec<StationInfo>)> {
    let mut inputs = Vec::with_capacity(config.stations.len());
    let mut infos = Vec::with_capacity(config.stations.len());
    for station in &config.stations {
        let progress = notify::Progress::new(&station.name);
        // Until the first frame comes, waiting is all there is to do.
        progress.set_idle(true);
        let source = capture::open_source(&station.source, clock.clone(), shutdown)
            .with_context(|| format!("station {}", station.name))?;
        infos.push(StationInfo {
            name: station.name.clone(),
            recipe: station.recipe.name.clone(),
            source: describe(&station.source),
        });
        inputs.push(StationInput {
            name: station.name.clone(),
            recipe: Arc::new(station.recipe.clone()),
            source,
            artifacts: config.storage.artifacts,
            progress,
        });
    }
    Ok((inputs, infos))
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
    (desk, kits): (ReviewFn, KitFn),
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
        reviews: Some(desk),
        kits: Some(kits),
        metrics: board.metrics().clone(),
        progress,
        clock: clock.clone(),
        allow_remote: dashboard.allow_remote,
        allowed_hosts: Vec::new(),
    };
    Ok(Some(Dashboard::spawn(dashboard.listen, feed.clone(), state, stop.clone())?))
}

/// Once a second the ledger's totals for the board; every `gpu_interval_s` a sample of each GPU.
fn start_telemetry(
    board: &Board,
    ledger: &Ledger,
    clock: &Clock,
    gpu_interval_s: u32,
    stop: &Shutdown,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (board, ledger, clock, stop) = (board.clone(), ledger.clone(), clock.clone(), stop.clone());
    std::thread::Builder::new().name("loupe-telemetry".to_owned()).spawn(move || {
        let sampler = match GpuSampler::open() {
            Ok(sampler) => Some(sampler),
            Err(error) => {
                info!("{error}");
                None
            }
        };
        let mut second: u32 = 0;
        loop {
            board.refresh();
            if let Some(sampler) = sampler.as_ref().filter(|_| second.is_multiple_of(gpu_interval_s)) {
                let mut samples = sampler.sample();
                let inference_rate_hz = Some(board.frames_per_second());
                samples.iter_mut().for_each(|sample| sample.inference_rate_hz = inference_rate_hz);
                board.metrics().set_gpus(&samples);
                let recorded = ledger.record_gpu_stats(clock.now(), samples);
                if let Err(error) = recorded {
                    warn!(error = %error, "a GPU sample was not stored");
                }
            }
            second = second.wrapping_add(1);
            if stop.wait_timeout(Duration::from_secs(1)) {
                return;
            }
        }
    })
}
