//! The fault campaign: whatever is killed, filled, cut or torn, what was promised arrives once.
//!
//! `LOUPE_FAULT_SEED` repeats a run, `LOUPE_FAULT_CYCLES` makes it longer (`make faults`); docs/reliability.md says what
//! was run and what is not covered. Each test prints its seed and what it did.

mod central;
mod daemon;
mod disk;
mod driver;
#[path = "../support/faultfs.rs"]
mod faultfs;
mod kills;
mod offline;
mod oracle;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use loupe::failpoint;

/// Kill cycles where the environment does not say.
const CYCLES: usize = 96;

/// The seed of this run, printed by who uses it.
fn seed() -> u64 {
    let given = std::env::var("LOUPE_FAULT_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| fastrand::u64(1..1_000_000_000))
}

/// How many kill cycles to run; other loops scale with it.
fn cycles() -> usize {
    std::env::var("LOUPE_FAULT_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(CYCLES)
}

/// `few` in the short run, in a longer one in proportion up to `many`.
fn scaled(few: usize, many: usize) -> usize {
    (few * cycles() / CYCLES).clamp(1, many).max(few.min(many))
}

#[test]
fn every_failpoint_is_in_the_source_and_in_the_list() {
    fn walk(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.file_name().is_some_and(|name| name != "failpoint.rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    walk(&support::root().join("src"), &mut text);
    // A name is a quoted word with a dot whose room begins a name of the list.
    let rooms: BTreeSet<&str> = failpoint::ALL.iter().filter_map(|name| name.split('.').next()).collect();
    let mut used = BTreeSet::new();
    for call in ["failpoint::hit(", "failpoint::io(", "disk(", "after("] {
        for (at, _) in text.match_indices(call) {
            let rest = &text[at + call.len()..];
            let statement = &rest[..rest.find(';').unwrap_or(rest.len()).min(200)];
            let names = statement.split('"').filter(|word| {
                word.split_once('.').is_some_and(|(room, _)| rooms.contains(room))
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.')
            });
            used.extend(names.take(1).map(str::to_owned));
        }
    }
    let listed: BTreeSet<String> = failpoint::ALL.iter().map(|name| (*name).to_owned()).collect();
    let missing: Vec<_> = listed.difference(&used).collect();
    let unlisted: Vec<_> = used.difference(&listed).collect();
    assert!(missing.is_empty() && unlisted.is_empty(), "not in the source: {missing:?}; not in the list: {unlisted:?}");
    assert!(listed.len() >= 30, "only {} failpoints", listed.len());
}

#[test]
fn a_failpoint_that_is_not_known_is_refused_and_a_known_one_is_loud() {
    let said =
        support::fail_with(support::loupe().args(["check", "--help-me-not"]).env(failpoint::VARIABLE, "x=kill"), 64);
    assert!(!said.is_empty());
    let state = tempfile::tempdir().unwrap();
    let mut status = support::loupe();
    status.args(["outbox", "status", "--state"]).arg(state.path());
    let said = support::fail_with(status.env(failpoint::VARIABLE, "ledger.nowhere=kill"), 64);
    assert!(said.contains("no such failpoint") && said.contains(failpoint::VARIABLE), "{said}");
    let said = support::fail_with(status.env(failpoint::VARIABLE, "ledger.begin.before=kill"), 1);
    assert!(said.contains("will fail on purpose"), "{said}");
}
