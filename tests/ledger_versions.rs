//! Ledgers of other versions, damaged ones, and folders that are in use: upgraded with all rows, or refused in words.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::clock::Clock;
use loupe::ledger::{Counters, Ledger, LedgerError, LedgerReader, artifacts_dir, database_path};
use loupe::types::Digest;
use support::{root, samples};

/// Of a new ledger.
const PAGE_BYTES: u64 = 4_096;

/// A ledger as an older version left it: its pages are of 8 KiB, and stay so.
fn old_ledger(fixture: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    connection
        .execute_batch("PRAGMA page_size = 8192; PRAGMA application_id = 0x4c4f5550; PRAGMA foreign_keys = OFF;")
        .unwrap();
    let sql = std::fs::read_to_string(root().join("tests/fixtures").join(fixture)).unwrap();
    connection.execute_batch(&sql).unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    dir
}

fn rows(dir: &Path, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(database_path(dir)).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn upgrades(fixture: &str, expected: Counters, tables: &[(&str, i64)]) {
    let dir = old_ledger(fixture);
    for (table, count) in tables {
        assert_eq!(rows(dir.path(), table), *count, "{table} of the fixture");
    }
    assert!(matches!(LedgerReader::open(dir.path()), Err(LedgerError::Older { .. })), "only a writer upgrades");
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    assert_eq!(ledger.counters().unwrap(), expected);
    for (table, count) in tables {
        assert_eq!(rows(dir.path(), table), *count, "{table} after the upgrade");
    }
    let reader = LedgerReader::open(dir.path()).unwrap();
    let proof = reader.verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
    let pending = reader.pending_units(100, usize::MAX).unwrap();
    assert!(pending.unreadable.is_empty(), "{:?}", pending.unreadable);
    assert_eq!(pending.units.len() as u64, expected.pending);
    assert_eq!(rows(dir.path(), "delivered_inspections"), 1, "what was delivered before can expire from now on");

    assert_eq!(reader.config_history(None, 10).unwrap(), [], "nothing was recorded before");

    // It goes on where it was: no code and no number is given twice.
    samples::provenance(&ledger);
    let next = ledger.commit(samples::inspection(1), Vec::new()).unwrap();
    assert!(ledger.recent(10).unwrap().iter().filter(|inspection| inspection.code == next.code).count() == 1);
    let seqs: Vec<i64> = reader.pending_units(100, usize::MAX).unwrap().units.iter().map(|unit| unit.seq).collect();
    assert_eq!(seqs.last().copied(), i64::try_from(expected.committed + 1).ok());
    assert_eq!(ledger.acknowledge(seqs, Digest::of(b"all")).unwrap() as u64, expected.pending + 1);
    let proof = reader.verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}

#[test]
fn a_ledger_of_the_first_version_upgrades_with_every_row() {
    let expected = Counters { committed: 3, delivered: 1, pending: 2, refused: 4, captured: 7, ..Counters::default() };
    let tables =
        [("inspections", 3), ("items", 16), ("frame_qa_logs", 3), ("outbox", 2), ("gpu_stats", 1), ("refusals", 1)];
    upgrades("ledger_v1.sql", expected, &tables);
}

#[test]
fn a_ledger_of_the_third_version_upgrades_with_every_row() {
    let expected = Counters {
        committed: 6,
        reviews: 1,
        kit_units: 2,
        delivered: 1,
        pending: 5,
        refused: 4,
        captured: 7,
        ..Counters::default()
    };
    let tables = [
        ("inspections", 3),
        ("items", 16),
        ("outbox", 5),
        ("reviews", 1),
        ("kit_sessions", 1),
        ("stock_ledger", 1),
        ("parts", 24),
        ("colors", 10),
        ("kit_parts", 1),
    ];
    upgrades("ledger_v3.sql", expected, &tables);
}

/// Run the program on a state folder; its exit code and what it says.
fn loupe(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loupe")).args(args).arg("--state").arg(dir).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A ledger with a few commits, closed well.
fn closed_ledger(commits: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    for number in 0..commits {
        ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    }
    ledger.close().unwrap();
    dir
}

#[test]
fn a_ledger_of_a_newer_version_is_refused_with_78() {
    let dir = closed_ledger(2);
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    connection
        .execute("INSERT INTO schema_migrations (version, name, applied_on, checksum) VALUES (900, 'x', '', '1')", [])
        .unwrap();
    drop(connection);
    let error = Ledger::open(dir.path(), Clock::system()).unwrap_err();
    assert!(matches!(error, LedgerError::Newer { found: 900, .. }), "{error}");
    for args in [["storage", "prune"], ["storage", "status"], ["outbox", "status"]] {
        let (code, said) = loupe(dir.path(), &args);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("newer version of Loupe"), "{said}");
    }
    assert_eq!(rows(dir.path(), "inspections"), 2, "nothing was changed");
}

#[test]
fn a_folder_in_use_is_refused_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let _ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let (code, said) = loupe(dir.path(), &["storage", "prune"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("in use by another loupe process"), "{said}");
}

#[test]
fn a_linked_artifacts_folder_is_refused_with_78() {
    let dir = closed_ledger(1);
    let elsewhere = tempfile::tempdir().unwrap();
    let artifacts = artifacts_dir(dir.path());
    std::fs::remove_dir_all(&artifacts).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &artifacts).unwrap();
    let (code, said) = loupe(dir.path(), &["storage", "prune"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("is a symbolic link"), "{said}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "something was written through the link");
}

#[test]
fn a_day_folder_that_is_a_link_takes_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    let month = artifacts_dir(dir.path()).join("2026/11");
    std::fs::create_dir_all(&month).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), month.join("21")).unwrap();
    let error = ledger.commit(samples::inspection(1), vec![samples::thumbnail(10)]).unwrap_err();
    assert!(matches!(error, LedgerError::Linked { .. }), "{error}");
    assert_eq!(ledger.counters().unwrap().committed, 0);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

