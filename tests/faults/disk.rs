//! The device's own disk fails: full, broken, read-only, or without power.
//!
//! `tests/support/faultfs.c` stands between the driver and its files. What it models, and what not, is said there.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use loupe::clock::Stopwatch;

use crate::driver::{Ack, Drive, parse};
use crate::oracle::{Subject, Verdict, migrate};
use crate::support::postgres::Postgres;
use crate::{faultfs, scaled, seed};

/// A driver that takes longer hangs.
const HANG_S: u64 = 60;
/// Power cuts in one device's life.
const CUTS_PER_ROUND: usize = 6;

/// The driver on a failing disk.
fn on_disk(drive: &Drive, library: &Path, dir: &Path) -> Command {
    let scratch = dir.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let mut command = drive.command();
    command
        .env("LD_PRELOAD", library)
        .env("FAULTFS_ROOT", dir)
        .env("FAULTFS_SCRATCH", scratch)
        .env("FAULTFS_LOG", dir.with_extension("log"));
    command
}

/// Run a driver to its end or to the shim's; its promises, and whether it was killed.
fn run(command: &mut Command) -> (Vec<Ack>, bool) {
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).filter_map(|line| parse(&line)).collect());
    let watch = Stopwatch::start();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(watch.elapsed().as_secs() < HANG_S, "the driver hangs: {command:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    };
    let was_killed = status.signal() == Some(9);
    assert!(was_killed || status.success(), "the driver failed: {status}, {command:?}");
    (reader.join().unwrap(), was_killed)
}

fn drive(subject: &Subject<'_>, seed: u64, steps: u32) -> Drive {
    Drive {
        state: subject.state.clone(),
        dsn: Some(subject.dsn()),
        seed,
        steps,
        clock_us: 0,
        waits: false,
        builds: seed.is_multiple_of(3),
        keeps: false,
        pulls: false,
    }
}

/// The folder of a subject, with nothing of the test's own in it.
fn folder(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let folder = dir.path().join("disk");
    std::fs::create_dir(&folder).unwrap();
    folder
}

#[test]
fn a_disk_that_fills_breaks_or_turns_read_only_holds_and_goes_on() {
    let Some(server) = Postgres::start() else { return };
    let Some(library) = faultfs::library() else { return };
    migrate(&server);
    let (seed, rounds) = (seed(), scaled(1, 12));
    println!("seed {seed}, {rounds} rounds");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut total = Verdict::default();
    let (mut faults, mut refusals, mut went_on) = (0, 0, 0);
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(&dir);
        let mut subject = Subject::new(&server, &folder, &format!("disk-{round}"));
        // A device that has already worked.
        subject.acks.extend(run(drive(&subject, rng.u64(..), 5).command().stdin(std::process::Stdio::null())).0);
        for (class, error) in [("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("any", "EROFS")] {
            for is_for_ever in [false, true] {
                let first = rng.u32(1..150);
                let count = if is_for_ever { 0 } else { rng.u32(1..12) };
                let mut command = on_disk(&drive(&subject, rng.u64(..), 25), &library, &folder);
                command.env("FAULTFS_FAIL", format!("{class},{error},{first},{count}"));
                let (acks, was_killed) = run(&mut command);
                assert!(!was_killed);
                faults += 1;
                let is_refusal = |ack: &Ack| matches!(ack, Ack::Refused { .. });
                refusals += acks.iter().filter(|ack| is_refusal(ack)).count();
                if let Some(at) = acks.iter().position(is_refusal)
                    && acks[at..].iter().any(|ack| matches!(ack, Ack::Inspection { .. }))
                {
                    went_on += 1;
                }
                subject.acks.extend(acks);
            }
        }
        match subject.judge() {
            Ok(verdict) => total += verdict,
            Err(fault) => panic!("seed {seed}, round {round}, state kept in {}: {fault}", dir.keep().display()),
        }
    }
    println!(
        "{faults} disk faults, {refusals} refusals, {went_on} times the same process committed again; {} promises, \
         {} inspections ({} untold), 0 lost, 0 doubled",
        total.promised, total.inspections, total.untold
    );
    assert!(refusals > 0 && went_on > 0, "the faults did not bite");
}

