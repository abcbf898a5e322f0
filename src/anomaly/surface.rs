//! What judges a surface: a bank of good patches, or an imported graph; used alike.

use std::fmt::Debug;

use super::{AnomalyError, AnomalyResult};
use crate::inference::ModelHealth;
use crate::types::{Digest, Image, Provider};

/// Scores whole pictures. Belongs to one worker and blocks it.
pub trait Surface: Debug + Send {
    /// Score a whole picture.
    ///
    /// # Errors
    /// When the model fails or gives what is no score; the frame then holds.
    fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError>;

    /// Run the model once, so that the first picture does not pay for it; what it says of a picture of nothing is no fault.
    ///
    /// # Errors
    /// When the model fails.
    fn warm_up(&mut self) -> Result<(), AnomalyError>;

    /// Of the file that names everything a score rests on: a bank's manifest, or a graph's.
    fn bank_sha256(&self) -> Digest;

    fn model_sha256(&self) -> Digest;

    /// Where the model really runs.
    fn provider(&self) -> Provider;

    /// Whether that is not the plan's first choice.
    fn is_fallback(&self) -> bool;

    /// Summed time inside ONNX Runtime since it was opened.
    fn session_ms(&self) -> f64;

    /// How the model is doing, where stations share it.
    fn health(&self) -> &ModelHealth;
}
