//! How fast the outbox drains into PostgreSQL, against a bare COPY of the same rows on the same server, and in how much
//! memory.
//!
//! `cargo bench --bench drain [-- [INSPECTIONS] [DIR]]`: 125 000 inspections of 5 items, a million rows, in ledgers below
//! DIR (default: the build folder). The courier logs in as a site, so that row-level security is in force; the bare way
//! is psql as superuser: COPY … BINARY into a temporary table and INSERT … ON CONFLICT DO NOTHING, one transaction a
//! table. The server fsyncs. Rounds alternate; read the spread off them. The first courier also pays for the server's fresh
//! memory, which the first bare one finds warm: round 0 is shown, not to be counted. `benches/alternatives.sql` compares the
//! statements that the courier might use.

use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{Ledger, database_path};
use loupe::uplink::{Central, Secret, UplinkConfig, block_on, drain};

#[path = "../tests/support/postgres.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod postgres;
#[path = "../tests/support/samples.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod samples;

use postgres::Postgres;

const ROUNDS: u32 = 3;
const ITEMS: u32 = 5;
const TABLES: [&str; 5] = ["provenances", "inspections", "items", "anomaly_maps", "frame_qa_logs"];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let inspections = arguments.next().map_or(125_000, |text| text.parse().unwrap());
    let base = arguments.next().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let Some(server) = Postgres::start() else { return };
    server.stop();
    server.restart_with("-c fsync=on -c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=1h");
    let admin = Secret::new(server.dsn());
    let site = block_on(async {
        let mut central = Central::connect(&admin).await?;
        central.migrate().await?;
        central.provision_site("plant-a", "Plant", None).await
    })
    .unwrap();
    let filled = fill(&base, inspections);
    let files = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(files.path(), Some(owner_of(&server)), None).unwrap();
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    for round in 0..ROUNDS {
        empty(&server);
        let (seconds, growth_mb) = courier(&base, &filled, &site.dsn, inspections);
        let rows = rows(&server);
        let courier_rate = rows / seconds;
        println!("round {round}: courier {seconds:>7.2} s {courier_rate:>8.0} rows/s   memory +{growth_mb:.1} MB");
        if round == 0 {
            export(&server, files.path());
        }
        empty(&server);
        let seconds = bare(&server, files.path());
        let bare_rate = rows / seconds;
        println!(
            "round {round}: bare    {seconds:>7.2} s {bare_rate:>8.0} rows/s   ratio {:.2}",
            courier_rate / bare_rate
        );
    }
}

/// A ledger in which this many inspections wait; kept for the next run.
fn fill(base: &Path, inspections: u64) -> PathBuf {
    let dir = base.join(format!("drain-{inspections}"));
    if dir.join("filled").exists() {
        return dir;
    }
    let stopwatch = Stopwatch::start();
    let ledger = Ledger::open(&dir, Clock::system()).unwrap();
    samples::provenance(&ledger);
    for number in 0..inspections {
        let mut inspection = samples::inspection(number);
        inspection.items = (0..ITEMS).map(|ordinal| samples::item(ordinal, 0.9)).collect();
        ledger.submit(inspection, Vec::new()).unwrap();
    }
    ledger.close().unwrap();
    std::fs::write(dir.join("filled"), "").unwrap();
    let seconds = stopwatch.elapsed().as_secs_f64();
    println!("filled a ledger with {inspections} inspections in {seconds:.1} s");
    dir
}

/// Drain a copy of the ledger: seconds, and how far the memory rose, MB.
fn courier(base: &Path, filled: &Path, dsn: &Secret, inspections: u64) -> (f64, f64) {
    let dir = tempfile::tempdir_in(base).unwrap();
    std::fs::copy(database_path(filled), database_path(dir.path())).unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    // Makes the kernel forget the highest resident size so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before_kb = memory_kb("VmRSS:");
    let config = UplinkConfig { dsn: dsn.clone(), site_id: None };
    let stopwatch = Stopwatch::start();
    let delivery = drain(ledger, &config, |_| ()).unwrap();
    let seconds = stopwatch.elapsed().as_secs_f64();
    assert_eq!((delivery.delivered, delivery.parked), (inspections, 0));
    (seconds, (memory_kb("VmHWM:") - before_kb) / 1024.0)
}

fn memory_kb(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn owner_of(server: &Postgres) -> u32 {
    let probe = server.put("probe", b"");
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(probe).unwrap())
}

fn empty(server: &Postgres) {
    let tables: Vec<_> = TABLES.iter().chain(&["ingest_batches"]).map(|table| format!("loupe.{table}")).collect();
    server.query(&format!("TRUNCATE {}", tables.join(", ")));
    server.query("CHECKPOINT");
}

fn rows(server: &Postgres) -> f64 {
    let counts: Vec<_> = TABLES.iter().map(|table| format!("(SELECT count(*) FROM loupe.{table})")).collect();
    server.query(&format!("SELECT {}", counts.join(" + "))).parse().unwrap()
}

fn export(server: &Postgres, dir: &Path) {
    for table in TABLES {
        let file = dir.join(table).display().to_string();
        server.query(&format!("COPY (SELECT * FROM loupe.{table}) TO '{file}' BINARY"));
    }
}

/// Seconds that psql takes over the same rows.
fn bare(server: &Postgres, dir: &Path) -> f64 {
    let script: String = TABLES
        .iter()
        .map(|table| {
            let file = dir.join(table).display().to_string();
            format!(
                "BEGIN; CREATE TEMPORARY TABLE copied (LIKE loupe.{table}) ON COMMIT DROP;
                 COPY copied FROM '{file}' BINARY;
                 INSERT INTO loupe.{table} SELECT * FROM copied ON CONFLICT DO NOTHING; COMMIT;\n"
            )
        })
        .collect();
    let path = dir.join("bare.sql");
    std::fs::write(&path, script).unwrap();
    let dsn = server.dsn();
    let mut psql = Command::new(server.programs().join("psql"));
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &dsn, "-f"]).arg(&path);
    let stopwatch = Stopwatch::start();
    assert!(psql.status().unwrap().success());
    stopwatch.elapsed().as_secs_f64()
}
