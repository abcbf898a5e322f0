//! Proof by the kernel's own books that L2 is memory-mapped: opening and searching it must not copy the vectors into
//! anonymous memory. Alone in its file, so that no other test's memory is in the sums.

use loupe::matching::faiss::set_threads;
use loupe::matching::{AcceptRule, BuildOptions, Embedding, IndexBuilder, PartIndex, Template};
use loupe::types::Digest;

const COUNT: usize = 60_000;
const DIM: usize = 256;
const PARTS: usize = 500;
/// 61 MB.
const VECTOR_BYTES: u64 = (COUNT * DIM * 4) as u64;

/// Where the child builds.
const ROOT_VARIABLE: &str = "LOUPE_TEST_INDEX_ROOT";

/// Anonymous memory of this process, bytes (`Anonymous:` of smaps_rollup, in kB).
fn anonymous_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Size and resident part of the mappings of a file, bytes.
fn mapping_of(file: &str) -> (u64, u64) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut size, mut resident) = (false, 0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let value = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) << 10;
        if !first.ends_with(':') {
            inside = line.ends_with(file);
        } else if inside && first == "Size:" {
            size += value;
        } else if inside && first == "Rss:" {
            resident += value;
        }
    }
    (size, resident)
}

/// The catalogue, one vector after the other: 500 parts, a random centre each.
fn vectors() -> impl Iterator<Item = Vec<f32>> {
    let mut rng = fastrand::Rng::with_seed(1);
    let centres: Vec<f32> = (0..PARTS * DIM).map(|_| rng.f32() - 0.5).collect();
    (0..COUNT).map(move |at| {
        let centre = &centres[at % PARTS * DIM..(at % PARTS + 1) * DIM];
        centre.iter().map(|c| c + 0.5 * (rng.f32() - 0.5)).collect()
    })
}

/// Run by the other test in a process of its own: the memory that building needs would otherwise stay with the
/// allocator, and vectors wrongly read into memory would fit into it unseen.
#[test]
#[ignore = "a helper of the other test"]
fn build_in_a_child() {
    let Some(root) = std::env::var_os(ROOT_VARIABLE) else { return };
    let embedding = Embedding {
        model: "test".to_owned(),
        model_sha256: Digest::of(b"model"),
        input_px: 160,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    };
    // A small hot tier, and a recall that is cheap to reach: the map is the matter here.
    let options = BuildOptions { l1_ratio: 0.01, recall_target: 0.5, ..BuildOptions::default() };
    let mut builder = IndexBuilder::new(DIM, embedding, options);
    for (at, vector) in vectors().enumerate() {
        let template = Template { part_id: format!("part-{}", at % PARTS), color_id: None, view: String::new() };
        builder.push(template, &vector).unwrap();
    }
    let built = builder.build(root.as_ref()).unwrap();
    assert_eq!(built.manifest.l2.kind, "ivf_flat");
}

#[test]
fn searching_l2_keeps_its_vectors_out_of_anonymous_memory() {
    set_threads(1);
    let root = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "build_in_a_child"])
        .env(ROOT_VARIABLE, root.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let queries: Vec<f32> = vectors().step_by(COUNT / 200 + 1).flatten().collect();

    let before = anonymous_bytes();
    assert_eq!(mapping_of("/l2.vectors"), (0, 0), "nothing is mapped yet");
    let index = PartIndex::open(root.path()).unwrap();
    // A rule that nothing meets sends every query to L2.
    let rule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: 0.0 };
    let found = index.search(&queries, rule).unwrap();
    assert!(found.iter().all(|evidence| evidence.entered_stage2 && evidence.similarity > 0.99));

    let grown = anonymous_bytes().saturating_sub(before);
    let (size, resident) = mapping_of("/l2.vectors");
    eprintln!(
        "vectors {VECTOR_BYTES} B; anonymous memory +{grown} B; l2.vectors mapped {size} B, resident {resident} B"
    );
    assert!(grown * 5 < VECTOR_BYTES, "anonymous memory grew by {grown} bytes for {VECTOR_BYTES} bytes of vectors");
    assert!(size >= VECTOR_BYTES, "only {size} bytes of l2.vectors are mapped");
    assert!(resident > 0, "no page of the mapping was read");
}
