//! People, feedback and actions with the real program, a real ledger and a real PostgreSQL.

mod support;

use std::path::Path;
use std::process::Command;

use loupe::clock::Clock;
use loupe::dashboard::{Dashboard, DashboardState, Feed, Snapshot};
use loupe::ledger::{Ledger, LedgerReader, NewReview, Sweep, artifacts_dir, database_path, repair};
use loupe::observe::Metrics;
use loupe::shutdown::Shutdown;
use loupe::types::{
    ActionResult, FeedbackOrder, FeedbackType, Inspection, InspectionId, PersonOrder, ReviewStatus, Role, StoragePolicy,
};
use loupe::uplink::{UplinkConfig, drain};
use serde_json::Value;
use support::central::{conserved, deliver, open, proved, start, to_site};
use support::{fail_with, loupe, root, succeed, text};

/// `loupe <args> --state <dir>`.
fn on(dir: &Path, args: &[&str]) -> Command {
    let mut command = loupe();
    command.args(args).arg("--state").arg(dir);
    command
}

fn done(dir: &Path, args: &[&str]) -> String {
    text(&succeed(&mut on(dir, args)).stdout)
}

fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_slice(&succeed(on(dir, args).arg("--json")).stdout).unwrap()
}

fn refused(dir: &Path, args: &[&str]) -> String {
    fail_with(&mut on(dir, args), 1)
}

/// A closed ledger with these inspections.
fn device(inspections: impl IntoIterator<Item = Inspection>) -> (tempfile::TempDir, Vec<Inspection>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let committed = inspections.into_iter().map(|i| ledger.commit(i, Vec::new()).unwrap()).collect();
    ledger.close().unwrap();
    (dir, committed)
}

fn review(inspection: InspectionId, reviewer: &str) -> NewReview {
    NewReview {
        inspection_id: inspection,
        ordinal: None,
        status: ReviewStatus::Confirmed,
        shown_part_id: None,
        corrected_part_id: None,
        corrected_color_id: None,
        undoes_id: None,
        reviewer: reviewer.to_owned(),
        reason: None,
        template: None,
    }
}

fn add(username: &str) -> PersonOrder {
    let (username, by) = (username.to_owned(), "Kim".to_owned());
    PersonOrder::Add { username, full_name: None, role: Role::Operator, by }
}

fn say(subject: Option<&str>, feedback_type: FeedbackType) -> FeedbackOrder {
    let (subject, notes, by) = (subject.map(str::to_owned), Some("seen".to_owned()), "Kim".to_owned());
    FeedbackOrder::Say { subject, feedback_type, rating: None, expected_severity: None, notes, by }
}

fn act(inspection: &str, action_result: ActionResult) -> FeedbackOrder {
    let (inspection, action_taken, by) = (inspection.to_owned(), "cleaned".to_owned(), "Kim".to_owned());
    FeedbackOrder::Act { inspection, action_taken, action_result, notes: None, by }
}

fn outbox(dir: &Path, args: &[&str]) {
    succeed(on(dir, &[&["outbox"], args].concat()).env_remove("LOUPE_DSN"));
}

