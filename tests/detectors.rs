//! Every detector layout through the real ONNX Runtime, on graphs whose boxes are known (`tests/reference/detectors`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loupe::inference::{ModelManifest, ProviderPlan, Runtime};
use loupe::limits::ITEMS_PER_FRAME_MAX;
use loupe::locate::coco::{CocoFile, Evaluator};
use loupe::locate::{Detection, DetectorLocator, DetectorOptions, LocateError};
use loupe::types::Image;

const RED: [u8; 3] = [0, 0, 255];

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/detectors").join(name)
}

fn runtime() -> Arc<Runtime> {
    Runtime::load(None).unwrap()
}

fn open(name: &str, options: DetectorOptions) -> Result<DetectorLocator, LocateError> {
    let manifest = ModelManifest::load(&reference(name))?;
    DetectorLocator::open(&runtime(), &manifest, &ProviderPlan::default(), options)
}

fn flat(width_px: u32, height_px: u32, bgr: [u8; 3]) -> Image {
    Image::from_bgr(width_px, height_px, bgr.repeat((width_px * height_px) as usize)).unwrap()
}

type Boxes = Vec<(String, [f32; 4], f32)>;

fn located(locator: &mut DetectorLocator, image: &Image) -> Boxes {
    let found = locator.locate(image).unwrap();
    found.into_iter().map(|one| (one.label, one.bbox.into(), one.confidence)).collect()
}

fn check_boxes(name: &str, found: &Boxes, expected: &[(&str, [f32; 4], f32)]) {
    assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
    for ((label, bbox, score), (expected_label, expected_box, expected_score)) in found.iter().zip(expected) {
        let distance = bbox.iter().zip(expected_box).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            label == expected_label && distance < 0.05 && (score - expected_score).abs() < 2e-3,
            "{name}: {label} {bbox:?} {score}, expected {expected_label} {expected_box:?} {expected_score}"
        );
    }
}

/// A frame of 128×64 in an input of 64×64, in the middle: half the size, 16 px of border above and below.
const LETTERBOXED: [(&str, [f32; 4], f32); 3] =
    [("b", [48.0, 16.0, 80.0, 32.0], 0.8), ("a", [8.0, 4.0, 24.0, 20.0], 0.5), ("a", [112.0, 48.0, 128.0, 64.0], 0.4)];
/// The same stretched: only the width halves.
const STRETCHED: [(&str, [f32; 4], f32); 3] =
    [("b", [48.0, 24.0, 80.0, 32.0], 0.8), ("a", [8.0, 18.0, 24.0, 26.0], 0.5), ("a", [112.0, 40.0, 128.0, 60.0], 0.4)];

/// Red gives the known boxes in frame pixels, duplicates gone and cut to the frame; blue (colours swapped) and black none.
fn check_layout(name: &str, expected: &[(&str, [f32; 4], f32)]) {
    let mut locator = open(name, DetectorOptions::default()).unwrap();
    check_boxes(name, &located(&mut locator, &flat(128, 64, RED)), expected);
    for nothing in [[255, 0, 0], [0, 0, 0]] {
        assert!(located(&mut locator, &flat(128, 64, nothing)).is_empty(), "{name}");
    }
    // Its own size, so nothing is scaled; and one pixel, whose boxes all lie outside or fill it.
    assert_eq!(located(&mut locator, &flat(64, 64, RED)).len(), 3, "{name}");
    for (_, [x1, y1, x2, y2], _) in located(&mut locator, &flat(1, 1, RED)) {
        assert!(x1 >= 0.0 && y1 >= 0.0 && x2 <= 1.0 && y2 <= 1.0, "{name}");
    }
}

#[test]
fn yolo_planes() {
    check_layout("yolov8", &LETTERBOXED);
}

#[test]
fn yolo_rows_in_half_precision_with_any_batch() {
    check_layout("yolov8-rows-f16", &LETTERBOXED);
}

#[test]
fn yolov5_with_objectness_from_octets() {
    check_layout("yolov5-u8", &LETTERBOXED);
}

