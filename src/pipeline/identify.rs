//! The match stage of one frame: what catalogue part each located item is, box by box or from several views of one item.

use std::collections::BTreeMap;

use tracing::warn;

use super::engines::Matcher;
use crate::clock::Stopwatch;
use crate::config::MatchStage;
use crate::decide::ItemEvidence;
use crate::inference::{Crop, InferenceError, Looks};
use crate::matching::{AcceptRule, Embedded, Learning, MatchError, PartIndex, Seen, Shape};
use crate::measure::{measure_colour, measure_size};
use crate::types::{
    BoundingBox, Foreshortening, Image, ItemView, MatchEvidence, QualityLevel, RankedPart, Reason, SizeMm, Timings,
};

/// What a frame's items are compared with, and how.
#[derive(Debug)]
pub struct Identifier<'a> {
    /// The station's name.
    pub station: &'a str,
    /// The catalogue's levels; empty where the recipe does not ask.
    pub quality_levels: &'a BTreeMap<String, QualityLevel>,
    pub stage: &'a MatchStage,
    pub matcher: &'a mut Matcher,
    /// One generation for the whole frame.
    pub index: &'a PartIndex,
    /// Where the pictures lie that the frame is made of; empty where it is one.
    pub pictures: &'a [BoundingBox],
}

impl Identifier<'_> {
    /// Give each of `items` its match. Where the recipe says that the boxes are views of one item, one item is left of
    /// them. What goes wrong is a fault of the frame, and its items stay without a match.
    #[must_use]
    pub fn identify(
        mut self,
        image: &Image,
        source: &str,
        items: &mut Vec<ItemEvidence>,
        timings: &mut Timings,
    ) -> Vec<Reason> {
        if items.is_empty() {
            return Vec::new();
        }
        if let Some(views) = self.stage.views.filter(|views| !is_seen_in(*views, items, self.pictures)) {
            let (station, boxes) = (self.station, items.len());
            warn!(
                station,
                source, views, boxes, "frame held: the item is not seen in as many views as the recipe asks for"
            );
            return vec![Reason::ViewCount];
        }
        let watch = Stopwatch::start();
        self.measure(image, items);
        let boxes: Vec<BoundingBox> = items.iter().map(|item| item.bbox).collect();
        let looks = match self.look(image, &boxes) {
            Ok(looks) => looks,
            Err(error) => {
                warn!(station = self.station, source, error = %error, "frame held: embedding failed");
                return vec![fault_of(&error)];
            }
        };
        timings.embed = watch.ms();
        let watch = Stopwatch::start();
        let found = match self.stage.views {
            Some(_) => self.name_one(image, items, &boxes, looks),
            None => self.name_each(image, items, &boxes, looks),
        };
        timings.matching = watch.ms();
        let Err(error) = found else { return Vec::new() };
        warn!(station = self.station, source, error = %error, "frame held: the part index failed");
        vec![Reason::IndexUnavailable]
    }

    /// Size and colour of each box.
    fn measure(&self, image: &Image, items: &mut [ItemEvidence]) {
        for item in items {
            item.size_mm = self.stage.px_per_mm.and_then(|scale| measure_size(&item.bbox, scale));
            item.colour = self.stage.color.as_ref().and_then(|color| {
                let seen = measure_colour(image, &item.bbox, color.gains, &self.matcher.colours)?;
                Some(seen.judged(color.limits))
            });
        }
    }

    fn look(&mut self, image: &Image, boxes: &[BoundingBox]) -> Result<Looks, InferenceError> {
        let embedding = &self.index.manifest().embedding;
        let crop_of =
            |bbox: &BoundingBox| bbox.grown(embedding.crop_margin_ratio).clamped(image.width_px(), image.height_px());
        let crop = |bbox: &BoundingBox| Crop { image, area: crop_of(bbox), is_mirrored: self.stage.is_in_mirror(bbox) };
        let crops: Vec<Crop<'_>> = boxes.iter().map(crop).collect();
        self.matcher.model.look(&crops, embedding.input_px, self.index.wants_mirrored())
    }

    /// Every box is an item.
    fn name_each(
        &self,
        image: &Image,
        items: &mut [ItemEvidence],
        boxes: &[BoundingBox],
        looks: Looks,
    ) -> Result<(), MatchError> {
        let embedded = Embedded { pictures: &looks.embeddings, mirrored: &looks.mirrored };
        let matches = self.with_learning(|rule, learning| self.index.search_with(embedded, rule, learning))?;
        let seen = boxes.iter().zip(looks.foreshortenings).zip(matches);
        for (item, ((bbox, shown), matched)) in items.iter_mut().zip(seen) {
            let seen = self.seen(image, bbox, item.size_mm, shown, &matched.top_k);
            item.matched = Some(self.levelled(self.index.fuse(matched, &seen)));
        }
        Ok(())
    }

    /// All boxes are views of one item, which takes their place.
    fn name_one(
        &self,
        image: &Image,
        items: &mut Vec<ItemEvidence>,
        boxes: &[BoundingBox],
        looks: Looks,
    ) -> Result<(), MatchError> {
        let embedded = Embedded { pictures: &looks.embeddings, mirrored: &looks.mirrored };
        let together = self.with_learning(|rule, learning| self.index.search_views(embedded, rule, learning))?;
        let ranked = &together.evidence.top_k;
        let views: Vec<Seen> = boxes
            .iter()
            .zip(looks.foreshortenings)
            .zip(items.iter())
            .map(|((bbox, shown), item)| self.seen(image, bbox, item.size_mm, shown, ranked))
            .collect();
        let matched = self.levelled(self.index.fuse_views(together.evidence, &views));
        *items = one_item(std::mem::take(items), &together.alone).into_iter().collect();
        items.iter_mut().for_each(|item| item.matched = Some(matched.clone()));
        Ok(())
    }

    fn with_learning<T>(&self, search: impl FnOnce(AcceptRule, Learning<'_>) -> T) -> T {
        let stage = self.stage;
        let rule = AcceptRule { accept_similarity: stage.accept_similarity, accept_margin: stage.accept_margin };
        let delta = self.matcher.delta.get();
        search(rule, Learning { delta: Some(&delta), group_margin: stage.group_margin })
    }

    fn seen(
        &self,
        image: &Image,
        bbox: &BoundingBox,
        size_mm: Option<SizeMm>,
        shown: Option<Foreshortening>,
        ranked: &[RankedPart],
    ) -> Seen {
        let margin = 1.0 + 2.0 * self.index.manifest().embedding.crop_margin_ratio;
        let is_weighed = self.index.fit().is_some() && self.index.wants_shape(ranked);
        let shape = is_weighed.then(|| Shape::of(image, bbox, self.stage.is_in_mirror(bbox)));
        Seen { size_mm, foreshortening: shown.map(|shown| shown.of_inner(margin)), shape }
    }

    fn levelled(&self, mut matched: MatchEvidence) -> MatchEvidence {
        matched.quality_level = self.quality_levels.get(&matched.part_id).copied();
        matched
    }
}

