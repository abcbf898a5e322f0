//! What is tried with any bytes: the bodies of the fuzz targets, as plain functions.
//!
//! cargo-fuzz drives them without end (`fuzz_targets/`, a nightly compiler); `tests/fuzz.rs` of the program drives the same
//! functions a bounded number of times in every test run, on mutated real files.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use loupe::inference::{ModelManifest, RawOutputs, RawTensor};
use loupe::locate::coco::{CocoFile, Evaluator};
use loupe::locate::decode_outputs;
use loupe::matching::{Centres, Fit, LEARNED_VIEW_PREFIX, Manifest, Mirrors, Sizes, TemplateIds};
use loupe::types::Catalogue;

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

/// `bytes` as a file of this process's own folder, for what reads files only.
fn file_of(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("loupe-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the case");
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a file of the case");
    path
}

/// Any bytes as one of the small files of an index generation; the first byte chooses which.
///
/// # Panics
/// When a table of templates has another number of parts or hot rows than it can answer for.
pub fn index(bytes: &[u8]) {
    let [which, rest @ ..] = bytes else { return };
    match which % 6 {
        0 => drop(Manifest::parse(rest)),
        1 => drop(Sizes::parse(rest)),
        2 => drop(Fit::parse(rest, Path::new("fit.json"))),
        4 => drop(Centres::parse(rest, 8)),
        5 => drop(Mirrors::parse(rest)),
        _ => {
            if let Ok(ids) = TemplateIds::open(&file_of("ids.bin", rest)) {
                assert!(ids.hot().iter().all(|&row| (row as usize) < ids.len()));
                ids.write_csv(std::io::sink()).expect("nothing is written");
                let rows = 0..u32::try_from(ids.len()).unwrap_or(u32::MAX);
                for (template, part) in rows.filter_map(|row| ids.get(row)) {
                    assert_eq!(ids.part_name(part), Some(template.part_id));
                    assert!(ids.number_of(template.part_id).is_some());
                    assert_eq!(ids.has_learned(template.view), template.view.starts_with(LEARNED_VIEW_PREFIX));
                }
            }
        }
    }
}

/// Any bytes as a file of a catalogue: CSV, or JSON where the first byte is odd.
pub fn catalogue(bytes: &[u8]) {
    let [which, rest @ ..] = bytes else { return };
    let path = file_of(if which % 2 == 0 { "parts.csv" } else { "catalog.json" }, rest);
    drop(loupe::catalogue::read(&path, &Catalogue::default()));
}
