//! What the centre tells its sites arrives there, in order, whole or not at all, and nowhere else.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{CentralTable, Ledger, LedgerReader};
use loupe::uplink::{Pulled, Secret, UplinkConfig, pull};
use serde_json::Value;
use support::pgbouncer::PgBouncer;
use support::postgres::Postgres;
use support::{fail_with, loupe, succeed, text};
use tempfile::TempDir;

/// A provisioned site.
struct Site {
    id: String,
    dsn: String,
    state: TempDir,
}

impl Site {
    fn provision(server: &Postgres, code: &str) -> Site {
        let output = succeed(loupe().args([
            "db",
            "provision-site",
            "--json",
            "--code",
            code,
            "--name",
            code,
            "--dsn",
            &server.dsn(),
        ]));
        let site: Value = serde_json::from_slice(&output.stdout).unwrap();
        Site {
            id: site["site_id"].as_str().unwrap().to_owned(),
            dsn: site["dsn"].as_str().unwrap().to_owned(),
            state: TempDir::new().unwrap(),
        }
    }

    fn pull(&self) -> Pulled {
        let ledger = Ledger::open(self.state.path(), Clock::system()).unwrap();
        let config = UplinkConfig { dsn: Secret::new(&self.dsn), site_id: Some(self.id.parse().unwrap()) };
        let pulled = pull(ledger.clone(), &config).unwrap();
        ledger.close().unwrap();
        pulled
    }

    fn reader(&self) -> LedgerReader {
        LedgerReader::open(self.state.path()).unwrap()
    }

    fn parts(&self) -> Vec<String> {
        self.reader().parts().unwrap().into_iter().map(|card| card.part.part_number).collect()
    }

