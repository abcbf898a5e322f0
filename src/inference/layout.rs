//! How the output of a detector is laid out: the families, and what a family leaves open.
//!
//! Pure; the room `locate` has one decoder a layout.

use serde::{Deserialize, Serialize};

use super::manifest::{OutputRole, OutputSpec};

/// A family of detector outputs. N rows, C classes, M mask coefficients; a leading axis for the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectorLayout {
    /// `[N, 5 + C]`, raw: offset in cells, logarithm of the size in cells, objectness, classes.
    Yolox,
    /// `[4 + C + M, N]` or `[N, 4 + C + M]`: centre, size, classes, without objectness (YOLOv8, v9, v11).
    Yolo,
    /// `[N, 5 + C + M]` or its transpose: centre, size, objectness, classes (YOLOv5, v7).
    Yolov5,
    /// `[N, 6 + M]`: corners, score, class; duplicates are gone already (YOLOv10, `nms=True` exports).
    EndToEnd,
    /// Labels `[N]`, boxes `[N, 4]`, scores `[N]` (RT-DETR, D-FINE, DEIM), or boxes `[N, 4]` and scores `[N, C]` (their exports
    /// by Hugging Face, RF-DETR).
    Detr,
    /// Class scores and, for each side of the box, a distribution over distances (NanoDet, PicoDet).
    Gfl,
    /// Boxes `[N, 4]`, scores `[N]`, labels `[N]` and how many count, duplicates gone (TensorFlow SSD, EfficientNMS).
    Ssd,
}

/// Whether scores are probabilities already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreForm {
    #[default]
    Probability,
    /// Before the sigmoid.
    Logit,
}

/// What boxes are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxUnit {
    /// Pixels of the model's input.
    InputPx,
    /// 0 to 1 of the input's sides.
    Unit,
}

/// Which four numbers make a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxOrder {
    Xyxy,
    /// As TensorFlow writes them: top, left, bottom, right.
    Yxyx,
    /// Centre, width, height.
    Cxcywh,
}

/// `[detector]`: what a layout leaves open. A key left out has the layout's usual value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorSpec {
    /// Pixels of the input per cell of each grid, finest first (`yolox`, `gfl`). Usual: 8, 16, 32.
    pub strides: Vec<u32>,
    pub scores: ScoreForm,
    /// Usual: `unit` for `ssd`, `input_px` elsewhere.
    pub boxes: Option<BoxUnit>,
    /// Usual: `yxyx` for `ssd`, `cxcywh` for `yolo` and `yolov5`, `xyxy` elsewhere.
    pub box_order: Option<BoxOrder>,
    /// Number of the first class in `labels`: 1 where 0 means background.
    pub class_offset: u32,
    /// Where a cell's point lies, in cells (`gfl`): 0.5 (its centre), or 0 for NanoDet-Plus.
    pub cell_offset: f32,
    /// Least score of a box where the recipe gives none, 0 to 1: that which tells this model's boxes from its errors best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_min: Option<f32>,
}

impl Default for DetectorSpec {
    fn default() -> Self {
        Self {
            strides: vec![8, 16, 32],
            scores: ScoreForm::Probability,
            boxes: None,
            box_order: None,
            class_offset: 0,
            cell_offset: 0.5,
            score_min: None,
        }
    }
}

impl DetectorSpec {
    /// First contradiction.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.strides.is_empty() || self.strides.len() > 8 || self.strides.iter().any(|s| *s == 0 || *s > 1024) {
            return Err("`detector.strides` must name 1 to 8 strides of 1 to 1024 pixels".to_owned());
        }
        if !(0.0..=1.0).contains(&self.cell_offset) {
            return Err("`detector.cell_offset` must lie between 0 and 1".to_owned());
        }
        if self.score_min.is_some_and(|score_min| !(0.0..=1.0).contains(&score_min)) {
            return Err("`detector.score_min` must lie between 0 and 1".to_owned());
        }
        Ok(())
    }

    #[must_use]
    pub fn box_unit(&self, layout: DetectorLayout) -> BoxUnit {
        self.boxes.unwrap_or(if layout == DetectorLayout::Ssd { BoxUnit::Unit } else { BoxUnit::InputPx })
    }

    #[must_use]
    pub fn order(&self, layout: DetectorLayout) -> BoxOrder {
        self.box_order.unwrap_or(match layout {
            DetectorLayout::Ssd => BoxOrder::Yxyx,
            DetectorLayout::Yolo | DetectorLayout::Yolov5 => BoxOrder::Cxcywh,
            _ => BoxOrder::Xyxy,
        })
    }
}

impl DetectorLayout {
    pub const ALL: [DetectorLayout; 7] = [
        DetectorLayout::Yolox,
        DetectorLayout::Yolo,
        DetectorLayout::Yolov5,
        DetectorLayout::EndToEnd,
        DetectorLayout::Detr,
        DetectorLayout::Gfl,
        DetectorLayout::Ssd,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DetectorLayout::Yolox => "yolox",
            DetectorLayout::Yolo => "yolo",
            DetectorLayout::Yolov5 => "yolov5",
            DetectorLayout::EndToEnd => "end_to_end",
            DetectorLayout::Detr => "detr",
            DetectorLayout::Gfl => "gfl",
            DetectorLayout::Ssd => "ssd",
        }
    }

    /// Whether the outputs of a manifest are those of this layout.
    pub(super) fn check_outputs(self, outputs: &[OutputSpec]) -> Result<(), String> {
        let count = |role| outputs.iter().filter(|output| output.role == role).count();
        let has_pairs = count(OutputRole::Scores) > 0 && count(OutputRole::Scores) == count(OutputRole::Boxes);
        let (is_right, needs) = match self {
            DetectorLayout::Yolox | DetectorLayout::Yolo | DetectorLayout::Yolov5 | DetectorLayout::EndToEnd => {
                (count(OutputRole::Detections) == 1, "one output of role `detections`")
            }
            DetectorLayout::Detr => {
                let has_both = [OutputRole::Boxes, OutputRole::Scores].into_iter().all(|role| count(role) == 1);
                let is_right = has_both && count(OutputRole::Labels) <= 1;
                (is_right, "outputs of roles `boxes` and `scores`, and `labels` where the graph gives them")
            }
            DetectorLayout::Gfl => (
                count(OutputRole::Detections) == 1 || has_pairs,
                "one output of role `detections`, or `scores` and `boxes` for each stride",
            ),
            DetectorLayout::Ssd => (
                has_pairs && count(OutputRole::Boxes) == 1 && count(OutputRole::Labels) <= 1,
                "outputs of roles `boxes` and `scores`, mostly `labels` and `count` too",
            ),
        };
        if is_right { Ok(()) } else { Err(format!("layout `{}` needs {needs}", self.as_str())) }
    }
}

impl std::fmt::Display for DetectorLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
