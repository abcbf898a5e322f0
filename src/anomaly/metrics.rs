//! How well scores separate good from bad: image and pixel AUROC, AUPRO, the best F1.
//!
//! Pixels are not kept: they are counted in one histogram per class, so that any number of pictures needs the same
//! 24 MiB. A bin spans 1/4096 of its score, far less than the scores of different pixels differ.

use std::collections::VecDeque;

/// Area under the ROC curve of `(score, is_bad)`, 0 to 1; equal scores count half (Mann and Whitney). `None` where one
/// of the classes is empty.
#[must_use]
pub fn auroc(scores: &[(f32, bool)]) -> Option<f64> {
    let mut below_good = 0_u64;
    let mut area = 0.0;
    for_each_tie(scores, |good, bad| {
        area += bad as f64 * (below_good as f64 + good as f64 / 2.0);
        below_good += good;
    });
    let bad = scores.iter().filter(|(_, is_bad)| *is_bad).count() as f64;
    let pairs = bad * below_good as f64;
    (pairs > 0.0).then(|| area / pairs)
}

/// Largest F1 over all thresholds ("bad from this score on"), 0 to 1. `None` where nothing is bad.
#[must_use]
pub fn f1_max(scores: &[(f32, bool)]) -> Option<f64> {
    let bad = scores.iter().filter(|(_, is_bad)| *is_bad).count() as u64;
    let (mut found_bad, mut found) = (bad, scores.len() as u64);
    let mut best = 0.0_f64;
    for_each_tie(scores, |good_here, bad_here| {
        best = best.max(2.0 * found_bad as f64 / (found + bad) as f64);
        found_bad -= bad_here;
        found -= good_here + bad_here;
    });
    (bad > 0).then_some(best)
}

/// Good and bad counts of each distinct score, lowest first.
fn for_each_tie(scores: &[(f32, bool)], mut visit: impl FnMut(u64, u64)) {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    for tie in sorted.chunk_by(|a, b| a.0 == b.0) {
        let bad = tie.iter().filter(|(_, is_bad)| *is_bad).count() as u64;
        visit(tie.len() as u64 - bad, bad);
    }
}

/// Bits of an f32 that a bin leaves out: 23 − 11 = 12 bits of the fraction remain.
const DROPPED_BITS: u32 = 11;
/// Bins of the scores from 0 to infinity.
const BINS: usize = (f32::INFINITY.to_bits() >> DROPPED_BITS) as usize + 1;
/// False-positive rate up to which AUPRO integrates (Bergmann et al. 2021, the MVTec AD evaluation).
const AUPRO_FPR_MAX: f64 = 0.3;

/// Pixel metrics of any number of pictures in fixed memory.
#[derive(Debug, Clone)]
pub struct PixelMetrics {
    good: Vec<u64>,
    bad: Vec<u64>,
    /// Each bad pixel counts 1 / (pixels of its region).
    regions: Vec<f64>,
    region_count: usize,
}

impl Default for PixelMetrics {
    fn default() -> Self {
        Self { good: vec![0; BINS], bad: vec![0; BINS], regions: vec![0.0; BINS], region_count: 0 }
    }
}

impl PixelMetrics {
    /// Count a picture: `scores` and `mask` (true = defect) are `[height, width]`; a good picture has no mask.
    /// Surplus values of the longer one are left out.
    pub fn add(&mut self, scores: &[f32], mask: Option<&[bool]>, width: usize) {
        let Some(mask) = mask else {
            scores.iter().for_each(|score| self.good[bin(*score)] += 1);
            return;
        };
        for (score, is_bad) in scores.iter().zip(mask) {
            let counts = if *is_bad { &mut self.bad } else { &mut self.good };
            counts[bin(*score)] += 1;
        }
        for region in regions(mask, width) {
            let share = 1.0 / region.len() as f64;
            region.iter().filter_map(|&pixel| scores.get(pixel)).for_each(|score| self.regions[bin(*score)] += share);
            self.region_count += 1;
        }
    }

