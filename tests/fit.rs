//! The fit of an index through its public face: learned, stored, found again, and what it does to a match.

use std::collections::BTreeMap;
use std::path::Path;

use loupe::matching::{
    AcceptRule, BuildOptions, Centres, Delta, Embedding, Fit, FitRow, Groups, IndexBuilder, Learning, PartIndex, Seen,
    Shape, ShapesBuilder, Sizes, Template, fitting, learned_view, lifecycle, turned_views, verify,
};
use loupe::types::{BoundingBox, Digest, Foreshortening, Image, InspectionId, LearnedTemplate, MatchEvidence, SizeMm};
use safetensors::tensor::{Dtype, TensorView};

const DIM: usize = 16;
const EVERYTHING: AcceptRule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: f32::INFINITY };

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= norm);
    vector
}

/// Pairs of parts that look nearly alike and differ in length: `2k` is 20 mm long, `2k + 1` 40 mm.
fn centre(part: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(part as u64 / 2);
    let mut vector: Vec<f32> = (0..DIM).map(|_| rng.f32() - 0.5).collect();
    vector[0] += if part.is_multiple_of(2) { 0.04 } else { -0.04 };
    unit(vector)
}

fn seen(size_mm: Option<SizeMm>) -> Seen {
    Seen { size_mm, ..Seen::default() }
}

fn embedding() -> Embedding {
    Embedding {
        model: "test".to_owned(),
        model_sha256: Digest::of(b"m"),
        input_px: 128,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    }
}

fn build(dir: &Path, parts: usize) {
    let groups = (0..parts).map(|part| (part.to_string(), format!("pair-{}", part / 2))).collect();
    let length = |part: usize| if part.is_multiple_of(2) { 20.0 } else { 40.0 };
    let sizes: BTreeMap<String, [f32; 3]> = (0..parts).map(|p| (p.to_string(), [length(p), 8.0, 8.0])).collect();
    let mut builder = IndexBuilder::new(DIM, embedding(), BuildOptions::default())
        .with_groups(Groups::new(groups))
        .with_sizes(Sizes::new(sizes).unwrap());
    for part in 0..parts {
        builder
            .push(Template { part_id: part.to_string(), color_id: None, view: "0".to_owned() }, &centre(part))
            .unwrap();
    }
    builder.build(dir).unwrap();
}

/// Noisy views of the parts in turn, with the size of the box from straight above.
fn views(seed: u64, parts: usize, count: usize) -> (Vec<f32>, Vec<(String, SizeMm)>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut vectors, mut truth) = (Vec::new(), Vec::new());
    for at in 0..count {
        let part = at % parts;
        vectors.extend(unit(centre(part).iter().map(|v| v + 0.12 * (rng.f32() - 0.5)).collect()));
        let long = if part.is_multiple_of(2) { 20.0 } else { 40.0 };
        truth.push((part.to_string(), SizeMm { long, short: 8.2 }));
    }
    (vectors, truth)
}

fn fitted(dir: &Path, with_size: bool) -> Fit {
    let index = PartIndex::open(dir).unwrap();
    let (vectors, truth) = views(1, 20, 600);
    let answers = index.search_exact(&vectors).unwrap();
    let rows: Vec<FitRow> = answers
        .iter()
        .zip(&truth)
        .map(|(answer, (part_id, size))| {
            let scored = index.scored(&answer.top_k, &seen(with_size.then_some(*size)));
            let names = answer.top_k.iter().map(|ranked| ranked.part_id.clone());
            FitRow { part_id: part_id.clone(), candidates: names.zip(scored).collect() }
        })
        .collect();
    let fit = fitting::fit(index.generation_sha256(), &rows, 0.0, 0.01).unwrap();
    fit.store(dir, &index.generation_name()).unwrap();
    fit
}