#[test]
fn what_people_say_reaches_postgres_once_with_who_said_it() {
    let Some(server) = start() else { return };
    let (dir, made) = device([sample(1), sample(2)]);
    let (dir, first, second) = (dir.path(), made[0].code.as_str(), made[1].code.as_str());
    // Before anybody is registered any name is taken.
    succeed(&mut on(dir, &["review", first, "--confirm", "--author", "KIM"]));
    let added = json(dir, &["people", "add", "Kim", "--full-name", "김민준", "--role", "manager", "--author", "setup"]);
    assert_eq!((&added["version"], &added["role"]), (&1.into(), &"manager".into()), "{added}");
    done(dir, &["people", "add", "lee", "--author", "kim"]);
    succeed(&mut on(dir, &["review", second, "--confirm", "--author", "kIm"]));
    let args = ["feedback", "add", &format!("{first}/0"), "--type", "false_positive", "--notes", "a reflection"];
    let said = json(dir, &[&args[..], &["--rating", "2", "--author", "LEE"]].concat());
    assert_eq!((&said["author"], &said["is_open"]), (&"lee".into(), &true.into()), "{said}");
    done(dir, &["feedback", "add", second, "--type", "missed_defect", "--expected-severity", "5", "--by", "Kim"]);
    done(dir, &["feedback", "add", "--site", "--type", "satisfaction", "--rating", "4", "--author", "lee"]);
    let act = ["feedback", "action", first, "--taken", "turned the lamp", "--result", "resolved", "--author", "Kim"];
    assert!(done(dir, &act).contains("turned the lamp → resolved"));
    done(dir, &["feedback", "action", second, "--taken", "asked", "--result", "pending", "--author", "Kim"]);
    done(dir, &["people", "rename", "lee", "lee.ji", "--author", "Kim"]);
    done(dir, &["people", "retire", "lee.ji", "--author", "Kim"]);
    assert!(done(dir, &["people", "list"]).lines().count() == 1);
    assert_eq!(json(dir, &["people", "list", "--all"])["people"].as_array().unwrap().len(), 2);
    assert!(done(dir, &["feedback", "list"]).lines().count() == 5);
    let open_now = json(dir, &["feedback", "list", "--open"]);
    assert_eq!(open_now["feedback"].as_array().unwrap().len(), 1, "{open_now}");
    assert_eq!(open_now["feedback"][0]["feedback_type"], "missed_defect");

    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.operators, counters.feedback, counters.reviews, counters.captured), (4, 5, 2, 2));
    deliver(&ledger, &to_site(server.dsn()), |courier| courier.limit_units(3)).unwrap();
    assert_eq!(deliver(&ledger, &to_site(server.dsn()), |_| ()).unwrap().delivered, 0);
    conserved(&server, &ledger);
    let people = "SELECT username, full_name, role, is_active, version FROM loupe.v_operators ORDER BY username";
    assert_eq!(server.lines(people), ["Kim|김민준|manager|t|1", "lee.ji||operator|f|3"]);
    assert_eq!(server.lines("SELECT count(*), count(DISTINCT operator_id) FROM loupe.operators"), ["4|2"]);
    let reviews = "SELECT reviewer, full_name, role FROM loupe.v_reviews ORDER BY occurred_at";
    assert_eq!(server.lines(reviews), ["KIM|김민준|manager", "Kim|김민준|manager"]);
    let feedback = "SELECT f.subject_kind, f.feedback_type, f.rating, f.expected_severity, f.author, f.is_open,
            f.action_result, o.username
        FROM loupe.v_feedback f JOIN loupe.v_operators o USING (site_id, operator_id) ORDER BY f.occurred_at";
    let expected = [
        "item|false_positive|2||lee|f|resolved|lee.ji",
        "inspection|missed_defect||5|Kim|t|pending|Kim",
        "site|satisfaction|4||lee|f||lee.ji",
    ];
    assert_eq!(server.lines(feedback), expected);
    let daily =
        "SELECT feedback_count, accurate_count, false_positive_count, missed_defect_count, severity_wrong_count,
            avg_satisfaction_rating, accurate_ratio, open_count, author_count FROM loupe.v_feedback_daily";
    assert_eq!(server.lines(daily), ["3|0|1|1|0|4|0|1|2"]);
    let open_there = "SELECT code, feedback_type, author, action_result FROM loupe.v_feedback_open";
    assert_eq!(server.lines(open_there), [format!("{second}|missed_defect|Kim|pending")]);
    let partitions = "SELECT count(*) FROM loupe.partition_bounds() WHERE table_name IN ('feedback', 'action_logs')
            AND NOT is_default AND partition_name ~ '_[0-9]{4}$'";
    assert_eq!(server.lines(partitions), ["4"], "two years of each");
    assert_eq!(server.lines("SELECT count(*) FROM loupe.feedback_default"), ["0"]);
}

fn sample(number: u64) -> Inspection {
    support::samples::inspection(number)
}

