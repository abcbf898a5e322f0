//! `loupe bank` by the real program on the sample plates: regions, registration, tiles, groups, thresholds, explanations.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::anomaly::Bank;
use loupe::capture;
use loupe::types::Image;
use support::{Assets, copy_folder, fail_with, inspect, loupe, plate_recipe, root, samples, succeed, text};
use tempfile::TempDir;

fn bank(command: &str) -> Command {
    let mut process = loupe();
    process.args(["bank", command, "--models"]).arg(root().join("models"));
    process
}

fn json(command: &mut Command) -> serde_json::Value {
    serde_json::from_str(&text(&succeed(command.arg("--json")).stdout)).unwrap()
}

fn plates() -> PathBuf {
    samples().join("plate")
}

fn split() -> PathBuf {
    plates().join("split.json")
}

fn crack() -> PathBuf {
    plates().join("test/crack/06.jpg")
}

/// A folder with the first `count` good plates.
fn few_good(folder: &Path, first: usize, count: usize) -> PathBuf {
    let few = folder.join(format!("good-{first}-{count}"));
    std::fs::create_dir_all(&few).unwrap();
    for number in first..first + count {
        let name = format!("{number:03}.jpg");
        std::fs::copy(plates().join("good").join(&name), few.join(name)).unwrap();
    }
    few
}

/// The picture moved by whole pixels; what comes in repeats the border.
fn shifted(path: &Path, dx: i64, dy: i64) -> Image {
    let image = capture::read_image(path).unwrap();
    let (width, height) = (i64::from(image.width_px()), i64::from(image.height_px()));
    let mut bgr = Vec::with_capacity(image.bgr().len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = ((x - dx).clamp(0, width - 1), (y - dy).clamp(0, height - 1));
            let at = usize::try_from((from_y * width + from_x) * 3).unwrap();
            bgr.extend_from_slice(&image.bgr()[at..at + 3]);
        }
    }
    Image::from_bgr(image.width_px(), image.height_px(), bgr).unwrap()
}

/// A plate turned by half a turn.
fn upside_down(file: &str) -> Image {
    let image = capture::read_image(&plates().join(file)).unwrap();
    let bgr: Vec<u8> = image.bgr().as_chunks::<3>().0.iter().rev().flatten().copied().collect();
    Image::from_bgr(image.width_px(), image.height_px(), bgr).unwrap()
}

fn write_png(path: &Path, image: &Image) {
    std::fs::write(path, capture::encode_png(image).unwrap()).unwrap();
}

fn explain(bank_folder: &Path, image: &Path) -> serde_json::Value {
    json(bank("explain").arg(image).arg("--bank").arg(bank_folder))["evidence"].clone()
}

#[test]
fn a_shifted_part_is_brought_into_place_and_another_scene_holds() {
    let folder = TempDir::new().unwrap();
    let registered = folder.path().join("registered");
    let few = few_good(folder.path(), 0, 12);
    // Within this box nothing comes in from beyond the frame's edge, however the part lies below.
    let options = ["--register", "translation", "--region", "0.08,0.08,0.92,0.92", "--zoom"];
    succeed(bank("build").arg("--images").arg(&few).arg("--out").arg(&registered).args(options));
    let moved = folder.path().join("moved.png");
    write_png(&moved, &shifted(&crack(), 37, -21));
    let at_rest = explain(&registered, &crack());
    let in_place = explain(&registered, &moved);
    assert!(in_place["surface"]["correlation"].as_f64().unwrap() > 0.9, "{in_place}");
    let peak = |evidence: &serde_json::Value, axis: usize| {
        let bbox = &evidence["surface"]["regions"][0]["bbox"];
        (bbox[axis].as_f64().unwrap() + bbox[axis + 2].as_f64().unwrap()) / 2.0
    };
    let (dx, dy) = (peak(&in_place, 0) - peak(&at_rest, 0), peak(&in_place, 1) - peak(&at_rest, 1));
    assert!((dx - 37.0).abs() < 12.0 && (dy + 21.0).abs() < 12.0, "the defect moved by {dx}, {dy}");

    let mut random = fastrand::Rng::with_seed(4);
    let noise = Image::from_bgr(640, 480, (0..640 * 480 * 3).map(|_| random.u8(..)).collect()).unwrap();
    let other = folder.path().join("other.png");
    write_png(&other, &noise);
    let said = fail_with(bank("explain").arg(&other).arg("--bank").arg(&registered), 1);
    assert!(said.contains("correlation"), "{said}");
    let recipe = plate_recipe(folder.path(), &registered, "");
    let lines = inspect(&recipe, &folder.path().join("state"), &[other, plates().join("good/020.jpg")]);
    assert_eq!(lines[0]["verdict"], "hold", "{}", lines[0]);
    assert!(lines[0]["reasons"].as_array().unwrap().contains(&"anomaly.not_registered".into()), "{}", lines[0]);
    assert_ne!(lines[1]["verdict"], "fail", "{}", lines[1]);
    let mut again = loupe();
    again.arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(folder.path().join("again"));
    let said = text(&again.arg(crack()).output().unwrap().stderr);
    assert!(!said.contains("warm-up"), "a picture of nothing is no fault of the bank: {said}");
}

