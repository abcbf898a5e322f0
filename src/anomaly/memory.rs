//! The bank in RAM: nearest-neighbour distances of patches, and the image score from them.

use super::AnomalyError;
use super::score::{REWEIGHT_NEIGHBOURS, reweight};
use crate::matching::faiss::{Index, Metric};

/// Bank vectors, in FAISS for the search and as they are for exact distances.
#[derive(Debug)]
pub(super) struct Memory {
    index: Index,
    /// `[len, dim]`.
    vectors: Vec<f32>,
    dim: usize,
}

/// Each patch's distance to the bank.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PatchDistances {
    /// Euclidean, ≥ 0, in the order of the patches.
    pub(super) distances: Vec<f32>,
    ids: Vec<i64>,
}

impl Memory {
    /// From `[n, dim]` vectors, n above 0.
    pub(super) fn new(vectors: Vec<f32>, dim: usize) -> Result<Self, AnomalyError> {
        let mut index = Index::factory(dim, "Flat", Metric::L2)?;
        index.add(&vectors)?;
        Ok(Self { index, vectors, dim })
    }

    /// From a flat L2 index; `None` for any other or an empty one.
    pub(super) fn from_index(index: Index) -> Option<Self> {
        let vectors = index.flat_vectors().filter(|vectors| !vectors.is_empty())?;
        let dim = index.dim();
        (index.metric() == Some(Metric::L2)).then_some(Self { index, vectors, dim })
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn len(&self) -> usize {
        self.vectors.len() / self.dim
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Distance of each of `patches`, `[n, dim]`, to its nearest bank vector.
    ///
    /// FAISS computes 20 queries or more as one matrix product, which loses digits of small distances; the distance to
    /// the neighbour it found is therefore taken again exactly.
    pub(super) fn search(&self, patches: &[f32]) -> Result<PatchDistances, AnomalyError> {
        let ids = self.index.search(patches, 1)?.ids;
        let distances = patches.chunks_exact(self.dim).zip(&ids).map(|(patch, &id)| self.distance(patch, id)).collect();
        Ok(PatchDistances { distances, ids })
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

#[cfg(test)]
mod tests {
    use super::Memory;

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
}
