//! What is tried with any bytes: the bodies of the fuzz targets, as plain functions.
//!
//! cargo-fuzz drives them without end (`fuzz_targets/`, a nightly compiler); `tests/fuzz.rs` of the program drives the same
//! functions a bounded number of times in every test run, on mutated real files.

use std::path::Path;
use std::sync::OnceLock;

use loupe::inference::{ModelManifest, RawOutputs, RawTensor};
use loupe::locate::coco::{CocoFile, Evaluator};
use loupe::locate::decode_outputs;

/// Any bytes as a picture file.
///
/// # Panics
/// When a picture has other pixels than its size says.
pub fn picture(bytes: &[u8]) {
    if let Ok(image) = loupe::capture::decode_image(bytes, "fuzz") {
        assert_eq!(image.bgr().len(), image.width_px() as usize * image.height_px() as usize * 3);
    }
}

/// Any bytes as an ONNX file, without a runtime.
pub fn graph(bytes: &[u8]) {
    drop(loupe::inference::read_graph(bytes));
}

/// Any text as a COCO file, evaluated against itself.
pub fn annotations(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(coco) = CocoFile::parse(text) {
        let mut evaluator = Evaluator::default();
        for image in coco.images.iter().take(8) {
            evaluator.add(Vec::new(), coco.truths(image.id, false));
        }
        drop(evaluator.finish());
    }
}

/// Where the reference detectors lie; the program's tests and cargo-fuzz have different roots.
fn detectors() -> &'static [ModelManifest] {
    static MANIFESTS: OnceLock<Vec<ModelManifest>> = OnceLock::new();
    MANIFESTS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = [root.join("tests/reference/detectors"), root.join("../tests/reference/detectors")];
        let folder = folder.into_iter().find(|folder| folder.is_dir()).unwrap_or_default();
        let names = ["yolov8", "yolov5-u8", "yolov8-seg", "end-to-end", "detr", "nanodet", "picodet", "ssd-u8"];
        names.iter().filter_map(|name| ModelManifest::load(&folder.join(name)).ok()).collect()
    })
}

/// Any shapes and any numbers as the outputs of each layout.
///
/// # Panics
/// When the reference detectors are not there, or a box without end comes out.
pub fn decoders(bytes: &[u8]) {
    let [which, a, b, c, rest @ ..] = bytes else { return };
    let manifests = detectors();
    assert!(!manifests.is_empty(), "tests/reference/detectors is missing");
    let manifest = &manifests[usize::from(*which) % manifests.len()];
    let values: Vec<f32> = rest.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let shapes =
        [vec![usize::from(*a), usize::from(*b)], vec![usize::from(*c)], vec![usize::from(*b), usize::from(*c)]];
    let tensors = manifest.outputs().iter().enumerate().map(|(index, output)| RawTensor {
        name: &output.name,
        role: output.role,
        stride: output.stride,
        shape: shapes[index % shapes.len()].clone(),
        values: &values,
    });
    let raw = RawOutputs { tensors: tensors.collect(), input_px: [64, 64] };
    if let Ok(found) = decode_outputs(manifest, &raw, 0.0) {
        assert!(found.iter().all(|(corners, _, _)| corners.iter().all(|corner| corner.is_finite())));
    }
}

/// Any text as a recipe.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    drop(loupe::config::Recipe::parse(Path::new("recipe.toml"), text.to_owned()));
}
