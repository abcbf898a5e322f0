//! The page in a real browser: what an operator sees is what the ledger holds.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Assets, loupe, plate_recipe, samples, text};
use tempfile::TempDir;

/// Milliseconds of the browser's own time for the page to load, connect and draw.
const PAGE_MS: &str = "6000";

/// The document after its scripts ran; `None` where no Chromium is installed, said on stdout.
fn rendered(url: &str) -> Option<String> {
    let Some(browser) =
        ["/usr/bin/chromium", "/usr/bin/chromium-browser"].into_iter().find(|path| Path::new(path).exists())
    else {
        println!("skipped: Chromium is not installed");
        return None;
    };
    let profile = TempDir::new().unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--virtual-time-budget={PAGE_MS}"))
        .args(["--dump-dom", url])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    Some(text(&output.stdout))
}

#[test]
fn the_page_shows_the_last_inspection_with_verdict_and_reason() {
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
    let page = rendered(&url);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let Some(page) = page else { return };
    for expected in ["INS-", "FAIL", "anomaly.above_threshold", "plates", "Test &lt;site&gt;"] {
        assert!(page.contains(expected), "`{expected}` is not on the page:\n{page}");
    }
}
