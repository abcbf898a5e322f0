//! Evidence + rules → verdict with reasons. Pure: no I/O, no clock, no logging.
//!
//! Invariant: doubt is HOLD. A verdict is PASS only when something judged the frame, everything that was to be judged
//! was judged, and nothing was in doubt. What the gate doubts cannot FAIL either: a blurred picture proves nothing.

use crate::config::{AnomalyStage, EdgeRule, EmptyRule, MatchStage, Rules, UnknownPartRule};
use crate::types::{
    AnomalyEvidence, BoundingBox, ColourEvidence, FrameQuality, Inspection, Item, ItemView, MatchEvidence, Reason,
    SizeMm, Verdict,
};

/// Distance from the border within which a box counts as cut, pixels.
const EDGE_MARGIN_PX: f32 = 1.5;

/// What the stages found out about one frame.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub width_px: u32,
    pub height_px: u32,
    /// Where the pictures lie that the frame is made of; empty where it is one.
    pub views: Vec<BoundingBox>,
    /// Whether neighbouring frames show the same scene (a video, a live camera), so that `ignore` rules apply.
    pub is_stream: bool,
    /// `None` where the frame could not be decoded.
    pub quality: Option<FrameQuality>,
    pub items: Vec<ItemEvidence>,
    pub anomaly: Option<AnomalyEvidence>,
    /// What went wrong on the way: unreadable frame, model errors, an index that cannot be searched.
    pub faults: Vec<Reason>,
    /// A model runs on another provider than the recipe's first choice, and the recipe does not accept that.
    pub is_provider_fallback: bool,
    /// Milliseconds since the frame arrived.
    pub elapsed_ms: f32,
}

/// What the stages found out about one item.
#[derive(Debug, Clone)]
pub struct ItemEvidence {
    /// Around all of its views.
    pub bbox: BoundingBox,
    /// Empty where it was seen once.
    pub views: Vec<ItemView>,
    pub label: String,
    /// 0 to 1.
    pub confidence: f32,
    pub matched: Option<MatchEvidence>,
    /// Where the camera's scale is calibrated.
    pub size_mm: Option<SizeMm>,
    /// Where the recipe names colours.
    pub colour: Option<ColourEvidence>,
}

/// What the recipe asks of the evidence.
#[derive(Debug, Clone, Copy)]
pub struct Criteria<'a> {
    pub rules: &'a Rules,
    pub matching: Option<&'a MatchStage>,
    pub anomaly: Option<&'a AnomalyStage>,
    /// Whether a detector names classes that `rules.allowed_labels` judges.
    pub has_detector: bool,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Decided {
        verdict: Verdict,
        reasons: Vec<Reason>,
        items: Vec<Item>,
    },
    /// Nothing to inspect in this frame of a stream; counted as refused.
    Ignored(Reason),
}

impl Evidence {
    /// The evidence a stored inspection rests on: deciding it again gives the same verdict.
    #[must_use]
    pub fn of(inspection: &Inspection) -> Evidence {
        let item = |item: &Item| ItemEvidence {
            bbox: item.bbox,
            views: item.views.clone(),
            label: item.label.clone(),
            confidence: item.detection_confidence,
            matched: item.matched.clone(),
            size_mm: item.size_mm,
            colour: item.colour.clone(),
        };
        Evidence {
            width_px: inspection.width_px,
            height_px: inspection.height_px,
            views: inspection.views.clone(),
            is_stream: inspection.is_stream,
            quality: inspection.quality.clone(),
            items: inspection.items.iter().map(item).collect(),
            anomaly: inspection.anomaly.clone(),
            faults: inspection.faults.clone(),
            is_provider_fallback: inspection.is_provider_fallback,
            elapsed_ms: inspection.elapsed_ms,
        }
    }

