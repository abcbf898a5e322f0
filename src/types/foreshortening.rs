//! How much of a part a picture shows: what a network says of the longer side of a box beside the part's diagonal.

/// Densities of `e = ln(longer side of the box / diagonal of the part)` by one picture alone: a rod seen from its end has a
/// low `e`, one that lies across the picture has 0. Straight between the centres of its bins, nothing beyond them.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreshortening {
    /// `e` of the first bin's centre.
    from: f32,
    /// Between the centres of two bins, > 0.
    step: f32,
    /// Share of each bin, ≥ 0; their sum is 1.
    shares: Vec<f32>,
}

impl Foreshortening {
    /// From a network's logits, one a bin, whose centres lie evenly from `range[0]` to `range[1]`; `None` where there are
    /// fewer than two, one is not a number, or the range does not rise.
    #[must_use]
    pub fn of_logits(range: [f32; 2], logits: &[f32]) -> Option<Self> {
        let [from, to] = range;
        let is_range = from.is_finite() && to.is_finite() && from < to;
        if !is_range || logits.len() < 2 || logits.iter().any(|logit| !logit.is_finite()) {
            return None;
        }
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let exps: Vec<f32> = logits.iter().map(|logit| (logit - top).exp()).collect();
        let total: f32 = exps.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "bins are few")]
        let step = (to - from) / (logits.len() - 1) as f32;
        Some(Self { from, step, shares: exps.into_iter().map(|exp| exp / total).collect() })
    }

    /// That of a box in the middle of the one that was looked at, `factor` (≥ 1) times as large.
    #[must_use]
    pub fn of_inner(self, factor: f32) -> Self {
        Self { from: self.from - factor.max(1.0).ln(), ..self }
    }

    /// Density at `e`, per unit of `e`; 0 beyond the bins and where `e` is not a number.
    #[must_use]
    pub fn density(&self, e: f32) -> f32 {
        let position = (e - self.from) / self.step;
        let below = position.floor();
        let share = |bin: f32| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a bin's number")]
            let index = (bin >= 0.0).then_some(bin as usize);
            index.and_then(|index| self.shares.get(index)).copied().unwrap_or(0.0)
        };
        if !position.is_finite() {
            return 0.0;
        }
        let weight = position - below;
        (share(below) * (1.0 - weight) + share(below + 1.0) * weight) / self.step
    }
}

#[cfg(test)]
mod tests {
    use super::Foreshortening;

    #[test]
    fn the_density_stands_where_the_network_says_and_covers_one() {
        let logits: Vec<f32> = (0..36_u8).map(|bin| if bin == 20 { 9.0 } else { 0.0 }).collect();
        let seen = Foreshortening::of_logits([-1.6, 0.15], &logits).unwrap();
        let at = |bin: f32| -1.6 + bin * 0.05;
        assert!(seen.density(at(20.0)) > 19.0, "{}", seen.density(at(20.0)));
        assert!((seen.density(at(20.5)) - seen.density(at(20.0)) / 2.0).abs() < 0.1);
        assert!(seen.density(at(5.0)) < 0.01 && seen.density(at(5.0)) > 0.0);
        assert_eq!(
            [seen.density(3.0), seen.density(-9.0), seen.density(f32::NAN), seen.density(f32::INFINITY)],
            [0.0; 4]
        );
        let sum: f32 = (0..4_000_u16).map(|k| seen.density(-2.0 + f32::from(k) * 0.001) * 0.001).sum();
        assert!((sum - 1.0).abs() < 0.01, "{sum}");
    }

    #[test]
    fn a_tighter_box_shows_less_of_the_part() {
        let seen = Foreshortening::of_logits([-1.0, 0.0], &[0.0, 5.0, 0.0]).unwrap();
        let inner = seen.clone().of_inner(1.2);
        assert!((inner.density(-0.5 - 1.2_f32.ln()) - seen.density(-0.5)).abs() < 1e-4);
    }

    #[test]
    fn what_is_no_distribution_is_none() {
        for (range, logits) in [
            ([0.0, -1.0], &[0.0, 0.0][..]),
            ([-1.0, 0.0], &[0.0]),
            ([-1.0, 0.0], &[0.0, f32::NAN]),
            ([f32::NAN, 0.0], &[0.0, 0.0]),
        ] {
            assert_eq!(Foreshortening::of_logits(range, logits), None, "{range:?} {logits:?}");
        }
    }
}
