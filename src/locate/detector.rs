//! Detectors of every layout: what a graph proposes becomes boxes in the frame.
//!
//! Order: decode, suppress duplicates (in unclipped boxes, as the models' own code does), cut to the frame, merge across
//! tiles. Invariant: boxes lie inside the frame, best first, at most one more than [`limits::ITEMS_PER_FRAME_MAX`], so that
//! the caller notices; a model whose output is no number is an error and never an empty frame.
//! Thread: one locator a worker. Overload: none of its own; a tiled frame costs one inference a tile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::decoders::{self, BrokenRows, CANDIDATES_MAX, Candidate, Decoder, Found, LayoutFault, RowFault, Thresholds};
use super::segment::{self, BoxMask};
use super::tiles::{self, Piece};
use super::{Detection, nms};
use crate::inference::{
    DetectorLayout, DetectorModel, Host, InferenceError, Letterbox, ModelHealth, ModelManifest, NodeCounts, OutputRole,
    ProviderPlan, RawOutputs,
};
use crate::limits;
use crate::types::{BoundingBox, Image, Provider};

/// Least score where neither the recipe nor the model's manifest gives one.
const SCORE_MIN_DEFAULT: f32 = 0.3;

/// Options of a detector; a key left out has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorOptions {
    /// Least score, 0 to 1. Default: the one that the model's manifest gives (`score_min` under `[detector]`), else 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_min: Option<f32>,
    /// Overlap (IoU) beyond which two boxes of a class are one thing, 0 to 1. Default: 0.45. Layouts whose graph removes
    /// duplicates itself use it between tiles only.
    pub iou_max: f32,
    /// Least scores of single classes, by name.
    pub class_score_min: BTreeMap<String, f32>,
    /// Boxes of different classes suppress each other too. Default: no.
    pub class_agnostic: bool,
    /// Look at squares of this side instead of the whole frame, frame pixels; 0 (default) = the whole frame.
    pub tile_px: u32,
    /// How much neighbouring tiles share at least, pixels: what is larger is put together again from its parts. Default: 64.
    pub tile_overlap_px: u32,
}

impl Default for DetectorOptions {
    fn default() -> Self {
        Self {
            score_min: None,
            iou_max: 0.45,
            class_score_min: BTreeMap::new(),
            class_agnostic: false,
            tile_px: 0,
            tile_overlap_px: 64,
        }
    }
}

impl DetectorOptions {
    /// What is wrong with the options, `(key, words)`; empty where nothing is.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let score_min = self.score_min.unwrap_or(SCORE_MIN_DEFAULT);
        let mut faults: Vec<(&'static str, String)> = [("score_min", score_min), ("iou_max", self.iou_max)]
            .into_iter()
            .filter(|(_, value)| !(0.0..=1.0).contains(value))
            .map(|(key, _)| (key, "must lie between 0 and 1".to_owned()))
            .collect();
        for (class, score_min) in &self.class_score_min {
            if !(0.0..=1.0).contains(score_min) {
                faults.push(("class_score_min", format!("of `{class}` must lie between 0 and 1")));
            }
        }
        if self.tile_px != 0 && !(32..=limits::IMAGE_SIDE_PX_MAX).contains(&self.tile_px) {
            faults.push(("tile_px", "must be 0 (off) or 32 to 16384 pixels".to_owned()));
        }
        if self.tile_px != 0 && self.tile_overlap_px >= self.tile_px {
            faults.push(("tile_overlap_px", "must be less than tile_px".to_owned()));
        }
        faults
    }
}

/// Why a detector gave no boxes.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error(transparent)]
    Inference(#[from] InferenceError),
    #[error(
        "model `{model}` does not give what layout `{layout}` with an input of {width_px}x{height_px} is: \
         expected {expected}, found {found}; check layout, classes and input size in its manifest (`loupe model probe`)"
    )]
    Layout { model: String, layout: DetectorLayout, width_px: u32, height_px: u32, expected: String, found: String },
    #[error("model `{model}` gave {rows} rows {fault}")]
    BrokenRows { model: String, rows: usize, fault: RowFault },
    #[error("region {position} of the recipe reaches out of a picture of {width_px}x{height_px}")]
    Region { position: usize, width_px: u32, height_px: u32 },
    #[error("model `{model}` has no class `{class}`, which `class_score_min` names; it has {classes}")]
    UnknownClass { model: String, class: String, classes: String },
}

/// One located thing and, where the model gives one, its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub detection: Detection,
    pub mask: Option<BoxMask>,
}

/// A detector and how to read it. One a worker.
#[derive(Debug)]
pub struct DetectorLocator {
    model: DetectorModel,
    decoder: Box<dyn Decoder>,
    layout: DetectorLayout,
    options: DetectorOptions,
    thresholds: Thresholds,
    classes: Vec<String>,
}

