//! From template similarities to parts: the best template of each part, the margin, the evidence. Pure.

use serde::{Deserialize, Serialize};

use super::delta::DeltaView;
use super::groups::Groups;
use super::ids::TemplateIds;
use super::likeness::Alike;
use crate::types::{MatchEvidence, RankedPart, Tier};

/// Parts listed in an answer.
pub const TOP_PARTS: usize = 5;
/// Parts kept while searching, so that other evidence than similarity can lift one.
pub const CANDIDATES: usize = 16;
/// No part has this number.
const NO_PART: u32 = u32::MAX;
/// Margin where there is no other part at all: the widest that two cosines can be apart.
pub const MARGIN_MAX: f32 = 2.0;

/// When the hot tier may answer alone, and when a match is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptRule {
    /// Least cosine to the best template, −1 to 1.
    pub accept_similarity: f32,
    /// Least distance from the best template to that of the best *other part*, 0 to 2.
    pub accept_margin: f32,
}

impl AcceptRule {
    /// Whether the first of `parts` is similar enough and far enough ahead; `false` for an empty list or a NaN rule.
    #[must_use]
    pub fn accepts(&self, parts: &[Candidate]) -> bool {
        parts
            .first()
            .is_some_and(|best| best.similarity >= self.accept_similarity && margin(parts) >= self.accept_margin)
    }
}

/// A template and its similarity to one query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Position in the generation's ids.
    pub template: u32,
    /// Number of its part.
    pub part: u32,
    /// Cosine.
    pub similarity: f32,
    pub tier: Tier,
}

impl Candidate {
    /// Of equally similar templates the earlier one, so that the answer does not depend on the order of search.
    pub(super) fn beats(&self, other: &Self) -> bool {
        self.similarity > other.similarity || (self.similarity == other.similarity && self.template < other.template)
    }
}

/// The best template of each of the best parts so far.
#[derive(Debug, Clone)]
pub struct TopParts {
    /// Best first, one a part, at most [`CANDIDATES`].
    best: Vec<Candidate>,
    /// The parts of these, then [`NO_PART`]: side by side, so that a part is looked for among all in a few instructions.
    /// Of a big catalogue's lists most templates are of a part that is kept already.
    parts: [u32; CANDIDATES],
}

impl Default for TopParts {
    fn default() -> Self {
        Self { best: Vec::with_capacity(CANDIDATES), parts: [NO_PART; CANDIDATES] }
    }
}

impl TopParts {
    /// Count in what could change the answer of a row of `similarities`; `candidate(position)` makes it, where there is one.
    pub(super) fn offer(&mut self, similarities: &[f32], candidate: impl Fn(usize, f32) -> Option<Candidate>) {
        let mut least = self.least();
        for (at, &similarity) in similarities.iter().enumerate() {
            if similarity >= least
                && let Some(candidate) = candidate(at, similarity)
            {
                self.push(candidate);
                least = self.least();
            }
        }
    }

    fn place_of(&self, part: u32) -> Option<usize> {
        // A byte a place: without a branch for each, which no processor could foresee.
        let is_here: [u8; CANDIDATES] = std::array::from_fn(|at| u8::from(self.parts[at] == part));
        let place = u128::from_le_bytes(is_here).trailing_zeros() as usize / 8;
        (place < self.best.len()).then_some(place)
    }

    /// Templates less similar than this change nothing.
    fn least(&self) -> f32 {
        self.best.get(CANDIDATES - 1).map_or(f32::NEG_INFINITY, |worst| worst.similarity)
    }

    /// Count a template in. Templates may come twice and in any order.
    pub fn push(&mut self, candidate: Candidate) {
        // It takes the place of its part's template before, a free one, or the last; then those that it beats step back.
        let mut at = self.place_of(candidate.part).unwrap_or(self.best.len().min(CANDIDATES - 1));
        match self.best.get_mut(at) {
            Some(replaced) if !candidate.beats(replaced) => return,
            Some(replaced) => *replaced = candidate,
            None => self.best.push(candidate),
        }
        self.parts[at] = candidate.part;
        while at > 0 && candidate.beats(&self.best[at - 1]) {
            self.best.swap(at, at - 1);
            self.parts.swap(at, at - 1);
            at -= 1;
        }
    }

    /// Best first, one a part.
    #[must_use]
    pub fn parts(&self) -> &[Candidate] {
        &self.best
    }
}

/// The first of `parts` minus the second, 0 to 2; 2 where there is no second.
#[must_use]
pub fn margin(parts: &[Candidate]) -> f32 {
    match parts {
        [best, second, ..] => (best.similarity - second.similarity).clamp(0.0, MARGIN_MAX),
        _ => MARGIN_MAX,
    }
}