    /// Count what `other` counted as well.
    pub fn merge(&mut self, other: &PixelMetrics) {
        self.good.iter_mut().zip(&other.good).for_each(|(own, other)| *own += other);
        self.bad.iter_mut().zip(&other.bad).for_each(|(own, other)| *own += other);
        self.regions.iter_mut().zip(&other.regions).for_each(|(own, other)| *own += other);
        self.region_count += other.region_count;
    }

    /// Area under the ROC curve of pixels; `None` without good or without bad pixels.
    #[must_use]
    pub fn auroc(&self) -> Option<f64> {
        let (mut below_good, mut bad_total, mut area) = (0_u64, 0_u64, 0.0);
        for (good, bad) in self.good.iter().zip(&self.bad) {
            area += *bad as f64 * (below_good as f64 + *good as f64 / 2.0);
            below_good += good;
            bad_total += bad;
        }
        let pairs = below_good as f64 * bad_total as f64;
        (pairs > 0.0).then(|| area / pairs)
    }

    /// Area under the per-region-overlap curve up to a false-positive rate of 0.3, over 0.3, so 0 to 1; regions are
    /// 8-connected and count alike whatever their size. `None` without good pixels or regions.
    #[must_use]
    pub fn aupro(&self) -> Option<f64> {
        let good_total: u64 = self.good.iter().sum();
        if good_total == 0 || self.region_count == 0 {
            return None;
        }
        let (mut rate, mut overlap, mut area) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (good, share) in self.good.iter().zip(&self.regions).rev() {
            let (next_rate, next_overlap) =
                (rate + *good as f64 / good_total as f64, overlap + share / self.region_count as f64);
            if next_rate >= AUPRO_FPR_MAX {
                let part = if next_rate > rate { (AUPRO_FPR_MAX - rate) / (next_rate - rate) } else { 0.0 };
                let at_limit = overlap + part * (next_overlap - overlap);
                area += (AUPRO_FPR_MAX - rate) * (overlap + at_limit) / 2.0;
                return Some(area / AUPRO_FPR_MAX);
            }
            area += (next_rate - rate) * (overlap + next_overlap) / 2.0;
            (rate, overlap) = (next_rate, next_overlap);
        }
        Some((area + (AUPRO_FPR_MAX - rate).max(0.0) * overlap) / AUPRO_FPR_MAX)
    }
}

/// Floats from 0 on are ordered as their bits; what is below 0 or no number counts as 0.
fn bin(score: f32) -> usize {
    if score > 0.0 { (score.to_bits() >> DROPPED_BITS) as usize } else { 0 }
}

