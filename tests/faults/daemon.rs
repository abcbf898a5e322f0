//! The shipped program itself: `loupe run` on the bundled plates, killed at its own places and at random times.
//!
//! What it promises is what its dashboard shows: events are read as a screen would read them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::failpoint;

use crate::driver::Ack;
use crate::oracle::{Subject, migrate};
use crate::support::postgres::Postgres;
use crate::support::{Assets, loupe, plate_recipe, samples};
use crate::{scaled, seed};

/// Longest wait for anything the daemon is to do.
const PATIENCE_S: u64 = 60;

fn write_config(folder: &Path, subject: &Subject<'_>) {
    plate_recipe(folder, &Assets::get().bank(), "");
    fs::write(folder.join("dsn"), subject.dsn()).unwrap();
    let images = samples().join("plate/test/scratch");
    fs::write(
        folder.join("loupe.toml"),
        format!(
            "[site]\ncode = \"{}\"\nid = \"{}\"\n[storage]\nstate_dir = \"{}\"\n[uplink]\ndsn_file = \"dsn\"\n\
             [dashboard]\nlisten = \"127.0.0.1:0\"\n\
             [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
             source = {{ kind = \"folder\", path = \"{}\", loop = true }}\n",
            subject.state.file_name().unwrap().to_string_lossy(),
            subject.site.site_id,
            subject.state.display(),
            images.display()
        ),
    )
    .unwrap();
}

fn spawn(folder: &Path, plan: Option<&str>) -> Child {
    let mut command: Command = loupe();
    command.args(["run", "--config"]).arg(folder.join("loupe.toml")).env_remove(failpoint::VARIABLE);
    if let Some(plan) = plan {
        command.env(failpoint::VARIABLE, plan);
    }
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// Follow the dashboard's events until it goes away.
fn watch_events(state: &Path, shown: &Arc<Mutex<Vec<Ack>>>) -> Option<std::thread::JoinHandle<()>> {
    let address = fs::read_to_string(state.join("dashboard.addr")).ok()?;
    let mut stream = TcpStream::connect(address.trim()).ok()?;
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", address.trim()).ok()?;
    let shown = Arc::clone(shown);
    Some(std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Some(event) = line.strip_prefix("data: ") else { continue };
            let Ok(event) = serde_json::from_str::<serde_json::Value>(event) else { continue };
            if let (Some(id), Some(code)) = (event["inspection_id"].as_str(), event["code"].as_str()) {
                let ack = Ack::Shown { id: id.parse().unwrap(), code: code.to_owned() };
                shown.lock().unwrap().push(ack);
            }
        }
    }))
}

/// The daemon; killed when a test gives up on it.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already in every test that passes.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One life of the daemon: killed at `plan`, or `after` that long, or asked to stop when it has shown something.
fn live(folder: &Path, subject: &mut Subject<'_>, plan: Option<&str>, after: Option<Duration>) -> bool {
    let address = subject.state.join("dashboard.addr");
    drop(fs::remove_file(&address));
    let shown = Arc::new(Mutex::new(Vec::new()));
    let mut daemon = Daemon(spawn(folder, plan));
    let watch = Stopwatch::start();
    let mut screen = None;
    let mut is_asked_to_stop = false;
    let status = loop {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            break status;
        }
        if screen.is_none() && address.exists() {
            screen = watch_events(&subject.state, &shown);
        }
        if after.is_some_and(|after| watch.elapsed() >= after) {
            daemon.0.kill().unwrap();
        }
        if after.is_none() && !is_asked_to_stop && shown.lock().unwrap().len() >= 5 {
            is_asked_to_stop = true;
            drop(Command::new("kill").args(["-TERM", &daemon.0.id().to_string()]).status());
        }
        assert!(watch.elapsed().as_secs() < PATIENCE_S, "the daemon hangs: {plan:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    };
    if let Some(screen) = screen {
        screen.join().unwrap();
    }
    let was_killed = status.signal() == Some(9);
    assert!(was_killed || status.success(), "the daemon failed: {status}, {plan:?}");
    subject.acks.append(&mut shown.lock().unwrap());
    was_killed
}

#[test]
fn the_daemon_killed_at_start_at_work_and_at_stop_loses_nothing_it_showed() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (seed, rounds) = (seed(), scaled(1, 8));
    println!("seed {seed}, {rounds} rounds");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut subject = Subject::new(&server, dir.path(), "daemon");
    write_config(dir.path(), &subject);
    let own: Vec<&str> = failpoint::ALL
        .iter()
        .copied()
        // A recipe of the centre is killed at in tests/provisioning.rs: this station has its own.
        .filter(|name| (name.starts_with("daemon.") || name.starts_with("pipeline.")) && !name.contains(".recipe."))
        .collect();
    let mut kills = 0;
    for round in 0..rounds {
        for name in &own {
            let nth = if name.starts_with("pipeline.") { rng.u32(2..9) } else { 1 };
            let was_killed = live(dir.path(), &mut subject, Some(&format!("{name}=kill@{nth}")), None);
            assert!(was_killed, "seed {seed}: the daemon never came to {name}");
            kills += 1;
        }
        for _ in 0..2 * round {
            let after = Duration::from_millis(rng.u64(50..2_500));
            kills += usize::from(live(dir.path(), &mut subject, None, Some(after)));
        }
    }
    assert!(!live(dir.path(), &mut subject, None, None), "a last run ends well");
    match subject.judge() {
        Ok(verdict) => println!(
            "seed {seed}: {kills} kills of `loupe run`: {} shown, {} inspections ({} untold), {} rows, 0 lost, 0 doubled",
            verdict.promised, verdict.inspections, verdict.untold, verdict.rows
        ),
        Err(fault) => panic!("seed {seed}: {fault}"),
    }
    assert!(subject.acks.len() >= 5);
}