#[test]
fn what_lies_outside_the_region_is_neither_learnt_nor_scored() {
    let folder = TempDir::new().unwrap();
    let few = few_good(folder.path(), 0, 8);
    let image = capture::read_image(&plates().join("good/030.jpg")).unwrap();
    let mut bgr = image.bgr().to_vec();
    for y in 0..100 {
        bgr[y * 640 * 3..(y * 640 + 150) * 3].fill(255);
    }
    let marked = folder.path().join("marked.png");
    write_png(&marked, &Image::from_bgr(640, 480, bgr).unwrap());
    let build = |name: &str, options: &[&str]| {
        let out = folder.path().join(name);
        let document = json(bank("build").arg("--images").arg(&few).arg("--out").arg(&out).args(options));
        (out, document["manifest"]["coreset_count"].as_u64().unwrap(), document["manifest"]["grid"].clone())
    };
    let raw = |bank: &Path, image: &Path| explain(bank, image)["score_raw"].as_f64().unwrap();
    let good = plates().join("good/030.jpg");
    let (whole, whole_count, _) = build("whole", &[]);
    assert!(raw(&whole, &marked) > 1.5 * raw(&whole, &good), "the mark is a defect for a bank of the whole picture");
    let (part, part_count, _) = build("part", &["--region", "220,160,639,479"]);
    assert!(part_count < whole_count * 6 / 10, "{part_count} of {whole_count}");
    let of_marked = explain(&part, &marked);
    let (good_raw, marked_raw) = (raw(&part, &good), of_marked["score_raw"].as_f64().unwrap());
    assert!((marked_raw / good_raw - 1.0).abs() < 0.1, "outside the region it does not count: {good_raw} {marked_raw}");
    let (ignoring, _, _) = build("ignoring", &["--ignore", "0,0 0.5,0 0.5,0.5 0,0.5"]);
    assert!((raw(&ignoring, &marked) / raw(&ignoring, &good) - 1.0).abs() < 0.1, "what is ignored does not count");
    let options = ["--region", "220,160,639,479", "--zoom", "--tiles", "2x1", "--tile-overlap", "0.14"];
    let (zoomed, _, grid) = build("zoomed", &options);
    assert_eq!(grid, serde_json::json!([52, 28]));
    let defect = explain(&zoomed, &crack());
    assert!(defect["score"].as_f64().unwrap() > 0.5, "{defect}");
    let said =
        fail_with(bank("build").arg("--images").arg(&few).arg("--out").arg(folder.path().join("x")).arg("--zoom"), 64);
    assert!(said.contains("--region"), "{said}");
}

#[test]
fn thresholds_keep_their_rate_or_say_how_many_pictures_are_missing() {
    let folder = TempDir::new().unwrap();
    let assets = Assets::get();
    let fit = |name: &str, options: &[&str]| {
        let mut command = bank("fit");
        command.arg("--bank").arg(assets.bank()).arg("--out").arg(folder.path().join(name)).args(options);
        command
    };
    let parent =
        json(bank("evaluate").arg("--bank").arg(assets.bank()).arg("--split").arg(split()).arg("--root").arg(plates()));
    let fitted = json(&mut fit("rate", &["--objective", "false-reject=0.05"]));
    assert_eq!(fitted["manifest"]["threshold"], serde_json::json!({"rule": "false_reject", "rate": 0.05}));
    assert!(fitted["manifest"]["parent"].is_string() && fitted["manifest"]["parent"] != fitted["sha256"]);
    assert!(fitted["manifest"]["image_threshold_raw"].as_f64() < parent["threshold"].as_f64());
    let said = fail_with(&mut fit("few", &["--objective", "false-reject=0.01"]), 1);
    assert!(said.contains("at least 99 good pictures") && said.contains("there are 40"), "{said}");
    let said = fail_with(&mut fit("sure", &["--objective", "false-reject=0.05", "--confidence", "0.95"]), 1);
    assert!(said.contains("at least 59"), "{said}");
    let (list, pictures) = (split(), plates());
    let labelled = ["--split", list.to_str().unwrap(), "--root", pictures.to_str().unwrap()];
    let said = fail_with(&mut fit("f1", &[&["--objective", "f1"], &labelled[..]].concat()), 1);
    assert!(said.contains("validation") && said.contains("--use-test"), "{said}");
    let best = json(&mut fit("f1", &[&["--objective", "f1", "--use-test"], &labelled[..]].concat()));
    let on = &best["fitted_on"];
    assert_eq!((&on["good"], &on["bad_found"]), (&16.into(), &on["bad"]), "{on}");
    assert_eq!(on["good_rejected"], 0, "{on}");
}

