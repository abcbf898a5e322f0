//! From the ledger to a real PostgreSQL: everything arrives, once, and only where it may.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{Ledger, LedgerReader, SENT_TABLES, database_path};
use loupe::shutdown::Shutdown;
use loupe::types::{GpuStat, Timestamp};
use loupe::uplink::{
    Central, Courier, Delivery, MigrationReport, Secret, Uplink, UplinkConfig, UplinkState, block_on, drain,
};
use support::postgres::Postgres;
use support::samples;
use uuid::Uuid;

const SITE: Uuid = Uuid::from_u128(0xA);

fn open(dir: &Path) -> Ledger {
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    samples::provenance(&ledger);
    ledger
}

fn migrate(dsn: &Secret) -> MigrationReport {
    block_on(async { Central::connect(dsn).await?.migrate().await }).unwrap()
}

fn as_site(dsn: &Secret) -> UplinkConfig {
    UplinkConfig { dsn: dsn.clone(), site_id: Some(SITE) }
}

fn gpu_sample(gpu_index: u32) -> GpuStat {
    GpuStat {
        gpu_index,
        gpu_name: Some("H200".to_owned()),
        gpu_util_pct: Some(33.3),
        memory_used_bytes: Some(1 << 37),
        temperature_c: Some(51.0),
        sm_clock_mhz: Some(1_980),
        pstate: Some(0),
        throttle_reasons: Some(-1),
        ..GpuStat::default()
    }
}

/// Rows of every table, in an order that does not change.
fn contents(server: &Postgres) -> Vec<String> {
    let tables = SENT_TABLES.iter().map(|table| table.name).chain(["ingest_batches"]);
    tables
        .flat_map(|table| server.lines(&format!("SELECT '{table}', t.* FROM loupe.{table} t ORDER BY 1, t")))
        .collect()
}

fn count(server: &Postgres, table: &str) -> usize {
    server.lines(&format!("SELECT count(*) FROM loupe.{table}"))[0].parse().unwrap()
}

#[test]
fn migrating_twice_changes_nothing() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    let status = || block_on(async { Central::connect(&dsn).await?.status().await }).unwrap();
    assert!(!status().is_current());
    let first = migrate(&dsn);
    let files = std::fs::read_dir(support::root().join("migrations/central")).unwrap().count();
    assert_eq!(first.applied.len(), files, "{first:?}");
    let made = count(&server, "partition_bounds() b WHERE NOT b.is_default");
    assert!(made > 40 && first.partitions.len() == made, "{first:?}");
    let again = migrate(&dsn);
    assert_eq!((again.applied.len(), again.partitions.len()), (0, 0), "{again:?}");
    let status = status();
    assert!(status.is_current() && status.rows_in_default == 0, "{status:?}");
}

#[test]
fn the_schema_is_commented_protected_and_holds_what_is_sent() {
    let Some(server) = Postgres::start() else { return };
    migrate(&Secret::new(server.dsn()));
    let parents = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'loupe' AND c.relkind IN ('r', 'p') AND NOT c.relispartition";
    let bare = server.lines(&format!("SELECT c.relname {parents} AND obj_description(c.oid) IS NULL"));
    assert!(bare.is_empty(), "tables without a comment: {bare:?}");
    let bare = server.lines(&format!(
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             WHERE a.attnum > 0 AND NOT a.attisdropped AND c.oid IN (SELECT c.oid {parents})
                 AND col_description(c.oid, a.attnum) IS NULL"
    ));
    assert!(bare.is_empty(), "columns without a comment: {bare:?}");
    let open = server.lines(&format!(
        "SELECT c.relname {parents} AND c.relname <> 'schema_migrations'
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"
    ));
    assert!(open.is_empty(), "tables without forced row-level security: {open:?}");
    for table in SENT_TABLES {
        let columns = table.columns().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        server.lines(&format!("SELECT site_id, device_id, {columns} FROM loupe.{} LIMIT 0", table.name));
    }
}

