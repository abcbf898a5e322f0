//! What a durable commit costs, against a bare durable SQLite transaction of the same size, taken in turns in one run.
//!
//! `cargo bench --bench ledger [-- DIR]`: the ledgers stand in DIR (default: the build folder), so that the disk of
//! interest is measured. Two bare transactions are measured beside each commit: one row of as many bytes as a commit
//! appends rows (`same bytes`), and one that appends as many pages to the log (`same pages`); both by a plain
//! connection, with SQLite's own checkpoints. Read the spread by running it again.

use std::path::{Path, PathBuf};

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{Ledger, database_path};
use loupe::types::{Item, Verdict};

#[path = "../tests/support/samples.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod samples;

const COMMITS: u64 = 1_500;
const GROUP_COMMITS: u64 = 500;
const THREADS: u64 = 8;
/// Commits after which the pages of one are counted: few enough that the log does not begin anew.
const COUNTED: usize = 50;
const PAGE_BYTES: usize = 4_096;
const ROUNDS: u64 = 7;

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let base = dir.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!("disk: {}", base.display());
    for item_count in [1, 5] {
        in_turns(&base, item_count);
    }
    group(&base, "commit, 5 items", 0);
    group(&base, "commit, 5 items, 2 pictures of 20 kB", 2);
}

/// Latencies of one kind, milliseconds.
#[derive(Default)]
struct Latencies(Vec<f32>);

impl Latencies {
    fn add(&mut self, work: impl FnOnce()) {
        let stopwatch = Stopwatch::start();
        work();
        self.0.push(stopwatch.ms());
    }

    fn at(&self, per_mille: usize) -> f32 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f32::total_cmp);
        sorted[(sorted.len() - 1) * per_mille / 1_000]
    }

    fn report(&self, what: &str) {
        println!(
            "{what:<40} p50 {:>6.2} ms   p99 {:>6.2} ms   p99.9 {:>6.2} ms   max {:>6.2} ms",
            self.at(500),
            self.at(990),
            self.at(999),
            self.at(1_000)
        );
    }
}

/// A plain connection as the ledger opens it.
fn plain(dir: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(dir.join("bare.db")).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x);"
        ))
        .unwrap();
    connection
}

/// Bytes of rows and pages of the log that one commit appends.
fn size_of_commit(base: &Path, item_count: u32) -> (usize, usize) {
    let dir = tempfile::tempdir_in(base).unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    let log = database_path(dir.path()).with_extension("db-wal");
    let log_bytes = || usize::try_from(std::fs::metadata(&log).unwrap().len()).unwrap();
    ledger.commit(inspection(0, item_count), Vec::new()).unwrap();
    let before = log_bytes();
    for number in 1..=COUNTED as u64 {
        ledger.commit(inspection(number, item_count), Vec::new()).unwrap();
    }
    let pages = (log_bytes() - before) / (PAGE_BYTES + 24) / COUNTED;
    let reader = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    let sql = "SELECT CAST(avg(length(record)) AS INTEGER) FROM inspections";
    let record: i64 = reader.query_row(sql, [], |row| row.get(0)).unwrap();
    let record = usize::try_from(record).unwrap();
    // The record, about 300 bytes of columns beside it, 250 an item, 300 for map and frame quality, 60 for the outbox.
    (record + 300 + 250 * item_count as usize + 300 + 60, pages)
}

fn in_turns(base: &Path, item_count: u32) {
    let (row_bytes, pages) = size_of_commit(base, item_count);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir_in(base).unwrap()).collect();
    let (same_bytes, same_pages) = (plain(dirs[0].path()), plain(dirs[1].path()));
    let row = "x".repeat(row_bytes);
    // Each of these rows fills a page: a transaction that touches `pages` of them, the table's own included.
    let filler = "y".repeat(PAGE_BYTES - 200);
    for _ in 0..4_096 {
        same_pages.execute("INSERT INTO t VALUES (?1)", [&filler]).unwrap();
    }
    let ledger = Ledger::open(dirs[2].path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    let mut all: [Latencies; 3] = Default::default();
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let mut each: [Latencies; 3] = Default::default();
        for number in round * COMMITS..(round + 1) * COMMITS {
            each[0].add(|| {
                same_bytes.prepare_cached("INSERT INTO t VALUES (?1)").unwrap().execute([&row]).unwrap();
            });
            let first = (number as i64 * 37) % 4_000 + 1;
            let sql = "UPDATE t SET x = ?1 WHERE rowid BETWEEN ?2 AND ?3";
            let last = first + pages as i64 - 1;
            let content = format!("{number:08}{}", &filler[8..]);
            each[1].add(|| {
                same_pages.prepare_cached(sql).unwrap().execute(rusqlite::params![content, first, last]).unwrap();
            });
            let inspection = inspection(number, item_count);
            each[2].add(|| drop(ledger.commit(inspection, Vec::new()).unwrap()));
        }
        ratios.push(each[2].at(990) / each[0].at(990));
        for (all, each) in all.iter_mut().zip(each) {
            all.0.extend(each.0);
        }
    }
    let [bytes_ms, pages_ms, commit_ms] = all;
    println!(
        "{item_count} items: {row_bytes} bytes of rows, {pages} pages of the log a commit; {ROUNDS} rounds of {COMMITS} of each in turns"
    );
    bytes_ms.report("bare transaction, same bytes");
    pages_ms.report("bare transaction, same pages");
    commit_ms.report("commit");
    println!(
        "p99 of a commit is {:.2} of the bare one of the same bytes, {:.2} of that of the same pages; round by round of the same bytes:{}",
        commit_ms.at(990) / bytes_ms.at(990),
        commit_ms.at(990) / pages_ms.at(990),
        ratios.iter().map(|ratio| format!(" {ratio:.2}")).collect::<String>()
    );
}

fn inspection(number: u64, item_count: u32) -> loupe::types::Inspection {
    let mut inspection = samples::inspection(number);
    inspection.items = (0..item_count).map(|ordinal| samples::item(ordinal, 0.9)).collect::<Vec<Item>>();
    assert_eq!(inspection.verdict, Verdict::Pass);
    inspection
}

fn group(base: &Path, what: &str, pictures: usize) {
    let dir = tempfile::tempdir_in(base).unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    let wall = Stopwatch::start();
    let workers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let ledger = ledger.clone();
            std::thread::spawn(move || {
                let mut each = Latencies::default();
                for number in 0..GROUP_COMMITS {
                    let artifacts = vec![samples::thumbnail(20_000); pictures];
                    let inspection = inspection(thread * GROUP_COMMITS + number, 5);
                    each.add(|| drop(ledger.commit(inspection, artifacts).unwrap()));
                }
                each.0
            })
        })
        .collect();
    let all = Latencies(workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect());
    let rate = all.0.len() as f64 / wall.elapsed().as_secs_f64();
    println!("{THREADS} threads: {rate:.0} inspections/s");
    all.report(what);
}