#[test]
fn a_copy_of_a_picture_is_named_and_changes_no_bank() {
    let folder = TempDir::new().unwrap();
    let few = few_good(folder.path(), 0, 4);
    let build = |out: &str| succeed(bank("build").arg("--images").arg(&few).arg("--out").arg(folder.path().join(out)));
    build("plain");
    std::fs::copy(few.join("001.jpg"), few.join("001 (copy).jpg")).unwrap();
    write_png(&few.join("zzz.png"), &capture::read_image(&few.join("003.jpg")).unwrap());
    let said = text(&build("copied").stderr);
    assert!(said.contains("001.jpg: the same picture as") && said.contains("zzz.png: the same picture as"), "{said}");
    let learnt = |out: &str| {
        let bank = Bank::open(&folder.path().join(out)).unwrap();
        let group = bank.manifest().groups[0].clone();
        (bank.manifest().train_count, bank.len(), group.image_threshold_raw, group.pixel_threshold_raw)
    };
    assert_eq!(learnt("copied"), learnt("plain"));
}

#[test]
fn a_bank_grows_by_a_group_and_by_pictures_and_names_its_parent() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (first, more) = (few_good(folder.path(), 0, 6), few_good(folder.path(), 6, 3));
    let turned = at("turned");
    std::fs::create_dir_all(&turned).unwrap();
    for number in 0..4 {
        write_png(&turned.join(format!("{number}.png")), &upside_down(&format!("good/{number:03}.jpg")));
    }
    let front = json(bank("build").arg("--images").arg(&first).arg("--out").arg(at("a")).args(["--group", "front"]));
    let both = json(
        bank("add")
            .arg("--bank")
            .arg(at("a"))
            .arg("--images")
            .arg(&turned)
            .arg("--out")
            .arg(at("b"))
            .args(["--group", "back"]),
    );
    assert_eq!(both["manifest"]["parent"], front["sha256"]);
    let grown = json(
        bank("add")
            .arg("--bank")
            .arg(at("b"))
            .arg("--images")
            .arg(&more)
            .arg("--out")
            .arg(at("c"))
            .args(["--group", "front"]),
    );
    let groups = grown["manifest"]["groups"].as_array().unwrap();
    assert_eq!(
        (&groups[0]["name"], &groups[0]["train_count"], &groups[1]["train_count"]),
        (&"front".into(), &9.into(), &4.into())
    );
    assert!(groups[0]["coreset_count"].as_u64() > both["manifest"]["groups"][0]["coreset_count"].as_u64());
    let of_front = explain(&at("c"), &plates().join("good/035.jpg"));
    let of_back = explain(&at("c"), &turned.join("2.png"));
    assert_eq!((&of_front["surface"]["group"], &of_back["surface"]["group"]), (&"front".into(), &"back".into()));
    assert!(of_back["surface"]["nearest_picture"].as_str().unwrap().ends_with(".png"), "{of_back}");
    let recipe = plate_recipe(folder.path(), &at("c"), "group = \"back\"\npx_per_mm = 8.0\n");
    let lines = inspect(&recipe, &at("state"), &[plates().join("good/035.jpg")]);
    assert_eq!(lines[0]["verdict"], "fail", "an upright plate is nothing like the back: {}", lines[0]);
    let region = &lines[0]["anomaly"]["surface"]["regions"][0];
    let (px, mm2) = (region["area_px"].as_f64().unwrap(), region["area_mm2"].as_f64().unwrap());
    assert!((mm2 - px / 64.0).abs() < 0.01 * mm2, "{region}");
    let kept: Vec<&str> =
        lines[0]["artifacts"].as_array().unwrap().iter().filter_map(|artifact| artifact["kind"].as_str()).collect();
    assert!(kept.contains(&"mask") && kept.contains(&"comparison"), "{kept:?}");
    let wrong = plate_recipe(folder.path(), &at("c"), "group = \"side\"\n");
    let mut command = loupe();
    command.arg("inspect").arg("--recipe").arg(wrong).arg("--state").arg(at("state2")).arg(crack());
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("`front`, `back`"), "{said}");
}