/// A copy of the files of a ledger whose writer is still there: as a kill leaves them. Half of it is in the log.
fn killed_ledger() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    for number in 0..40 {
        ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    }
    ledger.close().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    for number in 40..60 {
        ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

fn flip(path: &PathBuf, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_killed_ledger_reads_back_whole() {
    let dir = killed_ledger();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    assert_eq!(ledger.counters().unwrap().committed, 60);
    let proof = LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}

/// A ledger whose last run was cut off after its log had been moved into the file.
fn cut_off_ledger() -> tempfile::TempDir {
    let dir = closed_ledger(60);
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    connection.execute("UPDATE ledger_meta SET clean_shutdown = 0", []).unwrap();
    dir
}

/// Flip a byte and see the ledger refused, with words that say what to do.
fn refused_after_flip(dir: &tempfile::TempDir, file: &str, at: u64) {
    let path = dir.path().join(file);
    flip(&path, at);
    let before = std::fs::read(&path).unwrap();
    let error = Ledger::open(dir.path(), Clock::system()).expect_err(&format!("{file} byte {at} was not noticed"));
    assert!(matches!(error, LedgerError::Corrupt { .. } | LedgerError::Foreign { .. }), "{file} byte {at}: {error}");
    assert!(error.needs_operator());
    if matches!(error, LedgerError::Corrupt { .. }) {
        let words = error.to_string();
        assert!(words.contains("loupe outbox export") && words.contains("restore the last backup"), "{words}");
    }
    if file.ends_with("wal") {
        assert_eq!(std::fs::read(&path).unwrap(), before, "the evidence was changed");
    }
}

#[test]
fn a_flipped_byte_in_the_header_is_noticed() {
    // The magic words, the page size, the fixed fractions, the application id.
    for at in [3, 17, 21, 70] {
        refused_after_flip(&cut_off_ledger(), "ledger.db", at);
    }
}

#[test]
fn a_flipped_byte_ends_the_program_with_78_and_nothing_is_changed() {
    let dir = cut_off_ledger();
    let path = database_path(dir.path());
    flip(&path, 21);
    let before = Digest::of_file(&path).unwrap();
    for args in [["storage", "prune"], ["outbox", "status"]] {
        let (code, said) = loupe(dir.path(), &args);
        assert_eq!(code, Some(78), "{args:?}: {said}");
        assert!(said.contains("ledger.db"), "{said}");
    }
    assert_eq!(Digest::of_file(&path).unwrap(), before);
}

#[test]
fn a_flipped_byte_in_a_page_of_a_tree_is_noticed() {
    let roots = |name: &str| -> u64 {
        let dir = cut_off_ledger();
        let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
        let sql = "SELECT rootpage FROM sqlite_master WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
    };
    for name in ["inspections", "items", "outbox", "sqlite_autoindex_inspections_1", "kit_session_trays"] {
        refused_after_flip(&cut_off_ledger(), "ledger.db", (roots(name) - 1) * PAGE_BYTES);
    }
}

#[test]
fn a_flipped_byte_in_the_log_is_noticed_unless_it_might_be_torn() {
    let frame = 24 + PAGE_BYTES;
    for at in [2, 25, 32 + 3 * frame + 500, 32 + 10 * frame + 24, 32 + 20 * frame + 18] {
        refused_after_flip(&killed_ledger(), "ledger.db-wal", at);
    }
    // The end of the log may be torn by a power cut: what was committed before it is served.
    let dir = killed_ledger();
    let log = dir.path().join("ledger.db-wal");
    let bytes = std::fs::metadata(&log).unwrap().len();
    flip(&log, bytes - 10);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    assert_eq!(ledger.counters().unwrap().committed, 59);
    let proof = LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}
