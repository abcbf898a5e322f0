//! Catalogue, kits and stock with a real ledger, a real PostgreSQL and the real program.

mod support;

use std::fs;
use std::path::Path;

use loupe::clock::Clock;
use loupe::ledger::{Ledger, LedgerReader};
use loupe::types::{Catalogue, Color, Inspection, Kit, KitLine, KitOrder, Part, Verdict};
use loupe::uplink::{Secret, UplinkConfig, drain};
use serde_json::Value;
use support::postgres::Postgres;
use support::{Assets, fail_with, loupe, samples as bundled, succeed, text};
use uuid::Uuid;

fn part(number: &str) -> Part {
    Part {
        part_number: number.to_owned(),
        name_en: format!("Part {number}"),
        name_ko: None,
        category_code: None,
        length_mm: None,
        width_mm: None,
        height_mm: None,
        weight_g: None,
        confusion_group: None,
    }
}

fn line(part: &str, quantity: u32) -> KitLine {
    KitLine { part_number: part.to_owned(), color_id: None, quantity, is_spare: false, alternate_group: None }
}

fn ledger_with(dir: &Path, lines: Vec<KitLine>) -> Ledger {
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    support::samples::provenance(&ledger);
    let kit = Kit { kit_code: "K1".to_owned(), name: "One".to_owned(), lines };
    let color =
        Color { color_id: 4, name: "Red".to_owned(), name_ko: None, rgb: "FF0000".to_owned(), is_transparent: false };
    let parts = ["3001", "3003", "3004"].map(part).to_vec();
    ledger.import_catalogue(Catalogue { parts, colors: vec![color], kits: vec![kit], ..Catalogue::default() }).unwrap();
    ledger
}

/// A still frame at `tray` with these parts.
fn tray(number: u64, parts: &[&str]) -> Inspection {
    let mut inspection = support::samples::inspection(number);
    inspection.station = "tray".to_owned();
    inspection.is_stream = false;
    inspection.items = (0..)
        .zip(parts)
        .map(|(ordinal, part)| {
            let mut item = support::samples::item(ordinal, 0.9);
            item.part_id = Some((*part).to_owned());
            item.matched.as_mut().unwrap().part_id = (*part).to_owned();
            item
        })
        .collect();
    inspection
}

fn start(ledger: &Ledger) -> Uuid {
    let order = KitOrder::Start { kit_code: "K1".to_owned(), station: Some("tray".to_owned()), by: "kim".to_owned() };
    ledger.kit(order).unwrap()["session"].as_str().unwrap().parse().unwrap()
}

fn finish(session: Uuid) -> KitOrder {
    KitOrder::Finish { session, by: "kim".to_owned(), accept_incomplete: false }
}

