//! Generations through their life: builds that die at any point or fill the disk, switching and going back, searching
//! while generations change.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use loupe::matching::{
    AcceptRule, BuildOptions, Embedding, IndexBuilder, LiveIndex, MatchError, PartIndex, Template, lifecycle, verify,
};
use loupe::types::Digest;
use proptest::prelude::*;

const DIM: usize = 16;
const NEVER_ALONE: AcceptRule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: 0.0 };
/// Where the child builds, and the phase in which it dies.
const ROOT_VARIABLE: &str = "LOUPE_TEST_INDEX_ROOT";
const DIE_VARIABLE: &str = "LOUPE_TEST_DIE_IN";

/// One vector a part, of length 1.
fn vectors(seed: u64, parts: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut vectors: Vec<f32> = (0..parts * DIM).map(|_| rng.f32() - 0.5).collect();
    for vector in vectors.chunks_mut(DIM) {
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|v| *v /= norm);
    }
    vectors
}

/// The same parts in every generation; `seed` also names their colour, so that generations differ.
fn builder(seed: u64, parts: usize, options: BuildOptions) -> IndexBuilder {
    let model_sha256 = Digest::of(b"model");
    let embedding =
        Embedding { model: "test".to_owned(), model_sha256, input_px: 160, crop_margin_ratio: 0.0, input_sha256: None };
    let mut builder = IndexBuilder::new(DIM, embedding, options);
    for (part, vector) in vectors(1, parts).chunks(DIM).enumerate() {
        let (part_id, color_id) = (format!("part-{part}"), Some(seed.to_string()));
        builder.push(Template { part_id, color_id, view: String::new() }, vector).unwrap();
    }
    builder
}

fn build(root: &Path, seed: u64) -> String {
    builder(seed, 40, BuildOptions::default()).build(root).unwrap();
    live(root)
}

fn live(root: &Path) -> String {
    std::fs::read_to_string(root.join("CURRENT")).unwrap().trim().to_owned()
}

fn names(root: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|name| name.starts_with(prefix)).collect()
}

/// Every part is found, and the colour says by which generation.
fn color_served(index: &PartIndex) -> String {
    let found = index.search(&vectors(1, 40), NEVER_ALONE).unwrap();
    for (part, evidence) in found.iter().enumerate() {
        assert_eq!(evidence.part_id, format!("part-{part}"));
        assert_eq!(evidence.color_id, found[0].color_id);
    }
    found[0].color_id.clone().unwrap()
}

/// A process of its own for the tests below: builds, and dies without a word in the phase it was told.
#[test]
#[ignore = "a helper of the other tests"]
fn build_in_a_child() {
    let Some(root) = std::env::var_os(ROOT_VARIABLE) else { return };
    let die_in = std::env::var(DIE_VARIABLE).unwrap_or_default();
    let options = BuildOptions { lists: 8, recall_target: 0.1, ..BuildOptions::default() };
    let built = builder(2, 2_000, options).build_with(root.as_ref(), &|phase, done, _| {
        if format!("{phase:?}-{done}") == die_in {
            std::process::abort();
        }
    });
    if let Err(error) = built {
        eprintln!("the build says: {error}");
        std::process::exit(3);
    }
}

fn child() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "build_in_a_child", "--nocapture"]);
    command
}

