//! YOLOX detectors (Ge et al. 2021, <https://arxiv.org/abs/2107.08430>) with their raw head.
//!
//! The output is `[1, N, 5 + C]` f32: for each cell of the grids of strides 8, 16 and 32, row by row, the centre's offset
//! in cells, the logarithm of width and height in cells, the objectness and the class scores, the last two after their
//! sigmoid.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Detection, nms};
use crate::inference::{DetectorModel, InferenceError, ModelManifest, ProviderPlan, RawDetections, Runtime};
use crate::limits;
use crate::types::{BoundingBox, Image, Provider};

const STRIDES: [u32; 3] = [8, 16, 32];
/// x, y, width, height, objectness.
const BOX_COLUMNS: usize = 5;
/// Boxes given to the suppression at most, the most confident: it is quadratic.
const CANDIDATES_MAX: usize = 1_000;

/// Options of a YOLOX detector; a key left out has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct YoloxOptions {
    /// Least objectness times class score, 0 to 1. Default: 0.3.
    pub score_min: f32,
    /// Overlap (IoU) beyond which two boxes of a class are one thing, 0 to 1. Default: 0.45.
    pub iou_max: f32,
}

impl Default for YoloxOptions {
    fn default() -> Self {
        Self { score_min: 0.3, iou_max: 0.45 }
    }
}

impl YoloxOptions {
    /// What is wrong with the options, `(key, words)`; empty where nothing is.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        [("score_min", self.score_min), ("iou_max", self.iou_max)]
            .into_iter()
            .filter(|(_, value)| !(0.0..=1.0).contains(value))
            .map(|(key, _)| (key, "must lie between 0 and 1".to_owned()))
            .collect()
    }
}

/// Why a detector gave no boxes.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error(transparent)]
    Inference(#[from] InferenceError),
    #[error(
        "model `{model}` is no YOLOX head for an input of {width_px}x{height_px}: \
         it gives {rows} rows of {columns} columns where {expected_rows} rows of {expected_columns} are due; \
         check the manifest's input size and classes"
    )]
    Layout {
        model: String,
        width_px: u32,
        height_px: u32,
        rows: usize,
        columns: usize,
        expected_rows: usize,
        expected_columns: String,
    },
}

/// A YOLOX model and how to read it. One a worker.
#[derive(Debug)]
pub struct YoloxLocator {
    model: DetectorModel,
    options: YoloxOptions,
    classes: Vec<String>,
    input_px: [u32; 2],
}

impl YoloxLocator {
    /// # Errors
    /// As [`DetectorModel::open`].
    pub fn open(
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
        options: YoloxOptions,
    ) -> Result<YoloxLocator, LocateError> {
        let model = DetectorModel::open(runtime, manifest, plan)?;
        let (classes, input_px) = (manifest.classes().to_vec(), manifest.input().size_px);
        Ok(Self { model, options, classes, input_px })
    }

    /// Boxes in frame pixels, the most confident first; the label is the manifest's class or `class_<index>`.
    ///
    /// # Errors
    /// Where the model fails or its output has another shape than its input size asks for.
    pub fn locate(&mut self, image: &Image) -> Result<Vec<Detection>, LocateError> {
        let raw = self.model.raw(image)?;
        let frame = Frame { input_px: self.input_px, width_px: image.width_px(), height_px: image.height_px() };
        decode(&raw, frame, &self.classes, &self.options).ok_or_else(|| self.layout_error(&raw))
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

    /// Milliseconds spent in the runtime since the model was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.model.session_ms()
    }

    fn layout_error(&self, raw: &RawDetections) -> LocateError {
        let classes = self.classes.len();
        LocateError::Layout {
            model: self.model.manifest().name().to_owned(),
            width_px: self.input_px[0],
            height_px: self.input_px[1],
            rows: raw.rows,
            columns: raw.columns,
            expected_rows: rows_of(self.input_px),
            expected_columns: if classes == 0 { "6 or more".to_owned() } else { (BOX_COLUMNS + classes).to_string() },
        }
    }
}

