//! A site set up from the centre alone: the real daemon gets its recipe, takes it up when it is good, and keeps the one
//! before it when it is not.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::ledger::LedgerReader;
use serde_json::Value;
use support::postgres::Postgres;
use support::{fail_with, loupe, samples, succeed, text};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

struct Device {
    folder: TempDir,
}

impl Device {
    /// Provision the site and configure a device that knows nothing but where the centre is.
    fn new(server: &Postgres, code: &str) -> Device {
        let output = succeed(loupe().args([
            "db",
            "provision-site",
            "--json",
            "--code",
            code,
            "--name",
            code,
            "--dsn",
            &server.dsn(),
        ]));
        let site: Value = serde_json::from_slice(&output.stdout).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("dsn"), site["dsn"].as_str().unwrap()).unwrap();
        fs::write(
            folder.path().join("loupe.toml"),
            format!(
                "[site]\ncode = \"{code}\"\nid = {}\n[storage]\nstate_dir = \"state\"\nartifacts = \"none\"\n\
                 [runtime]\nworkers = 1\n[uplink]\ndsn_file = \"dsn\"\npull_interval_s = 1\n\
                 [[stations]]\nname = \"plates\"\nrecipe = \"central\"\n\
                 source = {{ kind = \"folder\", path = \"{}\", loop = true, rate_hz = 10.0 }}\n",
                site["site_id"],
                samples().join("plate/good").display()
            ),
        )
        .unwrap();
        Device { folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("loupe.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn start(&self) -> Daemon {
        self.start_armed("")
    }

    /// `plan`: failpoints; empty: none.
    fn start_armed(&self, plan: &str) -> Daemon {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = loupe();
        command.args(["run", "--config"]).arg(self.config()).stdout(Stdio::null()).stderr(log);
        if !plan.is_empty() {
            command.env(loupe::failpoint::VARIABLE, plan);
        }
        Daemon(command.spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn committed(&self) -> u64 {
        LedgerReader::open(&self.state()).and_then(|reader| reader.counters()).map_or(0, |counters| counters.committed)
    }

    /// `loupe provisioning status --json`: its one station.
    fn station(&self) -> Value {
        let output =
            loupe().args(["provisioning", "status", "--json", "--config"]).arg(self.config()).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).map_or(Value::Null, |status| status["stations"][0].clone())
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&Device) -> bool) {
        let watch = Stopwatch::start();
        while !holds(self) {
            assert!(watch.elapsed() < PATIENCE, "not {what}: {}\n{}", self.station(), self.log());
            std::thread::yield_now();
        }
    }
}

/// Killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already is as good.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What a recipe of the test rests on.
enum Needs {
    /// Nothing but itself.
    Nothing,
    /// A bank that is on no machine.
    Bank,
}

/// Publish a recipe for the station; its digest.
fn publish(server: &Postgres, folder: &Path, needs: &Needs, version: &str) -> String {
    let path = folder.join("plate.toml");
    let stage = match needs {
        Needs::Nothing => "[locate]\nkind = \"blob\"\n",
        Needs::Bank => "[anomaly]\nbank = \"/nowhere/bank\"\nmodels = \"/nowhere\"\n",
    };
    fs::write(&path, format!("name = \"plate\"\nversion_label = \"{version}\"\n{stage}")).unwrap();
    let output = succeed(
        loupe()
            .args(["publish", "recipe", "--json", "--site", "plant-07", "--station", "plates", "--dsn", &server.dsn()])
            .arg(&path),
    );
    let published: Value = serde_json::from_slice(&output.stdout).unwrap();
    published["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn a_site_is_provisioned_from_nothing_and_a_bad_recipe_never_takes_over() {
    let Some(server) = Postgres::start() else { return };
    succeed(loupe().args(["db", "migrate", "--dsn", &server.dsn()]));
    let (device, other) = (Device::new(&server, "plant-07"), Device::new(&server, "plant-08"));
    let work = TempDir::new().unwrap();
    let parts = samples().join("parts/parts.csv");
    succeed(loupe().args(["publish", "catalog", "--site", "plant-07", "--dsn", &server.dsn()]).arg(&parts));
    let said = text(&succeed(loupe().args(["check", "--config"]).arg(device.config())).stdout);
    assert!(said.contains("has not come from the centre yet"), "{said}");

    // Nothing to inspect by, and yet it runs, and fetches what there is.
    let daemon = device.start();
    device.until("has the catalogue", |device| {
        LedgerReader::open(&device.state()).and_then(|reader| reader.parts()).is_ok_and(|parts| parts.len() > 2)
    });
    assert_eq!(device.committed(), 0);
    let first = publish(&server, work.path(), &Needs::Nothing, "1");
    device.until("inspecting", |device| device.committed() >= 3);
    assert_eq!(device.station()["serving_sha256"], *first);

    // A bank that is not on this machine: the station goes on, and says why.
    let bad = publish(&server, work.path(), &Needs::Bank, "2");
    device.until("refused", |device| device.station()["refused_sha256"] == *bad);
    let station = device.station();
    assert_eq!((&station["serving_sha256"], &station["taken_sha256"]), (&first.clone().into(), &first.clone().into()));
    assert!(station["refused_error"].as_str().unwrap().contains("/nowhere/bank"), "{station}");
    let before = device.committed();
    device.until("inspecting still", |device| device.committed() >= before + 3);

    // A good one waits for the restart, and then serves.
    let third = publish(&server, work.path(), &Needs::Nothing, "3");
    device.until("taken", |device| device.station()["taken_sha256"] == *third);
    let station = device.station();
    assert_eq!((&station["serving_sha256"], &station["waits_for_restart"]), (&first.clone().into(), &true.into()));
    let said = text(&succeed(loupe().args(["provisioning", "status", "--config"]).arg(device.config())).stdout);
    assert!(said.contains("waits for a restart"), "{said}");
    drop(daemon);
    let before = device.committed();
    let daemon = device.start();
    device.until("inspecting again", |device| device.committed() >= before + 3);
    assert_eq!(device.station()["serving_sha256"], *third);

    // Killed with a bad one assigned, it starts with the good one; and its file is made anew from the ledger.
    publish(&server, work.path(), &Needs::Bank, "4");
    device.until("refused again", |device| !device.station()["refused_sha256"].is_null());
    drop(daemon);
    let file = device.state().join("recipes").join(format!("{third}.toml"));
    fs::write(&file, "name = \"changed by hand\"\n").unwrap();
    let before = device.committed();
    let daemon = device.start();
    device.until("inspecting by the last good one", |device| device.committed() >= before + 3);
    assert_eq!(device.station()["serving_sha256"], *third);
    assert!(fs::read_to_string(&file).unwrap().contains("blob"), "the file was made anew");
    // The decisions name the recipes that they rest on.
    device.until("delivered", |_| {
        server.lines("SELECT DISTINCT p.record::jsonb ->> 'recipe_sha256' FROM loupe.provenances p ORDER BY 1").len()
            == 2
    });
    let mut used = vec![first, third];
    used.sort();
    assert_eq!(
        server.lines(
            "SELECT DISTINCT p.record::jsonb ->> 'recipe_sha256' FROM loupe.inspections i
             JOIN loupe.provenances p ON p.site_id = i.site_id AND p.sha256 = i.provenance_sha256 ORDER BY 1"
        ),
        used
    );
    drop(daemon);

    // The other site saw none of it.
    let daemon = other.start();
    other.until("asked the centre", |other| {
        let status =
            loupe().args(["provisioning", "status", "--json", "--config"]).arg(other.config()).output().unwrap();
        serde_json::from_slice::<Value>(&status.stdout).is_ok_and(|status| !status["pulled_at"].is_null())
    });
    drop(daemon);
    let reader = LedgerReader::open(&other.state()).unwrap();
    assert!(reader.parts().unwrap().is_empty() && reader.desired_recipe("plates").unwrap().is_none());
    assert_eq!(other.committed(), 0);
}

#[test]
fn a_central_recipe_needs_an_uplink() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("loupe.toml");
    fs::write(
        &config,
        format!(
            "[site]\ncode = \"plant-07\"\n[[stations]]\nname = \"a\"\nrecipe = \"central\"\n\
             source = {{ kind = \"folder\", path = \"{}\" }}\n",
            samples().join("plate/good").display()
        ),
    )
    .unwrap();
    let said = fail_with(loupe().args(["check", "--config"]).arg(&config), 78);
    assert!(said.contains("stations[0].recipe") && said.contains("[uplink]"), "{said}");
}

#[test]
fn killed_at_each_place_a_new_recipe_is_taken_whole_or_not_at_all() {
    let Some(server) = Postgres::start() else { return };
    succeed(loupe().args(["db", "migrate", "--dsn", &server.dsn()]));
    let device = Device::new(&server, "plant-07");
    let work = TempDir::new().unwrap();
    let mut before = Value::Null;
    let places: Vec<&str> =
        loupe::failpoint::ALL.iter().copied().filter(|name| name.starts_with("downlink.recipe.")).collect();
    assert_eq!(places.len(), 4, "{places:?}");
    for place in places {
        let sha256 = publish(&server, work.path(), &Needs::Nothing, place);
        let mut daemon = device.start_armed(&format!("{place}=kill"));
        let watch = Stopwatch::start();
        while daemon.0.try_wait().unwrap().is_none() {
            assert!(watch.elapsed() < PATIENCE, "it never came to {place}: {}", device.log());
            std::thread::yield_now();
        }
        let taken = device.station()["taken_sha256"].clone();
        let expected = if place == "downlink.recipe.taken" { Value::from(sha256.clone()) } else { before.clone() };
        assert_eq!(taken, expected, "killed at {place}");
        let count = device.committed();
        let daemon = device.start();
        device.until("taken", |device| device.station()["taken_sha256"] == *sha256);
        device.until("inspecting", |device| device.committed() >= count + 2);
        drop(daemon);
        before = Value::from(sha256);
    }
}
