//! The ledger's promises: what was acknowledged is there, once, after anything.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use loupe::clock::Clock;
use loupe::ledger::{Counters, Ledger, LedgerError, LedgerReader, NewReview, artifacts_dir};
use loupe::types::{
    BoundingBox, Digest, FolderNote, GpuStat, Inspection, InspectionId, LearnedTemplate, Reason, ReviewStatus,
    Timestamp, WatchedFile,
};
use support::samples;

fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, Clock::system()).unwrap()
}

#[test]
fn an_inspection_reads_back_equal_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let pass = ledger.commit(samples::inspection(1), vec![samples::thumbnail(4_000)]).unwrap();
    let hold = ledger.commit(samples::held(2), Vec::new()).unwrap();
    assert_eq!((pass.code.as_str(), hold.code.as_str()), ("INS-20261121-0001", "INS-20261121-0002"));
    let artifact = &pass.artifacts[0];
    let file = artifacts_dir(dir.path()).join(&artifact.relative_path);
    assert_eq!(Digest::of_file(&file).unwrap(), artifact.sha256);
    ledger.close().unwrap();

    let ledger = open(dir.path());
    assert_eq!(ledger.recent(10).unwrap(), [hold.clone(), pass.clone()]);
    assert_eq!(ledger.get(pass.id).unwrap(), Some(pass));
    assert_eq!(ledger.get(InspectionId(uuid::Uuid::now_v7())).unwrap(), None);
    let third = ledger.commit(samples::inspection(3), Vec::new()).unwrap();
    assert_eq!(third.code, "INS-20261121-0003");
    let expected = Counters { committed: 3, pending: 3, captured: 3, ..Counters::default() };
    assert_eq!(ledger.counters().unwrap(), expected);
}

#[test]
fn many_threads_commit_in_groups_and_every_code_is_unique() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let threads: Vec<_> = (0..8_u64)
        .map(|thread| {
            let ledger = ledger.clone();
            let commit = move |n| ledger.commit(samples::inspection(thread * 100 + n), Vec::new()).unwrap().code;
            std::thread::spawn(move || (0..25).map(commit).collect::<Vec<_>>())
        })
        .collect();
    let codes: BTreeSet<String> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(codes.len(), 200);
    assert_eq!(codes.last().unwrap(), "INS-20261121-0200");
    assert_eq!(ledger.counters().unwrap().committed, 200);
}

#[test]
fn a_bad_row_fails_alone_and_burns_no_code() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let orphan = ledger.commit(samples::inspection(1), vec![samples::thumbnail(100)]).unwrap_err();
    assert!(matches!(orphan, LedgerError::UnknownProvenance { .. }), "{orphan}");
    samples::provenance(&ledger);
    let mut not_a_number = samples::inspection(2);
    not_a_number.anomaly.as_mut().unwrap().score = f32::NAN;
    let mut pass_with_reason = samples::inspection(3);
    pass_with_reason.reasons = vec![Reason::FrameBlurred];
    let outcomes: Vec<_> = [not_a_number, samples::inspection(4), pass_with_reason, samples::inspection(5)]
        .into_iter()
        .map(|inspection| ledger.submit(inspection, vec![samples::thumbnail(100)]).unwrap())
        .collect();
    let codes: Vec<_> = outcomes.into_iter().map(|pending| pending.wait().map(|done| done.code)).collect();
    assert!(codes[0].as_ref().is_err_and(LedgerError::is_about_the_row));
    assert_eq!(codes[1].as_ref().unwrap(), "INS-20261121-0001");
    assert!(codes[2].as_ref().is_err_and(LedgerError::is_about_the_row));
    assert_eq!(codes[3].as_ref().unwrap(), "INS-20261121-0002");
    assert_eq!(ledger.counters().unwrap().committed, 2);
    let day = artifacts_dir(dir.path()).join("2026/11/21");
    assert_eq!(std::fs::read_dir(day).unwrap().count(), 2, "files of refused inspections stay behind");
}