    fn status(&self) -> Value {
        let output = succeed(loupe().args(["provisioning", "status", "--json", "--state"]).arg(self.state.path()));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn migrated() -> Option<Postgres> {
    let server = Postgres::start()?;
    succeed(loupe().args(["db", "migrate", "--dsn", &server.dsn()]));
    Some(server)
}

fn publish(server: &Postgres, args: &[&str]) -> Command {
    let mut command = loupe();
    command.arg("publish").args(args).args(["--dsn", &server.dsn()]);
    command
}

/// A folder with parts 3001 and 3023 in two colours.
fn catalogue(folder: &Path) -> PathBuf {
    let path = folder.join("catalogue");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("categories.csv"), "code,name_en,name_ko,parent\nbrick,Brick,브릭,\nplate,Plate,,brick\n")
        .unwrap();
    fs::write(path.join("colours.csv"), "color_id,name,rgb\n4,Red,C91A09\n14,Yellow,F2CD37\n").unwrap();
    fs::write(
        path.join("parts.csv"),
        "part_number,name_en,category,length_mm,confusion_group\n3001,Brick 2 x 4,brick,31.8,bricks\n3023,Plate 1 x 2,plate,15.8,\n",
    )
    .unwrap();
    fs::write(path.join("near_identical_pairs.csv"), "part_a,part_b,mean_cosine_same_view\n3001,3023,0.91\n").unwrap();
    fs::write(
        path.join("policies.csv"),
        "subject_kind,subject,security_level,allowed_groups\npart,3023,restricted,qa;lab\n",
    )
    .unwrap();
    fs::write(
        path.join("kits.csv"),
        "kit_code,kit_name,part_number,color_id,quantity,is_spare\nSET-7,Seven,3001,4,2,\nSET-7,,3023,,1,yes\n",
    )
    .unwrap();
    path
}

#[test]
fn catalogue_and_kits_come_down_once_and_only_to_their_site() {
    let Some(server) = migrated() else { return };
    let (here, there) = (Site::provision(&server, "plant-07"), Site::provision(&server, "plant-08"));
    let folder = TempDir::new().unwrap();
    let path = catalogue(folder.path());
    let path = path.to_str().unwrap();
    succeed(&mut publish(&server, &["catalog", path, "--site", "plant-07", "--dry-run"]));
    assert_eq!(here.pull(), Pulled::default(), "a dry run publishes nothing");
    succeed(&mut publish(&server, &["catalog", path, "--site", "plant-07"]));
    let pulled = here.pull();
    assert_eq!((pulled.rows, pulled.applied, pulled.set_aside), (9, 9, 0), "{pulled:?}");
    assert_eq!(there.pull(), Pulled::default(), "another site sees none of it");

    // What came down is what an import of the same files would have made.
    let import = TempDir::new().unwrap();
    succeed(loupe().args(["catalog", "import", path, "--state"]).arg(import.path()));
    let imported = LedgerReader::open(import.path()).unwrap().catalogue().unwrap();
    assert_eq!(here.reader().catalogue().unwrap(), imported);
    assert_eq!(imported.kits[0].lines.len(), 2);

    assert_eq!(here.pull(), Pulled::default(), "nothing new");
    let said = text(&succeed(&mut publish(&server, &["catalog", path, "--site", "plant-07"])).stdout);
    assert!(said.contains("0 rows changed"), "{said}");
    assert_eq!(here.pull(), Pulled::default(), "what is published again unchanged does not travel");
}

#[test]
fn a_sites_own_row_counts_before_the_one_for_all_and_comes_back_from_under_it() {
    let Some(server) = migrated() else { return };
    let (here, there) = (Site::provision(&server, "plant-07"), Site::provision(&server, "plant-08"));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("parts.csv");
    let put = |name: &str, args: &[&str]| {
        fs::write(&file, format!("part_number,name_en\n3001,{name}\n")).unwrap();
        let mut all = vec!["catalog", file.to_str().unwrap()];
        all.extend(args);
        succeed(&mut publish(&server, &all));
    };
    let name = |site: &Site| {
        site.pull();
        site.reader().part("3001").unwrap().map(|card| card.part.name_en)
    };
    put("for all", &[]);
    assert_eq!((name(&here), name(&there)), (Some("for all".to_owned()), Some("for all".to_owned())));
    put("own", &["--site", "plant-07"]);
    assert_eq!((name(&here), name(&there)), (Some("own".to_owned()), Some("for all".to_owned())));
    put("for all again", &[]);
    assert_eq!((name(&here), name(&there)), (Some("own".to_owned()), Some("for all again".to_owned())));
    succeed(&mut publish(&server, &["withdraw", "part", "3001", "--site", "plant-07"]));
    assert_eq!(name(&here), Some("for all again".to_owned()));
    succeed(&mut publish(&server, &["withdraw", "part", "3001"]));
    assert_eq!((name(&here), name(&there)), (None, None));
    assert!(here.parts().is_empty() && here.reader().quality_levels().unwrap().is_empty());
    put("back", &[]);
    assert_eq!(name(&here), Some("back".to_owned()));
    let said = fail_with(&mut publish(&server, &["withdraw", "kit", "SET-9"]), 1);
    assert!(said.contains("no kit `SET-9`"), "{said}");
}

#[test]
fn the_centre_wins_over_local_imports_and_says_so() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("parts.csv");
    let import = |rows: &str, args: &[&str]| {
        fs::write(&file, format!("part_number,name_en\n{rows}")).unwrap();
        let mut command = loupe();
        command.args(["catalog", "import"]).arg(&file).args(args).arg("--state").arg(here.state.path());
        command
    };
    succeed(&mut import("3001,local\nmine,Mine\n", &[]));
    fs::write(&file, "part_number,name_en\n3001,central\n").unwrap();
    succeed(&mut publish(&server, &["catalog", file.to_str().unwrap()]));
    here.pull();
    let name = |part: &str| here.reader().part(part).unwrap().unwrap().part.name_en;
    assert_eq!((name("3001"), name("mine")), ("central".to_owned(), "Mine".to_owned()));
    for args in [["--dry-run"].as_slice(), &[]] {
        let said = fail_with(&mut import("3001,local again\nmine,Mine too\n", args), 1);
        assert!(said.contains("part `3001` came from the centre") && said.contains("loupe publish"), "{said}");
    }
    assert_eq!((name("3001"), name("mine")), ("central".to_owned(), "Mine".to_owned()), "all or nothing");
    succeed(&mut import("3001,central\nmine,Mine too\n", &[]));
    assert_eq!(name("mine"), "Mine too");
    // Withdrawn, the number is the device's own again.
    succeed(&mut publish(&server, &["withdraw", "part", "3001"]));
    here.pull();
    assert_eq!(here.parts(), ["mine"]);
    succeed(&mut import("3001,local again\n", &[]));
    assert_eq!(name("3001"), "local again");
}