/// What the search says of one query; `parts` as [`TopParts::parts`] gives them, each with how `alike` it is. `None` when
/// nothing was found.
#[must_use]
pub(super) fn evidence(
    parts: &[Candidate],
    names: &Names<'_>,
    stages: Stages,
    alike: impl Fn(&Candidate) -> Alike,
) -> Option<MatchEvidence> {
    let with_all = |candidate| {
        let Alike { likeness, centre } = alike(candidate);
        Some(RankedPart { likeness, centre, ..names.ranked(candidate)? })
    };
    let ranked: Vec<RankedPart> = parts.iter().filter_map(with_all).collect();
    let (best, tier) = (ranked.first()?.clone(), parts.first()?.tier);
    let second = ranked.get(1);
    Some(MatchEvidence {
        part_id: best.part_id,
        color_id: best.color_id,
        template: best.template,
        similarity: best.similarity,
        second_part_id: second.map(|second| second.part_id.clone()),
        second_similarity: second.map(|second| second.similarity),
        margin: margin(parts),
        tier,
        entered_stage2: stages.entered_stage2,
        stage1_ms: stages.stage1_ms,
        stage2_ms: stages.stage2_ms,
        shares_group: names.share_group(parts),
        delta_sha256: names.delta.sha256(),
        probability: None,
        unknown_probability: None,
        required_probability: None,
        quality_level: None,
        top_k: ranked,
    })
}

/// What one query went through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stages {
    pub entered_stage2: bool,
    pub stage1_ms: f32,
    pub stage2_ms: f32,
}

/// What the numbers of candidates stand for.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub ids: &'a TemplateIds,
    pub groups: &'a Groups,
    pub delta: &'a DeltaView<'a>,
}

impl Names<'_> {
    /// Whether the first two of `parts` are of one confusion group.
    pub fn share_group(&self, parts: &[Candidate]) -> bool {
        let [best, second, ..] = parts else { return false };
        let (Some(best), Some(second)) = (self.part_of(best), self.part_of(second)) else { return false };
        self.groups.share(best, second)
    }

    fn part_of(&self, candidate: &Candidate) -> Option<&str> {
        match candidate.tier {
            Tier::Delta => self.delta.get(candidate.template).map(|(_, part_id, _)| part_id),
            Tier::L1 | Tier::L2 => self.ids.get(candidate.template).map(|(template, _)| template.part_id),
        }
    }

    pub fn ranked(&self, candidate: &Candidate) -> Option<RankedPart> {
        let similarity = candidate.similarity;
        if candidate.tier == Tier::Delta {
            let (template, part_id, color_id) = self.delta.get(candidate.template)?;
            let color_id = color_id.map(str::to_owned);
            return Some(RankedPart {
                template,
                part_id: part_id.to_owned(),
                color_id,
                similarity,
                likeness: None,
                centre: None,
                probability: None,
                size_log: None,
                shape: None,
            });
        }
        // Not all of the template: each name is a few steps through memory that nothing else has touched.
        Some(RankedPart {
            template: u64::from(candidate.template),
            part_id: self.ids.part_name(candidate.part)?.to_owned(),
            color_id: self.ids.color_id(candidate.template).map(str::to_owned),
            similarity,
            likeness: None,
            centre: None,
            probability: None,
            size_log: None,
            shape: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AcceptRule, CANDIDATES, Candidate, MARGIN_MAX, TopParts, margin};
    use crate::types::Tier;

    fn candidate(template: u32, part: u32, similarity: f32) -> Candidate {
        Candidate { template, part, similarity, tier: Tier::L1 }
    }

    fn best_of_each_part(candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut top = TopParts::default();
        candidates.into_iter().for_each(|candidate| top.push(candidate));
        top.parts().to_vec()
    }

    #[test]
    fn streaming_gives_what_sorting_gives_in_any_order() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..200 {
            let candidates: Vec<Candidate> =
                (0..40).map(|template| candidate(template, rng.u32(..9), f32::from(rng.u8(..12)) / 12.0)).collect();
            let mut sorted = candidates.clone();
            sorted.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.template.cmp(&b.template)));
            let mut wanted: Vec<Candidate> = Vec::new();
            for candidate in sorted {
                if wanted.len() < CANDIDATES && wanted.iter().all(|kept| kept.part != candidate.part) {
                    wanted.push(candidate);
                }
            }
            let mut shuffled = candidates.clone();
            rng.shuffle(&mut shuffled);
            assert_eq!(best_of_each_part(shuffled), wanted);
        }
    }

    #[test]
    fn the_margin_counts_the_best_other_part_not_the_next_template() {
        let parts = best_of_each_part(vec![
            candidate(0, 7, 0.90),
            candidate(3, 8, 0.60),
            candidate(1, 7, 0.89),
            candidate(1, 7, 0.89),
        ]);
        assert_eq!(parts.len(), 2);
        assert!((margin(&parts) - 0.30).abs() < 1e-6);
        assert_eq!(margin(&parts[..1]), MARGIN_MAX);
    }

    #[test]
    fn a_rule_accepts_at_its_bounds_and_never_with_nan() {
        let parts = best_of_each_part(vec![candidate(0, 0, 0.75), candidate(1, 1, 0.5)]);
        let rule = AcceptRule { accept_similarity: 0.75, accept_margin: 0.25 };
        assert!(rule.accepts(&parts));
        assert!(!AcceptRule { accept_similarity: 0.76, ..rule }.accepts(&parts));
        assert!(!AcceptRule { accept_margin: 0.26, ..rule }.accepts(&parts));
        assert!(!AcceptRule { accept_similarity: f32::NAN, ..rule }.accepts(&parts));
        assert!(!AcceptRule { accept_margin: f32::NAN, ..rule }.accepts(&parts));
        assert!(!rule.accepts(&[]));
    }
}
