//! Every step of PatchCore against vectors of an independent numpy implementation (`tests/reference/patchcore.py`).
//!
//! Tolerances: what is only arithmetic on the same numbers 1e-5 of the value, what went through the network 1e-3 (its
//! kernels differ from processor to processor); the picture's octets and the coreset's indices exactly.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::map::MapDrawer;
use super::memory::Memory;
use super::patches::PatchGrid;
use super::{BankBuilder, BankOptions, PatchCore, coreset};
use crate::inference::{FeatureMap, FeatureMaps, FeatureModel, ModelManifest, ProviderPlan, Runtime};
use crate::types::{BoundingBox, Image};

/// Of arithmetic on the same numbers.
const ARITHMETIC: f32 = 1e-5;
/// Of what went through the network.
const NETWORK: f32 = 1e-3;

#[derive(Debug, Deserialize)]
struct Reference {
    size_px: [u32; 2],
    grid: [usize; 2],
    coreset_ratio: f64,
    seed: u64,
    train: Vec<String>,
    coreset: Vec<usize>,
    projected_coreset: Vec<usize>,
    /// The test picture whose steps are all stored.
    detail: String,
    test: BTreeMap<String, Scored>,
}

#[derive(Debug, Deserialize)]
struct Scored {
    distances: Vec<f32>,
    nearest: Vec<i64>,
    score: f32,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Shape and bytes of a `.npy` file, version 1.
fn npy(name: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(root().join("tests/reference/patchcore").join(format!("{name}.npy"))).unwrap();
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(header.contains("'fortran_order': False"), "{header}");
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let sides = shape.split(',').filter_map(|side| side.trim().parse().ok()).collect();
    (sides, bytes[10 + length..].to_vec())
}

fn floats(name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, bytes) = npy(name);
    let (values, _) = bytes.as_chunks::<4>();
    (shape, values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

fn picture(name: &str) -> Image {
    let (shape, bytes) = npy(name);
    let side = |index: usize| u32::try_from(shape[index]).unwrap();
    Image::from_bgr(side(1), side(0), bytes).unwrap()
}

fn reference() -> Reference {
    let path = root().join("tests/reference/patchcore/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn check(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = tolerance * expected.abs().max(1.0);
        assert!((found - expected).abs() <= allowed, "at {index}: {found}, the reference has {expected}");
    }
}

fn model() -> FeatureModel {
    let manifest = ModelManifest::load(&root().join("models/mobilenetv2")).unwrap();
    FeatureModel::open(&Runtime::load(None).unwrap(), &manifest, &ProviderPlan::default()).unwrap()
}

fn features_of(reference: &Reference) -> FeatureMaps {
    let image = picture(&format!("picture-{}", reference.detail));
    let area = BoundingBox::whole(image.width_px(), image.height_px());
    model().features(&image, area, (reference.size_px[0], reference.size_px[1])).unwrap()
}

/// The bank's vectors, in the order of choice.
fn bank(reference: &Reference) -> Memory {
    let (shape, train) = floats("train-patches");
    let rows = reference.coreset.iter().flat_map(|&index| &train[index * shape[1]..(index + 1) * shape[1]]);
    Memory::new(rows.copied().collect(), shape[1]).unwrap()
}

#[test]
fn features_are_those_of_the_reference() {
    let reference = reference();
    let maps = features_of(&reference).maps;
    assert_eq!(maps.len(), 2);
    for (map, name) in maps.iter().zip(["features-stride8", "features-stride16"]) {
        let (shape, expected) = floats(name);
        assert_eq!(shape, [map.channels, map.height, map.width]);
        check(&map.data, &expected, NETWORK);
    }
}

#[test]
fn patches_of_the_same_features_are_those_of_the_reference() {
    let reference = reference();
    let maps = ["features-stride8", "features-stride16"].map(|name| {
        let (shape, data) = floats(name);
        let stride = reference.size_px[0] / u32::try_from(shape[2]).unwrap();
        FeatureMap { stride, channels: shape[0], height: shape[1], width: shape[2], data }
    });
    let grid = PatchGrid::from_maps(&FeatureMaps { maps: maps.to_vec() }).unwrap();
    assert_eq!([grid.width, grid.height], reference.grid);
    check(&grid.data, &floats("patches").1, ARITHMETIC);
    let through_the_network = PatchGrid::from_maps(&features_of(&reference)).unwrap();
    check(&through_the_network.data, &floats("patches").1, NETWORK);
}

#[test]
fn the_coreset_of_a_seed_is_that_of_the_reference() {
    let reference = reference();
    let (shape, train) = floats("train-patches");
    let chosen = coreset::choose(&train, shape[1], reference.coreset.len(), reference.seed);
    assert_eq!(chosen, reference.coreset);
    let mut random = fastrand::Rng::with_seed(3);
    let wide: Vec<f32> = (0..120 * 160).map(|_| random.f32()).collect();
    let chosen = coreset::choose(&wide, 160, reference.projected_coreset.len(), 7);
    assert_eq!(chosen, reference.projected_coreset, "after the projection");
}

#[test]
fn distances_neighbours_and_the_image_score_are_those_of_the_reference() {
    let reference = reference();
    let expected = &reference.test[&reference.detail];
    let (memory, patches) = (bank(&reference), floats("patches").1);
    let found = memory.search(&patches).unwrap();
    check(&found.distances, &expected.distances, ARITHMETIC);
    assert_eq!(found.ids(), expected.nearest);
    check(&[memory.image_score(&patches, &found).unwrap()], &[expected.score], ARITHMETIC);
}

#[test]
fn the_map_is_that_of_the_reference() {
    let reference = reference();
    let [width, height] = reference.size_px.map(|side| side as usize);
    let mut drawer = MapDrawer::new((reference.grid[0], reference.grid[1]), (width, height));
    let map = drawer.draw(&reference.test[&reference.detail].distances);
    let (shape, expected) = floats("map");
    assert_eq!(shape, [map.height, map.width]);
    check(&map.data, &expected, 1e-4);
}

#[test]
fn a_bank_built_from_pictures_scores_as_the_reference() {
    let reference = reference();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank");
    let options =
        BankOptions { input_px: Some((reference.size_px[0], reference.size_px[1])), ..BankOptions::default() };
    assert_eq!((options.coreset_ratio, options.seed), (reference.coreset_ratio, reference.seed));
    let mut builder = BankBuilder::new(model(), options).unwrap();
    for name in &reference.train {
        builder.add(&picture(&format!("picture-{name}"))).unwrap();
    }
    assert_eq!(builder.finish(&path).unwrap().len(), reference.coreset.len());
    let runtime = Runtime::load(None).unwrap();
    let mut scorer = PatchCore::open(&path, &runtime, &root().join("models"), &ProviderPlan::default()).unwrap();
    for (name, expected) in &reference.test {
        let result = scorer.score(&picture(&format!("picture-{name}"))).unwrap();
        let score = result.evidence.score_raw;
        assert!((score - expected.score).abs() <= NETWORK, "{name}: {score}, the reference has {}", expected.score);
        if *name == reference.detail {
            check(&result.map.data, &floats("map").1, NETWORK);
        }
    }
}
