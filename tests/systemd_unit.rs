//! The unit file: parsed and scored by systemd itself, and in step with the code's own limits.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use loupe::cmd::{EXIT_CONFIG, EXIT_USAGE};
use loupe::limits;

/// Highest exposure allowed, of 10.
const EXPOSURE_MAX: f64 = 2.0;

fn unit_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("systemd/loupe.service")
}

fn unit() -> String {
    std::fs::read_to_string(unit_path()).unwrap()
}

/// All values of a directive, in order.
fn values(key: &str) -> Vec<String> {
    let prefix = format!("{key}=");
    unit().lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

fn seconds(key: &str) -> Duration {
    let value = values(key).pop().unwrap();
    Duration::from_secs(value.strip_suffix('s').and_then(|text| text.parse().ok()).unwrap())
}

/// `None`, with the reason printed, where the tool is missing.
fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: systemd-analyze cannot be run: {error}");
            None
        }
    }
}

#[test]
fn exposure_stays_at_or_below_two() {
    let path = unit_path();
    let arguments = ["security", "--offline=true", "--no-pager", path.to_str().unwrap()];
    let Some(output) = systemd_analyze(&arguments) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| {
        panic!("no exposure in: {text}{}", String::from_utf8_lossy(&output.stderr));
    });
    let exposure: f64 = line.split(": ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    println!("exposure {exposure}");
    assert!(exposure <= EXPOSURE_MAX, "{line}");
}

#[test]
fn systemd_understands_every_line() {
    // The program stands elsewhere while it is tested; a command that is missing would be reported as a fault.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("loupe.service");
    let installed = unit().replace("/usr/bin/loupe", env!("CARGO_BIN_EXE_loupe"));
    std::fs::write(&copy, installed).unwrap();
    let Some(output) = systemd_analyze(&["verify", "--man=no", copy.to_str().unwrap()]) else { return };
    // Units of the machine that verifies may be faulty as well; only ours counts.
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!complaints.lines().any(|line| line.contains("loupe.service")), "{complaints}");
}

#[test]
fn the_unit_keeps_in_step_with_the_code() {
    assert_eq!(values("Type"), ["notify"]);
    assert!(seconds("TimeoutStopSec") > limits::SHUTDOWN_GRACE, "systemd must not kill a ledger that is closing");
    assert_eq!(values("RestartPreventExitStatus"), [format!("{EXIT_USAGE} {EXIT_CONFIG}")]);
    assert_eq!(
        seconds("WatchdogSec"),
        limits::HEALTH_PROGRESS_AGE_MAX,
        "systemd and /healthz agree on what a stall is"
    );
    assert!(values("ExecStartPre")[0].contains("loupe check --config"));
    assert!(values("ExecStart")[0].contains("loupe run --config"));
    assert_eq!(values("StateDirectory"), ["loupe"]);
    assert!(values("LoadCredential")[0].starts_with("dsn:") && values("SetCredential")[0].starts_with("dsn:"));
    let devices = values("DeviceAllow");
    for device in ["char-video4linux rw", "char-drm rw", "char-nvidia-uvm rw", "char-nvidiactl rw"] {
        assert!(devices.iter().any(|allowed| allowed == device), "{device} must stay usable");
    }
}
