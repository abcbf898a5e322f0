//! What the store lets go, and what it never does.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use loupe::clock::Clock;
use loupe::dashboard::{Dashboard, DashboardState, Feed, Snapshot};
use loupe::ledger::{
    GoneReason, Ledger, LedgerError, LedgerReader, NewReview, Scrub, ScrubReport, Sweep, Swept, artifacts_dir,
};
use loupe::observe::Metrics;
use loupe::shutdown::Shutdown;
use loupe::types::{
    BoundingBox, Digest, GpuStat, HoldOrder, HoldScope, Inspection, InspectionId, LearnedTemplate, Reason,
    ReviewStatus, StoragePolicy, Timestamp, Verdict,
};
use proptest::prelude::*;
use support::samples;

const DAY_US: i64 = 86_400_000_000;

/// A ledger whose clock can be moved.
struct Bench {
    dir: tempfile::TempDir,
    ledger: Ledger,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let ledger = Ledger::open(dir.path(), clock.clone()).unwrap();
        samples::provenance(&ledger);
        Self { dir, ledger, clock }
    }

    fn reader(&self) -> LedgerReader {
        LedgerReader::open(self.dir.path()).unwrap()
    }

    fn days_pass(&self, days: i64) {
        self.clock.shift(days * DAY_US);
    }

    /// Commit an inspection decided now, with pictures of these sizes.
    fn commit(&self, number: u64, verdict: Verdict, pictures: &[usize]) -> Inspection {
        let mut inspection = if verdict == Verdict::Pass { samples::inspection(number) } else { samples::held(number) };
        inspection.verdict = verdict;
        inspection.decided_at = self.clock.now();
        inspection.captured_at = Timestamp::from_micros(self.clock.now().as_micros() - 40_000);
        let pictures = pictures.iter().map(|bytes| samples::thumbnail(*bytes)).collect();
        self.ledger.commit(inspection, pictures).unwrap()
    }

    /// As the uplink does it: the central side has acknowledged these units.
    fn deliver(&self, wanted: impl Fn(&uuid::Uuid) -> bool) -> usize {
        let pending = self.reader().pending_units(usize::MAX, usize::MAX).unwrap();
        assert!(pending.unreadable.is_empty(), "{:?}", pending.unreadable);
        let seqs = pending.units.iter().filter(|unit| wanted(&unit.id)).map(|unit| unit.seq).collect();
        self.ledger.acknowledge(seqs, Digest::of(b"batch")).unwrap()
    }

    fn sweep(&self, policy: StoragePolicy) -> Sweep {
        Sweep::new(self.ledger.clone(), policy, self.clock.clone()).unwrap()
    }

    fn expire(&self) -> Swept {
        self.sweep(policy()).expire(&mut |_| true).unwrap()
    }

    fn hold(&self, scope: HoldScope) -> uuid::Uuid {
        let order = HoldOrder::Place { scope, by: "Kim".to_owned(), reason: "claim 7".to_owned() };
        self.ledger.hold(order).unwrap()["id"].as_str().unwrap().parse().unwrap()
    }

    fn release(&self, id: uuid::Uuid) {
        let order = HoldOrder::Release { id, by: "Lee".to_owned(), reason: "settled".to_owned() };
        self.ledger.hold(order).unwrap();
    }

    fn there(&self, inspection: &Inspection) -> bool {
        self.ledger.get(inspection.id).unwrap().is_some()
    }

    /// How many of its pictures are there.
    fn pictures(&self, inspection: &Inspection) -> usize {
        let dir = artifacts_dir(self.dir.path());
        inspection.artifacts.iter().filter(|artifact| dir.join(&artifact.relative_path).exists()).count()
    }

    fn assert_whole(&self) {
        let proof = self.reader().verify(|_, _| ()).unwrap();
        assert!(proof.holds(), "{:#?}", proof.faults);
    }
}

/// Age alone: neither the disk nor a budget is short.
fn policy() -> StoragePolicy {
    StoragePolicy { free_low_bytes: 0, free_critical_bytes: 0, ..StoragePolicy::default() }
}

