//! A device in one file: made while it works, proved, put back; and what a cut-off, damaged or old one does.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use loupe::backup::{self, Plan};
use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{GoneReason, Ledger, LedgerReader, Sweep, artifacts_dir, database_path};
use loupe::types::StoragePolicy;
use loupe::uplink::{Central, Secret, UplinkConfig, block_on, drain};
use serde_json::Value;
use support::postgres::Postgres;
use support::{Assets, fail_with, loupe, plate_recipe, samples, succeed, text};
use tempfile::TempDir;

const SITE: uuid::Uuid = uuid::Uuid::from_u128(0xA);
const PASSPHRASE: &str = "correct horse battery";
const PATIENCE_S: u64 = 60;

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !holds() {
        assert!(watch.elapsed().as_secs() < PATIENCE_S, "does not happen: {what}");
        std::thread::yield_now();
    }
}

/// Commit the inspections `numbers`, each with a picture of `bytes`.
fn commit(state: &Path, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<String> {
    let ledger = Ledger::open(state, Clock::system()).unwrap();
    samples::provenance(&ledger);
    let pending: Vec<_> = numbers
        .map(|number| {
            let mut inspection = samples::held(number);
            // Codes are given by day: those of today are the ones a restore must not give again.
            inspection.captured_at = Clock::system().now();
            ledger.submit(inspection, vec![samples::thumbnail(bytes)]).unwrap()
        })
        .collect();
    let codes = pending.into_iter().map(|pending| pending.wait().unwrap().code).collect();
    ledger.close().unwrap();
    codes
}

fn backup_state(state: &Path, out: &Path) -> Command {
    let mut command = loupe();
    command.args(["backup", "create", "--state"]).arg(state).arg("--out").arg(out);
    command
}

fn verify(file: &Path) -> Command {
    let mut command = loupe();
    command.args(["backup", "verify"]).arg(file);
    command
}

fn restore_state(file: &Path, state: &Path) -> Command {
    let mut command = loupe();
    command.args(["backup", "restore"]).arg(file).arg("--state").arg(state);
    command
}

fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&succeed(command.arg("--json")).stdout).unwrap()
}