/// Pixels of each 8-connected region.
pub(super) fn regions(mask: &[bool], width: usize) -> Vec<Vec<usize>> {
    let mut is_open = mask.to_vec();
    let mut found = Vec::new();
    let mut queue = VecDeque::new();
    for start in 0..mask.len() {
        if !std::mem::take(&mut is_open[start]) {
            continue;
        }
        let mut region = Vec::new();
        queue.push_back(start);
        while let Some(pixel) = queue.pop_front() {
            region.push(pixel);
            let (x, y) = (pixel % width, pixel / width);
            for ny in y.saturating_sub(1)..=y + 1 {
                for nx in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let neighbour = ny * width + nx;
                    if is_open.get_mut(neighbour).is_some_and(std::mem::take) {
                        queue.push_back(neighbour);
                    }
                }
            }
        }
        found.push(region);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{PixelMetrics, auroc, f1_max, regions};

    fn labelled(good: &[f32], bad: &[f32]) -> Vec<(f32, bool)> {
        good.iter().map(|score| (*score, false)).chain(bad.iter().map(|score| (*score, true))).collect()
    }

    #[test]
    fn auroc_counts_ties_half() {
        assert_eq!(auroc(&labelled(&[1.0, 2.0], &[3.0, 4.0])), Some(1.0));
        assert_eq!(auroc(&labelled(&[3.0, 4.0], &[1.0, 2.0])), Some(0.0));
        assert_eq!(auroc(&labelled(&[1.0, 1.0, 1.0], &[1.0, 1.0])), Some(0.5));
        // pairs: (2>1) (2=2 ½) (2<3) (4>1) (4>2) (4>3) = 4.5 of 6
        assert_eq!(auroc(&labelled(&[1.0, 2.0, 3.0], &[2.0, 4.0])), Some(0.75));
        assert_eq!(auroc(&labelled(&[1.0], &[])), None);
        assert_eq!(auroc(&labelled(&[], &[1.0])), None);
    }

    #[test]
    fn the_best_f1_takes_tied_scores_together() {
        assert_eq!(f1_max(&labelled(&[1.0, 2.0], &[3.0, 4.0])), Some(1.0));
        // from 2 on: 2 of 2 bad found among 3
        assert_eq!(f1_max(&labelled(&[1.0, 2.0], &[2.0, 4.0])), Some(0.8));
        assert_eq!(f1_max(&labelled(&[5.0, 5.0], &[5.0])), Some(0.5));
        assert_eq!(f1_max(&labelled(&[5.0], &[])), None);
    }

    #[test]
    fn pixel_auroc_equals_the_image_formula() {
        let mut pixels = PixelMetrics::default();
        pixels.add(&[1.0, 2.0, 2.0, 4.0], Some(&[false, false, true, true]), 2);
        pixels.add(&[3.0, 0.0], None, 2);
        let expected = auroc(&labelled(&[1.0, 2.0, 3.0, 0.0], &[2.0, 4.0]));
        assert_eq!(pixels.auroc(), expected);
    }

    #[test]
    fn merged_counts_are_those_of_one_run() {
        let (mut good, mut bad, mut all) = (PixelMetrics::default(), PixelMetrics::default(), PixelMetrics::default());
        let mask = [false, true, true, false];
        for metrics in [&mut good, &mut all] {
            metrics.add(&[1.0, 2.0, 0.5, 4.0], None, 2);
        }
        for metrics in [&mut bad, &mut all] {
            metrics.add(&[1.5, 3.0, 0.7, 2.0], Some(&mask), 2);
        }
        good.merge(&bad);
        assert_eq!((good.auroc(), good.aupro()), (all.auroc(), all.aupro()));
        assert!(all.auroc().is_some() && all.aupro().is_some());
    }

    #[test]
    fn regions_join_over_corners_but_not_over_the_edge() {
        #[rustfmt::skip]
        let mask = [
            true, false, false, true,
            false, true, false, false,
            true, false, false, false,
        ];
        let mut sizes: Vec<usize> = regions(&mask, 4).iter().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 3]);
    }

    #[test]
    fn aupro_weighs_regions_alike_and_stops_at_its_rate() {
        // 10 good pixels; a region of 1 pixel at 9, one of 2 pixels at 5 and 0.5
        let good = [8.0, 7.0, 6.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let mut pixels = PixelMetrics::default();
        pixels.add(&good, None, 10);
        pixels.add(&[9.0, 0.0, 5.0, 0.5], Some(&[true, false, true, true]), 4);
        // 11 good: rates 1/11, 2/11, 3/11 at overlap 0.5; then overlap 0.75 and on to 0.3 along the step to 4/11
        let expected = (0.5 * 3.0 / 11.0 + 0.75 * (0.3 - 3.0 / 11.0)) / 0.3;
        assert!((pixels.aupro().unwrap() - expected).abs() < 1e-9, "{:?} {expected}", pixels.aupro());
    }

    #[test]
    fn perfect_maps_reach_one_and_empty_ones_nothing() {
        let mut pixels = PixelMetrics::default();
        assert_eq!((pixels.auroc(), pixels.aupro()), (None, None));
        pixels.add(&[0.1, 0.1, 0.1, 5.0], Some(&[false, false, false, true]), 2);
        assert_eq!((pixels.auroc(), pixels.aupro()), (Some(1.0), Some(1.0)));
    }
}