fn rows(bench: &Bench, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(loupe::ledger::database_path(bench.dir.path())).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn each_class_goes_at_its_age_and_the_counters_stay() {
    let bench = Bench::new();
    let pass = bench.commit(1, Verdict::Pass, &[100, 200]);
    let hold = bench.commit(2, Verdict::Hold, &[300]);
    bench.ledger.refused("line-1", Reason::FrameStale, 5).unwrap();
    assert_eq!(bench.deliver(|_| true), 2);
    let counters = bench.ledger.counters().unwrap();
    assert!(bench.expire().is_nothing());

    bench.days_pass(4);
    let swept = bench.expire();
    assert_eq!((swept.pass_pictures, swept.picture_bytes, swept.other_pictures), (2, 300, 0));
    assert_eq!((bench.pictures(&pass), bench.pictures(&hold)), (0, 1));
    assert_eq!(bench.ledger.get(pass.id).unwrap(), Some(pass.clone()), "the verdict says what its pictures were");
    bench.assert_whole();

    bench.days_pass(11);
    let swept = bench.expire();
    assert_eq!((swept.detail, swept.inspections), (2, 0));
    assert_eq!([rows(&bench, "items"), rows(&bench, "anomaly_maps"), rows(&bench, "frame_qa_logs")], [0, 0, 0]);
    assert_eq!(bench.ledger.get(hold.id).unwrap().unwrap().items, hold.items, "the record keeps the detail");
    bench.assert_whole();

    bench.days_pass(16);
    let swept = bench.expire();
    assert_eq!((swept.other_pictures, swept.inspections), (1, 2));
    assert!(!bench.there(&pass) && !bench.there(&hold));
    assert_eq!([rows(&bench, "gone_artifacts"), rows(&bench, "delivered_inspections")], [0, 0]);
    bench.assert_whole();
    assert_eq!(bench.ledger.counters().unwrap(), counters, "what went is still counted");
    let next = bench.commit(3, Verdict::Pass, &[]);
    assert_ne!(next.code, pass.code, "a code is given once");
    bench.assert_whole();
}

#[test]
fn what_is_not_delivered_never_expires() {
    let bench = Bench::new();
    let (sent, waits, parked) =
        (bench.commit(1, Verdict::Pass, &[]), bench.commit(2, Verdict::Pass, &[]), bench.commit(3, Verdict::Fail, &[]));
    bench.deliver(|id| *id == sent.id.0);
    bench.ledger.park(3, "no such partition").unwrap();
    bench.days_pass(3_650);
    let swept = bench.expire();
    assert_eq!((swept.detail, swept.inspections), (1, 1));
    assert!(!bench.there(&sent) && bench.there(&waits) && bench.there(&parked));
    assert_eq!(rows(&bench, "items"), 2);
    assert_eq!(bench.deliver(|_| true), 1, "the unit that waits is whole");
    bench.expire();
    assert!(bench.there(&waits), "thirty days begin with the delivery");
    bench.assert_whole();
}

#[test]
fn a_hold_keeps_rows_and_pictures_until_it_is_released() {
    let bench = Bench::new();
    let (a, b) = (bench.commit(1, Verdict::Pass, &[100]), bench.commit(2, Verdict::Pass, &[100]));
    let mut other_station = samples::inspection(3);
    other_station.station = "line-2".to_owned();
    other_station.decided_at = bench.clock.now();
    let c = bench.ledger.commit(other_station, vec![samples::thumbnail(100)]).unwrap();
    let one = bench.hold(HoldScope { inspection: Some(a.id), ..HoldScope::default() });
    let station = bench.hold(HoldScope { station: Some("line-2".to_owned()), ..HoldScope::default() });
    bench.deliver(|_| true);
    bench.days_pass(40);
    bench.expire();
    let full = StoragePolicy { budget_bytes: Some(0), ..policy() };
    bench.sweep(full).relieve(&mut |_| true).unwrap();
    assert_eq!([bench.pictures(&a), bench.pictures(&b), bench.pictures(&c)], [1, 0, 1]);
    assert_eq!([bench.there(&a), bench.there(&b), bench.there(&c)], [true, false, true]);
    assert_eq!(rows(&bench, "items"), 2);
    let status = bench.reader().storage_status(&full, bench.clock.now()).unwrap();
    assert_eq!((status.holds, status.held_inspections, status.held_pictures.count), (2, 2, 2));
    bench.assert_whole();

    bench.release(station);
    bench.expire();
    assert_eq!([bench.there(&a), bench.there(&c)], [true, false]);
    let holds = bench.reader().legal_holds(true).unwrap();
    assert_eq!(holds.iter().map(|hold| hold.released_at.is_some()).collect::<Vec<_>>(), [false, true]);
    assert_eq!(holds[0].id, one);
    bench.assert_whole();
}

#[test]
fn a_hold_on_a_part_or_a_time_covers_what_comes_later() {
    let bench = Bench::new();
    let from = bench.clock.now();
    let until = Timestamp::from_micros(from.as_micros() + 2 * DAY_US);
    bench.hold(HoldScope { from: Some(from), until: Some(until), ..HoldScope::default() });
    bench.hold(HoldScope { part: Some("3003".to_owned()), ..HoldScope::default() });
    bench.days_pass(1);
    let in_time = bench.commit(1, Verdict::Pass, &[10]);
    bench.days_pass(5);
    let names_it = bench.commit(2, Verdict::Pass, &[10]);
    let mut other = samples::inspection(3);
    other.items.clear();
    other.decided_at = bench.clock.now();
    other.captured_at = bench.clock.now();
    let other = bench.ledger.commit(other, vec![samples::thumbnail(10)]).unwrap();
    bench.deliver(|_| true);
    bench.days_pass(40);
    bench.expire();
    let kept = [&in_time, &names_it, &other].map(|inspection| (bench.there(inspection), bench.pictures(inspection)));
    assert_eq!(
        kept,
        [(true, 1), (true, 1), (false, 0)],
        "3003 is only a candidate in the second, and held all the same"
    );
}

#[test]
fn bad_holds_are_refused_in_words() {
    let bench = Bench::new();
    let now = bench.clock.now();
    let check = |scope: HoldScope, by: &str, reason: &str, words: &str| {
        let order = HoldOrder::Place { scope, by: by.to_owned(), reason: reason.to_owned() };
        let error = bench.ledger.hold(order).unwrap_err();
        assert!(error.is_about_the_row() && error.to_string().contains(words), "{error}");
    };
    let station = HoldScope { station: Some("a".to_owned()), ..HoldScope::default() };
    check(HoldScope::default(), "Kim", "why", "needs an inspection, a part, a station or a time range");
    check(station.clone(), " ", "why", "`by` is empty");
    check(station, "Kim", "", "`reason` is empty");
    check(HoldScope { from: Some(now), until: Some(now), ..HoldScope::default() }, "Kim", "why", "ends before");
    let nobody = HoldScope { inspection: Some(InspectionId(uuid::Uuid::now_v7())), ..HoldScope::default() };
    check(nobody, "Kim", "why", "is not in the ledger");
    let release = HoldOrder::Release { id: uuid::Uuid::nil(), by: "Kim".to_owned(), reason: "why".to_owned() };
    assert!(bench.ledger.hold(release).unwrap_err().to_string().contains("no standing hold"));
}

fn review(inspection: &Inspection, template: Option<LearnedTemplate>) -> NewReview {
    NewReview {
        inspection_id: inspection.id,
        ordinal: Some(0),
        status: ReviewStatus::Rejected,
        shown_part_id: Some("3001".to_owned()),
        corrected_part_id: Some("3004".to_owned()),
        corrected_color_id: None,
        undoes_id: None,
        reviewer: "Kim".to_owned(),
        reason: None,
        template,
    }
}

#[test]
fn what_was_learned_keeps_its_picture_and_an_undelivered_review_its_inspection() {
    let bench = Bench::new();
    let (taught, reviewed) = (bench.commit(1, Verdict::Hold, &[100, 50]), bench.commit(2, Verdict::Hold, &[100]));
    bench.deliver(|_| true);
    bench.days_pass(40);
    let template = LearnedTemplate {
        id: 0,
        review_id: uuid::Uuid::nil(),
        index: "/index".to_owned(),
        part_id: "3004".to_owned(),
        color_id: None,
        model_sha256: Digest::of(b"model"),
        input_px: 160,
        crop_margin_ratio: 0.05,
        vector: vec![0.5; 4],
        inspection_id: taught.id,
        ordinal: 0,
        frame_sha256: taught.frame_sha256,
        artifact: taught.artifacts[0].relative_path.clone(),
        crop: BoundingBox::new(1.0, 2.0, 30.0, 40.0),
    };
    bench.ledger.review(review(&taught, Some(template))).unwrap();
    bench.ledger.review(review(&reviewed, None)).unwrap();
    bench.expire();
    assert_eq!([bench.pictures(&taught), bench.pictures(&reviewed)], [1, 0]);
    assert!(bench.there(&taught) && bench.there(&reviewed));
    bench.assert_whole();

    assert_eq!(bench.deliver(|_| true), 2, "the reviews");
    let counters = bench.ledger.counters().unwrap();
    assert_eq!(bench.expire().inspections, 0, "thirty days begin with the delivery of the review");
    bench.days_pass(31);
    assert_eq!(bench.expire().inspections, 1);
    assert!(bench.there(&taught) && !bench.there(&reviewed));
    assert_eq!(bench.ledger.counters().unwrap(), counters);
    bench.assert_whole();
}

#[test]
fn an_unknown_part_keeps_its_example() {
    let bench = Bench::new();
    let mut inspection = samples::held(1);
    inspection.items[0].reasons = vec![Reason::PartUnknown];
    let example = bench.ledger.commit(inspection, vec![]).unwrap();
    bench.deliver(|_| true);
    bench.days_pass(100);
    assert_eq!(bench.expire().inspections, 0);
    assert!(bench.there(&example));
    bench.assert_whole();
}

#[test]
fn a_sweep_stops_where_it_is_told_and_goes_on_later() {
    let bench = Bench::new();
    let count = 3 * loupe::limits::RETENTION_ROWS_PER_STEP as u64;
    (0..count).for_each(|number| drop(bench.commit(number, Verdict::Pass, &[10])));
    bench.days_pass(5);
    let swept = bench.sweep(policy()).expire(&mut |_| false).unwrap();
    assert!(swept.is_cut_short);
    assert_eq!(swept.pass_pictures, loupe::limits::RETENTION_ROWS_PER_STEP as u64);
    bench.assert_whole();
    assert_eq!(bench.expire().pass_pictures, count - swept.pass_pictures);
    bench.assert_whole();
}

#[test]
fn samples_go_last_and_are_counted() {
    let bench = Bench::new();
    let hold = bench.commit(1, Verdict::Hold, &[100]);
    bench.ledger.record_gpu_stats(bench.clock.now(), vec![GpuStat::default(); 40]).unwrap();
    // More than any disk has.
    let full = StoragePolicy { free_low_bytes: u64::MAX / 4, ..policy() };
    let swept = bench.sweep(full).relieve(&mut |_| true).unwrap();
    assert_eq!((swept.other_pictures, swept.samples, swept.inspections), (1, 40, 0));
    assert!(bench.there(&hold), "verdicts never go");
    assert_eq!(bench.ledger.counters().unwrap().dropped_samples, 40);
    bench.assert_whole();
}

#[test]
fn below_the_critical_mark_commits_are_refused_until_space_returns() {
    let bench = Bench::new();
    let before = bench.commit(1, Verdict::Pass, &[10]);
    bench.ledger.set_free_critical_bytes(u64::MAX);
    let error = bench.ledger.commit(samples::inspection(2), vec![samples::thumbnail(10)]).unwrap_err();
    assert!(matches!(error, LedgerError::DiskFull { .. }) && !error.is_about_the_row(), "{error}");
    assert!(error.to_string().contains("storage.free_critical_mb"), "{error}");
    bench.ledger.refused("line-1", Reason::LedgerUnavailable, 1).unwrap();
    assert_eq!(bench.deliver(|_| true), 1, "what frees space goes on");
    bench.days_pass(5);
    assert_eq!(bench.expire().pass_pictures, 1);
    bench.ledger.set_free_critical_bytes(1);
    bench.commit(3, Verdict::Pass, &[10]);
    let counters = bench.ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.delivered, counters.refused, counters.captured), (2, 1, 1, 3));
    assert!(bench.there(&before));
    bench.assert_whole();
}

