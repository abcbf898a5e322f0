//! SIGKILL at every failpoint in turn, and at random times.
//!
//! A round is a fresh device at a fresh site of one central database; it is killed over and over, started again each
//! time, and judged at the end.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::failpoint;

use crate::driver::{Ack, Drive, parse};
use crate::oracle::{Subject, Verdict, migrate};
use crate::support::postgres::Postgres;
use crate::{cycles, seed};

/// Cycles of one device's life.
const CYCLES_PER_ROUND: usize = 12;
/// Latest random kill after the start, milliseconds; a driver left alone takes about as long.
const KILL_MS_MAX: u64 = 600;
/// A driver that takes longer hangs.
const HANG_S: u64 = 60;

/// Passed only while the ledger is made: each needs a device of its own.
const FIRST_START: &[&str] = &[
    "artifact.dir_made",
    "ledger.open.created",
    "ledger.open.identified",
    "ledger.migrate.before",
    "ledger.migrate.after",
];

/// How a cycle ends.
#[derive(Debug, Clone, PartialEq)]
enum Kill {
    At { name: &'static str, plan: String },
    After(Duration),
}

fn at(name: &'static str, nth: u64) -> Kill {
    let plan = match name {
        // Passed only after a failure.
        "ledger.rollback.before" => format!("ledger.commit.before=error@{};{name}=kill", nth + 3),
        "uplink.reconnect" => format!("uplink.encode.after=error@{nth};{name}=kill"),
        // Passed once a step, and a test makes one step.
        _ if name.starts_with("central.") => format!("{name}=kill"),
        _ => format!("{name}=kill@{nth}"),
    };
    Kill::At { name, plan }
}

/// Whether the driver can come to a place; the others are the daemon's own (see `daemon.rs`).
fn is_driven(name: &str) -> bool {
    // Those of models fail in tests/recovery.rs, a restore is killed at each of its own in tests/backup_kills.rs.
    !["daemon.", "pipeline.", "model.", "restore."].iter().any(|room| name.starts_with(room))
}

/// Places of the driver at which it was not killed.
fn missed(kills: &BTreeMap<&str, usize>) -> Vec<&'static str> {
    failpoint::ALL.iter().copied().filter(|name| is_driven(name) && !kills.contains_key(name)).collect()
}

/// Rounds of kills: every place once before any comes twice, then later passes and random times.
fn schedule(rng: &mut fastrand::Rng, cycles: usize) -> Vec<Vec<Kill>> {
    let mut later: Vec<&'static str> = Vec::new();
    let mut rounds = Vec::new();
    let mut planned = 0;
    while planned < cycles {
        let pass = rounds.len() / FIRST_START.len();
        let first = FIRST_START[rounds.len() % FIRST_START.len()];
        let nth = if pass == 0 { 1 } else { rng.u64(1..4) };
        let mut round = vec![at(first, nth)];
        while round.len() < CYCLES_PER_ROUND && planned + round.len() < cycles {
            if later.is_empty() {
                later = failpoint::ALL.iter().copied().filter(|name| is_driven(name)).collect();
                later.retain(|name| !FIRST_START.contains(name));
                if planned > 0 {
                    rng.shuffle(&mut later);
                } else {
                    later.reverse();
                }
            }
            let is_random = planned > failpoint::ALL.len() && rng.u32(0..3) == 0;
            round.push(if is_random {
                Kill::After(Duration::from_millis(rng.u64(1..KILL_MS_MAX)))
            } else {
                let nth = if planned > failpoint::ALL.len() { 1 + rng.u64(0..4) * rng.u64(0..4) } else { 1 };
                at(later.pop().unwrap(), nth)
            });
        }
        planned += round.len();
        rounds.push(round);
    }
    rounds
}

/// Start a driver and kill it as `kill` says; its promises, and whether it was killed.
fn cycle(subject: &mut Subject<'_>, kill: &Kill, seed: u64) -> bool {
    let name = match kill {
        Kill::At { name, .. } => name,
        Kill::After(_) => "",
    };
    if name.starts_with("central.") {
        let Kill::At { plan, .. } = kill else { return false };
        return kill_retention(subject.server, plan);
    }
    if name.starts_with("downlink.") {
        // A recipe that is no good never comes to the places behind its proof.
        subject.publish(if name.contains(".recipe.") { seed / 3 * 3 + 1 } else { seed });
    }
    if name == "downlink.fit.back" {
        // In use, then withdrawn: it is killed on the way back.
        let drive = Drive { pulls: Some(subject.last_change()), ..drive_of(subject, "", 0, seed) };
        subject.acks.extend(run_through(&drive));
        subject.withdraw_fits();
    }
    let steps = if name.is_empty() { 40 } else { 6 };
    let drive = drive_of(subject, name, steps, seed);
    let mut command = drive.command();
    if let Kill::At { plan, .. } = kill {
        command.env(failpoint::VARIABLE, plan);
    }
    let (status, acks) = run(command, kill, &drive);
    let was_killed = status.signal() == Some(9);
    assert!(was_killed || status.success(), "the driver failed: {status}, {kill:?}, {drive:?}");
    if !was_killed && let Some(Ack::Refused { what }) = acks.iter().find(|ack| matches!(ack, Ack::Refused { .. })) {
        assert!(what.contains("failpoint") || what.contains("group"), "refused without a fault: {what}, {kill:?}");
    }
    subject.acks.extend(acks);
    was_killed
}

