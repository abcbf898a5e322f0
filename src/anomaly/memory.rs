//! The bank in RAM: nearest-neighbour distances of patches, and the image score from them.

use super::AnomalyError;
use super::lists::Lists;
use super::nearest::{Found, Panels};
use super::score::{REWEIGHT_NEIGHBOURS, reweight};
use crate::matching::faiss::{FaissError, Index, Metric};

/// Patches that the fast search searches again at once.
const RECHECKED_AT_ONCE: usize = 24;

/// How a bank is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchMode {
    /// Every patch against every vector.
    #[default]
    Exact,
    /// Every patch against the vectors of a few lists; the image score is still that of the exact search, the map may be
    /// too high in single places.
    Fast,
}

/// Bank vectors, in FAISS for the file and the neighbours of one, and in the order that patches are compared with them.
#[derive(Debug)]
pub(super) struct Memory {
    index: Index,
    /// `[len, dim]`.
    vectors: Vec<f32>,
    dim: usize,
    /// Mean of the vectors.
    centre: Vec<f32>,
    panels: Panels,
    /// `None`: every vector is compared.
    lists: Option<Lists>,
    threads: usize,
}

/// Each patch's distance to the bank.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PatchDistances {
    /// Euclidean, ≥ 0, in the order of the patches.
    pub(super) distances: Vec<f32>,
    ids: Vec<i64>,
}

impl PatchDistances {
    /// Of each patch's nearest bank vector.
    pub(super) fn ids(&self) -> &[i64] {
        &self.ids
    }
}

impl Memory {
    /// From `[n, dim]` vectors, n above 0.
    pub(super) fn new(vectors: Vec<f32>, dim: usize) -> Result<Self, AnomalyError> {
        let mut index = Index::factory(dim, "Flat", Metric::L2)?;
        index.add(&vectors)?;
        Ok(Self::with(index, vectors))
    }

    /// From a flat L2 index; `None` for any other or an empty one.
    pub(super) fn from_index(index: Index) -> Option<Self> {
        let vectors = index.flat_vectors().filter(|vectors| !vectors.is_empty())?;
        (index.metric() == Some(Metric::L2)).then(|| Self::with(index, vectors))
    }

    fn with(index: Index, vectors: Vec<f32>) -> Self {
        let dim = index.dim();
        let centre = mean_of(&vectors, dim);
        let panels = Panels::new(&vectors, &centre);
        Self { index, vectors, dim, centre, panels, lists: None, threads: 1 }
    }