#[test]
fn a_graph_that_insists_on_two_pictures() {
    check_layout("yolov8-batch2", &LETTERBOXED);
}

#[test]
fn a_graph_that_says_nothing_about_its_sides() {
    check_layout("dynamic", &LETTERBOXED);
}

#[test]
fn weights_in_a_file_beside_the_model() {
    check_layout("external", &LETTERBOXED);
}

#[test]
fn end_to_end_rows() {
    check_layout("end-to-end", &STRETCHED);
}

#[test]
fn detr_with_original_sizes() {
    check_layout("detr", &STRETCHED);
}

#[test]
fn nanodet_in_one_output() {
    check_layout("nanodet", &LETTERBOXED);
}

#[test]
fn picodet_with_outputs_for_each_stride() {
    check_layout("picodet", &LETTERBOXED);
}

#[test]
fn ssd_with_its_own_suppression_from_octets_with_pixels_last() {
    check_layout("ssd-u8", &STRETCHED);
}

#[test]
fn segments_have_the_mask_of_their_box() {
    let mut locator = open("yolov8-seg", DetectorOptions::default()).unwrap();
    let segments = locator.locate_segments(&flat(128, 64, RED)).unwrap();
    // The mask is what lies right of input column 32, which is frame column 64: half of `b`, none and all of the others.
    let areas: Vec<u64> = segments.iter().map(|segment| segment.mask.as_ref().unwrap().area_px()).collect();
    assert_eq!(areas, [16 * 16, 0, 16 * 16]);
    let mask = segments[0].mask.as_ref().unwrap();
    assert_eq!((mask.left_px, mask.top_px, mask.width, mask.height), (48, 16, 32, 16));
    assert_eq!(mask.runs()[..2], [16, 16]);
    check_layout("yolov8-seg", &LETTERBOXED);
}

