//! From the search's candidates to one answer: every piece of evidence weighed, a probability, and the five best kept.
//!
//! Without a fit the most similar part stays first and nothing has a probability.

use super::fit::{Fit, Scored};
use super::rank::{MARGIN_MAX, TOP_PARTS};
use super::search::PartIndex;
use crate::measure;
use crate::types::{Digest, MatchEvidence, RankedPart, SizeMm, Tier};

impl PartIndex {
    /// Rank the candidates of `evidence`, as a search gave them, by all that is known of them; `seen` is the item's true
    /// size where the camera's scale is calibrated. Keeps the best five.
    #[must_use]
    pub fn fuse(&self, mut evidence: MatchEvidence, seen: Option<SizeMm>) -> MatchEvidence {
        let Some(fit) = self.fit() else {
            evidence.top_k.truncate(TOP_PARTS);
            return evidence;
        };
        let scored = self.scored(&evidence.top_k, seen);
        let scorer = fit.scorer(&scored);
        for ((ranked, scored), probability) in evidence.top_k.iter_mut().zip(&scored).zip(scorer.probabilities(&scored))
        {
            (ranked.probability, ranked.size_log) = (Some(probability), scored.size_log);
        }
        // Stable: of equally probable parts the more similar one stays first.
        let of = |ranked: &RankedPart| ranked.probability.unwrap_or(0.0);
        evidence.top_k.sort_by(|a, b| of(b).total_cmp(&of(a)));
        let (Some(best), second) = (evidence.top_k.first().cloned(), evidence.top_k.get(1).cloned()) else {
            return evidence;
        };
        let rivals = evidence.top_k.iter().skip(1).map(|ranked| ranked.similarity);
        evidence.margin =
            rivals.reduce(f32::max).map_or(MARGIN_MAX, |rival| (best.similarity - rival).clamp(0.0, MARGIN_MAX));
        evidence.shares_group =
            second.as_ref().is_some_and(|second| self.groups().share(&best.part_id, &second.part_id));
        evidence.probability = best.probability;
        evidence.required_probability = Some(scorer.required(&best.part_id));
        evidence.tier = self.tier_of(best.template);
        evidence.second_part_id = second.as_ref().map(|second| second.part_id.clone());
        evidence.second_similarity = second.map(|second| second.similarity);
        (evidence.part_id, evidence.color_id) = (best.part_id, best.color_id);
        (evidence.template, evidence.similarity) = (best.template, best.similarity);
        evidence.top_k.truncate(TOP_PARTS);
        evidence
    }

    /// What each of `ranked`, best first, shows for itself.
    #[must_use]
    pub fn scored(&self, ranked: &[RankedPart], seen: Option<SizeMm>) -> Vec<Scored> {
        let first = ranked.first().map_or("", |first| first.part_id.as_str());
        let size_log = |part_id: &str| measure::log_likelihood(self.sizes().of(part_id)?, seen?);
        let scored = |(position, ranked): (usize, &RankedPart)| Scored {
            similarity: ranked.similarity,
            size_log: size_log(&ranked.part_id),
            is_rival: position > 0 && self.groups().share(first, &ranked.part_id),
        };
        ranked.iter().enumerate().map(scored).collect()
    }

    /// The fit of the opened generation.
    #[must_use]
    pub fn fit(&self) -> Option<&Fit> {
        self.fit.as_ref().map(|(fit, _)| fit)
    }

    /// Digest of the fit's file.
    #[must_use]
    pub fn fit_sha256(&self) -> Option<Digest> {
        self.fit.as_ref().map(|(_, sha256)| *sha256)
    }

    fn tier_of(&self, template: u64) -> Tier {
        let ids = &self.generation.ids;
        match u32::try_from(template).ok().filter(|&row| (row as usize) < ids.len()) {
            Some(row) if ids.is_hot(row) => Tier::L1,
            Some(_) => Tier::L2,
            None => Tier::Delta,
        }
    }
}
