//! `loupe model` and `loupe detect` as a person meets them: probing, goldens, and a daemon that refuses wrong numbers.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

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

#[test]
fn the_bundled_embedder_says_where_its_parts_lie_and_other_directions_are_refused() {
    let folder = TempDir::new().unwrap();
    let samples = root().join("samples/parts");
    let chosen = ["part_num", "3001", "3003", "3004", "3020", "3023", "3039"];
    for (name, column) in [("parts.csv", 0), ("templates.csv", 1)] {
        let all = fs::read_to_string(samples.join(name)).unwrap();
        let rows = all.lines().filter(|row| chosen.contains(&row.split(',').nth(column).unwrap()));
        fs::write(folder.path().join(name), rows.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let model = folder.path().join("partnet");
    copy_folder(&root().join("models/partnet"), &model);
    let build = || {
        let mut command = loupe();
        command
            .args(["index", "build", "--json", "--input-px", "160", "--root"])
            .arg(&samples)
            .arg("--model")
            .arg(&model);
        for name in ["parts", "templates"] {
            command.arg(format!("--{name}")).arg(folder.path().join(format!("{name}.csv")));
        }
        command.arg("--out").arg(folder.path().join("index"));
        command
    };
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

    let path = model.join("centres.safetensors");
    fs::write(&path, &fs::read(&path).unwrap()[8..]).unwrap();
    let said = fail_with(&mut build(), 1);
    assert!(said.contains("centres.safetensors") && said.contains("sha256"), "{said}");
}
