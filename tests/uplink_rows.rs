//! What travels besides the inspections, rows that central refuses, and clocks that jump.

mod support;

use std::time::Duration;

use loupe::clock::Clock;
use loupe::ledger::{Ledger, database_path};
use loupe::types::{Reason, Timestamp};
use support::central::{conserved, count, deliver, filled, open, proved, start, to_site};
use support::samples;

const MINUTE_US: i64 = 60_000_000;

fn at(minute: i64) -> Timestamp {
    Timestamp::from_micros(samples::NOON_US + minute * MINUTE_US)
}

/// A ledger whose clock is in the first second of `minute`.
fn open_at(dir: &std::path::Path, minute: i64) -> Ledger {
    let clock = Clock::system();
    clock.shift(at(minute).as_micros() - clock.now().as_micros());
    let ledger = Ledger::open(dir, clock).unwrap();
    samples::provenance(&ledger);
    ledger
}

fn refuse(dir: &std::path::Path, minute: i64, count: u64) {
    let ledger = open_at(dir, minute);
    ledger.refused("line-1", Reason::FrameStale, count).unwrap();
    ledger.close().unwrap();
}

#[test]
fn refusals_arrive_once_and_add_up_whatever_the_clock_does() {
    let Some(server) = start() else { return };
    let config = to_site(server.dsn());
    let dir = tempfile::tempdir().unwrap();
    let drain_at = |minute: i64| {
        let ledger = open_at(dir.path(), minute);
        deliver(&ledger, &config, |_| ()).unwrap();
        proved(&ledger);
        let counters = ledger.counters().unwrap();
        ledger.close().unwrap();
        counters
    };
    let rows = || server.lines("SELECT version, refused FROM loupe.refusals ORDER BY minute, version");
    refuse(dir.path(), 0, 3);
    refuse(dir.path(), 0, 4);
    assert_eq!(drain_at(0).pending, 0);
    assert!(rows().is_empty(), "a minute that lasts was reported");
    assert_eq!(drain_at(1).refused, 7);
    assert_eq!(rows(), ["1|7"]);
    assert_eq!(drain_at(2).refusal_reports, 1);
    assert_eq!(rows(), ["1|7"]);
    // The clock goes back into a minute that was reported, and then far ahead.
    refuse(dir.path(), 0, 5);
    refuse(dir.path(), 500_000, 2);
    let counters = drain_at(1);
    assert_eq!(rows(), ["1|7", "2|5", "1|2"]);
    assert_eq!((counters.refused, counters.captured, counters.refusal_reports, counters.pending), (14, 14, 3, 0));
}

#[test]
fn a_restored_backup_reports_no_refusal_twice() {
    let Some(server) = start() else { return };
    let config = to_site(server.dsn());
    let dir = tempfile::tempdir().unwrap();
    refuse(dir.path(), 0, 6);
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(database_path(dir.path()), database_path(copy.path())).unwrap();
    for dir in [&dir, &copy] {
        let ledger = open_at(dir.path(), 1);
        deliver(&ledger, &config, |_| ()).unwrap();
        proved(&ledger);
    }
    assert_eq!(server.lines("SELECT sum(refused) FROM loupe.refusals"), ["6"]);
}

#[test]
fn artifacts_are_described_and_their_bytes_stay() {
    let Some(server) = start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let committed = ledger.commit(samples::inspection(1), vec![samples::thumbnail(20_000); 2]).unwrap();
    deliver(&ledger, &to_site(server.dsn()), |_| ()).unwrap();
    let rows = server.lines(
        "SELECT inspection_id, kind, relative_path, content_type, size_bytes, encode(sha256, 'hex'), width_px, height_px
         FROM loupe.artifacts ORDER BY relative_path",
    );
    let mut expected: Vec<String> = committed
        .artifacts
        .iter()
        .map(|a| format!("{}|thumbnail|{}|image/jpeg|20000|{}|256|144", committed.id, a.relative_path, a.sha256))
        .collect();
    expected.sort_by(|a, b| a.split('|').nth(2).cmp(&b.split('|').nth(2)));
    assert_eq!(rows, expected);
    assert_eq!(server.lines("SELECT row_count FROM loupe.ingest_batches"), ["6"]);
    conserved(&server, &ledger);
}