#[test]
fn a_session_of_trays_counts_books_once_and_reaches_postgres_once() {
    let Some(server) = Postgres::start() else { return };
    let dsn = server.dsn();
    succeed(loupe().args(["db", "migrate", "--dsn", &dsn]));
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger_with(dir.path(), vec![line("3001", 2), line("3003", 1)]);
    let session = start(&ledger);
    ledger.commit(tray(1, &["3001"]), Vec::new()).unwrap();
    let mut stream = tray(2, &["3001"]);
    stream.is_stream = true;
    ledger.commit(stream, Vec::new()).unwrap();
    let doubt = {
        let mut held = tray(3, &["3003"]);
        held.verdict = Verdict::Hold;
        held.reasons = vec![loupe::types::Reason::MarginSmall];
        held.items[0].verdict = Verdict::Hold;
        held.items[0].reasons = held.reasons.clone();
        held.items[0].part_id = None;
        ledger.commit(held, Vec::new()).unwrap()
    };
    let reader = LedgerReader::open(dir.path()).unwrap();
    let count_now = || reader.kit_count(&reader.kit_session(session).unwrap().unwrap()).unwrap();
    let counted = count_now();
    assert_eq!((counted.trays, counted.found, counted.missing, counted.doubtful), (2, 1, 2, 1), "{counted:?}");
    let refused = ledger.kit(finish(session)).unwrap_err().to_string();
    assert!(refused.contains("2 missing, 0 over, 1 in doubt"), "{refused}");

    let undo = KitOrder::RemoveTray { session, inspection: Some(doubt.id), by: "kim".to_owned(), reason: None };
    ledger.kit(undo).unwrap();
    ledger.commit(tray(4, &["3001", "3003"]), Vec::new()).unwrap();
    assert!(count_now().is_complete, "{:?}", count_now());
    let twice = KitOrder::AddTray { session, inspection: reader.recent(1).unwrap()[0].id };
    assert!(ledger.kit(twice).unwrap_err().to_string().contains("counts once"));
    let threshold = KitOrder::Threshold { part_number: "3003".to_owned(), min_quantity: 5, by: "kim".to_owned() };
    ledger.kit(threshold).unwrap();
    let done = ledger.kit(finish(session)).unwrap();
    assert_eq!(done["low_stock"][0]["part_number"], "3003", "{done}");
    assert!(ledger.kit(finish(session)).unwrap_err().to_string().contains("finished already"));
    let adjust = KitOrder::Adjust {
        part_number: "3001".to_owned(),
        color_id: None,
        delta: -1,
        by: "kim".to_owned(),
        reason: "broken".to_owned(),
    };
    let KitOrder::Adjust { part_number, by, reason, .. } = adjust.clone() else { unreachable!() };
    let refused =
        ledger.kit(KitOrder::Adjust { part_number, color_id: None, delta: -3, by, reason }).unwrap_err().to_string();
    assert!(refused.contains("3 of `3001` in colour any cannot have gone: 2 are in stock"), "{refused}");
    assert_eq!(ledger.kit(adjust).unwrap()["quantity"], 1);
    let stock: Vec<(String, i64)> = reader.stock().unwrap().into_iter().map(|s| (s.part_number, s.quantity)).collect();
    assert_eq!(stock, [("3001".to_owned(), 1), ("3003".to_owned(), 1)]);

    let site = UplinkConfig { dsn: Secret::new(dsn), site_id: Some(Uuid::from_u128(0xB)) };
    drain(ledger.clone(), &site, |_| ()).unwrap();
    assert_eq!(drain(ledger.clone(), &site, |_| ()).unwrap().delivered, 0);
    let rows =
        server.lines("SELECT kit_code, outcome, is_complete, found_count, result->>'kit_code' FROM loupe.kit_sessions");
    assert_eq!(rows, ["K1|finished|t|3|K1"]);
    let rows = server
        .lines("SELECT part_id, delta, reason, new_quantity FROM loupe.stock_ledger ORDER BY recorded_at, part_id");
    assert_eq!(rows, ["3001|2|counted|2", "3003|1|counted|1", "3001|-1|adjustment|1"]);
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.committed, counters.kit_units, counters.pending), (6, 2, 0), "{counters:?}");
    let proof = reader.verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}

#[test]
fn reopening_keeps_the_trays_and_books_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger_with(dir.path(), vec![line("3001", 2)]);
    let session = start(&ledger);
    ledger.commit(tray(1, &["3001"]), Vec::new()).unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    ledger.commit(tray(2, &["3001"]), Vec::new()).unwrap();
    ledger.kit(finish(session)).unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    assert!(ledger.kit(finish(session)).is_err());
    let reader = LedgerReader::open(dir.path()).unwrap();
    assert_eq!(reader.stock().unwrap()[0].quantity, 2);
    assert!(reader.verify(|_, _| ()).unwrap().holds());
}

#[test]
fn one_station_counts_for_one_session_and_a_cancelled_one_books_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger_with(dir.path(), vec![line("3001", 1)]);
    let session = start(&ledger);
    let order = KitOrder::Start { kit_code: "K1".to_owned(), station: Some("tray".to_owned()), by: "kim".to_owned() };
    assert!(ledger.kit(order).unwrap_err().to_string().contains("finish or cancel that first"));
    ledger.commit(tray(1, &["3001"]), Vec::new()).unwrap();
    ledger.kit(KitOrder::Cancel { session, by: "kim".to_owned(), reason: None }).unwrap();
    assert!(LedgerReader::open(dir.path()).unwrap().stock().unwrap().is_empty());
    start(&ledger);
}

