//! The central side fails: killed, restarted, read-only, full, out of connections, cut off, half open, silent.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::Ledger;
use loupe::shutdown::Shutdown;
use loupe::types::Digest;
use loupe::uplink::{Secret, Uplink, UplinkConfig, drain};

use crate::driver::Ack;
use crate::oracle::{Subject, Verdict, migrate};
use crate::support::postgres::Postgres;
use crate::support::proxy::{Network, Proxy};
use crate::support::samples;
use crate::{cycles, faultfs, scaled, seed};

/// Commit `count` inspections and keep the promises.
fn commit(subject: &mut Subject<'_>, ledger: &Ledger, count: u64) {
    let now = Clock::system().now();
    let pending: Vec<_> = (0..count)
        .map(|number| {
            let mut inspection = samples::inspection(number);
            inspection.captured_at = now;
            inspection.decided_at = now;
            ledger.submit(inspection, Vec::new()).unwrap()
        })
        .collect();
    for pending in pending {
        let inspection = pending.wait().unwrap();
        let record = Digest::of(serde_json::to_string(&inspection).unwrap().as_bytes());
        subject.acks.push(Ack::Inspection { id: inspection.id.0, code: inspection.code, record });
    }
}

/// A thread that delivers over and over, as the uplink does without its pauses; counts its failures.
struct Deliverer {
    stop: Arc<AtomicBool>,
    failures: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Deliverer {
    fn start(ledger: &Ledger, config: UplinkConfig) -> Self {
        let (stop, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, failed, ledger) = (Arc::clone(&stop), Arc::clone(&failures), ledger.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if drain(ledger.clone(), &config, |_| ()).is_err() {
                    failed.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
        Self { stop, failures, thread }
    }

    fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Wait until deliveries have failed `count` times more.
    fn fails(&self, count: u64) {
        let goal = self.failures() + count;
        until("no delivery fails", || self.failures() >= goal);
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !holds() {
        assert!(watch.elapsed().as_secs() < 90, "{what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn report(what: &str, verdict: Verdict) {
    println!(
        "{what}: {} promises, {} inspections, {} rows, 0 lost, 0 doubled",
        verdict.promised, verdict.inspections, verdict.rows
    );
}

fn judge(subject: &Subject<'_>, what: &str) {
    match subject.judge() {
        Ok(verdict) => report(what, verdict),
        Err(fault) => panic!("{what}: {fault}"),
    }
}

/// SIGKILL to every process of the server, so that nothing is tidied up.
fn kill_server(server: &Postgres) {
    let data = server.query("SHOW data_directory");
    let postmaster: i32 = std::fs::read_to_string(Path::new(&data).join("postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // A stopped postmaster forks no more.
    drop(Command::new("kill").args(["-STOP", &postmaster.to_string()]).status());
    let mut all = vec![postmaster];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).and_then(|pid| pid.parse().ok());
        if parent == Some(postmaster) {
            all.extend(entry.file_name().to_string_lossy().parse::<i32>());
        }
    }
    for pid in &all {
        drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
    }
    // A zombie has no command line any more.
    let lives = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    until("the server does not die", || !all.iter().any(lives));
    // Where nobody collects the dead, their numbers look alive to a new server.
    drop(std::fs::remove_file(Path::new(&data).join("postmaster.pid")));
    let socket = format!(".s.PGSQL.{}.lock", server.port());
    drop(std::fs::remove_file(Path::new(&data).with_file_name(socket)));
}

#[test]
fn the_server_killed_in_the_middle_of_batches_gets_everything_once() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (seed, kills) = (seed(), scaled(3, 40));
    println!("seed {seed}, {kills} kills of the server");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "killed");
    let ledger = subject.open();
    let deliverer = Deliverer::start(&ledger, subject.config());
    for _ in 0..kills {
        commit(&mut subject, &ledger, 800);
        let before = ledger.counters().unwrap().delivered;
        until("nothing is delivered", || ledger.counters().unwrap().delivered > before);
        std::thread::park_timeout(Duration::from_micros(rng.u64(0..60_000)));
        kill_server(&server);
        deliverer.fails(1);
        server.restart();
    }
    deliverer.end();
    ledger.close().unwrap();
    judge(&subject, &format!("server killed {kills} times"));
}

#[test]
fn a_server_that_refuses_for_a_while_gets_everything_once() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "refusing");
    let role = subject.site.role_name.clone();
    let ledger = subject.open();
    let deliverer = Deliverer::start(&ledger, subject.config());
    let leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'loupe%'";
    let faults = [
        (
            "read-only",
            "ALTER DATABASE central SET default_transaction_read_only = on".to_owned(),
            "ALTER DATABASE central RESET default_transaction_read_only".to_owned(),
        ),
        (
            "too many connections",
            format!("ALTER ROLE \"{role}\" CONNECTION LIMIT 0"),
            format!("ALTER ROLE \"{role}\" CONNECTION LIMIT -1"),
        ),
        ("login taken away", format!("ALTER ROLE \"{role}\" NOLOGIN"), format!("ALTER ROLE \"{role}\" LOGIN")),
        (
            "grant taken away",
            "REVOKE INSERT ON loupe.items FROM loupe_device".to_owned(),
            "GRANT INSERT ON loupe.items TO loupe_device".to_owned(),
        ),
    ];
    for (what, fault, mend) in faults {
        commit(&mut subject, &ledger, 300);
        server.query(&fault);
        server.query(leave);
        commit(&mut subject, &ledger, 300);
        deliverer.fails(2);
        // A superuser's own session is read-only as well.
        server.query(&format!("BEGIN READ WRITE; {mend}; COMMIT"));
        until(what, || ledger.counters().unwrap().pending == 0);
    }
    // A lock that somebody holds over a delivery, and a restart.
    commit(&mut subject, &ledger, 300);
    server.stop();
    deliverer.fails(1);
    server.restart();
    deliverer.end();
    let parked = ledger.counters().unwrap().parked;
    assert_eq!(parked, 0, "a server that refuses for a while must not have units set aside");
    ledger.close().unwrap();
    judge(&subject, "read-only, too many connections, no login, no grant, restart");
}

#[test]
fn a_server_out_of_disk_gets_everything_once() {
    let Some(server) = Postgres::start() else { return };
    let Some(library) = faultfs::library() else { return };
    migrate(&server);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "full");
    // The server's own files fail while the switch is there: tables first, then the write-ahead log, which ends it.
    let data = server.query("SHOW data_directory");
    // A server that ended stays ended: one that is coming back by itself cannot be started.
    server.configure("restart_after_crash = off");
    let rounds = scaled(1, 10);
    for (matching, what) in [("/base/", "tables"), ("/pg_wal/", "the write-ahead log")] {
        let switch = Path::new(&data).with_file_name("full");
        server.stop();
        let environment: [(&str, &Path); 5] = [
            ("LD_PRELOAD", &library),
            ("FAULTFS_ROOT", Path::new(&data)),
            ("FAULTFS_FAIL", Path::new("write,ENOSPC,1,0")),
            ("FAULTFS_MATCH", Path::new(matching)),
            ("FAULTFS_SWITCH", &switch),
        ];
        server.restart_in(&environment);
        for _ in 0..rounds {
            let ledger = subject.open();
            let deliverer = Deliverer::start(&ledger, subject.config());
            std::fs::write(&switch, "").unwrap();
            commit(&mut subject, &ledger, 2_000);
            deliverer.fails(2);
            std::fs::remove_file(&switch).unwrap();
            if !server.answers() {
                until("has not ended", || !Path::new(&data).join("postmaster.pid").exists());
                server.restart_in(&environment);
            }
            until("does not deliver again", || ledger.counters().unwrap().pending == 0);
            deliverer.end();
            assert_eq!(ledger.counters().unwrap().parked, 0, "a full disk is not the rows' fault");
            ledger.close().unwrap();
        }
        judge(&subject, &format!("out of disk for {what}, {rounds} times"));
    }
}

/// The site's login through the proxy.
fn through(proxy: &Proxy, subject: &Subject<'_>) -> UplinkConfig {
    let dsn = subject.dsn().replace(&format!("port={}", subject.server.port()), &format!("port={}", proxy.port()));
    assert!(dsn.contains(&proxy.port().to_string()), "the DSN names no port");
    UplinkConfig { dsn: Secret::new(dsn), site_id: None }
}

#[test]
fn a_lost_reply_to_commit_doubles_nothing() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "silent");
    let proxy = Proxy::start(server.port());
    let config = through(&proxy, &subject);
    let ledger = subject.open();
    let deliverer = Deliverer::start(&ledger, config);
    let lost = u64::try_from(scaled(5, 200)).unwrap();
    for number in 1..=lost {
        proxy.set(Network::LosesCommitReply(1));
        commit(&mut subject, &ledger, 40);
        until("no reply is lost", || proxy.commit_replies_lost() >= number);
        proxy.set(Network::Works);
        if number % 2 == 0 {
            until("does not deliver again", || ledger.counters().unwrap().pending == 0);
        }
    }
    deliverer.end();
    ledger.close().unwrap();
    judge(&subject, &format!("{} replies to COMMIT lost", proxy.commit_replies_lost()));
}

