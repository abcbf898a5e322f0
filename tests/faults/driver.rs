//! The process that gets killed: the real ledger, uplink and index rooms under a mixed load, without inference.
//!
//! A test runs this binary again with [`Drive`] in the environment. Every promise that a room makes (a commit that
//! returned) is printed at once as a line `ACK …`; the parent keeps them outside of this process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use loupe::backup::{Plan, create};
use loupe::clock::{Clock, Stopwatch};
use loupe::failpoint;
use loupe::ledger::{CentralTable, Ledger, LedgerError, LedgerReader, NewReview, Sweep};
use loupe::matching::{
    AcceptRule, BuildOptions, Embedding, FitRow, IndexBuilder, LiveIndex, MatchError, PartIndex, Scored, Template,
    borrowed, fitting,
};
use loupe::shutdown::Shutdown;
use loupe::types::{
    ActionResult, Catalogue, Digest, FeedbackOrder, FeedbackType, GpuStat, Inspection, InspectionId, Kit, KitLine,
    KitOrder, Part, PersonOrder, Reason, ReviewStatus, Role, StoragePolicy, Timestamp,
};
use loupe::uplink::{DownlinkConfig, Secret, Uplink, UplinkConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::support::samples;

const VARIABLE: &str = "LOUPE_TEST_FAULT_DRIVE";
/// How long a driver that should meet its failpoint waits for the uplink.
const PATIENCE_MS: f32 = 4_000.0;
/// Between the ledger's note that all is delivered and the uplink's step behind it, which a stop would outrun.
const LAST_STEP: std::time::Duration = std::time::Duration::from_millis(100);
/// And for the centre's changes, which it surely meets.
const PULL_PATIENCE_MS: f32 = 30_000.0;
/// In a source: SQLite stores it, PostgreSQL's text cannot, so that central refuses the unit.
pub const POISON: &str = "poison\0";
pub const PART: &str = "3001";
/// That takes its recipe from the centre.
pub const STATION: &str = "line-1";

/// What a driver is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drive {
    pub state: PathBuf,
    /// Where to deliver; none: the network is gone.
    pub dsn: Option<String>,
    pub seed: u64,
    /// Random steps after those that are always done.
    pub steps: u32,
    /// Microseconds that the wall clock is off.
    pub clock_us: i64,
    /// Wait at the end until everything is delivered.
    pub waits: bool,
    /// Also build and switch part indexes.
    pub builds: bool,
    /// Also back up, export and sweep away pictures and detail.
    pub keeps: bool,
    /// Also take in what the centre wants, and wait at the end until that of this change was seen to.
    pub pulls: Option<i64>,
}

/// A promise the program made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ack {
    /// The digest is that of the inspection's record.
    Inspection {
        id: Uuid,
        code: String,
        record: Digest,
    },
    /// A screen showed it.
    Shown {
        id: Uuid,
        code: String,
    },
    Review {
        id: Uuid,
    },
    /// A version of a person.
    Person {
        operator_id: Uuid,
        version: i64,
    },
    /// A feedback, or an action.
    Remark {
        id: Uuid,
    },
    Session {
        id: Uuid,
    },
    /// A correction of the stock that made it so many.
    Stock {
        quantity: i64,
    },
    Sample {
        recorded_at: Timestamp,
    },
    /// An index was built: the name of its generation.
    Generation {
        name: String,
    },
    /// Not a promise: something was refused, in words.
    Refused {
        what: String,
    },
    /// Not a promise: the driver came to its end.
    Done,
}

impl Drive {
    /// A driver of `state`, ready to be spawned.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["driver::child_drives_the_rooms", "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, serde_json::to_string(self).unwrap())
            .env_remove(failpoint::VARIABLE)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    /// One that only comes up, with nothing beyond what each start does.
    pub fn idle(state: &Path, dsn: &str) -> Self {
        Self {
            state: state.to_owned(),
            dsn: Some(dsn.to_owned()),
            seed: 1,
            steps: 0,
            clock_us: 0,
            waits: true,
            builds: false,
            keeps: false,
            pulls: None,
        }
    }

    pub fn index_dir(state: &Path) -> PathBuf {
        state.with_extension("index")
    }