#[test]
fn evaluation_has_a_row_per_kind_and_an_explanation_its_pictures() {
    let folder = TempDir::new().unwrap();
    let assets = Assets::get();
    let report =
        json(bank("evaluate").arg("--bank").arg(assets.bank()).arg("--split").arg(split()).arg("--root").arg(plates()));
    let kinds = report["kinds"].as_array().unwrap();
    assert!(kinds.len() > 2 && kinds.iter().all(|kind| kind["image_auroc"].as_f64() > Some(0.95)), "{report}");
    let counted: u64 = kinds.iter().map(|kind| kind["count"].as_u64().unwrap()).sum();
    assert_eq!(counted + report["good_count"].as_u64().unwrap(), 48);
    let (out, mask) = (folder.path().join("why.png"), folder.path().join("mask.png"));
    let said = succeed(
        bank("explain")
            .arg(crack())
            .arg("--bank")
            .arg(assets.bank())
            .args(["--px-per-mm", "10", "--out"])
            .arg(&out)
            .arg("--mask")
            .arg(&mask),
    );
    let said = text(&said.stdout);
    assert!(said.contains("mm2") && said.contains("unlike good parts") && said.contains("most alike"), "{said}");
    let (why, mask) = (capture::read_image(&out).unwrap(), capture::read_image(&mask).unwrap());
    assert!(why.width_px() > 2 * 640 + 600 && (mask.width_px(), mask.height_px()) == (640, 480), "{why:?}");
    assert!(mask.bgr().contains(&255) && mask.bgr().contains(&0));
}

#[test]
fn a_bank_whose_threshold_was_flipped_judges_nothing() {
    let folder = TempDir::new().unwrap();
    let bank_folder = folder.path().join("bank");
    copy_folder(&Assets::get().bank(), &bank_folder);
    let sealed = Command::new("sha256sum").args(["-c", "manifest.sha256"]).current_dir(&bank_folder).output().unwrap();
    assert!(sealed.status.success(), "{sealed:?}");
    let (manifest, recipe) = (bank_folder.join("manifest.json"), plate_recipe(folder.path(), &bank_folder, ""));
    let whole = std::fs::read_to_string(&manifest).unwrap();
    // The last one is the group's, which is what decides.
    let at = whole.rfind("\"image_threshold_raw\": ").unwrap() + "\"image_threshold_raw\": ".len();
    let mut flipped = whole.clone();
    flipped.replace_range(at..=at, "9");
    std::fs::write(&manifest, flipped).unwrap();
    let mut command = loupe();
    command.arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(folder.path().join("state")).arg(crack());
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("damaged") && said.contains("manifest.sha256"), "{said}");
    assert!(!text(&output.stdout).contains("\"pass\""), "{}", text(&output.stdout));
    std::fs::write(&manifest, whole).unwrap();
    assert_eq!(inspect(&recipe, &folder.path().join("state"), &[crack()])[0]["verdict"], "fail");
}

#[test]
fn a_sweep_compares_sizes_on_pictures_it_has_not_learnt() {
    let folder = TempDir::new().unwrap();
    let few = few_good(folder.path(), 0, 10);
    let sweep = || {
        let mut command = bank("sweep");
        command.arg("--images").arg(&few).args(["--coreset", "0.02,0.1", "--input-px", "128"]);
        command.arg("--work").arg(folder.path());
        command
    };
    let good_only = json(&mut sweep());
    let rows = good_only["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &good_only["learnt"], &good_only["measured"]), (2, &8.into(), &2.into()));
    assert!(rows[0]["image_auroc"].is_null() && rows[0]["vectors"].as_u64() < rows[1]["vectors"].as_u64());
    let labelled_sweep = || {
        let mut command = sweep();
        command.arg("--labelled").arg(split()).arg("--labelled-root").arg(plates());
        command
    };
    let said = fail_with(&mut labelled_sweep(), 1);
    assert!(said.contains("validation"), "the test list is not taken unasked: {said}");
    let labelled = json(labelled_sweep().arg("--use-test"));
    let auroc = |row: usize| labelled["rows"][row]["image_auroc"].as_f64();
    assert!(auroc(1) > Some(0.8) && auroc(1) > auroc(0) && labelled["used_test"] == true, "{labelled}");
    assert!(
        !std::fs::read_dir(folder.path())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("loupe-sweep") })
    );
}

