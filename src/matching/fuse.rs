//! From the search's candidates to one answer: every piece of evidence weighed, a probability, and the five best kept.
//!
//! Without a fit the most similar part stays first and nothing has a probability.

use super::fit::{Apart, Fit, Scored};
use super::rank::{MARGIN_MAX, TOP_PARTS};
use super::search::PartIndex;
use super::shape::Shape;
use super::views::mean;
use crate::measure;
use crate::types::{Digest, Foreshortening, MatchEvidence, RankedPart, SizeMm, Tier};

/// What is known of an item beside its embedding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its true size, where the camera's scale is calibrated.
    pub size_mm: Option<SizeMm>,
    /// How much of the part its picture shows, where the embedder says.
    pub foreshortening: Option<Foreshortening>,
    /// Its shape, where [`PartIndex::wants_shape`] said so.
    pub shape: Option<Shape>,
}

impl PartIndex {
    /// Whether the shape of the item could tell the candidates apart: two parts of one pair are among them.
    #[must_use]
    pub fn wants_shape(&self, ranked: &[RankedPart]) -> bool {
        ranked.iter().any(|one| self.pair_of(one, ranked).is_some())
    }

    /// Rank the candidates of `evidence`, as a search gave them, by all that is known of them. Keeps the best five.
    #[must_use]
    pub fn fuse(&self, evidence: MatchEvidence, seen: &Seen) -> MatchEvidence {
        self.fuse_views(evidence, std::slice::from_ref(seen))
    }

    /// The same of an item of several views, as [`PartIndex::search_views`] searched them. Without a fit for so many
    /// views nothing has a probability.
    #[must_use]
    pub fn fuse_views(&self, mut evidence: MatchEvidence, views: &[Seen]) -> MatchEvidence {
        let Some(fit) = self.fit() else {
            evidence.top_k.truncate(TOP_PARTS);
            return evidence;
        };
        let scored = self.scored_views(&evidence.top_k, views);
        let Some(scorer) = fit.scorer(&scored, views.len()) else {
            evidence.top_k.truncate(TOP_PARTS);
            return evidence;
        };
        let (probabilities, unknown) = (scorer.probabilities(&scored), scorer.unknown_probability(&scored));
        for ((ranked, scored), probability) in evidence.top_k.iter_mut().zip(&scored).zip(probabilities) {
            (ranked.probability, ranked.size_log, ranked.shape) =
                (Some(probability), scored.size_log, scored.apart.map(|apart| apart.shape));
        }
        // By share, not by probability: the curve between them may be level, and no evidence is to be lost on it. Stable:
        // of equal ones the more similar one stays first.
        let mut order: Vec<(f32, RankedPart)> =
            scorer.weights.shares(&scored).into_iter().zip(std::mem::take(&mut evidence.top_k)).collect();
        order.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        evidence.top_k = order.into_iter().map(|(_, ranked)| ranked).collect();
        let (Some(best), second) = (evidence.top_k.first().cloned(), evidence.top_k.get(1).cloned()) else {
            return evidence;
        };
        let rivals = evidence.top_k.iter().skip(1).map(|ranked| ranked.similarity);
        evidence.margin =
            rivals.reduce(f32::max).map_or(MARGIN_MAX, |rival| (best.similarity - rival).clamp(0.0, MARGIN_MAX));
        evidence.shares_group =
            second.as_ref().is_some_and(|second| self.groups().share(&best.part_id, &second.part_id));
        evidence.probability = best.probability;
        evidence.unknown_probability = unknown;
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
    pub fn scored(&self, ranked: &[RankedPart], seen: &Seen) -> Vec<Scored> {
        self.scored_views(ranked, std::slice::from_ref(seen))
    }

    /// The same of an item of several views: the mean over those that say something.
    #[must_use]
    pub fn scored_views(&self, ranked: &[RankedPart], views: &[Seen]) -> Vec<Scored> {
        let first = ranked.first().map_or("", |first| first.part_id.as_str());
        let size_log = |part_id: &str| {
            let part_mm = self.sizes().of(part_id)?;
            let of_view = |seen: &Seen| match &seen.foreshortening {
                Some(shown) => measure::log_likelihood_shown(part_mm, seen.size_mm?, shown),
                None => measure::log_likelihood(part_mm, seen.size_mm?),
            };
            mean_of_known(views.iter().map(of_view))
        };
        let looks = |one: &RankedPart| match one.likeness {
            Some(likeness) if self.fit().is_none_or(Fit::pairs_by_likeness) => likeness,
            _ => one.similarity,
        };
        // Of the part and its pair: half the difference of the two.
        let apart = |one: &RankedPart| {
            let other = self.pair_of(one, ranked)?;
            let of_view = |seen: &Seen| {
                let of = |part: &RankedPart| self.shapes().likeness(seen.shape.as_ref()?, &part.part_id);
                Some((of(one)? - of(other)?) / 2.0)
            };
            Some(Apart {
                shape: mean_of_known(views.iter().map(of_view))?,
                likeness: (looks(one) - looks(other)) / 2.0,
                centre: one.centre.zip(other.centre).map_or(0.0, |(one, other)| (one - other) / 2.0),
            })
        };
        let scored = |(position, one): (usize, &RankedPart)| Scored {
            similarity: one.similarity,
            likeness: one.likeness,
            centre: one.centre,
            size_log: size_log(&one.part_id),
            apart: apart(one),
            is_rival: position > 0 && self.groups().share(first, &one.part_id),
        };
        ranked.iter().enumerate().map(scored).collect()
    }

    /// The other part of the pair that `one` is of, where it is among `ranked` and both shapes are known.
    fn pair_of<'a>(&self, one: &RankedPart, ranked: &'a [RankedPart]) -> Option<&'a RankedPart> {
        let is_known = |part: &RankedPart| self.shapes().knows(&part.part_id);
        let is_other =
            |part: &RankedPart| part.part_id != one.part_id && self.groups().share(&one.part_id, &part.part_id);
        // Most parts are of no pair: that is asked first.
        is_known(one).then(|| ranked.iter().find(|part| is_known(part) && is_other(part)))?
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

/// Mean of the values that are there; `None` where none is.
fn mean_of_known(values: impl Iterator<Item = Option<f32>>) -> Option<f32> {
    let known: Vec<f32> = values.flatten().collect();
    (!known.is_empty()).then(|| mean(known.into_iter()))
}
