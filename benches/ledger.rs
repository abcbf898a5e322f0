//! What a durable commit costs, against one durable SQLite insert on the same disk.
//!
//! `cargo bench --bench ledger [-- DIR]`: the ledgers stand in DIR (default: the build folder), so that the disk of
//! interest is measured. Each row is one run; read the spread by running it again.

use std::path::{Path, PathBuf};

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::Ledger;
use loupe::types::{Item, Verdict};

#[path = "../tests/support/samples.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod samples;

const COMMITS: u64 = 500;
const THREADS: u64 = 8;

fn main() {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let base = dir.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!("disk: {}", base.display());
    report("bare insert", 1, bare(&base));
    report("commit, 1 item", 1, commits(&base, 1, 1, 0));
    report("commit, 5 items", 1, commits(&base, 1, 5, 0));
    report("commit, 5 items, 2 pictures of 20 kB", 1, commits(&base, 1, 5, 2));
    report("commit, 5 items", THREADS, commits(&base, THREADS, 5, 0));
    report("commit, 5 items, 2 pictures of 20 kB", THREADS, commits(&base, THREADS, 5, 2));
}

fn report(what: &str, threads: u64, (mut each_ms, wall_s): (Vec<f32>, f64)) {
    each_ms.sort_by(f32::total_cmp);
    let at = |percent: usize| each_ms[(each_ms.len() - 1) * percent / 100];
    let rate = each_ms.len() as f64 / wall_s;
    println!(
        "{what:<38} {threads} threads {rate:>8.0}/s   p50 {:>6.2} ms   p99 {:>6.2} ms   max {:>6.2} ms",
        at(50),
        at(99),
        at(100)
    );
}

/// One row of 2 kB a transaction, synchronous=FULL, WAL: the floor that any durable commit stands on.
fn bare(base: &Path) -> (Vec<f32>, f64) {
    let dir = tempfile::tempdir_in(base).unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("bare.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x);",
        )
        .unwrap();
    let text = "x".repeat(2_000);
    let wall = Stopwatch::start();
    let each = (0..COMMITS).map(|_| {
        let stopwatch = Stopwatch::start();
        connection.execute("INSERT INTO t VALUES (?1)", [&text]).unwrap();
        stopwatch.ms()
    });
    (each.collect(), wall.elapsed().as_secs_f64())
}

fn inspection(number: u64, item_count: u32) -> loupe::types::Inspection {
    let mut inspection = samples::inspection(number);
    inspection.items = (0..item_count).map(|ordinal| samples::item(ordinal, 0.9)).collect::<Vec<Item>>();
    assert_eq!(inspection.verdict, Verdict::Pass);
    inspection
}

fn commits(base: &Path, threads: u64, item_count: u32, pictures: usize) -> (Vec<f32>, f64) {
    let dir = tempfile::tempdir_in(base).unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    let wall = Stopwatch::start();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let ledger = ledger.clone();
            std::thread::spawn(move || {
                let commit = |number| {
                    let artifacts = vec![samples::thumbnail(20_000); pictures];
                    let inspection = inspection(thread * COMMITS + number, item_count);
                    let stopwatch = Stopwatch::start();
                    ledger.commit(inspection, artifacts).unwrap();
                    stopwatch.ms()
                };
                (0..COMMITS).map(commit).collect::<Vec<_>>()
            })
        })
        .collect();
    let each = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    (each, wall.elapsed().as_secs_f64())
}