#[test]
fn rows_of_no_use_are_set_aside_and_hold_up_nothing() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    // A row from a newer centre, one whose category is not there, and a kit whose part is missing.
    server.query(
        "INSERT INTO loupe.parts (part_number, name_en, format) VALUES ('new', 'Newer', 2);
         INSERT INTO loupe.parts (part_number, name_en, category_code) VALUES ('orphan', 'Orphan', 'nowhere');
         INSERT INTO loupe.kits (kit_code, name) VALUES ('K', 'Kit');
         INSERT INTO loupe.kit_parts SELECT id, 0, 'late', NULL, 1, false FROM loupe.kits;
         INSERT INTO loupe.categories (code, name_en, parent_code) VALUES ('child', 'Child', 'parent');
         INSERT INTO loupe.parts (part_number, name_en) VALUES ('good', 'Good');",
    );
    let pulled = here.pull();
    assert_eq!((pulled.rows, pulled.set_aside), (5, 4), "{pulled:?}");
    assert_eq!(here.parts(), ["good"]);
    let status = here.status();
    let said = status["set_aside"].to_string();
    for words in ["format 2", "categories `nowhere`", "parts `late`", "categories `parent`"] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert_eq!(here.pull(), Pulled::default(), "the cursor went on");
    // What they waited for comes, one after another.
    server.query(
        "INSERT INTO loupe.categories (code, name_en, parent_code) VALUES ('nowhere', 'Now here', 'child');
         INSERT INTO loupe.categories (code, name_en) VALUES ('parent', 'Parent');
         INSERT INTO loupe.parts (part_number, name_en) VALUES ('late', 'Late');",
    );
    here.pull();
    assert_eq!(here.parts(), ["good", "late", "orphan"]);
    assert_eq!(here.reader().kits().unwrap().len(), 1);
    assert_eq!(here.status()["set_aside"].as_array().unwrap().len(), 1, "the newer one stays aside");
}

