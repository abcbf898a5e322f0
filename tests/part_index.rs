//! The two-tier part index through its public face: agreement with brute force, damage, fallback.

use std::path::Path;

use loupe::matching::{
    AcceptRule, BuildOptions, CANDIDATES, Delta, Embedding, Groups, IndexBuilder, Learning, MatchError, PartIndex,
    Template, learned_view, verify,
};
use loupe::types::{BoundingBox, Digest, InspectionId, LearnedTemplate, Tier};
use proptest::prelude::*;

const STRICT: AcceptRule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: 0.0 };
const USUAL: AcceptRule = AcceptRule { accept_similarity: 0.8, accept_margin: 0.1 };

/// `parts` × `views` templates around one random centre a part, all of length 1.
struct Catalogue {
    dim: usize,
    parts: Vec<String>,
    vectors: Vec<f32>,
}

fn unit(vector: &mut [f32]) {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= norm);
}

fn catalogue(seed: u64, parts: usize, views: usize, dim: usize) -> Catalogue {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut made = Catalogue { dim, parts: Vec::new(), vectors: Vec::new() };
    for part in 0..parts {
        let centre: Vec<f32> = (0..dim).map(|_| rng.f32() - 0.5).collect();
        for _ in 0..views {
            let mut vector: Vec<f32> = centre.iter().map(|c| c + 0.7 * (rng.f32() - 0.5)).collect();
            unit(&mut vector);
            made.parts.push(format!("part-{part}"));
            made.vectors.extend(vector);
        }
    }
    made
}

impl Catalogue {
    fn builder(&self, options: BuildOptions) -> IndexBuilder {
        let model_sha256 = Digest::of(b"model");
        let embedding = Embedding {
            model: "test".to_owned(),
            model_sha256,
            input_px: 160,
            crop_margin_ratio: 0.05,
            input_sha256: None,
        };
        let mut builder = IndexBuilder::new(self.dim, embedding, options);
        for (view, (part, vector)) in self.parts.iter().zip(self.vectors.chunks(self.dim)).enumerate() {
            let color_id = Some("71".to_owned());
            builder.push(Template { part_id: part.clone(), color_id, view: view.to_string() }, vector).unwrap();
        }
        builder
    }

    fn build(&self, root: &Path) -> PartIndex {
        self.builder(BuildOptions::default()).build(root).unwrap();
        PartIndex::open(root).unwrap()
    }

    /// Templates with noise added, and normalised.
    fn queries(&self, seed: u64, count: usize, noise: f32) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let scale = noise / (self.dim as f32 / 12.0).sqrt();
        let mut queries = Vec::new();
        for _ in 0..count {
            let at = rng.usize(..self.parts.len()) * self.dim;
            let template = &self.vectors[at..at + self.dim];
            let mut query: Vec<f32> = template.iter().map(|v| v + scale * (rng.f32() - 0.5)).collect();
            unit(&mut query);
            queries.extend(query);
        }
        queries
    }

    /// Best similarity of each part, best first, by plain sums.
    fn brute_force(&self, query: &[f32]) -> Vec<(&str, f32)> {
        let mut best = std::collections::BTreeMap::new();
        for (part, vector) in self.parts.iter().zip(self.vectors.chunks(self.dim)) {
            let similarity: f32 = query.iter().zip(vector).map(|(a, b)| a * b).sum();
            let kept = best.entry(part.as_str()).or_insert(f32::NEG_INFINITY);
            *kept = kept.max(similarity);
        }
        let mut ranked: Vec<_> = best.into_iter().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked
    }
}

/// Change one byte in the middle of a file.
fn flip_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn live(root: &Path) -> String {
    std::fs::read_to_string(root.join("CURRENT")).unwrap().trim().to_owned()
}

#[test]
fn two_stages_agree_with_an_exhaustive_search_on_clusters() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(1, 300, 12, 96);
    let index = catalogue.build(root.path());
    assert_eq!((index.part_count(), index.template_count(), index.dim()), (300, 3600, 96));
    assert_eq!(index.manifest().l2.kind, "ivf_flat");
    let queries = catalogue.queries(2, 600, 0.8);
    for rule in [USUAL, STRICT] {
        let found = index.search(&queries, rule).unwrap();
        let pairs = found.iter().zip(queries.chunks(96));
        let agreed = pairs.filter(|(found, query)| found.part_id == catalogue.brute_force(query)[0].0).count();
        assert!(agreed * 1000 >= 600 * 995, "{agreed} of 600 with {rule:?}");
    }
}

