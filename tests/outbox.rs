//! `loupe outbox`: what it finds wrong, what it repairs, and what travels by file.

mod support;

use std::path::Path;

use loupe::clock::Clock;
use loupe::ledger::{Ledger, LedgerReader, NewReview, Proof, Repair, SENT_TABLES, database_path};
use loupe::types::{Inspection, ReviewStatus};
use loupe::uplink::{Central, Secret, UplinkConfig, block_on, drain};
use serde_json::Value;
use support::postgres::Postgres;
use support::{fail_with, loupe, samples, succeed, text};

/// A closed ledger of `count` inspections, odd ones held, and what was committed.
fn ledger_of(dir: &Path, count: u64) -> Vec<Inspection> {
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    samples::provenance(&ledger);
    let committed = (1..=count)
        .map(|number| {
            let inspection = if number % 2 == 1 { samples::held(number) } else { samples::inspection(number) };
            ledger.commit(inspection, vec![samples::thumbnail(500)]).unwrap()
        })
        .collect();
    ledger.close().unwrap();
    committed
}

fn sql(dir: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(database_path(dir)).unwrap();
    connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    connection
}

fn proof(dir: &Path) -> Proof {
    LedgerReader::open(dir).unwrap().verify(|_, _| ()).unwrap()
}

fn outbox(command: &str, dir: &Path) -> std::process::Command {
    let mut run = loupe();
    run.args(["outbox", command, "--state"]).arg(dir);
    run
}

fn repair(dir: &Path) -> Repair {
    loupe::ledger::repair(dir, &Clock::system(), false).unwrap()
}

/// Repaired, proved, and left alone by a second repair.
fn check_repaired(dir: &Path) -> Repair {
    let dry = succeed(outbox("repair", dir).args(["--dry-run", "--json"]));
    assert!(!proof(dir).holds(), "a dry run changed something: {}", text(&dry.stdout));
    let done = repair(dir);
    let found = proof(dir);
    assert!(found.holds(), "{done:?}\n{:?}", found.faults);
    let again = repair(dir);
    assert!(again.is_empty(), "{again:?}");
    let mut said: Value = serde_json::from_slice(&dry.stdout).unwrap();
    said.as_object_mut().unwrap().remove("dry_run");
    assert_eq!(said, serde_json::to_value(&done).unwrap(), "the dry run said something else");
    done
}

#[test]
fn a_whole_ledger_needs_no_repair() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), 5);
    assert_eq!(text(&succeed(&mut outbox("repair", dir.path())).stdout), "nothing to repair\n");
    assert!(proof(dir.path()).holds());
}

#[test]
fn an_entry_whose_rows_are_damaged_is_set_aside_and_still_listed() {
    let dir = tempfile::tempdir().unwrap();
    let committed = ledger_of(dir.path(), 5);
    let quality = |sql: &rusqlite::Connection| {
        sql.execute("DELETE FROM frame_qa_logs WHERE inspection_id = ?1", [committed[2].id.0.as_bytes()]).unwrap()
    };
    let keep = "CREATE TABLE kept AS SELECT * FROM frame_qa_logs";
    sql(dir.path()).execute_batch(keep).unwrap();
    assert_eq!(quality(&sql(dir.path())), 1);
    let said = fail_with(&mut outbox("verify", dir.path()), 1);
    assert!(said.contains("1 faults"), "{said}");
    let done = check_repaired(dir.path());
    assert_eq!((done.quarantined.count, done.corrections.len()), (1, 0), "{done:?}");
    let status: Value = serde_json::from_slice(&succeed(outbox("status", dir.path()).arg("--json")).stdout).unwrap();
    assert_eq!((status["pending"].as_u64(), status["quarantined"].as_u64()), (Some(4), Some(1)));
    assert_eq!(status["quarantined_units"][0]["id"], committed[2].id.to_string());
    let shown = text(&succeed(&mut outbox("status", dir.path())).stdout);
    assert!(
        shown
            .contains(&format!("set aside {} of inspections: outbox entry 3 has 4 rows instead of 5", committed[2].id))
    );

    // The rows are back (from a backup, say): the entry goes back to its place.
    sql(dir.path()).execute_batch("INSERT OR IGNORE INTO frame_qa_logs SELECT * FROM kept; DROP TABLE kept").unwrap();
    let done = repair(dir.path());
    assert_eq!((done.put_back.count, done.quarantined.count), (1, 0), "{done:?}");
    assert!(proof(dir.path()).holds());
    assert_eq!(LedgerReader::open(dir.path()).unwrap().counters().unwrap().pending, 5);
}

