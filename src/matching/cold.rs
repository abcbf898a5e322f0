//! Stage 2: the search of the cold tier (L2, memory-mapped) for the queries that L1 did not answer.
//!
//! Thread: the caller's, under the lock of the cold tier. Overload: as [`super::search`].

use std::sync::PoisonError;

use super::MatchError;
use super::rank::{Candidate, TopParts};
use super::search::PartIndex;
use crate::types::Tier;

/// Neighbours first asked of L2. A part often owns several of the nearest templates; 64 nearly always show another.
const NEIGHBOURS_FIRST: usize = 64;
/// Growth of that number while only one part shows up.
const NEIGHBOURS_GROWTH: usize = 4;

impl PartIndex {
    /// Search L2 for the queries numbered in `which` and count what it finds into `tops`.
    pub(super) fn search_cold(
        &self,
        queries: &[f32],
        which: &[usize],
        nprobe: usize,
        tops: &mut [TopParts],
    ) -> Result<(), MatchError> {
        if which.is_empty() {
            return Ok(());
        }
        let dim = self.dim();
        // A search changes nothing in the index, so one that panicked left it whole.
        let l2 = self.generation.l2.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = which.to_vec();
        let mut k = NEIGHBOURS_FIRST.min(l2.len());
        while !pending.is_empty() {
            let batch: Vec<f32> = pending.iter().flat_map(|&at| &queries[at * dim..(at + 1) * dim]).copied().collect();
            let found = l2.search_probing(&batch, k, nprobe)?;
            let rows = found.ids.chunks_exact(k).zip(found.distances.chunks_exact(k));
            let mut again = Vec::new();
            for (&at, (ids, similarities)) in pending.iter().zip(rows) {
                let shows_two_parts = self.count_in(ids, similarities, &mut tops[at]);
                let exhausted = k == l2.len() || ids.contains(&-1);
                if !shows_two_parts && !exhausted {
                    again.push(at);
                }
            }
            pending = again;
            k = (k * NEIGHBOURS_GROWTH).min(l2.len());
        }
        Ok(())
    }

    /// Count one row of FAISS's answer in; whether it showed more than one part.
    fn count_in(&self, ids: &[i64], similarities: &[f32], top: &mut TopParts) -> bool {
        let parts = self.generation.ids.parts();
        let (mut first_part, mut shows_two_parts) = (None, false);
        for (&id, &similarity) in ids.iter().zip(similarities) {
            let Ok(template) = u32::try_from(id) else { continue };
            let Some(&part) = parts.get(template as usize) else { continue };
            shows_two_parts |= *first_part.get_or_insert(part) != part;
            if top.wants(similarity) {
                let tier = if self.is_hot[template as usize] { Tier::L1 } else { Tier::L2 };
                top.push(Candidate { template, part, similarity, tier });
            }
        }
        shows_two_parts
    }
}
