//! The uplink before networks and servers that fail: nothing is lost, nothing is there twice, and it goes on by itself.

mod support;

use std::time::Duration;

use loupe::clock::{Clock, Stopwatch};
use loupe::shutdown::Shutdown;
use loupe::uplink::{Uplink, UplinkError, UplinkState};
use support::central::{SITE, conserved, count, deliver, filled, provision, start, to_site, until};
use support::proxy::{Network, Proxy};
use support::samples;

#[test]
fn lost_commit_replies_change_nothing() {
    let Some(server) = start() else { return };
    let proxy = Proxy::start(server.port());
    let config = to_site(proxy.dsn_of("postgres", "any"));
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 120);
    // The reply to the first batch, to one in the middle, and to the last.
    for lost in [1, 2, 4] {
        proxy.set(Network::LosesCommitReply(lost));
        let before = count(&server, "inspections");
        let error = deliver(&ledger, &config, |courier| courier.limit_units(10)).unwrap_err();
        assert_eq!(proxy.network(), Network::Works, "no reply was lost: {error}");
        assert!(count(&server, "inspections") > before || lost == 1, "the batch was not committed");
        let counters = ledger.counters().unwrap();
        assert!(usize::try_from(counters.delivered).unwrap() < count(&server, "inspections"), "{counters:?}");
    }
    deliver(&ledger, &config, |courier| courier.limit_units(10)).unwrap();
    conserved(&server, &ledger);
    // A batch that is sent again in the same company is one row here.
    assert_eq!(server.lines("SELECT sum(unit_count) FROM loupe.ingest_batches"), ["120"]);
}

#[test]
fn a_half_open_connection_times_out_and_is_retried() {
    let Some(server) = start() else { return };
    let proxy = Proxy::start(server.port());
    let config = to_site(proxy.dsn_of("postgres", "any"));
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 50);
    let error = deliver(&ledger, &config, |courier| {
        courier.limit_batch_time(Duration::from_millis(300));
        proxy.set(Network::Silent);
    });
    assert!(matches!(error, Err(UplinkError::Timeout { .. })), "{error:?}");
    // A server that accepts and says nothing is given up too.
    let quick = to_site(format!("{}?connect_timeout=1", proxy.dsn_of("postgres", "any")));
    let stopwatch = Stopwatch::start();
    let error = deliver(&ledger, &quick, |_| ());
    assert!(matches!(error, Err(UplinkError::Timeout { .. })), "{error:?}");
    assert!(stopwatch.elapsed().as_secs() < 8);
    proxy.set(Network::Works);
    deliver(&ledger, &config, |_| ()).unwrap();
    conserved(&server, &ledger);
}

#[test]
fn a_cut_network_is_waited_out_by_the_running_uplink() {
    let Some(server) = start() else { return };
    let proxy = Proxy::start(server.port());
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 400);
    proxy.set(Network::Slow(Duration::from_millis(2)));
    let shutdown = Shutdown::new();
    let config = to_site(proxy.dsn_of("postgres", "any"));
    let uplink = Uplink::spawn(ledger.clone(), config, Clock::system(), shutdown.clone()).unwrap();
    until("a connection", || matches!(uplink.status().get(), UplinkState::Connected { .. }));
    proxy.set(Network::Cut);
    ledger.commit(samples::inspection(400), Vec::new()).unwrap();
    until("the uplink waits", || matches!(uplink.status().get(), UplinkState::Waiting { .. }));
    proxy.set(Network::Works);
    until("all is delivered", || ledger.counters().unwrap().pending == 0);
    shutdown.request();
    uplink.join();
    conserved(&server, &ledger);
}

#[test]
fn a_server_killed_in_the_middle_of_a_batch_gets_it_again() {
    let Some(server) = start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 300);
    let config = to_site(server.dsn());
    // A lock holds the batch in the middle of its statements.
    let blocker = server.hold("LOCK TABLE loupe.frame_qa_logs IN ACCESS EXCLUSIVE MODE");
    std::thread::scope(|scope| {
        let delivering = scope.spawn(|| deliver(&ledger, &config, |_| ()));
        until("the batch waits for the lock", || {
            server
                .query("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%'")
                == "1"
        });
        server.stop();
        assert!(delivering.join().unwrap().is_err());
    });
    drop(blocker);
    assert_eq!(ledger.counters().unwrap().delivered, 0);
    server.restart();
    assert_eq!(count(&server, "inspections"), 0, "half a batch was committed");
    deliver(&ledger, &config, |_| ()).unwrap();
    conserved(&server, &ledger);
}

#[test]
fn a_read_only_a_full_and_a_forbidding_server_are_named_and_waited_out() {
    let Some(server) = start() else { return };
    let (site_id, role, password) = provision(&server, "plant-a");
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 30);
    let config = to_site(server.dsn_of(&role, &password));
    let config = loupe::uplink::UplinkConfig { site_id: Some(site_id), ..config };
    let refused = |expected: &str| {
        let error = deliver(&ledger, &config, |_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.is_about_the_rows() && !error.is_configuration(), "{error}");
        assert_eq!(ledger.counters().unwrap().parked, 0, "{error}");
    };
    server.query("ALTER SYSTEM SET default_transaction_read_only = on");
    server.query("SELECT pg_reload_conf()");
    until("it is read-only", || server.query("SHOW default_transaction_read_only") == "on");
    refused("read-only");
    server.query("ALTER SYSTEM RESET default_transaction_read_only");
    server.query("SELECT pg_reload_conf()");
    until("it is writable", || server.query("SHOW default_transaction_read_only") == "off");

    server.query(&format!("ALTER ROLE \"{role}\" CONNECTION LIMIT 0"));
    refused("too many connections");
    server.query(&format!("ALTER ROLE \"{role}\" CONNECTION LIMIT -1"));

    server.query("REVOKE INSERT ON loupe.items FROM loupe_device");
    refused("permission denied");
    server.query("GRANT INSERT ON loupe.items TO loupe_device");

    server.query("ALTER TABLE loupe.frame_qa_logs RENAME TO away");
    refused("does not exist");
    server.query("ALTER TABLE loupe.away RENAME TO frame_qa_logs");
    assert_eq!(count(&server, "inspections"), 0);
    deliver(&ledger, &config, |_| ()).unwrap();
    conserved(&server, &ledger);
    assert_ne!(site_id, SITE);
}