#[test]
fn a_build_killed_at_any_point_leaves_the_last_good_generation_serving() {
    for die_in in ["Clustering-0", "Tuning-0", "Writing-0", "Writing-1", "Writing-2", "Checking-0", "Switching-0"] {
        let root = tempfile::tempdir().unwrap();
        let good = build(root.path(), 1);
        let output = child().env(ROOT_VARIABLE, root.path()).env(DIE_VARIABLE, die_in).output().unwrap();
        assert!(!output.status.success() && output.status.code().is_none(), "{die_in}: {:?}", output.status);
        assert_eq!(names(root.path(), ".staged-").len(), 1, "{die_in}: it died in the middle of its work");
        assert_eq!(live(root.path()), good, "{die_in}");
        assert_eq!(color_served(&PartIndex::open(root.path()).unwrap()), "1", "{die_in}");
        assert_eq!(verify(root.path()).faults, [""; 0], "{die_in}");
        let next = build(root.path(), 3);
        assert_ne!(next, good);
        assert_eq!(names(root.path(), ".staged-"), [""; 0], "{die_in}: the next build tidies up");
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_live() {
    let root = tempfile::tempdir().unwrap();
    let good = build(root.path(), 1);
    // 2 000 vectors of 16 values are 128 kB; no file may exceed 64 blocks, so writing fails as on a full disk.
    let inner = child();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(ROOT_VARIABLE, root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("could not write") && said.contains("l2.vectors"), "{said}");
    assert_eq!(live(root.path()), good);
    assert_eq!((names(root.path(), "gen-").len(), names(root.path(), ".staged-").len()), (2, 0), "with its record");
    assert_eq!(color_served(&PartIndex::open(root.path()).unwrap()), "1");
}

#[test]
fn only_one_process_changes_an_index_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let good = build(root.path(), 1);
    let lock = std::fs::File::options().write(true).open(root.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let error = builder(2, 40, BuildOptions::default()).build(root.path()).unwrap_err();
    assert!(matches!(error, MatchError::Busy { .. }) && error.to_string().contains(".lock"), "{error}");
    assert!(matches!(lifecycle::switch(root.path(), &good), Err(MatchError::Busy { .. })));
    assert!(matches!(lifecycle::rollback(root.path()), Err(MatchError::Busy { .. })));
    assert!(matches!(lifecycle::compact(root.path(), false, true), Err(MatchError::Busy { .. })));
    assert_eq!(color_served(&PartIndex::open(root.path()).unwrap()), "1", "reading needs no lock");
    lock.unlock().unwrap();
    build(root.path(), 2);
}

#[test]
fn rolling_back_twice_leads_forward_again_and_damage_is_never_switched_to() {
    let root = tempfile::tempdir().unwrap();
    let first = build(root.path(), 1);
    assert!(matches!(lifecycle::rollback(root.path()), Err(MatchError::NoPrevious { .. })));
    let second = build(root.path(), 2);
    assert_eq!(lifecycle::rollback(root.path()).unwrap(), first);
    assert_eq!(color_served(&PartIndex::open(root.path()).unwrap()), "1");
    assert_eq!(lifecycle::rollback(root.path()).unwrap(), second);
    let error = lifecycle::switch(root.path(), "../../etc").unwrap_err();
    assert!(matches!(error, MatchError::NoGeneration { .. }), "{error}");
    for file in ["l1.vectors", "l2.vectors", "l2.lists", "ids.bin"] {
        let path = root.path().join(&first).join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        for bytes in [&flipped[..], &whole[..last]] {
            std::fs::write(&path, bytes).unwrap();
            let error = lifecycle::switch(root.path(), &first).unwrap_err();
            assert!(matches!(error, MatchError::Damaged { .. }) && error.to_string().contains(file), "{error}");
            assert_eq!(live(root.path()), second, "{file}");
        }
        std::fs::write(&path, &whole).unwrap();
    }
    lifecycle::switch(root.path(), &first).unwrap();
    assert_eq!(live(root.path()), first);
}

#[test]
fn a_byte_flipped_behind_the_old_modification_time_is_found_at_the_next_opening() {
    let root = tempfile::tempdir().unwrap();
    let name = build(root.path(), 1);
    drop(PartIndex::open(root.path()).unwrap());
    let path = root.path().join(&name).join("l2.vectors");
    let modified = path.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let times = std::fs::FileTimes::new().set_modified(modified);
    std::fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
    let error = PartIndex::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("l2.vectors has sha256"), "{error}");
}

#[test]
fn compacting_keeps_the_live_and_the_previous_generation() {
    let root = tempfile::tempdir().unwrap();
    let first = build(root.path(), 1);
    let second = build(root.path(), 2);
    let copy = root.path().join("gen-0123456789ab");
    std::fs::create_dir(&copy).unwrap();
    std::fs::write(copy.join("l2.vectors"), [0; 1000]).unwrap();
    std::fs::create_dir_all(root.path().join(".staged-1")).unwrap();
    std::fs::create_dir_all(root.path().join("quarantine/gen-ba9876543210")).unwrap();
    let stats = lifecycle::stats(root.path()).unwrap();
    assert_eq!((stats.current.as_ref(), stats.previous.as_ref()), (Some(&second), Some(&first)));
    assert_eq!((stats.generations.len(), stats.templates_of_part.len(), stats.quarantined.len()), (3, 40, 1));
    assert!(stats.generations.iter().any(|g| g.fault.as_ref().is_some_and(|f| f.contains("manifest.json is missing"))));

    let planned = lifecycle::compact(root.path(), false, true).unwrap();
    assert_eq!((planned.bytes, planned.removed.len()), (1000, 2));
    assert!(copy.exists(), "only said");
    assert_eq!(lifecycle::compact(root.path(), false, false).unwrap(), planned);
    assert!(!copy.exists() && root.path().join("quarantine").exists());
    assert_eq!(lifecycle::compact(root.path(), true, false).unwrap().removed, [Path::new("quarantine")]);
    let mut left = names(root.path(), "gen-");
    left.retain(|name| !name.ends_with(".json"));
    left.sort();
    let mut wanted = [first, second];
    wanted.sort();
    assert_eq!(left, wanted);
}

#[test]
fn no_search_fails_or_errs_while_generations_change() {
    let root = tempfile::tempdir().unwrap();
    build(root.path(), 0);
    let live = LiveIndex::open(root.path()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let searching: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    let mut seen = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let color: u64 = color_served(&live.current()).parse().unwrap();
                        assert!(color >= last, "generation {color} after {last}");
                        seen += usize::from(color > last);
                        last = color;
                    }
                    seen
                })
            })
            .collect();
        for seed in 1..=12 {
            build(root.path(), seed);
            assert!(live.refresh().unwrap().is_some());
        }
        stop.store(true, Ordering::Relaxed);
        let seen: usize = searching.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(seen > 0, "no search saw a change");
    });
    assert_eq!(color_served(&live.current()), "12");
}