impl DetectorLocator {
    /// # Errors
    /// As [`DetectorModel::open`], and when the options name a class that the model has not.
    pub fn open(
        host: impl Into<Host>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
        options: DetectorOptions,
    ) -> Result<DetectorLocator, LocateError> {
        let model = DetectorModel::open(host, manifest, plan)?;
        let classes = manifest.classes().to_vec();
        let thresholds = thresholds(manifest, &options)?;
        // `DetectorModel::open` refuses a manifest without layout.
        let (Some(decoder), Some(layout)) = (decoders::for_manifest(manifest), manifest.layout()) else {
            let (model, found) = (manifest.name().to_owned(), manifest.kind().as_str());
            return Err(InferenceError::Kind { model, expected: "detector", found }.into());
        };
        Ok(Self { model, decoder, layout, options, thresholds, classes })
    }

    /// Boxes in frame pixels, the most confident first; the label is the manifest's class or `class_<index>`.
    ///
    /// # Errors
    /// Where the model fails, its output is not that of its layout, or is no number.
    pub fn locate(&mut self, image: &Image) -> Result<Vec<Detection>, LocateError> {
        Ok(self.examine(image, false)?.into_iter().map(|segment| segment.detection).collect())
    }

    /// As [`DetectorLocator::locate`], with masks where the manifest names prototypes. What a seam cut keeps the mask of its
    /// larger part.
    ///
    /// # Errors
    /// As [`DetectorLocator::locate`].
    pub fn locate_segments(&mut self, image: &Image) -> Result<Vec<Segment>, LocateError> {
        self.examine(image, true)
    }

    /// Where the model really runs.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.model.provider()
    }

    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.model.is_fallback()
    }

    /// Operators per provider, as the runtime reports them.
    #[must_use]
    pub fn nodes(&self) -> &NodeCounts {
        self.model.nodes()
    }

    /// Milliseconds spent in the runtime since the model was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.model.session_ms()
    }

    /// How the model is doing, where stations share it.
    #[must_use]
    pub fn health(&self) -> &ModelHealth {
        self.model.health()
    }

    /// Names of the classes, in the order of the model's output.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    fn examine(&mut self, image: &Image, wants_masks: bool) -> Result<Vec<Segment>, LocateError> {
        let (width_px, height_px) = (image.width_px(), image.height_px());
        let areas = match self.options.tile_px {
            0 => vec![BoundingBox::whole(width_px, height_px)],
            side_px => tiles::cut(width_px, height_px, side_px, self.options.tile_overlap_px),
        };
        let (decoder, thresholds, options) = (self.decoder.as_ref(), &self.thresholds, &self.options);
        let mut pieces = Vec::new();
        let mut fault = None;
        let mut broken = None;
        self.model.run(image, &areas, |tile, raw, letterbox| match propose(decoder, thresholds, raw) {
            Err(error) => fault = Some(error),
            Ok((candidates, found)) => {
                broken = BrokenRows::joined(broken, found);
                for (candidate, unclipped) in unrepeated(candidates, letterbox, decoder.is_final(), options) {
                    let bbox = unclipped.clamped(width_px, height_px);
                    // Outside the frame, or thinner than a pixel: nothing to look at.
                    if bbox.width_px() < 1.0 || bbox.height_px() < 1.0 {
                        continue;
                    }
                    let payload = wants_masks.then(|| mask_of(decoder, raw, letterbox, &candidate, &bbox)).flatten();
                    let is_cut = tiles::is_cut(&bbox, &areas[tile], width_px, height_px);
                    let (class, score) = (candidate.class, candidate.score);
                    pieces.push(Piece { bbox, class, score, tile, is_cut, payload });
                }
            }
        })?;
        if let Some(fault) = fault {
            return Err(self.layout_error(fault));
        }
        if let Some(BrokenRows { fault, count: rows }) = broken {
            return Err(LocateError::BrokenRows { model: self.model.manifest().name().to_owned(), rows, fault });
        }
        if areas.len() > 1 {
            pieces = tiles::merge(pieces, self.options.iou_max, self.options.class_agnostic);
        }
        pieces.truncate(limits::ITEMS_PER_FRAME_MAX + 1);
        Ok(pieces.into_iter().map(|piece| self.segment(piece)).collect())
    }

    fn segment(&self, piece: Piece<Option<BoxMask>>) -> Segment {
        let label = self.classes.get(piece.class).cloned().unwrap_or_else(|| format!("class_{}", piece.class));
        Segment { detection: Detection { bbox: piece.bbox, label, confidence: piece.score }, mask: piece.payload }
    }

    fn layout_error(&self, fault: LayoutFault) -> LocateError {
        let [width_px, height_px] = self.model.manifest().input().size_px;
        LocateError::Layout {
            model: self.model.manifest().name().to_owned(),
            layout: self.layout,
            width_px,
            height_px,
            expected: fault.expected,
            found: fault.found,
        }
    }
}

