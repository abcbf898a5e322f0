//! A restore killed at each of its durable steps, over a ledger whose log is not empty: refused in words or whole, never
//! in between; what was there is kept whole; one device, one epoch more each time, nothing lost or doubled at the centre.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::clock::{Clock, Stopwatch};
use loupe::failpoint;
use loupe::ledger::{Ledger, LedgerError, LedgerReader, RESTORE_MARKER, database_path, identity_at};
use loupe::uplink::{Secret, UplinkConfig, drain};
use support::central::SITE;
use support::{fail_with, loupe, plate_recipe, samples, succeed};
use tempfile::TempDir;
use uuid::Uuid;

/// Places in a restore.
fn places() -> Vec<&'static str> {
    failpoint::ALL.iter().copied().filter(|name| name.starts_with("restore.")).collect()
}

/// Places behind which the restored ledger is there for good.
const WHOLE: [&str; 1] = ["restore.opened"];
/// Places before which nothing that was there is touched.
const UNTOUCHED: [&str; 4] =
    ["restore.staging.begun", "restore.member.unpacked", "restore.synced", "restore.epoch.begun"];

/// Commit the inspections `numbers`, each with a picture; their codes. Not closed where the log is to stay.
fn commit(ledger: &Ledger, numbers: std::ops::Range<u64>) -> Vec<String> {
    samples::provenance(ledger);
    numbers
        .map(|number| {
            let mut inspection = samples::held(number);
            inspection.captured_at = Clock::system().now();
            ledger.commit(inspection, vec![samples::thumbnail(300)]).unwrap().code
        })
        .collect()
}

/// What stands in the state folder as a power cut leaves it: the last commits are in the log only.
fn cut_off(state: &Path, numbers: std::ops::Range<u64>) -> Vec<String> {
    // What makes it a ledger is in its file.
    Ledger::open(state, Clock::system()).unwrap().close().unwrap();
    let ledger = Ledger::open(state, Clock::system()).unwrap();
    let codes = commit(&ledger, numbers);
    let copy = state.with_extension("copy");
    support::copy_folder(state, &copy);
    ledger.close().unwrap();
    fs::remove_dir_all(state).unwrap();
    fs::rename(&copy, state).unwrap();
    assert!(fs::metadata(state.join("ledger.db-wal")).unwrap().len() > 0, "the log is empty");
    codes
}

fn restore(backup: &Path, state: &Path) -> Command {
    let mut command = loupe();
    command.args(["backup", "restore", "--force", "--json"]).arg(backup).arg("--state").arg(state);
    command
}

fn committed(state: &Path) -> u64 {
    LedgerReader::open(state).unwrap().counters().unwrap().committed
}

fn proved(state: &Path) {
    let proof = LedgerReader::open(state).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{}: {:?}", state.display(), proof.faults);
}

/// Folders into which a restore moved what was there.
fn asides(state: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("before-restore-")).collect()
}