#[test]
fn an_entry_that_names_nothing_is_set_aside_and_counted_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let committed = ledger_of(dir.path(), 4);
    let id = committed[1].id.0;
    for table in ["items", "anomaly_maps", "frame_qa_logs", "artifacts"] {
        sql(dir.path()).execute(&format!("DELETE FROM {table} WHERE inspection_id = ?1"), [id.as_bytes()]).unwrap();
    }
    sql(dir.path()).execute("DELETE FROM inspections WHERE id = ?1", [id.as_bytes()]).unwrap();
    let done = check_repaired(dir.path());
    assert_eq!(done.quarantined.lines.len(), 1);
    assert!(done.quarantined.lines[0].contains("no row"), "{done:?}");
    let counters = LedgerReader::open(dir.path()).unwrap().counters().unwrap();
    assert_eq!((counters.committed, counters.pending, counters.quarantined), (4, 3, 1));
}

#[test]
fn a_lost_entry_is_enqueued_again_in_its_certainty() {
    let dir = tempfile::tempdir().unwrap();
    let committed = ledger_of(dir.path(), 6);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.acknowledge(vec![1, 2], loupe::types::Digest::of(b"batch")).unwrap();
    ledger.close().unwrap();
    sql(dir.path()).execute("DELETE FROM outbox WHERE seq = 5", []).unwrap();
    let faults = proof(dir.path()).faults.join("\n");
    assert!(faults.contains("committed 6 is not delivered 2 + waiting 3 + quarantined 0"), "{faults}");
    assert!(faults.contains("outbox entries 5 to 5 are gone") && faults.contains("loupe outbox repair"), "{faults}");
    let done = check_repaired(dir.path());
    assert_eq!((done.enqueued.count, done.enqueued_in_doubt.count), (1, 0), "only what is certain: {done:?}");
    assert!(done.enqueued.lines[0].contains(&committed[4].code), "{done:?}");
    let counters = LedgerReader::open(dir.path()).unwrap().counters().unwrap();
    assert_eq!((counters.committed, counters.delivered, counters.pending), (6, 2, 4));
}

#[test]
fn of_entries_lost_together_only_the_undelivered_are_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), 4);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.acknowledge(vec![2], loupe::types::Digest::of(b"batch")).unwrap();
    ledger.close().unwrap();
    sql(dir.path()).execute("DELETE FROM outbox", []).unwrap();
    let done = check_repaired(dir.path());
    assert_eq!((done.enqueued.count, done.enqueued_in_doubt.count), (3, 0), "the delivery is noted: {done:?}");
    let counters = LedgerReader::open(dir.path()).unwrap().counters().unwrap();
    assert_eq!((counters.committed, counters.delivered, counters.pending), (4, 1, 3));
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    assert!(ledger.commit(samples::inspection(9), Vec::new()).unwrap().code.ends_with("0005"));
    ledger.close().unwrap();
    assert!(proof(dir.path()).holds());
}

#[test]
fn double_entries_and_wrong_totals_are_set_right_with_their_difference() {
    let dir = tempfile::tempdir().unwrap();
    ledger_of(dir.path(), 3);
    sql(dir.path())
        .execute_batch(
            "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
                 SELECT root_table, key_at, key_id, row_count, state, attempts, enqueued_at FROM outbox WHERE seq = 2;
             UPDATE outbox_state SET committed_total = 40, delivered_total = 11;
             UPDATE inspection_codes SET last_number = 2;",
        )
        .unwrap();
    let faults = proof(dir.path()).faults.join("\n");
    for words in
        ["committed 40", "outbox entry 4 names a unit that an earlier entry names too", "could be given a second time"]
    {
        assert!(faults.contains(words), "no `{words}` in\n{faults}");
    }
    let said = text(&succeed(outbox("repair", dir.path()).arg("--dry-run")).stdout);
    assert!(said.contains("committed: 40 becomes 3 (-37)") && said.contains("delivered: 11 becomes 0 (-11)"), "{said}");
    let done = check_repaired(dir.path());
    assert_eq!(done.quarantined.count, 1);
    let counters = LedgerReader::open(dir.path()).unwrap().counters().unwrap();
    assert_eq!((counters.committed, counters.pending, counters.quarantined), (3, 3, 0));
}

