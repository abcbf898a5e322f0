//! The daemon as systemd sees it: ready, alive, stopping.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use support::{Assets, loupe, plate_recipe, samples, text};
use tempfile::TempDir;

/// Longest wait for anything the daemon is to say.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    child: Child,
    notify: UnixDatagram,
    folder: TempDir,
}

impl Daemon {
    fn start(stations: &str) -> Daemon {
        let assets = Assets::get();
        let folder = TempDir::new().unwrap();
        let recipe = plate_recipe(folder.path(), &assets.bank(), "");
        assert!(recipe.exists());
        let config = folder.path().join("loupe.toml");
        fs::write(
            &config,
            format!(
                "[site]\ncode = \"test-site\"\n[storage]\nstate_dir = \"state\"\nartifacts = \"all\"\n\
                 [dashboard]\nlisten = \"127.0.0.1:0\"\n{stations}"
            ),
        )
        .unwrap();
        let socket = folder.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = loupe()
            .args(["run", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "400000")
            .env_remove("WATCHDOG_PID")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Daemon { child, notify, folder }
    }

    /// Read notifications until one holds `wanted`.
    fn wait_for(&self, wanted: &str) {
        let mut buffer = [0_u8; 4096];
        let mut heard = Vec::new();
        loop {
            let Ok(size) = self.notify.recv(&mut buffer) else { panic!("{wanted} never came; heard {heard:?}") };
            let message = text(&buffer[..size]);
            if message.lines().any(|line| line.starts_with(wanted)) {
                return;
            }
            heard.push(message);
        }
    }

    /// The dashboard's address, from the log.
    fn address(&mut self) -> String {
        for line in BufReader::new(self.child.stderr.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                return rest.trim_end_matches('/').to_owned();
            }
        }
        panic!("the log names no dashboard")
    }

    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn station(name: &str, path: &std::path::Path, more: &str) -> String {
    format!(
        "[[stations]]\nname = \"{name}\"\nrecipe = \"plate.toml\"\nsource = {{ kind = \"folder\", path = \"{}\"{more} }}\n",
        path.display()
    )
}

#[test]
fn systemd_hears_ready_watchdog_and_stopping() {
    let mut daemon = Daemon::start(&station("plates", &samples().join("plate/test/good"), ""));
    daemon.wait_for("READY=1");
    daemon.wait_for("WATCHDOG=1");
    // Idle by design, after the folder's end: the watchdog is fed on.
    daemon.wait_for("WATCHDOG=1");
    daemon.terminate();
    daemon.wait_for("STOPPING=1");
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn counters_balance() {
    let folder = samples().join("plate/test/good");
    let images = fs::read_dir(&folder).unwrap().count();
    let mut daemon = Daemon::start(&station("plates", &folder, ""));
    let address = daemon.address();
    daemon.wait_for("READY=1");
    let status = loop {
        let answer = get(&address, "/api/v1/status");
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        // The configuration is one more.
        if status["counters"]["committed"] == images + 1 {
            break status;
        }
        daemon.wait_for("WATCHDOG=1");
    };
    let counters = &status["counters"];
    let number = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("{name} is missing: {counters}"));
    assert_eq!(number("captured"), number("decided") + number("refused"), "{counters}");
    assert_eq!(number("committed"), number("delivered") + number("pending"), "{counters}");
    assert_eq!(number("decided") + 1, number("committed"), "{counters}");
    let metrics = get(&address, "/metrics");
    assert!(metrics.contains("loupe_"), "{metrics}");
    daemon.terminate();
    assert!(daemon.child.wait().unwrap().success());
    let verified = loupe()
        .args(["outbox", "verify", "--json", "--state"])
        .arg(daemon.folder.path().join("state"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
}