#[test]
fn true_size_names_the_part_that_looks_alone_leave_open() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 20);
    let fit = fitted(dir.path(), true);
    assert!(fit.sized.as_ref().unwrap().accepted_ratio > fit.plain.accepted_ratio + 0.2, "{fit:?}");
    let told = lifecycle::stats(dir.path()).unwrap().fit.unwrap();
    let sized = fit.sized.as_ref().map(|scorer| scorer.accepted_ratio);
    assert_eq!(
        (told.rows, told.accepted_ratio, told.sized_accepted_ratio),
        (fit.rows, fit.plain.accepted_ratio, sized)
    );
    let index = PartIndex::open(dir.path()).unwrap();
    let (vectors, truth) = views(2, 20, 200);
    let answers = index.search_exact(&vectors).unwrap();
    let right = |sized: bool| {
        let fused =
            answers.iter().zip(&truth).map(|(e, (_, size))| index.fuse(e.clone(), &seen(sized.then_some(*size))));
        fused.zip(&truth).filter(|(e, (part, _))| e.part_id == *part).count()
    };
    assert!(right(true) > 190 && right(false) < 180, "{} and {} of 200", right(true), right(false));
    let (one, size) = (answers[0].clone(), truth[0].1);
    let fused = index.fuse(one, &seen(Some(size)));
    assert!(fused.top_k.len() <= 5 && fused.probability == fused.top_k[0].probability);
    assert!(fused.required_probability.is_some() && fused.top_k[0].size_log.is_some());
    assert!(fused.shares_group && fused.margin >= 0.0);
}

#[test]
fn how_much_a_picture_shows_decides_which_size_fits() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 20);
    fitted(dir.path(), true);
    let index = PartIndex::open(dir.path()).unwrap();
    let (vectors, _) = views(4, 20, 1);
    let answer = index.search_exact(&vectors).unwrap().remove(0);
    // 20 mm are seen: all of the short part, or half of the long one, as the embedder says.
    let size_mm = Some(SizeMm { long: 20.0, short: 8.2 });
    let named = |diagonal_mm: f32| {
        let e = (20.0 / diagonal_mm).ln();
        let logit = |bin: u8| if (f32::from(bin) * 0.05 - 1.6 - e).abs() < 0.03 { 9.0 } else { 0.0 };
        let foreshortening = Foreshortening::of_logits([-1.6, 0.15], &(0..36).map(logit).collect::<Vec<f32>>());
        assert!(foreshortening.is_some());
        index.fuse(answer.clone(), &Seen { size_mm, foreshortening, shape: None }).part_id
    };
    let diagonal = |length: f32| (length * length + 2.0 * 64.0).sqrt();
    assert_eq!((named(diagonal(20.0)), named(diagonal(40.0))), ("0".to_owned(), "1".to_owned()));
}

#[test]
fn without_a_fit_nothing_has_a_probability_and_the_order_stays() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 20);
    let index = PartIndex::open(dir.path()).unwrap();
    let (vectors, truth) = views(3, 20, 20);
    for (answer, (_, size)) in index.search_exact(&vectors).unwrap().into_iter().zip(truth) {
        let fused = index.fuse(answer.clone(), &seen(Some(size)));
        assert_eq!((fused.part_id, fused.probability), (answer.part_id, None));
    }
}

#[test]
fn a_new_generation_has_no_fit_until_it_is_fitted_and_a_broken_fit_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 20);
    fitted(dir.path(), false);
    let index = PartIndex::open(dir.path()).unwrap();
    assert!(index.fit().is_some() && index.fit_sha256().is_some());
    build(dir.path(), 18);
    assert!(PartIndex::open(dir.path()).unwrap().fit().is_none());
    fitted(dir.path(), false);
    let name = PartIndex::open(dir.path()).unwrap().generation_name();
    let path = Fit::path(dir.path(), &name);
    std::fs::write(&path, "{").unwrap();
    let error = PartIndex::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("{name}.json")) && error.contains("loupe index fit"), "{error}");
}