    /// Whether a box of the item ends where its picture ends, so that the item may go on outside it.
    fn cuts(&self, item: &ItemEvidence) -> bool {
        let boxes = item.views.iter().map(|view| view.bbox);
        let boxes: Vec<BoundingBox> = if item.views.is_empty() { vec![item.bbox] } else { boxes.collect() };
        let whole = [BoundingBox::whole(self.width_px, self.height_px)];
        let pictures = if self.views.is_empty() { &whole[..] } else { &self.views };
        let is_cut = |bbox: &BoundingBox| {
            let of = pictures.iter().max_by(|a, b| bbox.iou(a).total_cmp(&bbox.iou(b))).unwrap_or(&whole[0]);
            bbox.reaches_border_of(of, EDGE_MARGIN_PX)
        };
        boxes.iter().any(is_cut)
    }
}

/// Decide one frame.
#[must_use]
pub fn decide(evidence: &Evidence, criteria: Criteria<'_>) -> Decision {
    let rules = criteria.rules;
    let mut doubts: Vec<Reason> = evidence.faults.clone();
    match &evidence.quality {
        Some(quality) => doubts.extend(&quality.issues),
        None if doubts.is_empty() => doubts.push(Reason::FrameUnreadable),
        None => {}
    }
    if evidence.is_provider_fallback {
        doubts.push(Reason::ProviderFallback);
    }
    if rules.deadline_ms.is_some_and(|deadline_ms| evidence.elapsed_ms > deadline_ms) {
        doubts.push(Reason::DeadlineMissed);
    }

    let ignores_edges = evidence.is_stream && rules.at_edge == EdgeRule::Ignore;
    let is_cut =
        |item: &ItemEvidence| (criteria.has_detector || !crate::locate::is_placed(&item.label)) && evidence.cuts(item);
    let items: Vec<Item> = evidence
        .items
        .iter()
        .filter(|item| !(ignores_edges && is_cut(item)))
        .enumerate()
        .map(|(ordinal, item)| decide_item(ordinal, item, is_cut(item), criteria))
        .collect();

    if items.is_empty() && doubts.is_empty() && evidence.is_stream && rules.when_empty == EmptyRule::Ignore {
        return Decision::Ignored(Reason::NothingFound);
    }
    if items.is_empty() || items.len() < rules.items_min {
        doubts.push(Reason::NothingFound);
    }
    if items.len() > rules.items_max {
        doubts.push(Reason::TooManyItems);
    }

    let (anomaly_verdict, anomaly_reason) = decide_anomaly(evidence.anomaly.as_ref(), criteria.anomaly);
    let mut reasons = doubts.clone();
    reasons.extend(anomaly_reason);
    let mut verdict = items.iter().map(|item| item.verdict).fold(anomaly_verdict, Verdict::max);
    for item in &items {
        reasons.extend(&item.reasons);
    }
    if !doubts.is_empty() {
        verdict = Verdict::Hold;
    }
    Decision::Decided { verdict, reasons: without_repeats(reasons), items }
}

fn decide_item(ordinal: usize, evidence: &ItemEvidence, is_cut: bool, criteria: Criteria<'_>) -> Item {
    let mut verdict = Verdict::Pass;
    let mut reasons = Vec::new();
    if is_cut {
        verdict = Verdict::Hold;
        reasons.push(Reason::ItemCutByFrame);
    }
    let labels = &criteria.rules.allowed_labels;
    if criteria.has_detector && !labels.is_empty() && !labels.contains(&evidence.label) {
        verdict = verdict.max(Verdict::Fail);
        reasons.push(Reason::WrongLabel);
    }
    let mut accepted = None;
    match (criteria.matching, &evidence.matched) {
        (Some(stage), Some(matched)) => match doubt_of_match(matched, stage) {
            None => accepted = Some(matched.part_id.clone()),
            Some(reason) => {
                // With a limit of its own for unknown parts, a low similarity is a doubt like any other.
                let is_unknown = reason == Reason::PartUnknown
                    || (reason == Reason::SimilarityLow && stage.unknown_similarity.is_none());
                let fails = is_unknown && criteria.rules.unknown_part == UnknownPartRule::Fail;
                verdict = verdict.max(if fails { Verdict::Fail } else { Verdict::Hold });
                reasons.push(reason);
            }
        },
        (Some(_), None) => {
            verdict = verdict.max(Verdict::Hold);
            reasons.push(Reason::NotInspected);
        }
        (None, _) if !criteria.has_detector && criteria.anomaly.is_none() => {
            verdict = verdict.max(Verdict::Hold);
            reasons.push(Reason::NotInspected);
        }
        (None, _) => {}
    }
    // A cut part is not proof of a wrong one.
    if is_cut {
        verdict = Verdict::Hold;
    }
    Item {
        ordinal: u32::try_from(ordinal).unwrap_or(u32::MAX),
        bbox: evidence.bbox,
        views: evidence.views.clone(),
        label: evidence.label.clone(),
        detection_confidence: evidence.confidence,
        part_id: accepted,
        similarity: evidence.matched.as_ref().map(|matched| matched.similarity),
        margin: evidence.matched.as_ref().map(|matched| matched.margin),
        tier: evidence.matched.as_ref().map(|matched| matched.tier),
        size_mm: evidence.size_mm,
        colour: evidence.colour.clone(),
        matched: evidence.matched.clone(),
        verdict,
        reasons,
    }
}

