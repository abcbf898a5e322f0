//! Stage 2: the search of the cold tier (L2, memory-mapped) for the queries that L1 did not answer.
//!
//! Invariant: similarities are exact cosines of the mapped vectors; only which lists are visited is approximate.
//! Thread: any number at once, no lock. Overload: a query costs its share of the centroids and of the lists it visits;
//! queries of a batch that visit the same list share its reading.

use super::rank::{Candidate, TopParts};
use super::search::PartIndex;
use crate::types::Tier;

impl PartIndex {
    /// Search L2 for the queries numbered in `which`, visiting `nprobe` lists for each, and count every template found
    /// into `tops`.
    pub(super) fn search_cold(&self, queries: &[f32], which: &[usize], nprobe: usize, tops: &mut [TopParts]) {
        if which.is_empty() {
            return;
        }
        let dim = self.dim();
        let (ids, lists) = (&self.generation.ids, &self.generation.lists);
        let parts = ids.parts();
        let batch: Vec<f32> = which.iter().flat_map(|&at| &queries[at * dim..(at + 1) * dim]).copied().collect();
        lists.scan(self.generation.l2(), &batch, nprobe, |query, first, similarities| {
            tops[which[query]].offer(similarities, |at, similarity| {
                let template = u32::try_from(first + at).unwrap_or(u32::MAX);
                let tier = if ids.is_hot(template) { Tier::L1 } else { Tier::L2 };
                Some(Candidate { template, part: parts[first + at], similarity, tier })
            });
        });
    }
}