#[test]
fn everything_arrives_once_with_the_same_bits() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..750 {
        let inspection = if number % 3 == 0 { samples::held(number) } else { samples::inspection(number) };
        ledger.submit(inspection, Vec::new()).unwrap();
    }
    ledger.record_gpu_stats(Timestamp::from_micros(samples::NOON_US), vec![gpu_sample(0), gpu_sample(1)]).unwrap();
    let delivery = drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap();
    assert_eq!(delivery, Delivery { delivered: 750, parked: 0, gpu_stats: 2, system_stats: 0 });
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.delivered, counters.pending), (750, 750, 0));
    let counts = ["inspections", "items", "anomaly_maps", "frame_qa_logs", "gpu_stats", "provenances"]
        .map(|table| count(&server, table));
    assert_eq!(counts, [750, 750, 750, 750, 2, 1]);
    let batches =
        server.lines("SELECT sum(unit_count), sum(row_count), min(first_seq), max(last_seq) FROM loupe.ingest_batches");
    assert_eq!(batches, ["750|3000|1|750"]);
    let rows = server.lines(
        "SELECT i.code, i.reasons, t.similarity, t.tier, t.top_k IS NULL, q.phash, a.map_max
        FROM loupe.inspections i JOIN loupe.items t ON t.inspection_id = i.id
        JOIN loupe.frame_qa_logs q ON q.inspection_id = i.id JOIN loupe.anomaly_maps a ON a.inspection_id = i.id
        ORDER BY i.captured_at LIMIT 2",
    );
    assert_eq!(
        rows,
        [
            "INS-20261121-0001|{match.margin_small,frame.blurred}|0.1|l2|f|-1|1e-07",
            "INS-20261121-0002|{}|0.101|l2|f|-2|1e-07",
        ]
    );
    for (sent, stored) in ledger
        .recent(750)
        .unwrap()
        .iter()
        .rev()
        .zip(server.lines("SELECT similarity FROM loupe.items ORDER BY captured_at"))
    {
        assert_eq!(sent.items[0].similarity.unwrap().to_bits(), stored.parse::<f32>().unwrap().to_bits());
    }
    let before = contents(&server);
    assert_eq!(drain(ledger, &as_site(&dsn), |_| ()).unwrap(), Delivery::default());
    assert_eq!(contents(&server), before);
}

#[test]
fn a_batch_whose_commit_reply_was_lost_is_sent_again_without_effect() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..40 {
        ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    }
    ledger.close().unwrap();
    // The device as it is when central has committed and the reply never came: also a restored backup.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(database_path(dir.path()), database_path(copy.path())).unwrap();
    drain(open(dir.path()), &as_site(&dsn), |_| ()).unwrap();
    let before = contents(&server);
    let ledger = open(copy.path());
    assert_eq!(drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap().delivered, 40);
    assert_eq!(contents(&server), before);
    assert_eq!(ledger.counters().unwrap().pending, 0);
}