    pub fn backup_file(state: &Path) -> PathBuf {
        state.with_extension("backup")
    }

    pub fn export_file(state: &Path) -> PathBuf {
        state.with_extension("parcel")
    }
}

/// The promise in a line of a driver's output. A line cut off by a kill is none.
pub fn parse(line: &str) -> Option<Ack> {
    serde_json::from_str(line.split_once("ACK ")?.1).ok()
}

fn say(ack: &Ack) {
    println!("ACK {}", serde_json::to_string(ack).unwrap());
}

fn refused(what: &str, error: &dyn std::fmt::Display) {
    say(&Ack::Refused { what: format!("{what}: {error}") });
}

/// Does nothing but in a child process.
#[test]
fn child_drives_the_rooms() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    // The harness has begun a line.
    println!();
    let drive: Drive = serde_json::from_str(&text).unwrap();
    failpoint::arm().unwrap();
    let clock = Clock::system();
    clock.shift(drive.clock_us);
    let ledger = match Ledger::open(&drive.state, clock.clone()) {
        Ok(ledger) => ledger,
        Err(error) => return refused("open", &error),
    };
    let rng = fastrand::Rng::with_seed(drive.seed);
    let mut load = Load { ledger, clock, rng, known: Vec::new(), session: None };
    load.run(&drive);
}

/// The driver at work.
struct Load {
    ledger: Ledger,
    clock: Clock,
    rng: fastrand::Rng,
    /// Inspections that are surely in the ledger and not poisoned.
    known: Vec<InspectionId>,
    session: Option<Uuid>,
}

impl Load {
    fn run(&mut self, drive: &Drive) {
        if let Err(error) = self.ledger.register_provenance(samples::PROVENANCE) {
            refused("provenance", &error);
        }
        let lines = vec![KitLine {
            part_number: PART.to_owned(),
            color_id: None,
            quantity: 2,
            is_spare: false,
            alternate_group: None,
        }];
        let kit = Kit { kit_code: "K1".to_owned(), name: "One".to_owned(), lines };
        let batch = Catalogue { parts: vec![part()], kits: vec![kit], ..Catalogue::default() };
        if let Err(error) = self.ledger.import_catalogue(batch) {
            refused("catalogue", &error);
        }
        // Something of each kind first, so that each failpoint is surely passed.
        self.burst(3, 2);
        self.poison();
        self.sample();
        self.person();
        self.review();
        self.remark();
        self.adjust();
        if drive.keeps {
            self.keep(&drive.state);
        }
        let stop = Shutdown::new();
        let uplink = drive.dsn.as_ref().map(|dsn| {
            let config = UplinkConfig { dsn: Secret::new(dsn.clone()), site_id: None };
            let downlink = drive.pulls.is_some().then(downlink);
            let (ledger, clock) = (self.ledger.clone(), self.clock.clone());
            Uplink::spawn_with_downlink(ledger, config, downlink, clock, stop.clone()).unwrap()
        });
        self.kit();
        self.kit();
        if drive.builds {
            self.indexes(&Drive::index_dir(&drive.state));
        }
        for _ in 0..drive.steps {
            self.step();
        }
        if drive.waits {
            let watch = Stopwatch::start();
            let rests = |ledger: &Ledger| ledger.counters().is_ok_and(|c| c.pending == c.parked);
            while !rests(&self.ledger) && watch.ms() < PATIENCE_MS {
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            std::thread::park_timeout(LAST_STEP);
        }
        if drive.keeps {
            self.sweep();
        }
        if let Some(change) = drive.pulls {
            let watch = Stopwatch::start();
            while !is_settled(&drive.state, change) && watch.ms() < PULL_PATIENCE_MS {
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
        }
        stop.request();
        if let Some(uplink) = uplink {
            uplink.join();
        }
        match self.ledger.clone().close() {
            Ok(()) => say(&Ack::Done),
            Err(error) => refused("close", &error),
        }
    }

    fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..70 => {
                let (count, pictures) = (self.rng.u32(1..9), self.rng.usize(0..3));
                self.burst(count, pictures);
            }
            70..72 => self.poison(),
            72..77 => self.review(),
            77..79 => self.remark(),
            79..80 => self.person(),
            80..86 => self.kit(),
            86..91 => self.adjust(),
            91..96 => self.sample(),
            _ => {
                if let Err(error) = self.ledger.refused("line-1", Reason::FrameBlurred, 1) {
                    refused("refused", &error);
                }
            }
        }
    }