/// Why a match cannot be accepted; a NaN is never acceptable.
fn doubt_of_match(matched: &MatchEvidence, stage: &MatchStage) -> Option<Reason> {
    let doubt = if stage.use_fit { doubt_of_probability(matched, stage) } else { doubt_of_similarity(matched, stage) };
    let is_poor = stage.min_quality_level.is_some_and(|least| matched.quality_level.is_none_or(|level| level < least));
    doubt.or(is_poor.then_some(Reason::QualityLevelLow))
}

/// Why a match cannot be accepted by similarity and margin.
fn doubt_of_similarity(matched: &MatchEvidence, stage: &MatchStage) -> Option<Reason> {
    let reaches = |value: f32, least: f32| value >= least;
    if !reaches(matched.similarity, stage.accept_similarity) {
        // Not `!reaches`: a NaN is a doubt, not proof of an unknown part.
        let is_unknown = stage.unknown_similarity.is_some_and(|limit| matched.similarity < limit);
        Some(if is_unknown { Reason::PartUnknown } else { Reason::SimilarityLow })
    } else if !reaches(matched.margin, stage.accept_margin) {
        Some(Reason::MarginSmall)
    } else if matched.shares_group && !reaches(matched.margin, stage.group_margin) {
        Some(Reason::GroupMarginSmall)
    } else {
        None
    }
}

/// Why a match cannot be accepted by the index's fit.
fn doubt_of_probability(matched: &MatchEvidence, stage: &MatchStage) -> Option<Reason> {
    let is_unlike = stage.unknown_similarity.is_some_and(|limit| matched.similarity < limit);
    let is_none = stage.unknown_probability.zip(matched.unknown_probability).is_some_and(|(limit, none)| none >= limit);
    if is_unlike || is_none {
        return Some(Reason::PartUnknown);
    }
    match (matched.probability, matched.required_probability) {
        (Some(probability), Some(required)) if probability > required => None,
        (Some(_), Some(_)) => Some(Reason::ProbabilityLow),
        _ => Some(Reason::NotFitted),
    }
}

fn decide_anomaly(evidence: Option<&AnomalyEvidence>, stage: Option<&AnomalyStage>) -> (Verdict, Option<Reason>) {
    match (stage, evidence) {
        (None, _) => (Verdict::Pass, None),
        (Some(_), None) => (Verdict::Hold, Some(Reason::NotInspected)),
        (Some(stage), Some(evidence)) if evidence.score >= stage.threshold => {
            (Verdict::Fail, Some(Reason::AnomalyAboveThreshold))
        }
        (Some(stage), Some(evidence)) if evidence.score < stage.threshold - stage.hold_band => (Verdict::Pass, None),
        (Some(_), Some(_)) => (Verdict::Hold, Some(Reason::AnomalyNearThreshold)),
    }
}

/// Keep the first of each reason, so that the frame's own doubts stand before those of its items.
fn without_repeats(reasons: Vec<Reason>) -> Vec<Reason> {
    let mut seen = std::collections::BTreeSet::new();
    reasons.into_iter().filter(|reason| seen.insert(*reason)).collect()
}

#[cfg(test)]
mod tests;