/// Whether the boxes are so many views of one item: their number, and, where each picture is a view, one in each.
fn is_seen_in(views: usize, items: &[ItemEvidence], pictures: &[BoundingBox]) -> bool {
    let of = |picture: &BoundingBox| items.iter().filter(|item| picture.holds_centre_of(&item.bbox)).count();
    items.len() == views && (pictures.len() != views || pictures.iter().all(|picture| of(picture) == 1))
}

/// The item of these views: a box around all of them, the colour of the largest, the confidence of the least sure.
fn one_item(boxes: Vec<ItemEvidence>, alone: &[RankedPart]) -> Option<ItemEvidence> {
    let view = |(position, of): (usize, &ItemEvidence)| ItemView {
        bbox: of.bbox,
        detection_confidence: of.confidence,
        size_mm: of.size_mm,
        part_id: alone.get(position).map(|part| part.part_id.clone()),
        similarity: alone.get(position).map(|part| part.similarity),
    };
    let views: Vec<ItemView> = boxes.iter().enumerate().map(view).collect();
    let bbox = boxes.iter().map(|of| of.bbox).reduce(|all, one| all.around(&one))?;
    let confidence = boxes.iter().map(|of| of.confidence).fold(1.0, f32::min);
    let largest = boxes.into_iter().max_by(|a, b| a.bbox.area_px().total_cmp(&b.bbox.area_px()))?;
    Some(ItemEvidence { bbox, views, confidence, size_mm: None, ..largest })
}

/// Whether the model failed on this picture, or cannot answer at all now.
pub(super) fn fault_of(error: &InferenceError) -> Reason {
    if error.is_unavailable() { Reason::ModelUnavailable } else { Reason::ModelError }
}

#[cfg(test)]
mod tests {
    use super::{is_seen_in, one_item};
    use crate::decide::ItemEvidence;
    use crate::types::BoundingBox;

    fn boxed(x1: f32, x2: f32, confidence: f32) -> ItemEvidence {
        ItemEvidence {
            bbox: BoundingBox::new(x1, 10.0, x2, 20.0),
            views: Vec::new(),
            label: format!("{x1}"),
            confidence,
            matched: None,
            size_mm: None,
            colour: None,
        }
    }

    #[test]
    fn two_boxes_in_one_picture_are_not_the_views_of_two() {
        let pictures = [BoundingBox::new(0.0, 0.0, 40.0, 40.0), BoundingBox::new(40.0, 0.0, 90.0, 40.0)];
        let one_each = [boxed(0.0, 5.0, 1.0), boxed(50.0, 60.0, 1.0)];
        let same = [boxed(0.0, 5.0, 1.0), boxed(20.0, 30.0, 1.0)];
        assert!(is_seen_in(2, &one_each, &pictures) && !is_seen_in(2, &same, &pictures));
        assert!(is_seen_in(2, &same, &[]), "mirrors in one picture");
        assert!(!is_seen_in(3, &one_each, &pictures));
    }

    #[test]
    fn an_item_is_around_its_views_and_no_surer_than_the_least_sure() {
        let item = one_item(vec![boxed(0.0, 5.0, 0.9), boxed(30.0, 50.0, 0.6), boxed(60.0, 70.0, 0.8)], &[]).unwrap();
        assert_eq!(item.bbox, BoundingBox::new(0.0, 10.0, 70.0, 20.0));
        assert_eq!((item.confidence, item.label.as_str(), item.views.len()), (0.6, "30", 3));
        assert_eq!(item.views[2].bbox, BoundingBox::new(60.0, 10.0, 70.0, 20.0));
        assert!(one_item(Vec::new(), &[]).is_none());
    }
}
