//! Several views of one item: one answer from all of them.
//!
//! Each view is searched by itself. Every part that one of them brings up is then compared with all of them, and shows for
//! itself the mean over the views: of the nearest cosines, the likenesses, the centres and, in [`PartIndex::fuse`], of what size
//! and shape say. How much surer several views make the answer is learned by the fit from items seen as often
//! ([`super::fitting`]): views of one item are not independent, so no rule is assumed.
//! Pure but for the search. Overload: at most [`crate::limits::VIEWS_PER_ITEM_MAX`] views of [`CANDIDATES`] parts each.

use std::collections::BTreeMap;

use super::MatchError;
use super::delta::{DeltaView, Learning};
use super::embedded::{Embedded, Queries, Query};
use super::likeness::Alike;
use super::rank::{self, AcceptRule, CANDIDATES, Candidate, Stages, TopParts};
use super::search::PartIndex;
use crate::types::{MatchEvidence, RankedPart};

/// The answer of all views of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Together {
    /// As a search gives it; what it says of a part is the mean over the views.
    pub evidence: MatchEvidence,
    /// What each view by itself is most alike, in the order of the views.
    pub alone: Vec<RankedPart>,
}

impl PartIndex {
    /// The best parts for one item, of which `embeddings` are views.
    ///
    /// # Errors
    /// As [`PartIndex::search_with`].
    pub fn search_views<'a>(
        &self,
        embeddings: impl Into<Embedded<'a>>,
        rule: AcceptRule,
        learning: Learning<'_>,
    ) -> Result<Together, MatchError> {
        let queries = embeddings.into().normalised(self.dim())?;
        queries.require_mirrored(self.wants_mirrored())?;
        let delta = self.delta_view(learning);
        let tops = self.tops(&queries.pictures, rule, learning.group_margin, &delta);
        self.together(&queries, &tops, &delta, self.fit().is_some())
    }

    /// As [`PartIndex::search_views`], comparing with every template of L2 and without what was learned since; with all
    /// that a fit weighs, so that one can be learned.
    ///
    /// # Errors
    /// As [`PartIndex::search`].
    pub fn search_views_exact<'a>(&self, embeddings: impl Into<Embedded<'a>>) -> Result<Together, MatchError> {
        let queries = embeddings.into().normalised(self.dim())?;
        self.together(&queries, &self.tops_exact(&queries.pictures), &DeltaView::default(), true)
    }

    fn together(
        &self,
        queries: &Queries,
        tops: &[(TopParts, Stages)],
        delta: &DeltaView<'_>,
        has_alike: bool,
    ) -> Result<Together, MatchError> {
        let views: Vec<Query<'_>> = queries.iter().collect();
        let mut parts: Vec<u32> = tops.iter().flat_map(|(top, _)| top.parts().iter().map(|found| found.part)).collect();
        parts.sort_unstable();
        parts.dedup();
        let mut known: BTreeMap<u32, Alike> = BTreeMap::new();
        let mut candidates: Vec<Candidate> = Vec::with_capacity(parts.len());
        for part in parts {
            let nearest: Vec<Candidate> =
                views.iter().filter_map(|query| self.nearest(query.picture, part, delta)).collect();
            let Some(best) = nearest.iter().copied().reduce(|best, one| if one.beats(&best) { one } else { best })
            else {
                continue;
            };
            candidates.push(Candidate { similarity: mean(nearest.iter().map(|one| one.similarity)), ..best });
            if has_alike {
                let alike: Vec<Alike> = views.iter().map(|query| self.alike(*query, part, delta)).collect();
                let of_all = |of: fn(&Alike) -> Option<f32>| {
                    Some(mean(alike.iter().map(of).collect::<Option<Vec<f32>>>()?.into_iter()))
                };
                known.insert(part, Alike { likeness: of_all(|one| one.likeness), centre: of_all(|one| one.centre) });
            }
        }
        candidates.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.template.cmp(&b.template)));
        candidates.truncate(CANDIDATES);
        let stages = Stages {
            entered_stage2: tops.iter().any(|(_, stages)| stages.entered_stage2),
            stage1_ms: tops.iter().map(|(_, stages)| stages.stage1_ms).sum(),
            stage2_ms: tops.iter().map(|(_, stages)| stages.stage2_ms).sum(),
        };
        let names = self.names(delta);
        let alike = |candidate: &Candidate| known.get(&candidate.part).copied().unwrap_or_default();
        let evidence = rank::evidence(&candidates, &names, stages, alike).ok_or_else(|| self.found_nothing())?;
        let alone = tops.iter().filter_map(|(top, _)| names.ranked(top.parts().first()?)).collect();
        Ok(Together { evidence, alone })
    }
}

/// Mean of `values`; not a number of none.
pub(super) fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len() as f32;
    values.sum::<f32>() / count
}

/// Positions of `items` that name the same item, in the order of their first; rows without an item, and items seen once,
/// are left out.
pub fn seen_together<'a>(items: impl Iterator<Item = Option<&'a str>>) -> Vec<Vec<usize>> {
    let mut order: Vec<Vec<usize>> = Vec::new();
    let mut place: BTreeMap<&str, usize> = BTreeMap::new();
    for (position, item) in items.enumerate().filter_map(|(position, item)| Some((position, item?))) {
        let at = *place.entry(item).or_insert_with(|| {
            order.push(Vec::new());
            order.len() - 1
        });
        order[at].push(position);
    }
    order.retain(|views| views.len() > 1);
    order
}

#[cfg(test)]
mod tests {
    use super::{mean, seen_together};

    #[test]
    fn rows_of_one_item_come_together_in_order() {
        let items = [Some("b"), None, Some("a"), Some("b"), Some("c"), Some("a"), Some("b")];
        assert_eq!(seen_together(items.into_iter()), vec![vec![0, 3, 6], vec![2, 5]]);
        assert!(seen_together([None, Some("x")].into_iter()).is_empty());
    }

    #[test]
    fn a_mean_of_nothing_is_no_number() {
        assert!(mean(std::iter::empty::<f32>().collect::<Vec<_>>().into_iter()).is_nan());
        assert!((mean([0.2, 0.4].into_iter()) - 0.3).abs() < 1e-6);
    }
}
