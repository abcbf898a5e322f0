//! The coreset of all training pictures, and honest scores of the same pictures: each by a bank of the others.

use std::ops::Range;

use super::map::MapDrawer;
use super::memory::Memory;
use super::{AnomalyError, coreset};
use crate::matching::faiss;

/// Parts the pictures are split into; each is scored by a bank of the others.
const FOLDS_MAX: usize = 5;

/// Descriptors of good pictures and how to learn from them.
#[derive(Debug)]
pub(super) struct Training<'d> {
    /// `[images × patches, dim]`.
    pub(super) descriptors: &'d [f32],
    pub(super) image_count: usize,
    /// Patches across and down.
    pub(super) grid: (usize, usize),
    pub(super) dim: usize,
    /// Width and height of the maps.
    pub(super) map_px: (usize, usize),
    pub(super) coreset_ratio: f64,
    pub(super) seed: u64,
}

/// What the folds say about pictures the bank has not seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct GoodScores {
    /// Raw image scores.
    pub(super) image: Vec<f32>,
    /// Largest value of each picture's map.
    pub(super) map_max: Vec<f32>,
}

impl Training<'_> {
    /// The bank's vectors, and the scores of the folds; jobs are spread over the cores.
    pub(super) fn learn(&self) -> Result<(Memory, GoodScores), AnomalyError> {
        let folds = self.image_count.min(FOLDS_MAX);
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(folds);
        let mut good = GoodScores { image: Vec::new(), map_max: Vec::new() };
        let (memory, by_worker) = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|worker| {
                    scope.spawn(move || {
                        let mine = (worker..folds).step_by(workers);
                        mine.map(|fold| self.score_fold(fold, folds)).collect::<Vec<_>>()
                    })
                })
                .collect();
            let memory = self.memory_without(0..0);
            let by_worker: Vec<_> = handles.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            (memory, by_worker)
        });
        for results in by_worker {
            let results = results.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for result in results {
                let scores = result?;
                good.image.extend(scores.image);
                good.map_max.extend(scores.map_max);
            }
        }
        Ok((memory?, good))
    }

    /// Scores of the pictures of one fold by a bank of all others.
    fn score_fold(&self, fold: usize, folds: usize) -> Result<GoodScores, AnomalyError> {
        faiss::set_threads(1);
        let held_out = self.image_count * fold / folds..self.image_count * (fold + 1) / folds;
        let memory = self.memory_without(held_out.clone())?;
        let mut drawer = MapDrawer::new(self.grid, self.map_px);
        let values_per_image = self.values_per_image();
        let mut scores = GoodScores { image: Vec::new(), map_max: Vec::new() };
        for image in held_out {
            let patches = &self.descriptors[image * values_per_image..(image + 1) * values_per_image];
            let found = memory.search(patches)?;
            scores.image.push(memory.image_score(patches, &found)?);
            let map = drawer.draw(&found.distances);
            scores.map_max.push(map.data.iter().copied().fold(0.0, f32::max));
        }
        Ok(scores)
    }

    /// A coreset of all pictures but those `held_out`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the number of patches, above 0"
    )]
    fn memory_without(&self, held_out: Range<usize>) -> Result<Memory, AnomalyError> {
        let dim = self.dim;
        let values_per_image = self.values_per_image();
        let (before, after) = (held_out.start * values_per_image, held_out.end * values_per_image);
        let copied: Vec<f32>;
        let vectors = if held_out.is_empty() {
            self.descriptors
        } else {
            copied = [&self.descriptors[..before], &self.descriptors[after..]].concat();
            &copied
        };
        let total = vectors.len() / dim;
        let count = ((total as f64 * self.coreset_ratio).round() as usize).clamp(1, total);
        let chosen = coreset::choose(vectors, dim, count, self.seed);
        let rows = chosen.iter().flat_map(|&index| &vectors[index * dim..(index + 1) * dim]);
        Memory::new(rows.copied().collect(), dim)
    }

    fn values_per_image(&self) -> usize {
        self.grid.0 * self.grid.1 * self.dim
    }
}

#[cfg(test)]
mod tests {
    use super::Training;

    /// `images` pictures of 2×2 patches near (picture mod 2), one of them far away.
    fn descriptors(images: usize, odd: Option<usize>) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(5);
        let base = |image: usize| if Some(image) == odd { 50.0 } else { (image % 2) as f32 };
        (0..images).flat_map(|image| [base(image); 8]).map(|value| value + 0.01 * random.f32()).collect()
    }

    fn training(descriptors: &[f32], image_count: usize) -> Training<'_> {
        let (grid, map_px) = ((2, 2), (8, 8));
        Training { descriptors, image_count, grid, dim: 2, map_px, coreset_ratio: 0.5, seed: 1 }
    }

    #[test]
    fn every_picture_is_scored_once_and_never_by_its_own_patches() {
        let descriptors = descriptors(12, Some(7));
        let (memory, good) = training(&descriptors, 12).learn().unwrap();
        assert_eq!((memory.len(), good.image.len(), good.map_max.len()), (24, 12, 12));
        let far = good.map_max.iter().filter(|value| **value > 60.0).count();
        assert_eq!(far, 1, "the odd picture is far from all others: {:?}", good.map_max);
    }

    #[test]
    fn two_pictures_are_enough_and_the_scores_repeat() {
        let descriptors = descriptors(2, None);
        let (_, first) = training(&descriptors, 2).learn().unwrap();
        let (_, again) = training(&descriptors, 2).learn().unwrap();
        assert_eq!(first, again);
        assert_eq!(first.image.len(), 2);
    }
}