/// Sizes a decoding needs.
#[derive(Debug, Clone, Copy)]
struct Frame {
    input_px: [u32; 2],
    width_px: u32,
    height_px: u32,
}

fn rows_of([width_px, height_px]: [u32; 2]) -> usize {
    STRIDES.iter().map(|stride| (width_px / stride) as usize * (height_px / stride) as usize).sum()
}

/// `None` where the shape is not that of a head for this input and these classes.
fn decode(raw: &RawDetections, frame: Frame, classes: &[String], options: &YoloxOptions) -> Option<Vec<Detection>> {
    let is_shape_right = raw.rows == rows_of(frame.input_px)
        && raw.columns > BOX_COLUMNS
        && raw.data.len() == raw.rows * raw.columns
        && (classes.is_empty() || raw.columns == BOX_COLUMNS + classes.len());
    if !is_shape_right {
        return None;
    }
    let cells = STRIDES.into_iter().flat_map(|stride| {
        let (across, down) = (frame.input_px[0] / stride, frame.input_px[1] / stride);
        (0..down).flat_map(move |y| (0..across).map(move |x| (x as f32, y as f32, stride as f32)))
    });
    let mut found: Vec<Detection> = raw
        .data
        .chunks_exact(raw.columns)
        .zip(cells)
        .filter_map(|(row, cell)| decode_row(row, cell, raw, frame, classes, options.score_min))
        .collect();
    if found.len() > CANDIDATES_MAX {
        found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        found.truncate(CANDIDATES_MAX);
    }
    let mut kept = nms::suppress(found, options.iou_max);
    kept.truncate(limits::ITEMS_PER_FRAME_MAX + 1);
    Some(kept)
}

