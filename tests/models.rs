//! `loupe model` and `loupe detect` as a person meets them: probing, goldens, and a daemon that refuses wrong numbers.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use loupe::matching::PartIndex;
use loupe::types::MatchEvidence;
use serde_json::Value;
use support::{copy_folder, fail_with, loupe, root, succeed, text};
use tempfile::TempDir;

fn reference(name: &str) -> PathBuf {
    root().join("tests/reference/detectors").join(name)
}

fn json(command: &mut std::process::Command) -> Value {
    serde_json::from_str(&text(&succeed(command).stdout)).unwrap()
}

/// A red picture of 128×64.
fn red(folder: &Path) -> PathBuf {
    let path = folder.join("red.png");
    let image = loupe::types::Image::from_bgr(128, 64, [0, 0, 255].repeat(128 * 64)).unwrap();
    fs::write(&path, loupe::capture::encode_png(&image).unwrap()).unwrap();
    path
}

#[test]
fn a_probed_file_becomes_a_folder_that_runs() {
    let folder = TempDir::new().unwrap();
    for (name, layout) in
        [("yolov8", "yolo"), ("detr", "detr"), ("nanodet", "gfl"), ("picodet", "gfl"), ("external", "yolo")]
    {
        let out = folder.path().join(name);
        let mut probe = loupe();
        probe
            .args(["model", "probe", "--json", "--side-px", "64", "--write"])
            .arg(&out)
            .arg(reference(name).join("model.onnx"));
        let report = json(&mut probe);
        assert_eq!(report["layout"], layout, "{report}");
        assert_eq!(report["opsets"][""], 13);
        let cpu = &report["providers"][0];
        assert!(cpu["provider"] == "cpu" && cpu["usable"] == true, "{report}");
        let said = succeed(loupe().args(["detect", "run", "--json", "--model"]).arg(&out).arg(red(folder.path())));
        let line: Value = serde_json::from_str(&text(&said.stdout)).unwrap();
        assert_eq!(line["width_px"], 128);
        assert!(fs::read_to_string(out.join("manifest.toml")).unwrap().contains("guessed"));
        // It is not overwritten.
        fail_with(&mut probe, 1);
    }
}

#[test]
fn files_that_cannot_be_models_say_why() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a.onnx");
    let external = fs::read(reference("external/model.onnx")).unwrap();
    let future = fs::read(reference("future-opset/model.onnx")).unwrap();
    let cases: [(&[u8], &str); 4] =
        [(b"", "0 bytes"), (b"#!/bin/sh", "no ONNX"), (&external, "weights.bin"), (&future, "opset 99")];
    for (bytes, expected) in cases {
        fs::write(&file, bytes).unwrap();
        let said = fail_with(loupe().args(["model", "probe"]).arg(&file), 1);
        assert!(
            said.to_lowercase().contains(&expected.to_lowercase()) && said.contains("a.onnx"),
            "{expected}: {said}"
        );
    }
}

#[test]
fn recorded_numbers_replay_and_changed_ones_are_refused_with_their_difference() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("yolov8");
    copy_folder(&reference("yolov8"), &model);
    let said = fail_with(loupe().args(["model", "verify"]).arg(&model), 1);
    assert!(said.contains("no goldens") && said.contains("loupe model golden"), "{said}");
    succeed(loupe().args(["model", "golden"]).arg(&model).arg("--images").arg(red(folder.path())));
    let report = json(loupe().args(["model", "verify", "--json"]).arg(&model));
    assert_eq!((&report["reports"][0]["passed"], &report["reports"][0]["provider"]), (&true.into(), &"cpu".into()));

    let path = model.join("golden/golden.json");
    let recorded = fs::read_to_string(&path).unwrap();
    assert!(recorded.contains("0.8"), "{recorded}");
    fs::write(&path, recorded.replacen("0.8", "0.7", 1)).unwrap();
    let said = fail_with(loupe().args(["model", "verify"]).arg(&model), 1);
    assert!(said.contains("0.8") && said.contains("0.7") && said.contains("output"), "{said}");

    // The manifest may allow more.
    let manifest = fs::read_to_string(model.join("manifest.toml")).unwrap();
    fs::write(model.join("manifest.toml"), format!("{manifest}\n[golden]\nabs = 0.2\n")).unwrap();
    succeed(loupe().args(["model", "verify"]).arg(&model));
    // Another picture, or the goldens of another file, are not compared at all.
    fs::copy(root().join("tests/reference/images/rotated.jpg"), model.join("golden/red.png")).unwrap();
    assert!(fail_with(loupe().args(["model", "verify"]).arg(&model), 1).contains("sha256"));
}