    /// From now on search so, on this many threads, at least one.
    pub(super) fn set_search(&mut self, mode: SearchMode, threads: usize) {
        self.threads = threads.max(1);
        self.lists = match mode {
            SearchMode::Exact => None,
            SearchMode::Fast => Lists::new(&self.vectors, &self.centre, self.threads),
        };
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// `[len, dim]`.
    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    pub(super) fn len(&self) -> usize {
        self.vectors.len() / self.dim
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Distance of each of `patches`, `[n, dim]`, to its nearest bank vector.
    ///
    /// The search compares products, which lose digits of small distances; the distance to the neighbour it found is
    /// therefore taken again from the difference. The largest distance is true in either mode.
    pub(super) fn search(&self, patches: &[f32]) -> Result<PatchDistances, AnomalyError> {
        if !patches.len().is_multiple_of(self.dim) {
            return Err(FaissError::Shape { values: patches.len(), dim: self.dim }.into());
        }
        if let Some(at) = patches.iter().position(|value| !value.is_finite()) {
            let (vector, position) = (at / self.dim, at % self.dim);
            return Err(FaissError::NotFinite { vector, position, value: patches[at] }.into());
        }
        let found = match &self.lists {
            None => self.panels.nearest(patches, &self.centre, self.threads),
            Some(lists) => lists.nearest(patches, &self.centre),
        };
        let mut result = PatchDistances { distances: vec![0.0; found.len()], ids: vec![0; found.len()] };
        let every: Vec<usize> = (0..found.len()).collect();
        self.measure(patches, &every, &found, &mut result);
        if self.lists.is_some() {
            self.recheck(patches, &mut result);
        }
        Ok(result)
    }

    /// Search again exactly, from the largest distance down, until no distance that is left can be the largest.
    fn recheck(&self, patches: &[f32], result: &mut PatchDistances) {
        let mut order: Vec<usize> = (0..result.distances.len()).collect();
        order.sort_unstable_by(|a, b| result.distances[*b].total_cmp(&result.distances[*a]));
        let mut largest = 0.0_f32;
        for some in order.chunks(RECHECKED_AT_ONCE) {
            if result.distances[some[0]] <= largest {
                return;
            }
            let dim = self.dim;
            let gathered: Vec<f32> =
                some.iter().flat_map(|&patch| &patches[patch * dim..(patch + 1) * dim]).copied().collect();
            let found = self.panels.nearest(&gathered, &self.centre, self.threads);
            self.measure(patches, some, &found, result);
            largest = some.iter().fold(largest, |largest, &patch| largest.max(result.distances[patch]));
        }
    }

    /// Note the distance of each of the patches `which` to the vector that was found for it.
    fn measure(&self, patches: &[f32], which: &[usize], found: &[Found], result: &mut PatchDistances) {
        for (&patch, found) in which.iter().zip(found) {
            let id = i64::from(found.position);
            result.distances[patch] = self.distance(&patches[patch * self.dim..(patch + 1) * self.dim], id);
            result.ids[patch] = id;
        }
    }

    /// Re-weighted score of the picture that `found` was searched for (see [`reweight`]); 0 without patches.
    pub(super) fn image_score(&self, patches: &[f32], found: &PatchDistances) -> Result<f32, AnomalyError> {
        let worst = found.distances.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let Some((patch_index, &distance)) = worst else { return Ok(0.0) };
        let nearest = found.ids[patch_index];
        let patch = &patches[patch_index * self.dim..(patch_index + 1) * self.dim];
        let neighbours = self.index.search(self.vector(nearest), REWEIGHT_NEIGHBOURS.min(self.len()))?;
        let others = neighbours.ids.iter().filter(|&&id| id >= 0 && id != nearest);
        let distances: Vec<f32> = std::iter::once(distance).chain(others.map(|&id| self.distance(patch, id))).collect();
        Ok(reweight(&distances) * distance)
    }

    fn distance(&self, patch: &[f32], id: i64) -> f32 {
        let squares = patch.iter().zip(self.vector(id)).map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f32>().sqrt()
    }

    /// Empty for an id FAISS does not know, which a bank that is not empty never gives.
    fn vector(&self, id: i64) -> &[f32] {
        let start = usize::try_from(id).unwrap_or(usize::MAX).saturating_mul(self.dim);
        self.vectors.get(start..start.saturating_add(self.dim)).unwrap_or(&[])
    }
}

fn mean_of(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; dim];
    for vector in vectors.chunks_exact(dim) {
        sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let count = (vectors.len() / dim).max(1) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 values fits; its last digits are not needed")]
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::{Memory, SearchMode};

    #[test]
    fn distances_are_euclidean_and_exact_in_large_batches() {
        let memory = Memory::new(vec![1000.0, 0.0, 0.0, 1000.0], 2).unwrap();
        let patches = [1000.0, 0.003].repeat(64);
        let found = memory.search(&patches).unwrap();
        assert!(found.distances.iter().all(|distance| (distance - 0.003).abs() < 1e-6), "{:?}", found.distances);
    }

    #[test]
    fn the_image_score_is_the_largest_distance_times_its_weight() {
        let memory = Memory::new(vec![0.0, 1.0, 5.0], 1).unwrap();
        let patches = [0.1, 3.2];
        let found = memory.search(&patches).unwrap();
        // the worst patch, 3.2, is nearest to 5.0; its distances to 5, 1 and 0
        let d = [1.8_f32, 2.2, 3.2];
        let weight = 1.0 - d[0].exp() / d.iter().map(|distance| distance.exp()).sum::<f32>();
        let score = memory.image_score(&patches, &found).unwrap();
        assert!((score - weight * 1.8).abs() < 1e-4, "{score}");
    }

    #[test]
    fn a_bank_of_one_vector_still_scores() {
        let memory = Memory::new(vec![1.0], 1).unwrap();
        let found = memory.search(&[4.0]).unwrap();
        assert_eq!(memory.image_score(&[4.0], &found).unwrap(), 3.0);
    }

    #[test]
    fn a_patch_that_is_no_number_is_an_error() {
        assert!(Memory::new(vec![1.0], 1).unwrap().search(&[f32::NAN]).is_err());
    }

    #[test]
    fn the_fast_search_gives_the_exact_score_and_no_distance_below_the_exact_one() {
        let mut random = fastrand::Rng::with_seed(11);
        let dim = 8;
        let mut vectors = |count: usize| -> Vec<f32> { (0..count * dim).map(|_| random.f32()).collect() };
        let (bank, patches) = (vectors(3_000), vectors(500));
        let mut memory = Memory::new(bank, dim).unwrap();
        let exact = memory.search(&patches).unwrap();
        memory.set_search(SearchMode::Fast, 1);
        let fast = memory.search(&patches).unwrap();
        let score = |found| memory.image_score(&patches, found).unwrap();
        assert_eq!(score(&exact), score(&fast));
        assert!(exact.distances.iter().zip(&fast.distances).all(|(exact, fast)| *fast >= exact - 1e-6));
        let differ = exact.distances.iter().zip(&fast.distances).filter(|(exact, fast)| exact != fast).count();
        assert!((1..100).contains(&differ), "{differ} of 500 distances differ");
    }
}
