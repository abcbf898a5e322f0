//! Imported anomaly graphs: exports of each age give the same judgement, broken ones an error, and recipes can name them.
//!
//! The graphs are `tests/reference/anomaly/make_graphs.py`'s: the Mahalanobis distance of a cell's colour to mid grey.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use loupe::anomaly::{AnomalyError, AnomalyResult, GraphSurface, Surface};
use loupe::inference::{ModelManifest, ProviderPlan, Runtime};
use loupe::types::{Digest, Image};
use serde_json::Value;
use support::{copy_folder, fail_with, inspect, loupe, root, samples, succeed, text};
use tempfile::TempDir;

fn reference(name: &str) -> PathBuf {
    root().join("tests/reference/anomaly").join(name)
}

fn json(command: &mut std::process::Command) -> Value {
    serde_json::from_str(&text(&succeed(command).stdout)).unwrap()
}

/// Grey of this level, 64×64, with a red square of 16 px at (32, 16) where `is_bad`.
fn picture(level: u8, is_bad: bool) -> Image {
    let mut bgr = vec![level; 64 * 64 * 3];
    if is_bad {
        for y in 16..32 {
            bgr[(y * 64 + 32) * 3..(y * 64 + 48) * 3].as_chunks_mut::<3>().0.fill([0, 0, 255]);
        }
    }
    Image::from_bgr(64, 64, bgr).unwrap()
}

fn surface(folder: &Path) -> Result<GraphSurface, AnomalyError> {
    let manifest = ModelManifest::load(folder).map_err(AnomalyError::from)?;
    GraphSurface::open(&manifest, &Runtime::load(None).unwrap(), &ProviderPlan::default())
}

fn score(folder: &Path, image: &Image) -> Result<AnomalyResult, AnomalyError> {
    surface(folder)?.score(image)
}

/// What the graph computes for a cell of one grey level.
fn distance(level: u8) -> f32 {
    let off = f32::from(level) / 255.0 - 0.5;
    [0.1_f32, 0.12, 0.15].iter().map(|deviation| (off / deviation).powi(2)).sum::<f32>().sqrt()
}

/// Of a red cell: each channel is half of the scale off.
const RED: f32 = 7.312_471;

#[test]
fn exports_of_each_age_give_the_numbers_that_anomalib_would() {
    for (level, is_bad, expected) in [(160, false, distance(160)), (140, true, RED)] {
        let image = picture(level, is_bad);
        let linear = (expected - 2.0) / 6.0 + 0.5;
        let result = score(&reference("padim-1"), &image).unwrap();
        let evidence = &result.evidence;
        assert!((evidence.score_raw - expected).abs() < 1e-4, "{evidence:?}, {expected}");
        assert_eq!((evidence.image_threshold_raw, evidence.pixel_threshold_raw), (2.0, 2.0));
        assert_eq!(evidence.score > 0.5, is_bad);
        assert!(is_bad || (evidence.score - linear).abs() < 1e-4, "{evidence:?}");
        assert_eq!((result.map.width, result.map.height), (64, 64));
        let old = score(&reference("score-0"), &image).unwrap();
        assert!((old.evidence.score_raw - expected).abs() < 1e-3, "{:?}", old.evidence);
        assert_eq!(old.map.data, [old.evidence.score_raw], "no map: one pixel");
        let new = score(&reference("padim-2"), &image).unwrap();
        assert!((new.evidence.score_raw - linear.clamp(0.0, 1.0)).abs() < 1e-4, "{:?}", new.evidence);
        assert_eq!((new.evidence.score, new.evidence.image_threshold_raw), (new.evidence.score_raw, 0.5));
        let flow = score(&reference("flow-1"), &image).unwrap();
        let likelihood = 2.0 - (-expected).exp();
        assert!((flow.evidence.score_raw - likelihood).abs() < 1e-4, "counted from -2: {:?}", flow.evidence);
        assert_eq!(flow.evidence.score > 0.5, is_bad);
    }
}