#[test]
fn goldens_that_prove_nothing_are_refused_and_do_not_hide_the_others() {
    let folder = TempDir::new().unwrap();
    let (model, other) = (folder.path().join("yolov8"), folder.path().join("nanodet"));
    copy_folder(&reference("yolov8"), &model);
    copy_folder(&reference("nanodet"), &other);
    for model in [&model, &other] {
        succeed(loupe().args(["model", "golden"]).arg(model).arg("--images").arg(red(folder.path())));
    }
    let path = model.join("golden/golden.json");
    let recorded = fs::read_to_string(&path).unwrap();
    let verify = || {
        let said = loupe().args(["model", "verify", "--json"]).args([&model, &other]).output().unwrap();
        (said.status.code(), serde_json::from_slice::<Value>(&said.stdout).unwrap())
    };
    assert_eq!(verify().0, Some(0));
    let document: Value = serde_json::from_str(&recorded).unwrap();
    let check = |change: &dyn Fn(&mut Value), word: &str| {
        let mut changed = document.clone();
        change(&mut changed["cases"][0]);
        fs::write(&path, changed.to_string()).unwrap();
        let (code, said) = verify();
        assert_eq!(code, Some(1), "{said}");
        assert!(said["faults"][0].as_str().unwrap().contains(word), "{said}");
        assert_eq!(said["reports"][0]["model"], "nanodet", "the other one is replayed all the same: {said}");
    };
    check(&|case| case["outputs"] = Value::Array(Vec::new()), "the manifest names");
    check(&|case| case["size_px"] = serde_json::json!([100_000, 100_000]), "100000x100000");
    check(&|case| case["size_px"] = serde_json::json!([16_384, 16_384]), "pixels");
    // Numbers as recorded, and a manifest that cannot read them as boxes.
    fs::write(&path, &recorded).unwrap();
    let manifest = fs::read_to_string(model.join("manifest.toml")).unwrap();
    let more = manifest.replace("classes = [", "classes = [\"one more\", ");
    assert_ne!(more, manifest);
    fs::write(model.join("manifest.toml"), more).unwrap();
    let (code, said) = verify();
    assert!(code == Some(1) && said["faults"][0].as_str().unwrap().contains("layout `yolo`"), "{said}");
}