#[test]
fn empty_nan_and_zero_catalogues_are_refused_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let good = build(root.path(), 1);
    assert!(matches!(builder(2, 0, BuildOptions::default()).build(root.path()), Err(MatchError::NoTemplates)));
    let mut one = builder(2, 1, BuildOptions::default());
    let template = || Template { part_id: "x".to_owned(), color_id: None, view: String::new() };
    for bad in [[f32::NAN; DIM], [0.0; DIM], [f32::INFINITY; DIM]] {
        let error = one.push(template(), &bad).unwrap_err();
        assert!(error.to_string().contains("template 1: its embedding has no direction"), "{error}");
    }
    assert!(one.push(template(), &[1.0; DIM + 1]).is_err());
    assert!(matches!(one.tune_with(&[f32::NAN; DIM]), Err(MatchError::NoDirection { .. })));
    assert_eq!(live(root.path()), good);
    one.build(root.path()).unwrap();
    assert_eq!(PartIndex::open(root.path()).unwrap().part_count(), 1, "one part alone is a catalogue");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However the templates are split between the tiers and the lists, visiting all lists is an exhaustive search, and
    /// a search of both tiers is never worse than the hot tier alone.
    #[test]
    fn tiers_and_lists_lose_nothing(seed in 0_u64..500, parts in 2_usize..90, lists in 0_usize..9, ratio in 0.0_f32..1.0) {
        let root = tempfile::tempdir().unwrap();
        let options = BuildOptions { lists, l1_ratio: ratio, recall_target: 0.5, ..BuildOptions::default() };
        builder(seed, parts, options).build(root.path()).unwrap();
        let index = PartIndex::open(root.path()).unwrap();
        let catalogue = vectors(1, parts);
        let queries = vectors(seed + 7, 5);
        let exact = index.search_exact(&queries).unwrap();
        let found = index.search(&queries, NEVER_ALONE).unwrap();
        for ((query, exact), found) in queries.chunks(DIM).zip(&exact).zip(&found) {
            let similarity = |vector: &[f32]| query.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
            let best = catalogue.chunks(DIM).map(similarity).fold(f32::NEG_INFINITY, f32::max);
            prop_assert!((exact.similarity - best).abs() < 1e-5);
            prop_assert!(found.similarity <= best + 1e-5);
            let hot = index.ids().hot().iter().map(|&row| similarity(&index.vectors()[row as usize * DIM..][..DIM]));
            prop_assert!(found.similarity >= hot.fold(f32::NEG_INFINITY, f32::max) - 1e-5);
        }
    }
}
