//! A month without a network, and a clock that jumps.

use loupe::clock::{Clock, Stopwatch};
use loupe::types::{Digest, Timestamp};

use crate::driver::{Ack, Drive, parse};
use crate::oracle::{Subject, days_ago, migrate};
use crate::support::postgres::Postgres;
use crate::support::samples;
use crate::{cycles, seed};

const DAYS: u64 = 30;
/// Inspections of the month in the short run and in the long one.
const INSPECTIONS: u64 = 3_000;
const INSPECTIONS_LONG: u64 = 100_000;

#[test]
fn thirty_days_offline_then_a_drain_delivers_each_once() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let count = if cycles() > crate::CYCLES { INSPECTIONS_LONG } else { INSPECTIONS };
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "offline");
    let now = Clock::system().now();
    let watch = Stopwatch::start();
    // The device is started anew each day, as machines in shops are.
    for day in 0..DAYS {
        let days = (DAYS - day) as f64;
        let clock = Clock::system();
        clock.shift(days_ago(now, days).as_micros() - now.as_micros());
        let ledger = loupe::ledger::Ledger::open(&subject.state, clock.clone()).unwrap();
        samples::provenance(&ledger);
        let mut pending = Vec::new();
        let share = count / DAYS;
        for number in 0..share {
            let mut inspection = samples::inspection(day * share + number);
            inspection.captured_at = days_ago(now, days - number as f64 / share as f64);
            inspection.decided_at = inspection.captured_at;
            pending.push(ledger.submit(inspection, Vec::new()).unwrap());
        }
        for pending in pending {
            let inspection = pending.wait().unwrap();
            let record = Digest::of(serde_json::to_string(&inspection).unwrap().as_bytes());
            subject.acks.push(Ack::Inspection { id: inspection.id.0, code: inspection.code, record });
        }
        ledger.close().unwrap();
    }
    let committed_s = watch.elapsed().as_secs_f32();
    let drained = Stopwatch::start();
    let ledger = subject.open();
    crate::oracle::drain_all(&ledger, &subject.config()).unwrap();
    let drained_s = drained.elapsed().as_secs_f32();
    ledger.close().unwrap();
    let verdict = subject.judge().unwrap();
    let months =
        server.lines("SELECT DISTINCT to_char(captured_at AT TIME ZONE 'UTC', 'YYYY-MM') FROM loupe.inspections");
    println!(
        "{DAYS} days offline over {} months: {} inspections committed in {committed_s:.1} s, drained in {drained_s:.1} s, \
         {} rows, 0 lost, 0 doubled",
        months.len(),
        verdict.inspections,
        verdict.rows
    );
    assert!(months.len() >= 2, "the days lie in one month: {months:?}");
}

#[test]
fn a_clock_that_jumps_back_and_forward_loses_and_doubles_nothing() {
    const HOUR_US: i64 = 3_600_000_000;
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let seed = seed();
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "clock");
    // Summer time, a dead battery (1970), a wrong year, and between two starts of the same device.
    let to_1970 = -Clock::system().now().as_micros();
    for clock_us in [0, -HOUR_US, HOUR_US, -48 * HOUR_US, 400 * 24 * HOUR_US, 5_000, -5_000, to_1970, 0] {
        let drive = Drive {
            state: subject.state.clone(),
            dsn: Some(subject.dsn()),
            seed: rng.u64(..),
            steps: 8,
            clock_us,
            waits: true,
            builds: false,
            keeps: false,
            pulls: false,
        };
        let output = drive.command().output().unwrap();
        assert!(output.status.success());
        let acks: Vec<Ack> = String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect();
        assert!(acks.contains(&Ack::Done), "the clock at {clock_us} us: {acks:?}");
        let refused = acks.iter().find(|ack| matches!(ack, Ack::Refused { .. }));
        assert!(refused.is_none(), "the clock at {clock_us} us: {refused:?}");
        subject.acks.extend(acks);
    }
    // And while it runs.
    let clock = Clock::system();
    let ledger = loupe::ledger::Ledger::open(&subject.state, clock.clone()).unwrap();
    for jump_us in [HOUR_US, -2 * HOUR_US, 3 * 24 * HOUR_US, -3 * 24 * HOUR_US] {
        clock.shift(jump_us);
        let mut inspection = samples::inspection(rng.u64(0..1 << 30));
        inspection.captured_at = clock.now();
        inspection.decided_at = Timestamp::from_micros(inspection.captured_at.as_micros() - 1);
        let inspection = ledger.commit(inspection, Vec::new()).unwrap();
        let record = Digest::of(serde_json::to_string(&inspection).unwrap().as_bytes());
        subject.acks.push(Ack::Inspection { id: inspection.id.0, code: inspection.code, record });
    }
    ledger.close().unwrap();
    let verdict = subject.judge().unwrap();
    println!("13 jumps of the clock: {} promises, {} rows, 0 lost, 0 doubled", verdict.promised, verdict.rows);
}