#[test]
fn the_hot_tier_answers_alone_only_when_sure() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(3, 60, 12, 96);
    let index = catalogue.build(root.path());
    let queries = catalogue.queries(4, 200, 0.5);
    let found = index.search(&queries, USUAL).unwrap();
    let alone = found.iter().filter(|e| !e.entered_stage2).count();
    assert!(alone > 0 && alone < 200, "both ways are taken: {alone} of 200 alone");
    for evidence in &found {
        if !evidence.entered_stage2 {
            assert!(evidence.similarity >= 0.8 && evidence.margin >= 0.1 && evidence.tier == Tier::L1);
            assert_eq!(evidence.stage2_ms, 0.0);
        }
        assert_eq!(evidence.top_k.len(), CANDIDATES);
        assert_ne!(evidence.second_part_id.as_ref(), Some(&evidence.part_id), "the margin is to another part");
        assert!((evidence.margin - (evidence.similarity - evidence.second_similarity.unwrap())).abs() < 1e-6);
    }
    let strict = index.search(&queries, STRICT).unwrap();
    assert!(strict.iter().all(|e| e.entered_stage2));
    assert!(strict.iter().any(|e| e.tier == Tier::L2), "some best templates are cold");
}

#[test]
fn a_part_that_owns_hundreds_of_near_templates_does_not_hide_the_second() {
    let root = tempfile::tempdir().unwrap();
    let mut catalogue = catalogue(5, 1, 700, 32);
    let other: Vec<f32> = catalogue.vectors[..32].iter().map(|v| -v).collect();
    catalogue.parts.push("other".to_owned());
    catalogue.vectors.extend(other);
    catalogue.builder(BuildOptions { l1_ratio: 0.0, ..BuildOptions::default() }).build(root.path()).unwrap();
    let index = PartIndex::open(root.path()).unwrap();
    let found = index.search_exact(&catalogue.vectors[..32]).unwrap();
    assert_eq!((found[0].part_id.as_str(), found[0].second_part_id.as_deref()), ("part-0", Some("other")));
    assert!((found[0].similarity - 1.0).abs() < 1e-5);
}

#[test]
fn one_part_alone_has_the_widest_margin_and_no_second() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(6, 1, 3, 8);
    let found = catalogue.build(root.path()).search(&catalogue.vectors[..8], USUAL).unwrap();
    assert_eq!((found[0].margin, found[0].second_part_id.clone()), (2.0, None));
}

#[test]
fn an_l1_that_misses_parts_never_answers_alone() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(7, 40, 4, 32);
    let options = BuildOptions { l1_bytes_max: 10 * 32 * 4, ..BuildOptions::default() };
    let built = catalogue.builder(options).build(root.path()).unwrap();
    assert_eq!((built.manifest.l1.count, built.manifest.l1.bytes), (10, 1280), "within the byte budget");
    let index = PartIndex::open(root.path()).unwrap();
    let loose = AcceptRule { accept_similarity: -1.0, accept_margin: 0.0 };
    assert!(index.search(&catalogue.vectors, loose).unwrap().iter().all(|e| e.entered_stage2));
}

#[test]
fn a_flipped_byte_in_l2_is_quarantined_and_the_previous_generation_serves() {
    let root = tempfile::tempdir().unwrap();
    catalogue(8, 20, 4, 32).build(root.path());
    let good = live(root.path());
    catalogue(9, 30, 4, 32).build(root.path());
    let bad = live(root.path());
    assert_ne!(good, bad);
    flip_byte(&root.path().join(&bad).join("l2.vectors"));
    assert!(verify(root.path()).faults[0].contains("l2.vectors has sha256"), "verify says so and changes nothing");
    assert_eq!(live(root.path()), bad);

    let index = PartIndex::open(root.path()).unwrap();
    assert_eq!(index.part_count(), 20);
    let quarantined = index.quarantined().unwrap();
    assert_eq!(quarantined.name, bad);
    assert!(quarantined.fault.contains("l2.vectors has sha256"), "{}", quarantined.fault);
    assert_eq!(live(root.path()), good);
    assert!(!root.path().join(&bad).exists());
    let reason = std::fs::read_to_string(root.path().join(format!("quarantine/{bad}.reason.txt"))).unwrap();
    assert!(reason.contains("l2.vectors has sha256"), "{reason}");
    assert!(PartIndex::open(root.path()).unwrap().quarantined().is_none(), "the second opening is clean");
    assert_eq!(verify(root.path()).faults, [""; 0]);
}

