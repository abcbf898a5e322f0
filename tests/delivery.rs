//! The promise of the outbox: each committed inspection reaches PostgreSQL exactly once in effect, whatever is killed.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::ledger::LedgerReader;
use support::postgres::Postgres;
use support::{Assets, inspect, loupe, plate_recipe, samples, succeed, text};
use tempfile::TempDir;

/// Kills of the daemon in one run.
const KILLS: u32 = 10;
/// Inspections awaited before each kill, beyond those already there: it dies in the middle of its work.
const INSPECTIONS_BETWEEN_KILLS: u64 = 7;
/// Longest wait for those inspections.
const PATIENCE: Duration = Duration::from_secs(60);

fn write_config(folder: &Path, dsn: &str, site_id: &str) {
    let assets = Assets::get();
    plate_recipe(folder, &assets.bank(), "");
    let images = samples().join("plate/test/scratch");
    let dsn_file = folder.join("dsn");
    fs::write(&dsn_file, dsn).unwrap();
    fs::write(
        folder.join("loupe.toml"),
        format!(
            "[site]\ncode = \"plant-07\"\nid = \"{site_id}\"\n[storage]\nstate_dir = \"state\"\n[uplink]\ndsn_file = \"dsn\"\n\
             [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
             source = {{ kind = \"folder\", path = \"{}\", loop = true }}\n",
            images.display()
        ),
    )
    .unwrap();
}

fn spawn(folder: &Path) -> Child {
    loupe().args(["run", "--config"]).arg(folder.join("loupe.toml")).stderr(Stdio::null()).spawn().unwrap()
}

/// Inspections committed: other units, as the first start's change of the configuration, do not count.
fn inspected(state: &Path) -> u64 {
    let counters = LedgerReader::open(state).and_then(|reader| reader.counters());
    counters.map_or(0, |counters| counters.captured - counters.refused)
}

/// Wait until the daemon has committed `count` inspections in all.
fn wait_for_inspections(state: &Path, count: u64) {
    let watch = Stopwatch::start();
    while inspected(state) < count {
        assert!(watch.elapsed() < PATIENCE, "{} inspections after {PATIENCE:?} of {count}", inspected(state));
        std::thread::yield_now();
    }
}

/// Migrate and provision; the site's id and its DSN.
fn provision(postgres: &Postgres) -> (String, String) {
    let admin = postgres.dsn();
    succeed(loupe().args(["db", "migrate", "--dsn", &admin]));
    let output = succeed(loupe().args([
        "db",
        "provision-site",
        "--json",
        "--code",
        "plant-07",
        "--name",
        "Plant 7",
        "--dsn",
        &admin,
    ]));
    let site: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (site["site_id"].as_str().unwrap().to_owned(), site["dsn"].as_str().unwrap().to_owned())
}

/// What PostgreSQL holds of the site: inspection id → verdict and number of rows.
fn delivered(postgres: &Postgres) -> BTreeMap<String, (String, usize)> {
    let mut rows: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for line in postgres.query("SELECT id, verdict FROM loupe.inspections").lines() {
        let (id, verdict) = line.split_once('|').unwrap();
        rows.entry(id.to_owned()).or_insert((verdict.to_owned(), 0)).1 += 1;
    }
    rows
}

#[test]
fn killed_ten_times_each_committed_inspection_arrives_exactly_once() {
    let Some(postgres) = Postgres::start() else { return };
    let (site_id, dsn) = provision(&postgres);
    let folder = TempDir::new().unwrap();
    write_config(folder.path(), &dsn, &site_id);
    let state = folder.path().join("state");
    for _ in 0..KILLS {
        let goal = inspected(&state) + INSPECTIONS_BETWEEN_KILLS;
        let mut daemon = spawn(folder.path());
        wait_for_inspections(&state, goal);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    succeed(loupe().args(["outbox", "drain", "--dsn", &dsn, "--site-id", &site_id, "--state"]).arg(&state));
    succeed(loupe().args(["outbox", "verify", "--state"]).arg(&state));

    let reader = LedgerReader::open(&state).unwrap();
    let counters = reader.counters().unwrap();
    assert_eq!((counters.pending, counters.committed), (0, counters.delivered), "{counters:?}");
    let inspections = reader.recent(100_000).unwrap();
    assert!(inspections.len() as u64 >= u64::from(KILLS) * INSPECTIONS_BETWEEN_KILLS, "{counters:?}");
    let rows = delivered(&postgres);
    let here: BTreeSet<String> = inspections.iter().map(|inspection| inspection.id.to_string()).collect();
    let there: BTreeSet<String> = rows.keys().cloned().collect();
    assert_eq!(here, there, "what the ledger holds and what the centre holds differ");
    for inspection in &inspections {
        let (verdict, count) = &rows[&inspection.id.to_string()];
        assert_eq!((verdict.as_str(), *count), (inspection.verdict.as_str(), 1), "{}", inspection.code);
    }
    let codes: BTreeSet<&str> = inspections.iter().map(|inspection| inspection.code.as_str()).collect();
    assert_eq!(codes.len(), inspections.len(), "a code was given twice");
}

#[test]
fn draining_twice_changes_nothing() {
    let Some(postgres) = Postgres::start() else { return };
    let (site_id, dsn) = provision(&postgres);
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    let recipe = plate_recipe(folder.path(), &Assets::get().bank(), "");
    inspect(&recipe, &state, &[samples().join("plate/test/crack")]);
    let drain =
        || succeed(loupe().args(["outbox", "drain", "--dsn", &dsn, "--site-id", &site_id, "--state"]).arg(&state));
    drain();
    let rows = delivered(&postgres);
    assert!(!rows.is_empty());
    drain();
    assert_eq!(delivered(&postgres), rows);
}

#[test]
fn every_decision_can_be_recomputed() {
    use loupe::config::Recipe;
    use loupe::decide::{Decision, Evidence, decide};

    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    let plate = plate_recipe(folder.path(), &assets.bank(), "");
    let belt = support::belt_recipe(
        folder.path(),
        &assets.index(),
        "[rules]\nwhen_empty = \"ignore\"\nat_edge = \"ignore\"\n",
    );
    fs::write(folder.path().join("cut.jpg"), b"\xff\xd8\xff").unwrap();
    inspect(
        &plate,
        &state,
        &[samples().join("plate/test/good"), samples().join("plate/test/stain"), folder.path().join("cut.jpg")],
    );
    inspect(&belt, &state, &[samples().join("belt/belt.mp4")]);

    let reader = LedgerReader::open(&state).unwrap();
    let inspections = reader.recent(10_000).unwrap();
    let mut verdicts = BTreeSet::new();
    for inspection in &inspections {
        let record = reader.provenance(inspection.provenance_sha256).unwrap().expect("its provenance is in the ledger");
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let body = record["recipe_body"].as_str().unwrap().to_owned();
        let recipe = Recipe::parse(&folder.path().join("recipe.toml"), body).unwrap();
        let again = decide(&Evidence::of(inspection), loupe::pipeline::criteria(&recipe));
        let Decision::Decided { verdict, reasons, items } = again else { panic!("{} is now ignored", inspection.code) };
        assert_eq!(
            (verdict, &reasons, &items),
            (inspection.verdict, &inspection.reasons, &inspection.items),
            "{}",
            inspection.code
        );
        verdicts.insert(verdict);
    }
    assert_eq!(verdicts.len(), 3, "the samples give every verdict: {verdicts:?}");
    assert!(inspections.len() > 100, "{}", inspections.len());
    let paths = text(&succeed(loupe().args(["outbox", "verify", "--state"]).arg(&state)).stdout);
    println!("{paths}");
}