    fn inspection(&mut self) -> Inspection {
        let number = self.rng.u64(0..1 << 40);
        let mut inspection = if self.rng.bool() { samples::inspection(number) } else { samples::held(number) };
        inspection.captured_at = self.clock.now();
        inspection.decided_at = inspection.captured_at;
        let items = self.rng.u32(0..4);
        inspection.items = (0..items).map(|ordinal| samples::item(ordinal, self.rng.f32())).collect();
        if self.rng.u32(0..4) == 0 {
            inspection.anomaly = None;
        }
        inspection
    }

    /// Several at once share a group.
    fn burst(&mut self, count: u32, pictures: usize) {
        let pending: Vec<_> = (0..count)
            .map(|_| {
                let inspection = self.inspection();
                let pictures = (0..pictures).map(|_| samples::thumbnail(self.rng.usize(1..9_000))).collect();
                self.ledger.submit(inspection, pictures)
            })
            .collect();
        for pending in pending {
            match pending.and_then(loupe::ledger::Pending::wait) {
                Ok(inspection) => self.acknowledge(&inspection),
                Err(error) => refused("commit", &error),
            }
        }
    }

    fn poison(&mut self) {
        let mut inspection = self.inspection();
        inspection.source = format!("{POISON}{}", inspection.frame_seq);
        match self.ledger.commit(inspection, Vec::new()) {
            Ok(inspection) => {
                self.acknowledge(&inspection);
                self.known.pop();
            }
            Err(error) => refused("poison", &error),
        }
    }

    fn acknowledge(&mut self, inspection: &Inspection) {
        let record = Digest::of(serde_json::to_string(inspection).unwrap().as_bytes());
        say(&Ack::Inspection { id: inspection.id.0, code: inspection.code.clone(), record });
        self.known.push(inspection.id);
    }

    fn review(&mut self) {
        let Some(subject) = self.rng.choice(&self.known).copied() else { return };
        let review = NewReview {
            inspection_id: subject,
            ordinal: None,
            status: ReviewStatus::Confirmed,
            shown_part_id: None,
            corrected_part_id: None,
            corrected_color_id: None,
            undoes_id: None,
            reviewer: "kim".to_owned(),
            reason: Some("맞음".to_owned()),
            template: None,
        };
        match self.ledger.review(review) {
            Ok(review) => say(&Ack::Review { id: review.id }),
            Err(error) => refused("review", &error),
        }
    }

    /// Register kim, who signs everything here, or give her another full name.
    fn person(&mut self) {
        let (username, by) = ("Kim".to_owned(), "kim".to_owned());
        // Never the name that she has: a driver may run twice with one seed.
        let versions = self.ledger.counters().map_or(0, |counters| counters.operators);
        let full_name = Some(format!("Kim {}, {versions}", self.rng.u32(..)));
        let add =
            PersonOrder::Add { username: username.clone(), full_name: full_name.clone(), role: Role::Operator, by };
        let rename = PersonOrder::Rename { username, new_username: None, full_name, by: "KIM".to_owned() };
        let done = match self.ledger.person(add) {
            Err(error) if error.is_about_the_row() => self.ledger.person(rename),
            done => done,
        };
        match done.map(|person| (person["operator_id"].clone(), person["version"].as_i64())) {
            Ok((Value::String(id), Some(version))) => say(&Ack::Person { operator_id: id.parse().unwrap(), version }),
            Ok(other) => panic!("a person without a name: {other:?}"),
            Err(error) => refused("person", &error),
        }
    }