#[test]
fn short_names_and_doubles_in_either_case_are_refused() {
    let (dir, _) = device([]);
    let dir = dir.path();
    let add = |name: &str| ["people", "add", name, "--author", "Kim"].map(str::to_owned);
    let said = |name: &str| refused(dir, &add(name).each_ref().map(String::as_str));
    assert!(said("ki").contains("shorter than 3"));
    assert!(said("  ki  ").contains("shorter than 3"));
    assert!(said("a\u{7}bc").contains("not plain text"));
    assert!(said(&"x".repeat(100_000)).contains("longer than 100"));
    done(dir, &add("Kim").each_ref().map(String::as_str));
    done(dir, &add("José").each_ref().map(String::as_str));
    for double in ["Kim", "kim", "KIM", " kIm ", "JOSÉ"] {
        assert!(said(double).contains("registered already"), "{double}");
    }
    // A retired name stays taken; its bearer comes back as the same person.
    done(dir, &["people", "retire", "josé", "--author", "kim"]);
    assert!(refused(dir, &["people", "rename", "Kim", "JOSÉ", "--author", "Kim"]).contains("retired"));
    assert!(refused(dir, &["people", "retire", "josé", "--author", "kim"]).contains("has retired"));
    let back = json(dir, &["people", "add", "jOSÉ", "--role", "viewer", "--author", "kim"]);
    assert_eq!((&back["version"], &back["username"], &back["role"]), (&3.into(), &"jOSÉ".into(), &"viewer".into()));
    assert!(refused(dir, &["people", "rename", "Kim", "Kim", "--author", "Kim"]).contains("called so already"));
    assert!(refused(dir, &["people", "rename", "Kim", "José", "--author", "Kim"]).contains("registered already"));
    assert!(refused(dir, &["people", "rename", "Park", "Pak", "--author", "Kim"]).contains("loupe people list"));
    done(dir, &["people", "rename", "Kim", "KIM", "--author", "Kim"]);
    fail_with(&mut on(dir, &["people", "rename", "KIM", "--author", "Kim"]), 64);
    fail_with(&mut on(dir, &["people", "add", "Choi", "--role", "worker", "--author", "Kim"]), 64);
    fail_with(&mut on(dir, &["people", "add", "Choi"]), 64);
    outbox(dir, &["verify"]);
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    assert_eq!(ledger.counters().unwrap().operators, 5, "what was refused left no version");
}

#[test]
fn once_people_are_registered_only_they_sign() {
    let (dir, made) = device([sample(1)]);
    let (dir, code) = (dir.path(), made[0].code.as_str());
    let confirm = |by: &str| on(dir, &["review", code, "--confirm", "--author", by]);
    let feedback = |by: &str| on(dir, &["feedback", "add", code, "--type", "accurate", "--author", by]);
    let action =
        |by: &str| on(dir, &["feedback", "action", code, "--taken", "x", "--result", "resolved", "--author", by]);
    let first: Value = serde_json::from_slice(&succeed(confirm("Choi").arg("--json")).stdout).unwrap();
    succeed(&mut feedback("Choi"));
    done(dir, &["people", "add", "Kim", "--author", "Choi"]);
    done(dir, &["people", "add", "Lee", "--author", "Kim"]);
    done(dir, &["people", "retire", "Lee", "--author", "Kim"]);
    let undo = |by: &str| on(dir, &["review", "undo", first["id"].as_str().unwrap(), "--author", by]);
    for mut command in [confirm("Choi"), feedback("Choi"), action("Choi"), undo("Choi")] {
        let said = fail_with(&mut command, 1);
        assert!(said.contains("nobody registered here is called `Choi`"), "{said}");
        assert!(said.contains("loupe people add"), "{said}");
    }
    for mut command in [confirm("lee"), feedback("LEE"), action("Lee"), undo("lee")] {
        let said = fail_with(&mut command, 1);
        assert!(said.contains("`Lee` has retired") && said.contains("loupe people add Lee"), "{said}");
    }
    assert!(refused(dir, &["people", "add", "Park", "--author", "Choi"]).contains("`Choi`"));
    for mut command in [confirm("kim"), feedback("kim"), action("kim")] {
        succeed(&mut command);
    }
    // The last one goes: names are free again.
    done(dir, &["people", "retire", "kim", "--author", "kim"]);
    succeed(&mut confirm("Choi"));
    outbox(dir, &["verify"]);
}

