//! A second look at mirrored pictures: what an index with mirror images makes of it, and what it asks for.

use std::path::Path;

use loupe::matching::{
    AcceptRule, BuildOptions, Centres, Embedded, Embedding, FitRow, Groups, IndexBuilder, Learning, MatchError,
    Mirrors, PartIndex, Pictures, Seen, Template, fitting,
};
use loupe::types::{Digest, MatchEvidence};

const DIM: usize = 24;
/// Left and right by turns; the last two are their own mirror images.
const PARTS: usize = 22;
const VIEWS: usize = 14;
const NOISE: f32 = 0.9;

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= norm);
    vector
}

/// What this embedder would make of the mirrored picture: the last quarter of the values turns its sign.
fn mirrored(vector: &[f32]) -> Vec<f32> {
    vector.iter().enumerate().map(|(at, value)| if at < DIM * 3 / 4 { *value } else { -value }).collect()
}

fn centre(part: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(part as u64 / 2 + 100);
    let mut left: Vec<f32> = (0..DIM).map(|_| rng.f32() - 0.5).collect();
    if part >= PARTS - 2 {
        left[DIM * 3 / 4..].fill(0.0);
        left.rotate_left(part % 2 * 5);
        left[DIM * 3 / 4..].fill(0.0);
    }
    unit(if part.is_multiple_of(2) || part >= PARTS - 2 { left } else { mirrored(&left) })
}

/// Noisy pictures, `count` a part, and what an embedder that errs on mirrored pictures in its own way makes of them mirrored.
fn pictures(seed: u64, count: usize) -> (Vec<String>, Vec<f32>, Vec<f32>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut parts, mut plain, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..count * PARTS {
        let mut noisy = |centre: Vec<f32>| unit(centre.iter().map(|v| v + NOISE * (rng.f32() - 0.5)).collect());
        plain.extend(noisy(centre(at % PARTS)));
        second.extend(noisy(mirrored(&centre(at % PARTS))));
        parts.push((at % PARTS).to_string());
    }
    (parts, plain, second)
}

fn build(dir: &Path, with_mirrors: bool) -> PartIndex {
    let embedding = Embedding {
        model: "test".to_owned(),
        model_sha256: Digest::of(b"m"),
        input_px: 128,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    };
    let groups = Groups::new((0..PARTS).map(|part| (part.to_string(), format!("pair-{}", part / 2))).collect());
    let (parts, plain, second) = pictures(1, VIEWS);
    let embedded = Embedded { pictures: &plain, mirrored: &second };
    let read = Pictures { parts: &parts, embedded, dim: DIM };
    let mirrors =
        if with_mirrors { Mirrors::of_pictures(read, &groups, &Centres::default()) } else { Mirrors::default() };
    let mut builder =
        IndexBuilder::new(DIM, embedding, BuildOptions::default()).with_groups(groups).with_mirrors(mirrors);
    for (at, (part, vector)) in parts.iter().zip(plain.chunks_exact(DIM)).enumerate() {
        let template = Template { part_id: part.clone(), color_id: None, view: at.to_string() };
        builder.push(template, vector).unwrap();
    }
    builder.build(dir).unwrap();
    PartIndex::open(dir).unwrap()
}

fn fit(dir: &Path, index: &PartIndex) {
    let (parts, plain, second) = pictures(2, 40);
    let answers = index.search_exact(Embedded { pictures: &plain, mirrored: &second }).unwrap();
    let row = |(part, answer): (&String, &MatchEvidence)| {
        let names = answer.top_k.iter().map(|ranked| ranked.part_id.clone());
        let candidates = names.zip(index.scored(&answer.top_k, &Seen::default())).collect();
        FitRow { part_id: part.clone(), candidates }
    };
    let rows: Vec<FitRow> = parts.iter().zip(&answers).map(row).collect();
    let fit = fitting::fit(index.generation_sha256(), &rows, 0.05, 0.01).unwrap();
    fit.store(dir, &index.generation_name()).unwrap();
}

fn format_of(index: &PartIndex) -> u32 {
    index.manifest().format
}

#[test]
fn a_second_look_names_more_parts_and_left_from_right() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path(), true);
    assert_eq!((index.mirrors().len(), index.mirrors().other_count()), (PARTS, PARTS - 2));
    assert_eq!(index.mirrors().of("4"), Some("5"));
    assert!(!index.wants_mirrored(), "nothing weighs it yet");
    fit(dir.path(), &index);
    let index = PartIndex::open(dir.path()).unwrap();
    assert!(index.wants_mirrored() && format_of(&index) == 3);

    let (parts, plain, second) = pictures(3, 20);
    let rule = AcceptRule { accept_similarity: 0.8, accept_margin: 0.1 };
    let both = Embedded { pictures: &plain, mirrored: &second };
    assert!(index.search_with(both, rule, Learning::default()).is_ok());
    let once = index.search_with(&plain, rule, Learning::default()).unwrap_err();
    assert!(matches!(once, MatchError::Mirrored { mirrored: 0, .. }), "{once}");
    assert!(index.search_views(&plain[..DIM], rule, Learning::default()).is_err());
    let right = |embedded: Embedded<'_>| {
        let answers = index.search_exact(embedded).unwrap();
        let fused = answers.into_iter().map(|answer| index.fuse(answer, &Seen::default()));
        fused.zip(&parts).filter(|(answer, part)| answer.part_id == **part).count()
    };
    let (once, twice) = (right(Embedded::from(&plain)), right(Embedded { pictures: &plain, mirrored: &second }));
    assert!(twice > once + parts.len() / 20, "{once} and {twice} of {}", parts.len());
}

#[test]
fn several_views_are_looked_at_twice_too_and_other_counts_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path(), true);
    let (_, plain, second) = pictures(4, 1);
    let (one, flipped) = (&plain[..DIM], &second[..DIM]);
    let once = index.search_exact(Embedded { pictures: one, mirrored: flipped }).unwrap().remove(0);
    let views = Embedded { pictures: &[one, one].concat(), mirrored: &[flipped, flipped].concat() };
    let twice = index.search_views_exact(views).unwrap().evidence;
    let known = |evidence: &MatchEvidence| -> Vec<(String, f32)> {
        evidence.top_k.iter().map(|ranked| (ranked.part_id.clone(), ranked.likeness.unwrap())).collect()
    };
    for ((part, likeness), (same, mean)) in known(&once).into_iter().zip(known(&twice)) {
        assert!(part == same && (likeness - mean).abs() < 1e-5, "{part} {likeness}, {same} {mean}");
    }
    let alone = index.search_exact(one).unwrap().remove(0);
    assert_ne!(known(&once), known(&alone), "the second look counts");
    let error = index.search_exact(Embedded { pictures: &plain, mirrored: flipped }).unwrap_err();
    assert!(matches!(error, MatchError::Mirrored { pictures: PARTS, mirrored: 1 }), "{error}");
}

#[test]
fn an_index_without_mirror_images_asks_for_nothing_and_older_versions_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path(), false);
    fit(dir.path(), &index);
    let index = PartIndex::open(dir.path()).unwrap();
    assert!(!index.wants_mirrored() && index.mirrors().is_empty() && format_of(&index) == 2);
    let (_, plain, second) = pictures(5, 1);
    let ignored = index.search_exact(Embedded { pictures: &plain, mirrored: &second }).unwrap();
    assert_eq!(ignored, index.search_exact(&plain).unwrap());
}
