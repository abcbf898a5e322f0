//! From patch distances to an image score and its place on the 0-to-1 scale.

/// Neighbours in the bank that re-weight the image score (the paper's b).
pub const REWEIGHT_NEIGHBOURS: usize = 9;

/// Factor on the threshold found from pictures of one series.
const HEADROOM: f32 = 1.05;

/// Weight of the image score, Roth et al. 2022, equation 7: `w = 1 − exp(d₀) / Σ exp(dᵢ)`.
///
/// `distances` are those of the most anomalous patch to the bank vectors nearest to its own nearest neighbour m*,
/// m* first (`d₀`), itself among them. 1 where there is no other neighbour to compare with.
#[must_use]
pub fn reweight(distances: &[f32]) -> f32 {
    let (Some(first), true) = (distances.first(), distances.len() > 1) else { return 1.0 };
    let largest = distances.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = distances.iter().map(|distance| (distance - largest).exp()).sum();
    1.0 - (first - largest).exp() / sum
}

/// `raw / (raw + threshold)`: 0.5 at the threshold, strictly growing, below 1 for every finite score, never clamped.
/// A threshold of 0 (good pictures without any distance) gives 0 for 0 and 1 above.
#[must_use]
pub fn normalise(raw: f32, threshold: f32) -> f32 {
    let sum = raw + threshold;
    if sum > 0.0 { raw / sum } else { 0.0 }
}

/// Threshold out of the scores of good pictures, each scored by a bank that has not seen it.
///
/// `1.05 × max(highest, median + 3 × 1.4826 × MAD)`: the median absolute deviation, scaled to a standard deviation,
/// reaches past the highest of a few pictures where they scatter much, and one odd picture does not move it. The
/// headroom is for pictures of later days, which differ more than those of one series: without it a third of the good
/// pictures of the development set `bsdata` 000 were above the threshold, with it a tenth, with all 27 defects still
/// found; on 090 it cost one defect of 47 and spared one good picture of 45.
/// `None` without scores.
#[must_use]
pub fn threshold(good: &[f32]) -> Option<f32> {
    let middle = median(good)?;
    let deviations: Vec<f32> = good.iter().map(|score| (score - middle).abs()).collect();
    let spread = 1.4826 * median(&deviations)?;
    let highest = good.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Some(HEADROOM * highest.max(middle + 3.0 * spread))
}

fn median(values: &[f32]) -> Option<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::{normalise, reweight, threshold};

    #[test]
    fn weight_is_one_minus_the_softmax_of_the_nearest() {
        let expected = 1.0 - 1_f32.exp() / (1_f32.exp() + 2_f32.exp() + 2_f32.exp());
        assert!((reweight(&[1.0, 2.0, 2.0]) - expected).abs() < 1e-6);
        assert!((reweight(&[500.0, 500.0]) - 0.5).abs() < 1e-6, "large distances must not overflow");
        assert_eq!([reweight(&[]), reweight(&[3.0])], [1.0, 1.0]);
    }

    #[test]
    fn the_normalised_score_is_half_at_the_threshold_and_keeps_the_order() {
        assert_eq!(normalise(2.5, 2.5), 0.5);
        let scores: Vec<f32> = [0.0, 0.1, 1.0, 2.5, 9.0, 1_000.0].map(|raw| normalise(raw, 2.5)).to_vec();
        assert!(scores.windows(2).all(|pair| pair[0] < pair[1]) && scores[5] < 1.0, "{scores:?}");
        assert_eq!([normalise(0.0, 0.0), normalise(1.0, 0.0)], [0.0, 1.0]);
    }

    #[test]
    fn the_threshold_is_never_below_the_highest_good_score() {
        assert_eq!(threshold(&[]), None);
        assert_eq!(threshold(&[1.0, 1.0, 1.0, 5.0]), Some(5.25));
        // median 2.5, MAD 1: 1.05 × (2.5 + 3 × 1.4826)
        assert!((threshold(&[1.0, 2.0, 3.0, 4.0]).unwrap() - 7.29519).abs() < 1e-4);
    }
}