#[test]
fn refusals_are_counted_as_captured() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    ledger.refused("line-1", Reason::FrameStale, 3).unwrap();
    ledger.refused("line-1", Reason::FrameStale, 0).unwrap();
    ledger.refused("line-2", Reason::FrameUnreadable, 1).unwrap();
    ledger.commit(samples::inspection(1), Vec::new()).unwrap();
    let expected = Counters { committed: 1, pending: 1, refused: 4, captured: 5, ..Counters::default() };
    assert_eq!(ledger.counters().unwrap(), expected);
}

#[test]
fn a_second_process_or_handle_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let error = Ledger::open(dir.path(), Clock::system()).unwrap_err().to_string();
    assert!(error.contains("in use by another loupe process"), "{error}");
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(ledger);
    open(dir.path());
}

#[test]
fn a_file_that_is_no_ledger_is_named_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(LedgerReader::open(dir.path()), Err(LedgerError::Missing { .. })));
    std::fs::write(dir.path().join("ledger.db"), "not a database, but longer than a header".repeat(50)).unwrap();
    assert!(matches!(Ledger::open(dir.path(), Clock::system()), Err(LedgerError::Corrupt { .. })));
}

#[test]
fn a_closed_ledger_refuses_further_commits() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let other = ledger.clone();
    ledger.close().unwrap();
    assert!(matches!(other.commit(samples::inspection(1), Vec::new()), Err(LedgerError::Stopped)));
}

#[test]
fn samples_beyond_the_spool_fall_out_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger
        .record_gpu_stats(
            Timestamp::from_micros(samples::NOON_US),
            vec![GpuStat::default(); loupe::limits::GPU_STATS_SPOOL_MAX + 3],
        )
        .unwrap();
    assert_eq!(ledger.counters().unwrap().dropped_samples, 3);
}

#[test]
fn a_changed_artifact_and_a_lost_outbox_entry_break_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let first = ledger.commit(samples::inspection(1), vec![samples::thumbnail(100)]).unwrap();
    let second = ledger.commit(samples::held(2), vec![samples::thumbnail(100)]).unwrap();
    ledger.close().unwrap();
    let reader = LedgerReader::open(dir.path()).unwrap();
    assert!(reader.verify(|_, _| ()).unwrap().holds());

    let file =
        |inspection: &loupe::types::Inspection| artifacts_dir(dir.path()).join(&inspection.artifacts[0].relative_path);
    std::fs::write(file(&first), "changed").unwrap();
    std::fs::remove_file(file(&second)).unwrap();
    let other = rusqlite::Connection::open(loupe::ledger::database_path(dir.path())).unwrap();
    other.execute("DELETE FROM outbox WHERE seq = 1", []).unwrap();
    other.execute("UPDATE inspections SET verdict = 'fail' WHERE code LIKE '%0002'", []).unwrap();
    other.execute("DELETE FROM frame_qa_logs WHERE inspection_id = ?1", [second.id.0.as_bytes()]).unwrap();
    let faults = reader.verify(|_, _| ()).unwrap().faults.join("\n");
    for word in [
        "committed 2 is not delivered 0 + waiting 1",
        "INS-20261121-0002: the record and its rows differ",
        "outbox entry 2 has 4 rows instead of 5",
        "has changed",
        "cannot be read",
    ] {
        assert!(faults.contains(word), "no `{word}` in\n{faults}");
    }
}

