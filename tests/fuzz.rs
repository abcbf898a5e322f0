//! A short run of the fuzz targets on mutated real files, bounded by cases: `LOUPE_FUZZ_CASES=20000` for a long one,
//! `LOUPE_FUZZ_SEED` to repeat one. What it prints on a failure is the seed, and the bytes lie in the target folder.
//! `LOUPE_FUZZ_CORPUS=fuzz/corpus` writes down what it begins with instead, for cargo-fuzz (`make fuzz`).

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use loupe::matching::{BuildOptions, Embedding, FitRow, IndexBuilder, PartIndex, Scored, Sizes, Template, fitting};
use loupe::types::Digest;
use safetensors::tensor::{Dtype, TensorView};

/// Cases of each target where the environment does not say.
const CASES: u64 = 400;
/// Larger inputs teach nothing more.
const BYTES_MAX: usize = 64 << 10;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with one of these extensions, not too large, in order.
fn files(folder: &Path, extensions: &[&str], out: &mut Vec<Vec<u8>>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if path.is_dir() {
            files(&path, extensions, out);
        } else if extensions.contains(&extension) && fs::metadata(&path).unwrap().len() <= BYTES_MAX as u64 {
            out.push(fs::read(path).unwrap());
        }
    }
}

/// One to four changes of a file: bits, bytes, numbers at the edge, runs cut, doubled or taken from another file.
fn mutate(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(1..=64)).min(bytes.len());
        match random.u8(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = random.u8(..),
            2 => {
                let number = EDGES[random.usize(..EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.usize(..4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
                if random.bool() {
                    bytes[at..at + width].reverse();
                }
            }
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                let from = random.usize(..=other.len());
                let to = (from + random.usize(..=256)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn run(name: &str, seeds: &[Vec<u8>], target: fn(&[u8])) {
    let (cases, seed) = (setting("LOUPE_FUZZ_CASES", CASES), setting("LOUPE_FUZZ_SEED", 1));
    assert!(!seeds.is_empty());
    if let Ok(corpus) = std::env::var("LOUPE_FUZZ_CORPUS") {
        let folder = root().join(corpus).join(name);
        fs::create_dir_all(&folder).unwrap();
        return seeds
            .iter()
            .enumerate()
            .for_each(|(at, bytes)| fs::write(folder.join(format!("seed-{at}")), bytes).unwrap());
    }
    seeds.iter().for_each(|bytes| target(bytes));
    let mut random = fastrand::Rng::with_seed(seed);
    for case in 0..cases {
        let bytes = mutate(&mut random, seeds);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}-{case}"));
            fs::write(&path, &bytes).unwrap();
            println!("target `{name}`, seed {seed}, case {case}: bytes in {}", path.display());
            resume_unwind(panic);
        }
    }
}

#[test]
fn pictures() {
    let mut seeds = Vec::new();
    for folder in ["tests/reference/images", "samples", "models/tiny-yolox", "models/mobilenetv2/golden"] {
        files(&root().join(folder), &["jpg", "png"], &mut seeds);
    }
    // As every format that is decoded: a small picture each.
    let image = loupe::types::Image::from_bgr(24, 16, (0..=u8::MAX).cycle().take(24 * 16 * 3).collect()).unwrap();
    seeds.push(loupe::capture::encode_png(&image).unwrap());
    seeds.sort_by_key(Vec::len);
    seeds.truncate(12);
    run("picture", &seeds, targets::picture);
}

#[test]
fn graphs() {
    let mut seeds = Vec::new();
    files(&root().join("tests/reference"), &["onnx"], &mut seeds);
    run("graph", &seeds, targets::graph);
}

#[test]
fn annotations() {
    let mut seeds = vec![fs::read(root().join("tests/reference/detectors/coco.json")).unwrap()];
    seeds.iter_mut().for_each(|bytes| bytes.truncate(BYTES_MAX));
    seeds.push(br#"{"images":[{"id":1,"file_name":"a","width":9,"height":9}],"annotations":[{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4],"area":12,"iscrowd":0}],"categories":[{"id":1,"name":"x"}]}"#.to_vec());
    run("annotations", &seeds, targets::annotations);
}

#[test]
fn decoders() {
    let mut random = fastrand::Rng::with_seed(2);
    let seeds: Vec<Vec<u8>> = (0..64)
        .map(|which| {
            let (rows, columns) = (random.u8(1..12), random.u8(1..40));
            let values = (0..usize::from(rows) * usize::from(columns)).flat_map(|_| (random.f32() * 4.0).to_le_bytes());
            [which, rows, columns, columns].into_iter().chain(values).collect()
        })
        .collect();
    run("decoders", &seeds, targets::decoders);
}

#[test]
fn index_files() {
    let dir = tempfile::tempdir().unwrap();
    let embedding = Embedding {
        model: "test".to_owned(),
        model_sha256: Digest::of(b"m"),
        input_px: 64,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    };
    let sizes = (0..6).map(|part| (part.to_string(), [16.0, 9.6, 8.0])).collect();
    let mut builder = IndexBuilder::new(8, embedding, BuildOptions::default()).with_sizes(Sizes::new(sizes).unwrap());
    let mut random = fastrand::Rng::with_seed(3);
    for part in 0..6 {
        let vector: Vec<f32> = (0..8).map(|_| random.f32() - 0.5).collect();
        let color_id = (part % 2 == 0).then(|| "71".to_owned());
        builder.push(Template { part_id: part.to_string(), color_id, view: "top".to_owned() }, &vector).unwrap();
    }
    builder.build(dir.path()).unwrap();
    let index = PartIndex::open(dir.path()).unwrap();
    let generation = dir.path().join(index.generation_name());
    let scored = |similarity| Scored {
        similarity,
        likeness: Some(similarity),
        centre: Some(similarity),
        size_log: None,
        apart: None,
        is_rival: false,
    };
    let row = |part: usize| FitRow {
        part_id: part.to_string(),
        candidates: vec![(part.to_string(), scored(0.9)), ("other".to_owned(), scored(0.4))],
    };
    let rows: Vec<FitRow> = (0..60).map(row).collect();
    let fit = fitting::fit(index.generation_sha256(), &rows, 0.1, 0.01).unwrap();
    let fit = fit.store(dir.path(), &index.generation_name()).unwrap();
    let centres = dir.path().join("centres.safetensors");
    let direction: Vec<u8> = (0..8).flat_map(|value| (1.0_f32 + value as f32).to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, vec![8], &direction).unwrap();
    fs::write(&centres, safetensors::serialize([("0", tensor)], None).unwrap()).unwrap();
    let [manifest, sizes, ids] = ["manifest.json", "sizes.csv", "ids.bin"].map(|name| generation.join(name));
    let files = [manifest, sizes, fit, ids, centres];
    let seed = |(which, path): (u8, &PathBuf)| [vec![which], fs::read(path).unwrap()].concat();
    run("index", &(0..).zip(&files).map(seed).collect::<Vec<_>>(), targets::index);
}

#[test]
fn catalogues() {
    let json = r#"{"parts":[{"part_id":"3005","name":"Brick 1 x 1","size_x_mm":8.0}],"colors":[{"color_id":"71","name":"Grey","rgb":"A3A2A4"}]}"#;
    let csv =
        "part_num,name,category,confusion_group,size_x_ldu\n3005,\"Brick 1 x 1\",Brick,g,20.0\n3004,브릭,Brick,,40\n";
    run("catalogue", &[format!("\0{csv}").into_bytes(), format!("\u{1}{json}").into_bytes()], targets::catalogue);
}

#[test]
fn recipes() {
    let mut seeds = Vec::new();
    files(&root().join("config"), &["toml"], &mut seeds);
    run("recipe", &seeds, targets::recipe);
}
