//! Any shapes and any numbers as the outputs of each layout.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use loupe::inference::{ModelManifest, RawOutputs, RawTensor};
use loupe::locate::decode_outputs;

static MANIFESTS: OnceLock<Vec<ModelManifest>> = OnceLock::new();

fn manifests() -> &'static [ModelManifest] {
    MANIFESTS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference/detectors");
        let names = ["yolov8", "yolov5-u8", "yolov8-seg", "end-to-end", "detr", "nanodet", "picodet", "ssd-u8"];
        names.iter().map(|name| ModelManifest::load(&folder.join(name)).unwrap()).collect()
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [which, a, b, c, rest @ ..] = bytes else { return };
    let manifest = &manifests()[usize::from(*which) % manifests().len()];
    let values: Vec<f32> = rest.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let shapes = [vec![usize::from(*a), usize::from(*b)], vec![usize::from(*c)], vec![usize::from(*b), usize::from(*c)]];
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
});