/// One inspection of the property below.
#[derive(Debug, Clone)]
struct Sample {
    is_pass: bool,
    is_delivered: bool,
    is_held: bool,
    pictures: Vec<usize>,
}

fn sample() -> impl Strategy<Value = Sample> {
    let pictures = prop::collection::vec(1_usize..2_000, 0..3);
    (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), pictures)
        .prop_map(|(is_pass, is_delivered, is_held, pictures)| Sample { is_pass, is_delivered, is_held, pictures })
}

fn shed_in_order(samples: &[Sample], budget_bytes: u64) {
    let bench = Bench::new();
    let mut made = Vec::new();
    for (number, sample) in samples.iter().enumerate() {
        let verdict = if sample.is_pass { Verdict::Pass } else { Verdict::Fail };
        let inspection = bench.commit(number as u64, verdict, &sample.pictures);
        if sample.is_held {
            bench.hold(HoldScope { inspection: Some(inspection.id), ..HoldScope::default() });
        }
        made.push(inspection);
    }
    let delivered: BTreeSet<_> =
        made.iter().zip(samples).filter(|(_, sample)| sample.is_delivered).map(|(made, _)| made.id.0).collect();
    bench.deliver(|id| delivered.contains(id));
    let units = |bench: &Bench| -> BTreeMap<i64, String> {
        let pending = bench.reader().pending_units(usize::MAX, usize::MAX).unwrap();
        pending.units.into_iter().map(|unit| (unit.seq, format!("{:?}", unit.rows))).collect()
    };
    let (waiting, counters) = (units(&bench), bench.ledger.counters().unwrap());

    let policy = StoragePolicy { budget_bytes: Some(budget_bytes), ..policy() };
    bench.sweep(policy).relieve(&mut |_| true).unwrap();

    assert_eq!(units(&bench), waiting, "a unit that waits was touched");
    assert_eq!(bench.ledger.counters().unwrap(), counters);
    bench.assert_whole();
    let dir = artifacts_dir(bench.dir.path());
    // In the order in which they should go: PASS before the rest, oldest first.
    let mut order: Vec<(bool, usize, bool, u64)> = Vec::new();
    let mut kept_bytes = 0;
    for (number, (inspection, sample)) in made.iter().zip(samples).enumerate() {
        assert!(bench.there(inspection), "a verdict went");
        for artifact in &inspection.artifacts {
            let is_there = dir.join(&artifact.relative_path).exists();
            assert!(is_there || !sample.is_held, "a held picture went");
            kept_bytes += if is_there { artifact.size_bytes } else { 0 };
            if !sample.is_held {
                order.push((!sample.is_pass, number, is_there, artifact.size_bytes));
            }
        }
    }
    order.sort_unstable_by_key(|(is_other, number, ..)| (*is_other, *number));
    let first_kept = order.iter().position(|(_, _, is_there, _)| *is_there).unwrap_or(order.len());
    // A step may take a whole share; within an inspection the pictures are of one age.
    let step = loupe::limits::RETENTION_ROWS_PER_STEP;
    for (_, number, is_there, _) in order.iter().skip(first_kept) {
        assert!(
            *is_there || order.get(first_kept).is_some_and(|kept| kept.1 == *number),
            "not the oldest went: {order:?}"
        );
    }
    assert!(kept_bytes <= budget_bytes || order.iter().all(|(_, _, is_there, _)| !is_there), "too much was kept");
    let gone = order.iter().filter(|(_, _, is_there, _)| !is_there).count();
    let total: u64 = made.iter().flat_map(|inspection| &inspection.artifacts).map(|artifact| artifact.size_bytes).sum();
    assert!(gone == 0 || total > budget_bytes - budget_bytes / 10, "pictures went without need");
    assert!(gone <= step * order.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn shedding_takes_the_oldest_pass_first_and_nothing_held_or_undelivered(
        samples in prop::collection::vec(sample(), 1..90), budget_bytes in 0_u64..60_000,
    ) {
        shed_in_order(&samples, budget_bytes);
    }
}

#[test]
fn sweeping_during_commits_keeps_the_books() {
    let bench = Bench::new();
    let old: Vec<Inspection> = (0..200).map(|number| bench.commit(number, Verdict::Pass, &[50])).collect();
    bench.deliver(|_| true);
    bench.days_pass(40);
    let committing = bench.ledger.clone();
    let clock = bench.clock.clone();
    let thread = std::thread::spawn(move || {
        for number in 1_000..1_200 {
            let mut inspection = samples::inspection(number);
            inspection.decided_at = clock.now();
            committing.commit(inspection, vec![samples::thumbnail(50)]).unwrap();
        }
    });
    let swept = bench.expire();
    thread.join().unwrap();
    assert_eq!((swept.pass_pictures, swept.inspections), (200, 200));
    assert!(old.iter().all(|inspection| !bench.there(inspection)));
    assert_eq!(bench.ledger.recent(1_000).unwrap().len(), 200);
    bench.assert_whole();
    bench.ledger.clone().close().unwrap();
    let reopened = Ledger::open(Path::new(bench.dir.path()), Clock::system()).unwrap();
    assert_eq!(reopened.counters().unwrap().committed, 400);
}

fn scrub(bench: &Bench, may_move: bool) -> ScrubReport {
    let ledger = may_move.then(|| bench.ledger.clone());
    Scrub::new(bench.dir.path(), ledger, bench.clock.clone()).unwrap().run(&mut |_| true).unwrap()
}

#[test]
fn a_scrub_moves_changed_and_nameless_files_and_deletes_nothing() {
    let bench = Bench::new();
    let [good, changed, missing] = [1, 2, 3].map(|number| bench.commit(number, Verdict::Hold, &[100]));
    let dir = artifacts_dir(bench.dir.path());
    let file = |inspection: &Inspection| dir.join(&inspection.artifacts[0].relative_path);
    assert!(scrub(&bench, true).is_clean());
    std::fs::write(file(&changed), "something else").unwrap();
    std::fs::remove_file(file(&missing)).unwrap();
    let day = file(&good).parent().unwrap().to_owned();
    std::fs::write(day.join("stray.jpg"), "nobody's").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", day.join("link.jpg")).unwrap();
    assert_eq!(scrub(&bench, false).orphans, 0, "a young file may be on its way");
    bench.clock.shift(3_600_000_000);

    let looked = scrub(&bench, false);
    assert_eq!((looked.missing, looked.changed, looked.orphans, looked.links), (1, 1, 1, 1));
    assert_eq!(looked.quarantined, 0);
    assert_eq!(std::fs::read(file(&changed)).unwrap(), b"something else", "a look moves nothing");

    let moved = scrub(&bench, true);
    assert_eq!((moved.missing, moved.changed, moved.orphans, moved.quarantined), (1, 1, 1, 2));
    let mut quarantined: Vec<Vec<u8>> = std::fs::read_dir(bench.dir.path().join("quarantine"))
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    quarantined.sort();
    assert_eq!(quarantined, [b"nobody's".to_vec(), b"something else".to_vec()]);
    assert_eq!(bench.pictures(&good), 1);
    assert_eq!((rows(&bench, "quarantine"), rows(&bench, "gone_artifacts"), rows(&bench, "artifacts")), (2, 1, 2));
    let again = scrub(&bench, true);
    assert_eq!(
        (again.missing, again.changed, again.orphans, again.links),
        (1, 0, 0, 1),
        "a missing file stays a fault"
    );
    let faults = bench.reader().verify(|_, _| ()).unwrap().faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
}

#[test]
fn a_row_that_names_a_place_outside_is_found_and_not_followed() {
    let bench = Bench::new();
    let inspection = bench.commit(1, Verdict::Hold, &[100, 100]);
    let outside = bench.dir.path().join("secret.jpg");
    std::fs::write(&outside, "mine").unwrap();
    let other = rusqlite::Connection::open(loupe::ledger::database_path(bench.dir.path())).unwrap();
    let name = |path: &str, nth: i64| {
        other
            .execute(
                "UPDATE artifacts SET relative_path = ?1 WHERE id = (SELECT id FROM artifacts ORDER BY id LIMIT 1 OFFSET ?2)",
                rusqlite::params![path, nth],
            )
            .unwrap()
    };
    name("../secret.jpg", 0);
    std::os::unix::fs::symlink(bench.dir.path(), artifacts_dir(bench.dir.path()).join("2027")).unwrap();
    name("2027/secret.jpg", 1);
    let report = scrub(&bench, true);
    assert_eq!((report.outside, report.links, report.changed), (2, 1, 0), "{:?}", report.faults);
    assert_eq!(std::fs::read(&outside).unwrap(), b"mine");
    drop(inspection);
}

#[test]
fn a_file_whose_removal_was_cut_off_is_removed_by_the_scrub() {
    let bench = Bench::new();
    let pass = bench.commit(1, Verdict::Pass, &[100]);
    bench.days_pass(5);
    assert_eq!(bench.expire().pass_pictures, 1);
    let file = artifacts_dir(bench.dir.path()).join(&pass.artifacts[0].relative_path);
    // As if the kill had come between the row and the file.
    std::fs::write(&file, vec![7; 100]).unwrap();
    let report = scrub(&bench, true);
    assert!(report.is_clean() && !file.exists());
    assert_eq!((report.leftovers_removed, report.quarantined), (1, 0));
}

/// Run the program; its exit code and what it prints.
fn loupe(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loupe")).args(args).arg("--state").arg(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_commands_show_hold_and_prune() {
    let bench = Bench::new();
    let old = Timestamp::from_micros(Clock::system().now().as_micros() - 10 * DAY_US);
    let commit = |number, station: &str| {
        let mut inspection = samples::inspection(number);
        (inspection.decided_at, inspection.captured_at) = (old, old);
        inspection.station = station.to_owned();
        bench.ledger.commit(inspection, vec![samples::thumbnail(1_000)]).unwrap()
    };
    let (a, b) = (commit(1, "line-1"), commit(2, "line-2"));
    let dir = bench.dir.path().to_owned();
    let (code, said, _) = loupe(&dir, &["storage", "status"]);
    assert_eq!(code, Some(0));
    assert!(
        said.contains("2 pictures of PASS, 2.0 KiB, oldest") && said.contains("no") && said.contains("verdicts never"),
        "{said}"
    );
    let Bench { dir: folder, ledger, .. } = bench;
    ledger.close().unwrap();

    let (code, said, error) = loupe(
        &dir,
        &["storage", "hold", "add", "--inspection", &a.code, "--by", "Kim", "--reason", "claim 7", "--json"],
    );
    assert_eq!(code, Some(0), "{error}");
    let placed: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(placed["covered_now"], 1);
    let (code, _, error) = loupe(&dir, &["storage", "hold", "add", "--by", "Kim", "--reason", "all"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("needs an inspection, a part, a station or a time range"), "{error}");
    let (_, said, _) = loupe(&dir, &["storage", "hold", "list"]);
    assert!(said.contains(&format!("inspection {}", a.id)) && said.contains("by Kim, claim 7"), "{said}");

    let (_, said, _) = loupe(&dir, &["storage", "prune", "--dry-run", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&plan["expired"][0]["class"], &plan["expired"][0]["count"]), (&"pass_pictures".into(), &1.into()));
    let (code, said, error) = loupe(&dir, &["storage", "prune", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let done: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(done["removed"]["pass_pictures"], 1);
    let there = |inspection: &Inspection| artifacts_dir(&dir).join(&inspection.artifacts[0].relative_path).exists();
    assert!(there(&a) && !there(&b));

    let id = placed["id"].as_str().unwrap();
    let (code, ..) = loupe(&dir, &["storage", "hold", "release", id, "--by", "Lee", "--reason", "settled"]);
    assert_eq!(code, Some(0));
    let (_, said, _) = loupe(&dir, &["storage", "hold", "list", "--all"]);
    assert!(said.contains("by Lee: settled"), "{said}");
    assert_eq!(loupe(&dir, &["storage", "scrub"]).0, Some(0));
    std::fs::write(artifacts_dir(&dir).join(&a.artifacts[0].relative_path), "changed").unwrap();
    let (code, said, _) = loupe(&dir, &["storage", "scrub", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["changed"], &report["quarantined"]), (Some(1), &1.into(), &1.into()));
    drop(folder);
}

#[test]
fn a_hold_reaches_the_daemon_that_has_the_ledger() {
    let bench = Bench::new();
    let state = DashboardState {
        artifacts_dir: artifacts_dir(bench.dir.path()),
        site: "Plant 3".to_owned(),
        stations: Vec::new(),
        snapshot: std::sync::Arc::new(Snapshot::default),
        gone: None,
        lookup: None,
        reviews: None,
        kits: None,
        holds: Some(loupe::cmd::storage::desk(bench.ledger.clone())),
        people: None,
        metrics: Metrics::new(),
        progress: Vec::new(),
        clock: bench.clock.clone(),
        allow_remote: false,
        allowed_hosts: Vec::new(),
    };
    let stop = Shutdown::new();
    let dashboard = Dashboard::spawn("127.0.0.1:0".parse().unwrap(), Feed::new(), state, stop.clone()).unwrap();
    std::fs::write(bench.dir.path().join("dashboard.addr"), dashboard.addr.to_string()).unwrap();
    let add = |args: &[&str]| {
        let all = [&["storage", "hold", "add", "--by", "Kim", "--reason", "claim 7"], args].concat();
        loupe(bench.dir.path(), &all)
    };
    let (code, said, error) = add(&["--station", "line-1"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains("covers 0 inspections now"), "{said}");
    let holds = bench.reader().legal_holds(false).unwrap();
    assert_eq!(holds.iter().map(|hold| hold.scope.station.as_deref()).collect::<Vec<_>>(), [Some("line-1")]);
    let (code, _, error) = add(&[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("needs an inspection, a part, a station or a time range"), "{error}");
    stop.request();
    dashboard.join();
}

#[test]
fn an_item_whose_detail_has_expired_is_refused_in_words_and_the_whole_is_not() {
    let bench = Bench::new();
    let hold = bench.commit(1, Verdict::Hold, &[]);
    bench.deliver(|_| true);
    bench.days_pass(15);
    assert_eq!(bench.expire().detail, 1);
    let of_item = NewReview { ordinal: Some(hold.items[0].ordinal), ..review(&hold, None) };
    let said = bench.ledger.review(of_item).unwrap_err().to_string();
    assert!(said.contains(&format!("the detail of {} has expired", hold.code)), "{said}");
    assert!(said.contains("storage.detail_days"), "{said}");
    let said = bench.ledger.review(NewReview { ordinal: Some(99), ..review(&hold, None) }).unwrap_err().to_string();
    assert!(said.contains("has no item 99"), "{said}");
    bench.ledger.review(NewReview { ordinal: None, ..review(&hold, None) }).unwrap();
    bench.assert_whole();
}

#[test]
fn of_a_picture_that_is_gone_the_ledger_says_why() {
    let bench = Bench::new();
    let (pass, hold) = (bench.commit(1, Verdict::Pass, &[100]), bench.commit(2, Verdict::Hold, &[200]));
    let path = |inspection: &Inspection| inspection.artifacts[0].relative_path.clone();
    assert_eq!(bench.reader().gone_picture(&path(&pass)).unwrap(), None, "it is there");
    bench.days_pass(4);
    bench.expire();
    let gone = bench.reader().gone_picture(&path(&pass)).unwrap().unwrap();
    assert_eq!((gone.reason, gone.is_pass), (GoneReason::Expired, true));
    assert!(gone.gone_at >= pass.decided_at);
    let tight = StoragePolicy { budget_bytes: Some(10), ..policy() };
    bench.sweep(tight).relieve(&mut |_| true).unwrap();
    let gone = bench.reader().gone_picture(&path(&hold)).unwrap().unwrap();
    assert_eq!((gone.reason, gone.is_pass), (GoneReason::Pressure, false));
    for unknown in ["", "x.jpg", "2026/11/21/00000000-0000-0000-0000-000000000000-0-frame.jpg", "é".repeat(40).as_str()]
    {
        assert_eq!(bench.reader().gone_picture(unknown).unwrap(), None, "{unknown}");
    }
}
