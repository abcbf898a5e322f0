//! House rules that the compiler does not know: who may name which engine, who may import whom, and that the map in
//! ARCHITECTURE.md shows what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// Each engine and the only places that may name it.
const ENGINES: &[(&str, &[&str])] = &[
    ("ort::", &["src/inference/"]),
    ("faiss_sys", &["src/matching/faiss"]),
    ("opencv::", &["src/capture/"]),
    ("rusqlite", &["src/ledger/"]),
    ("tokio_postgres", &["src/uplink/"]),
    ("axum", &["src/dashboard/"]),
    ("nvml_wrapper", &["src/observe/"]),
];

/// Rooms without I/O, clock or logging.
const PURE_ROOMS: &[&str] = &["src/types/", "src/quality/", "src/decide/", "src/limits.rs", "src/kit/"];
const IMPURE: &[&str] = &["std::fs::", "std::net", "tracing::", "crate::clock", "std::env", "std::thread", "println!"];

/// The only rooms that may know several others; everything else imports those listed for it.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("failpoint", &[]),
    ("limits", &[]),
    ("clock", &["types"]),
    ("shutdown", &[]),
    ("notify", &["clock", "shutdown", "limits"]),
    ("quality", &["types", "limits"]),
    ("decide", &["types", "config", "locate", "limits"]),
    ("overlay", &["types", "limits"]),
    ("capture", &["types", "limits", "clock", "shutdown"]),
    ("inference", &["types", "limits", "clock", "failpoint"]),
    ("locate", &["types", "limits", "inference"]),
    ("measure", &["types", "limits"]),
    ("matching", &["types", "limits", "clock", "measure", "failpoint"]),
    // PatchCore searches its bank through the one FAISS binding.
    ("anomaly", &["types", "limits", "clock", "inference", "matching"]),
    // Option structures live in the room that obeys them.
    ("config", &["types", "limits", "quality", "locate", "inference", "anomaly", "capture", "uplink"]),
    ("kit", &["types", "limits"]),
    ("catalogue", &["types", "limits"]),
    // A session's count is booked in the transaction that ends it.
    ("ledger", &["types", "limits", "clock", "observe", "kit", "failpoint"]),
    // Which files make up a device, the configuration says; what of them is a secret, the uplink.
    ("backup", &["types", "clock", "ledger", "config", "uplink", "failpoint"]),
    ("uplink", &["types", "limits", "clock", "shutdown", "ledger", "observe", "failpoint"]),
    ("observe", &["types", "limits", "clock"]),
    ("dashboard", &["types", "limits", "clock", "shutdown", "notify", "observe"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file with its path relative to the crate.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 40, "found only {} source files", paths.len());
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// Code without comments, and without the unit tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn check(faults: Vec<String>) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn each_engine_is_named_in_one_room() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (engine, places) in ENGINES {
            let names_it = code(&text).match_indices(engine).any(|(at, _)| {
                let before = code(&text)[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            if names_it && !places.iter().any(|place| path.starts_with(place)) {
                faults.push(format!("{path} names {engine}, which belongs to {}", places.join(", ")));
            }
        }
    }
    check(faults);
}

#[test]
fn pure_rooms_do_no_io() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        // A digest of a file is read where digests are defined.
        if path == "src/types/digest.rs" || !PURE_ROOMS.iter().any(|room| path.starts_with(room)) {
            continue;
        }
        faults.extend(
            IMPURE.iter().filter(|word| code(&text).contains(**word)).map(|word| format!("{path} uses {word}")),
        );
    }
    check(faults);
}

#[test]
fn dependencies_point_inward() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let room = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == room) else {
            assert!(
                ["main", "lib", "cmd", "pipeline"].contains(&room.as_str()),
                "{path}: give room {room} its imports"
            );
            continue;
        };
        for (at, _) in code(&text).match_indices("crate::") {
            let rest = &code(&text)[at + "crate::".len()..];
            let other: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !other.is_empty() && other != room && !allowed.contains(&other.as_str()) {
                faults.push(format!("{path} imports {other}"));
            }
        }
    }
    check(faults);
}

#[test]
fn files_hold_one_noun() {
    let too_long = |text: &str| text.lines().count() > LINES_MAX;
    check(
        sources()
            .iter()
            .filter(|(_, text)| too_long(text))
            .map(|(path, _)| format!("{path} has over {LINES_MAX} lines"))
            .collect(),
    );
}

#[test]
fn lints_are_expected_with_a_reason_not_allowed() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for line in text.lines().filter(|line| line.contains("#[allow(") || line.contains("#![allow(")) {
            faults.push(format!("{path}: {}", line.trim()));
        }
        let markers = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"]].map(|halves| halves.concat());
        faults.extend(
            markers.iter().filter(|marker| text.contains(*marker)).map(|marker| format!("{path} says {marker}")),
        );
    }
    check(faults);
}

#[test]
fn the_map_shows_what_is_there() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut faults = Vec::new();
    for word in map.split(|c: char| c.is_whitespace() || "`(),;".contains(c)) {
        let is_path = [
            "src/",
            "tests/",
            "docs/",
            "config/",
            "systemd/",
            "migrations/",
            "benches/",
            "models/",
            "scripts/",
            "samples/",
        ]
        .iter()
        .any(|prefix| word.starts_with(prefix));
        if is_path && !word.contains('*') && !root().join(word.trim_end_matches(['.', ':'])).exists() {
            faults.push(format!("ARCHITECTURE.md names {word}, which is not there"));
        }
    }
    let rooms: BTreeSet<String> = sources()
        .iter()
        .filter_map(|(path, _)| path.strip_prefix("src/")?.split_once('/').map(|(room, _)| room.to_owned()))
        .collect();
    faults.extend(
        rooms
            .iter()
            .filter(|room| !map.contains(&format!("src/{room}/")))
            .map(|room| format!("ARCHITECTURE.md lacks src/{room}/")),
    );
    check(faults);
}

#[test]
fn each_invariant_has_its_test() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut tests = String::new();
    for (_, text) in sources() {
        tests.push_str(&text);
    }
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            tests.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let mut named = 0;
    let mut faults = Vec::new();
    for line in map.lines().filter(|line| line.contains("Test: `")) {
        for name in line.split("Test: ").nth(1).unwrap_or_default().split('`').filter(|word| word.contains('_')) {
            named += 1;
            if !tests.contains(&format!("fn {name}(")) {
                faults.push(format!("ARCHITECTURE.md names test {name}, which is not there"));
            }
        }
    }
    assert!(named >= 8, "only {named} invariants name a test");
    check(faults);
}