#[test]
fn the_map_says_where() {
    for name in ["padim-1", "padim-2", "flow-1"] {
        let result = score(&reference(name), &picture(140, true)).unwrap();
        let peak = result.map.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert!((32..48).contains(&(peak % 64)) && (16..32).contains(&(peak / 64)), "{name}: peak at {peak}");
        assert!((0.03..0.15).contains(&result.evidence.area_above_ratio), "{name}: {:?}", result.evidence);
    }
}

#[test]
fn graphs_that_give_no_scores_say_so() {
    let check = |name: &str, image: &Image, expected: &str| {
        let error = score(&reference(name), image).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    };
    check("not-a-number", &picture(128, false), "no number");
    check("wide", &picture(140, false), "[1, 1, 64, 128]");
    check("unnormalised", &picture(140, true), "min_max");
}

#[test]
fn a_graph_whose_label_contradicts_its_score_is_refused() {
    let folder = TempDir::new().unwrap();
    let scale = "normalisation = \"min_max\"\nimage = { threshold = 0.9, min = 0.0, max = 1.0 }\n";
    let copy = changed(folder.path(), "padim-2", "normalisation = \"in_graph\"\n", scale);
    // Its own threshold is 0.5: 0.66 is anomalous to it, and by the manifest's 0.9 it is not.
    let error = score(&copy, &picture(180, false)).unwrap_err().to_string();
    assert!(error.contains("anomalous") && error.contains("padim-2") && error.contains("normalisation"), "{error}");
    assert!(score(&copy, &picture(140, true)).unwrap().evidence.score > 0.5, "where they agree it goes on");
    assert!(score(&copy, &picture(150, false)).unwrap().evidence.score < 0.5);
}

