//! Templates that are nearly the same: of different parts (they will be confused) and of one part (one of them is
//! redundant).
//!
//! Every template is compared with every later one, in blocks that stay in the cache; `count² × dim / 2` products, and
//! memory-mapped vectors. Thread: the caller's. Overload: at most `limits::DUPLICATE_PAIRS_MAX` pairs are kept, the most
//! alike; more are counted.

use serde::Serialize;

use super::PartIndex;
use super::ids::TemplateRef;
use super::kernel::similarities;
use crate::limits::DUPLICATE_PAIRS_MAX;

/// Templates compared at once with a block of others: 64 × 512 cosines are 128 KiB.
const ROWS: usize = 64;
const COLUMNS: usize = 512;

/// Two templates that are nearly the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DuplicatePair {
    /// Positions in the generation's `ids`, the lesser first.
    pub templates: [u32; 2],
    pub part_ids: [String; 2],
    pub views: [String; 2],
    /// Of different parts: confusable; of one part: redundant.
    pub is_cross_part: bool,
    /// Cosine.
    pub similarity: f32,
}

/// What [`PartIndex::duplicates`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Duplicates {
    pub templates: usize,
    pub cross_part_pairs: u64,
    pub same_part_pairs: u64,
    /// The most alike first, of different parts before of one part.
    pub pairs: Vec<DuplicatePair>,
}

impl PartIndex {
    /// What each template shows, in the order of the generation's `ids`.
    pub fn templates(&self) -> impl Iterator<Item = TemplateRef<'_>> {
        let ids = self.ids();
        (0..u32::try_from(ids.len()).unwrap_or(u32::MAX)).filter_map(|at| ids.get(at).map(|(template, _)| template))
    }

    /// Pairs of templates with a cosine of at least `min_similarity`; `progress` hears how many templates are done.
    #[must_use]
    pub fn duplicates(&self, min_similarity: f32, mut progress: impl FnMut(usize)) -> Duplicates {
        let (dim, vectors, ids) = (self.dim(), self.vectors(), self.ids());
        let (count, parts) = (vectors.len() / dim.max(1), ids.parts());
        let mut found: [Vec<(f32, u32, u32)>; 2] = [Vec::new(), Vec::new()];
        let mut totals = [0_u64; 2];
        for row in (0..count).step_by(ROWS) {
            let row_end = (row + ROWS).min(count);
            for column in (row..count).step_by(COLUMNS) {
                let column_end = (column + COLUMNS).min(count);
                let block =
                    similarities(&vectors[row * dim..row_end * dim], &vectors[column * dim..column_end * dim], dim);
                let width = column_end - column;
                for (at, &similarity) in block.iter().enumerate() {
                    let (a, b) = (row + at / width, column + at % width);
                    if b > a && similarity >= min_similarity {
                        let same = usize::from(parts[a] == parts[b]);
                        totals[same] += 1;
                        #[expect(
                            clippy::cast_possible_truncation,
                            reason = "an index holds at most u32::MAX templates"
                        )]
                        keep(&mut found[same], (similarity, a as u32, b as u32));
                    }
                }
            }
            progress(row_end);
        }
        let [mut cross, mut same] = found;
        for list in [&mut cross, &mut same] {
            sort(list);
        }
        let pair = |is_cross_part: bool| {
            move |&(similarity, a, b): &(f32, u32, u32)| {
                let (first, second) = (ids.get(a)?.0, ids.get(b)?.0);
                Some(DuplicatePair {
                    templates: [a, b],
                    part_ids: [first.part_id.to_owned(), second.part_id.to_owned()],
                    views: [first.view.to_owned(), second.view.to_owned()],
                    is_cross_part,
                    similarity,
                })
            }
        };
        let pairs = cross.iter().filter_map(pair(true)).chain(same.iter().filter_map(pair(false)));
        Duplicates {
            templates: count,
            cross_part_pairs: totals[0],
            same_part_pairs: totals[1],
            pairs: pairs.take(DUPLICATE_PAIRS_MAX).collect(),
        }
    }
}

fn sort(list: &mut Vec<(f32, u32, u32)>) {
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    list.truncate(DUPLICATE_PAIRS_MAX);
}

fn keep(list: &mut Vec<(f32, u32, u32)>, pair: (f32, u32, u32)) {
    list.push(pair);
    if list.len() >= 4 * DUPLICATE_PAIRS_MAX {
        sort(list);
    }
}