fn drive_of(subject: &Subject<'_>, name: &str, steps: u32, seed: u64) -> Drive {
    let starts = |rooms: &[&str]| rooms.iter().any(|room| name.starts_with(room));
    Drive {
        state: subject.state.clone(),
        dsn: Some(subject.dsn()),
        seed,
        steps,
        clock_us: subject.clock_us,
        waits: starts(&["uplink.", "retention."]) || name.contains("acknowledge") || name.contains("park"),
        builds: name.starts_with("index.") || (name.is_empty() && seed.is_multiple_of(4)),
        keeps: starts(&["backup.", "export.", "retention."]) || (name.is_empty() && seed % 4 == 1),
        pulls: name.starts_with("downlink.").then(|| subject.last_change()),
    }
}

/// A driver that nobody kills.
fn run_through(drive: &Drive) -> Vec<Ack> {
    let (status, acks) = run(drive.command(), &Kill::After(Duration::MAX), drive);
    assert!(status.success(), "the driver failed: {status}, {drive:?}");
    acks
}

/// Let a partition be missing, and kill the job that makes it anew; the next run makes it.
fn kill_retention(server: &Postgres, plan: &str) -> bool {
    let last = server.query(
        "SELECT partition_name FROM loupe.partition_bounds() WHERE table_name = 'reviews' AND NOT is_default
         ORDER BY starts_at DESC LIMIT 1",
    );
    server.query(&format!("DROP TABLE loupe.{last}"));
    let retention = || {
        let mut command = crate::support::loupe();
        command.args(["db", "retention", "--dsn", &server.dsn()]);
        command
    };
    let killed = retention().env(failpoint::VARIABLE, plan).output().unwrap();
    crate::support::succeed(&mut retention());
    assert_eq!(server.query(&format!("SELECT to_regclass('loupe.{last}') IS NOT NULL")), "t", "{plan}");
    killed.status.signal() == Some(9)
}

/// Run a driver to its end or its kill.
fn run(mut command: std::process::Command, kill: &Kill, drive: &Drive) -> (std::process::ExitStatus, Vec<Ack>) {
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).filter_map(|line| parse(&line)).collect());
    let watch = Stopwatch::start();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if matches!(kill, Kill::After(after) if watch.elapsed() >= *after) {
            child.kill().unwrap();
        }
        assert!(watch.elapsed().as_secs() < HANG_S, "the driver hangs: {kill:?}, {drive:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    };
    (status, reader.join().unwrap())
}

#[test]
fn killed_at_every_failpoint_and_at_random_nothing_is_lost_or_doubled() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (seed, cycles) = (seed(), cycles());
    println!("seed {seed}, {cycles} cycles");
    let mut rng = fastrand::Rng::with_seed(seed);
    let watch = Stopwatch::start();
    let mut kills: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut total, mut ended) = (Verdict::default(), 0);
    let mut again = 20;
    let mut rounds = VecDeque::from(schedule(&mut rng, cycles));
    let mut number = 0;
    while let Some(round) = rounds.pop_front() {
        number += 1;
        let dir = tempfile::tempdir().unwrap();
        let mut subject = Subject::new(&server, dir.path(), &format!("kills-{number}"));
        for kill in &round {
            let cycle_seed = rng.u64(..);
            if !cycle(&mut subject, kill, cycle_seed) {
                ended += 1;
                continue;
            }
            match kill {
                Kill::At { name, .. } => *kills.entry(name).or_default() += 1,
                Kill::After(_) => *kills.entry("at a random time").or_default() += 1,
            }
        }
        match subject.judge() {
            Ok(verdict) => total += verdict,
            Err(fault) => {
                let kept = dir.keep();
                panic!("seed {seed}, round {number} {round:?}, state kept in {}: {fault}", kept.display());
            }
        }
        // A stop may outrun the uplink's last step: what was planned and missed is tried again in the end.
        if rounds.is_empty() && cycles >= 2 * crate::CYCLES && again > 0 {
            again -= 1;
            rounds.extend(missed(&kills).into_iter().map(|name| vec![at(name, 1)]));
        }
    }
    let killed: usize = kills.values().sum();
    println!("kills: {kills:?}");
    println!(
        "{killed} kills, {ended} cycles ended by themselves, in {:.0} s: {} promises, {} inspections ({} of them untold), \
         {} rows, {} parked, 0 lost, 0 doubled",
        watch.elapsed().as_secs_f32(),
        total.promised,
        total.inspections,
        total.untold,
        total.rows,
        total.parked
    );
    if cycles >= crate::CYCLES {
        let missed = missed(&kills);
        // The short run tries each place once, and a stop may outrun the uplink's last step.
        let missed_max = if cycles >= 2 * crate::CYCLES { 0 } else { 3 };
        assert!(missed.len() <= missed_max, "seed {seed}: never killed at {missed:?}");
    }
    assert!(total.promised > cycles, "the load promised only {} things", total.promised);
}