/// A wing: a slope that rises to the right, or to the left, in a box that fills the picture.
fn wing(rises_right: bool, height_px: u32, part: u8, ground: u8) -> Image {
    let level = |x: u32, y: u32| {
        let x = if rises_right { x } else { 59 - x };
        if y * 60 >= (60 - x) * height_px * 2 / 3 { part } else { ground }
    };
    let bgr = (0..60 * height_px).flat_map(|at| [level(at % 60, at / 60); 3]).collect();
    Image::from_bgr(60, height_px, bgr).unwrap()
}

#[test]
fn parts_that_embed_alike_are_told_apart_by_their_shape() {
    let dir = tempfile::tempdir().unwrap();
    let groups = ["left", "right"].map(|part| (part.to_owned(), "wing".to_owned()));
    let mut shapes = ShapesBuilder::default();
    shapes.push("left", turned_views(&wing(false, 60, 200, 20)));
    shapes.push("right", turned_views(&wing(true, 60, 200, 20)));
    let mut builder = IndexBuilder::new(DIM, embedding(), BuildOptions::default())
        .with_groups(Groups::new(groups.into()))
        .with_shapes(shapes);
    for part in ["left", "right"] {
        let template = Template { part_id: part.to_owned(), color_id: None, view: "0".to_owned() };
        builder.push(template, &centre(0)).unwrap();
    }
    builder.build(dir.path()).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut item = |is_right: bool| {
        let image = wing(is_right, rng.u32(40..60), rng.u8(150..255), rng.u8(0..100));
        let shape = Some(Shape::of(&image, &BoundingBox::whole(60, image.height_px()), false));
        let vector: Vec<f32> = centre(0).iter().map(|v| v + (rng.f32() - 0.5) * 0.1).collect();
        (vector, Seen { shape, ..Seen::default() }, if is_right { "right" } else { "left" })
    };
    let items: Vec<_> = (0..120).map(|at| item(at % 3 == 0)).collect();
    let index = PartIndex::open(dir.path()).unwrap();
    let answer = |vector: &[f32]| index.search_exact(vector).unwrap().remove(0);
    // Looks are weighed apart where the shape is known, and nowhere else.
    let mut ranked = answer(&items[0].0).top_k;
    ranked[0].likeness = ranked[1].likeness.map(|likeness| likeness + 0.1);
    ranked[0].centre = ranked[1].centre.map(|centre| centre + 0.3);
    let pairs = |seen: &Seen| index.scored(&ranked, seen).iter().map(|scored| scored.apart).collect::<Vec<_>>();
    let apart = pairs(&items[0].1);
    let by_looks: Vec<[f32; 2]> = apart.iter().map(|one| one.map(|one| [one.likeness, one.centre]).unwrap()).collect();
    for (one, sign) in by_looks.iter().zip([1.0, -1.0]) {
        assert!((one[0] - sign * 0.05).abs() < 1e-6 && (one[1] - sign * 0.15).abs() < 1e-6, "{apart:?}");
    }
    assert_eq!(pairs(&Seen::default()), [None, None]);
    let rows: Vec<FitRow> = items[..60]
        .iter()
        .map(|(vector, seen, part)| {
            let answer = answer(vector);
            assert!(index.wants_shape(&answer.top_k));
            let names = answer.top_k.iter().map(|ranked| ranked.part_id.clone());
            FitRow { part_id: (*part).to_owned(), candidates: names.zip(index.scored(&answer.top_k, seen)).collect() }
        })
        .collect();
    let fit = fitting::fit(index.generation_sha256(), &rows, 0.05, 0.01).unwrap();
    assert!(fit.plain.weights.shape > 1.0, "{:?}", fit.plain.weights);
    fit.store(dir.path(), &index.generation_name()).unwrap();
    let index = PartIndex::open(dir.path()).unwrap();
    let right = |with_shape: bool| {
        let named = items[60..].iter().filter(|(vector, seen, part)| {
            let seen = Seen { shape: seen.shape.clone().filter(|_| with_shape), ..Seen::default() };
            let fused = index.fuse(answer(vector), &seen);
            assert_eq!(fused.top_k.iter().all(|ranked| ranked.shape.is_some()), with_shape);
            fused.part_id == *part
        });
        named.count()
    };
    assert!(right(true) == 60 && right(false) < 50, "{} and {} of 60", right(true), right(false));
}

