//! The operator's page and its API: what was decided, live, on a screen at the line.
//!
//! ```text
//! pipeline ─ publish(committed inspection) ─► Feed ─┬─► recent ring ─► /api/v1/inspections
//!                                                   └─► broadcast ──► /api/v1/events (SSE) ─► the page
//! ```
//!
//! * **Invariant**: only what the ledger has committed is shown; [`Feed::publish`] is called after the commit.
//! * **Read-only but for reviews, feedback, people, kits and legal holds**: every other route is GET and
//!   changes nothing. Files are served from below the artifacts folder only, after resolving links. The `Host` header is checked, so that a page on the internet cannot read the dashboard
//!   by DNS rebinding; errors carry a code and a sentence, never a path or a cause.
//! * **Thread**: one OS thread `loupe-dashboard` with a single-threaded tokio runtime; files are read on at most
//!   `limits::DASHBOARD_FILE_THREADS` threads beside it. The pipeline never waits for a client.
//! * **Overload**: an SSE client that falls behind gets a `reload` event in place of what it missed; beyond
//!   `limits::DASHBOARD_SSE_CLIENTS_MAX` streams or `limits::DASHBOARD_REQUESTS_MAX` requests the answer is 503.

mod api;
mod artifacts;
mod desk;
mod events;
mod feed;
mod guard;
mod holds;
mod kits;
mod page;
mod people;
mod reviews;
mod state;
mod view;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::watch;

pub use feed::Feed;
pub use state::{
    DashboardState, GoneFn, HoldFn, KitCall, KitFn, LookupFn, ModelRun, PeopleCall, PeopleFn, ReviewCall, ReviewFn,
    ReviewRefusal, Snapshot, SnapshotFn, StationInfo, StationNote, UplinkState, UplinkView,
};
pub use view::InspectionView;

use crate::limits;
use crate::shutdown::Shutdown;

/// How long open requests may still run once the stop began.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How often the server's thread looks whether a stop was requested.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Why the dashboard cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    #[error(
        "the dashboard would listen on {listen}, which other machines can reach, and it has no login yet; \
         listen on 127.0.0.1 (and use an SSH tunnel), or set `allow_remote = true` on a network you trust"
    )]
    Remote { listen: SocketAddr },
    #[error("the dashboard cannot listen on {listen}: {source}; choose another `listen` address or stop what uses it")]
    Bind { listen: SocketAddr, source: std::io::Error },
    #[error("the artifacts folder {path} cannot be opened: {source}; create it or correct the state folder")]
    Artifacts { path: String, source: std::io::Error },
    #[error("the dashboard's thread could not be started: {source}")]
    Thread { source: std::io::Error },
}

/// Whether the dashboard may listen there: other machines may reach it only where that was said.
///
/// # Errors
/// [`DashboardError::Remote`].
pub fn may_listen(listen: SocketAddr, allow_remote: bool) -> Result<(), DashboardError> {
    if listen.ip().is_loopback() || allow_remote { Ok(()) } else { Err(DashboardError::Remote { listen }) }
}

/// What every handler sees.
#[derive(Debug, Clone)]
struct Shared(Arc<SharedInner>);

#[derive(Debug)]
struct SharedInner {
    state: DashboardState,
    feed: Feed,
    artifacts_root: std::path::PathBuf,
    is_loopback: bool,
    streams: Arc<tokio::sync::Semaphore>,
    requests: Arc<tokio::sync::Semaphore>,
    /// Turns true when the server stops: streams end themselves.
    stop: watch::Receiver<bool>,
}

impl std::ops::Deref for Shared {
    type Target = SharedInner;

    fn deref(&self) -> &SharedInner {
        &self.0
    }
}

/// The server; [`Dashboard::spawn`] starts it.
#[derive(Debug)]
pub struct Dashboard;

/// A running dashboard.
#[derive(Debug)]
pub struct DashboardHandle {
    /// Where it really listens (the port that was given for port 0).
    pub addr: SocketAddr,
    thread: JoinHandle<()>,
}

impl DashboardHandle {
    /// Wait for the end, which follows the request on the `shutdown` given to [`Dashboard::spawn`] within
    /// two seconds.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the dashboard's thread panicked");
        }
    }
}