#[test]
fn a_network_that_is_cut_and_comes_back_delivers_everything_once() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let seed = seed();
    let cuts = scaled(6, 200);
    println!("seed {seed}, {cuts} cuts");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "cut");
    let proxy = Proxy::start(server.port());
    let ledger = subject.open();
    let deliverer = Deliverer::start(&ledger, through(&proxy, &subject));
    for number in 0..cuts {
        commit(&mut subject, &ledger, 300);
        std::thread::park_timeout(Duration::from_micros(rng.u64(0..30_000)));
        // Half open for a moment, then the connections break; or they break at once and nobody answers.
        proxy.set(if number % 2 == 0 { Network::Silent } else { Network::Cut });
        std::thread::park_timeout(Duration::from_millis(rng.u64(1..40)));
        proxy.cut();
        proxy.set(Network::Works);
        proxy.cut();
    }
    until("does not deliver again", || ledger.counters().unwrap().pending == 0);
    deliverer.end();
    ledger.close().unwrap();
    judge(&subject, &format!("network cut {cuts} times"));
}

/// The uplink's own patience is a minute, so this is for the long run.
#[test]
fn a_network_that_stays_half_open_is_given_up_and_tried_again() {
    if cycles() <= crate::CYCLES {
        println!("skipped: takes two minutes; set LOUPE_FAULT_CYCLES");
        return;
    }
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "half-open");
    let proxy = Proxy::start(server.port());
    let ledger = subject.open();
    let stop = Shutdown::new();
    let uplink = Uplink::spawn(ledger.clone(), through(&proxy, &subject), Clock::system(), stop.clone()).unwrap();
    commit(&mut subject, &ledger, 100);
    until("nothing is delivered", || ledger.counters().unwrap().pending == 0);
    proxy.set(Network::Silent);
    commit(&mut subject, &ledger, 100);
    let watch = Stopwatch::start();
    let waits = || !matches!(uplink.status().get(), loupe::uplink::UplinkState::Connected { .. });
    until("a silent connection is never given up", waits);
    println!("a silent connection was given up after {:.0} s", watch.elapsed().as_secs_f32());
    // The connections of the first tries stay silent; a new one must not wait for them, nor for ever for itself.
    let tries = Stopwatch::start();
    until("a silent connect is never given up", || tries.elapsed().as_secs() > 45);
    proxy.set(Network::Works);
    until("does not deliver again", || ledger.counters().unwrap().pending == 0);
    stop.request();
    uplink.join();
    ledger.close().unwrap();
    judge(&subject, "network half open");
}
