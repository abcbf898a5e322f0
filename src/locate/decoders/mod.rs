//! One decoder a layout: from what a graph gave to boxes in pixels of its input.
//!
//! Decoders are pure and keep nothing between pictures. A row above its least score that cannot be what the layout says
//! ([`RowFault`]) is never dropped in silence: the model is broken or read wrongly, and its frame must hold. Overload: a decoder looks at each row
//! once; what it finds is cut to [`CANDIDATES_MAX`] before anything quadratic.

mod detr;
mod end_to_end;
mod gfl;
mod ssd;
mod yolo;
mod yolox;

use crate::inference::{BoxOrder, BoxUnit, DetectorLayout, ModelManifest, RawOutputs, ScoreForm};

/// Candidates kept for the suppression at most, the most confident: it is quadratic.
pub(super) const CANDIDATES_MAX: usize = 1_000;

/// How far above 1 a score may be by rounding (FP16 products of sigmoids).
const SCORE_SLACK: f32 = 0.01;
/// How far from a whole number a class may be by rounding.
const CLASS_SLACK: f32 = 0.01;
/// How far the wrong way round two corners may be, pixels of the input: heads that regress plain distances give tiny boxes so.
const INVERTED_PX_MAX: f32 = 1.0;

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFault {
    /// Score, class or box is NaN or infinite.
    NotFinite,
    /// The score is above 1.
    AboveOne,
    /// The class is no whole number, below 0, or beyond those of the manifest.
    NoSuchClass,
    /// Right of left or bottom above top.
    Inverted,
}

impl std::fmt::Display for RowFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RowFault::NotFinite => {
                "that are no numbers (NaN or infinite); its weights or its precision are broken: run `loupe model verify`, and \
                 try another provider or FP32"
            }
            RowFault::AboveOne => {
                "with a score above 1; if it gives logits, set `scores = \"logit\"` under [detector] of its manifest, else it is \
                 of another layout: see `loupe model probe`"
            }
            RowFault::NoSuchClass => {
                "of a class that its manifest does not name; complete `classes`, or set `class_offset` or the right `layout`"
            }
            RowFault::Inverted => {
                "whose box ends before it begins; set `box_order` under [detector] of its manifest (xyxy, yxyx, cxcywh)"
            }
        })
    }
}

/// Rows that cannot be what the layout says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BrokenRows {
    /// Of the first of them.
    pub fault: RowFault,
    pub count: usize,
}

impl BrokenRows {
    /// Those of two pictures together.
    pub(super) fn joined(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self { count: one.count + other.count, ..one }),
            (one, other) => one.or(other),
        }
    }
}

/// A box that a graph proposes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Left, top, right, bottom in pixels of the input, finite, not yet cut to anything.
    pub corners: [f32; 4],
    pub class: usize,
    /// 0 to 1 for a sound model.
    pub score: f32,
    /// Row of the output it came from.
    pub row: usize,
}

/// Least scores.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Thresholds {
    default: f32,
    /// By class where it has one of its own.
    by_class: Vec<Option<f32>>,
}

impl Thresholds {
    pub(super) fn new(default: f32, by_class: Vec<Option<f32>>) -> Self {
        Self { default, by_class }
    }

    fn of(&self, class: usize) -> f32 {
        self.by_class.get(class).copied().flatten().unwrap_or(self.default)
    }

    /// What no class accepts less than.
    fn least(&self) -> f32 {
        self.by_class.iter().flatten().fold(self.default, |least, value| least.min(*value))
    }
}

/// What a decoder found so far.
#[derive(Debug)]
pub(super) struct Found<'t> {
    thresholds: &'t Thresholds,
    pub candidates: Vec<Candidate>,
    pub broken: Option<BrokenRows>,
}

impl<'t> Found<'t> {
    pub(super) fn new(thresholds: &'t Thresholds) -> Self {
        Self { thresholds, candidates: Vec::new(), broken: None }
    }

    /// Take the row if its score suffices; `corners` are computed only then.
    fn offer(&mut self, row: usize, class: usize, score: f32, corners: impl FnOnce() -> [f32; 4]) {
        if score.is_nan() {
            return self.broken(RowFault::NotFinite);
        }
        // Rows that only fill up a fixed count have a score of 0.
        if score <= 0.0 || score < self.thresholds.of(class) {
            return;
        }
        let corners = corners();
        let [left, top, right, bottom] = corners;
        let fault = if !score.is_finite() || corners.iter().any(|corner| !corner.is_finite()) {
            Some(RowFault::NotFinite)
        } else if score > 1.0 + SCORE_SLACK {
            Some(RowFault::AboveOne)
        } else if right < left - INVERTED_PX_MAX || bottom < top - INVERTED_PX_MAX {
            Some(RowFault::Inverted)
        } else {
            None
        };
        match fault {
            Some(fault) => self.broken(fault),
            None => self.candidates.push(Candidate { corners, class, score: score.min(1.0), row }),
        }
    }