#[test]
fn damage_without_a_previous_generation_is_a_clear_error() {
    for (file, wanted) in [
        ("l2.vectors", "l2.vectors has sha256"),
        ("l2.lists", "l2.lists has sha256"),
        ("l1.vectors", "l1.vectors has sha256"),
        ("ids.bin", "ids.bin has sha256"),
        ("manifest.json", "manifest.json was changed"),
    ] {
        let root = tempfile::tempdir().unwrap();
        catalogue(10, 20, 4, 32).build(root.path());
        flip_byte(&root.path().join(live(root.path())).join(file));
        let error = PartIndex::open(root.path()).unwrap_err();
        assert!(matches!(error, MatchError::NothingToServe { .. }));
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(error.to_string().contains("loupe index build"), "{error}");
    }
}

#[test]
fn a_truncated_and_a_missing_file_are_both_named() {
    let root = tempfile::tempdir().unwrap();
    catalogue(11, 20, 4, 32).build(root.path());
    let dir = root.path().join(live(root.path()));
    std::fs::write(dir.join("l2.vectors"), b"").unwrap();
    std::fs::remove_file(dir.join("ids.bin")).unwrap();
    let faults = verify(root.path()).faults;
    assert_eq!(faults.len(), 2, "all at once: {faults:?}");
    assert!(faults[0].contains("l2.vectors has 0 bytes") && faults[1].contains("ids.bin is missing"), "{faults:?}");
}

/// Rewrites the manifest of the live generation and everything that names it, as a wrong build would.
fn forge_manifest(root: &Path, change: impl Fn(&str) -> String) {
    let dir = root.join(live(root));
    let text = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    let forged = change(&text);
    assert_ne!(text, forged);
    std::fs::write(dir.join("manifest.json"), &forged).unwrap();
    let name = format!("gen-{}", Digest::of(forged.as_bytes()).short());
    std::fs::rename(dir, root.join(&name)).unwrap();
    std::fs::write(root.join("CURRENT"), name).unwrap();
}

#[test]
fn an_l2_of_another_dimension_or_count_is_refused_with_both_numbers() {
    for (from, to, wanted) in [
        ("\"dim\": 32", "\"dim\": 48", "l2.lists has dimension 32, the manifest says 48"),
        (
            "\"template_count\": 80",
            "\"template_count\": 81",
            "81 templates in the manifest, but 80 vectors in l2.vectors",
        ),
        ("\"format\": 2", "\"format\": 9", "format 9"),
    ] {
        let root = tempfile::tempdir().unwrap();
        catalogue(12, 20, 4, 32).build(root.path());
        forge_manifest(root.path(), |text| text.replace(from, to));
        let error = PartIndex::open(root.path()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn ids_that_do_not_count_up_to_the_vectors_are_refused() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    catalogue(13, 20, 4, 32).build(root.path());
    catalogue(13, 20, 3, 32).build(other.path());
    let path = root.path().join(live(root.path())).join("ids.bin");
    let old = std::fs::read(&path).unwrap();
    let short = std::fs::read(other.path().join(live(other.path())).join("ids.bin")).unwrap();
    std::fs::write(&path, &short).unwrap();
    let (was, is) = (Digest::of(&old).to_string(), Digest::of(&short).to_string());
    let (was_bytes, is_bytes) = (format!("\"bytes\": {}", old.len()), format!("\"bytes\": {}", short.len()));
    forge_manifest(root.path(), |text| text.replace(&was, &is).replace(&was_bytes, &is_bytes));
    let error = PartIndex::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("60 rows in ids.bin, but 80 vectors in l2.vectors"), "{error}");
}

#[test]
fn another_model_is_refused_with_both_numbers() {
    let root = tempfile::tempdir().unwrap();
    let index = catalogue(14, 5, 2, 32).build(root.path());
    assert!(index.require_model(32, Digest::of(b"model"), None).is_ok());
    let error = index.require_model(1280, Digest::of(b"model"), None).unwrap_err().to_string();
    assert!(error.contains("32-value") && error.contains("1280"), "{error}");
    let error = index.require_model(32, Digest::of(b"other"), None).unwrap_err().to_string();
    assert!(error.contains(&Digest::of(b"other").to_string()), "{error}");
    assert!(matches!(index.search(&[0.1; 33], USUAL), Err(MatchError::Shape { values: 33, dim: 32 })));
    assert!(matches!(index.search(&[0.0; 32], USUAL), Err(MatchError::NoDirection { .. })));
    assert!(matches!(index.search(&[f32::NAN; 32], USUAL), Err(MatchError::NoDirection { .. })));
    assert!(index.search(&[], USUAL).unwrap().is_empty());
}

#[test]
fn a_missing_index_and_a_forged_current_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let error = PartIndex::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("loupe index build"), "{error}");
    std::fs::write(root.path().join("CURRENT"), "../../etc").unwrap();
    assert!(matches!(PartIndex::open(root.path()), Err(MatchError::BadName { .. })));
    assert_eq!(verify(root.path()).faults.len(), 1);
}