#[test]
fn classes_have_thresholds_of_their_own() {
    let class_score_min = [("a".to_owned(), 0.45)].into();
    let mut locator = open("yolov8", DetectorOptions { class_score_min, ..DetectorOptions::default() }).unwrap();
    check_boxes("yolov8", &located(&mut locator, &flat(128, 64, RED)), &LETTERBOXED[..2]);
    let class_score_min = [("c".to_owned(), 0.45)].into();
    let error = open("yolov8", DetectorOptions { class_score_min, ..DetectorOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("no class `c`") && error.to_string().contains("a, b"), "{error}");
}

#[test]
fn tiles_give_each_its_boxes_and_merge_across_their_seam() {
    // Two tiles of 64 over a frame of 112×64, 16 px shared: each sees all three boxes, the last one cut by its side.
    let options = DetectorOptions { tile_px: 64, tile_overlap_px: 16, ..DetectorOptions::default() };
    for name in ["yolov8", "yolov8-batch2", "yolov5-u8", "detr"] {
        let mut locator = open(name, options.clone()).unwrap();
        let found = located(&mut locator, &flat(112, 64, RED));
        let expected = [
            ("b", [24.0, 24.0, 40.0, 32.0], 0.8),
            ("b", [72.0, 24.0, 88.0, 32.0], 0.8),
            ("a", [4.0, 18.0, 12.0, 26.0], 0.5),
            ("a", [52.0, 18.0, 60.0, 26.0], 0.5),
            // Boxes end at the frame and not at their tile; what a seam may have cut comes after what is whole.
            ("a", [104.0, 40.0, 112.0, 60.0], 0.4),
            ("a", [56.0, 40.0, 72.0, 60.0], 0.4),
        ];
        check_boxes(name, &found, &expected);
    }
}

#[test]
fn ten_thousand_boxes_are_cut_above_what_a_frame_may_hold() {
    let mut locator = open("many", DetectorOptions::default()).unwrap();
    let found = located(&mut locator, &flat(640, 640, RED));
    assert_eq!(found.len(), ITEMS_PER_FRAME_MAX + 1, "one more than allowed, so that the frame holds");
    assert!(found.iter().all(|(_, [x1, y1, x2, y2], _)| *x1 >= 0.0 && *y1 >= 0.0 && *x2 <= 640.0 && *y2 <= 640.0));
}

#[test]
fn outputs_that_are_no_numbers_are_an_error_and_not_an_empty_frame() {
    let mut locator = open("not-a-number", DetectorOptions::default()).unwrap();
    let error = locator.locate(&flat(128, 64, RED)).unwrap_err();
    assert!(matches!(error, LocateError::BrokenRows { .. }), "{error}");
    assert!(error.to_string().contains("NaN") && error.to_string().contains("not-a-number"), "{error}");
    assert!(locator.locate(&flat(128, 64, [0, 0, 0])).unwrap().is_empty(), "the next frame is sound");
}

#[test]
fn an_opset_of_the_future_and_missing_weights_say_what_is_wrong() {
    let said = open("future-opset", DetectorOptions::default()).unwrap_err().to_string();
    assert!(said.contains("future-opset") && said.to_lowercase().contains("opset 99"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(reference("external/manifest.toml")).unwrap();
    let without = text.split("[[external]]").next().unwrap();
    std::fs::copy(reference("external/model.onnx"), folder.path().join("model.onnx")).unwrap();
    for (manifest, expected) in [(without, "does not list"), (text.as_str(), "weights.bin")] {
        std::fs::write(folder.path().join("manifest.toml"), manifest).unwrap();
        let manifest = ModelManifest::load(folder.path()).unwrap();
        let plan = ProviderPlan::default();
        let error = DetectorLocator::open(&runtime(), &manifest, &plan, DetectorOptions::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    std::fs::write(folder.path().join("weights.bin"), [0; 64]).unwrap();
    let manifest = ModelManifest::load(folder.path()).unwrap();
    let error =
        DetectorLocator::open(&runtime(), &manifest, &ProviderPlan::default(), DetectorOptions::default()).unwrap_err();
    assert!(error.to_string().contains("sha256") && error.to_string().contains("weights.bin"), "{error}");
}

#[test]
fn a_layout_that_is_not_the_graphs_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(reference("yolov8/manifest.toml")).unwrap();
    std::fs::copy(reference("yolov8/model.onnx"), folder.path().join("model.onnx")).unwrap();
    let wrong = [("layout = \"yolo\"", "layout = \"yolox\""), ("[\"a\", \"b\"]", "[\"a\", \"b\", \"c\"]")];
    for (from, to) in wrong {
        std::fs::write(folder.path().join("manifest.toml"), text.replace(from, to)).unwrap();
        let manifest = ModelManifest::load(folder.path()).unwrap();
        let plan = ProviderPlan::default();
        let mut locator = DetectorLocator::open(&runtime(), &manifest, &plan, DetectorOptions::default()).unwrap();
        let error = locator.locate(&flat(128, 64, RED)).unwrap_err().to_string();
        assert!(error.contains("found [6, 9]") && error.contains("loupe model probe"), "{error}");
    }
}

#[test]
fn average_precision_is_what_pycocotools_says() {
    let text = std::fs::read_to_string(reference("coco.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let coco = CocoFile::parse(&document["truth"].to_string()).unwrap();
    let mut evaluator = Evaluator::default();
    for image in &coco.images {
        let of_image = document["detections"].as_array().unwrap().iter().filter(|one| one["image_id"] == image.id);
        let detections = of_image.map(|one| {
            let bbox: [f32; 4] = serde_json::from_value(one["bbox"].clone()).unwrap();
            let category = coco.categories.iter().find(|category| one["category_id"] == category.id).unwrap();
            Detection {
                bbox: [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]].into(),
                label: category.name.clone(),
                confidence: serde_json::from_value(one["score"].clone()).unwrap(),
            }
        });
        evaluator.add(detections.collect(), coco.truths(image.id, false));
    }
    let found = serde_json::to_value(evaluator.finish()).unwrap();
    for (key, expected) in document["expected"].as_object().unwrap() {
        let (found, expected) = (found[key].as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-6, "{key}: {found}, pycocotools {expected}");
    }
}