    /// Say something of an inspection, or what was done about it.
    fn remark(&mut self) {
        let Some(subject) = self.rng.choice(&self.known).copied() else { return };
        let (notes, by) = (Some("맞음".to_owned()), "kim".to_owned());
        let order = if self.rng.bool() {
            let (subject, feedback_type) = (Some(subject.to_string()), FeedbackType::FalsePositive);
            FeedbackOrder::Say { subject, feedback_type, rating: Some(2), expected_severity: None, notes, by }
        } else {
            let (action_taken, action_result) = ("cleaned the lens".to_owned(), ActionResult::Resolved);
            FeedbackOrder::Act { inspection: subject.to_string(), action_taken, action_result, notes, by }
        };
        match self.ledger.feedback(order) {
            Ok(stored) => say(&Ack::Remark { id: stored["id"].as_str().unwrap().parse().unwrap() }),
            Err(error) => refused("remark", &error),
        }
    }

    /// Begin a session, or count a tray in the one that is open and end it.
    fn kit(&mut self) {
        let by = "kim".to_owned();
        let Some(session) = self.session.take() else {
            let order = KitOrder::Start { kit_code: "K1".to_owned(), station: None, by };
            match self.ledger.kit(order) {
                Ok(answer) => self.session = answer["session"].as_str().and_then(|id| id.parse().ok()),
                Err(error) => refused("kit start", &error),
            }
            return;
        };
        let mut tray = self.inspection();
        tray.items = vec![samples::item(0, 0.9), samples::item(1, 0.8)];
        tray.verdict = loupe::types::Verdict::Pass;
        tray.reasons.clear();
        let id = tray.id;
        let committed = self.ledger.commit(tray, Vec::new());
        match committed {
            Ok(inspection) => self.acknowledge(&inspection),
            Err(error) => return refused("tray", &error),
        }
        if let Err(error) = self.ledger.kit(KitOrder::AddTray { session, inspection: id }) {
            refused("kit tray", &error);
        }
        match self.ledger.kit(KitOrder::Finish { session, by, accept_incomplete: true }) {
            Ok(_) => say(&Ack::Session { id: session }),
            Err(error) => refused("kit finish", &error),
        }
    }

    fn adjust(&mut self) {
        let order = KitOrder::Adjust {
            part_number: PART.to_owned(),
            color_id: None,
            delta: 1,
            by: "kim".to_owned(),
            reason: "found one".to_owned(),
        };
        match self.ledger.kit(order) {
            Ok(answer) => say(&Ack::Stock { quantity: answer["quantity"].as_i64().unwrap() }),
            Err(error) => refused("adjust", &error),
        }
    }

    fn sample(&mut self) {
        let recorded_at = self.clock.now();
        let sample = GpuStat { gpu_index: 0, gpu_util_pct: Some(33.3), ..GpuStat::default() };
        match self.ledger.record_gpu_stats(recorded_at, vec![sample]) {
            Ok(()) => say(&Ack::Sample { recorded_at }),
            Err(error) => refused("sample", &error),
        }
    }

    /// A backup and an export, each in place of the one before it.
    fn keep(&mut self, state: &Path) {
        let (backup, export) = (Drive::backup_file(state), Drive::export_file(state));
        for file in [&backup, &export] {
            // None yet is as good.
            drop(std::fs::remove_file(file));
        }
        let made = Plan::of_state(state).and_then(|plan| create(&plan, &backup, None, &self.clock, &mut |_, _| ()));
        if let Err(error) = made {
            refused("backup", &error);
        }
        let reader = LedgerReader::open(state);
        if let Err(error) = reader.and_then(|reader| reader.export(&export, self.clock.now(), |_, _| ())) {
            refused("export", &error);
        }
    }

    /// All pictures go, and the detail of what was delivered.
    fn sweep(&mut self) {
        let policy =
            StoragePolicy { detail_days: 0, pass_picture_days: 0, picture_days: 0, ..StoragePolicy::default() };
        let sweep = Sweep::new(self.ledger.clone(), policy, self.clock.clone());
        if let Err(error) = sweep.and_then(|mut sweep| sweep.expire(&mut |_| true)) {
            refused("sweep", &error);
        }
    }

    /// Four generations, one after the other, each taken into service; older ones are removed on the way.
    fn indexes(&mut self, root: &Path) {
        let mut live = None;
        for _ in 0..4 {
            match build(root, &format!("part-{}", self.rng.u64(..))) {
                Ok(name) => {
                    say(&Ack::Generation { name });
                    if let Err(error) = fit(root) {
                        refused("fit", &error);
                    }
                }
                Err(error) => {
                    refused("index", &error);
                    continue;
                }
            }
            let taken = match &live {
                None => LiveIndex::open(root).map(|index| live = Some(index)),
                Some(live) => live.refresh().map(drop),
            };
            if let Err(error) = taken {
                refused("index switch", &error);
            }
        }
    }
}