#[test]
fn building_the_same_again_gives_the_same_generation_and_two_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for seed in [15, 16, 17, 17] {
        catalogue(seed, 20, 4, 32).build(root.path());
        names.push(live(root.path()));
    }
    assert_eq!(names[2], names[3]);
    let previous = std::fs::read_to_string(root.path().join("PREVIOUS")).unwrap();
    assert_eq!(previous.trim(), names[1], "building the same again does not forget the previous one");
    let entries = std::fs::read_dir(root.path()).unwrap();
    let mut left: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("gen-") && !name.ends_with(".verified.json") || name.starts_with(".staged"))
        .collect();
    let mut wanted = vec![names[1].clone(), names[2].clone()];
    left.sort();
    wanted.sort();
    assert_eq!(left, wanted);
}

fn learned_template(id: u64, part: &str, vector: &[f32]) -> LearnedTemplate {
    LearnedTemplate {
        id,
        review_id: uuid::Uuid::from_u128(u128::from(id)),
        index: "test".to_owned(),
        part_id: part.to_owned(),
        color_id: None,
        model_sha256: Digest::of(b"model"),
        input_px: 160,
        crop_margin_ratio: 0.05,
        // As the model gives it: of any length.
        vector: vector.iter().map(|value| value * 3.0).collect(),
        inspection_id: InspectionId(uuid::Uuid::nil()),
        ordinal: 0,
        frame_sha256: Digest::of(b"frame"),
        artifact: String::new(),
        crop: BoundingBox::new(0.0, 0.0, 1.0, 1.0),
    }
}

#[test]
fn a_delta_of_another_model_is_not_searched() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(20, 6, 3, 16);
    let index = catalogue.build(root.path());
    let query = &catalogue.vectors[..16];
    let template = learned_template(1, "new", query);
    let other = Embedding { model_sha256: Digest::of(b"other"), ..index.manifest().embedding.clone() };
    let foreign = Delta::new(&[LearnedTemplate { model_sha256: other.model_sha256, ..template.clone() }], &other, 16);
    assert_eq!(foreign.len(), 1);
    let search = |delta: &Delta| {
        index.search_with(query, STRICT, Learning { delta: Some(delta), group_margin: 0.0 }).unwrap().remove(0)
    };
    let mut plain = index.search(query, STRICT).unwrap().remove(0);
    let mut found = search(&foreign);
    (plain.stage1_ms, plain.stage2_ms, found.stage1_ms, found.stage2_ms) = (0.0, 0.0, 0.0, 0.0);
    assert_eq!(found, plain);
    let fitting = search(&Delta::new(&[template], &index.manifest().embedding, 16));
    assert!(fitting.margin < 1e-5 && fitting.delta_sha256.is_some(), "part-0 and its twin `new`: {fitting:?}");
}