#[test]
fn feedback_that_says_nothing_or_too_much_is_refused() {
    let (dir, made) = device([sample(1)]);
    let (dir, code) = (dir.path(), made[0].code.as_str());
    let add = |more: &[&str]| on(dir, &[&["feedback", "add", "--author", "Kim"], more].concat());
    for usage in [
        &[code, "--type", "accurate", "--rating", "6"][..],
        &[code, "--type", "accurate", "--rating", "0"],
        &[code, "--type", "severity_wrong", "--expected-severity", "6"],
        &[code, "--type", "guide_quality"],
        &[code],
        &["--type", "satisfaction", "--rating", "3"],
        &[code, "--site", "--type", "satisfaction", "--rating", "3"],
    ] {
        fail_with(&mut add(usage), 64);
    }
    let long = "x".repeat(100_000);
    assert!(fail_with(&mut add(&[code, "--type", "accurate", "--notes", &long]), 1).contains("longer than 1000"));
    let act = ["feedback", "action", code, "--result", "resolved", "--author", "Kim", "--taken"];
    assert!(refused(dir, &[&act[..], &[&long]].concat()).contains("longer than 200"));
    assert!(refused(dir, &[&act[..], &[""]].concat()).contains("`action_taken` is empty"));
    let unknown = ["INS-20000101-0001", "00000000-0000-7000-8000-000000000000", &format!("{code}/x"), "\u{7}", ""];
    for subject in unknown {
        let said = fail_with(&mut add(&[subject, "--type", "accurate"]), 1);
        assert!(said.contains("no inspection is called") && !said.contains('\u{7}'), "{said}");
    }
    assert!(fail_with(&mut add(&[&format!("{code}/7"), "--type", "accurate"]), 1).contains("no item 7"));
    assert!(fail_with(&mut add(&[code, "--type", "accurate", "--expected-severity", "3"]), 1).contains("accurate"));
    assert!(fail_with(&mut add(&["--site", "--type", "false_positive"]), 1).contains("name its code"));
    assert!(fail_with(&mut add(&["--site", "--type", "satisfaction"]), 1).contains("says nothing"));
    let action =
        ["feedback", "action", &format!("{code}/0"), "--taken", "x", "--result", "resolved", "--author", "Kim"];
    assert!(refused(dir, &action).contains("as a whole"));
    let nowhere = tempfile::tempdir().unwrap();
    assert!(refused(nowhere.path(), &["people", "add", "Kim", "--author", "Kim"]).contains("there is no ledger"));
    // What goes round the words of the command meets the columns.
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    assert_eq!(ledger.counters().unwrap().feedback, 0);
    let mut six = say(Some(code), FeedbackType::Accurate);
    if let FeedbackOrder::Say { rating, .. } = &mut six {
        *rating = Some(6);
    }
    assert!(ledger.feedback(six).unwrap_err().to_string().contains("between 1 and 5"));
    let sql = "INSERT INTO feedback (id, occurred_at, subject_kind, feedback_type, rating, author)
         VALUES (zeroblob(16), 1, 'site', 'satisfaction', ?1, 'kim')";
    let connection = rusqlite::Connection::open(database_path(dir)).unwrap();
    assert!(connection.execute(sql, [6]).is_err());
    proved(&ledger);
}

#[test]
fn a_unit_that_lost_its_entry_is_found_again_and_arrives_once() {
    let Some(server) = start() else { return };
    let (dir, made) = device([sample(1)]);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.person(add("Kim")).unwrap();
    ledger.feedback(say(Some(&made[0].code), FeedbackType::FalsePositive)).unwrap();
    ledger.feedback(act(&made[0].code, ActionResult::Failed)).unwrap();
    ledger.feedback(say(None, FeedbackType::DetectionAccuracy)).unwrap();
    ledger.close().unwrap();
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    let taken =
        connection.execute("DELETE FROM outbox WHERE root_table IN ('operators', 'feedback', 'action_logs')", []);
    assert_eq!(taken.unwrap(), 4);
    // One that names no row.
    let sql = "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
         VALUES ('action_logs', 1, zeroblob(16), 1, 'pending', 0, 1)";
    assert_eq!(connection.execute(sql, []).unwrap(), 1);
    drop(connection);
    let proof = LedgerReader::open(dir.path()).unwrap().verify(|_, _| ()).unwrap();
    assert!(!proof.holds());
    let done = repair(dir.path(), &Clock::system(), false).unwrap();
    assert_eq!(done.enqueued.count + done.enqueued_in_doubt.count, 4, "{done:?}");
    assert_eq!(done.quarantined.count, 1, "{done:?}");
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    proved(&ledger);
    deliver(&ledger, &to_site(server.dsn()), |_| ()).unwrap();
    let counts = ["operators", "feedback", "action_logs"].map(|table| support::central::count(&server, table));
    assert_eq!(counts, [1, 2, 1]);
    proved(&ledger);
}