fn import(state: &Path, file: &Path) -> std::process::Command {
    let mut command = loupe();
    command.args(["catalog", "import", "--state"]).arg(state).arg(file);
    command
}

fn check_refused(name: &str, content: &[u8], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (file, state) = (dir.path().join(name), dir.path().join("state"));
    fs::write(&file, content).unwrap();
    let said = fail_with(&mut import(&state, &file), 1);
    for words in expected {
        assert!(said.contains(words), "{name}: no `{words}` in {said}");
    }
    let parts = LedgerReader::open(&state).unwrap().parts().unwrap();
    assert!(parts.is_empty(), "{name} imported {}", parts.len());
}

#[test]
fn every_bad_file_is_refused_with_its_line_and_nothing_is_imported() {
    let long = format!("part_num,name\n1,{}\n", "x".repeat(2_000));
    let cases: [(&str, &[u8], &[&str]); 14] = [
        ("twice.csv", b"part_num,name\n1,One\n2,Two\n1,Again\n", &["line 4: part `1` stands twice", "line 2"]),
        ("empty.csv", b"part_num,name\n", &["line 1: there are no rows"]),
        ("nothing.csv", b"", &["line 1: the columns"]),
        ("latin.csv", b"part_num,name\n1,One\n2,Br\xfccke\n", &["line 3: is not UTF-8"]),
        ("missing.csv", b"part_num,colour\n1,red\n", &["line 1: column name_en is missing"]),
        ("ragged.csv", b"part_num,name\n1,One,more\n2\n", &["line 2: has 3 fields", "line 3: has 1 fields"]),
        ("huge.csv", long.as_bytes(), &["line 2: `name_en` has over"]),
        ("negative.csv", b"part_num,name,size_x_ldu\n1,One,-20\n2,Two,0\n3,Three,NaN\n", &["line 2: `length_ldu` is -20", "line 3", "line 4"]),
        ("circle.csv", b"code,name,parent\na,A,b\nb,B,c\nc,C,a\n", &["line 2: the parents go round in a circle"]),
        ("orphan.csv", b"code,name,parent\na,A,zz\n", &["line 2: the parent `zz` of category `a` does not exist"]),
        ("pairs.csv", b"part_a,part_b,mean_cosine_same_view\n1,1,0.9\n1,2,7\n", &["line 2: part `1` is paired with itself", "line 3: `similarity` is 7"]),
        ("colors.csv", b"ldraw_code,name,rgb_hex\n1,Blue,12345\nx,Red,FF0000\n", &["line 2: `rgb` is", "line 3: `color_id` is `x`"]),
        ("parts.json", b"{\"parts\": [{\"part_number\": \"1\", \"name_en\": \"One\"}, {\"part_number\": \"\", \"name_en\": \"\"}]}", &["parts[1]: `part_number` is empty"]),
        ("broken.json", b"{\n\"parts\": [\n", &["line 3: is no JSON"]),
    ];
    for (name, content, expected) in cases {
        check_refused(name, content, expected);
    }
}

#[test]
fn bom_crlf_korean_and_one_part_are_read_and_a_second_import_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, state) = (dir.path().join("parts.csv"), dir.path().join("state"));
    fs::write(&file, "\u{feff}part_num,name,name_ko,category,size_x_ldu\r\n3001,Brick 2 x 4,브릭 2 x 4,Brick,80\r\n")
        .unwrap();
    let dry = text(&succeed(import(&state, &file).arg("--dry-run")).stdout);
    assert!(dry.contains("1 would be added") && !state.exists(), "{dry}");
    succeed(&mut import(&state, &file));
    let again: Value = serde_json::from_slice(&succeed(import(&state, &file).arg("--json")).stdout).unwrap();
    assert_eq!(again["summary"]["parts"]["unchanged"], 1, "{again}");
    let show = |lang: &str| {
        text(&succeed(loupe().args(["catalog", "show", "3001", "--lang", lang, "--state"]).arg(&state)).stdout)
    };
    assert!(show("ko").contains("브릭 2 x 4") && show("en").contains("Brick 2 x 4"));
    assert!(show("en").contains("version 1") && show("en").contains("32.0 ×"), "{}", show("en"));
    fs::write(&file, "part_num,name\n3001,Brick\n").unwrap();
    succeed(&mut import(&state, &file));
    assert!(show("en").contains("version 2"));
    fs::write(&file, "part_num;name;size_x_mm\r\n3001;Brick;31.5\r\n").unwrap();
    succeed(&mut import(&state, &file));
    assert!(show("en").contains("version 3") && show("en").contains("31.5 ×"), "{}", show("en"));
    let said = fail_with(
        loupe()
            .args(["catalog", "promote", "3001", "--to", "silver", "--by", "kim", "--reason", "x", "--state"])
            .arg(&state),
        64,
    );
    assert!(said.contains("--index"), "{said}");
}