#[test]
fn a_template_taken_in_by_a_build_is_searched_once_and_groups_widen_stage_1() {
    let root = tempfile::tempdir().unwrap();
    let catalogue = catalogue(21, 6, 3, 16);
    let query = &catalogue.vectors[..16];
    let template = learned_template(7, "new", query);
    let groups = [("part-0", "g"), ("new", "g")].map(|(part, group)| (part.to_owned(), group.to_owned()));
    let mut builder = catalogue.builder(BuildOptions::default()).with_groups(Groups::new(groups.into()));
    let view = learned_view(template.review_id);
    builder.push(Template { part_id: "new".to_owned(), color_id: None, view }, query).unwrap();
    builder.build(root.path()).unwrap();
    assert_eq!(verify(root.path()).faults, [""; 0]);
    let index = PartIndex::open(root.path()).unwrap();
    let delta = Delta::new(&[template], &index.manifest().embedding, 16);
    let loose = AcceptRule { accept_similarity: 0.5, accept_margin: 0.0 };
    let search = |group_margin: f32| {
        index.search_with(query, loose, Learning { delta: Some(&delta), group_margin }).unwrap().remove(0)
    };
    let (alone, asked) = (search(0.0), search(2.0));
    assert!(alone.shares_group && asked.shares_group);
    assert_ne!(alone.tier, Tier::Delta);
    assert!(asked.entered_stage2 && !alone.entered_stage2, "inside a group the hot tier needs the larger margin");

    flip_byte(&root.path().join(live(root.path())).join("groups.csv"));
    assert!(verify(root.path()).faults[0].contains("groups.csv has sha256"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// L1, L2 and the delta merged answer as an exhaustive search over all their templates, in whatever order the
    /// learned ones come; a template that the generation took in is not searched a second time.
    #[test]
    fn merging_the_delta_is_an_exhaustive_search_over_the_union(
        seed in 0_u64..1000, parts in 2_usize..10, views in 1_usize..6, dim in 2_usize..40, l1_ratio in 0.0_f32..1.0,
        learned_share in 0_usize..4,
    ) {
        let root = tempfile::tempdir().unwrap();
        let all = catalogue(seed, parts, views + 1, dim);
        // One template is always built in; of the others, some are learned later.
        let mut rng = fastrand::Rng::with_seed(seed);
        let is_learned: Vec<bool> = (0..all.parts.len()).map(|at| at > 0 && rng.usize(..4) < learned_share).collect();
        let mut built = Catalogue { dim, parts: Vec::new(), vectors: Vec::new() };
        let mut learned = Vec::new();
        for (at, vector) in all.vectors.chunks(dim).enumerate() {
            if is_learned[at] {
                learned.push(learned_template(at as u64 + 1, &all.parts[at], vector));
            } else {
                built.parts.push(all.parts[at].clone());
                built.vectors.extend(vector);
            }
        }
        rng.shuffle(&mut learned);
        built.builder(BuildOptions { l1_ratio, ..BuildOptions::default() }).build(root.path()).unwrap();
        let index = PartIndex::open(root.path()).unwrap();
        let delta = Delta::new(&learned, &index.manifest().embedding, dim);
        let queries = all.queries(seed + 1, 9, 1.0);
        let learning = Learning { delta: Some(&delta), group_margin: 0.0 };
        let found = index.search_with(&queries, STRICT, learning).unwrap();
        for (evidence, query) in found.iter().zip(queries.chunks(dim)) {
            let wanted = all.brute_force(query);
            prop_assert!((evidence.similarity - wanted[0].1).abs() < 1e-4, "{} for {}", evidence.similarity, wanted[0].1);
            let margin = wanted.get(1).map_or(2.0, |second| wanted[0].1 - second.1);
            prop_assert!((evidence.margin - margin).abs() < 2e-4, "margin {} for {margin}", evidence.margin);
            prop_assert_eq!(evidence.tier == Tier::Delta, evidence.template >= index.template_count() as u64);
            prop_assert_eq!(evidence.delta_sha256, delta.sha256());
        }
        // Whatever the rule lets stage 1 answer alone names no better part than there is.
        let usual = index.search_with(&queries, USUAL, learning).unwrap();
        for (evidence, query) in usual.iter().zip(queries.chunks(dim)) {
            prop_assert!(evidence.similarity <= all.brute_force(query)[0].1 + 1e-4);
        }
    }

    /// With every query sent through both stages of a small (flat) index, the answer is that of brute force.
    #[test]
    fn search_is_brute_force(seed in 0_u64..1000, parts in 1_usize..12, views in 1_usize..6, dim in 1_usize..40) {
        let root = tempfile::tempdir().unwrap();
        let catalogue = catalogue(seed, parts, views, dim);
        let index = catalogue.build(root.path());
        let queries = catalogue.queries(seed + 1, 9, 1.0);
        for (evidence, query) in index.search(&queries, STRICT).unwrap().iter().zip(queries.chunks(dim)) {
            let wanted = catalogue.brute_force(query);
            prop_assert_eq!(evidence.top_k.len(), wanted.len().min(CANDIDATES));
            for (got, (_, similarity)) in evidence.top_k.iter().zip(&wanted) {
                prop_assert!((got.similarity - similarity).abs() < 1e-4);
            }
            let margin = wanted.get(1).map_or(2.0, |second| wanted[0].1 - second.1);
            prop_assert!((evidence.margin - margin).abs() < 1e-4);
        }
    }
}
