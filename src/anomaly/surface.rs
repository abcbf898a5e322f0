//! What judges a surface: a bank of good patches, or an imported graph; used alike.

use std::fmt::Debug;

use super::{AnomalyError, AnomalyResult, PatchCore};
use crate::inference::ModelHealth;
use crate::types::{Digest, Image, Provider};

/// Scores whole pictures. Belongs to one worker and blocks it.
pub trait Surface: Debug + Send {
    /// Score a whole picture.
    ///
    /// # Errors
    /// When the model fails or gives what is no score; the frame then holds.
    fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError>;

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

impl Surface for PatchCore {
    fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError> {
        PatchCore::score(self, image)
    }

    fn bank_sha256(&self) -> Digest {
        PatchCore::bank_sha256(self)
    }

    fn model_sha256(&self) -> Digest {
        PatchCore::model_sha256(self)
    }

    fn provider(&self) -> Provider {
        PatchCore::provider(self)
    }

    fn is_fallback(&self) -> bool {
        PatchCore::is_fallback(self)
    }

    fn session_ms(&self) -> f64 {
        PatchCore::session_ms(self)
    }

    fn health(&self) -> &ModelHealth {
        PatchCore::health(self)
    }
}
