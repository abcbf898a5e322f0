//! Learns a [`Fit`] from pictures whose part is known.
//!
//! Each picture counts twice: as a part of the catalogue, and, with the share of unknown parts that is expected, as one
//! that is not, its own part taken from the candidates. The weights maximise the likelihood of a conditional logit with a
//! small ridge, which is concave, by Newton's method; the curve from shares to hit rates is isotonic (pool adjacent
//! violators; Ayer et al. 1955) over bins of equal weight. Probabilities for calibration and thresholds are cross-fitted:
//! those of one half of the pictures come from weights learned on the other half.

use std::collections::BTreeMap;

use super::MatchError;
use super::fit::{Fit, Scored, Scorer, Several, Weights, on_curve};
use crate::types::Digest;

/// Pictures below which nothing is fitted.
const ROWS_MIN: usize = 50;
/// Weights: similarity, likeness, centre, size, shape, pair, pair_centre, group, none.
const FEATURES: usize = 9;
const NEWTON_STEPS: usize = 60;
/// What speaks for none of the candidates.
const NONE: [f64; FEATURES] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
/// Ridge on each weight, in units of one picture's log likelihood.
const RIDGE: f64 = 1e-3;
/// Bins of equal weight of the calibration error.
const BINS: usize = 15;
/// Bins of equal weight that the curve is made from.
const CURVE_BINS: usize = 20;

/// Learned weights and the curve that goes with them.
type Learned = (Weights, Vec<[f32; 2]>);

/// One picture: what the search offered for it, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct FitRow {
    /// The part it shows.
    pub part_id: String,
    pub candidates: Vec<(String, Scored)>,
}

/// A candidate list with the right answer: a position, or none of them.
#[derive(Debug, Clone)]
struct Example<'a> {
    parts: Vec<&'a str>,
    scored: Vec<Scored>,
    truth: Option<usize>,
    weight: f64,
}

/// What became of one example's best candidate.
#[derive(Debug, Clone, Copy)]
struct Outcome<'a> {
    part_id: &'a str,
    probability: f32,
    is_right: bool,
    weight: f64,
}

/// Learn the fit of the generation `generation_sha256`. `unknown_ratio`: share of items that no catalogue part fits,
/// 0 to 1; `target_error`: wrong ones among the accepted, 0 to 1.
///
/// # Errors
/// When there are too few rows.
pub fn fit(
    generation_sha256: Digest,
    rows: &[FitRow],
    unknown_ratio: f32,
    target_error: f32,
) -> Result<Fit, MatchError> {
    let (plain, sized) = scorers(rows, unknown_ratio, target_error)?;
    Ok(Fit::new(generation_sha256, target_error, rows.len(), plain, sized))
}

/// Learn the same of items of several views, each row one item; all of them seen in equally many.
///
/// # Errors
/// When there are too few rows.
pub fn several(rows: &[FitRow], unknown_ratio: f32, target_error: f32) -> Result<Several, MatchError> {
    let (plain, sized) = scorers(rows, unknown_ratio, target_error)?;
    Ok(Several { rows: rows.len(), plain, sized })
}

/// Without size, and with it where enough rows have one.
fn scorers(rows: &[FitRow], unknown_ratio: f32, target_error: f32) -> Result<(Scorer, Option<Scorer>), MatchError> {
    if rows.len() < ROWS_MIN {
        return Err(MatchError::TooFewRows { rows: rows.len(), needed: ROWS_MIN });
    }
    let without_size = |row: &FitRow| FitRow {
        part_id: row.part_id.clone(),
        candidates: row
            .candidates
            .iter()
            .map(|(part, scored)| (part.clone(), Scored { size_log: None, ..*scored }))
            .collect(),
    };
    let plain: Vec<FitRow> = rows.iter().map(without_size).collect();
    let is_sized = |row: &FitRow| row.candidates.iter().all(|(_, scored)| scored.size_log.is_some());
    let sized: Vec<FitRow> = rows.iter().filter(|row| is_sized(row)).cloned().collect();
    let sized = (sized.len() >= ROWS_MIN).then(|| scorer(&sized, unknown_ratio, target_error));
    Ok((scorer(&plain, unknown_ratio, target_error), sized))
}