#[test]
fn a_review_without_an_entry_is_enqueued_too() {
    let dir = tempfile::tempdir().unwrap();
    let committed = ledger_of(dir.path(), 2);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let review = NewReview {
        inspection_id: committed[0].id,
        ordinal: Some(0),
        status: ReviewStatus::Confirmed,
        shown_part_id: None,
        corrected_part_id: None,
        corrected_color_id: None,
        undoes_id: None,
        reviewer: "Kim".to_owned(),
        reason: None,
        template: None,
    };
    ledger.review(review).unwrap();
    ledger.close().unwrap();
    sql(dir.path()).execute("DELETE FROM outbox WHERE root_table = 'reviews'", []).unwrap();
    let done = check_repaired(dir.path());
    assert_eq!(done.enqueued.lines.len(), 1);
    assert!(done.enqueued.lines[0].starts_with("review of Kim"), "{done:?}");
}

#[test]
fn a_ledger_that_is_taken_newer_or_damaged_is_refused_with_78_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let missing = fail_with(&mut outbox("repair", dir.path()), 1);
    assert!(missing.contains("there is no ledger") && std::fs::read_dir(dir.path()).unwrap().count() == 0, "{missing}");

    ledger_of(dir.path(), 3);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let said = fail_with(&mut outbox("repair", dir.path()), 78);
    assert!(said.contains("in use by another loupe process"), "{said}");
    ledger.close().unwrap();

    let pristine = std::fs::read(database_path(dir.path())).unwrap();
    sql(dir.path())
        .execute("INSERT INTO schema_migrations VALUES (99, 'later', '2030-01-01T00:00:00Z', '1')", [])
        .unwrap();
    for command in ["status", "verify", "repair"] {
        let said = fail_with(&mut outbox(command, dir.path()), 78);
        assert!(said.contains("schema 99") && said.contains("newer version"), "{said}");
    }

    std::fs::write(database_path(dir.path()), &pristine).unwrap();
    let mut damaged = pristine.clone();
    // The kind of a page in the middle.
    let page = pristine.len() / 4_096 / 2 * 4_096;
    damaged[page] ^= 0x40;
    std::fs::write(database_path(dir.path()), &damaged).unwrap();
    let said = fail_with(&mut outbox("repair", dir.path()), 78);
    assert!(said.contains("is damaged") && said.contains("restore the last backup"), "{said}");
    let output = outbox("verify", dir.path()).output().unwrap();
    assert_ne!(output.status.code(), Some(0), "a damaged page passes for whole");
    assert_eq!(std::fs::read(database_path(dir.path())).unwrap().len(), damaged.len());
}

const SITE: uuid::Uuid = uuid::Uuid::from_u128(0xA);

/// A server with its schema, and a device that delivers to it.
struct Centre {
    server: Postgres,
    dsn: Secret,
}

impl Centre {
    fn start() -> Option<Self> {
        let server = Postgres::start()?;
        let dsn = Secret::new(server.dsn());
        block_on(async { Central::connect(&dsn).await?.migrate().await }).unwrap();
        Some(Self { server, dsn })
    }

    fn drain(&self, dir: &Path) -> u64 {
        let ledger = Ledger::open(dir, Clock::system()).unwrap();
        let config = UplinkConfig { dsn: self.dsn.clone(), site_id: Some(SITE) };
        let delivery = drain(ledger.clone(), &config, |_| ()).unwrap();
        ledger.close().unwrap();
        delivery.delivered
    }

    /// Every fact, in an order that does not change.
    fn facts(&self) -> Vec<String> {
        let tables = SENT_TABLES.iter().map(|table| table.name);
        tables
            .flat_map(|table| self.server.lines(&format!("SELECT '{table}', t.* FROM loupe.{table} t ORDER BY 1, t")))
            .collect()
    }

    fn push(&self, file: &Path) -> std::process::Command {
        let mut command = loupe();
        command.args(["outbox", "push"]).arg(file).args(["--dsn", self.dsn.expose(), "--site-id", &SITE.to_string()]);
        command
    }
}

