//! The systemd unit parses and stays hardened.

mod support;

use std::process::Command;

use support::{root, text};

/// Highest exposure accepted, as `systemd-analyze security` rates it: 0 (safe) to 10.
const EXPOSURE_MAX: f32 = 2.0;

/// Run systemd-analyze; `None` where it is not installed, said on stdout.
fn analyze(args: &[&str]) -> Option<String> {
    match Command::new("systemd-analyze").args(args).arg(root().join("systemd/loupe.service")).output() {
        Ok(output) => Some(text(&output.stdout) + &text(&output.stderr)),
        Err(error) => {
            println!("skipped: systemd-analyze cannot be run: {error}");
            None
        }
    }
}

#[test]
fn the_unit_is_hardened() {
    let Some(said) = analyze(&["security", "--offline=true", "--no-pager"]) else { return };
    let exposure =
        said.split("exposure level for loupe.service:").nth(1).and_then(|rest| rest.split_whitespace().next());
    let exposure: f32 = exposure.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!(exposure <= EXPOSURE_MAX, "exposure {exposure}:\n{said}");
}

#[test]
fn the_unit_parses() {
    let Some(said) = analyze(&["verify"]) else { return };
    // The program is installed by `make install`, not here.
    let faults: Vec<&str> =
        said.lines().filter(|line| line.contains("loupe.service") && !line.contains("is not executable")).collect();
    assert!(faults.is_empty(), "{faults:?}");
}
