//! A device that fails under a running daemon: every frame meanwhile is a committed HOLD with its reason, the page says so,
//! and inspecting goes on once the session is open again and its goldens pass.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Assets, loupe, plate_recipe, samples, text};
use tempfile::TempDir;

/// Longest wait for one sign of life.
const PATIENCE: Duration = Duration::from_secs(60);
/// Looks at the page, a fifth of a second apart, before giving up.
const LOOKS_MAX: usize = 300;

struct Daemon {
    child: Child,
    address: String,
    notify: UnixDatagram,
    folder: TempDir,
}

impl Daemon {
    /// Stations that look at good plates again and again, 20 times a second in all.
    fn start(stations: &[&str], recipe: &str, failpoints: &str) -> Daemon {
        let assets = Assets::get();
        let folder = TempDir::new().unwrap();
        plate_recipe(folder.path(), &assets.bank(), recipe);
        let plates = samples().join("plate/test/good");
        let rate_hz = 20.0 / stations.len() as f64;
        let mut config = format!(
            "[site]\ncode = \"test-site\"\n[storage]\nstate_dir = \"state\"\nartifacts = \"none\"\n\
             [runtime]\nworkers = {}\n[dashboard]\nlisten = \"127.0.0.1:0\"\n",
            stations.len()
        );
        for name in stations {
            config += &format!(
                "[[stations]]\nname = \"{name}\"\nrecipe = \"plate.toml\"\n\
                 source = {{ kind = \"folder\", path = \"{}\", loop = true, rate_hz = {rate_hz:.1} }}\n",
                plates.display()
            );
        }
        let path = folder.path().join("loupe.toml");
        fs::write(&path, config).unwrap();
        let socket = folder.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut child = loupe()
            .args(["run", "--config"])
            .arg(&path)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "400000")
            .env("LOUPE_FAILPOINT", failpoints)
            .env_remove("WATCHDOG_PID")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the log names no dashboard: {said}");
            if let Some((_, rest)) = line.trim().split_once("http://") {
                break rest.trim_end_matches('/').to_owned();
            }
            said += &line;
        };
        // The log goes on; somebody has to read it.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Daemon { child, address, notify, folder }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn json(&self, path: &str) -> Value {
        let body = self.get(path);
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// Wait for the next sign of life: the watchdog is fed while stations move.
    fn next_sign(&self) {
        self.notify.recv(&mut [0; 4096]).expect("the daemon gives no sign of life");
    }

    /// Look until `is_so` of the status and the newest inspections.
    fn until(&self, what: &str, mut is_so: impl FnMut(&Value, &[Value]) -> bool) {
        for _ in 0..LOOKS_MAX {
            let status = self.json("/api/v1/status");
            let newest =
                self.json("/api/v1/inspections?limit=50")["inspections"].as_array().cloned().unwrap_or_default();
            if is_so(&status, &newest) {
                return;
            }
            self.next_sign();
        }
        panic!("{what} never came: {}", self.json("/api/v1/status"));
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let state = self.folder.path().join("state");
        let verified = loupe().args(["outbox", "verify", "--json", "--state"]).arg(&state).output().unwrap();
        assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
    }
}

fn is_held(inspection: &Value) -> bool {
    let reasons = inspection["reasons"].as_array().unwrap();
    reasons.iter().any(|reason| reason == "model.unavailable")
}

/// Good before, held while the device is away, good again; nothing lost. `lost` sessions of the model fail.
fn check_recovery(daemon: Daemon, lost: usize) {
    daemon.until("a good plate", |_, newest| newest.iter().any(|one| one["verdict"] == "pass"));
    daemon.until("the fault on the page", |status, newest| {
        let fault = status["providers"][0]["fault"].as_str();
        fault.is_some_and(|fault| fault.contains("failpoint")) && newest.first().is_some_and(is_held)
    });
    let metrics = daemon.get("/metrics");
    assert!(metrics.lines().any(|line| line.starts_with("loupe_model_up{") && line.ends_with(" 0")), "{metrics}");
    let mut held = BTreeSet::new();
    daemon.until("inspecting again", |status, newest| {
        for one in newest.iter().filter(|one| is_held(one)) {
            assert_eq!(one["verdict"], "hold", "{one}");
            held.insert(one["code"].to_string());
        }
        status["providers"][0]["fault"].is_null() && newest.first().is_some_and(|one| one["verdict"] == "pass")
    });
    // The first pause is at least half a second, the second of the same session a whole one, at 20 frames a second.
    assert!(held.len() >= if lost == 1 { 10 } else { 5 }, "{held:?}");
    daemon.until("the counters", |_, _| {
        let metrics = daemon.get("/metrics");
        let says = |name: &str, value: &str| {
            metrics.lines().any(|line| line.starts_with(name) && line.rsplit(' ').next() == Some(value))
        };
        says("loupe_model_faults_total{", &lost.to_string())
            && says("loupe_model_rebuilds_total{", &lost.to_string())
            && says("loupe_model_rebuild_failures_total{", "1")
            && says("loupe_model_up{", "1")
    });
    daemon.stop();
}

