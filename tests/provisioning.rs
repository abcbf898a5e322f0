//! A site set up from the centre alone: the real daemon gets its recipe, takes it up when it is good, and keeps the one
//! before it when it is not.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::ledger::LedgerReader;
use loupe::matching::{Fit, FitRow, PartIndex, Scored, fitting};
use loupe::types::Digest;
use serde_json::Value;
use support::postgres::Postgres;
use support::{Assets, copy_folder, fail_with, loupe, root, samples, succeed, text};
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

    /// Inspections.
    fn committed(&self) -> u64 {
        LedgerReader::open(&self.state()).and_then(|reader| reader.counters()).map_or(0, |counters| counters.captured)
    }

    /// `loupe provisioning status --json`
    fn status(&self) -> Value {
        let output =
            loupe().args(["provisioning", "status", "--json", "--config"]).arg(self.config()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Its one station.
    fn station(&self) -> Value {
        self.status()["stations"][0].clone()
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

    // A good one takes over between two frames, while it runs.
    let third = publish(&server, work.path(), &Needs::Nothing, "3");
    device.until("serving the third", |device| device.station()["serving_sha256"] == *third);
    let station = device.station();
    assert_eq!((&station["taken_sha256"], &station["is_waiting"]), (&third.clone().into(), &false.into()));
    let before = device.committed();
    device.until("inspecting by it", |device| device.committed() >= before + 3);
    assert!(device.log().contains("the running station took up the centre's recipe"), "{}", device.log());
    // The centre knows: what was refused and why, and what serves now.
    let said = |outcome: &str| {
        format!("SELECT count(*) FROM loupe.provision_reports WHERE subject = 'plates' AND outcome = '{outcome}'")
    };
    device.until("told", |_| server.query(&said("serving")) == "2");
    assert_eq!(server.query(&said("refused")), "1");
    let status = || {
        let output = succeed(loupe().args(["publish", "status", "--json", "--dsn", &server.dsn()]));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["sites"][0].clone()
    };
    let state = status();
    assert_eq!((&state["sha256"], &state["is_as_wanted"]), (&third.clone().into(), &true.into()), "{state}");
    assert_eq!(state["previous_sha256"], *first);
    drop(daemon);
    let before = device.committed();
    let daemon = device.start();
    device.until("inspecting again", |device| device.committed() >= before + 3);
    assert_eq!(device.station()["serving_sha256"], *third);

    // Killed with a bad one assigned, it starts with the good one; and its file is made anew from the ledger.
    publish(&server, work.path(), &Needs::Bank, "4");
    device.until("refused again", |device| !device.station()["refused_sha256"].is_null());
    device.until("told of it", |_| status()["outcome"] == "refused");
    let state = status();
    assert!(state["detail"].as_str().unwrap().contains("/nowhere/bank") && state["is_as_wanted"] == false, "{state}");
    assert_eq!(state["previous_sha256"], *third, "what goes on serving");
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
    let places: Vec<&str> = loupe::failpoint::ALL.iter().copied().filter(|name| name.contains(".recipe.")).collect();
    assert_eq!(places.len(), 6, "{places:?}");
    for place in places {
        let sha256 = publish(&server, work.path(), &Needs::Nothing, place);
        let mut daemon = device.start_armed(&format!("{place}=kill"));
        let watch = Stopwatch::start();
        while daemon.0.try_wait().unwrap().is_none() {
            assert!(watch.elapsed() < PATIENCE, "it never came to {place}: {}", device.log());
            std::thread::yield_now();
        }
        let taken = device.station()["taken_sha256"].clone();
        let is_taken = place == "downlink.recipe.taken" || place.starts_with("pipeline.");
        let expected = if is_taken { Value::from(sha256.clone()) } else { before.clone() };
        assert_eq!(taken, expected, "killed at {place}");
        let count = device.committed();
        let daemon = device.start();
        device.until("serving", |device| device.station()["serving_sha256"] == *sha256);
        device.until("inspecting", |device| device.committed() >= count + 2);
        drop(daemon);
        before = Value::from(sha256);
    }
}

/// A station that matches parts by a recipe of its own, at an index of its own.
fn matching_device(server: &Postgres) -> (Device, PathBuf) {
    let device = Device::new(server, "plant-07");
    let index = device.folder.path().join("index");
    copy_folder(&Assets::get().index(), &index);
    let model = root().join("models/mobilenetv2");
    fs::write(
        device.folder.path().join("parts.toml"),
        format!("name = \"parts\"\n[match]\nindex = \"index\"\nmodel = \"{}\"\nuse_fit = true\n", model.display()),
    )
    .unwrap();
    let config = fs::read_to_string(device.config()).unwrap();
    let config = config.replace("\"central\"", "\"parts.toml\"").replace("plate/good", "parts/queries/3009");
    fs::write(device.config(), config).unwrap();
    (device, index)
}

/// A fit of the generation that `target` tells apart from others; its file and digest.
fn fitted(folder: &Path, generation_sha256: Digest, target: f32) -> (PathBuf, Digest) {
    let scored = |similarity| Scored { similarity, ..Scored::default() };
    let candidates = vec![("3009".to_owned(), scored(0.9)), ("3001".to_owned(), scored(0.1))];
    let row = FitRow { part_id: "3009".to_owned(), candidates };
    let fit = fitting::fit(generation_sha256, &vec![row; 60], 0.1, target).unwrap();
    let path = folder.join("fit.json");
    fs::write(&path, serde_json::to_vec(&fit).unwrap()).unwrap();
    (path.clone(), Digest::of_file(&path).unwrap())
}

#[test]
fn a_fit_of_the_centre_is_searched_by_at_once_and_one_of_another_index_is_refused() {
    let Some(server) = Postgres::start() else { return };
    succeed(loupe().args(["db", "migrate", "--dsn", &server.dsn()]));
    let (device, index) = matching_device(&server);
    let work = TempDir::new().unwrap();
    let generation = PartIndex::open(&index).unwrap();
    let (name, generation) = (generation.generation_name(), generation.generation_sha256());
    let put = |path: &Path| succeed(loupe().args(["publish", "fit", "--dsn", &server.dsn()]).arg(path));
    let fit = |device: &Device| device.status()["fits"][0].clone();
    let decided_by = |sha256: Digest| {
        server.query(&format!(
            "SELECT count(*) FROM loupe.inspections i JOIN loupe.provenances p
                ON p.site_id = i.site_id AND p.sha256 = i.provenance_sha256
             WHERE p.record::jsonb -> 'calibration_sha256s' ->> 'match.fit' = '{sha256}'"
        ))
    };

    // One of an index that is not here is refused in words, and nothing changes.
    let other = Digest::of(b"an index elsewhere");
    put(&fitted(work.path(), other, 0.01).0);
    let daemon = device.start();
    device.until("inspecting", |device| device.committed() >= 2);
    device.until("refused", |device| fit(device)["refused_error"].is_string());
    let said = fit(&device)["refused_error"].to_string();
    assert!(said.contains(&format!("gen-{}", other.short())) && said.contains(&name), "{said}");
    succeed(loupe().args(["publish", "withdraw", "fit", &format!("gen-{}", other.short()), "--dsn", &server.dsn()]));
    device.until("forgotten", |device| fit(device).is_null());

    // The right one decides within seconds, without a restart.
    let (path, first) = fitted(work.path(), generation, 0.01);
    put(&path);
    device.until("decided by the fit", |_| decided_by(first) != "0");
    assert_eq!(fit(&device)["taken_sha256"], first.to_string());
    // What the search could not read never comes near it.
    server.query("UPDATE loupe.fits SET body = '{', sha256 = sha256('{') WHERE is_active");
    device.until("refused", |device| fit(device)["refused_error"].is_string());
    assert_eq!(fit(&device)["taken_sha256"], first.to_string());
    let before = device.committed();
    device.until("inspecting still", |device| device.committed() >= before + 2);
    assert_eq!(Digest::of_file(&Fit::path(&index, &name)).unwrap(), first);
    let (path, second) = fitted(work.path(), generation, 0.02);
    put(&path);
    device.until("decided by the second", |_| decided_by(second) != "0");
    // Taken back, the recipe's own thresholds decide; the centre was told of each step.
    succeed(loupe().args(["publish", "withdraw", "fit", &name, "--dsn", &server.dsn()]));
    device.until("taken back", |_| !Fit::path(&index, &name).exists());
    let told =
        format!("SELECT string_agg(outcome, ' ' ORDER BY id) FROM loupe.provision_reports WHERE subject = '{name}'");
    device.until("told", |_| server.query(&told) == "serving refused serving withdrawn");
    drop(daemon);

    let broken = work.path().join("broken.json");
    fs::write(&broken, "{}").unwrap();
    let said = fail_with(loupe().args(["publish", "fit", "--dsn", &server.dsn()]).arg(&broken), 78);
    assert!(said.contains("broken.json"), "{said}");
}
