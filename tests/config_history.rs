//! The history of the configuration: what changed arrives once, what did not is no row, and no secret is in it anywhere.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use loupe::clock::Clock;
use loupe::ledger::{Ledger, LedgerReader};
use loupe::types::{ConfigRecord, ConfigSource, ConfigValue};
use loupe::uplink::{Central, ProvisionedSite, Secret, UplinkConfig, block_on, drain};
use serde_json::{Value, json};
use support::central::until;
use support::postgres::Postgres;
use support::{Assets, loupe, plate_recipe, samples, succeed};
use tempfile::TempDir;

struct Daemon(Child);

impl Daemon {
    fn start(folder: &Path) -> Self {
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = loupe();
        command.args(["run", "--config"]).arg(folder.join("loupe.toml")).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap())
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already in every test that passes.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn provision(server: &Postgres, code: &str) -> ProvisionedSite {
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.provision_site(code, code, None).await }).unwrap()
}

/// Run the daemon by `more` until it has inspected its pictures and delivered everything, and stop it.
fn run_by(folder: &Path, site: &ProvisionedSite, threshold: &str, more: &str) {
    plate_recipe(folder, &Assets::get().bank(), &format!("threshold = {threshold}\n"));
    let images = samples().join("plate/test/scratch");
    let text = format!(
        "[site]\ncode = \"plant-07\"\nid = \"{}\"\n[storage]\nstate_dir = \"state\"\n[uplink]\ndsn = \"{}\"\n{more}\n\
         [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
         source = {{ kind = \"folder\", path = \"{}\" }}\n",
        site.site_id,
        site.dsn.expose(),
        images.display()
    );
    fs::write(folder.join("loupe.toml"), text).unwrap();
    let counters =
        || LedgerReader::open(&folder.join("state")).and_then(|reader| reader.counters()).unwrap_or_default();
    let before = counters();
    let daemon = Daemon::start(folder);
    until("inspects and delivers", || {
        let now = counters();
        now.captured > before.captured + 3 && now.pending == 0
    });
    daemon.stop();
}

/// `loupe config history --json` of the daemon below `folder`.
fn history(folder: &Path, more: &[&str]) -> Vec<Value> {
    let mut command = loupe();
    command.args(["config", "history", "--json", "--limit", "10000", "--state"]).arg(folder.join("state")).args(more);
    let document: Value = serde_json::from_slice(&succeed(&mut command).stdout).unwrap();
    document["changes"].as_array().unwrap().clone()
}

/// Files below `folder` that hold `word`.
fn files_with(folder: &Path, word: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, word));
        } else if fs::read(&path).unwrap().windows(word.len()).any(|window| window == word.as_bytes()) {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_daemon_records_each_change_once_and_no_secret() {
    let Some(server) = support::central::start() else { return };
    let site = provision(&server, "plant-07");
    let folder = TempDir::new().unwrap();
    let first_words = "[change]\nby = \"Kim\"\nreason = \"first start\"\n[dashboard]\nlisten = \"127.0.0.1:0\"";
    run_by(folder.path(), &site, "0.5", first_words);
    let first = history(folder.path(), &[]);
    assert!(first.len() > 20, "{first:?}");
    assert!(first.iter().all(|change| change["old_value"].is_null() && change["changed_by"] == "Kim"), "{first:?}");

    // Nothing changed: a start writes nothing.
    run_by(folder.path(), &site, "0.5", first_words);
    assert_eq!(history(folder.path(), &[]).len(), first.len());

    // A threshold of the recipe, a table gone, and words that nobody renewed.
    run_by(folder.path(), &site, "0.6", "[change]\nby = \"Kim\"\nreason = \"first start\"");
    let mut changed: BTreeMap<String, (Value, Value)> = BTreeMap::new();
    let all = history(folder.path(), &[]);
    for change in &all[..all.len() - first.len()] {
        assert_eq!((&change["changed_by"], &change["source"]), (&Value::Null, &json!("file")), "{change}");
        let key = change["config_key"].as_str().unwrap().to_owned();
        changed.insert(key, (change["old_value"].clone(), change["new_value"].clone()));
    }
    let keys: Vec<&str> = changed.keys().map(String::as_str).collect();
    let recipe = "stations.plates.recipe";
    let threshold = format!("{recipe}.anomaly.threshold");
    assert_eq!(keys, ["dashboard.allow_remote", "dashboard.listen", &threshold, &format!("{recipe}_sha256")]);
    assert_eq!(changed[&threshold], (json!(0.5), json!(0.6)));
    assert_eq!(changed["dashboard.allow_remote"], (json!(false), Value::Null));
    assert_eq!(history(folder.path(), &["--key", recipe]).len(), 4 + 1, "four keys at first, one of them again");
    let said = String::from_utf8(
        succeed(loupe().args(["config", "history", "--state"]).arg(folder.path().join("state"))).stdout,
    )
    .unwrap();
    assert!(said.contains("anomaly.threshold: 0.5 → 0.6") && said.contains("by file, Kim: first start"), "{said}");
    assert!(said.contains("uplink.dsn: (digest "), "{said}");

    // The centre has the same rows, once.
    let there = server.lines("SELECT config_key FROM loupe.config_history ORDER BY occurred_at, config_key");
    assert_eq!(there.len(), all.len(), "{there:?}");
    assert_eq!(server.query("SELECT count(DISTINCT change_id) FROM loupe.config_history"), "2");
    let changes = server.lines(
        "SELECT site_code, config_key, old_value, coalesce(new_value::text, 'gone') FROM loupe.v_config_changes
         WHERE config_key ~ '^(dashboard|stations.*threshold)' ORDER BY 2",
    );
    let expected = [
        "plant-07|dashboard.allow_remote|false|gone".to_owned(),
        "plant-07|dashboard.listen|\"127.0.0.1:0\"|gone".to_owned(),
        format!("plant-07|{threshold}|0.5|0.6"),
    ];
    assert_eq!(changes, expected);

    // The password is in the configuration and nowhere else: not in the ledger, its log, a picture or the log of the daemon.
    let password = site.password.expose();
    assert_eq!(files_with(folder.path(), password), [folder.path().join("loupe.toml")]);
    let rows = format!("SELECT count(*) FROM loupe.config_history h WHERE to_jsonb(h)::text LIKE '%{password}%'");
    assert_eq!(server.query(&rows), "0");
    assert!(!said.contains(password));
    succeed(loupe().args(["outbox", "verify", "--state"]).arg(folder.path().join("state")));
}

fn record(pairs: impl IntoIterator<Item = (String, String)>) -> ConfigRecord {
    let value = |json| ConfigValue { json, source: ConfigSource::File };
    let values = pairs.into_iter().map(|(key, json)| (key, value(json))).collect();
    ConfigRecord { values, ..ConfigRecord::default() }
}

fn pairs(values: &[(&str, &str)]) -> ConfigRecord {
    record(values.iter().map(|(key, json)| ((*key).to_owned(), (*json).to_owned())))
}

#[test]
fn a_thousand_keys_are_one_unit_and_one_that_is_gone_is_one_row() {
    let Some(server) = support::central::start() else { return };
    let site = provision(&server, "large");
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let keys = |count: u32| record((0..count).map(|key| (format!("section.key{key:04}"), format!("\"값 {key}\""))));
    assert_eq!(ledger.record_configuration(keys(1_000)).unwrap(), 1_000);
    assert_eq!(ledger.record_configuration(keys(1_000)).unwrap(), 0);
    assert_eq!(ledger.record_configuration(keys(999)).unwrap(), 1);
    let config = UplinkConfig { dsn: site.dsn.clone(), site_id: None };
    assert_eq!(drain(ledger.clone(), &config, |_| ()).unwrap().delivered, 2);
    let there =
        "SELECT count(*), count(DISTINCT id), count(DISTINCT change_id), count(new_value) FROM loupe.config_history";
    assert_eq!(server.query(there), "1001|1001|2|1000");
    assert_eq!(
        server.query("SELECT config_key, old_value FROM loupe.config_history WHERE new_value IS NULL"),
        "section.key0999|\"값 999\""
    );
    support::central::proved(&ledger);
}

#[test]
fn a_device_that_differs_from_the_fleet_is_named() {
    let Some(server) = support::central::start() else { return };
    let mut devices = Vec::new();
    for (code, accept, secret) in [("a", "0.8", "1"), ("b", "0.7", "2"), ("c", "0.8", "3")] {
        let site = provision(&server, &format!("site-{code}"));
        let dir = TempDir::new().unwrap();
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        let (site_code, secret) = (format!("\"{code}\""), format!("{{\"sha256\":\"{secret}\"}}"));
        let values = [
            ("site.code", site_code.as_str()),
            ("uplink.dsn", &secret),
            ("match.accept", "0.1"),
            ("storage.verdict_days", "30"),
        ];
        ledger.record_configuration(pairs(&values)).unwrap();
        let values = [
            ("site.code", site_code.as_str()),
            ("uplink.dsn", &secret),
            ("match.accept", accept),
            ("runtime.workers", "0"),
        ];
        ledger.record_configuration(pairs(&values)).unwrap();
        drain(ledger.clone(), &UplinkConfig { dsn: site.dsn.clone(), site_id: None }, |_| ()).unwrap();
        devices.push((dir, ledger.device_id(), site));
    }
    let drift = "SELECT site_id, device_id, config_key, value, common_value, device_count, value_count
         FROM loupe.v_config_drift";
    let (_, device, site) = &devices[1];
    assert_eq!(server.lines(drift), [format!("{}|{device}|match.accept|0.7|0.8|3|2", site.site_id)]);
    // Each first start is left out, each later key is there: a value changed, a key gone, a key new.
    let changes = server.lines("SELECT config_key, count(*) FROM loupe.v_config_changes GROUP BY 1 ORDER BY 1");
    assert_eq!(changes, ["match.accept|3", "runtime.workers|3", "storage.verdict_days|3"]);
}
