//! Where good ends: thresholds out of the scores of good pictures alone, or of good and bad ones.
//!
//! From good pictures alone an order statistic of `n` scores, none of which the bank has seen: with `s(k)` the k-th
//! smallest, a further good picture of the same series scores above it with probability at most `1 − k / (n + 1)`
//! (exchangeability; Vovk et al. 2005, Lei et al. 2018 eq. 2: `k = ⌈(n + 1)(1 − rate)⌉`). That is the mean over all sets
//! of `n` pictures; to hold for this set with a stated confidence, `P(Bin(n, 1 − rate) ≤ k − 1) ≥ confidence` must hold
//! (Wilks 1941). Either needs a least number of pictures, which the error names.

use serde::{Deserialize, Serialize};

use super::AnomalyError;
use super::score;

/// Lifts a threshold off the score it was taken from, so that rounding does not reject that picture.
const ABOVE: f32 = 1.0 + 1e-5;

/// How a bank's thresholds were found.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum ThresholdRule {
    /// `1.05 × max(highest, median + 3 × 1.4826 × MAD)` of good pictures.
    #[default]
    Headroom,
    /// Of good pictures of the same series at most this share is rejected, 0 to 1, in the mean.
    FalseReject { rate: f64 },
    /// At most this share, with this confidence, both 0 to 1.
    FalseRejectSure { rate: f64, confidence: f64 },
    /// The largest F1 on labelled pictures.
    BestF1,
}

impl ThresholdRule {
    /// The raw threshold of good scores.
    ///
    /// # Errors
    /// When a number is out of range, there are too few pictures for it, or the rule needs bad pictures.
    pub fn of_good(self, good: &[f32]) -> Result<f32, AnomalyError> {
        let missing = AnomalyError::TooFewImages { got: good.len() };
        match self {
            Self::Headroom => score::threshold(good).ok_or(missing),
            Self::FalseReject { rate } => order_statistic(good, rate, None),
            Self::FalseRejectSure { rate, confidence } => order_statistic(good, rate, Some(confidence)),
            Self::BestF1 => Err(AnomalyError::Option {
                option: "objective",
                value: "f1".to_owned(),
                allowed: "used with labelled pictures that include bad ones",
            }),
        }
    }