#[test]
fn poisoned_rows_at_every_edge_of_the_batches_are_parked_and_the_rest_arrives() {
    let Some(server) = start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    // Batches of ten: the first and last of a batch, neighbours across an edge, a whole batch, the last of all.
    let poisoned = [0, 9, 10, 25, 29, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 64];
    for number in 0..65 {
        let mut inspection = samples::inspection(number);
        if poisoned.contains(&number) {
            inspection.source = format!("nul\0byte {number}");
        }
        ledger.submit(inspection, Vec::new()).unwrap();
    }
    ledger.unpark().unwrap();
    // Two that cannot even be read: an item that went missing, and a blob where text was.
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    let missing = "DELETE FROM items WHERE inspection_id = (SELECT key_id FROM outbox WHERE seq = 21)";
    assert_eq!(connection.execute(missing, []).unwrap(), 1);
    let config = to_site(server.dsn());
    let delivery = deliver(&ledger, &config, |courier| courier.limit_units(10)).unwrap();
    assert_eq!((delivery.delivered, delivery.parked), (65 - 18, 18));
    assert_eq!(count(&server, "inspections"), 65 - 18);
    let status = ledger.outbox_status().unwrap();
    assert_eq!((status.counters.pending, status.counters.parked), (18, 18));
    assert!(status.parked_units[0].last_error.contains("0x00"), "{status:?}");
    assert!(status.parked_units.iter().any(|unit| unit.last_error.contains("rows instead of")), "{status:?}");
    // New ones are not held up, and those parked are offered again when asked for.
    ledger.commit(samples::inspection(100), Vec::new()).unwrap();
    assert_eq!(deliver(&ledger, &config, |_| ()).unwrap().delivered, 1);
    assert_eq!(ledger.unpark().unwrap(), 18);
    assert_eq!(deliver(&ledger, &config, |_| ()).unwrap().parked, 18);
}

#[test]
fn clocks_that_jump_change_neither_order_nor_keys() {
    let Some(server) = start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let day = 24 * 60;
    // Back by a year, ahead by ten, before 1970 and far beyond every partition.
    let minutes = [0, 1, -365 * day, 3_650 * day, -30_000_000, 2_000_000_000, 2];
    for (number, minute) in (0_u64..).zip(minutes) {
        let ledger = open_at(dir.path(), minute);
        let mut inspection = samples::inspection(number);
        inspection.captured_at = at(minute);
        inspection.decided_at = at(minute);
        ledger.commit(inspection, Vec::new()).unwrap();
        ledger.close().unwrap();
    }
    let ledger = open_at(dir.path(), 3);
    deliver(&ledger, &to_site(server.dsn()), |courier| courier.limit_units(2)).unwrap();
    conserved(&server, &ledger);
    let sent: Vec<String> =
        ledger.recent(10).unwrap().iter().rev().map(|i| i.captured_at.as_micros().to_string()).collect();
    let stored = server.lines(
        "SELECT (extract(epoch FROM captured_at) * 1000000)::numeric(30, 0) FROM loupe.inspections
         ORDER BY frame_seq",
    );
    assert_eq!(stored, sent);
    let order = server.lines("SELECT first_seq, last_seq FROM loupe.ingest_batches ORDER BY first_seq");
    assert_eq!(order, ["1|2", "3|4", "5|6", "7|7"]);
}

#[test]
fn units_of_an_older_ledger_get_their_artifacts_counted() {
    let folder = support::root().join("migrations/ledger");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let version = |path: &std::path::Path| -> u32 {
        let name = path.file_name().unwrap().to_str().unwrap();
        name[1..].split_once("__").unwrap().0.parse().unwrap()
    };
    files.sort_by_key(|path| version(path));
    let connection = rusqlite::Connection::open_in_memory().unwrap();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    for path in files.iter().filter(|path| version(path) < 4) {
        connection.execute_batch(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
    connection
        .execute_batch(
            "INSERT INTO artifacts SELECT 1, randomblob(16), x'0A0000000000000000000000000000FF', 'thumbnail', value,
                 'image/jpeg', 1, randomblob(32), 1, 1 FROM json_each('[\"a\", \"b\"]');
             INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at) VALUES
                 ('inspections', 1, x'0A0000000000000000000000000000FF', 4, 'pending', 0, 1),
                 ('inspections', 1, x'0B0000000000000000000000000000FF', 3, 'parked', 1, 1),
                 ('reviews', 1, x'0A0000000000000000000000000000FF', 1, 'pending', 0, 1);
             INSERT INTO refusals VALUES (60000000, 'line-1', 'frame.stale', 9);",
        )
        .unwrap();
    let fourth = files.iter().find(|path| version(path) == 4).unwrap();
    connection.execute_batch(&std::fs::read_to_string(fourth).unwrap()).unwrap();
    let counts: Vec<i64> = connection
        .prepare("SELECT row_count FROM outbox ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(counts, [6, 3, 1]);
    let due: i64 = connection.query_row("SELECT sum(refused - reported) FROM refusals", [], |row| row.get(0)).unwrap();
    assert_eq!(due, 9);
}

#[test]
fn a_slow_network_delivers_all_the_same() {
    let Some(server) = start() else { return };
    let proxy = support::proxy::Proxy::start(server.port());
    proxy.set(support::proxy::Network::Slow(Duration::from_millis(20)));
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 40);
    deliver(&ledger, &to_site(proxy.dsn_of("postgres", "any")), |courier| courier.limit_units(10)).unwrap();
    conserved(&server, &ledger);
}