#[test]
fn a_lost_device_holds_every_frame_until_the_session_is_back() {
    check_recovery(Daemon::start(&["plates"], "", "model.run=error@40;model.rebuild=error@1"), 1);
}

/// A batched model on a CPU has a session a core.
fn sessions() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Two stations on one batched model, `lost` of whose sessions fail one after the other.
fn batched(lost: usize) -> Daemon {
    let recipe = "[anomaly.providers]\norder = [{ provider = \"cpu\" }]\nbatch_max = 4\nbatch_deadline_ms = 5\n";
    // Each takes the run after the one that the failpoint before it took.
    let faults = "model.run=error@40;".repeat(lost);
    let daemon = Daemon::start(&["left", "right"], recipe, &format!("{faults}model.rebuild=error@1"));
    daemon.until("runs of the shared session", |_, _| {
        let metrics = daemon.get("/metrics");
        metrics.lines().any(|line| line.starts_with("loupe_model_batches_total{") && !line.ends_with(" 0"))
    });
    daemon
}

#[test]
fn shared_sessions_that_are_all_lost_hold_all_their_stations_and_come_back() {
    check_recovery(batched(sessions()), sessions());
}

#[test]
fn one_lost_session_of_several_holds_its_own_frames_only() {
    if sessions() == 1 {
        println!("skipped: one core, one session");
        return;
    }
    let daemon = batched(1);
    let (mut held, mut passed_meanwhile) = (BTreeSet::new(), 0);
    let mut note =
        |newest: &[Value]| held.extend(newest.iter().filter(|one| is_held(one)).map(|one| one["code"].to_string()));
    daemon.until("the fault on the page", |status, newest| {
        note(newest);
        status["providers"][0]["fault"].as_str().is_some_and(|fault| fault.contains("failpoint"))
    });
    daemon.until("the session", |status, newest| {
        note(newest);
        passed_meanwhile += usize::from(newest.first().is_some_and(|one| one["verdict"] == "pass"));
        status["providers"][0]["fault"].is_null()
    });
    // The failed batch, and what its thread was waiting for already.
    assert!((1..=4).contains(&held.len()) && passed_meanwhile > 0, "{held:?}, {passed_meanwhile} looks saw a PASS");
    daemon.stop();
}

#[test]
fn reduced_precision_without_goldens_is_refused_at_the_start() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let models = folder.path().join("models");
    support::copy_folder(&support::root().join("models/mobilenetv2"), &models.join("mobilenetv2"));
    fs::remove_dir_all(models.join("mobilenetv2/golden")).unwrap();
    let recipe = format!(
        "name = \"plate\"\n[anomaly]\nbank = \"{}\"\nmodels = \"{}\"\n[anomaly.providers]\n\
         order = [{{ provider = \"tensorrt\", options = {{ trt_fp16_enable = \"1\" }} }}, {{ provider = \"cpu\" }}]\n",
        assets.bank().display(),
        models.display()
    );
    fs::write(folder.path().join("plate.toml"), recipe).unwrap();
    let config = format!(
        "[site]\ncode = \"test-site\"\n[storage]\nstate_dir = \"state\"\n\
         [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\nsource = {{ kind = \"folder\", path = \"{}\" }}\n",
        samples().join("plate/test/good").display()
    );
    let path = folder.path().join("loupe.toml");
    fs::write(&path, config).unwrap();
    let said = support::fail_with(loupe().args(["run", "--config"]).arg(&path), 78);
    assert!(said.contains("trt_fp16_enable") && said.contains("loupe model golden"), "{said}");
}
