//! A template learned from a person's correction, as the ledger keeps it and the match stage searches it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BoundingBox, Digest, InspectionId};

/// One learned template. Vectors can be compared only with those of the same model, input size and crop margin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedTemplate {
    /// Its number in the ledger, from 1; never used twice. 0 until the ledger gives it.
    pub id: u64,
    /// The review that taught it.
    pub review_id: Uuid,
    /// Folder of the part index it belongs to.
    pub index: String,
    pub part_id: String,
    pub color_id: Option<String>,
    /// Digest of the embedding model's file.
    pub model_sha256: Digest,
    /// Side of the square that the crop was letterboxed to.
    pub input_px: u32,
    /// Share of the box's size added on each side before cropping.
    pub crop_margin_ratio: f32,
    /// `[dim]`, finite, as the model gave it.
    #[serde(skip)]
    pub vector: Vec<f32>,
    /// Where it was seen.
    pub inspection_id: InspectionId,
    /// Position of the item in that inspection.
    pub ordinal: u32,
    /// Of the inspection's frame.
    pub frame_sha256: Digest,
    /// The kept frame, below the state folder's `artifacts/`.
    pub artifact: String,
    /// The crop within it, px, margin included.
    pub crop: BoundingBox,
}
