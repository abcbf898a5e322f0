//! What the dashboard is told about the daemon around it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::clock::Clock;
use crate::notify::Progress;
use crate::observe::Metrics;
use crate::types::{FeedbackOrder, HoldOrder, Inspection, KitOrder, PersonOrder, ReviewOrder, Timestamp};

/// Answers with the counters of this moment. Called once a second for each client on the dashboard's only thread: it
/// must not block, so read atomics or cached values.
pub type SnapshotFn = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// Looks an inspection up that is no longer in the recent ring; may read the ledger, runs on a file thread.
pub type LookupFn = Arc<dyn Fn(Uuid) -> Option<Inspection> + Send + Sync>;

/// What the review routes ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum ReviewCall {
    /// The last reviews: `{"reviews": [...]}`.
    List,
    /// `{"confusions": [...]}`
    Confusions,
    /// `{"unknowns": [...]}`
    Unknowns,
    /// One more review; answered with it.
    Add(ReviewOrder),
    /// Take one back; answered with the review that does.
    Undo { id: Uuid, reviewer: String, reason: Option<String> },
}

/// Why a review call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReviewRefusal {
    /// The order is at fault: a sentence for whoever gave it, without paths.
    Order(String),
    /// The machine is at fault: for the log.
    Machine(String),
}

/// Answers review calls; may read and write the ledger and run a model, on a file thread.
pub type ReviewFn = DeskFn<ReviewCall>;

/// Answers a question or does an order; may read and write the ledger, runs on a file thread.
pub type DeskFn<C> = Arc<dyn Fn(C) -> Result<serde_json::Value, ReviewRefusal> + Send + Sync>;

/// What the kit routes ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum KitCall {
    /// `{"sessions": [...], "low_stock": [...], "part_names": {...}}`
    Overview,
    /// Answered with what came of it.
    Order(KitOrder),
}

/// Answers kit calls; reads and writes the ledger, on a file thread.
pub type KitFn = DeskFn<KitCall>;

/// What the routes of people and feedback ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeopleCall {
    /// `{"people": [...]}`: those who may sign.
    People,
    /// `{"feedback": [...], "actions": [...]}`, the last of each, newest first.
    Feedback,
    /// Answered with the person.
    ChangePerson(PersonOrder),
    /// Answered with the feedback or action.
    Say(FeedbackOrder),
}

/// Answers calls about people and feedback; reads and writes the ledger, on a file thread.
pub type PeopleFn = DeskFn<PeopleCall>;

/// Places and releases legal holds.
pub type HoldFn = DeskFn<HoldOrder>;

/// Why the picture at this path below `artifacts/` is gone, in a sentence; `None`: nobody knows of it. May read the
/// ledger, runs on a file thread.
pub type GoneFn = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The fixed facts and the questions the dashboard may ask.
#[derive(Clone)]
pub struct DashboardState {
    /// The state folder's `artifacts/`.
    pub artifacts_dir: PathBuf,
    pub site: String,
    pub stations: Vec<StationInfo>,
    pub snapshot: SnapshotFn,
    pub lookup: Option<LookupFn>,
    /// Says why pictures are gone; `None`: all that are not there are unknown.
    pub gone: Option<GoneFn>,
    /// Takes reviews; `None`: there are none here.
    pub reviews: Option<ReviewFn>,
    /// Counts kits; `None`: there are none here.
    pub kits: Option<KitFn>,
    /// Places legal holds; `None`: there are none here.
    pub holds: Option<HoldFn>,
    /// Keeps people and feedback; `None`: there are none here.
    pub people: Option<PeopleFn>,
    pub metrics: Metrics,
    /// One a station; `/healthz` answers 503 while one of them is stalled.
    pub progress: Vec<Progress>,
    pub clock: Clock,
    /// Listen where other machines can reach it, without a login.
    pub allow_remote: bool,
    /// Host names under which the dashboard is reached, besides `localhost` and IP addresses.
    pub allowed_hosts: Vec<String>,
}

impl std::fmt::Debug for DashboardState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DashboardState")
            .field("artifacts_dir", &self.artifacts_dir)
            .field("site", &self.site)
            .field("stations", &self.stations)
            .field("allow_remote", &self.allow_remote)
            .finish_non_exhaustive()
    }
}

/// One inspection place, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StationInfo {
    pub name: String,
    pub recipe: String,
    /// Camera, folder or file.
    pub source: String,
}

/// What has changed of a station since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StationNote {
    /// The recipe that it runs.
    pub recipe: Option<String>,
    /// What an operator is to know, such as a recipe of the centre that cannot be used here.
    pub notice: Option<String>,
}

/// Where one model runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelRun {
    pub model: String,
    /// The provider that really runs it, as the runtime says.
    pub provider: String,
    /// What the recipe requires; `None` = anything will do.
    pub required: Option<String>,
    /// It does not run where its plan wants it first.
    pub is_fallback: bool,
    /// Why it cannot answer now: its device failed and it is being opened again.
    pub fault: Option<String>,
}

/// How the uplink stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UplinkView {
    pub state: UplinkState,
    /// One sentence: since when, which error, when the next attempt is made.
    pub text: String,
    /// Age of the oldest inspection not yet delivered, seconds.
    pub lag_s: f64,
}

/// State of the uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkState {
    /// No central side is configured.
    #[default]
    Off,
    Connected,
    /// Waiting for the next attempt.
    Retrying,
}

