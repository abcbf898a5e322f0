//! The page in a real browser: what an operator sees is what the ledger holds.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use support::{Assets, inspect, loupe, plate_recipe, root, samples, succeed};
use tempfile::TempDir;

/// Longest wait for the page to load, connect and draw.
const PATIENCE: Duration = Duration::from_secs(40);
/// Time for one answer of the browser's own server.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// A browser that shows `url`; its own list of pages, with their titles, is served on `port`. `None` where no Chromium
/// is installed, said on stdout.
fn browse(url: &str, profile: &Path, port: u16) -> Option<Child> {
    let installed = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
    let Some(browser) = installed.into_iter().find(|path| Path::new(path).exists()) else {
        println!("skipped: Chromium is not installed");
        return None;
    };
    let browser = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--remote-debugging-port={port}"))
        .arg(url)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Some(browser)
}

/// What a GET answers, or nothing while nobody listens.
fn get(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    // The browser's server leaves the connection open after its answer: what came within the time is the answer.
    stream.set_read_timeout(Some(ANSWER_TIME)).unwrap();
    let asked = write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _timed_out = stream.read_to_end(&mut answer);
    if asked.is_ok() { String::from_utf8_lossy(&answer).into_owned() } else { String::new() }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_page_shows_the_verdict_of_the_last_inspection() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    plate_recipe(folder.path(), &assets.bank(), "");
    let config = folder.path().join("loupe.toml");
    let source = samples().join("plate/test/crack");
    std::fs::write(
        &config,
        format!(
            "[site]\ncode = \"test-site\"\nname = \"Test <site>\"\n[storage]\nstate_dir = \"state\"\nartifacts = \"all\"\n\
             [dashboard]\nlisten = \"127.0.0.1:0\"\n[[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
             source = {{ kind = \"folder\", path = \"{}\" }}\n",
            source.display()
        ),
    )
    .unwrap();
    let mut daemon = loupe().args(["run", "--config"]).arg(&config).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(daemon.stderr.take().unwrap());
    let mut lines = log.lines().map_while(Result::ok);
    let url = lines
        .find_map(|line| line.find("http://").map(|at| line[at..].trim().to_owned()))
        .expect("an address in the log");
    let port = free_port();
    let browser = browse(&url, &folder.path().join("profile"), port);
    let watch = Stopwatch::start();
    // The page's script sets its title to the current verdict once the first inspection has reached it.
    let has_title = |pages: &str| pages.contains("\"FAIL · Loupe\"") || pages.contains("FAIL \\u00B7 Loupe");
    let mut pages = String::new();
    while browser.is_some() && !has_title(&pages) && watch.elapsed() < PATIENCE {
        pages = get(port, "/json");
        std::thread::yield_now();
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let Some(mut browser) = browser else { return };
    browser.kill().unwrap();
    browser.wait().unwrap();
    assert!(has_title(&pages), "no FAIL in the title of any page:\n{pages}");
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
    succeed(&mut loupe_on(&["kit", "start", "set", "--station", "tray", "--by", "kim"]));
    let config = folder.path().join("loupe.toml");
    std::fs::write(
        &config,
        format!(
            "[site]\ncode = \"test-site\"\n[storage]\nstate_dir = \"state\"\n[dashboard]\nlisten = \"127.0.0.1:0\"\n\
             [[stations]]\nname = \"tray\"\nrecipe = \"whole.toml\"\nsource = {{ kind = \"folder\", path = \"{}\" }}\n",
            pictures.display()
        ),
    )
    .unwrap();
    let mut daemon = loupe().args(["run", "--config"]).arg(&config).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(daemon.stderr.take().unwrap());
    let mut lines = log.lines().map_while(Result::ok);
    let url = lines
        .find_map(|line| line.find("http://").map(|at| line[at..].trim().to_owned()))
        .expect("an address in the log");
    let port = free_port();
    let browser = browse(&format!("{url}kits"), &folder.path().join("profile"), port);
    let watch = Stopwatch::start();
    let has_title =
        |pages: &str| pages.contains("\"Complete · Kits · Loupe\"") || pages.contains("Complete \\u00B7 Kits");
    let mut pages = String::new();
    while browser.is_some() && !has_title(&pages) && watch.elapsed() < PATIENCE {
        pages = get(port, "/json");
        std::thread::yield_now();
    }
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
    daemon.kill().unwrap();
    daemon.wait().unwrap();
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
    let Some(mut browser) = browser else { return };
    browser.kill().unwrap();
    browser.wait().unwrap();
    assert!(has_title(&pages), "no complete kit in the title of any page:\n{pages}");
}