fn export(dir: &Path, file: &Path) -> std::process::Command {
    let mut command = loupe();
    command.args(["outbox", "export"]).arg(file).arg("--state").arg(dir);
    command
}

#[test]
fn what_waits_travels_by_file_and_arrives_exactly_once() {
    let Some(centre) = Centre::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("outbox.export");
    ledger_of(&state, 40);
    let before = LedgerReader::open(&state).unwrap().counters().unwrap();
    let exported: Value = serde_json::from_slice(&succeed(export(&state, &file).arg("--json")).stdout).unwrap();
    assert_eq!((exported["units"].as_u64(), exported["provenances"].as_u64()), (Some(40), Some(1)));
    assert_eq!(LedgerReader::open(&state).unwrap().counters().unwrap(), before, "an export changed the ledger");
    assert!(fail_with(&mut export(&state, &file), 1).contains("is there already"));

    let pushed: Value = serde_json::from_slice(&succeed(centre.push(&file).arg("--json")).stdout).unwrap();
    assert_eq!((pushed["delivered"].as_u64(), pushed["refused"].as_u64()), (Some(40), Some(0)), "{pushed}");
    let facts = centre.facts();
    assert_eq!(centre.server.lines("SELECT count(*) FROM loupe.inspections"), ["40"]);
    // Once more, by another clerk; then by the device itself.
    let again = succeed(centre.push(&file).args(["--json", "--receipt"]).arg(dir.path().join("second.receipt")));
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((again["delivered"].as_u64(), again["new_rows"].as_u64()), (Some(40), Some(0)));
    assert_eq!(centre.facts(), facts);
    let copy = dir.path().join("copy");
    support::copy_folder(&state, &copy);
    assert_eq!(centre.drain(&copy), 40);
    assert_eq!(centre.facts(), facts, "the device's own delivery changed what was pushed");

    let settle = |state: &Path, receipt: &str| {
        let mut command = loupe();
        command.args(["outbox", "settle"]).arg(dir.path().join(receipt)).arg("--state").arg(state);
        command
    };
    ledger_more(&state, 41);
    let said = text(&succeed(&mut settle(&state, "outbox.export.receipt")).stdout);
    assert!(said.contains("settled 40 units, 0 were"), "{said}");
    assert!(proof(&state).holds());
    assert_eq!(LedgerReader::open(&state).unwrap().counters().unwrap().pending, 1, "what came later stays");
    let said = text(&succeed(&mut settle(&state, "second.receipt")).stdout);
    assert!(said.contains("settled 0 units, 40 were"), "{said}");
    assert_eq!(centre.drain(&state), 1);

    // Another device's receipt settles nothing, nor does one of rows that read otherwise by now.
    let other = dir.path().join("other");
    ledger_of(&other, 3);
    let said = fail_with(&mut settle(&other, "second.receipt"), 1);
    assert!(said.contains("is of device"), "{said}");
    let fresh = dir.path().join("fresh");
    ledger_of(&fresh, 4);
    succeed(&mut export(&fresh, &dir.path().join("fresh.export")));
    succeed(&mut centre.push(&dir.path().join("fresh.export")));
    sql(&fresh).execute("UPDATE inspections SET station = 'line-9' WHERE code LIKE '%0002'", []).unwrap();
    let said = fail_with(&mut settle(&fresh, "fresh.export.receipt"), 1);
    assert!(said.contains("1 units differ"), "{said}");
    assert_eq!(LedgerReader::open(&fresh).unwrap().counters().unwrap().pending, 1);
}

/// One more inspection.
fn ledger_more(dir: &Path, number: u64) {
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    ledger.close().unwrap();
}

#[test]
fn a_damaged_foreign_or_newer_export_sends_nothing() {
    let Some(centre) = Centre::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (state, file, bad) =
        (dir.path().join("state"), dir.path().join("outbox.export"), dir.path().join("bad.export"));
    ledger_of(&state, 12);
    succeed(&mut export(&state, &file));
    let whole = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8], words: &str| {
        std::fs::write(&bad, bytes).unwrap();
        let said = fail_with(&mut centre.push(&bad), 1);
        assert!(said.contains(words), "no `{words}` in {said}");
        assert_eq!(centre.server.lines("SELECT count(*) FROM loupe.provenances"), ["0"], "half of it was sent");
        assert!(!dir.path().join("bad.export.receipt").exists());
    };
    refused(&whole[..whole.len() / 2], "it ends before its trailer");
    refused(&whole[..whole.len() - 1], "it ends before its trailer");
    for share in [3, 5, 8] {
        let mut flipped = whole.clone();
        flipped[whole.len() * share / 10] ^= 0x02;
        refused(&flipped, "is damaged at byte");
    }
    refused(b"not an export\n", "another kind of file");
    let newer = String::from_utf8(whole).unwrap().replacen("loupe-outbox/1", "loupe-outbox/2", 1);
    refused(newer.as_bytes(), "has format loupe-outbox/2");
}

