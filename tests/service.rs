//! The daemon as systemd sees it: ready, alive, stopping.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::ledger::LedgerReader;
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
        Daemon { child: spawn(folder.path()), notify, folder }
    }

    /// The same daemon once more, after its end.
    fn restart(&mut self) {
        self.child = spawn(self.folder.path());
    }

    /// Wait for so many inspections, of all starts together.
    fn wait_for_inspections(&self, count: u64) {
        let watch = Stopwatch::start();
        while self.inspected() < count {
            assert!(watch.elapsed() < PATIENCE, "{} inspections of {count}", self.inspected());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn inspected(&self) -> u64 {
        let counters = LedgerReader::open(&self.folder.path().join("state")).and_then(|reader| reader.counters());
        counters.map_or(0, |counters| counters.captured - counters.refused)
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

    /// End it as systemd does, and wait.
    fn stop(&mut self) {
        self.terminate();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{log}");
    }

    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

/// The daemon that `folder`/loupe.toml describes.
fn spawn(folder: &Path) -> Child {
    loupe()
        .args(["run", "--config"])
        .arg(folder.join("loupe.toml"))
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .env("WATCHDOG_USEC", "400000")
        .env_remove("WATCHDOG_PID")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn station(name: &str, path: &Path, more: &str) -> String {
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

#[test]
fn a_picture_of_a_watched_folder_is_inspected_once_however_the_daemon_ended() {
    let pictures = TempDir::new().unwrap();
    let put = |name: &str, from: &str| {
        // Named when it is whole, as a camera should.
        let hidden = pictures.path().join(".part");
        fs::copy(samples().join("plate/test/good").join(from), &hidden).unwrap();
        fs::rename(hidden, pictures.path().join(name)).unwrap();
    };
    for name in ["a.jpg", "b.jpg", "c.jpg"] {
        put(name, "000.jpg");
    }
    let mut daemon = Daemon::start(&station("plates", pictures.path(), ", watch = true"));
    daemon.wait_for_inspections(3);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    // While it is down one comes, one is taken anew and one goes. The last name is looked at last: with it all were seen.
    put("z.jpg", "001.jpg");
    put("b.jpg", "002.jpg");
    fs::remove_file(pictures.path().join("c.jpg")).unwrap();
    daemon.restart();
    daemon.wait_for_inspections(5);
    daemon.stop();
    put("zz.jpg", "003.jpg");
    daemon.restart();
    daemon.wait_for_inspections(6);
    daemon.stop();
    let reader = LedgerReader::open(&daemon.folder.path().join("state")).unwrap();
    let mut sources: Vec<String> = reader.recent(10).unwrap().into_iter().map(|one| one.source).collect();
    sources.sort();
    let names: Vec<&str> = sources.iter().filter_map(|source| source.rsplit('/').next()).collect();
    assert_eq!(names, ["a.jpg", "b.jpg", "b.jpg", "c.jpg", "z.jpg", "zz.jpg"]);
    let kept = reader.watched_files("plates").unwrap();
    assert_eq!(kept.len(), 4, "what left the folder is forgotten: {kept:?}");
}