fn decode_row(
    row: &[f32],
    (cell_x, cell_y, stride): (f32, f32, f32),
    raw: &RawDetections,
    frame: Frame,
    classes: &[String],
    score_min: f32,
) -> Option<Detection> {
    let &[x, y, width, height, objectness, ref scores @ ..] = row else { return None };
    // A class score is at most 1, so most rows end here.
    if objectness.is_nan() || objectness < score_min {
        return None;
    }
    let (class, score) = scores
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, score)| !score.is_nan())
        .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let confidence = objectness * score;
    if confidence.is_nan() || confidence < score_min {
        return None;
    }
    let (centre_x, centre_y) = ((x + cell_x) * stride, (y + cell_y) * stride);
    let (half_width, half_height) = (width.exp() * stride / 2.0, height.exp() * stride / 2.0);
    let scale = raw.letterbox.scale;
    let frame_x = |value: f32| (value - raw.letterbox.pad_x) / scale;
    let frame_y = |value: f32| (value - raw.letterbox.pad_y) / scale;
    let bbox = BoundingBox::new(
        frame_x(centre_x - half_width),
        frame_y(centre_y - half_height),
        frame_x(centre_x + half_width),
        frame_y(centre_y + half_height),
    );
    if !<[f32; 4]>::from(bbox).iter().all(|corner| corner.is_finite()) {
        return None;
    }
    let bbox = bbox.clamped(frame.width_px, frame.height_px);
    let label = || classes.get(class).cloned().unwrap_or_else(|| format!("class_{class}"));
    // Outside the frame, or thinner than a pixel: nothing to look at.
    (bbox.width_px() >= 1.0 && bbox.height_px() >= 1.0).then(|| Detection {
        bbox,
        label: label(),
        confidence: confidence.min(1.0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inference::Letterbox;

    /// An input of 64×32: 8×4 + 4×2 + 2×1 cells.
    const FRAME: Frame = Frame { input_px: [64, 32], width_px: 128, height_px: 60 };
    const ROWS: usize = 42;

    fn raw(rows: &[(usize, [f32; 7])]) -> RawDetections {
        let mut data = vec![0.0; ROWS * 7];
        for (row, values) in rows {
            data[row * 7..][..7].copy_from_slice(values);
        }
        RawDetections { rows: ROWS, columns: 7, data, letterbox: Letterbox { scale: 0.5, pad_x: 0.0, pad_y: 0.0 } }
    }

    fn decoded(raw: &RawDetections) -> Vec<Detection> {
        let classes = ["bolt".to_owned(), "nut".to_owned()];
        decode(raw, FRAME, &classes, &YoloxOptions::default()).unwrap()
    }

    #[test]
    fn rows_of_each_stride_land_on_their_cell() {
        let two = 2.0_f32.ln();
        // Row 9: stride 8, cell (1, 1). Row 32 + 5: stride 16, cell (1, 1). Row 41: stride 32, cell (1, 0).
        let found = decoded(&raw(&[
            (9, [0.5, 0.5, 0.0, two, 0.9, 0.1, 1.0]),
            (37, [0.5, 0.5, 0.0, 0.0, 0.8, 1.0, 0.0]),
            (41, [0.5, 0.5, 0.0, 0.0, 0.7, 0.0, 1.0]),
        ]));
        let boxes: Vec<_> = found.iter().map(|d| (d.label.as_str(), <[f32; 4]>::from(d.bbox))).collect();
        assert_eq!(boxes[0], ("nut", [16.0, 8.0, 32.0, 40.0]));
        assert_eq!(boxes[1], ("bolt", [32.0, 32.0, 64.0, 60.0]));
        assert_eq!(boxes[2], ("nut", [64.0, 0.0, 128.0, 60.0]));
        assert!((found[0].confidence - 0.9).abs() < 1e-6);
    }

    #[test]
    fn weak_nan_and_infinite_rows_are_ignored() {
        assert!(
            decoded(&raw(&[
                (0, [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.2]),
                (1, [f32::NAN, 0.0, 0.0, 0.0, 0.9, 0.9, 0.0]),
                (2, [0.0, 0.0, 0.0, 0.0, f32::NAN, 0.9, 0.0]),
                (3, [0.0, 0.0, 0.0, 0.0, 0.9, f32::NAN, f32::NAN]),
                (4, [0.0, 0.0, 1e9, 0.0, 0.9, 0.9, 0.0]),
            ]))
            .is_empty()
        );
    }

    #[test]
    fn another_shape_is_no_yolox_head() {
        let options = YoloxOptions::default();
        let good = raw(&[]);
        assert!(decode(&good, FRAME, &[], &options).is_some());
        assert!(decode(&good, FRAME, &["one".to_owned()], &options).is_none());
        assert!(decode(&good, Frame { input_px: [64, 64], ..FRAME }, &[], &options).is_none());
        let short = RawDetections { data: vec![0.0; 7], ..good };
        assert!(decode(&short, FRAME, &[], &options).is_none());
    }

    proptest! {
        #[test]
        fn any_rows_give_boxes_inside_the_frame(
            data in proptest::collection::vec(prop_oneof![any::<f32>(), -3.0_f32..3.0, 0.0_f32..1.0], ROWS * 7),
            scale in prop_oneof![Just(0.0_f32), 0.01_f32..10.0],
        ) {
            let letterbox = Letterbox { scale, pad_x: 1.0, pad_y: -1.0 };
            let raw = RawDetections { rows: ROWS, columns: 7, data, letterbox };
            let options = YoloxOptions { score_min: 0.0, ..YoloxOptions::default() };
            for found in decode(&raw, FRAME, &[], &options).unwrap() {
                let b = found.bbox;
                prop_assert!(b.x1 >= 0.0 && b.y1 >= 0.0 && b.x2 <= 128.0 && b.y2 <= 60.0 && b.x1 < b.x2 && b.y1 < b.y2);
                prop_assert!((0.0..=1.0).contains(&found.confidence));
            }
        }
    }
}
