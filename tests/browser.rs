//! The page in a real browser: what an operator sees is what the ledger holds.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use loupe::clock::Stopwatch;
use support::browser::{Browser, PATIENCE};
use support::{Assets, inspect, loupe, plate_recipe, root, samples, succeed};
use tempfile::TempDir;

/// The running program; killed when the test ends.
struct Daemon(Child);

impl Daemon {
    /// With the address of its page, once it says it.
    fn start(config: &Path) -> (Self, String) {
        let mut child = loupe().args(["run", "--config"]).arg(config).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = log.lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| line.find("http://").map(|at| line[at..].trim().to_owned()))
            .expect("an address in the log");
        // Read on: a full pipe would stop the daemon.
        std::thread::spawn(move || lines.count());
        (Self(child), url)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A configuration of one station, `line`, that looks at `pictures`; `more`: further keys of its source.
fn one_station(folder: &Path, recipe: &str, pictures: &Path, more: &str) -> PathBuf {
    let config = folder.join("loupe.toml");
    let text = format!(
        "[site]\ncode = \"test-site\"\nname = \"Test <site>\"\n[storage]\nstate_dir = \"state\"\nartifacts = \"all\"\n\
         [dashboard]\nlisten = \"127.0.0.1:0\"\n[[stations]]\nname = \"line\"\nrecipe = \"{recipe}\"\n\
         source = {{ kind = \"folder\", path = \"{}\"{more} }}\n",
        pictures.display()
    );
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn the_page_shows_the_verdict_of_the_last_inspection() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    plate_recipe(folder.path(), &assets.bank(), "");
    let config = one_station(folder.path(), "plate.toml", &samples().join("plate/test/crack"), "");
    let (_daemon, url) = Daemon::start(&config);
    let Some(mut browser) = Browser::open(&url, &folder.path().join("profile")) else { return };
    // The page's script sets its title to the current verdict once the first inspection has reached it.
    browser.until("document.title === 'FAIL · Loupe'");

    let ledger = |delivered: u32, is_balanced: bool| {
        let counters = format!(
            "{{captured: 8, decided: 7, refused: 1, refused_by_reason: {{}}, in_flight: 0, dropped: 0, committed: 7, \
             delivered: {delivered}, pending: 1, quarantined: 1, is_capture_balanced: true, is_ledger_balanced: {is_balanced}}}"
        );
        let draw = format!("drawCounters({{counters: {counters}, frames_per_second: 1, uptime_s: 1, version: ''}})");
        format!("({draw}, document.getElementById('balance-ledger').textContent)")
    };
    let set_aside = browser.value(&ledger(5, true)).as_str().unwrap().to_owned();
    assert!(set_aside.contains("set aside1") && set_aside.ends_with("✓ balanced"), "{set_aside}");
    let lost = browser.value(&ledger(4, false)).as_str().unwrap().to_owned();
    assert!(lost.ends_with("does not balance"), "{lost}");
    let sure = "{probability: 0.921, required_probability: 0.99, unknown_probability: 0.03, top_k: []}";
    let said = browser.value(&format!("surenessOf({sure})"));
    assert_eq!(said, "92.1 % sure, 99.0 % asked; 3.0 % no part of the catalogue");
    assert_eq!(browser.value("surenessOf({similarity: 0.9})"), "", "an index without a fit is sure of nothing");
}

/// The line goes on while somebody types: what they say is stored of the inspection they looked at.
#[test]
fn what_is_typed_into_a_form_is_said_of_the_inspection_that_was_shown() {
    let folder = TempDir::new().unwrap();
    plate_recipe(folder.path(), &Assets::get().bank(), "");
    let config = one_station(folder.path(), "plate.toml", &samples().join("plate/test/crack"), ", loop = true");
    let state = folder.path().join("state");
    let (_daemon, url) = Daemon::start(&config);
    let Some(mut browser) = Browser::open(&url, &folder.path().join("profile")) else { return };
    browser.until("document.title === 'FAIL · Loupe' && !document.getElementById('feedback-section').hidden");
    browser.click("#feedback-author");
    browser.until("document.activeElement.id === 'feedback-author'");
    let code = browser.value("shown().code").as_str().unwrap().to_owned();
    let newest = browser.value("live().inspection_id").as_str().unwrap().to_owned();
    browser.type_text("kim");
    browser.until(&format!("live().inspection_id !== {newest:?}"));
    browser.click("#feedback-notes");
    browser.type_text("a reflection");
    browser.click("#feedback-send");
    browser.until("document.getElementById('feedback-said').textContent === 'Stored.'");
    assert_eq!(browser.value("document.getElementById('code').textContent"), code);

    let output = succeed(loupe().args(["feedback", "list", "--json", "--state"]).arg(&state));
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = &listed["feedback"];
    assert_eq!(said.as_array().map(Vec::len), Some(1), "{said}");
    assert_eq!(
        (&said[0]["code"], &said[0]["author"], &said[0]["notes"]),
        (&code.into(), &"kim".into(), &"a reflection".into()),
        "{said}"
    );
}

/// A kit of whatever the picture is named, counted by the daemon, shown by the page, corrected by the command line.
#[test]
fn the_kit_page_shows_a_complete_kit_and_orders_reach_the_running_daemon() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let (state, pictures) = (folder.path().join("state"), folder.path().join("pictures"));
    std::fs::create_dir(&pictures).unwrap();
    let view = std::fs::read_dir(samples().join("parts/templates/3001")).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(&view, pictures.join("tray.png")).unwrap();
    std::fs::write(
        folder.path().join("whole.toml"),
        format!(
            "name = \"whole\"\n[locate]\nkind = \"whole\"\n[match]\nindex = \"{}\"\nmodel = \"{}\"\n\
             accept_similarity = -1.0\naccept_margin = 0.0\ngroup_margin = 0.0\n",
            assets.index().display(),
            root().join("models/mobilenetv2").display()
        ),
    )
    .unwrap();
    let named = inspect(&folder.path().join("whole.toml"), &folder.path().join("first"), &[pictures.join("tray.png")]);
    let part = named[0]["items"][0]["part_id"].as_str().unwrap().to_owned();
    let loupe_on = |args: &[&str]| {
        let mut command = loupe();
        command.args(args).arg("--state").arg(&state);
        command
    };
    let parts = samples().join("parts").display().to_string();
    succeed(&mut loupe_on(&["catalog", "import", &parts]));
    let kit = folder.path().join("kit.csv");
    std::fs::write(&kit, format!("kit_code,part_number,quantity,kit_name\nset,{part},1,Set <one>\n")).unwrap();
    succeed(&mut loupe_on(&["kit", "import", &kit.display().to_string()]));
    succeed(&mut loupe_on(&["kit", "start", "set", "--station", "line", "--by", "kim"]));
    let config = one_station(folder.path(), "whole.toml", &pictures, "");
    let (daemon, url) = Daemon::start(&config);
    if let Some(mut browser) = Browser::open(&format!("{url}kits"), &folder.path().join("profile")) {
        browser.until("document.title === 'Complete · Kits · Loupe'");
    }
    let watch = Stopwatch::start();
    let locked = loupe_on(&["catalog", "import", &parts]).output().unwrap();
    let status = || {
        let output = succeed(&mut loupe_on(&["kit", "status", "open", "--json"]));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["count"]["found"].as_u64().unwrap()
    };
    while status() == 0 && watch.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let found = status();
    let trays = succeed(&mut loupe_on(&["kit", "status", "open", "--json"])).stdout;
    let trays: serde_json::Value = serde_json::from_slice(&trays).unwrap();
    let code = trays["trays"][0]["code"].as_str().unwrap().to_owned();
    succeed(&mut loupe_on(&["kit", "undo-tray", "open", "--by", "kim"]));
    let after = status();
    let nowhere = loupe_on(&["kit", "start", "set", "--station", "nowhere", "--by", "kim"]).output().unwrap();
    drop(daemon);
    assert_eq!((found, after), (1, 0));
    // Killed with the session open: it goes on where it was, and is booked once.
    succeed(&mut loupe_on(&["kit", "add", "open", &code]));
    succeed(&mut loupe_on(&["kit", "finish", "open", "--by", "kim"]));
    let stock = succeed(&mut loupe_on(&["inventory", "status", "--json"])).stdout;
    let stock: serde_json::Value = serde_json::from_slice(&stock).unwrap();
    assert_eq!(
        (&stock["stock"][0]["part_number"], &stock["stock"][0]["quantity"]),
        (&part.into(), &1.into()),
        "{stock}"
    );
    succeed(&mut loupe_on(&["outbox", "verify"]));
    let said = String::from_utf8_lossy(&locked.stderr).into_owned();
    assert!(!locked.status.success() && said.contains("while the daemon is stopped"), "{said}");
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(said.contains("there is no station `nowhere`"), "{said}");
}