fn scorer(rows: &[FitRow], unknown_ratio: f32, target_error: f32) -> Scorer {
    let unknown = f64::from(unknown_ratio.clamp(0.0, 1.0));
    let examples: Vec<Example<'_>> = rows.iter().flat_map(|row| examples_of(row, unknown)).collect();
    // The two examples of a picture stay in one half; files list parts in turn, so the halves are drawn, not alternated.
    let is_even = |(position, _): &(usize, &[Example<'_>])| position.wrapping_mul(0x9E37_79B9) & 0x8000 == 0;
    let (even, odd): (Vec<_>, Vec<_>) = examples.chunks(2).enumerate().partition(is_even);
    let (even, odd) = (joined(&even), joined(&odd));
    let (of_even, of_odd) = (learn_curved(&even), learn_curved(&odd));
    let outcomes: Vec<Outcome<'_>> =
        even.iter().map(|e| outcome(e, &of_odd)).chain(odd.iter().map(|e| outcome(e, &of_even))).collect();
    let (threshold, part_thresholds) = thresholds(&outcomes, f64::from(target_error));
    let is_accepted = |o: &&Outcome<'_>| o.probability > part_thresholds.get(o.part_id).copied().unwrap_or(threshold);
    let weight_of = |wanted: &dyn Fn(&&Outcome<'_>) -> bool| -> f64 {
        outcomes.iter().filter(wanted).map(|o| o.weight).sum::<f64>().max(0.0)
    };
    let (all, accepted) = (weight_of(&|_| true), weight_of(&|o| is_accepted(o)));
    let wrong = weight_of(&|o| is_accepted(o) && !o.is_right);
    let (weights, curve) = learn_curved(&examples);
    #[expect(clippy::cast_possible_truncation, reason = "ratios")]
    Scorer {
        weights,
        curve,
        threshold,
        ece: calibration_error(&outcomes) as f32,
        accepted_ratio: (accepted / all) as f32,
        error_ratio: if accepted > 0.0 { (wrong / accepted) as f32 } else { 0.0 },
        error_ratio_upper: wilson_upper(wrong, accepted) as f32,
        part_thresholds,
    }
}

fn joined<'a>(chunks: &[(usize, &[Example<'a>])]) -> Vec<Example<'a>> {
    chunks.iter().flat_map(|(_, chunk)| chunk.to_vec()).collect()
}

/// The picture as a known part and, without its part, as an unknown one.
fn examples_of(row: &FitRow, unknown: f64) -> [Example<'_>; 2] {
    let truth = row.candidates.iter().position(|(part, _)| *part == row.part_id);
    let others = row.candidates.iter().filter(|(part, _)| *part != row.part_id);
    [Example::new(row.candidates.iter(), truth, 1.0 - unknown), Example::new(others, None, unknown)]
}

impl<'a> Example<'a> {
    fn new(candidates: impl Iterator<Item = &'a (String, Scored)>, truth: Option<usize>, weight: f64) -> Self {
        let (parts, scored) = candidates.map(|(part, scored)| (part.as_str(), *scored)).unzip();
        Self { parts, scored, truth, weight }
    }
}

fn features(scored: &Scored) -> [f64; FEATURES] {
    let rival = if scored.is_rival { 1.0 } else { 0.0 };
    let size_log = f64::from(scored.size_log.unwrap_or(0.0));
    let apart = scored.apart.unwrap_or_default();
    let [shape, pair, pair_centre] = [apart.shape, apart.likeness, apart.centre].map(f64::from);
    let [likeness, centre] = [scored.likeness, scored.centre].map(|value| f64::from(value.unwrap_or(0.0)));
    [f64::from(scored.similarity), likeness, centre, size_log, shape, pair, pair_centre, rival, 0.0]
}