/// Good plates upside down, as a group of its own beside `front`.
fn two_groups(folder: &Path) -> PathBuf {
    let at = |name: &str| folder.join(name);
    let (first, turned) = (few_good(folder, 0, 6), at("turned"));
    std::fs::create_dir_all(&turned).unwrap();
    for number in 0..6 {
        write_png(&turned.join(format!("{number}.png")), &upside_down(&format!("good/{number:03}.jpg")));
    }
    succeed(bank("build").arg("--images").arg(&first).arg("--out").arg(at("front")).args(["--group", "front"]));
    let mut add = bank("add");
    add.arg("--bank").arg(at("front")).arg("--images").arg(&turned).arg("--out").arg(at("both"));
    let said = fail_with(&mut add, 1);
    assert!(said.contains("--group") && !said.contains("is no bank"), "{said}");
    succeed(add.args(["--group", "back"]));
    at("both")
}

#[test]
fn a_fit_of_one_group_leaves_the_others_and_every_group_says_its_rule() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let both = two_groups(folder.path());
    let entry = |file: &str, label: u8| serde_json::json!({ "file": plates().join(file), "label": label });
    let list = serde_json::json!({ "train": [], "test": [entry("good/030.jpg", 0)],
        "validation": [entry("good/031.jpg", 0), entry("good/032.jpg", 0), entry("test/crack/06.jpg", 1)] });
    std::fs::write(at("split.json"), list.to_string()).unwrap();
    let fit = |group: &[&str], out: &str| {
        let mut command = bank("fit");
        command.arg("--bank").arg(&both).arg("--out").arg(at(out)).args(["--objective", "f1"]).args(group);
        command.arg("--split").arg(at("split.json")).arg("--root").arg("/");
        command
    };
    let groups = |bank: &Path| Bank::open(bank).unwrap().manifest().groups.clone();
    // No picture of the list is like the back: it has no say in it, whether the group is named or not.
    for (named, out) in [(&["--group", "front"][..], "named"), (&[], "unnamed")] {
        let said = text(&succeed(&mut fit(named, out)).stdout);
        assert!(said.contains("largest F1") && said.contains("with headroom") && said.contains("as before"), "{said}");
        let (before, after) = (groups(&both), groups(&at(out)));
        assert_eq!(after[1], before[1]);
        assert_ne!(after[0].image_threshold_raw, before[0].image_threshold_raw);
    }
    let back = groups(&both)[1].image_threshold_raw;
    let evaluate = |group: &[&str]| {
        let mut command = bank("evaluate");
        command.arg("--bank").arg(at("named")).arg("--split").arg(at("split.json")).arg("--root").arg("/").args(group);
        command
    };
    let report = json(&mut evaluate(&["--group", "back"]));
    assert!((report["threshold"].as_f64().unwrap() - f64::from(back)).abs() < 1e-5, "{report}");
    let said = text(&succeed(&mut evaluate(&[])).stdout);
    assert!(said.contains("(raw), group front") && said.contains(&format!("{back:.4} (raw), group back")), "{said}");
    // Growing another group does not say that the fitted one had headroom.
    let more = few_good(folder.path(), 6, 3);
    let mut add = bank("add");
    add.arg("--bank").arg(at("named")).arg("--images").arg(&more).arg("--out").arg(at("grown"));
    let said = text(&succeed(add.args(["--group", "side"])).stdout);
    assert!(said.contains("largest F1"), "{said}");
}

