//! The fast search: bank vectors in lists around centres, of which a patch visits the few nearest.
//!
//! What it finds is a vector of the bank, so its distance is never below the true one. The picture's score needs only the
//! largest true distance: the patches are searched again exactly, from the largest found distance down, until none that
//! is left can reach it. The score is therefore that of the exact search; the map may be too high in single places.
//! The lists follow from the bank's vectors alone (k-means that starts at the first of them, which the greedy coreset has
//! spread; Lloyd 1982), so a decision can be recomputed from the bank. Overload: none of its own.

use super::nearest::{Found, Panels};
use crate::matching::kernel::similarities;

/// Lists that a patch visits. 784 patches over 7 840 made-up vectors in 300 clusters: another neighbour for 6 patches in
/// 10 000 at 5.1 ms of one core; with 4 lists for 16 at 4.4 ms.
const VISITED: usize = 6;
/// Rounds of k-means; later ones move almost no vector.
const ROUNDS: usize = 6;
/// Banks smaller than this are searched whole: there is nothing to save.
const VECTORS_MIN: usize = 512;

/// Vectors by their nearest centre.
#[derive(Debug)]
pub(super) struct Lists {
    dim: usize,
    /// `[lists, dim]`, less the bank's centre, and half of each one's square.
    centres: Vec<f32>,
    half_squares: Vec<f32>,
    lists: Vec<List>,
}

#[derive(Debug)]
struct List {
    panels: Panels,
    /// Positions in the bank.
    ids: Vec<u32>,
}

impl Lists {
    /// Of `[n, dim]` vectors whose mean is `centre`; `None` where there are too few to be worth it.
    pub(super) fn new(vectors: &[f32], centre: &[f32], threads: usize) -> Option<Self> {
        let dim = centre.len();
        let count = vectors.len() / dim;
        if count < VECTORS_MIN {
            return None;
        }
        let list_count = count.isqrt();
        let mut means = vectors[..list_count * dim].to_vec();
        let mut nearest = Vec::new();
        for round in 0..=ROUNDS {
            nearest = Panels::new(&means, centre).nearest(vectors, centre, threads);
            if round < ROUNDS {
                move_to_means(&mut means, vectors, &nearest, dim);
            }
        }
        let mut members = vec![(Vec::new(), Vec::new()); list_count];
        for ((vector, found), id) in vectors.chunks_exact(dim).zip(&nearest).zip(0_u32..) {
            let (values, ids) = &mut members[found.position as usize];
            values.extend_from_slice(vector);
            ids.push(id);
        }
        let lists = members.into_iter().map(|(values, ids)| List { panels: Panels::new(&values, centre), ids });
        let centres: Vec<f32> = means.chunks_exact(dim).flat_map(|mean| less(mean, centre)).collect();
        let half_squares =
            centres.chunks_exact(dim).map(|mean| mean.iter().map(|v| v * v).sum::<f32>() / 2.0).collect();
        Some(Self { dim, centres, half_squares, lists: lists.collect() })
    }

    /// As [`Panels::nearest`], within the lists that each patch visits.
    pub(super) fn nearest(&self, patches: &[f32], centre: &[f32]) -> Vec<Found> {
        let dim = self.dim;
        let relative: Vec<f32> = patches.chunks_exact(dim).flat_map(|patch| less(patch, centre)).collect();
        let mut visitors = vec![Vec::new(); self.lists.len()];
        let nearness = similarities(&relative, &self.centres, dim);
        let mut best_lists = Vec::with_capacity(VISITED);
        for (row, patch) in nearness.chunks_exact(self.lists.len()).zip(0_u32..) {
            self.nearest_lists(row, &mut best_lists);
            best_lists.iter().for_each(|&(list, _)| visitors[list].push(patch));
        }
        let mut found = vec![Found { value: f32::NEG_INFINITY, position: 0 }; patches.len() / dim];
        let mut gathered = Vec::new();
        for (list, visitors) in self.lists.iter().zip(&visitors) {
            gathered.clear();
            for &patch in visitors {
                gathered.extend_from_slice(&patches[patch as usize * dim..(patch as usize + 1) * dim]);
            }
            for (&patch, here) in visitors.iter().zip(list.panels.nearest(&gathered, centre, 1)) {
                let best = &mut found[patch as usize];
                if here.value > best.value {
                    *best = Found { value: here.value, position: list.ids[here.position as usize] };
                }
            }
        }
        found
    }

    /// The visited lists into `best`, nearest first; empty lists are left out.
    fn nearest_lists(&self, products: &[f32], best: &mut Vec<(usize, f32)>) {
        best.clear();
        for (list, (product, half_square)) in products.iter().zip(&self.half_squares).enumerate() {
            let value = product - half_square;
            let is_full = best.len() == VISITED;
            if self.lists[list].ids.is_empty() || (is_full && best.last().is_some_and(|(_, last)| value <= *last)) {
                continue;
            }
            if is_full {
                best.pop();
            }
            let at = best.partition_point(|(_, other)| *other >= value);
            best.insert(at, (list, value));
        }
    }
}

fn less<'v>(vector: &'v [f32], centre: &'v [f32]) -> impl Iterator<Item = f32> + 'v {
    vector.iter().zip(centre).map(|(value, mean)| value - mean)
}

/// Each list's mean; a list that nobody is nearest to stays where it is.
fn move_to_means(means: &mut [f32], vectors: &[f32], nearest: &[Found], dim: usize) {
    let mut sums = vec![0.0_f64; means.len()];
    let mut counts = vec![0_u32; means.len() / dim];
    for (vector, found) in vectors.chunks_exact(dim).zip(nearest) {
        let list = found.position as usize;
        counts[list] += 1;
        sums[list * dim..].iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    for ((mean, sums), count) in means.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(counts) {
        if count > 0 {
            mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = to_f32(*sum / f64::from(count)));
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a mean of f32 values fits; its last digits are not needed")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::{Lists, VECTORS_MIN};

    #[test]
    fn too_few_vectors_have_no_lists_and_every_vector_is_in_one() {
        let mut rng = fastrand::Rng::with_seed(1);
        let vectors: Vec<f32> = (0..VECTORS_MIN * 4).map(|_| rng.f32()).collect();
        let centre = [0.5; 4];
        assert!(Lists::new(&vectors[..(VECTORS_MIN - 1) * 4], &centre, 1).is_none());
        let lists = Lists::new(&vectors, &centre, 1).unwrap();
        let mut ids: Vec<u32> = lists.lists.iter().flat_map(|list| list.ids.clone()).collect();
        ids.sort_unstable();
        assert!(ids.iter().copied().eq(0..u32::try_from(VECTORS_MIN).unwrap()));
        let found = lists.nearest(&vectors, &centre);
        assert!(found.iter().zip(0..).all(|(found, id)| found.position == id), "each finds itself");
    }

    #[test]
    fn equal_vectors_make_no_list_without_end() {
        let vectors = vec![1.0; VECTORS_MIN * 2];
        let lists = Lists::new(&vectors, &[1.0, 1.0], 2).unwrap();
        assert_eq!(lists.nearest(&[1.0, 1.0], &[1.0, 1.0])[0].position, 0);
    }
}