#[test]
fn the_parts_data_set_is_imported_as_it_is() {
    let Some(data) = support::shared_data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let done: Value =
        serde_json::from_slice(&succeed(import(&state, &data.join("parts")).arg("--json")).stdout).unwrap();
    let added = |kind: &str| done["summary"][kind]["added"].as_array().unwrap().len();
    assert_eq!((added("parts"), added("colors"), added("relations")), (354, 10, 38), "{done}");
    assert_eq!(done["skipped"].as_array().unwrap().len(), 8, "pairs with parts that parts.csv lacks");
    let again: Value =
        serde_json::from_slice(&succeed(import(&state, &data.join("parts")).arg("--json")).stdout).unwrap();
    assert_eq!(again["summary"]["parts"]["unchanged"], 354);
    assert_eq!(again["summary"]["categories"]["changed"].as_array().unwrap().len(), 0, "{again}");
}

#[test]
fn kit_files_with_faults_name_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    drop(ledger_with(&state, vec![line("3001", 1)]));
    let file = dir.path().join("kits.csv");
    fs::write(
        &file,
        "kit_code,part_number,color_id,quantity,alternate_group\nA,9999,,1,\nA,3001,77,1,\nA,3001,,0,\nA,3003,4,1,\n\
         A,3003,4,2,\nB,3001,,1,g\nB,3003,,2,g\n",
    )
    .unwrap();
    let said = fail_with(loupe().args(["kit", "import", "--state"]).arg(&state).arg(&file), 1);
    for words in [
        "line 2: part `9999` is not in the catalogue",
        "line 3: colour 77 is not in the catalogue",
        "line 4: `quantity` must be",
        "line 6: kit line `A: 3003 in colour 4` stands twice",
        "line 8: alternates stand in for one another",
    ] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    assert_eq!(LedgerReader::open(&state).unwrap().kits().unwrap().len(), 1);
}