#[test]
fn options_that_cannot_be_meant_are_refused_in_words() {
    let folder = TempDir::new().unwrap();
    let assets = Assets::get();
    let at = |name: &str| folder.path().join(name);
    let refused = |command: &mut Command, words: &[&str], status: i32| {
        let said = fail_with(command, status);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    refused(bank("build").arg("--out").arg(at("x")), &["--images", "--split"], 64);
    let few = few_good(folder.path(), 0, 2);
    let build = |options: &[&str]| {
        let mut command = bank("build");
        command.arg("--images").arg(&few).arg("--out").arg(at("x")).args(options);
        command
    };
    refused(&mut build(&["--budget-s", "0"]), &["time budget is 0 s"], 1);
    refused(&mut build(&["--threshold", "false-reject=0"]), &["false-reject rate is 0: it must be above 0"], 1);
    let mut add = bank("add");
    add.args(["--bank", "/nowhere/gx"]).arg("--images").arg(&few).arg("--out").arg(at("x"));
    refused(&mut add, &["`/nowhere/gx` does not exist"], 1);
    let explain = |options: &[&str]| {
        let mut command = bank("explain");
        command.arg(crack()).arg("--bank").arg(assets.bank()).args(options);
        command
    };
    refused(&mut explain(&["--group", "nope"]), &["no group `nope`", "have no group name"], 1);
    refused(&mut explain(&["--px-per-mm", "1e-30"]), &["--px-per-mm", "0.001 to 100000"], 1);
    let why = at("why.gif");
    refused(&mut explain(&["--out", why.to_str().unwrap()]), &["why.gif", ".png"], 1);
    assert!(!why.exists());
}

#[test]
fn what_a_shift_moves_out_of_the_picture_is_not_scored_and_too_much_of_it_holds() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let few = few_good(folder.path(), 0, 12);
    let build = |name: &str, options: &[&str]| {
        let mut command = bank("build");
        command.arg("--images").arg(&few).arg("--out").arg(at(name)).args(["--register", "translation"]).args(options);
        succeed(&mut command);
        at(name)
    };
    let moved = |dx: i64, dy: i64| {
        // What comes in is like nothing that was learnt.
        let mut image = shifted(&plates().join("good/030.jpg"), dx, dy);
        let mut bgr = image.bgr().to_vec();
        for (index, pixel) in bgr.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (x, y) = (index as i64 % 640 - dx, index as i64 / 640 - dy);
            if !((0..640).contains(&x) && (0..480).contains(&y)) {
                *pixel = [255, 0, 255];
            }
        }
        image = Image::from_bgr(640, 480, bgr).unwrap();
        let path = at(&format!("moved{dx}x{dy}.png"));
        write_png(&path, &image);
        path
    };
    let whole = build("whole", &[]);
    let at_rest = explain(&whole, &moved(0, 0));
    assert!(at_rest["surface"]["unseen_ratio"].is_null(), "{at_rest}");
    for (dx, dy) in [(0, 20), (40, 0), (-40, 0)] {
        let evidence = explain(&whole, &moved(dx, dy));
        let unseen = evidence["surface"]["unseen_ratio"].as_f64().unwrap();
        assert!((0.05..0.25).contains(&unseen), "{evidence}");
        // The network looks a little farther than its maps are pooled; with the filler it is 2 to 3 times the score at rest.
        let of_rest = evidence["score_raw"].as_f64().unwrap() / at_rest["score_raw"].as_f64().unwrap();
        assert!(of_rest < 1.6, "{dx}, {dy}: {at_rest} {evidence}");
    }
    // A box that nothing comes into is judged in full, however the part was moved.
    let inner = build("inner", &["--region", "0.12,0.12,0.88,0.88", "--zoom"]);
    for (dx, dy) in [(20, 20), (-40, 30)] {
        let evidence = explain(&inner, &moved(dx, dy));
        assert!(evidence["score"].as_f64() < Some(0.5) && evidence["surface"]["unseen_ratio"].is_null(), "{evidence}");
    }
    let said = fail_with(bank("explain").arg(moved(150, 0)).arg("--bank").arg(&whole), 1);
    assert!(said.contains("beyond the edge of the picture"), "{said}");
    // A strip that may be lost of a whole picture may not be lost of a region that somebody drew.
    let region = build("region", &["--region", "0.5,0.1,1,0.9"]);
    assert!(explain(&region, &moved(-40, 0))["surface"]["unseen_ratio"].is_null(), "the other side was lost");
    let recipe = plate_recipe(folder.path(), &region, "");
    let lines = inspect(&recipe, &at("state"), &[moved(40, 0)]);
    assert_eq!(lines[0]["verdict"], "hold", "{}", lines[0]);
    assert!(lines[0]["reasons"].as_array().unwrap().contains(&"anomaly.not_registered".into()), "{}", lines[0]);
}