    /// The raw threshold of `(score, is_bad)`.
    ///
    /// # Errors
    /// As [`ThresholdRule::of_good`]; for the best F1 also without good or without bad pictures.
    pub fn of_labelled(self, scores: &[(f32, bool)]) -> Result<f32, AnomalyError> {
        if self == Self::BestF1 {
            return best_f1(scores).map_or_else(|| self.of_good(&[]), Ok);
        }
        let good: Vec<f32> = scores.iter().filter(|(_, is_bad)| !is_bad).map(|(score, _)| *score).collect();
        self.of_good(&good)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most n + 1, not negative")]
fn order_statistic(good: &[f32], rate: f64, confidence: Option<f64>) -> Result<f32, AnomalyError> {
    let asked = [("false-reject rate", Some(rate)), ("confidence of the false-reject rate", confidence)];
    for (option, value) in asked {
        if let Some(value) = value.filter(|value| !(*value > 0.0 && *value < 1.0)) {
            return Err(AnomalyError::Option { option, value: value.to_string(), allowed: "above 0, below 1" });
        }
    }
    let n = good.len();
    let k = match confidence {
        // Rounded first: (19 + 1) × (1 − 0.05) must not become 20 by the last bit.
        None => (((n + 1) as f64 * (1.0 - rate) * 1e9).round() / 1e9).ceil() as usize,
        Some(confidence) => (1..=n).find(|&k| binomial_cdf(k - 1, n, 1.0 - rate) >= confidence).unwrap_or(n + 1),
    };
    if k > n {
        let needed = match confidence {
            None => (1.0 / rate - 1e-9).ceil() as usize - 1,
            Some(confidence) => ((1.0 - confidence).ln() / (1.0 - rate).ln() - 1e-9).ceil() as usize,
        };
        return Err(AnomalyError::TooFewForRate { got: n, needed, rate });
    }
    let mut sorted = good.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    Ok(sorted[k.max(1) - 1] * ABOVE)
}

/// `P(Bin(n, p) ≤ k)`, summed in logarithms.
fn binomial_cdf(k: usize, n: usize, p: f64) -> f64 {
    let mut log_term = n as f64 * (1.0 - p).ln();
    let mut sum = log_term.exp();
    for i in 1..=k.min(n) {
        log_term += ((n - i + 1) as f64 / i as f64).ln() + p.ln() - (1.0 - p).ln();
        sum += log_term.exp();
    }
    sum.min(1.0)
}

/// In the middle of the gap that gives the largest F1; of equal ones the widest gap. `None` unless both kinds are there.
fn best_f1(scores: &[(f32, bool)]) -> Option<f32> {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let bad = sorted.iter().filter(|(_, is_bad)| *is_bad).count();
    if bad == 0 || bad == sorted.len() {
        return None;
    }
    let mut best: Option<(f64, f32, f32)> = None;
    let mut found_bad = bad;
    for cut in 1..sorted.len() {
        found_bad -= usize::from(sorted[cut - 1].1);
        let (below, above) = (sorted[cut - 1].0, sorted[cut].0);
        if below == above {
            continue;
        }
        let f1 = 2.0 * found_bad as f64 / (sorted.len() - cut + bad) as f64;
        let gap = above - below;
        if best.is_none_or(|(best_f1, best_gap, _)| f1 > best_f1 || (f1 == best_f1 && gap > best_gap)) {
            best = Some((f1, gap, below + gap / 2.0));
        }
    }
    best.map(|(_, _, threshold)| threshold)
}

#[cfg(test)]
mod tests {
    use super::{ThresholdRule, best_f1, binomial_cdf};

    fn scores(n: usize) -> Vec<f32> {
        (1..=n).map(|value| value as f32).collect()
    }

    #[test]
    fn the_quantile_is_the_order_statistic_of_n_plus_one() {
        let rule = ThresholdRule::FalseReject { rate: 0.05 };
        assert!((rule.of_good(&scores(19)).unwrap() - 19.0).abs() < 1e-3);
        assert!((rule.of_good(&scores(39)).unwrap() - 38.0).abs() < 1e-3);
        assert!((ThresholdRule::FalseReject { rate: 0.5 }.of_good(&scores(9)).unwrap() - 5.0).abs() < 1e-3);
    }

    #[test]
    fn too_few_pictures_for_a_rate_say_how_many_are_needed() {
        let error = ThresholdRule::FalseReject { rate: 0.01 }.of_good(&scores(98)).unwrap_err().to_string();
        assert!(error.contains("99"), "{error}");
        assert!(ThresholdRule::FalseReject { rate: 0.01 }.of_good(&scores(99)).is_ok());
        let sure = ThresholdRule::FalseRejectSure { rate: 0.05, confidence: 0.95 };
        // Wilks's classic: 59 for 95 % at 95 %
        assert!(sure.of_good(&scores(58)).unwrap_err().to_string().contains("59"));
        assert!((sure.of_good(&scores(59)).unwrap() - 59.0).abs() < 1e-2);
    }

    #[test]
    fn the_stated_rate_holds_over_many_series() {
        let mut random = fastrand::Rng::with_seed(11);
        let (mut rejected, mut rounds) = (0_u32, 0_u32);
        for _ in 0..4_000 {
            let good: Vec<f32> = (0..29).map(|_| random.f32()).collect();
            let threshold = ThresholdRule::FalseReject { rate: 0.1 }.of_good(&good).unwrap();
            rejected += u32::from(random.f32() >= threshold);
            rounds += 1;
        }
        let rate = f64::from(rejected) / f64::from(rounds);
        assert!((0.085..0.115).contains(&rate), "{rate}");
    }

    #[test]
    fn rates_outside_are_refused() {
        for rate in [0.0, 1.0, f64::NAN] {
            let error = ThresholdRule::FalseReject { rate }.of_good(&scores(5)).unwrap_err().to_string();
            assert_eq!(error, format!("false-reject rate is {rate}: it must be above 0, below 1"));
        }
        let sure = ThresholdRule::FalseRejectSure { rate: 0.1, confidence: 1.0 };
        assert!(sure.of_good(&scores(5)).unwrap_err().to_string().starts_with("confidence"));
        assert!(ThresholdRule::BestF1.of_good(&scores(5)).is_err());
    }

    #[test]
    fn the_best_f1_lies_in_the_widest_gap() {
        let separable = [(1.0, false), (2.0, false), (6.0, true), (7.0, true)];
        assert_eq!(best_f1(&separable), Some(4.0));
        assert_eq!(ThresholdRule::BestF1.of_labelled(&separable).unwrap(), 4.0);
        // one good above the lowest bad: from 3 on 2 of 2 found among 3 (0.8); from 5 on 1 of 2 (2/3)
        assert_eq!(best_f1(&[(1.0, false), (3.0, true), (4.0, false), (6.0, true)]), Some(2.0));
        assert_eq!(best_f1(&[(1.0, false)]), None);
    }

    #[test]
    fn the_binomial_sums_to_one() {
        assert!((binomial_cdf(10, 10, 0.3) - 1.0).abs() < 1e-12);
        assert!((binomial_cdf(0, 4, 0.5) - 0.0625).abs() < 1e-12);
    }
}
