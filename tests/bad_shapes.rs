//! Graphs with axes that are zero or not there, and pictures of odd shapes and kinds through whole engines.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use loupe::anomaly::{GraphSurface, Surface};
use loupe::inference::{ModelManifest, ProviderPlan, Runtime};
use loupe::locate::{DetectorLocator, DetectorOptions, LocateError};
use loupe::types::Image;
use support::{fail_with, loupe, root, succeed, text};
use tempfile::TempDir;

fn reference(name: &str) -> PathBuf {
    root().join("tests/reference").join(name)
}

fn open(name: &str) -> Result<DetectorLocator, LocateError> {
    let manifest = ModelManifest::load(&reference(name)).unwrap();
    let runtime = Runtime::load(None).unwrap();
    DetectorLocator::open(&runtime, &manifest, &ProviderPlan::default(), DetectorOptions::default())
}

fn flat(width_px: u32, height_px: u32) -> Image {
    Image::from_bgr(width_px, height_px, vec![90; width_px as usize * height_px as usize * 3]).unwrap()
}

#[test]
fn an_output_without_rows_is_an_empty_frame() {
    assert_eq!(open("shapes/no-rows").unwrap().locate(&flat(64, 64)).unwrap(), []);
}

#[test]
fn an_input_without_pixels_or_axes_is_refused_by_name() {
    let check = |name: &str, expected: &str| {
        let error = open(&format!("shapes/{name}")).map(drop).unwrap_err().to_string();
        assert!(error.contains("images") && error.contains(name) && error.contains(expected), "{error}");
    };
    check("no-side", "[1, 3, 0, 0]");
    check("no-rank", "expected");
    check("one-axis", "[12288]");
}

#[test]
fn probing_such_graphs_says_what_is_wrong_or_what_was_seen() {
    for (name, expected) in [("no-rank", "no input has four sides"), ("one-axis", "no input has four sides")] {
        let file = reference("shapes").join(name).join("model.onnx");
        let output = succeed(loupe().args(["model", "probe"]).arg(&file));
        assert!(text(&output.stdout).contains(expected), "{name}: {}", text(&output.stdout));
    }
    let file = reference("shapes/no-side/model.onnx");
    let output = loupe().args(["model", "probe"]).arg(&file).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    // What it guesses of it cannot be loaded.
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("m");
    let written = loupe().args(["model", "probe", "--write"]).arg(&out).arg(&file).output().unwrap();
    assert!(!written.status.success() || ModelManifest::load(&out).is_err(), "{}", text(&written.stdout));
}

#[test]
fn pictures_of_every_shape_go_through_a_detector_and_a_surface() {
    let mut locators: Vec<DetectorLocator> = ["yolov8", "nanodet", "detr", "end-to-end", "ssd-u8"]
        .iter()
        .map(|name| open(&format!("detectors/{name}")).unwrap())
        .collect();
    let manifest = ModelManifest::load(&reference("anomaly/padim-1")).unwrap();
    let mut surface = GraphSurface::open(&manifest, &Runtime::load(None).unwrap(), &ProviderPlan::default()).unwrap();
    for (width_px, height_px) in [(1, 1), (1, 500), (500, 1), (3, 2), (16_384, 1), (2_000, 1_999)] {
        let image = flat(width_px, height_px);
        for locator in &mut locators {
            let found = locator.locate(&image).unwrap();
            let is_inside = found.iter().all(|one| {
                one.bbox.x1 >= 0.0
                    && one.bbox.y1 >= 0.0
                    && one.bbox.x2 <= width_px as f32
                    && one.bbox.y2 <= height_px as f32
            });
            assert!(is_inside, "{width_px}x{height_px}: {found:?}");
        }
        let evidence = surface.score(&image).unwrap().evidence;
        assert!(evidence.score_raw.is_finite() && (0.0..=1.0).contains(&evidence.score), "{evidence:?}");
    }
}

#[test]
fn files_of_every_kind_are_read_or_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let detect = |path: &Path| {
        let mut command = loupe();
        command.args(["detect", "run", "--json", "--model"]).arg(reference("detectors/yolov8")).arg(path);
        command
    };
    let one = folder.path().join("one.png");
    fs::write(&one, loupe::capture::encode_png(&flat(1, 1)).unwrap()).unwrap();
    for (path, width_px) in [(reference("images/cmyk.jpg"), 16), (reference("images/rotated.jpg"), 24), (one, 1)] {
        let line: serde_json::Value = serde_json::from_str(&text(&succeed(&mut detect(&path)).stdout)).unwrap();
        assert_eq!(line["width_px"], width_px, "{line}");
    }
    // A header of 20 000 pixels a side is refused before anything is reserved for it.
    let mut jpeg = fs::read(reference("images/rotated.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x4E, 0x20, 0x4E, 0x20]);
    let huge = folder.path().join("huge.jpg");
    fs::write(&huge, jpeg).unwrap();
    let said = fail_with(&mut detect(&huge), 1);
    assert!(said.contains("huge.jpg") && said.contains("20000x20000"), "{said}");
}