#[test]
fn widening_the_outbox_gives_no_number_twice() {
    let connection = rusqlite::Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../migrations/ledger/V1__ledger.sql")).unwrap();
    let insert = |root: &str| {
        connection.execute(
            "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
             VALUES (?1, 1, zeroblob(16), 1, 'pending', 0, 1)",
            [root],
        )
    };
    (0..3).for_each(|_| assert_eq!(insert("inspections").unwrap(), 1));
    assert!(insert("reviews").is_err());
    connection.execute("DELETE FROM outbox WHERE seq <> 2", []).unwrap();
    connection.execute_batch(include_str!("../migrations/ledger/V2__reviews.sql")).unwrap();
    insert("reviews").unwrap();
    let seqs: Vec<i64> = connection
        .prepare("SELECT seq FROM outbox ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(seqs, [2, 4]);
}

fn review_of(inspection: &Inspection, status: ReviewStatus, part: Option<&str>) -> NewReview {
    NewReview {
        inspection_id: inspection.id,
        ordinal: Some(0),
        status,
        shown_part_id: Some("3001".to_owned()),
        corrected_part_id: part.map(str::to_owned),
        corrected_color_id: None,
        undoes_id: None,
        reviewer: "Kim".to_owned(),
        reason: None,
        template: None,
    }
}

fn template_of(inspection: &Inspection, part: &str) -> LearnedTemplate {
    LearnedTemplate {
        id: 0,
        review_id: uuid::Uuid::nil(),
        index: "/index".to_owned(),
        part_id: part.to_owned(),
        color_id: None,
        model_sha256: Digest::of(b"model"),
        input_px: 160,
        crop_margin_ratio: 0.05,
        vector: vec![0.1, -0.2, 3.5e-9],
        inspection_id: inspection.id,
        ordinal: 0,
        frame_sha256: inspection.frame_sha256,
        artifact: "2026/11/21/x.png".to_owned(),
        crop: BoundingBox::new(1.5, 2.0, 30.25, 40.0),
    }
}

#[test]
fn the_last_review_of_an_item_decides_what_is_searched_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let (a, b) = (ledger.commit(samples::held(1), vec![]).unwrap(), ledger.commit(samples::held(2), vec![]).unwrap());
    let teach = |inspection: &Inspection, part: &str| {
        let template = Some(template_of(inspection, part));
        let review = NewReview { template, ..review_of(inspection, ReviewStatus::Rejected, Some(part)) };
        ledger.review(review).unwrap()
    };
    let first = teach(&a, "3003");
    let learned = ledger.learned_templates().unwrap();
    let wanted = LearnedTemplate { id: 1, review_id: first.id, ..template_of(&a, "3003") };
    assert_eq!(learned, [wanted], "the vector reads back to the bit");
    let second = teach(&a, "3004");
    let third = teach(&b, "3003");
    let parts = || ledger.learned_templates().unwrap().into_iter().map(|t| t.part_id).collect::<Vec<_>>();
    assert_eq!(parts(), ["3004", "3003"], "a later review of the same item replaces the first");
    let undo = |id, inspection: &Inspection| {
        ledger.review(NewReview { undoes_id: Some(id), ..review_of(inspection, ReviewStatus::Pending, None) })
    };
    let error = undo(first.id, &a).unwrap_err();
    assert!(error.is_about_the_row() && error.to_string().contains("a later review"), "{error}");
    undo(second.id, &a).unwrap();
    assert_eq!(parts(), ["3003"], "an undo does not bring the review before it back");
    let reader = LedgerReader::open(dir.path()).unwrap();
    let pairs: Vec<_> = reader.confusions().unwrap().into_iter().map(|c| (c.true_part_id, c.count)).collect();
    assert_eq!(pairs, [("3003".to_owned(), 1)]);
    let reviews = reader.reviews(10).unwrap();
    assert_eq!(reviews.iter().map(|r| r.is_last).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!((reviews[1].id, reviews[1].template, reviews[1].code.as_str()), (third.id, Some(3), b.code.as_str()));

    let error =
        ledger.review(NewReview { ordinal: Some(9), ..review_of(&a, ReviewStatus::Confirmed, None) }).unwrap_err();
    assert!(error.to_string().contains("no item 9"), "{error}");
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.reviews, counters.captured, counters.pending), (6, 4, 2, 6));
    let proof = reader.verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{proof:?}");
}