/// The weights under which the examples are likeliest.
fn learn(examples: &[Example<'_>]) -> Weights {
    // What no example shows stays exactly 0.
    let mut w = [10.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 5.0];
    let mut current = log_likelihood(examples, &w);
    for _ in 0..NEWTON_STEPS {
        let (gradient, curvature) = derivatives(examples, &w);
        let Some(step) = solve(curvature, gradient) else { break };
        // Newton's step is too long far from the top: halve it until it climbs.
        let climbed = (0..30).map(|halvings| 0.5_f64.powi(halvings)).find_map(|share| {
            let next: [f64; FEATURES] = std::array::from_fn(|i| w[i] + share * step[i]);
            let value = log_likelihood(examples, &next);
            (value > current).then_some((next, value))
        });
        let Some((next, value)) = climbed else { break };
        let gain = value - current;
        (w, current) = (next, value);
        if gain < 1e-9 * current.abs() {
            break;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "weights are used as f32")]
    let [similarity, likeness, centre, size, shape, pair, pair_centre, group, none] = w.map(|weight| weight as f32);
    Weights { similarity, likeness, centre, size, shape, pair, pair_centre, group, none }
}

/// Weights and curve that suit the examples.
fn learn_curved(examples: &[Example<'_>]) -> Learned {
    let weights = learn(examples);
    let shares = (weights, Vec::new());
    let outcomes: Vec<Outcome<'_>> = examples.iter().map(|example| outcome(example, &shares)).collect();
    let curve = curve(&outcomes);
    (weights, curve)
}

/// A rising curve through `[mean share, hit rate]` of bins of equal weight, and through 0 and 1.
fn curve(outcomes: &[Outcome<'_>]) -> Vec<[f32; 2]> {
    // Blocks of (weight, Σ weight × share, Σ weight of hits); a block that falls is joined with the one before.
    let mut blocks: Vec<[f64; 3]> = Vec::new();
    for bin in binned(outcomes, CURVE_BINS).into_iter().filter(|bin| bin[0] > 0.0) {
        blocks.push(bin);
        while let [.., before, last] = blocks.as_slice()
            && before[2] * last[0] >= last[2] * before[0]
        {
            let joined = std::array::from_fn(|i| before[i] + last[i]);
            blocks.truncate(blocks.len() - 2);
            blocks.push(joined);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "ratios")]
    let points = blocks.iter().map(|[weight, share, hits]| [(share / weight) as f32, (hits / weight) as f32]);
    let mut curve = vec![[0.0, 0.0]];
    curve.extend(points.filter(|[x, _]| *x > 1e-6 && *x < 1.0 - 1e-6));
    curve.push([1.0, 1.0]);
    curve
}

/// Outcomes by rising probability in bins of equal weight: (weight, Σ weight × probability, Σ weight of hits).
fn binned(outcomes: &[Outcome<'_>], count: usize) -> Vec<[f64; 3]> {
    let mut sorted: Vec<&Outcome<'_>> = outcomes.iter().collect();
    sorted.sort_by(|a, b| a.probability.total_cmp(&b.probability));
    let total: f64 = sorted.iter().map(|outcome| outcome.weight).sum();
    let (mut bins, mut seen) = (vec![[0.0; 3]; count], 0.0);
    for outcome in sorted {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the bins")]
        let bin = &mut bins[((seen / total * count as f64) as usize).min(count - 1)];
        seen += outcome.weight;
        bin[0] += outcome.weight;
        bin[1] += outcome.weight * f64::from(outcome.probability);
        bin[2] += if outcome.is_right { outcome.weight } else { 0.0 };
    }
    bins
}

/// Probabilities of the candidates and, last, of none of them.
fn probabilities(example: &Example<'_>, w: &[f64; FEATURES]) -> Vec<f64> {
    let score = |scored: &Scored| features(scored).iter().zip(w).map(|(f, w)| f * w).sum::<f64>();
    let scores: Vec<f64> = example.scored.iter().map(score).chain([w[FEATURES - 1]]).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / total).collect()
}

fn log_likelihood(examples: &[Example<'_>], w: &[f64; FEATURES]) -> f64 {
    let of = |e: &Example<'_>| e.weight * probabilities(e, w)[e.truth.unwrap_or(e.scored.len())].max(1e-300).ln();
    examples.iter().map(of).sum::<f64>() - 0.5 * RIDGE * w.iter().map(|w| w * w).sum::<f64>()
}

/// Gradient of the log likelihood and the negative of its Hessian.
fn derivatives(examples: &[Example<'_>], w: &[f64; FEATURES]) -> ([f64; FEATURES], [[f64; FEATURES]; FEATURES]) {
    let mut gradient: [f64; FEATURES] = std::array::from_fn(|i| -RIDGE * w[i]);
    let mut curvature = [[0.0; FEATURES]; FEATURES];
    for (i, row) in curvature.iter_mut().enumerate() {
        row[i] = RIDGE;
    }
    for example in examples {
        let p = probabilities(example, w);
        let mut rows: Vec<[f64; FEATURES]> = example.scored.iter().map(features).collect();
        rows.push(NONE);
        let mean: [f64; FEATURES] = std::array::from_fn(|i| rows.iter().zip(&p).map(|(row, p)| p * row[i]).sum());
        let truth = rows[example.truth.unwrap_or(example.scored.len())];
        for i in 0..FEATURES {
            gradient[i] += example.weight * (truth[i] - mean[i]);
            for j in 0..FEATURES {
                let second: f64 = rows.iter().zip(&p).map(|(row, p)| p * row[i] * row[j]).sum();
                curvature[i][j] += example.weight * (second - mean[i] * mean[j]);
            }
        }
    }
    (gradient, curvature)
}

/// Gaussian elimination with pivoting; `None` for a singular matrix.
fn solve(mut a: [[f64; FEATURES]; FEATURES], mut b: [f64; FEATURES]) -> Option<[f64; FEATURES]> {
    for column in 0..FEATURES {
        let pivot = (column..FEATURES).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        if a[pivot][column].abs() < 1e-12 {
            return None;
        }
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..FEATURES {
            let factor = a[row][column] / a[column][column];
            let pivot_row = a[column];
            for (value, pivot) in a[row].iter_mut().zip(pivot_row).skip(column) {
                *value -= factor * pivot;
            }
            b[row] -= factor * b[column];
        }
    }
    let mut x = [0.0; FEATURES];
    for row in (0..FEATURES).rev() {
        let known: f64 = (row + 1..FEATURES).map(|k| a[row][k] * x[k]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    Some(x)
}

fn outcome<'a>(example: &Example<'a>, (weights, curve): &Learned) -> Outcome<'a> {
    let p = weights.shares(&example.scored);
    let best = (0..p.len()).max_by(|&i, &j| p[i].total_cmp(&p[j]).then(j.cmp(&i)));
    Outcome {
        part_id: best.map_or("", |best| example.parts[best]),
        probability: best.map_or(0.0, |best| on_curve(curve, p[best])),
        is_right: best.is_some() && best == example.truth,
        weight: example.weight,
    }
}

/// The lowest probability above which the share of wrong ones is at most `target`; and for parts that were wrong above
/// it, the probability of their worst mistake.
fn thresholds(outcomes: &[Outcome<'_>], target: f64) -> (f32, BTreeMap<String, f32>) {
    let mut sorted: Vec<&Outcome<'_>> = outcomes.iter().filter(|outcome| outcome.weight > 0.0).collect();
    sorted.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let (mut threshold, mut accepted, mut wrong) = (1.0, 0.0, 0.0);
    for (position, outcome) in sorted.iter().enumerate() {
        accepted += outcome.weight;
        if !outcome.is_right {
            wrong += outcome.weight;
        }
        // Accepted is what lies above the next one; equal ones are accepted or refused together.
        let next = sorted.get(position + 1).map_or(0.0, |next| next.probability);
        if next < outcome.probability && wrong <= target * accepted {
            threshold = next;
        }
    }
    let mut parts: BTreeMap<String, f32> = BTreeMap::new();
    for outcome in sorted.iter().filter(|outcome| !outcome.is_right && outcome.probability > threshold) {
        let limit = parts.entry(outcome.part_id.to_owned()).or_insert(threshold);
        *limit = limit.max(outcome.probability);
    }
    (threshold, parts)
}

/// Expected calibration error (Naeini et al. 2015) over [`BINS`] bins of equal weight.
fn calibration_error(outcomes: &[Outcome<'_>]) -> f64 {
    let bins = binned(outcomes, BINS);
    let total: f64 = bins.iter().map(|[weight, ..]| weight).sum();
    bins.iter().map(|[_, expected, right]| (expected - right).abs() / total).sum()
}

/// Upper end of the 95 % score interval of `wrong` in `n` (Wilson 1927).
fn wilson_upper(wrong: f64, n: f64) -> f64 {
    const Z: f64 = 1.959_964;
    if n <= 0.0 {
        return 1.0;
    }
    let p = wrong / n;
    let centre = p + Z * Z / (2.0 * n);
    (centre + Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt()) / (1.0 + Z * Z / n)
}

#[cfg(test)]
mod tests {
    use super::{FitRow, fit, wilson_upper};
    use crate::matching::fit::{Apart, Scored};
    use crate::types::Digest;

    /// A stream of numbers in 0..1 that is the same each time.
    fn numbers() -> impl FnMut() -> f32 {
        let mut state = 7_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            #[expect(clippy::cast_precision_loss, reason = "a test's random number")]
            let unit = (state >> 40) as f32 / (1_u64 << 24) as f32;
            unit
        }
    }

    /// Ten parts; the right one is usually the most similar and always of the right size.
    fn rows(count: usize, noise: f32) -> Vec<FitRow> {
        let mut next = numbers();
        (0..count)
            .map(|at| {
                let truth = at % 10;
                let mut candidates: Vec<(String, Scored)> = (0..10)
                    .map(|part| {
                        let own = if part == truth { 0.85 } else { 0.55 };
                        let size_log = if part == truth { 1.0 } else { -4.0 };
                        let similarity = own + noise * (next() - 0.5);
                        (part.to_string(), Scored { similarity, size_log: Some(size_log), ..Scored::default() })
                    })
                    .collect();
                candidates.sort_by(|a, b| b.1.similarity.total_cmp(&a.1.similarity));
                FitRow { part_id: truth.to_string(), candidates }
            })
            .collect()
    }

    #[test]
    fn probabilities_mean_what_they_say_and_size_adds_to_them() {
        let fit = fit(Digest::of(b"g"), &rows(600, 0.7), 0.1, 0.01).unwrap();
        let sized = fit.sized.as_ref().unwrap();
        assert!(fit.plain.ece < 0.06, "calibration error {}", fit.plain.ece);
        assert!(fit.plain.weights.similarity > 1.0);
        assert!(sized.weights.size > 0.5, "{:?}", sized.weights);
        assert!(sized.accepted_ratio > fit.plain.accepted_ratio, "{sized:?}");
        assert!(fit.plain.error_ratio <= 0.01 && sized.error_ratio <= 0.01);
    }

    #[test]
    fn a_stricter_target_accepts_less() {
        let accepted = |target| fit(Digest::of(b"g"), &rows(600, 0.7), 0.1, target).unwrap().plain.accepted_ratio;
        assert!(accepted(0.001) < accepted(0.05));
    }

    #[test]
    fn a_part_that_was_wrongly_accepted_asks_for_more() {
        let mut rows = rows(600, 0.4);
        // Part 3 shows up, very alike, for a picture of part 4.
        let (part, scored) = &mut rows[4].candidates[0];
        (*part, scored.similarity) = ("3".to_owned(), 0.99);
        rows[4].candidates.retain({
            let mut seen = std::collections::BTreeSet::new();
            move |(part, _)| seen.insert(part.clone())
        });
        let fit = fit(Digest::of(b"g"), &rows, 0.1, 0.01).unwrap();
        assert!(fit.plain.required("3") > fit.plain.required("5"), "{:?}", fit.plain.part_thresholds);
    }

    /// A pair whose cosines are chance and whose shapes are often right, among parts that the cosine tells apart.
    #[test]
    fn within_a_pair_the_cosine_is_weighed_apart() {
        let mut next = numbers();
        let mut rows = rows(600, 0.2);
        for (at, row) in rows.iter_mut().enumerate().filter(|(at, _)| at % 10 < 2) {
            let (cosines, shapes) = ([0.85 + 0.2 * (next() - 0.5), 0.85], [0.1 + 0.5 * (next() - 0.5), 0.0]);
            let half = |[own, other]: [f32; 2]| (own - other) / 2.0;
            for (part, scored) in &mut row.candidates {
                let Ok(part @ 0..2) = part.parse::<usize>() else { continue };
                let (own, sign) = if part == at % 10 { (0, 1.0) } else { (1, -1.0) };
                scored.similarity = cosines[own];
                let (shape, likeness) = (sign * half(shapes), sign * half(cosines));
                scored.apart = Some(Apart { shape, likeness, centre: 0.0 });
            }
            row.candidates.sort_by(|a, b| b.1.similarity.total_cmp(&a.1.similarity));
        }
        let weights = fit(Digest::of(b"g"), &rows, 0.1, 0.01).unwrap().plain.weights;
        let within = weights.similarity + weights.pair;
        assert!(weights.shape > 0.0 && within.abs() < 0.4 * weights.similarity, "{weights:?}");
    }

    #[test]
    fn rows_without_candidates_and_too_few_rows_are_told_apart() {
        let mut some = rows(60, 0.4);
        some[0].candidates.clear();
        assert!(fit(Digest::of(b"g"), &some, 0.1, 0.01).is_ok());
        let error = fit(Digest::of(b"g"), &some[..10], 0.1, 0.01).unwrap_err().to_string();
        assert!(error.contains("10 pictures"), "{error}");
    }

    #[test]
    fn the_upper_bound_is_wilsons() {
        assert!((wilson_upper(0.0, 100.0) - 0.037).abs() < 5e-4);
        assert!((wilson_upper(10.0, 100.0) - 0.1744).abs() < 5e-4);
        assert!((wilson_upper(0.0, 0.0) - 1.0).abs() < 1e-9);
    }
}