#[test]
fn a_site_can_neither_read_nor_write_another() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let provision = |code: &'static str| {
        let site = block_on(async { Central::connect(&dsn).await?.provision_site(code, "Plant", None).await }).unwrap();
        (site.site_id, site.dsn)
    };
    let (site_a, login_a) = provision("plant-a");
    let (site_b, login_b) = provision("plant-b");
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, login) in [(&dir_a, &login_a), (&dir_b, &login_b)] {
        let ledger = open(dir.path());
        ledger.commit(samples::inspection(1), Vec::new()).unwrap();
        let config = UplinkConfig { dsn: login.clone(), site_id: None };
        assert_eq!(drain(ledger, &config, |_| ()).unwrap().delivered, 1);
    }
    let sites = server.lines("SELECT site_id FROM loupe.inspections ORDER BY site_id");
    assert_eq!(sites, [site_a.to_string(), site_b.to_string()]);

    let as_a = |sql: &str| {
        let asked = format!("SET loupe.site_id = '{site_b}'; {sql}");
        (psql(&login_a, sql), psql(&login_a, &asked))
    };
    let (plain, asked) = as_a("SELECT count(*) FROM loupe.inspections");
    assert_eq!(plain.unwrap(), "1");
    assert_eq!(asked.unwrap(), "SET\n0", "asking for another site shows rows");
    let (plain, asked) = as_a(&format!(
        "INSERT INTO loupe.ingest_batches (site_id, device_id, enqueued_at, id, epoch, first_seq, last_seq, unit_count,
            row_count, committed_total, delivered_total, dropped_samples, sha256)
         VALUES ('{site_b}', '{site_b}', now(), '{site_b}', 1, 1, 1, 1, 1, 1, 0, 0, sha256('x'))"
    ));
    for refused in [plain, asked] {
        assert!(refused.unwrap_err().contains("row-level security"));
    }
    for sql in ["SELECT code FROM loupe.inspections", "DELETE FROM loupe.items", "SELECT * FROM loupe.items_default"] {
        assert!(psql(&login_a, sql).unwrap_err().contains("permission denied"), "{sql}");
    }
    assert_eq!(psql(&login_a, "SELECT code FROM loupe.sites").unwrap(), "plant-a");

    // A ledger that reports to A must not be sent to B, nor by B's login.
    let other = UplinkConfig { dsn: login_b, site_id: None };
    let error = drain(open(dir_a.path()), &other, |_| ()).unwrap_err().to_string();
    assert!(error.contains("reports to site"), "{error}");
    let wrong = UplinkConfig { dsn: login_a, site_id: Some(site_b) };
    let error = drain(open(dir_a.path()), &wrong, |_| ()).unwrap_err().to_string();
    assert!(error.contains("may not write site"), "{error}");
}

fn psql(login: &Secret, sql: &str) -> Result<String, String> {
    let output = Command::new("psql").args(["-X", "-A", "-t", login.expose(), "-c", sql]).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn a_poisoned_row_is_parked_and_the_rest_arrives() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..60 {
        let mut inspection = samples::inspection(number);
        if number == 17 || number == 41 {
            // SQLite stores it, PostgreSQL's text cannot.
            inspection.source = "nul\0byte".to_owned();
        }
        ledger.commit(inspection, Vec::new()).unwrap();
    }
    let delivery = drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap();
    assert_eq!((delivery.delivered, delivery.parked), (58, 2));
    assert_eq!(count(&server, "inspections"), 58);
    let status = LedgerReader::open(dir.path()).unwrap().outbox_status().unwrap();
    assert_eq!((status.counters.pending, status.counters.parked), (2, 2));
    assert_eq!(status.parked_units.iter().map(|unit| unit.seq).collect::<Vec<_>>(), [18, 42]);
    assert!(status.parked_units[0].last_error.contains("0x00"), "{status:?}");
    ledger.commit(samples::inspection(60), Vec::new()).unwrap();
    assert_eq!(drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap().delivered, 1);
    assert_eq!(ledger.unpark().unwrap(), 2);
    assert_eq!(drain(ledger, &as_site(&dsn), |_| ()).unwrap().parked, 2);
    assert!(LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap().holds());
}

#[test]
fn rows_of_a_coming_month_leave_default_when_it_is_made() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let clock = Clock::system();
    let mut early = samples::inspection(1);
    early.captured_at = Timestamp::from_micros(clock.now().as_micros() + 150 * 86_400 * 1_000_000);
    early.decided_at = early.captured_at;
    ledger.commit(early, Vec::new()).unwrap();
    drain(ledger, &as_site(&dsn), |_| ()).unwrap();
    assert_eq!(count(&server, "inspections_default"), 1);
    let before = server.lines("SELECT * FROM loupe.inspections");
    server.lines("SELECT loupe.ensure_partitions(6)");
    assert_eq!(count(&server, "inspections_default"), 0);
    assert_eq!(server.lines("SELECT * FROM loupe.inspections"), before);
}