#[test]
fn unknown_items_are_counted_by_the_part_they_look_like() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let mut last = None;
    for number in [5, 300, 7] {
        let mut inspection = samples::held(number);
        inspection.items[0].reasons = vec![Reason::PartUnknown];
        last = Some(ledger.commit(inspection, vec![]).unwrap());
    }
    let doubtful = ledger.commit(samples::held(9), vec![]).unwrap();
    let reader = LedgerReader::open(dir.path()).unwrap();
    let unknowns = reader.unknown_parts().unwrap();
    assert_eq!(unknowns.len(), 1);
    assert_eq!((unknowns[0].best_part_id.as_str(), unknowns[0].detected_count), ("3001", 3));
    assert_eq!(unknowns[0].nearest_similarity, samples::item(0, 0.1 + 0.3).similarity.unwrap());
    assert!(unknowns[0].example_code.ends_with("0003"), "{unknowns:?}");

    // A person's word counts beside the device's, once, until it is taken back.
    let count = || reader.unknown_parts().unwrap().into_iter().map(|part| part.detected_count).collect::<Vec<_>>();
    ledger.review(review_of(&last.unwrap(), ReviewStatus::Rejected, None)).unwrap();
    assert_eq!(count(), [3], "the device had said so");
    let said = ledger.review(review_of(&doubtful, ReviewStatus::Rejected, None)).unwrap();
    assert_eq!(count(), [4]);
    let undo = NewReview { undoes_id: Some(said.id), ..review_of(&doubtful, ReviewStatus::Pending, None) };
    ledger.review(undo).unwrap();
    assert_eq!(count(), [3]);
}

#[test]
fn what_was_taken_of_a_folder_is_known_with_the_inspection_and_forgotten_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    samples::provenance(&ledger);
    let file = |path: &str, bytes| WatchedFile { path: path.to_owned(), bytes, modified_ns: 7 };
    let submit = |inspection: &Inspection, taken: Vec<WatchedFile>, gone: &[&str]| {
        let gone = gone.iter().map(|path| (*path).to_owned()).collect();
        ledger.submit_watched(inspection.clone(), vec![], FolderNote { taken, gone }).unwrap().wait()
    };
    let (first, second) = (samples::inspection(1), samples::inspection(2));
    let station = first.station.clone();
    let reader = LedgerReader::open(dir.path()).unwrap();
    submit(&first, vec![file("in/a.jpg", 1), file("in/b.jpg", 2)], &[]).unwrap();
    submit(&second, vec![file("in/b.jpg", 3)], &["in/a.jpg", "in/none.jpg"]).unwrap();
    assert_eq!(reader.watched_files(&station).unwrap(), [file("in/b.jpg", 3)]);
    assert_eq!(reader.watched_files("another").unwrap(), []);
    // An inspection that is refused takes nothing.
    submit(&second, vec![file("in/c.jpg", 1)], &["in/b.jpg"]).unwrap_err();
    assert_eq!(reader.watched_files(&station).unwrap(), [file("in/b.jpg", 3)]);
}

#[test]
fn every_table_and_column_has_a_comment() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let connection = rusqlite::Connection::open(loupe::ledger::database_path(dir.path())).unwrap();
    let mut statement = connection
        .prepare(
            "SELECT m.name, m.sql, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'
                 AND m.name NOT LIKE 'sqlite_%' AND m.name <> 'schema_migrations'",
        )
        .unwrap();
    let columns: Vec<(String, String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(columns.len() > 100, "{} columns", columns.len());
    for (table, sql, column) in columns {
        let line = sql.lines().find(|line| line.split_whitespace().next() == Some(&column)).unwrap();
        assert!(line.contains("-- "), "{table}.{column} has no comment");
    }
}

/// A file system too small for a ledger; `None` where this process may not mount one.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "loupe-test"]).arg(dir.path());
        let is_mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        is_mounted.then_some(Self(dir))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap().success());
    }
}