fn thresholds(manifest: &ModelManifest, options: &DetectorOptions) -> Result<Thresholds, LocateError> {
    let classes = manifest.classes();
    if let Some(class) = options.class_score_min.keys().find(|class| !classes.contains(class)) {
        return Err(LocateError::UnknownClass {
            model: manifest.name().to_owned(),
            class: class.clone(),
            classes: if classes.is_empty() { "none".to_owned() } else { classes.join(", ") },
        });
    }
    let by_class = classes.iter().map(|class| options.class_score_min.get(class).copied()).collect();
    let score_min = options.score_min.or(manifest.detector().score_min).unwrap_or(SCORE_MIN_DEFAULT);
    Ok(Thresholds::new(score_min, by_class))
}

/// The best candidates, best first, and how many rows cannot be what the layout says.
fn propose(
    decoder: &dyn Decoder,
    thresholds: &Thresholds,
    raw: &RawOutputs<'_>,
) -> Result<(Vec<Candidate>, Option<BrokenRows>), LayoutFault> {
    let mut found = Found::new(thresholds);
    decoder.decode(raw, &mut found)?;
    found.candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.candidates.truncate(CANDIDATES_MAX);
    Ok((found.candidates, found.broken))
}

/// Candidates with their unclipped boxes in the frame, duplicates gone.
fn unrepeated(
    candidates: Vec<Candidate>,
    letterbox: &Letterbox,
    is_final: bool,
    options: &DetectorOptions,
) -> Vec<(Candidate, BoundingBox)> {
    let in_frame = candidates.into_iter().map(|candidate| {
        let [x1, y1, x2, y2] = candidate.corners;
        let ((x1, y1), (x2, y2)) = (letterbox.to_frame(x1, y1), letterbox.to_frame(x2, y2));
        (candidate, BoundingBox::new(x1, y1, x2, y2))
    });
    let in_frame: Vec<_> = in_frame.collect();
    if is_final {
        return in_frame;
    }
    let is_agnostic = options.class_agnostic;
    nms::keep_first(in_frame, options.iou_max, |a, b| is_agnostic || a.0.class == b.0.class, |one| one.1)
}

/// What the layout of `manifest` proposes for one picture: corners in input pixels, class and score, best first, duplicates
/// still in it. For tools and fuzzing; [`DetectorLocator`] does the whole way.
///
/// # Errors
/// When the outputs are not those of the layout, in words.
pub fn decode_outputs(
    manifest: &ModelManifest,
    raw: &RawOutputs<'_>,
    score_min: f32,
) -> Result<Vec<([f32; 4], usize, f32)>, String> {
    let decoder = decoders::for_manifest(manifest).ok_or("the manifest is of no detector")?;
    let thresholds = Thresholds::new(score_min, Vec::new());
    let (candidates, _) = propose(decoder.as_ref(), &thresholds, raw)
        .map_err(|fault| format!("expected {}, found {}", fault.expected, fault.found))?;
    Ok(candidates.into_iter().map(|one| (one.corners, one.class, one.score)).collect())
}

fn mask_of(
    decoder: &dyn Decoder,
    raw: &RawOutputs<'_>,
    letterbox: &Letterbox,
    candidate: &Candidate,
    bbox: &BoundingBox,
) -> Option<BoxMask> {
    let prototypes = raw.get(OutputRole::Prototypes)?;
    let coefficients = decoder.coefficients(raw, candidate.row)?;
    segment::mask(&coefficients, prototypes, letterbox, raw.input_px, bbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTERBOX: Letterbox = Letterbox { scale_x: 0.5, scale_y: 0.5, pad_x: 8.0, pad_y: 0.0, left: 0.0, top: 0.0 };

    fn candidate(x: f32, class: usize, score: f32) -> Candidate {
        Candidate { corners: [x, 0.0, x + 20.0, 10.0], class, score, row: 0 }
    }

    #[test]
    fn boxes_go_back_through_the_letterbox_and_duplicates_go() {
        let candidates = vec![candidate(8.0, 0, 0.9), candidate(9.0, 0, 0.8), candidate(9.0, 1, 0.7)];
        let options = DetectorOptions::default();
        let kept = unrepeated(candidates.clone(), &LETTERBOX, false, &options);
        let boxes: Vec<_> = kept.iter().map(|(one, bbox)| (one.class, <[f32; 4]>::from(*bbox))).collect();
        assert_eq!(boxes, [(0, [0.0, 0.0, 40.0, 20.0]), (1, [2.0, 0.0, 42.0, 20.0])]);
        let agnostic = DetectorOptions { class_agnostic: true, ..options.clone() };
        assert_eq!(unrepeated(candidates.clone(), &LETTERBOX, false, &agnostic).len(), 1);
        assert_eq!(unrepeated(candidates, &LETTERBOX, true, &options).len(), 3);
    }

    #[test]
    fn options_out_of_range_name_their_key() {
        let bad = DetectorOptions {
            score_min: Some(1.5),
            iou_max: f32::NAN,
            class_score_min: BTreeMap::from([("a".to_owned(), -1.0)]),
            tile_px: 100,
            tile_overlap_px: 100,
            ..DetectorOptions::default()
        };
        let keys: Vec<_> = bad.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["score_min", "iou_max", "class_score_min", "tile_overlap_px"]);
        assert!(DetectorOptions::default().faults().is_empty());
    }
}