#[test]
fn a_missing_or_edited_central_row_is_found_and_named() {
    let Some(centre) = Centre::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let committed = ledger_of(dir.path(), 30);
    centre.drain(dir.path());
    ledger_more(dir.path(), 31);
    let compare = |code: i32| {
        let mut command = outbox("verify", dir.path());
        command.args(["--dsn", centre.dsn.expose()]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}\n{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    let said = compare(0);
    assert!(said.contains("30 delivered units") && said.contains("the same at the centre"), "{said}");

    let id = |index: usize| committed[index].id.to_string();
    for sql in [
        format!("UPDATE loupe.inspections SET verdict = 'fail' WHERE id = '{}'", id(2)),
        format!("UPDATE loupe.items SET similarity = 0.5 WHERE inspection_id = '{}'", id(4)),
        format!("DELETE FROM loupe.frame_qa_logs WHERE inspection_id = '{}'", id(6)),
        format!("DELETE FROM loupe.inspections WHERE id = '{}'", id(7)),
        format!(
            "INSERT INTO loupe.anomaly_maps (site_id, captured_at, id, inspection_id, bank_sha256, score_raw, score,
                 threshold, image_threshold_raw, pixel_threshold_raw, map_min, map_max, area_above_ratio, device_id)
             SELECT site_id, captured_at, gen_random_uuid(), inspection_id, bank_sha256, score_raw, score,
                 threshold, image_threshold_raw, pixel_threshold_raw, map_min, map_max, area_above_ratio, device_id FROM loupe.anomaly_maps WHERE inspection_id = '{}'",
            id(8)
        ),
        "UPDATE loupe.provenances SET record = '{}'".to_owned(),
    ] {
        centre.server.query(&sql);
    }
    let said = compare(1);
    for words in [
        format!("inspections {} ({}): verdict is \"hold\" here and \"fail\" at the centre", committed[2].code, id(2)),
        "similarity is 0.105".to_owned(),
        "here and 0.5 at the centre".to_owned(),
        "was delivered and is missing at the centre".to_owned(),
        format!("inspections {} ({}) was delivered and is missing", committed[7].code, id(7)),
        format!("of inspection {} is at the centre and was never sent", id(8)),
        "provenances".to_owned(),
    ] {
        assert!(said.contains(&words), "no `{words}` in\n{said}");
    }
}

#[test]
fn the_state_folder_is_that_of_the_configuration_unless_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    ledger_of(&folder.path().join("state"), 2);
    let config = folder.path().join("loupe.toml");
    let text_of = "[site]\ncode = \"test\"\n[storage]\nstate_dir = \"state\"\n[[stations]]\nname = \"a\"\n\
                   recipe = \"recipe.toml\"\nsource = { kind = \"folder\", path = \"in\" }\n";
    std::fs::write(&config, text_of).unwrap();
    std::fs::write(folder.path().join("recipe.toml"), "name = \"r\"\n[match]\nindex = \"i\"\nmodel = \"m\"\n").unwrap();
    let status = |config: &Path| {
        let mut run = loupe();
        run.args(["outbox", "status", "--json", "--config"]).arg(config);
        run
    };
    let said = fail_with(&mut status(&config), 78);
    assert!(said.contains("in does not exist") && said.contains("--state"), "{said}");
    std::fs::create_dir(folder.path().join("in")).unwrap();
    let said: Value = serde_json::from_slice(&succeed(&mut status(&config)).stdout).unwrap();
    assert_eq!(said["committed"], 2, "{said}");
    let said = fail_with(&mut status(&folder.path().join("none.toml")), 78);
    assert!(said.contains("none.toml") && said.contains("--state"), "{said}");
}