/// Two parts of three templates each.
fn builder_of_three() -> IndexBuilder {
    let mut builder = IndexBuilder::new(2, embedding(), BuildOptions::default());
    for (part, vector) in [
        ("near", [1.0, 0.0]),
        ("far", [0.0, 1.0]),
        ("near", [0.8, 0.6]),
        ("far", [-0.6, 0.8]),
        ("near", [0.6, -0.8]),
        ("far", [-1.0, 0.0]),
    ] {
        let template = Template { part_id: part.to_owned(), color_id: None, view: String::new() };
        builder.push(template, &vector).unwrap();
    }
    builder
}

#[test]
fn with_a_fit_all_templates_of_a_part_count_and_learned_ones_with_them() {
    let dir = tempfile::tempdir().unwrap();
    builder_of_three().build(dir.path()).unwrap();
    let index = PartIndex::open(dir.path()).unwrap();
    let query = [1.0, 0.0];
    let of = |answer: &MatchEvidence, part: &str| {
        answer.top_k.iter().find(|ranked| ranked.part_id == part).and_then(|ranked| ranked.likeness)
    };
    let mean = |cosines: &[f32]| {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let count = cosines.len() as f32;
        (cosines.iter().map(|cosine| (8.0 * cosine).exp()).sum::<f32>() / count).ln() / 8.0
    };
    let centre_of = |answer: &MatchEvidence, part: &str| {
        answer.top_k.iter().find(|ranked| ranked.part_id == part).and_then(|ranked| ranked.centre)
    };
    // Where the sum of the vectors points.
    let sum = |vectors: &[[f32; 2]]| {
        let [x, y] = vectors.iter().fold([0.0, 0.0], |[x, y], vector| [x + vector[0], y + vector[1]]);
        [x / f32::hypot(x, y), y / f32::hypot(x, y)]
    };
    let (near, far) = (sum(&[[1.0, 0.0], [0.8, 0.6], [0.6, -0.8]]), sum(&[[0.0, 1.0], [-0.6, 0.8], [-1.0, 0.0]]));
    let is_near = |value: Option<f32>, wanted: f32| value.is_some_and(|value| (value - wanted).abs() < 1e-5);
    assert_eq!(of(&index.search(&query, EVERYTHING).unwrap()[0], "near"), None, "nothing weighs it");
    let exact = index.search_exact(&query).unwrap().remove(0);
    assert!(
        is_near(of(&exact, "near"), mean(&[1.0, 0.8, 0.6])) && is_near(of(&exact, "far"), mean(&[0.0, -0.6, -1.0]))
    );
    assert!(is_near(centre_of(&exact, "near"), near[0]) && is_near(centre_of(&exact, "far"), far[0]), "{exact:?}");
    let scored = index.scored(&exact.top_k, &Seen::default());
    let names = exact.top_k.iter().map(|ranked| ranked.part_id.clone());
    let row = FitRow { part_id: "near".to_owned(), candidates: names.zip(scored).collect() };
    let fit = fitting::fit(index.generation_sha256(), &vec![row; 60], 0.05, 0.01).unwrap();
    assert!(fit.plain.weights.likeness != 0.0, "{:?}", fit.plain.weights);
    fit.store(dir.path(), &index.generation_name()).unwrap();

    let index = PartIndex::open(dir.path()).unwrap();
    let learned = |id: u64, part: &str, vector: [f32; 2]| LearnedTemplate {
        id,
        review_id: uuid::Uuid::from_u128(u128::from(id)),
        index: "test".to_owned(),
        part_id: part.to_owned(),
        color_id: None,
        model_sha256: Digest::of(b"m"),
        input_px: 128,
        crop_margin_ratio: 0.0,
        vector: vector.to_vec(),
        inspection_id: InspectionId(uuid::Uuid::nil()),
        ordinal: 0,
        frame_sha256: Digest::of(b"frame"),
        artifact: String::new(),
        crop: BoundingBox::new(0.0, 0.0, 1.0, 1.0),
    };
    let taught = [learned(1, "far", [1.0, 0.0]), learned(2, "new", [0.0, -1.0])];
    let delta = Delta::new(&taught, &index.manifest().embedding, 2);
    let learning = Learning { delta: Some(&delta), group_margin: 0.0 };
    let answer = index.search_with(&query, EVERYTHING, learning).unwrap().remove(0);
    assert!(is_near(of(&answer, "near"), mean(&[1.0, 0.8, 0.6])), "{answer:?}");
    // A taught view stands for as much as the catalogue's three.
    let (catalogue, taught) = ((8.0 * mean(&[0.0, -0.6, -1.0])).exp(), 8.0_f32.exp());
    assert!(is_near(of(&answer, "far"), f32::midpoint(catalogue, taught).ln() / 8.0), "{answer:?}");
    assert!(is_near(centre_of(&answer, "far"), sum(&[far, query])[0]), "{answer:?}");
    assert!(is_near(of(&answer, "new"), 0.0), "{answer:?}");
    let before = (of(&answer, "far"), centre_of(&answer, "far"));
    let fused = index.fuse(answer, &Seen::default());
    assert!(fused.unknown_probability.is_some_and(|unknown| (0.0..=1.0).contains(&unknown)), "{fused:?}");

    // A build that takes the taught view in changes nothing.
    let mut builder = builder_of_three();
    let view = learned_view(uuid::Uuid::from_u128(1));
    builder.push(Template { part_id: "far".to_owned(), color_id: None, view }, &query).unwrap();
    let taken_in = tempfile::tempdir().unwrap();
    builder.build(taken_in.path()).unwrap();
    let exact = PartIndex::open(taken_in.path()).unwrap().search_exact(&query).unwrap().remove(0);
    assert!(is_near(of(&exact, "far"), before.0.unwrap()), "{exact:?}");
    assert!(is_near(centre_of(&exact, "far"), before.1.unwrap()), "{exact:?}");
}