fn changed(folder: &Path, name: &str, from: &str, to: &str) -> PathBuf {
    let copy = folder.join(name);
    copy_folder(&reference(name), &copy);
    let path = copy.join("manifest.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
    copy
}

#[test]
fn manifests_without_their_scale_or_of_another_kind_are_refused() {
    let check = |name: &str, from: &str, to: &str, expected: &str| {
        let folder = TempDir::new().unwrap();
        let error = surface(&changed(folder.path(), name, from, to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("padim-1", "image = { threshold = 2.0, min = 0.0, max = 6.0 }\n", "", "metadata.json");
    check("padim-2", "[anomaly]\nnormalisation = \"in_graph\"\n", "", "[anomaly]");
    check("padim-2", "kind = \"anomaly\"", "kind = \"features\"", "does not fit");
    check("padim-2", "\"stretch\"", "\"letterbox\"", "stretch");
    check("padim-2", "name = \"pred_score\"", "name = \"score\"", "pred_score");
    let error = surface(&root().join("models/mobilenetv2")).unwrap_err().to_string();
    assert!(error.contains("kind `features`") && error.contains("anomaly"), "{error}");
}

#[test]
fn scores_below_what_the_manifest_calls_lowest_are_refused() {
    let folder = TempDir::new().unwrap();
    let copy = changed(folder.path(), "flow-1", "lowest = -2.0", "lowest = -0.5");
    let error = score(&copy, &picture(128, false)).unwrap_err().to_string();
    assert!(error.contains("anomaly.lowest"), "{error}");
}

#[test]
fn a_probed_export_becomes_the_same_manifest() {
    let folder = TempDir::new().unwrap();
    for name in ["padim-2", "padim-1", "score-0", "flow-1"] {
        let out = folder.path().join(name);
        let mut probe = loupe();
        probe.args(["model", "probe", "--json", "--write"]).arg(&out).arg(reference(name).join("model.onnx"));
        let report = json(&mut probe);
        assert_eq!(report["layout"], "anomaly", "{report}");
        let (ours, theirs) = (ModelManifest::load(&out).unwrap(), ModelManifest::load(&reference(name)).unwrap());
        assert_eq!(ours.outputs(), theirs.outputs(), "{name}");
        let (ours_input, theirs_input) = (ours.input(), theirs.input());
        assert_eq!((ours_input.mean, ours_input.std), (theirs_input.mean, theirs_input.std), "{name}");
        let image = picture(150, true);
        let (ours, theirs) = (score(&out, &image).unwrap().evidence, score(&reference(name), &image).unwrap().evidence);
        assert!((ours.score - theirs.score).abs() < 1e-3, "{name}: {ours:?} {theirs:?}");
    }
    // Without its numbers the manifest says what is missing.
    let bare = folder.path().join("bare.onnx");
    fs::copy(reference("padim-1").join("model.onnx"), &bare).unwrap();
    let out = folder.path().join("bare");
    let report = json(loupe().args(["model", "probe", "--json", "--write"]).arg(&out).arg(&bare));
    assert!(report["why"].to_string().contains("no metadata.json"), "{report}");
    assert!(surface(&out).unwrap_err().to_string().contains("metadata.json"));
}

#[test]
fn goldens_hold_for_anomaly_graphs_too() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("padim-1");
    copy_folder(&reference("padim-1"), &model);
    let image = folder.path().join("bad.png");
    fs::write(&image, loupe::capture::encode_png(&picture(140, true)).unwrap()).unwrap();
    succeed(loupe().args(["model", "golden"]).arg(&model).arg("--images").arg(&image));
    succeed(loupe().args(["model", "verify"]).arg(&model));
    let path = model.join("golden/golden.json");
    let recorded = fs::read_to_string(&path).unwrap();
    assert!(recorded.contains("7.3124"), "{recorded}");
    fs::write(&path, recorded.replace("7.3124", "7.4124")).unwrap();
    assert!(fail_with(loupe().args(["model", "verify"]).arg(&model), 1).contains("7.4124"));
}

fn recipe(folder: &Path, body: &str) -> PathBuf {
    let path = folder.join("graph.toml");
    fs::write(&path, format!("name = \"graph\"\n[anomaly]\n{body}")).unwrap();
    path
}

#[test]
fn a_recipe_names_a_graph_in_place_of_a_bank() {
    let folder = TempDir::new().unwrap();
    let photo = samples().join("plate/test/good/000.jpg");
    let graph = reference("padim-1");
    let path = recipe(folder.path(), &format!("graph = \"{}\"\nthreshold = 0.999\n", graph.display()));
    let line = inspect(&path, &folder.path().join("state"), std::slice::from_ref(&photo)).remove(0);
    let evidence = &line["anomaly"];
    let manifest = Digest::of_file(&graph.join("manifest.toml")).unwrap().to_string();
    assert_eq!(evidence["bank_sha256"], manifest, "what the score rests on");
    assert!(evidence["score_raw"].as_f64().unwrap() > 0.0, "{line}");
    assert_eq!(line["providers"], serde_json::json!([["anomaly", "cpu"]]));
    assert_ne!(line["verdict"], "hold", "{line}");

    let path = recipe(folder.path(), &format!("graph = \"{}\"\n", reference("unnormalised").display()));
    let line = inspect(&path, &folder.path().join("state"), &[photo]).remove(0);
    assert_eq!(
        (&line["verdict"], &line["reasons"]),
        (&"hold".into(), &serde_json::json!(["model.error", "decide.not_inspected"]))
    );
}

#[test]
fn a_recipe_with_a_graph_and_a_bank_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = recipe(folder.path(), "graph = \"g\"\nbank = \"b\"\n");
    let said = fail_with(
        loupe().arg("inspect").arg("--recipe").arg(&path).arg("--state").arg(folder.path().join("s")).arg("x.jpg"),
        78,
    );
    assert!(said.contains("anomaly.graph"), "{said}");
}