#[test]
fn a_full_disk_fails_commits_and_then_serves_again() {
    let Some(disk) = TinyDisk::mount("24m") else {
        println!("skipped: mounting a tmpfs is not permitted here");
        return;
    };
    let state = disk.0.path().join("state");
    let ledger = open(&state);
    samples::provenance(&ledger);
    let ballast = disk.0.path().join("ballast");
    let mut committed = 0;
    let mut failed = 0;
    for number in 0..400_u64 {
        let artifacts = if number % 2 == 0 { vec![samples::thumbnail(9_000)] } else { Vec::new() };
        match ledger.commit(samples::inspection(number), artifacts) {
            Ok(_) => committed += 1,
            Err(error) => {
                assert!(!error.is_about_the_row(), "{error}");
                failed += 1;
            }
        }
        if number == 20 {
            // Fill what is left, so that the log cannot grow.
            std::fs::write(&ballast, vec![1_u8; 32 << 20]).unwrap_err();
        }
        if number == 60 {
            assert!(failed > 20, "the disk is not full: {failed} failed");
            std::fs::remove_file(&ballast).unwrap();
        }
        if number == 100 {
            break;
        }
    }
    assert!(committed > 40, "{committed} committed, {failed} failed");
    assert_eq!(ledger.counters().unwrap().committed, committed);
    ledger.close().unwrap();
    let proof = LedgerReader::open(&state).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
    let day = artifacts_dir(&state).join("2026/11/21");
    assert_eq!(std::fs::read_dir(day).unwrap().count() as u64, proof.artifacts_checked, "files without rows");
}

/// In the child: commit without end, telling each acknowledged id.
const CHILD_STATE: &str = "LOUPE_TEST_COMMIT_STATE";

#[test]
fn child_commits_until_killed() {
    let Ok(state) = std::env::var(CHILD_STATE) else { return };
    let ledger = open(Path::new(&state));
    samples::provenance(&ledger);
    let threads: Vec<_> = (0..3_u64)
        .map(|thread| {
            let ledger = ledger.clone();
            std::thread::spawn(move || {
                for number in 0_u64.. {
                    let inspection = samples::inspection(thread << 32 | number);
                    let done = ledger.commit(inspection, vec![samples::thumbnail(3_000)]).unwrap();
                    println!("committed {} {}", done.id, done.code);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn kill_while_committing_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 1..=3_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_commits_until_killed", "--exact", "--nocapture"])
            .env(CHILD_STATE, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let before = acknowledged.len();
        let mut note = |line: String| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "committed").skip(1);
            if let (Some(id), Some(code)) = (words.next(), words.next()) {
                acknowledged.push((id.to_owned(), code.to_owned()));
            }
            acknowledged.len()
        };
        while lines.next().map(&mut note).is_some_and(|count| count < before + 40 * round) {}
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            note(line);
        }
        let orphan = artifacts_dir(dir.path()).join("tmp/half-written.jpg");
        std::fs::write(&orphan, "half").unwrap();
        let ledger = open(dir.path());
        assert!(!orphan.exists(), "a temporary file stays behind");
        for (id, code) in &acknowledged {
            let found = ledger.get(InspectionId(id.parse().unwrap())).unwrap();
            assert_eq!(found.map(|inspection| inspection.code).as_ref(), Some(code), "acknowledged, then lost");
        }
        let committed = ledger.counters().unwrap().committed;
        assert!(committed >= acknowledged.len() as u64);
        let proof = LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap();
        assert!(proof.holds(), "{:?}", proof.faults);
        assert_eq!((proof.units_checked, proof.artifacts_checked), (committed, committed));
        let rows = artifacts_dir(dir.path()).join("2026/11/21");
        assert_eq!(std::fs::read_dir(rows).unwrap().count() as u64, committed, "files without rows stay behind");
    }
    assert!(acknowledged.len() >= 240, "{} acknowledged", acknowledged.len());
}