/// A connection of its own, as its own client.
fn connect(runtime: &tokio::runtime::Runtime, server: &Postgres) -> tokio_postgres::Client {
    let (client, connection) = runtime.block_on(tokio_postgres::connect(&server.dsn(), tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    client
}

#[test]
fn a_change_that_commits_late_is_not_passed_over() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (connect(&runtime, &server), connect(&runtime, &server));
    // The first publisher has its number and does not commit.
    runtime
        .block_on(
            first.batch_execute("BEGIN; INSERT INTO loupe.parts (part_number, name_en) VALUES ('early', 'Early')"),
        )
        .unwrap();
    // The second one begins later and would be done before it.
    let mut second = runtime.spawn(async move {
        second
            .batch_execute("BEGIN; INSERT INTO loupe.parts (part_number, name_en) VALUES ('late', 'Late'); COMMIT")
            .await
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let watch = Stopwatch::start();
    let turn = std::time::Duration::from_millis(20);
    while runtime.block_on(async { tokio::time::timeout(turn, &mut second).await }).is_err()
        && server.query(waits) != "1"
    {
        assert!(watch.elapsed().as_secs() < 30, "the second publisher neither waits nor ends");
    }
    // A device that asks now must not go beyond what the first one still holds.
    here.pull();
    runtime.block_on(first.batch_execute("COMMIT")).unwrap();
    if !second.is_finished() {
        runtime.block_on(second).unwrap().unwrap();
    }
    here.pull();
    assert_eq!(here.parts(), ["early", "late"]);
    let numbers = server.lines("SELECT part_number FROM loupe.parts ORDER BY change_seq");
    assert_eq!(numbers, ["early", "late"]);
}

#[test]
fn a_month_of_changes_comes_in_pages_and_a_restored_centre_is_read_anew() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    server.query(
        "INSERT INTO loupe.parts (part_number, name_en)
             SELECT 'p' || lpad(n::text, 5, '0'), 'Part ' || n FROM generate_series(1, 2500) n",
    );
    let pulled = here.pull();
    assert_eq!((pulled.rows, pulled.applied), (2_500, 2_500));
    assert_eq!(here.parts().len(), 2_500);
    let cursor = here.reader().central_cursor(CentralTable::Parts).unwrap();
    assert_eq!(server.query("SELECT max(change_seq) FROM loupe.parts"), cursor.to_string());
    // Restored to before: its numbers start lower than the cursor.
    server.query(
        "ALTER TABLE loupe.parts DISABLE TRIGGER USER; DELETE FROM loupe.parts WHERE part_number > 'p00010';
         SELECT setval('loupe.change_numbers', (SELECT max(change_seq) FROM loupe.parts));
         ALTER TABLE loupe.parts ENABLE TRIGGER USER;
         UPDATE loupe.parts SET name_en = 'renamed' WHERE part_number = 'p00001'",
    );
    here.pull();
    assert_eq!(here.reader().part("p00001").unwrap().unwrap().part.name_en, "renamed");
}

#[test]
fn a_device_neither_writes_nor_reads_beyond_its_site() {
    let Some(server) = migrated() else { return };
    let (here, there) = (Site::provision(&server, "plant-07"), Site::provision(&server, "plant-08"));
    server.query(&format!(
        "INSERT INTO loupe.parts (part_number, name_en) VALUES ('all', 'All');
         INSERT INTO loupe.parts (part_number, name_en, site_id) VALUES ('here', 'Here', '{0}'), ('there', 'There', '{1}');
         INSERT INTO loupe.kits (kit_code, name, site_id) VALUES ('H', 'H', '{0}'), ('T', 'T', '{1}');
         INSERT INTO loupe.kit_parts SELECT id, 0, 'all', NULL, 1, false FROM loupe.kits",
        here.id, there.id
    ));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (client, connection) = runtime.block_on(tokio_postgres::connect(&here.dsn, tokio_postgres::NoTls)).unwrap();
    runtime.spawn(connection);
    let ask = |sql: &str| {
        let rows = runtime.block_on(client.simple_query(sql))?;
        let first = |message: &tokio_postgres::SimpleQueryMessage| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok::<Vec<String>, tokio_postgres::Error>(rows.iter().filter_map(first).collect())
    };
    assert_eq!(ask("SELECT part_number FROM loupe.parts ORDER BY 1").unwrap(), ["all", "here"]);
    assert_eq!(ask("SELECT count(*) FROM loupe.kit_parts").unwrap(), ["1"]);
    // Every table that flows down: those with a change number.
    let shared = server.lines(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'change_seq'
         WHERE c.relnamespace = 'loupe'::regnamespace AND c.relkind = 'r' ORDER BY 1",
    );
    assert_eq!(shared.len(), CentralTable::ALL.len(), "{shared:?}");
    for table in shared.iter().map(String::as_str).chain(["kit_parts"]) {
        assert!(CentralTable::ALL.iter().any(|known| known.name() == table) || table == "kit_parts", "{table}");
        for statement in [
            format!("INSERT INTO loupe.{table} DEFAULT VALUES"),
            format!("UPDATE loupe.{table} SET {} = 1", if table == "kit_parts" { "ordinal" } else { "format" }),
            format!("DELETE FROM loupe.{table}"),
        ] {
            let error = ask(&statement).unwrap_err();
            assert_eq!(error.code().unwrap().code(), "42501", "{statement}: {error}");
        }
    }
    // Asking for the other site gives nothing, not the other's rows.
    ask(&format!("SET loupe.site_id = '{}'", there.id)).unwrap();
    assert!(ask("SELECT part_number FROM loupe.parts").unwrap().is_empty());
    // Somebody who may publish may do so, and may not delete.
    server.query("CREATE ROLE kim LOGIN PASSWORD 'sesame' IN ROLE loupe_admin");
    let admin = server.dsn_of("kim", "sesame");
    let folder = TempDir::new().unwrap();
    let path = catalogue(folder.path());
    succeed(loupe().args(["publish", "catalog"]).arg(&path).args(["--dsn", &admin]));
    let listed = text(&succeed(loupe().args(["publish", "list", "--kind", "part", "--dsn", &admin])).stdout);
    assert!(listed.contains("3001") && listed.contains("kim"), "{listed}");
    let said = fail_with(loupe().args(["publish", "catalog"]).arg(&path).args(["--dsn", &here.dsn]), 1);
    assert!(said.contains("may not publish"), "{said}");
    let said = fail_with(&mut publish(&server, &["withdraw", "part", "3001"]), 1);
    assert!(said.contains("kit `SET-7` expects part `3001`"), "{said}");
}

#[test]
fn the_nearest_assignment_names_the_recipe_and_withdrawing_it_uncovers_the_next() {
    let Some(server) = migrated() else { return };
    let (here, there) = (Site::provision(&server, "plant-07"), Site::provision(&server, "plant-08"));
    let folder = TempDir::new().unwrap();
    let put = |name: &str, args: &[&str]| {
        let file = folder.path().join("recipe.toml");
        fs::write(&file, format!("name = \"{name}\"\n[locate]\nkind = \"blob\"\n")).unwrap();
        let mut all = vec!["recipe", file.to_str().unwrap()];
        all.extend(args);
        text(&succeed(&mut publish(&server, &all)).stdout)
    };
    let wanted = |site: &Site, station: &str| {
        site.pull();
        site.reader().desired_recipe(station).unwrap().map(|desired| desired.recipe.name)
    };
    assert_eq!(wanted(&here, "a"), None);
    put("all", &["--all-sites"]);
    put("all-a", &["--all-sites", "--station", "a"]);
    assert_eq!((wanted(&here, "a").unwrap(), wanted(&here, "b").unwrap()), ("all-a".to_owned(), "all".to_owned()));
    put("site", &["--site", "plant-07"]);
    assert_eq!((wanted(&here, "a").unwrap(), wanted(&here, "b").unwrap()), ("site".to_owned(), "site".to_owned()));
    put("site-a", &["--site", "plant-07", "--station", "a"]);
    assert_eq!((wanted(&here, "a").unwrap(), wanted(&here, "b").unwrap()), ("site-a".to_owned(), "site".to_owned()));
    assert_eq!(wanted(&there, "a").unwrap(), "all-a", "another site's recipes are its own business");
    assert!(put("site-a", &["--site", "plant-07", "--station", "a"]).contains("already"));
    // The one before stays as a record of who ran what.
    put("site-a-2", &["--site", "plant-07", "--station", "a"]);
    assert_eq!(wanted(&here, "a").unwrap(), "site-a-2");
    let rows = server.lines("SELECT is_active FROM loupe.recipe_assignments WHERE station = 'a' AND site_id IS NOT NULL ORDER BY change_seq");
    assert_eq!(rows, ["f", "t"]);
    succeed(&mut publish(&server, &["withdraw", "recipe", "a", "--site", "plant-07"]));
    assert_eq!(wanted(&here, "a").unwrap(), "site");
    succeed(&mut publish(&server, &["withdraw", "recipe", "*", "--site", "plant-07"]));
    assert_eq!((wanted(&here, "a").unwrap(), wanted(&here, "b").unwrap()), ("all-a".to_owned(), "all".to_owned()));

    // Wrong recipes and wrong sites are refused before anything is written.
    let file = folder.path().join("bad.toml");
    fs::write(&file, "name = \"bad\"\n[match]\naccept_similarity = 3.0\n").unwrap();
    let said = fail_with(&mut publish(&server, &["recipe", file.to_str().unwrap(), "--site", "plant-07"]), 78);
    assert!(said.contains("match.accept_similarity"), "{said}");
    let good = folder.path().join("recipe.toml");
    let said = fail_with(&mut publish(&server, &["recipe", good.to_str().unwrap(), "--site", "plant-99"]), 1);
    assert!(said.contains("plant-99"), "{said}");
    fail_with(&mut publish(&server, &["recipe", good.to_str().unwrap()]), 64);
    let error = std::panic::catch_unwind(|| server.query("UPDATE loupe.recipes SET body = body || ' '"));
    assert!(error.is_err(), "what is named by its content is not edited");
}

#[test]
fn a_centre_without_these_tables_is_delivered_to_all_the_same() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    // One that lacks the newest of them still tells of the others.
    server.query(
        "DROP VIEW loupe.v_provisioning_state; DROP TABLE loupe.fits, loupe.provision_reports;
         DELETE FROM loupe.schema_migrations WHERE version = 12;
         INSERT INTO loupe.parts (part_number, name_en) VALUES ('3001', 'Brick')",
    );
    let pulled = here.pull();
    assert!(pulled.is_older && pulled.rows == 1, "{pulled:?}");
    server.query(
        "DROP TABLE loupe.recipe_assignments, loupe.recipes, loupe.kit_parts, loupe.kits, loupe.access_policies,
             loupe.part_relations, loupe.parts, loupe.colors, loupe.categories;
         DELETE FROM loupe.schema_migrations WHERE version IN (10, 11)",
    );
    assert_eq!(here.pull(), Pulled { is_older: true, ..Pulled::default() });
    let ledger = Ledger::open(here.state.path(), Clock::system()).unwrap();
    support::samples::provenance(&ledger);
    ledger.commit(support::samples::inspection(1), Vec::new()).unwrap();
    ledger.close().unwrap();
    succeed(loupe().args(["outbox", "drain", "--dsn", &here.dsn, "--state"]).arg(here.state.path()));
    assert_eq!(server.query("SELECT count(*) FROM loupe.inspections"), "1");
    let folder = TempDir::new().unwrap();
    let said = fail_with(&mut publish(&server, &["catalog", catalogue(folder.path()).to_str().unwrap()]), 1);
    assert!(said.contains("loupe db migrate"), "{said}");
}

#[test]
fn killed_in_the_middle_of_a_pull_the_cursor_and_the_rows_agree() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    server.query(
        "INSERT INTO loupe.parts (part_number, name_en)
             SELECT 'p' || lpad(n::text, 5, '0'), 'Part ' || n FROM generate_series(1, 20000) n",
    );
    drop(Ledger::open(here.state.path(), Clock::system()).unwrap());
    let mut cursor = 0;
    for _ in 0..4 {
        let mut child = loupe()
            .args(["provisioning", "pull", "--dsn", &here.dsn, "--state"])
            .arg(here.state.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let watch = Stopwatch::start();
        while here.reader().central_cursor(CentralTable::Parts).unwrap() <= cursor {
            assert!(watch.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(), "it takes nothing in");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        cursor = here.reader().central_cursor(CentralTable::Parts).unwrap();
        let below = server.query(&format!("SELECT count(*) FROM loupe.parts WHERE change_seq <= {cursor}"));
        assert_eq!(here.parts().len().to_string(), below, "a page is taken in whole with its cursor");
    }
    assert!(here.parts().len() < 20_000, "no kill was in the middle");
    let left = 20_000 - here.parts().len();
    assert_eq!(here.pull().rows, left, "what was taken in is not asked again");
    assert_eq!(here.parts().len(), 20_000);
}

#[test]
fn killed_at_each_place_a_page_is_taken_in_whole_or_not_at_all() {
    let Some(server) = migrated() else { return };
    let here = Site::provision(&server, "plant-07");
    server.query(
        "INSERT INTO loupe.parts (part_number, name_en) SELECT 'p' || n, 'Part ' || n FROM generate_series(1, 3000) n",
    );
    let places = [
        "downlink.page.read",
        "downlink.page.taken",
        "ledger.edit.savepoint",
        "ledger.commit.before",
        "ledger.commit.after",
        "ledger.reply.after",
    ];
    for place in places {
        let status = loupe()
            .args(["provisioning", "pull", "--dsn", &here.dsn, "--state"])
            .arg(here.state.path())
            .env(loupe::failpoint::VARIABLE, format!("{place}=kill@3"))
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), None, "it never came to {place}");
        let reader = here.reader();
        let cursor = reader.central_cursor(CentralTable::Parts).unwrap();
        let below = server.query(&format!("SELECT count(*) FROM loupe.parts WHERE change_seq <= {cursor}"));
        assert_eq!(reader.parts().unwrap().len().to_string(), below, "killed at {place}");
    }
    let left = 3_000 - here.parts().len();
    assert!(left > 0 && left < 3_000);
    assert_eq!((here.pull().rows, here.parts().len()), (left, 3_000));
    assert!(here.reader().parts().unwrap().iter().all(|card| card.version == 1), "no row was taken in twice");
}