#[test]
fn a_refused_or_unprepared_database_is_named_without_the_password() {
    let Some(server) = Postgres::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let fail = |dsn: Secret| drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap_err().to_string();
    let error = fail(Secret::new(server.dsn()));
    assert!(error.contains("loupe db migrate"), "{error}");
    let error = fail(Secret::new(server.dsn_of("nobody", "hunter2")));
    assert!(error.contains(&format!("127.0.0.1:{}/central", server.port())) && !error.contains("hunter2"), "{error}");
    server.stop();
    let error = fail(Secret::new(server.dsn_of("nobody", "hunter2")));
    assert!(error.contains(&format!("127.0.0.1:{}/central", server.port())) && !error.contains("hunter2"), "{error}");
    assert!(error.contains("refused"), "{error}");
    server.restart();
}

#[test]
fn the_uplink_waits_out_a_server_that_is_down_and_stops_on_request() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    server.stop();
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.commit(samples::inspection(1), Vec::new()).unwrap();
    let shutdown = Shutdown::new();
    let uplink = Uplink::spawn(ledger.clone(), as_site(&dsn), Clock::system(), shutdown.clone()).unwrap();
    until(|| matches!(uplink.status().get(), UplinkState::Waiting { .. }));
    server.restart();
    until(|| ledger.counters().unwrap().pending == 0);
    ledger.commit(samples::inspection(2), Vec::new()).unwrap();
    until(|| ledger.counters().unwrap().pending == 0);
    assert_eq!(count(&server, "inspections"), 2);
    let stopwatch = Stopwatch::start();
    shutdown.request();
    uplink.join();
    assert!(stopwatch.ms() < 5_000.0);
}

fn until(mut holds: impl FnMut() -> bool) {
    let stopwatch = Stopwatch::start();
    while !holds() {
        assert!(stopwatch.elapsed().as_secs() < 60, "does not happen");
        std::thread::yield_now();
    }
}

const CHILD_STATE: &str = "LOUPE_TEST_DRAIN_STATE";
const CHILD_DSN: &str = "LOUPE_TEST_DRAIN_DSN";

#[test]
fn child_drains_one_unit_a_batch() {
    let (Ok(state), Ok(dsn)) = (std::env::var(CHILD_STATE), std::env::var(CHILD_DSN)) else { return };
    let ledger = open(Path::new(&state));
    block_on(async {
        let mut courier = Courier::connect(ledger, &Secret::new(dsn), Some(SITE)).await?;
        courier.limit_units(1);
        courier.deliver_all(|done| println!("delivered {}", done.delivered)).await
    })
    .unwrap();
}

#[test]
fn kill_between_central_commit_and_acknowledgement_delivers_once() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    migrate(&dsn);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..300 {
        ledger.submit(samples::inspection(number), Vec::new()).unwrap();
    }
    ledger.close().unwrap();
    for kill_after in [1, 7, 30] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_drains_one_unit_a_batch", "--exact", "--nocapture"])
            .env(CHILD_STATE, dir.path())
            .env(CHILD_DSN, dsn.expose())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let seen = lines.filter(|line| line.contains("delivered")).take(kill_after).count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, kill_after);
        let counters = LedgerReader::open(dir.path()).unwrap().counters().unwrap();
        assert!(counters.delivered >= kill_after as u64 && counters.pending > 0, "{counters:?}");
    }
    let ledger = open(dir.path());
    drain(ledger.clone(), &as_site(&dsn), |_| ()).unwrap();
    assert_eq!(ledger.counters().unwrap().delivered, 300);
    let sent: Vec<String> =
        ledger.recent(300).unwrap().iter().rev().map(|inspection| inspection.id.to_string()).collect();
    assert_eq!(server.lines("SELECT id FROM loupe.inspections ORDER BY captured_at"), sent);
    assert_eq!(count(&server, "items"), 300);
    assert!(LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap().holds());
}
