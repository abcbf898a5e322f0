//! Samples of the machine: delivered with or without a GPU, once, within their bounds.

mod support;

use std::fs;
use std::process::Stdio;

use loupe::clock::Clock;
use loupe::ledger::{Ledger, LedgerReader};
use loupe::limits::SYSTEM_STATS_SPOOL_MAX;
use loupe::types::{GpuStat, SystemStat, Timestamp};
use loupe::uplink::{Central, Secret, UplinkConfig, block_on, drain};
use support::central::{SITE, until};
use support::samples::NOON_US;
use support::{Assets, loupe, plate_recipe, samples};
use tempfile::TempDir;

fn sample(number: u32) -> SystemStat {
    SystemStat {
        cpu_usage_pct: Some(12.5),
        load1: Some(0.1),
        disk_used_pct: Some(99.9),
        disk_free_bytes: Some(1 << 40),
        outbox_pending: Some(i64::from(number)),
        ..SystemStat::default()
    }
}

fn at(second: u32) -> Timestamp {
    Timestamp::from_micros(NOON_US + i64::from(second) * 1_000_000)
}

#[test]
fn samples_of_both_kinds_arrive_once_and_what_is_unknown_stays_unknown() {
    let Some(server) = support::central::start() else { return };
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    for second in 0..3 {
        ledger.record_system_stat(at(second), sample(second)).unwrap();
    }
    ledger.record_gpu_stats(at(0), vec![GpuStat::default()]).unwrap();
    let config = UplinkConfig { dsn: Secret::new(server.dsn()), site_id: Some(SITE) };
    let delivery = drain(ledger.clone(), &config, |_| ()).unwrap();
    assert_eq!((delivery.delivered, delivery.gpu_stats, delivery.system_stats), (0, 1, 3));
    let again = drain(ledger.clone(), &config, |_| ()).unwrap();
    assert_eq!((again.gpu_stats, again.system_stats), (0, 0));
    let rows = server.lines(
        "SELECT cpu_usage_pct, load1, disk_used_pct, disk_free_bytes, outbox_pending, temperature_c IS NULL,
            clock_offset_ms IS NULL, device_id FROM loupe.system_stats ORDER BY recorded_at DESC LIMIT 1",
    );
    assert_eq!(rows, [format!("12.5|0.1|99.9|{}|2|t|t|{}", 1_u64 << 40, ledger.device_id())]);
    assert_eq!(server.query("SELECT count(*), count(DISTINCT id) FROM loupe.system_stats"), "3|3");
    // Central refuses what cannot be: samples may be dropped, and nothing stays behind them.
    ledger.record_system_stat(at(9), SystemStat { load1: None, ..sample(9) }).unwrap();
    server.query("ALTER TABLE loupe.system_stats ADD CONSTRAINT refuses CHECK (load1 IS NOT NULL) NOT VALID");
    assert_eq!(drain(ledger.clone(), &config, |_| ()).unwrap().system_stats, 0);
    server.query("ALTER TABLE loupe.system_stats DROP CONSTRAINT refuses");
    ledger.record_system_stat(at(10), sample(10)).unwrap();
    assert_eq!(drain(ledger.clone(), &config, |_| ()).unwrap().system_stats, 1);
}

#[test]
fn a_full_ring_drops_its_oldest_and_counts_them_and_the_gpus_ring_is_its_own() {
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.record_gpu_stats(at(0), vec![GpuStat::default(); 2]).unwrap();
    // A month offline: filled beside the writer, or each would be a commit.
    let connection = rusqlite::Connection::open(loupe::ledger::database_path(dir.path())).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    connection
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO system_stats (recorded_at, id, outbox_pending) SELECT i, randomblob(16), i FROM n",
            [i64::try_from(SYSTEM_STATS_SPOOL_MAX).unwrap()],
        )
        .unwrap();
    for second in 0..3 {
        ledger.record_system_stat(at(second), sample(second)).unwrap();
    }
    let number = |sql: &str| -> i64 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(number("SELECT count(*) FROM system_stats"), i64::try_from(SYSTEM_STATS_SPOOL_MAX).unwrap());
    assert_eq!(
        number("SELECT min(outbox_pending) FROM system_stats WHERE recorded_at < 1000000"),
        4,
        "the oldest went"
    );
    assert_eq!(number("SELECT count(*) FROM gpu_stats"), 2);
    assert_eq!(ledger.counters().unwrap().dropped_samples, 3);
}

#[test]
fn a_machine_that_samples_out_of_range_is_refused_alone() {
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    for bad in [
        SystemStat { cpu_usage_pct: Some(100.5), ..sample(0) },
        SystemStat { load1: Some(f32::INFINITY), ..sample(0) },
        SystemStat { disk_free_bytes: Some(-1), ..sample(0) },
        SystemStat { temperature_c: Some(f32::MAX), ..sample(0) },
    ] {
        assert!(ledger.record_system_stat(at(0), bad).is_err(), "{bad:?}");
    }
    // SQLite makes NULL of what is no number: unknown.
    ledger.record_system_stat(at(0), SystemStat { load1: Some(f32::NAN), ..sample(0) }).unwrap();
    ledger.record_system_stat(at(1), sample(1)).unwrap();
    let connection = rusqlite::Connection::open(loupe::ledger::database_path(dir.path())).unwrap();
    let rows: i64 = connection.query_row("SELECT count(*) FROM system_stats", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2);
}

#[test]
fn the_daemon_samples_its_machine_shows_it_and_sends_it() {
    let Some(server) = support::central::start() else { return };
    let dsn = Secret::new(server.dsn());
    let site = block_on(async { Central::connect(&dsn).await?.provision_site("plant-07", "P", None).await }).unwrap();
    let folder = TempDir::new().unwrap();
    plate_recipe(folder.path(), &Assets::get().bank(), "");
    let images = samples().join("plate/test/scratch");
    let text = format!(
        "[site]\ncode = \"plant-07\"\nid = \"{}\"\n[storage]\nstate_dir = \"state\"\n[uplink]\ndsn = \"{}\"\n\
         [telemetry]\nsystem_interval_s = 1\n[dashboard]\nlisten = \"127.0.0.1:0\"\n\
         [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\nsource = {{ kind = \"folder\", path = \"{}\" }}\n",
        site.site_id,
        site.dsn.expose(),
        images.display()
    );
    fs::write(folder.path().join("loupe.toml"), text).unwrap();
    let mut daemon = loupe();
    daemon.args(["run", "--config"]).arg(folder.path().join("loupe.toml")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = daemon.spawn().unwrap();
    let state = folder.path().join("state");
    until("three samples arrive", || {
        server.query(
            "SELECT count(*) >= 3 AND count(cpu_usage_pct) >= 1 AND count(fsync_p99_ms) >= 1
             FROM loupe.system_stats",
        ) == "t"
    });
    let address = fs::read_to_string(state.join("dashboard.addr")).unwrap();
    let metrics = get(address.trim(), "/metrics");
    for name in ["loupe_system_memory_used_bytes{}", "loupe_process_open_fds{}", "loupe_disk_used_ratio{}"] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let device = LedgerReader::open(&state).unwrap().meta().unwrap().device_id;
    let health = server.lines(
        "SELECT device_id, memory_used_ratio BETWEEN 0.001 AND 1, disk_free_bytes > 0, process_rss_bytes > 1000000,
            open_fds > 3, age_s BETWEEN -5 AND 120, clock_offset_ms IS NULL FROM loupe.v_system_health",
    );
    assert_eq!(health, [format!("{device}|t|t|t|t|t|t")]);
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