fn part() -> Part {
    Part {
        part_number: PART.to_owned(),
        name_en: "Brick".to_owned(),
        name_ko: None,
        category_code: None,
        length_mm: None,
        width_mm: None,
        height_mm: None,
        weight_g: None,
        confusion_group: None,
    }
}

/// Recipes that say so cannot be used.
fn downlink() -> DownlinkConfig {
    DownlinkConfig {
        interval: std::time::Duration::ZERO,
        stations: vec![STATION.to_owned()],
        prove: Arc::new(|body| if body.contains("bad") { Err("it is a bad one".to_owned()) } else { Ok(()) }),
        keep_fit: Arc::new(|_| Ok(())),
        hear: Arc::new(|_| ()),
    }
}

/// Whether the centre's fits came up to this `change`, the last of all, and all it wants was seen to and told.
fn is_settled(state: &Path, change: i64) -> bool {
    let settled = || -> Result<bool, LedgerError> {
        let reader = LedgerReader::open(state)?;
        let Some(wanted) = reader.desired_recipe(STATION)? else { return Ok(false) };
        let noted = reader.station_recipes()?;
        let is_seen = |noted: &loupe::ledger::StationRecipe| {
            [noted.taken_sha256, noted.refused_sha256].contains(&Some(wanted.recipe.sha256))
        };
        let (fits, states) = (reader.desired_fits()?, reader.fit_states()?);
        let is_taken = |fit: &loupe::ledger::CentralFit| {
            states.iter().any(|s| s.generation_sha256 == fit.generation_sha256 && s.taken_sha256 == Some(fit.sha256))
        };
        Ok(reader.central_cursor(CentralTable::Fits)? >= change
            && noted.iter().any(is_seen)
            && fits.len() == states.len()
            && fits.iter().all(is_taken)
            && reader.provision_reports(1)?.is_empty())
    };
    settled().unwrap_or(false)
}

/// Give the live generation a fit of its own, then one as if from the centre.
fn fit(root: &Path) -> Result<(), MatchError> {
    let index = PartIndex::open(root)?;
    let scored = |similarity| Scored { similarity, ..Scored::default() };
    let candidates = vec![("other".to_owned(), scored(0.9)), ("part".to_owned(), scored(0.1))];
    let row = FitRow { part_id: "other".to_owned(), candidates };
    let rows = vec![row; 60];
    fitting::fit(index.generation_sha256(), &rows, 0.1, 0.02)?.store(root, &index.generation_name())?;
    let central = fitting::fit(index.generation_sha256(), &rows, 0.1, 0.01)?;
    borrowed::place(root, serde_json::to_string(&central).unwrap().as_bytes(), None).map(drop)
}

/// Build an index of two parts, one called `name`; the name of its generation.
pub fn build(root: &Path, name: &str) -> Result<String, MatchError> {
    let model_sha256 = Digest::of(b"model");
    let embedding =
        Embedding { model: "test".into(), model_sha256, input_px: 160, crop_margin_ratio: 0.0, input_sha256: None };
    let mut builder = IndexBuilder::new(2, embedding, BuildOptions::default());
    for (part, vector) in [(name, [1.0, 0.0]), ("other", [0.0, 1.0])] {
        let template = Template { part_id: part.to_owned(), color_id: None, view: String::new() };
        builder.push(template, &vector)?;
    }
    let built = builder.build(root)?;
    Ok(built.dir.file_name().unwrap().to_string_lossy().into_owned())
}

/// Whether the index answers, and by which generation.
pub fn serving(root: &Path) -> Result<String, MatchError> {
    let live = LiveIndex::open(root)?;
    let rule = AcceptRule { accept_similarity: 0.5, accept_margin: 0.1 };
    let answers = live.current().search(&[0.9, 0.1], rule)?;
    assert!(answers[0].part_id.starts_with("part-"), "{:?}", answers[0].part_id);
    Ok(live.current().generation_name())
}