#[test]
fn what_was_said_travels_by_file_too() {
    let Some(server) = start() else { return };
    let (dir, made) = device([sample(1)]);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.person(add("Kim")).unwrap();
    ledger.feedback(say(Some(&made[0].code), FeedbackType::MissedDefect)).unwrap();
    ledger.feedback(act(&made[0].code, ActionResult::Resolved)).unwrap();
    ledger.close().unwrap();
    let parcel = dir.path().join("parcel.loupe");
    let site = support::central::SITE.to_string();
    outbox(dir.path(), &["export", parcel.to_str().unwrap()]);
    let mut push = loupe();
    push.args(["outbox", "push"]).arg(&parcel).args(["--site-id", &site]).env("LOUPE_DSN", server.dsn());
    succeed(&mut push);
    let rows = || {
        server.lines(
            "SELECT 'operators', to_jsonb(t) - 'ingested_at' FROM loupe.operators t
             UNION ALL SELECT 'feedback', to_jsonb(t) - 'ingested_at' FROM loupe.feedback t
             UNION ALL SELECT 'action_logs', to_jsonb(t) - 'ingested_at' FROM loupe.action_logs t ORDER BY 1, 2",
        )
    };
    let before = rows();
    assert_eq!(before.len(), 3);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    deliver(&ledger, &to_site(server.dsn()), |_| ()).unwrap();
    assert_eq!(rows(), before);
    conserved(&server, &ledger);
}

#[test]
fn a_restored_backup_says_anew_what_the_centre_has_otherwise() {
    let Some(server) = start() else { return };
    let (dir, _) = device([sample(1)]);
    let config = to_site(server.dsn());
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.person(add("Kim")).unwrap();
    ledger.close().unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(database_path(dir.path()), database_path(copy.path())).unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.person(PersonOrder::Retire { username: "Kim".to_owned(), by: "Kim".to_owned() }).unwrap();
    deliver(&ledger, &config, |_| ()).unwrap();
    // As a restore does: what came after the backup is not known here, and the epoch is the next one.
    let connection = rusqlite::Connection::open(database_path(copy.path())).unwrap();
    connection.execute("UPDATE ledger_meta SET epoch = 2", []).unwrap();
    drop(connection);
    let ledger = Ledger::open(copy.path(), Clock::system()).unwrap();
    let rename = |to: &str| PersonOrder::Rename {
        username: "Kim".to_owned(),
        new_username: Some(to.to_owned()),
        full_name: None,
        by: "Kim".to_owned(),
    };
    ledger.person(rename("Kim Min-jun")).unwrap();
    deliver(&ledger, &config, |_| ()).unwrap();
    proved(&ledger);
    // Both second versions are there; that of the later epoch holds.
    assert_eq!(server.lines("SELECT count(*) FROM loupe.operators"), ["3"]);
    assert_eq!(server.lines("SELECT username, is_active FROM loupe.v_operators"), ["Kim Min-jun|t"]);
}

#[test]
fn what_was_said_of_an_inspection_goes_with_it_and_not_before_it_was_delivered() {
    let Some(server) = start() else { return };
    let (dir, made) = device([sample(1), sample(2)]);
    let clock = Clock::system();
    let ledger = Ledger::open(dir.path(), clock.clone()).unwrap();
    ledger.feedback(say(None, FeedbackType::Satisfaction)).unwrap();
    let config = to_site(server.dsn());
    deliver(&ledger, &config, |_| ()).unwrap();
    for inspection in &made {
        ledger.feedback(say(Some(&inspection.code), FeedbackType::Accurate)).unwrap();
    }
    ledger.feedback(act(&made[1].code, ActionResult::Resolved)).unwrap();
    const DAY_US: i64 = 86_400_000_000;
    let policy = StoragePolicy::default();
    let expire = |ledger: &Ledger| {
        Sweep::new(ledger.clone(), policy, clock.clone()).unwrap().expire(&mut |_| true).unwrap().inspections
    };
    clock.shift(400 * DAY_US);
    assert_eq!(expire(&ledger), 0, "gone before what was said of it was delivered");
    deliver(&ledger, &config, |_| ()).unwrap();
    assert_eq!(expire(&ledger), 0, "what was said was delivered just now");
    clock.shift(400 * DAY_US);
    assert_eq!(expire(&ledger), 2);
    let reader = LedgerReader::open(dir.path()).unwrap();
    assert_eq!((reader.feedback(9).unwrap().len(), reader.actions_taken(9).unwrap().len()), (1, 0), "the site's stays");
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.feedback, counters.captured, counters.pending), (6, 4, 2, 0));
    proved(&ledger);
}