#[test]
fn a_pooler_in_transaction_mode_keeps_the_sites_apart() {
    let Some(server) = migrated() else { return };
    let sites = [Site::provision(&server, "plant-07"), Site::provision(&server, "plant-08")];
    server.query(&format!(
        "INSERT INTO loupe.parts (part_number, name_en, site_id) SELECT 'a' || n, 'A', '{}' FROM generate_series(1, 500) n;
         INSERT INTO loupe.parts (part_number, name_en, site_id) SELECT 'b' || n, 'B', '{}' FROM generate_series(1, 300) n",
        sites[0].id, sites[1].id
    ));
    // One login for both, which may choose its site, and one session at the server for everybody.
    server.query("CREATE ROLE gateway LOGIN PASSWORD 'sesame' IN ROLE loupe_ops");
    let Some(pooler) = PgBouncer::start(&server, &[("gateway", "sesame")]) else { return };
    let dsn = Secret::new(pooler.dsn_of("gateway", "sesame"));
    std::thread::scope(|scope| {
        for site in &sites {
            let dsn = dsn.clone();
            scope.spawn(move || {
                let ledger = Ledger::open(site.state.path(), Clock::system()).unwrap();
                let config = UplinkConfig { dsn, site_id: Some(site.id.parse().unwrap()) };
                pull(ledger, &config).unwrap();
            });
        }
    });
    let counts = sites.each_ref().map(|site| site.parts().len());
    assert_eq!(counts, [500, 300]);
    assert!(sites[0].parts().iter().all(|part| part.starts_with('a')));
}