    /// As [`Found::offer`], of a row whose class came as a number; `offset` is that of the first class, what is below it
    /// (from 0 on) is background.
    fn offer_label(&mut self, row: usize, label: f32, offset: u32, score: f32, corners: impl FnOnce() -> [f32; 4]) {
        if label.is_nan() || score.is_nan() {
            return self.broken(RowFault::NotFinite);
        }
        let class = class_of(label, offset, self.thresholds.by_class.len());
        let known = class.as_ref().map_or(None, |class| *class);
        if score <= 0.0 || score < known.map_or(self.thresholds.least(), |class| self.thresholds.of(class)) {
            return;
        }
        match class {
            Ok(Some(class)) => self.offer(row, class, score, corners),
            Ok(None) => {}
            Err(()) => self.broken(RowFault::NoSuchClass),
        }
    }

    fn broken(&mut self, fault: RowFault) {
        self.broken = BrokenRows::joined(self.broken, Some(BrokenRows { fault, count: 1 }));
    }

    /// What no class accepts less than.
    fn least(&self) -> f32 {
        self.thresholds.least()
    }
}

/// The output is not that of the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayoutFault {
    pub expected: String,
    pub found: String,
}

/// Reads one layout.
pub(super) trait Decoder: std::fmt::Debug + Send {
    /// Add what the graph proposes for one picture to `found`.
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault>;

    /// Whether the graph has removed duplicates itself.
    fn is_final(&self) -> bool {
        false
    }

    /// The mask coefficients of a row, where the layout has some.
    fn coefficients(&self, _raw: &RawOutputs<'_>, _row: usize) -> Option<Vec<f32>> {
        None
    }
}

/// The decoder that a manifest asks for; `None` for what is no detector.
pub(super) fn for_manifest(manifest: &ModelManifest) -> Option<Box<dyn Decoder>> {
    let layout = manifest.layout()?;
    let spec = manifest.detector();
    let class_count = Some(manifest.classes().len()).filter(|count| *count > 0);
    let geometry = Geometry { unit: spec.box_unit(layout), order: spec.order(layout) };
    Some(match layout {
        DetectorLayout::Yolox => Box::new(yolox::Yolox { class_count, strides: spec.strides.clone() }),
        DetectorLayout::Yolo | DetectorLayout::Yolov5 => Box::new(yolo::Yolo {
            class_count,
            has_objectness: layout == DetectorLayout::Yolov5,
            scores: spec.scores,
            geometry,
        }),
        DetectorLayout::EndToEnd => Box::new(end_to_end::EndToEnd { geometry, class_offset: spec.class_offset }),
        DetectorLayout::Detr => {
            Box::new(detr::Detr { geometry, class_count, class_offset: spec.class_offset, scores: spec.scores })
        }
        DetectorLayout::Gfl => Box::new(gfl::Gfl {
            class_count,
            strides: spec.strides.clone(),
            cell_offset: spec.cell_offset,
            scores: spec.scores,
        }),
        DetectorLayout::Ssd => Box::new(ssd::Ssd { geometry, class_offset: spec.class_offset }),
    })
}

/// How four numbers make a box.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Geometry {
    unit: BoxUnit,
    order: BoxOrder,
}

impl Geometry {
    fn corners(self, [a, b, c, d]: [f32; 4], [width_px, height_px]: [u32; 2]) -> [f32; 4] {
        let corners = match self.order {
            BoxOrder::Xyxy => [a, b, c, d],
            BoxOrder::Yxyx => [b, a, d, c],
            BoxOrder::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        };
        let [x, y] = match self.unit {
            BoxUnit::InputPx => [1.0, 1.0],
            BoxUnit::Unit => [width_px as f32, height_px as f32],
        };
        [corners[0] * x, corners[1] * y, corners[2] * x, corners[3] * y]
    }
}

/// A score as a probability.
fn probability(score: f32, form: ScoreForm) -> f32 {
    match form {
        ScoreForm::Probability => score,
        // Minus infinity is a class that the graph rules out, plus infinity a number that overflowed.
        ScoreForm::Logit if score == f32::INFINITY => f32::NAN,
        ScoreForm::Logit => 1.0 / (1.0 + (-score).exp()),
    }
}