#[test]
fn an_older_ledger_with_rows_takes_people_and_feedback() {
    let Some(server) = start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    connection.execute_batch("PRAGMA application_id = 0x4c4f5550; PRAGMA foreign_keys = OFF;").unwrap();
    let sql = std::fs::read_to_string(root().join("tests/fixtures/ledger_v3.sql")).unwrap();
    connection.execute_batch(&sql).unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    let code: String = connection.query_row("SELECT code FROM inspections LIMIT 1", [], |row| row.get(0)).unwrap();
    drop(connection);
    done(dir.path(), &["people", "add", "Kim", "--author", "setup"]);
    done(dir.path(), &["feedback", "add", &code, "--type", "accurate", "--author", "kim"]);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.operators, counters.feedback, counters.reviews), (8, 1, 1, 1));
    deliver(&ledger, &to_site(server.dsn()), |_| ()).unwrap();
    assert_eq!(server.lines("SELECT author, inspection_id IS NULL FROM loupe.feedback"), ["Kim|f"]);
    assert_eq!(server.lines("SELECT count(*) FROM loupe.v_reviews"), ["1"]);
    proved(&ledger);
}

#[test]
fn a_device_signs_for_its_own_site_only() {
    let Some(server) = start() else { return };
    let dsn_of = |code: &'static str| {
        let (_, user, password) = support::central::provision(&server, code);
        server.dsn_of(&user, &password)
    };
    let (ours, theirs) = (dsn_of("ours"), dsn_of("theirs"));
    for (dsn, name) in [(&ours, "Kim"), (&theirs, "Kim")] {
        let (dir, made) = device([sample(1)]);
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        ledger.review(review(made[0].id, "Kim")).unwrap();
        ledger.person(add(name)).unwrap();
        ledger.feedback(say(Some(&made[0].code), FeedbackType::FalsePositive)).unwrap();
        let config = UplinkConfig { dsn: loupe::uplink::Secret::new(dsn.clone()), site_id: None };
        drain(ledger, &config, |_| ()).unwrap();
    }
    // The same name at two sites is two people, and each review finds its own.
    let reviews = "SELECT count(DISTINCT r.operator_id), count(*) FROM loupe.v_reviews r
        JOIN loupe.v_operators o USING (site_id, device_id, operator_id)";
    assert_eq!(server.lines(reviews), ["2|2"]);
    assert_eq!(server.lines("SELECT count(*) FROM loupe.v_feedback_open"), ["2"]);
    let site = server.lines("SELECT id FROM loupe.sites ORDER BY code LIMIT 1").remove(0);
    let one = format!("SET loupe.site_id = '{site}'; SELECT count(*) FROM loupe.v_feedback_open");
    assert_eq!(server.lines(&one).last().map(String::as_str), Some("1"));
}

/// Every column of every table of the ledger says in its own line what it is.
#[test]
fn every_column_of_the_ledger_has_a_comment() {
    let dir = tempfile::tempdir().unwrap();
    Ledger::open(dir.path(), Clock::system()).unwrap().close().unwrap();
    let connection = rusqlite::Connection::open(database_path(dir.path())).unwrap();
    let tables = "SELECT m.name, m.sql, i.name FROM sqlite_schema m JOIN pragma_table_info(m.name) i
        WHERE m.type = 'table' AND m.name NOT GLOB 'sqlite_*' AND m.name <> 'schema_migrations' ORDER BY m.name, i.cid";
    let mut statement = connection.prepare(tables).unwrap();
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let columns: Vec<(String, String, String)> = statement.query_map([], read).unwrap().map(Result::unwrap).collect();
    assert!(columns.len() > 200, "{}", columns.len());
    let is_said = |sql: &str, column: &str| {
        sql.lines().map(str::trim_start).any(|line| {
            line.strip_prefix(column).is_some_and(|rest| rest.starts_with(' '))
                && line.split_once("-- ").is_some_and(|(_, words)| words.trim().len() > 2)
        })
    };
    assert!(!is_said("id BLOB NOT NULL,\nids TEXT -- of all", "id"), "a bare column would not be seen");
    let bare: Vec<String> = columns
        .iter()
        .filter(|(_, sql, column)| !is_said(sql, column))
        .map(|(table, _, column)| format!("{table}.{column}"))
        .collect();
    assert!(bare.is_empty(), "columns without a comment: {bare:?}");
}