fn number(state: &Path, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(database_path(state)).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Right after the kill: refused in words, or whole. Answers whether the folder is open.
fn is_safe(name: &str, state: &Path, device: Uuid) -> bool {
    match LedgerReader::open(state).and_then(|reader| reader.meta()) {
        Ok(meta) => {
            assert_eq!(meta.device_id, device, "{name}: another device");
            proved(state);
            true
        }
        Err(error @ LedgerError::HalfRestored { .. }) => {
            let said = fail_with(loupe().args(["outbox", "status", "--state"]).arg(state), 78);
            assert!(said.contains("was cut off") && said.contains(RESTORE_MARKER), "{name}: {said} {error}");
            let opened = Ledger::open(state, Clock::system());
            assert!(opened.is_err(), "{name}: a half-restored folder was opened");
            false
        }
        Err(error) => panic!("{name}: neither whole nor refused in words: {error}"),
    }
}

/// So that two restores do not begin the same epoch, and give the same codes.
fn next_second() {
    let second = || Clock::system().now().as_micros() / 1_000_000;
    let (start, watch) = (second(), Stopwatch::start());
    while second() == start {
        assert!(watch.elapsed().as_secs() < 30);
        std::thread::yield_now();
    }
}

#[test]
fn killed_at_each_step_over_a_cut_off_ledger_it_is_refused_or_whole_and_runs_again() {
    let folder = TempDir::new().unwrap();
    let (state, backup) = (folder.path().join("state"), folder.path().join("device.backup"));
    let server = support::central::start();
    let send = |state: &Path| {
        let Some(server) = &server else { return };
        let ledger = Ledger::open(state, Clock::system()).unwrap();
        drain(ledger.clone(), &UplinkConfig { dsn: Secret::new(server.dsn()), site_id: Some(SITE) }, |_| ()).unwrap();
        ledger.close().unwrap();
    };
    // A folder of somebody's own goes along; the backup holds six inspections, four of them delivered.
    fs::create_dir_all(state.join("notes")).unwrap();
    fs::write(state.join("notes/line.txt"), "camera 2 is new").unwrap();
    let mut codes = cut_off(&state, 0..4);
    send(&state);
    codes.extend(cut_off(&state, 4..6));
    let mut create = loupe();
    succeed(create.args(["backup", "create", "--state"]).arg(&state).arg("--out").arg(&backup));
    let (device, mut epoch) = identity_at(&state).unwrap();
    send(&state);
    let (mut killed, mut epochs) = (Vec::new(), vec![epoch]);
    for (round, name) in (0_u64..).zip(places()) {
        if name.starts_with("restore.file.") {
            // Files beside the state folder: in the test below.
            continue;
        }
        next_second();
        // What the device did since is in its log only, and at the centre.
        codes.extend(cut_off(&state, 100 + round * 10..102 + round * 10));
        let copy = folder.path().join("sent");
        support::copy_folder(&state, &copy);
        send(&copy);
        fs::remove_dir_all(&copy).unwrap();
        let before = asides(&state);
        let was = 6 + 2 * u64::from(round > 0) + 2;
        let status = restore(&backup, &state).env(failpoint::VARIABLE, format!("{name}=kill")).output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{name} was not come to");
        killed.push(name);
        let is_open = is_safe(name, &state, device);
        assert_eq!(is_open, WHOLE.contains(&name), "{name}");
        if UNTOUCHED.contains(&name) {
            assert_eq!(asides(&state), before, "{name}");
        }
        if !is_open {
            // The same command again.
            next_second();
            succeed(&mut restore(&backup, &state));
        }
        proved(&state);
        assert!(!state.join(RESTORE_MARKER).exists());
        assert_eq!((committed(&state), number(&state, "SELECT count(*) FROM restores")), (6, 1), "{name}");
        let (there, now) = identity_at(&state).unwrap();
        assert!(there == device && now > epoch, "{name}: epoch {now} after {epoch}");
        epoch = now;
        epochs.push(now);
        assert_eq!(fs::read_to_string(state.join("notes/line.txt")).unwrap(), "camera 2 is new", "{name}");
        // What was there is whole in one place, its log beside its ledger.
        let kept: Vec<PathBuf> = asides(&state).difference(&before).cloned().collect();
        let whole: Vec<&PathBuf> = kept
            .iter()
            .filter(|aside| database_path(aside).exists() && committed_after_recovery(aside) == was)
            .collect();
        assert_eq!(whole.len(), 1, "{name}: {kept:?}");
        proved(whole[0]);
        assert_eq!(fs::read_to_string(whole[0].join("notes/line.txt")).unwrap(), "camera 2 is new", "{name}");
        let ledger = Ledger::open(&state, Clock::system()).unwrap();
        codes.extend(commit(&ledger, 105 + round * 10..107 + round * 10));
        ledger.close().unwrap();
        send(&state);
    }
    println!("killed at {killed:?}");
    let Some(server) = &server else { return };
    let distinct: BTreeSet<&String> = codes.iter().collect();
    assert_eq!(distinct.len(), codes.len(), "a code was given twice");
    let there = server.lines("SELECT code FROM loupe.inspections");
    assert_eq!((there.len(), there.iter().collect::<BTreeSet<_>>()), (codes.len(), distinct), "lost or doubled");
    let seen = server.lines("SELECT DISTINCT epoch FROM loupe.ingest_batches ORDER BY 1");
    assert_eq!(seen, epochs.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(server.query("SELECT count(DISTINCT device_id) FROM loupe.inspections"), "1");
}

/// Opened as a start does, which reads the log.
fn committed_after_recovery(state: &Path) -> u64 {
    let ledger = Ledger::open(state, Clock::system()).unwrap();
    let committed = ledger.counters().unwrap().committed;
    ledger.close().unwrap();
    committed
}

#[test]
fn killed_among_the_files_of_the_configuration_each_is_the_old_or_the_new_one() {
    let folder = TempDir::new().unwrap();
    let (device, state) = (folder.path().join("device"), folder.path().join("device/state"));
    fs::create_dir_all(&device).unwrap();
    plate_recipe(&device, &support::Assets::get().bank(), "");
    let config = device.join("loupe.toml");
    let text = |code: &str| {
        format!(
            "[site]\ncode = \"{code}\"\n[storage]\nstate_dir = \"state\"\n[[stations]]\nname = \"plates\"\n\
             recipe = \"plate.toml\"\nsource = {{ kind = \"folder\", path = \"{}\" }}\n",
            support::samples().join("plate/good").display()
        )
    };
    fs::write(&config, text("as-it-was")).unwrap();
    let ledger = Ledger::open(&state, Clock::system()).unwrap();
    commit(&ledger, 0..3);
    ledger.close().unwrap();
    let backup = folder.path().join("device.backup");
    succeed(loupe().args(["backup", "create", "--config"]).arg(&config).arg("--out").arg(&backup));
    let (id, mut epoch) = identity_at(&state).unwrap();
    let mut killed = 0;
    for name in places().into_iter().filter(|name| name.starts_with("restore.file")) {
        next_second();
        fs::write(&config, text("changed-since")).unwrap();
        let command = || {
            let mut command = loupe();
            command.args(["backup", "restore", "--force", "--json"]).arg(&backup);
            command
        };
        let status = command().env(failpoint::VARIABLE, format!("{name}=kill")).output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{name} was not come to");
        killed += 1;
        assert!(!is_safe(name, &state, id), "{name}");
        let now = fs::read_to_string(&config).ok();
        assert!(
            now.as_ref().is_none_or(|now| [text("as-it-was"), text("changed-since")].contains(now)),
            "{name}: half a file: {now:?}"
        );
        next_second();
        succeed(&mut command());
        assert_eq!(fs::read_to_string(&config).unwrap(), text("as-it-was"), "{name}");
        let kept = fs::read_dir(&device).unwrap().filter(|entry| {
            let entry = entry.as_ref().unwrap();
            entry.file_name().to_string_lossy().starts_with("loupe.toml.before-restore-")
                && fs::read_to_string(entry.path()).unwrap() == text("changed-since")
        });
        assert_eq!(kept.count(), killed, "{name}: what was there is not kept once");
        let (there, next) = identity_at(&state).unwrap();
        assert!(there == id && next > epoch, "{name}");
        epoch = next;
        proved(&state);
        assert_eq!(committed(&state), 3);
    }
    assert!(killed >= 4, "{killed}");
}

#[test]
fn a_cut_off_restore_that_then_fails_leaves_the_folder_refused_until_one_is_through() {
    let folder = TempDir::new().unwrap();
    let (state, backup) = (folder.path().join("state"), folder.path().join("device.backup"));
    cut_off(&state, 0..3);
    let mut create = loupe();
    succeed(create.args(["backup", "create", "--state"]).arg(&state).arg("--out").arg(&backup));
    let damaged = folder.path().join("damaged.backup");
    let mut bytes = fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 600].iter_mut().for_each(|byte| *byte ^= 0x40);
    fs::write(&damaged, bytes).unwrap();
    // Killed while the old ledger was half moved: a damaged backup must not open what is left.
    let kill = |name: &str| {
        let status = restore(&backup, &state).env(failpoint::VARIABLE, name).output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{name}");
    };
    kill("restore.aside.moved=kill");
    let (device, _) = [&state].into_iter().chain(&asides(&state)).find_map(|at| identity_at(at)).unwrap();
    fail_with(&mut restore(&damaged, &state), 1);
    assert!(!is_safe("after a damaged backup", &state, device));
    succeed(&mut restore(&backup, &state));
    proved(&state);
    assert_eq!((committed(&state), identity_at(&state).unwrap().0), (3, device));
    // Killed before anything was moved: the same leaves all as it was, and open.
    kill("restore.synced=kill");
    fail_with(&mut restore(&damaged, &state), 1);
    assert!(is_safe("untouched", &state, device));
    // Without --force what is there is not moved, cut off or not.
    kill("restore.synced=kill");
    let said = fail_with(loupe().args(["backup", "restore"]).arg(&backup).arg("--state").arg(&state), 1);
    assert!(said.contains("is not empty") && said.contains("--force"), "{said}");
}