/// The largest score and its index, or `NaN` where one is none.
fn best(scores: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (class, score) in scores.iter().enumerate() {
        if score.is_nan() {
            return (class, f32::NAN);
        }
        if *score > best.1 {
            best = (class, *score);
        }
    }
    best
}

/// A class number that came as a float; `None` for background, below `offset`. `count` classes are known, any where it is 0.
///
/// # Errors
/// When it is no class.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 0 to 65535")]
fn class_of(label: f32, offset: u32, count: usize) -> Result<Option<usize>, ()> {
    let number = label.round();
    if !(0.0..65_536.0).contains(&number) || (label - number).abs() > CLASS_SLACK {
        return Err(());
    }
    let class = (number as usize).checked_sub(offset as usize);
    if class.is_some_and(|class| count > 0 && class >= count) { Err(()) } else { Ok(class) }
}

/// Number of cells that cover a side.
fn cells(side_px: u32, stride: u32) -> usize {
    side_px.div_ceil(stride) as usize
}

fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::inference::{OutputRole, RawTensor};

    /// An output named after its role.
    pub(in crate::locate) fn tensor<'v>(role: OutputRole, shape: &[usize], values: &'v [f32]) -> RawTensor<'v> {
        RawTensor { name: role.as_str(), role, stride: None, shape: shape.to_vec(), values }
    }

    pub(in crate::locate) fn outputs<'v>(tensors: Vec<RawTensor<'v>>, input_px: [u32; 2]) -> RawOutputs<'v> {
        RawOutputs { tensors, input_px }
    }

    /// Candidates from 0.3 on, and the number of broken rows.
    pub(in crate::locate) fn decoded(
        decoder: &dyn Decoder,
        raw: &RawOutputs<'_>,
    ) -> Result<(Vec<Candidate>, usize), LayoutFault> {
        let thresholds = Thresholds::new(0.3, Vec::new());
        let mut found = Found::new(&thresholds);
        decoder.decode(raw, &mut found)?;
        Ok((found.candidates, found.broken.map_or(0, |broken| broken.count)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{outputs, tensor};
    use super::*;
    use crate::inference::OutputRole;

    #[test]
    fn a_class_of_its_own_threshold_does_not_change_the_others() {
        let thresholds = Thresholds::new(0.3, vec![None, Some(0.7)]);
        let mut found = Found::new(&thresholds);
        for (class, score) in [(0, 0.3), (0, 0.29), (1, 0.69), (1, 0.7), (2, 0.5), (0, 0.0), (0, f32::NAN)] {
            found.offer(0, class, score, || [0.0, 0.0, 1.0, 1.0]);
        }
        found.offer(0, 0, 0.9, || [0.0, 0.0, f32::INFINITY, 1.0]);
        let kept: Vec<_> = found.candidates.iter().map(|one| (one.class, one.score)).collect();
        assert_eq!(kept, [(0, 0.3), (1, 0.7), (2, 0.5)]);
        assert_eq!((found.broken, found.least()), (Some(BrokenRows { fault: RowFault::NotFinite, count: 2 }), 0.3));
    }

    #[test]
    fn a_row_that_cannot_be_is_counted_and_never_dropped() {
        let thresholds = Thresholds::new(0.3, vec![None, None]);
        let fault = |offer: &dyn Fn(&mut Found<'_>)| {
            let mut found = Found::new(&thresholds);
            offer(&mut found);
            (found.broken.map(|broken| broken.fault), found.candidates.len())
        };
        let unit = || [0.0, 0.0, 1.0, 1.0];
        let row = |score: f32, corners: [f32; 4]| fault(&move |found| found.offer(0, 0, score, || corners));
        assert_eq!(row(f32::INFINITY, unit()), (Some(RowFault::NotFinite), 0));
        assert_eq!(row(1.5, unit()), (Some(RowFault::AboveOne), 0));
        assert_eq!(row(1.001, unit()), (None, 1), "rounding");
        assert_eq!(row(0.9, [9.0, 0.0, 0.0, 9.0]), (Some(RowFault::Inverted), 0));
        assert_eq!(row(0.9, [0.0, 9.0, 9.0, 0.0]), (Some(RowFault::Inverted), 0));
        assert_eq!(row(0.9, [0.5, 0.5, 0.0, 0.0]), (None, 1), "less than a pixel");
        assert_eq!(row(0.1, [9.0, 0.0, 0.0, 9.0]), (None, 0), "a row below its score says nothing");
        let label = |label: f32, score: f32| fault(&move |found| found.offer_label(0, label, 1, score, unit));
        for (number, expected) in
            [(1.0, (None, 1)), (2.0, (None, 1)), (0.0, (None, 0)), (-1.0, (Some(RowFault::NoSuchClass), 0))]
        {
            assert_eq!(label(number, 0.9), expected, "{number}");
        }
        for beyond in [3.0, 1.5, 1e12, f32::INFINITY] {
            assert_eq!(label(beyond, 0.9), (Some(RowFault::NoSuchClass), 0), "{beyond}");
            assert_eq!(label(beyond, 0.1), (None, 0), "{beyond}");
        }
        assert_eq!(label(f32::NAN, 0.0), (Some(RowFault::NotFinite), 0));
        assert!(probability(f32::INFINITY, ScoreForm::Logit).is_nan());
        assert_eq!(probability(f32::NEG_INFINITY, ScoreForm::Logit), 0.0);
    }

    #[test]
    fn boxes_are_read_in_each_order_and_unit() {
        let box_of = |order, unit, four| Geometry { unit, order }.corners(four, [100, 50]);
        assert_eq!(box_of(BoxOrder::Xyxy, BoxUnit::InputPx, [1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(box_of(BoxOrder::Yxyx, BoxUnit::Unit, [0.125, 0.25, 0.5, 0.75]), [25.0, 6.25, 75.0, 25.0]);
        assert_eq!(box_of(BoxOrder::Cxcywh, BoxUnit::InputPx, [10.0, 20.0, 4.0, 6.0]), [8.0, 17.0, 12.0, 23.0]);
        assert_eq!((class_of(3.0, 1, 0), class_of(3.0, 1, 2), class_of(0.0, 1, 2)), (Ok(Some(2)), Err(()), Ok(None)));
    }

    fn all_decoders() -> Vec<(Box<dyn Decoder>, Vec<OutputRole>)> {
        let geometry = Geometry { unit: BoxUnit::InputPx, order: BoxOrder::Cxcywh };
        let scores = ScoreForm::Logit;
        let one = vec![OutputRole::Detections];
        let three = vec![OutputRole::Labels, OutputRole::Boxes, OutputRole::Scores, OutputRole::Count];
        vec![
            (Box::new(yolox::Yolox { class_count: None, strides: vec![8, 16, 32] }), one.clone()),
            (Box::new(yolo::Yolo { class_count: None, has_objectness: false, scores, geometry }), one.clone()),
            (Box::new(yolo::Yolo { class_count: Some(2), has_objectness: true, scores, geometry }), one.clone()),
            (Box::new(end_to_end::EndToEnd { geometry, class_offset: 0 }), one.clone()),
            (Box::new(detr::Detr { geometry, class_count: None, class_offset: 0, scores }), three.clone()),
            (
                Box::new(detr::Detr { geometry, class_count: None, class_offset: 1, scores }),
                vec![OutputRole::Boxes, OutputRole::Scores],
            ),
            (Box::new(ssd::Ssd { geometry, class_offset: 1 }), three),
            (Box::new(gfl::Gfl { class_count: None, strides: vec![8, 16], cell_offset: 0.5, scores }), one),
            (
                Box::new(gfl::Gfl { class_count: None, strides: vec![8], cell_offset: 0.0, scores }),
                vec![OutputRole::Scores, OutputRole::Boxes],
            ),
        ]
    }

    proptest! {
        /// A short deterministic run of what `fuzz/` does without end.
        #[test]
        fn any_shape_and_any_numbers_give_candidates_or_a_fault_and_no_panic(
            shapes in proptest::collection::vec(proptest::collection::vec(0_usize..40, 0..4), 4),
            numbers in proptest::collection::vec(prop_oneof![any::<f32>(), -3.0_f32..3.0, 0.0_f32..1.0], 1..64),
        ) {
            for (decoder, roles) in all_decoders() {
                let data: Vec<Vec<f32>> = shapes.iter()
                    .map(|shape| numbers.iter().copied().cycle().take(shape.iter().product::<usize>().min(64_000)).collect())
                    .collect();
                let tensors = roles.iter().zip(shapes.iter().zip(&data))
                    .map(|(role, (shape, values))| tensor(*role, shape, values)).collect();
                let raw = outputs(tensors, [64, 32]);
                if let Ok((candidates, _)) = testing::decoded(decoder.as_ref(), &raw) {
                    for one in candidates {
                        prop_assert!(one.score >= 0.3 && one.corners.iter().all(|corner| corner.is_finite()));
                        drop(decoder.coefficients(&raw, one.row));
                    }
                }
            }
        }
    }
}
