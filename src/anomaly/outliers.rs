//! Learnt pictures whose own scores stand out: what was given as good, and may not be. Pure.
//!
//! A threshold that stands above every learnt picture stands above a bad one among them too, and then lets such pass.

/// So many interquartile ranges above the upper quartile a score stands out: rarely one of good pictures alone
/// (Hoaglin & Iglewicz, Fine-tuning some resistant rules for outlier labeling, JASA 1987).
const REACH: f32 = 2.2;
/// And by this share, where all others are nearly the same.
const SHARE_MIN: f32 = 0.1;
/// Of fewer pictures nothing is said.
const PICTURES_MIN: usize = 5;

/// Positions of the scores that stand out above the others, highest first.
#[must_use]
pub fn outliers(scores: &[f32]) -> Vec<usize> {
    if scores.len() < PICTURES_MIN {
        return Vec::new();
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (lower, upper) = (quantile(&sorted, 1), quantile(&sorted, 3));
    let limit = (upper + REACH * (upper - lower)).max(upper * (1.0 + SHARE_MIN));
    let mut found: Vec<usize> = (0..scores.len()).filter(|&at| scores[at] > limit).collect();
    found.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    found
}

/// The value below which so many quarters lie, straight between two of them.
fn quantile(sorted: &[f32], quarters: usize) -> f32 {
    let (at, rest) = ((sorted.len() - 1) * quarters / 4, (sorted.len() - 1) * quarters % 4);
    let next = sorted[(at + 1).min(sorted.len() - 1)];
    sorted[at] + (next - sorted[at]) * rest as f32 / 4.0
}

#[cfg(test)]
mod tests {
    use super::outliers;

    #[test]
    fn what_stands_out_is_named_and_the_spread_of_good_pictures_is_not() {
        // Ten good plates and one whose screws are missing.
        let plates = [3.1, 2.9, 3.5, 4.53, 3.0, 2.8, 3.2, 3.3, 2.95, 3.05, 3.15];
        assert_eq!(outliers(&plates), [3]);
        assert_eq!(outliers(&[1.0, 9.0, 1.1, 1.2, 7.0, 1.3, 1.1, 1.2, 1.0]), [1, 4], "highest first");
        let even: Vec<f32> = (0..50_u8).map(|at| 2.0 + f32::from(at) * 0.02).collect();
        assert!(outliers(&even).is_empty());
        assert!(outliers(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.05]).is_empty(), "nearly the same");
        assert!(outliers(&[1.0, 1.0, 1.0, 9.0]).is_empty(), "too few to say");
        assert!(outliers(&[]).is_empty());
    }
}