#[test]
fn a_centre_is_what_the_embedder_learned_where_it_did_and_a_damaged_one_is_never_served() {
    let of_parts = |parts: &[(&str, [f32; 2])]| {
        let bytes = parts.iter().map(|(_, vector)| vector.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        let bytes: Vec<Vec<u8>> = bytes.collect();
        let view = |at: usize| TensorView::new(Dtype::F32, vec![2], &bytes[at]).unwrap();
        let file = safetensors::serialize((0..parts.len()).map(|at| (parts[at].0, view(at))), None).unwrap();
        Centres::parse(&file, 2).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let centres = of_parts(&[("far", [0.0, 2.0]), ("elsewhere", [1.0, 0.0])]);
    let built = builder_of_three().with_centres(centres).build(dir.path()).unwrap();
    assert_eq!(built.centre_count, 1, "only of parts that have a template");
    let index = PartIndex::open(dir.path()).unwrap();
    let answer = index.search_exact(&[0.6, 0.8]).unwrap().remove(0);
    let centre = |part: &str| answer.top_k.iter().find(|ranked| ranked.part_id == part).unwrap().centre.unwrap();
    assert!((centre("far") - 0.8).abs() < 1e-5, "the learned direction: {answer:?}");
    let near = (0.6 * 2.4 - 0.8 * 0.2) / f32::hypot(2.4, 0.2);
    assert!((centre("near") - near).abs() < 1e-5, "the sum of its views: {answer:?}");
    drop(index);

    let path = built.dir.join("centres.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for broken in [&flipped[..], &whole[..whole.len() - 4], &[]] {
        std::fs::write(&path, broken).unwrap();
        let faults = verify(dir.path()).faults;
        assert!(faults.iter().any(|fault| fault.contains("centres.safetensors")), "{faults:?}");
    }
    let error = PartIndex::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("centres.safetensors") && error.contains("loupe index build"), "{error}");
}