/// Everything below a folder, by relative path.
fn listing(folder: &Path) -> BTreeSet<PathBuf> {
    fn walk(root: &Path, folder: &Path, into: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            into.insert(path.strip_prefix(root).unwrap().to_owned());
            if path.is_dir() {
                walk(root, &path, into);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(folder, folder, &mut found);
    found
}

fn proof_holds(state: &Path) {
    let proof = LedgerReader::open(state).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}

/// A device with a configuration, a bank and a secret, that inspects one folder over and over.
fn device(folder: &Path, uplink: &str) -> PathBuf {
    let bank = folder.join("bank");
    support::copy_folder(&Assets::get().bank(), &bank);
    plate_recipe(folder, &bank, "");
    fs::write(folder.join("dsn"), "postgresql://dev:hunter2@127.0.0.1:1/none\n").unwrap();
    let config = folder.join("loupe.toml");
    let images = support::samples().join("plate/test/scratch");
    fs::write(
        &config,
        format!(
            "[site]\ncode = \"plant-07\"\nid = \"{SITE}\"\n[storage]\nstate_dir = \"state\"\n[uplink]\n{uplink}\n\
             [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
             source = {{ kind = \"folder\", path = \"{}\", loop = true }}\n",
            images.display()
        ),
    )
    .unwrap();
    config
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_running_device_is_kept_proved_and_put_back_elsewhere() {
    let folder = TempDir::new().unwrap();
    let config = device(folder.path(), "dsn_file = \"dsn\"");
    let state = folder.path().join("state");
    let out = folder.path().join("device.backup");
    let inspected = || LedgerReader::open(&state).and_then(|reader| reader.counters()).map_or(0, |c| c.captured);
    let daemon = Daemon(loupe().args(["run", "--config"]).arg(&config).stderr(Stdio::null()).spawn().unwrap());
    until("the daemon inspects", || inspected() > 12);
    let mut create = loupe();
    create.args(["backup", "create", "--config"]).arg(&config).arg("--out").arg(&out);
    let created = json(&mut create);
    let at_backup = inspected();
    until("the daemon goes on", || inspected() > at_backup);
    assert!(created["picture_count"].as_u64().unwrap() > 12, "{created}");
    assert_eq!(created["secrets_left_out"], serde_json::json!([folder.path().join("dsn")]));
    let bytes = fs::read(&out).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"), "a secret is in the backup");
    let proved = json(&mut verify(&out));
    assert_eq!(proved["holds"], true, "{proved}");
    // The running device is not restored over, not even by force.
    let said = fail_with(loupe().args(["backup", "restore", "--force"]).arg(&out), 78);
    assert!(said.contains("in use by another loupe process"), "{said}");
    drop(daemon);

    let root = folder.path().join("fresh");
    let report = json(loupe().args(["backup", "restore"]).arg(&out).arg("--to").arg(&root));
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let restored = below(&state);
    assert_eq!(report["secrets_to_put_back"], serde_json::json!([below(&folder.path().join("dsn"))]));
    assert_eq!(fs::read(below(&config)).unwrap(), fs::read(&config).unwrap());
    assert_eq!(listing(&below(&folder.path().join("bank"))), listing(&folder.path().join("bank")));
    assert!(below(&folder.path().join("bank/manifest.sha256")).exists(), "a bank without its seal is refused");
    assert!(listing(&root).iter().any(|path| path.to_string_lossy().contains("mobilenetv2")), "no model");
    proof_holds(&restored);
    let counters = LedgerReader::open(&restored).unwrap().counters().unwrap();
    assert_eq!(Some(counters.committed), proved["proof"]["counters"]["committed"].as_u64());
    // It works again, with the configuration that came back, once the secret is there.
    fs::write(below(&folder.path().join("dsn")), "postgresql://dev:hunter2@127.0.0.1:1/none\n").unwrap();
    let _daemon = Daemon(loupe().args(["run", "--config"]).arg(below(&config)).stderr(Stdio::null()).spawn().unwrap());
    until("the restored device inspects", || {
        LedgerReader::open(&restored).unwrap().counters().unwrap().captured > counters.captured + 2
    });
}

#[test]
fn after_an_old_backup_nothing_is_lost_doubled_or_given_a_used_code() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.migrate().await }).unwrap();
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    let send = |state: &Path| {
        let ledger = Ledger::open(state, Clock::system()).unwrap();
        let config = UplinkConfig { dsn: dsn.clone(), site_id: Some(SITE) };
        drain(ledger.clone(), &config, |_| ()).unwrap();
        ledger.close().unwrap();
    };
    let mut codes = commit(&state, 0..10, 200);
    send(&state);
    codes.extend(commit(&state, 10..15, 200));
    succeed(&mut backup_state(&state, &out));
    codes.extend(commit(&state, 15..22, 200));
    send(&state);
    drop(state);

    let mut epochs = vec![1];
    // The same old backup twice: a second disk dies.
    for round in 0..2_u64 {
        let state = folder.path().join(format!("restored-{round}"));
        until("another second", || {
            // Epochs are told apart by the second.
            Clock::system().now().as_micros() / 1_000_000 > 0 && epochs.last() != Some(&now_s())
        });
        let report = json(&mut restore_state(&out, &state));
        assert_eq!(report["epoch_before"], 1);
        let epoch = report["epoch"].as_i64().unwrap();
        assert!(epoch > *epochs.iter().max().unwrap(), "epoch {epoch} after {epochs:?}");
        epochs.push(epoch);
        proof_holds(&state);
        let pending = LedgerReader::open(&state).unwrap().counters().unwrap().pending;
        assert_eq!(pending, 5, "what was pending then is pending again");
        codes.extend(commit(&state, 30 + round * 10..34 + round * 10, 200));
        send(&state);
        proof_holds(&state);
    }
    let distinct: BTreeSet<&String> = codes.iter().collect();
    assert_eq!(distinct.len(), codes.len(), "a code was given twice: {codes:?}");
    let there = server.lines("SELECT code FROM loupe.inspections");
    assert_eq!(there.iter().collect::<BTreeSet<_>>(), distinct, "lost, or not known here");
    assert_eq!(there.len(), codes.len(), "doubled at the centre");
    let seen = server.lines("SELECT DISTINCT epoch FROM loupe.ingest_batches ORDER BY 1");
    assert_eq!(seen, epochs.iter().map(ToString::to_string).collect::<Vec<_>>());
}

/// Seconds since 2026, as epochs of restored ledgers count them.
fn now_s() -> i64 {
    (Clock::system().now().as_micros() - 1_767_225_600_000_000) / 1_000_000
}

#[test]
fn a_cut_or_flipped_backup_is_refused_and_the_state_folder_stays_as_it_was() {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    commit(&state, 0..6, 3_000);
    succeed(&mut backup_state(&state, &out));
    let whole = fs::read(&out).unwrap();
    let damaged = folder.path().join("damaged.backup");
    let fresh = folder.path().join("fresh");
    let refused = |what: &str| {
        let said = fail_with(&mut verify(&damaged), 1);
        let named = said.contains("is damaged at byte") || said.contains("is not a loupe backup");
        assert!(named, "{what}: {said}");
        fail_with(&mut restore_state(&damaged, &fresh), 1);
        let left = if fresh.exists() { listing(&fresh) } else { BTreeSet::new() };
        assert!(left.iter().all(|path| path == Path::new("ledger.lock")), "{what}: {left:?}");
    };
    for share in [0, 1, 2, 5, 9] {
        fs::write(&damaged, &whole[..whole.len() * share / 10]).unwrap();
        refused(&format!("cut to {share} tenths"));
    }
    // At the end of a member exactly: only the manifest is missing.
    let manifest = find(&whole, b"manifest.json").unwrap();
    fs::write(&damaged, &whole[..manifest]).unwrap();
    refused("cut before the manifest");
    let mut flips = 0;
    for step in 1..30 {
        let at = whole.len() * step / 30;
        // Between members lie zeros that mean nothing.
        let Some(at) = (at..whole.len()).find(|at| whole[*at] != 0) else { continue };
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        refused(&format!("byte {at} flipped"));
        flips += 1;
    }
    assert!(flips > 20, "{flips}");
    fs::write(&damaged, "not a backup at all, but long enough to be read as one block of a tar".repeat(30)).unwrap();
    refused("foreign");
    let newer = replace(&whole, b"loupe-backup/1", b"loupe-backup/7");
    fs::write(&damaged, newer).unwrap();
    for command in [&mut verify(&damaged), &mut restore_state(&damaged, &fresh)] {
        let said = fail_with(command, 78);
        assert!(said.contains("has format loupe-backup/7"), "{said}");
    }
    succeed(&mut restore_state(&out, &fresh));
    proof_holds(&fresh);
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = find(bytes, from).unwrap();
    let mut replaced = bytes.to_vec();
    replaced[at..at + to.len()].copy_from_slice(to);
    replaced
}

#[test]
fn killed_in_the_middle_neither_backup_nor_restore_passes_for_whole() {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    commit(&state, 0..64, 400_000);
    let partial = folder.path().join("device.backup.partial");
    let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let mut cut = 0;
    for share in 1..=3 {
        let mut child = backup_state(&state, &out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut ended = false;
        until("the backup grows", || {
            ended = child.try_wait().unwrap().is_some();
            ended || size(&partial) > share * 6_000_000
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            assert!(ended || !partial.exists());
            succeed(&mut verify(&out));
            fs::remove_file(&out).unwrap();
        } else {
            cut += 1;
            assert!(partial.exists());
            assert_ne!(verify(&partial).output().unwrap().status.code(), Some(0), "a cut-off backup passes for whole");
        }
    }
    assert!(cut > 0, "no backup was cut off");
    succeed(&mut backup_state(&state, &out));
    succeed(&mut verify(&out));
    assert_eq!(listing(folder.path()).iter().filter(|path| path.to_string_lossy().contains("partial")).count(), 0);

    let fresh = folder.path().join("fresh");
    let staged = fresh.join("restore.partial/artifacts");
    let mut child = restore_state(&out, &fresh).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the restore unpacks", || staged.exists() || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    if fresh.join("restore.partial").exists() {
        for command in ["status", "verify", "repair"] {
            let said = fail_with(loupe().args(["outbox", command, "--state"]).arg(&fresh), 78);
            assert!(said.contains("a restore into") && said.contains("was cut off"), "{said}");
        }
        assert!(Ledger::open(&fresh, Clock::system()).is_err(), "a half-restored folder is opened");
    } else {
        println!("skipped: the restore was through before it could be killed");
    }
    succeed(restore_state(&out, &fresh).arg("--force"));
    proof_holds(&fresh);
    assert!(!fresh.join("restore.partial").exists());
}

#[test]
fn secrets_come_along_only_encrypted_and_only_when_asked() {
    let folder = TempDir::new().unwrap();
    let config = device(folder.path(), "dsn = \"postgresql://dev:hunter2@127.0.0.1:1/none\"");
    fs::write(folder.path().join("phrase"), format!("{PASSPHRASE}\n")).unwrap();
    fs::write(folder.path().join("wrong"), "wrong horse battery\n").unwrap();
    commit(&folder.path().join("state"), 0..2, 100);
    let create = |out: &str, extra: &[&str]| {
        let mut command = loupe();
        command.args(["backup", "create", "--config"]).arg(&config).arg("--out").arg(folder.path().join(out));
        command.args(extra).current_dir(folder.path());
        command
    };
    let said = fail_with(&mut create("a.backup", &["--with-secrets"]), 64);
    assert!(said.contains("--passphrase-file"), "{said}");
    fs::write(folder.path().join("short"), "tiny\n").unwrap();
    fail_with(&mut create("a.backup", &["--with-secrets", "--passphrase-file", "short"]), 64);
    assert!(!folder.path().join("a.backup").exists());

    let plain = json(&mut create("plain.backup", &[]));
    assert_eq!(plain["is_config_redacted"], true);
    let sealed = json(&mut create("sealed.backup", &["--with-secrets", "--passphrase-file", "phrase"]));
    assert_eq!(sealed["secrets_sealed"], serde_json::json!([config]));
    for name in ["plain.backup", "sealed.backup"] {
        let bytes = fs::read(folder.path().join(name)).unwrap();
        assert!(find(&bytes, b"hunter2").is_none(), "{name} shows the secret");
        assert!(find(&bytes, b"left-out-of-the-backup").is_some(), "{name} lacks the configuration's copy");
    }
    let file = folder.path().join("sealed.backup");
    let phrase = |name: &str| ["--passphrase-file".to_owned(), folder.path().join(name).display().to_string()];
    let said = fail_with(verify(&file).args(phrase("wrong")), 1);
    assert!(said.contains("the passphrase is wrong"), "{said}");
    succeed(verify(&file).args(phrase("phrase")));
    let root = folder.path().join("root");
    let restore = || {
        let mut command = loupe();
        command.args(["backup", "restore"]).arg(&file).arg("--to").arg(&root);
        command
    };
    fail_with(restore().args(phrase("wrong")), 1);
    assert!(!root.join(config.strip_prefix("/").unwrap()).exists(), "restored in spite of a wrong passphrase");
    succeed(restore().args(phrase("phrase")));
    assert_eq!(fs::read(root.join(config.strip_prefix("/").unwrap())).unwrap(), fs::read(&config).unwrap());
    let said = fail_with(
        loupe()
            .args(["backup", "restore"])
            .arg(folder.path().join("plain.backup"))
            .arg("--to")
            .arg(root.join("x"))
            .args(phrase("phrase")),
        1,
    );
    assert!(said.contains("holds no secrets"), "{said}");
}

#[test]
fn a_restore_overwrites_nothing_and_force_moves_aside() {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    commit(&state, 0..3, 100);
    fs::create_dir(state.join("notes")).unwrap();
    fs::write(state.join("notes/line.txt"), "camera 2 is new").unwrap();
    succeed(&mut backup_state(&state, &out));
    let said = fail_with(&mut backup_state(&state, &out), 1);
    assert!(said.contains("is there already"), "{said}");
    commit(&state, 3..5, 100);
    let before = listing(&state);
    let said = fail_with(&mut restore_state(&out, &state), 1);
    assert!(said.contains("is not empty") && said.contains("--force"), "{said}");
    assert_eq!(listing(&state), before);
    let report = json(restore_state(&out, &state).arg("--force"));
    let aside = PathBuf::from(report["moved_aside"][0].as_str().unwrap());
    assert_eq!(LedgerReader::open(&state).unwrap().counters().unwrap().committed, 3);
    assert_eq!(LedgerReader::open(&aside).unwrap().counters().unwrap().committed, 5, "what was there is kept whole");
    assert_eq!(fs::read_to_string(state.join("notes/line.txt")).unwrap(), "camera 2 is new");
    proof_holds(&state);
    proof_holds(&aside);
}

#[test]
fn a_missing_folder_a_lost_picture_and_a_damaged_ledger_are_named() {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    let said = fail_with(&mut backup_state(&state, &out), 1);
    assert!(said.contains("there is no ledger at"), "{said}");
    let said = fail_with(loupe().args(["backup", "create", "--config", "/no/such.toml", "--out"]).arg(&out), 78);
    assert!(said.contains("/no/such.toml"), "{said}");
    assert!(!out.exists() && listing(folder.path()).is_empty(), "{:?}", listing(folder.path()));

    commit(&state, 0..4, 500);
    let pictures = support::find(&artifacts_dir(&state), "x");
    assert!(pictures.is_empty());
    let reader = LedgerReader::open(&state).unwrap();
    let lost = reader.recent(1).unwrap()[0].artifacts[0].relative_path.clone();
    drop(reader);
    fs::remove_file(artifacts_dir(&state).join(&lost)).unwrap();
    let output = backup_state(&state, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(&format!("missing on this device: {lost}")), "{}", text(&output.stdout));
    let said = fail_with(&mut verify(&out), 1);
    assert!(said.contains("does not add up: 1 faults"), "{said}");
    // All the rest comes back.
    let fresh = folder.path().join("fresh");
    let report = json(&mut restore_state(&out, &fresh));
    assert_eq!(report["pictures_missing"], serde_json::json!([lost]));
    assert_eq!(LedgerReader::open(&fresh).unwrap().counters().unwrap().committed, 4);

    let mut bytes = fs::read(database_path(&state)).unwrap();
    bytes[3] ^= 0x40;
    fs::write(database_path(&state), bytes).unwrap();
    let said = fail_with(&mut backup_state(&state, &folder.path().join("b.backup")), 78);
    assert!(said.contains("is damaged"), "{said}");
    assert!(!folder.path().join("b.backup").exists());
}

#[test]
fn a_picture_shed_while_it_is_copied_is_noted_as_gone_in_the_backup() {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("device.backup"));
    commit(&state, 0..4, 500);
    let ledger = Ledger::open(&state, Clock::system()).unwrap();
    let clock = Clock::system();
    let policy = StoragePolicy { pass_picture_days: 0, picture_days: 0, ..StoragePolicy::default() };
    let mut is_swept = false;
    // The first word of progress comes when the ledger's state for the copy is fixed.
    let mut sweep = |_, _| {
        if !std::mem::replace(&mut is_swept, true) {
            let swept = Sweep::new(ledger.clone(), policy, clock.clone()).unwrap().expire(&mut |_| true).unwrap();
            assert_eq!(swept.other_pictures, 4);
        }
    };
    let plan = Plan::of_state(&state).unwrap();
    let created = backup::create(&plan, &out, None, &Clock::system(), &mut sweep).unwrap();
    assert_eq!((created.pictures_shed, created.pictures_missing.len(), created.picture_count), (4, 0, 0));
    ledger.close().unwrap();
    succeed(&mut verify(&out));
    let fresh = folder.path().join("fresh");
    succeed(&mut restore_state(&out, &fresh));
    proof_holds(&fresh);
    let path = LedgerReader::open(&fresh).unwrap().recent(1).unwrap()[0].artifacts[0].relative_path.clone();
    let gone = LedgerReader::open(&fresh).unwrap().gone_picture(&path).unwrap().unwrap();
    assert_eq!(gone.reason, GoneReason::Expired);
}

#[test]
fn a_full_disk_leaves_no_half_backup() {
    let disk = TempDir::new().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=3m", "loupe-test"]).arg(disk.path());
    if !mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("skipped: mounting a tmpfs is not permitted here");
        return;
    }
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    commit(&state, 0..12, 400_000);
    let said = fail_with(&mut backup_state(&state, &disk.path().join("device.backup")), 1);
    let whole = folder.path().join("whole.backup");
    succeed(&mut backup_state(&state, &whole));
    let full = fail_with(&mut restore_state(&whole, &disk.path().join("state")), 1);
    let left = listing(disk.path());
    assert!(Command::new("umount").arg("-l").arg(disk.path()).status().unwrap().success());
    for said in [said, full] {
        assert!(said.contains("bytes and has") && said.contains("make room"), "{said}");
    }
    assert!(left.iter().all(|path| path.ends_with("ledger.lock") || path == Path::new("state")), "{left:?}");
}