/// Calls that change something in a driver left alone.
fn calls_of(drive: &Drive, library: &Path, folder: &Path) -> u64 {
    let log = folder.with_extension("log");
    drop(std::fs::remove_file(&log));
    let (_, was_killed) = run(on_disk(drive, library, folder).env("FAULTFS_CUT", "0"));
    assert!(!was_killed);
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    said.lines().filter_map(|line| line.strip_prefix("ops ")?.parse().ok()).next_back().expect("the shim counts calls")
}

/// Power cuts of one device; an error is a violation.
fn cut_over_and_over(
    server: &Postgres,
    library: &Path,
    code: &str,
    rng: &mut fastrand::Rng,
    lies: bool,
) -> Result<(Verdict, usize), String> {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(&dir);
    let probe = Subject::new(server, &folder, &format!("{code}-probe"));
    let calls = calls_of(&drive(&probe, 3, 12), library, &folder);
    let mut subject = Subject::new(server, &folder, code);
    let mut cuts = 0;
    for number in 0..CUTS_PER_ROUND {
        // The first start of a device has the most to lose.
        let at = if number == 0 { rng.u64(1..calls.min(150)) } else { rng.u64(1..calls) };
        let mut command = on_disk(&drive(&subject, rng.u64(..), 12), library, &folder);
        command.env("FAULTFS_CUT", at.to_string()).env("FAULTFS_SEED", rng.u64(1..1 << 60).to_string());
        if lies {
            command.env("FAULTFS_LIE", "1");
        }
        let (acks, was_killed) = run(&mut command);
        cuts += usize::from(was_killed);
        subject.acks.extend(acks);
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| subject.judge()));
    match outcome {
        Ok(Ok(verdict)) => Ok((verdict, cuts)),
        other => {
            let kept = if lies { "not kept".to_owned() } else { dir.keep().display().to_string() };
            let fault = other.map_or_else(|_| "no normal start (see above)".to_owned(), |fault| fault.unwrap_err());
            Err(format!("{fault} (state: {kept})"))
        }
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_that_was_promised() {
    let Some(server) = Postgres::start() else { return };
    let Some(library) = faultfs::library() else { return };
    migrate(&server);
    let (seed, rounds) = (seed(), scaled(4, 80));
    println!("seed {seed}, {rounds} rounds of {CUTS_PER_ROUND} cuts");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut total, mut cuts) = (Verdict::default(), 0);
    for round in 0..rounds {
        match cut_over_and_over(&server, &library, &format!("power-{round}"), &mut rng, false) {
            Ok((verdict, count)) => {
                total += verdict;
                cuts += count;
            }
            Err(fault) => panic!("seed {seed}, round {round}: {fault}"),
        }
    }
    println!(
        "{cuts} power cuts: {} promises, {} inspections ({} untold), 0 lost, 0 doubled",
        total.promised, total.inspections, total.untold
    );
    assert!(cuts >= rounds, "the power was cut only {cuts} times");
}

#[test]
fn a_disk_that_lies_about_fsync_is_found_out() {
    let Some(server) = Postgres::start() else { return };
    let Some(library) = faultfs::library() else { return };
    migrate(&server);
    let mut rng = fastrand::Rng::with_seed(7);
    // What this proves is that the campaign can fail: nothing can be promised on such a disk.
    let found =
        (0..6).find_map(|round| cut_over_and_over(&server, &library, &format!("lie-{round}"), &mut rng, true).err());
    println!("a lying disk: {}", found.as_deref().unwrap_or("not found out"));
    assert!(found.is_some(), "a disk that drops what was fsynced was not noticed");
}