/// Real pictures of sample parts, one a tray, against a kit of these parts.
#[test]
fn sample_parts_are_counted_through_the_program_and_a_low_level_part_holds() {
    let assets = Assets::get();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    succeed(&mut import(&state, &bundled().join("parts")));
    let kit = dir.path().join("kit.csv");
    fs::write(&kit, "kit_code,part_number,quantity\nset,3001,1\nset,3647,1\n").unwrap();
    succeed(loupe().args(["kit", "import", "--state"]).arg(&state).arg(&kit));
    let list: Value = serde_json::from_slice(
        &succeed(
            loupe()
                .args(["kit", "start", "set", "--station", "inspect", "--by", "kim", "--json", "--state"])
                .arg(&state),
        )
        .stdout,
    )
    .unwrap();
    let session = list["session"].as_str().unwrap().to_owned();
    let recipe = dir.path().join("whole.toml");
    let model = support::root().join("models/mobilenetv2");
    let write = |extra: &str| {
        let index = assets.index();
        let body = format!(
            "name = \"whole\"\n[locate]\nkind = \"whole\"\n[match]\nindex = \"{}\"\nmodel = \"{}\"\naccept_similarity = -1.0\naccept_margin = 0.0\ngroup_margin = 0.0\n{extra}",
            index.display(),
            model.display()
        );
        fs::write(&recipe, body).unwrap();
    };
    write("");
    let pictures = [bundled().join("parts/templates/3001"), bundled().join("parts/templates/3647")];
    let pictures: Vec<_> =
        pictures.iter().map(|dir| fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()).collect();
    let output = succeed(
        loupe()
            .args(["inspect", "--json", "--kit", "set", "--recipe"])
            .arg(&recipe)
            .arg("--state")
            .arg(&state)
            .args(&pictures),
    );
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<&str> = lines.iter().filter_map(|line| line["items"][0]["part_id"].as_str()).collect();
    assert_eq!(lines[0]["kit"]["expected"], 2, "{}", lines[0]);
    let status: Value = serde_json::from_slice(
        &succeed(loupe().args(["kit", "status", &session, "--json", "--state"]).arg(&state)).stdout,
    )
    .unwrap();
    assert_eq!(status["count"]["trays"], 2, "{status}");
    let count = &status["count"];
    let sum = |keys: [&str; 4]| keys.iter().map(|key| count[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(["found", "surplus", "spares", "doubtful"]), 2, "{count}");
    println!("named {named:?}: {count}");

    write("min_quality_level = \"silver\"\n");
    let lines = support::inspect(&recipe, &state, &pictures[..1]);
    assert_eq!(lines[0]["verdict"], "hold");
    assert_eq!(lines[0]["items"][0]["reasons"][0], "match.quality_level_low", "{}", lines[0]);
    assert_eq!(lines[0]["items"][0]["matched"]["quality_level"], "bronze");
    let part = lines[0]["items"][0]["matched"]["part_id"].as_str().unwrap().to_owned();
    succeed(
        loupe()
            .args([
                "catalog",
                "promote",
                &part,
                "--by",
                "kim",
                "--reason",
                "views checked",
                "--views-min",
                "2",
                "--state",
            ])
            .arg(&state)
            .arg("--index")
            .arg(assets.index()),
    );
    let lines = support::inspect(&recipe, &state, &pictures[..1]);
    assert_eq!(lines[0]["items"][0]["part_id"], part.as_str(), "{}", lines[0]);
}

#[test]
fn the_same_picture_of_two_parts_is_a_duplicate_across_parts() {
    let assets = Assets::get();
    let output =
        succeed(loupe().args(["index", "duplicates", "--json", "--min-similarity", "0.9"]).arg(assets.index()));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pairs = found["pairs"].as_array().unwrap();
    assert!(!pairs.is_empty());
    let of: Vec<f64> =
        pairs.iter().filter(|p| p["is_cross_part"] == true).map(|p| p["similarity"].as_f64().unwrap()).collect();
    assert!(of.windows(2).all(|two| two[0] >= two[1]) && of.iter().all(|s| *s >= 0.9));
    assert!(found["templates"].as_u64().unwrap() > 100);
}

#[test]
fn how_clear_a_colour_must_be_is_measured_on_known_pictures() {
    let root = bundled().join("parts");
    let colors = |more: &[&str]| {
        let mut command = loupe();
        command.args(["index", "colors", "--colors"]).arg(root.join("colours.csv")).arg("--queries");
        command.arg(root.join("queries.csv")).arg("--root").arg(&root).args(more);
        command
    };
    let measured: Value = serde_json::from_slice(&succeed(&mut colors(&["--json"])).stdout).unwrap();
    assert_eq!(measured["pictures"], 48);
    assert!(measured["right"].as_f64() > Some(0.7), "{measured}");
    let margins = measured["margins"].as_array().unwrap();
    let rates: Vec<f64> = margins.iter().map(|row| row["clear_rate"].as_f64().unwrap()).collect();
    assert!(rates.windows(2).all(|pair| pair[0] >= pair[1]) && rates[0] > rates[5], "{rates:?}");
    let red: Value =
        serde_json::from_slice(&succeed(&mut colors(&["--json", "--gains", "3", "0.4", "0.4"])).stdout).unwrap();
    assert!(red["right"].as_f64() < measured["right"].as_f64(), "a wrong white balance misleads: {red}");
    let refused = fail_with(&mut colors(&["--gains", "0", "1", "1"]), 64);
    assert!(refused.contains("must be above 0"), "{refused}");
}