#[test]
fn every_column_of_the_centre_has_a_comment() {
    let Some(server) = start() else { return };
    let bare = || {
        server.lines(
            "SELECT c.relname || '.' || a.attname FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped
         LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = a.attnum
         WHERE c.relnamespace = 'loupe'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
            AND coalesce(length(d.description), 0) < 2
         UNION ALL
         SELECT c.relname FROM pg_class c
         WHERE c.relnamespace = 'loupe'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
            AND obj_description(c.oid, 'pg_class') IS NULL",
        )
    };
    assert!(bare().is_empty(), "without a comment: {:?}", bare());
    server.query("ALTER TABLE loupe.feedback ADD COLUMN mood text; CREATE TABLE loupe.bare (id int)");
    assert_eq!(bare().len(), 3, "bare ones are not seen: {:?}", bare());
    server.query("ALTER TABLE loupe.feedback DROP COLUMN mood");
    let columns = server.lines(
        "SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND a.attnum > 0
         WHERE c.relnamespace = 'loupe'::regnamespace AND c.relname IN ('operators', 'feedback', 'action_logs')
            AND NOT a.attisdropped",
    );
    assert_eq!(columns, ["41"]);
}

/// The daemon has the ledger: orders go through its dashboard.
#[test]
fn the_commands_hand_their_orders_to_a_running_dashboard() {
    let (dir, made) = device([sample(1)]);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    let state = DashboardState {
        artifacts_dir: artifacts_dir(dir.path()),
        site: "Plant 3".to_owned(),
        stations: Vec::new(),
        snapshot: std::sync::Arc::new(Snapshot::default),
        gone: None,
        lookup: None,
        reviews: None,
        kits: None,
        holds: None,
        people: Some(loupe::cmd::people::desk(ledger.clone(), dir.path().to_owned())),
        metrics: Metrics::new(),
        progress: Vec::new(),
        clock: Clock::system(),
        allow_remote: false,
        allowed_hosts: Vec::new(),
    };
    let stop = Shutdown::new();
    let dashboard = Dashboard::spawn("127.0.0.1:0".parse().unwrap(), Feed::new(), state, stop.clone()).unwrap();
    std::fs::write(dir.path().join("dashboard.addr"), dashboard.addr.to_string()).unwrap();
    let code = made[0].code.as_str();
    done(dir.path(), &["people", "add", "Kim", "--author", "setup"]);
    assert!(refused(dir.path(), &["people", "add", "KIM", "--author", "kim"]).contains("registered already"));
    let long = "\"".repeat(1_000);
    done(dir.path(), &["feedback", "add", code, "--type", "severity_wrong", "--notes", &long, "--author", "kim"]);
    let said = refused(dir.path(), &["feedback", "add", code, "--type", "accurate", "--author", "Choi"]);
    assert!(said.contains("the daemon refuses") && said.contains("`Choi`"), "{said}");
    let large = "x".repeat(100_000);
    let said = refused(dir.path(), &["feedback", "add", code, "--type", "accurate", "--notes", &large, "--by", "kim"]);
    assert!(said.contains("longer than 1000"), "{said}");
    let list = json(dir.path(), &["feedback", "list", "--open"]);
    assert_eq!(list["feedback"][0]["feedback_type"], "severity_wrong", "{list}");
    assert_eq!(ledger.counters().unwrap().feedback, 1);
    assert_eq!(list["feedback"][0]["notes"], long.as_str());
    stop.request();
    dashboard.join();
}