#[test]
fn a_manifest_may_say_which_score_counts_and_the_caller_has_the_last_word() {
    let folder = TempDir::new().unwrap();
    let (model, picture) = (folder.path().join("yolov8"), red(folder.path()));
    copy_folder(&reference("yolov8"), &model);
    let found = |more: &[&str]| {
        let said = json(loupe().args(["detect", "run", "--json", "--model"]).arg(&model).args(more).arg(&picture));
        said["detections"].as_array().unwrap().len()
    };
    let path = model.join("manifest.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let usual = found(&[]);
    assert!(usual > 0);
    fs::write(&path, format!("{manifest}\n[detector]\nscore_min = 0.99\n")).unwrap();
    assert_eq!((found(&[]), found(&["--score-min", "0.3"])), (0, usual));
    fs::write(&path, format!("{manifest}\n[detector]\nscore_min = 1.5\n")).unwrap();
    let said = fail_with(loupe().args(["detect", "run", "--model"]).arg(&model).arg(&picture), 1);
    assert!(said.contains("detector.score_min"), "{said}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let mut child = loupe().arg("check").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_daemon_whose_model_gives_other_numbers_does_not_start() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("yolov8");
    copy_folder(&reference("yolov8"), &model);
    succeed(loupe().args(["model", "golden"]).arg(&model).arg("--images").arg(red(folder.path())));
    let path = model.join("golden/golden.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen("0.8", "0.7", 1)).unwrap();
    fs::write(folder.path().join("recipe.toml"), "name = \"r\"\n[locate]\nkind = \"detector\"\nmodel = \"yolov8\"\n")
        .unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let config = folder.path().join("loupe.toml");
    let text = "[site]\ncode = \"test\"\n[storage]\nstate_dir = \"state\"\n[[stations]]\nname = \"a\"\nrecipe = \"recipe.toml\"\n\
                source = { kind = \"folder\", path = \"in\", watch = true }\n";
    fs::write(&config, text).unwrap();
    let said = fail_with(loupe().args(["run", "--config"]).arg(&config), 78);
    assert!(said.contains("yolov8") && said.contains("0.7") && said.contains("loupe model verify"), "{said}");
    assert!(!folder.path().join("state").exists(), "nothing was opened");
    let said = fail_with(loupe().args(["model", "verify", "--config"]).arg(&config), 1);
    assert!(said.contains("0.7"), "{said}");
}

#[test]
fn the_bundled_models_give_what_was_recorded() {
    let report = json(loupe().args(["model", "verify", "--json", "--models"]).arg(root().join("models")));
    let names: Vec<&str> =
        report["reports"].as_array().unwrap().iter().filter_map(|one| one["model"].as_str()).collect();
    for name in ["mobilenetv2", "partnet", "tiny-yolox"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

/// The command that builds `folder`/index of six sample parts.
fn build_of_six(folder: &Path, model: &Path) -> std::process::Command {
    build_of(folder, model, ["part_num", "3001", "3003", "3004", "3020", "3023", "3039"])
}

fn build_of(folder: &Path, model: &Path, chosen: [&str; 7]) -> std::process::Command {
    let samples = root().join("samples/parts");
    let mut command = loupe();
    command.args(["index", "build", "--json", "--input-px", "160"]);
    for (name, column) in [("parts", 0), ("templates", 1)] {
        let all = fs::read_to_string(samples.join(name).with_extension("csv")).unwrap();
        let rows = all.lines().filter(|row| chosen.contains(&row.split(',').nth(column).unwrap()));
        let path = folder.join(name).with_extension("csv");
        fs::write(&path, rows.collect::<Vec<_>>().join("\n")).unwrap();
        command.arg(format!("--{name}")).arg(path);
    }
    command.arg("--root").arg(&samples).arg("--model").arg(model).arg("--out").arg(folder.join("index"));
    command
}

#[test]
fn the_bundled_embedder_says_where_its_parts_lie_and_other_directions_are_refused() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("partnet");
    copy_folder(&root().join("models/partnet"), &model);
    let samples = root().join("samples/parts");
    let build = || build_of_six(folder.path(), &model);
    assert_eq!(json(&mut build())["centre_count"], 6);
    let index = PartIndex::open(&folder.path().join("index")).unwrap();
    let answers = index.search_exact(index.vectors()).unwrap();
    let is_own = |(row, answer): (u32, &MatchEvidence)| {
        let nearest = answer.top_k.iter().max_by(|a, b| a.centre.unwrap().total_cmp(&b.centre.unwrap())).unwrap();
        nearest.part_id == index.template(row).unwrap().part_id
    };
    let own = (0..).zip(&answers).filter(|pair| is_own(*pair)).count();
    // A brick and a plate are alike from above: 348 of 396. Directions of another embedder would be right in one of six.
    assert!(own * 5 >= answers.len() * 4, "{own} of {} catalogue views lie nearest their own part", answers.len());

    let mut elsewhere = loupe();
    elsewhere
        .args(["index", "evaluate", "--queries"])
        .arg(samples.join("queries.csv"))
        .arg("--root")
        .arg(folder.path());
    elsewhere.arg("--index").arg(folder.path().join("index")).arg("--model").arg(&model);
    let said = fail_with(&mut elsewhere, 1);
    assert!(said.contains("none of its 48 pictures is there (line 2") && said.lines().count() < 5, "{said}");

    // Pictures of another form would be compared with these for ever, and nothing would say so.
    let manifest = fs::read_to_string(model.join("manifest.toml")).unwrap();
    fs::write(model.join("manifest.toml"), manifest.replace("color = \"rgb\"", "color = \"bgr\"")).unwrap();
    let mut evaluate = loupe();
    evaluate.args(["index", "evaluate", "--queries"]).arg(samples.join("queries.csv")).arg("--root").arg(&samples);
    evaluate.arg("--index").arg(folder.path().join("index")).arg("--model").arg(&model);
    let said = fail_with(&mut evaluate, 1);
    assert!(said.contains("another form") && said.contains("partnet"), "{said}");
    fs::write(model.join("manifest.toml"), manifest).unwrap();

    let path = model.join("centres.safetensors");
    fs::write(&path, &fs::read(&path).unwrap()[8..]).unwrap();
    let said = fail_with(&mut build(), 1);
    assert!(said.contains("centres.safetensors") && said.contains("sha256"), "{said}");
}

#[test]
fn a_left_wing_s_mirror_image_is_the_right_one_if_the_catalogue_has_it() {
    let folder = TempDir::new().unwrap();
    let partnet = root().join("models/partnet");
    let built =
        json(&mut build_of(folder.path(), &partnet, ["part_num", "3001", "3003", "41767", "41768", "43722", "3039"]));
    assert_eq!((&built["mirror_count"], &built["mirror_other_count"]), (&5.into(), &2.into()), "{built}");
    let index = PartIndex::open(&folder.path().join("index")).unwrap();
    let mirrors = ["3001", "41767", "41768", "43722"].map(|part| index.mirrors().of(part));
    assert_eq!(mirrors, [Some("3001"), Some("41768"), Some("41767"), None], "43723 is not here");

    // A fit of two looks is used with two: with one the search refuses, and the frame would be held for it.
    let samples = root().join("samples/parts");
    let all = fs::read_to_string(samples.join("queries.csv")).unwrap();
    let known = ["3001", "3003", "41767", "41768", "43722", "3039"];
    let rows: Vec<&str> = all.lines().filter(|row| known.contains(&row.split(',').nth(1).unwrap())).collect();
    let queries = folder.path().join("queries.csv");
    fs::write(&queries, [vec![all.lines().next().unwrap()], rows.repeat(5)].concat().join("\n")).unwrap();
    let mut fit = loupe();
    fit.args(["index", "fit", "--queries"]).arg(&queries).arg("--root").arg(&samples);
    succeed(fit.arg("--index").arg(folder.path().join("index")).arg("--model").arg(&partnet));
    let recipe = folder.path().join("recipe.toml");
    let body = format!(
        "name = \"r\"\n[locate]\nkind = \"whole\"\n[match]\nindex = \"index\"\nmodel = {partnet:?}\nuse_fit = true\n\
         [quality.limits]\nmin_sharpness = 0.0\n"
    );
    fs::write(&recipe, body).unwrap();
    let picture = samples.join(rows[0].split(',').next().unwrap());
    let mut inspect = loupe();
    inspect.args(["inspect", "--json", "--recipe"]).arg(&recipe).arg("--state").arg(folder.path().join("state"));
    let line = json(inspect.arg(picture));
    assert!(line["items"][0]["matched"]["probability"].is_number(), "{line}");
    assert!(!line["reasons"].to_string().contains("index"), "{line}");
}

#[test]
fn the_doctor_says_what_an_index_lacks_before_a_shift_does() {
    let folder = TempDir::new().unwrap();
    let (whole, older) = (root().join("models/partnet"), folder.path().join("partnet"));
    copy_folder(&whole, &older);
    let manifest = fs::read_to_string(older.join("manifest.toml")).unwrap();
    fs::write(
        older.join("manifest.toml"),
        manifest.split("[centres]").next().unwrap().replace("mirror_sensitive = true", ""),
    )
    .unwrap();
    let config = folder.path().join("loupe.toml");
    let text_of = "[site]\ncode = \"test\"\n[storage]\nstate_dir = \"state\"\n[[stations]]\nname = \"a\"\n\
                   recipe = \"recipe.toml\"\nsource = { kind = \"folder\", path = \"in\", watch = true }\n";
    fs::write(&config, text_of).unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let recipe = format!("name = \"r\"\n[match]\nindex = \"index\"\nmodel = {whole:?}\nuse_fit = true\n");
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    let index = folder.path().join("index");
    let stats = || json(loupe().args(["index", "stats", "--json", "--index"]).arg(&index));
    let check = || text(&succeed(loupe().args(["check", "--config"]).arg(&config)).stdout);

    json(&mut build_of_six(folder.path(), &older));
    assert_eq!(stats()["known"], serde_json::json!({ "sizes": 6, "shapes": 2, "centres": 0, "mirrors": 0 }));
    assert_eq!((&stats()["fit"], &stats()["fit_fault"]), (&Value::Null, &Value::Null));
    let said = check();
    assert!(said.contains("holds no centres") && said.contains("has no fit"), "{said}");

    let built = json(build_of_six(folder.path(), &whole).arg("--no-mirrors"));
    assert_eq!((&built["mirror_count"], &built["manifest"]["format"]), (&0.into(), &2.into()));
    let said = check();
    assert!(said.contains("what mirrored pictures show") && !said.contains("centres"), "{said}");

    let built = json(&mut build_of_six(folder.path(), &whole));
    assert_eq!((&built["mirror_count"], &built["mirror_other_count"]), (&6.into(), &0.into()));
    assert_eq!((&stats()["known"]["centres"], &stats()["known"]["mirrors"]), (&6.into(), &6.into()));
    let said = check();
    assert!(!said.contains("centres") && !said.contains("mirrored") && said.contains("has no fit"), "{said}");
    let said = text(&succeed(loupe().args(["index", "stats", "--index"]).arg(&index)).stdout);
    assert!(said.contains("6 centres") && said.contains("until `loupe index fit`"), "{said}");

    // What `run` would refuse, the doctor says first.
    let film = text_of.replace("\"folder\", path = \"in\", watch = true", "\"video\", path = \"parts.csv\"");
    fs::write(&config, format!("{film}[dashboard]\nlisten = \"0.0.0.0:0\"\n")).unwrap();
    let output = loupe().args(["check", "--config"]).arg(&config).output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("allow_remote") && said.contains("source cannot be opened"), "{said}");
    fs::write(
        &config,
        text_of.replace(
            "state_dir = \"state\"",
            "state_dir = \"state\"\nfree_low_mb = 999999999\nfree_critical_mb = 999999998",
        ),
    )
    .unwrap();
    let output = loupe().args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(text(&output.stdout).contains("free_critical_mb"), "{output:?}");

    let live = stats()["current"].as_str().unwrap().to_owned();
    fs::create_dir(index.join("fits")).unwrap();
    fs::write(index.join("fits").join(live).with_extension("json"), "{}").unwrap();
    let fault = stats()["fit_fault"].as_str().unwrap().to_owned();
    assert!(fault.contains("fits"), "{fault}");
}