impl Dashboard {
    /// Listen on `listen` and serve until `shutdown` is requested. The dashboard is the last to stop: give it a latch
    /// of its own that is requested after the uplink ended.
    ///
    /// # Errors
    /// When `listen` is not a loopback address and the state does not allow that, when the address is taken, when the
    /// artifacts folder is missing, or when no thread can be started.
    pub fn spawn(
        listen: SocketAddr,
        feed: Feed,
        state: DashboardState,
        shutdown: Shutdown,
    ) -> Result<DashboardHandle, DashboardError> {
        may_listen(listen, state.allow_remote)?;
        let artifacts_root = state
            .artifacts_dir
            .canonicalize()
            .map_err(|source| DashboardError::Artifacts { path: state.artifacts_dir.display().to_string(), source })?;
        let bind = |source| DashboardError::Bind { listen, source };
        let listener = TcpListener::bind(listen).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(limits::DASHBOARD_FILE_THREADS)
            .thread_name("loupe-dash-file")
            .build()
            .map_err(|source| DashboardError::Thread { source })?;
        let (stop_sender, stop) = watch::channel(false);
        let shared = Shared(Arc::new(SharedInner {
            state,
            feed,
            artifacts_root,
            is_loopback: addr.ip().is_loopback(),
            streams: Arc::new(tokio::sync::Semaphore::new(limits::DASHBOARD_SSE_CLIENTS_MAX)),
            requests: Arc::new(tokio::sync::Semaphore::new(limits::DASHBOARD_REQUESTS_MAX)),
            stop,
        }));
        let run = move || {
            if let Err(error) = runtime.block_on(serve(listener, shared, shutdown, stop_sender)) {
                tracing::error!(error = %error, "the dashboard ended; inspection goes on without it");
            }
            // A file read that hangs on a dead disk must not hold up the stop.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("loupe-dashboard".to_owned())
            .spawn(run)
            .map_err(|source| DashboardError::Thread { source })?;
        Ok(DashboardHandle { addr, thread })
    }
}

async fn serve(
    listener: TcpListener,
    shared: Shared,
    shutdown: Shutdown,
    stop_sender: watch::Sender<bool>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut stop = shared.stop.clone();
    let server = axum::serve(listener, router(shared)).with_graceful_shutdown(async move {
        // An error means that the sender is gone, which is a stop as well.
        stop.wait_for(|is_stopping| *is_stopping).await.map(drop).unwrap_or_default();
    });
    let deadline = async move {
        let mut tick = tokio::time::interval(STOP_CHECK_INTERVAL);
        while !shutdown.is_requested() {
            tick.tick().await;
        }
        stop_sender.send_replace(true);
        tokio::time::sleep(DRAIN_TIME_MAX).await;
    };
    tokio::select! {
        ended = server => ended,
        () = deadline => Ok(()),
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/assets/style.css", get(page::style))
        .route("/assets/app.js", get(page::script))
        .route("/assets/review.js", get(page::review_script))
        .route("/assets/icon.svg", get(page::icon))
        .route("/api/v1/inspections", get(api::inspections))
        .route("/api/v1/inspections/{id}", get(api::inspection))
        .route("/api/v1/reviews", get(reviews::list).post(reviews::add))
        .route("/api/v1/reviews/{id}/undo", post(reviews::undo))
        .route("/kits", get(page::kits))
        .route("/assets/kits.js", get(page::kits_script))
        .route("/assets/kits.css", get(page::kits_style))
        .route("/api/v1/kits", get(kits::overview).post(kits::order))
        .route("/api/v1/holds", post(holds::order))
        .route("/assets/feedback.js", get(page::feedback_script))
        .route("/api/v1/people", get(people::list).post(people::change))
        .route("/api/v1/feedback", get(people::feedback).post(people::say))
        .route("/api/v1/confusions", get(reviews::confusions))
        .route("/api/v1/unknowns", get(reviews::unknowns))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/events", get(events::events))
        .route("/artifacts/{*path}", get(artifacts::artifact))
        .route("/metrics", get(api::metrics))
        .route("/healthz", get(api::healthz))
        .fallback(api::not_found)
        .method_not_allowed_fallback(api::method_not_allowed)
        .layer(axum::extract::DefaultBodyLimit::max(limits::DASHBOARD_BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn_with_state(shared.clone(), guard::guard))
        .with_state(shared)
}
