//! The coreset of all training pictures, and honest scores of the same pictures: each by a bank of the others.

use std::ops::Range;

use super::cells::SurfaceDrawer;
use super::describe::Shape;
use super::memory::Memory;
use super::{AnomalyError, coreset};
use crate::clock::Stopwatch;
use crate::matching::faiss;

/// Parts the pictures are split into; each is scored by a bank of the others.
const FOLDS_MAX: usize = 5;

/// Descriptors of good pictures and how to learn from them.
pub(super) struct Training<'d> {
    /// Of the patches that count and were seen, picture by picture, `[patches, dim]`.
    pub(super) descriptors: &'d [f32],
    /// Of each picture, which of the patches that count were seen; `None` = all.
    pub(super) seen: &'d [Option<Vec<usize>>],
    pub(super) shape: &'d Shape,
    /// Vectors that are in the bank whatever is chosen, `[n, dim]`.
    pub(super) base: &'d [f32],
    pub(super) coreset_ratio: f64,
    pub(super) seed: u64,
    /// Seconds after which the choices end with what they have; `None` = never.
    pub(super) budget_s: Option<f32>,
    /// Told how many vectors of how many the bank's own coreset has.
    pub(super) progress: &'d (dyn Fn(usize, usize) + Sync),
}

/// The bank's vectors and the picture of each that was chosen.
#[derive(Debug)]
pub(super) struct Learned {
    pub(super) memory: Memory,
    /// Of the vectors after the base.
    pub(super) origins: Vec<u32>,
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
    pub(super) fn learn(&self) -> Result<(Learned, GoodScores), AnomalyError> {
        let watch = Stopwatch::start();
        let folds = self.seen.len().min(FOLDS_MAX);
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(folds);
        let mut good = GoodScores { image: Vec::new(), map_max: Vec::new() };
        let (memory, by_worker) = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|worker| {
                    scope.spawn(move || {
                        let mine: Vec<usize> = (worker..folds).step_by(workers).collect();
                        let scored = mine.iter().zip(1_u8..).map(|(fold, nth)| {
                            // Each of a worker's folds ends at its share of the budget.
                            let share = f32::from(nth) / mine.len() as f32;
                            self.score_fold(*fold, folds, &watch, share)
                        });
                        scored.collect::<Vec<_>>()
                    })
                })
                .collect();
            let memory = self.memory_without(0..0, &watch, 1.0);
            let by_worker: Vec<_> = handles.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            (memory, by_worker)
        });
        let by_worker =
            by_worker.into_iter().map(|results| results.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let mut by_worker: Vec<_> = by_worker.map(Vec::into_iter).collect();
        // In the order of the pictures, whatever the number of cores: fold k is the next one of worker k mod workers.
        for fold in 0..folds {
            if let Some(scores) = by_worker[fold % workers].next() {
                let scores = scores?;
                good.image.extend(scores.image);
                good.map_max.extend(scores.map_max);
            }
        }
        Ok((memory?, good))
    }

    /// Scores of the pictures of one fold by a bank of all others.
    fn score_fold(
        &self,
        fold: usize,
        folds: usize,
        watch: &Stopwatch,
        budget_share: f32,
    ) -> Result<GoodScores, AnomalyError> {
        faiss::set_threads(1);
        let image_count = self.seen.len();
        let held_out = image_count * fold / folds..image_count * (fold + 1) / folds;
        let memory = self.memory_without(held_out.clone(), watch, budget_share)?.memory;
        let mut drawer = SurfaceDrawer::new(self.shape.cells.clone(), self.shape.canvas_px);
        let (starts, dim) = (self.starts(), self.shape.dim);
        let mut scores = GoodScores { image: Vec::new(), map_max: Vec::new() };
        for image in held_out {
            let patches = &self.descriptors[starts[image] * dim..starts[image + 1] * dim];
            let found = memory.search(patches)?;
            scores.image.push(memory.image_score(patches, &found)?);
            let map = drawer.draw(&found.distances, self.seen[image].as_deref());
            scores.map_max.push(map.data.iter().copied().fold(0.0, f32::max));
        }
        Ok(scores)
    }

    /// The base and a coreset of all pictures but those `held_out`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the number of patches, above 0"
    )]
    fn memory_without(
        &self,
        held_out: Range<usize>,
        watch: &Stopwatch,
        budget_share: f32,
    ) -> Result<Learned, AnomalyError> {
        let dim = self.shape.dim;
        let starts = self.starts();
        let (before, after) = (starts[held_out.start], starts[held_out.end]);
        let copied: Vec<f32>;
        let vectors = if held_out.is_empty() {
            self.descriptors
        } else {
            copied = [&self.descriptors[..before * dim], &self.descriptors[after * dim..]].concat();
            &copied
        };
        let total = vectors.len() / dim;
        let count = ((total as f64 * self.coreset_ratio).round() as usize).min(total).max(usize::from(total > 0));
        let budget_ms = self.budget_s.map(|budget_s| budget_s * 1_000.0 * budget_share);
        let mut go_on = |chosen: usize| {
            if held_out.is_empty() {
                (self.progress)(chosen, count);
            }
            budget_ms.is_none_or(|budget_ms| watch.ms() < budget_ms)
        };
        let chosen = coreset::choose_beside(self.base, vectors, dim, count, self.seed, &mut go_on);
        let picture = |&index: &usize| {
            let patch = if index < before { index } else { index + after - before };
            u32::try_from(starts.partition_point(|start| *start <= patch) - 1).unwrap_or(u32::MAX)
        };
        let origins = chosen.iter().map(picture).collect();
        let rows = chosen.iter().flat_map(|&index| &vectors[index * dim..(index + 1) * dim]);
        let memory = Memory::new(self.base.iter().chain(rows).copied().collect(), dim)?;
        Ok(Learned { memory, origins })
    }

    /// The number of each picture's first patch, and behind the last one that of all patches.
    fn starts(&self) -> Vec<usize> {
        let counts = self.seen.iter().map(|seen| seen.as_ref().map_or(self.shape.cells.len(), Vec::len));
        let sums = counts.scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        std::iter::once(0).chain(sums).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Training;
    use crate::anomaly::cells::Cells;
    use crate::anomaly::describe::Shape;
    use crate::anomaly::view::View;

    /// `images` pictures of 2×2 patches near (picture mod 2), one of them far away.
    fn descriptors(images: usize, odd: Option<usize>) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(5);
        let base = |image: usize| if Some(image) == odd { 50.0 } else { (image % 2) as f32 };
        (0..images).flat_map(|image| [base(image); 8]).map(|value| value + 0.01 * random.f32()).collect()
    }

    fn shape() -> Shape {
        Shape { grid: (2, 2), dim: 2, canvas_px: (8, 8), cells: Cells::new((2, 2), &View::default()) }
    }

    const WHOLE: &[Option<Vec<usize>>] = &[const { None }; 12];

    fn training<'d>(descriptors: &'d [f32], image_count: usize, shape: &'d Shape) -> Training<'d> {
        Training {
            descriptors,
            seen: &WHOLE[..image_count],
            shape,
            base: &[],
            coreset_ratio: 0.5,
            seed: 1,
            budget_s: None,
            progress: &|_, _| {},
        }
    }

    #[test]
    fn every_picture_is_scored_once_and_never_by_its_own_patches() {
        let descriptors = descriptors(12, Some(7));
        let (learned, good) = training(&descriptors, 12, &shape()).learn().unwrap();
        assert_eq!((learned.memory.len(), good.image.len(), good.map_max.len()), (24, 12, 12));
        for scores in [&good.image, &good.map_max] {
            let far: Vec<usize> = (0..12).filter(|&picture| scores[picture] > 60.0).collect();
            assert_eq!(far, [7], "the odd picture, and no other, is far from all others: {scores:?}");
        }
    }

    #[test]
    fn every_vector_names_the_picture_it_came_from() {
        let descriptors = descriptors(12, Some(7));
        let shape = shape();
        let (learned, _) = training(&descriptors, 12, &shape).learn().unwrap();
        let found = learned.memory.search(&descriptors[7 * 8..8 * 8]).unwrap();
        assert!(found.ids().iter().all(|&id| learned.origins[usize::try_from(id).unwrap()] == 7), "{found:?}");
    }

    #[test]
    fn patches_that_were_not_seen_are_neither_learnt_nor_scored() {
        let all = descriptors(12, Some(7));
        // Of picture 3 the second patch was filler, far from everything; what is left of it is like the others.
        let mut seen = WHOLE.to_vec();
        seen[3] = Some(vec![0, 2, 3]);
        let without: Vec<f32> = [&all[..3 * 8 + 2], &all[3 * 8 + 4..]].concat();
        let mut with = all.clone();
        with[3 * 8 + 2..3 * 8 + 4].fill(90.0);
        let shape = shape();
        let (_, whole) = training(&with, 12, &shape).learn().unwrap();
        let (learned, good) = Training { seen: &seen, ..training(&without, 12, &shape) }.learn().unwrap();
        assert!(whole.image[3] > 20.0 && good.image[3] < 5.0 && good.map_max[3] < 5.0, "{good:?}");
        assert_eq!((good.image.len(), learned.memory.len()), (12, 24));
        let found = learned.memory.search(&all[7 * 8..8 * 8]).unwrap();
        assert!(found.ids().iter().all(|&id| learned.origins[usize::try_from(id).unwrap()] == 7), "{found:?}");
    }

    #[test]
    fn pictures_that_the_base_covers_score_low_and_a_spent_budget_ends_the_choice() {
        let descriptors = descriptors(12, Some(7));
        let shape = shape();
        let base = vec![50.0; 8];
        let based = Training { base: &base, ..training(&descriptors, 12, &shape) };
        let (learned, good) = based.learn().unwrap();
        assert_eq!((learned.memory.len(), learned.origins.len()), (28, 24));
        assert!(good.map_max.iter().all(|value| *value < 5.0), "{:?}", good.map_max);
        let spent = Training { budget_s: Some(0.0), ..training(&descriptors, 12, &shape) };
        assert_eq!(spent.learn().unwrap().0.memory.len(), 1);
    }

    #[test]
    fn two_pictures_are_enough_and_the_scores_repeat() {
        let descriptors = descriptors(2, None);
        let shape = shape();
        let (_, first) = training(&descriptors, 2, &shape).learn().unwrap();
        let (_, again) = training(&descriptors, 2, &shape).learn().unwrap();
        assert_eq!(first, again);
        assert_eq!(first.image.len(), 2);
    }
}