/// The daemon's counters at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub captured: u64,
    pub decided: u64,
    /// Frames given up without a verdict, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Frames thrown out of full queues; part of `refused`.
    pub dropped: u64,
    /// Units of the outbox: inspections, reviews, feedback and whatever else is delivered one by one.
    pub committed: u64,
    pub delivered: u64,
    pub pending: u64,
    /// Those that a repair set aside.
    pub quarantined: u64,
    pub uplink: UplinkView,
    pub providers: Vec<ModelRun>,
    /// By name of the station.
    pub stations: BTreeMap<String, StationNote>,
    pub frames_per_second: f64,
    pub uptime: Duration,
}

/// `GET /api/v1/status`, and the `status` event.
#[derive(Debug, Serialize)]
pub(super) struct StatusView<'a> {
    site: &'a str,
    version: &'static str,
    now: Timestamp,
    uptime_s: u64,
    stations: Vec<StationStatus<'a>>,
    counters: CountersView,
    frames_per_second: f64,
    uplink: UplinkView,
    providers: Vec<ModelRun>,
}

#[derive(Debug, Serialize)]
struct StationStatus<'a> {
    name: &'a str,
    /// The one that it runs now.
    recipe: String,
    source: &'a str,
    /// What an operator is to know; `null`: nothing.
    notice: Option<String>,
    /// `running`, `idle` (by design) or `stalled`; `unknown` when the station reports no progress.
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct CountersView {
    captured: u64,
    decided: u64,
    refused: u64,
    refused_by_reason: BTreeMap<String, u64>,
    dropped: u64,
    /// `captured − decided − refused`: frames in the pipeline now.
    in_flight: u64,
    committed: u64,
    delivered: u64,
    pending: u64,
    quarantined: u64,
    /// `captured ≥ decided + refused`.
    is_capture_balanced: bool,
    /// `committed = delivered + pending + quarantined`.
    is_ledger_balanced: bool,
    /// Both.
    is_balanced: bool,
}

impl DashboardState {
    pub(super) fn status(&self) -> StatusView<'_> {
        let snapshot = (self.snapshot)();
        StatusView {
            site: &self.site,
            version: env!("CARGO_PKG_VERSION"),
            now: self.clock.now(),
            uptime_s: snapshot.uptime.as_secs(),
            stations: self
                .stations
                .iter()
                .map(|info| {
                    let note = snapshot.stations.get(&info.name).cloned().unwrap_or_default();
                    StationStatus {
                        name: &info.name,
                        recipe: note.recipe.unwrap_or_else(|| info.recipe.clone()),
                        source: &info.source,
                        notice: note.notice,
                        state: self.state_of(&info.name),
                    }
                })
                .collect(),
            frames_per_second: snapshot.frames_per_second,
            uplink: snapshot.uplink.clone(),
            providers: snapshot.providers.clone(),
            counters: CountersView::of(snapshot),
        }
    }

    /// Names of the stations that neither moved lately nor rest by design.
    pub(super) fn stalled(&self) -> Vec<&str> {
        let limit = crate::limits::HEALTH_PROGRESS_AGE_MAX;
        self.progress.iter().filter(|progress| progress.is_stalled(limit)).map(Progress::station).collect()
    }

    fn state_of(&self, station: &str) -> &'static str {
        match self.progress.iter().find(|progress| progress.station() == station) {
            None => "unknown",
            Some(progress) if progress.is_stalled(crate::limits::HEALTH_PROGRESS_AGE_MAX) => "stalled",
            Some(progress) if progress.is_idle() => "idle",
            Some(_) => "running",
        }
    }
}

impl CountersView {
    fn of(snapshot: Snapshot) -> Self {
        let refused: u64 = snapshot.refused.values().sum();
        let done = snapshot.decided + refused;
        let is_capture_balanced = snapshot.captured >= done;
        let is_ledger_balanced = snapshot.committed == snapshot.delivered + snapshot.pending + snapshot.quarantined;
        Self {
            captured: snapshot.captured,
            decided: snapshot.decided,
            refused,
            refused_by_reason: snapshot.refused,
            dropped: snapshot.dropped,
            in_flight: snapshot.captured.saturating_sub(done),
            committed: snapshot.committed,
            delivered: snapshot.delivered,
            pending: snapshot.pending,
            quarantined: snapshot.quarantined,
            is_capture_balanced,
            is_ledger_balanced,
            is_balanced: is_capture_balanced && is_ledger_balanced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CountersView, Snapshot};

    fn check(snapshot: Snapshot, in_flight: u64, is_balanced: bool) {
        let view = CountersView::of(snapshot);
        assert_eq!((view.in_flight, view.is_balanced), (in_flight, is_balanced));
    }

    #[test]
    fn a_lost_frame_or_row_shows_as_imbalance() {
        let good = Snapshot { captured: 10, decided: 7, committed: 7, delivered: 5, pending: 2, ..Snapshot::default() };
        check(good.clone(), 3, true);
        check(Snapshot { refused: [("frame.stale".to_owned(), 3)].into(), ..good.clone() }, 0, true);
        check(Snapshot { decided: 11, ..good.clone() }, 0, false);
        check(Snapshot { pending: 1, ..good.clone() }, 3, false);
        check(Snapshot { pending: 1, quarantined: 1, ..good }, 3, true);
    }
}
