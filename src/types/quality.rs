//! What the gate measured of a frame.

use serde::{Deserialize, Serialize};

use super::Reason;

/// Overall state of a frame's quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QaStatus {
    Pass,
    Warn,
    Fail,
    Uncertain,
}

impl QaStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            QaStatus::Pass => "pass",
            QaStatus::Warn => "warn",
            QaStatus::Fail => "fail",
            QaStatus::Uncertain => "uncertain",
        }
    }
}

/// Metrics of one frame; formulas stand in `quality::metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameQuality {
    /// Variance of the Laplacian of the grey image at working resolution, ≥ 0; low = blurred.
    pub sharpness: f32,
    /// Standard deviation of the noise in grey levels (Immerkær 1996), ≥ 0.
    pub noise_level: f32,
    /// Standard deviation of the grey image over 127.5, 0 to 1.
    pub contrast_ratio: f32,
    /// Mean of the grey image over 255, 0 to 1.
    pub brightness_ratio: f32,
    /// Mean HSV saturation, 0 to 1.
    pub saturation_ratio: f32,
    /// Share of pixels at or beyond the ends of the scale (≤ 2 or ≥ 253), 0 to 1.
    pub clipped_ratio: f32,
    /// Mean SSIM against the recipe's reference image, −1 to 1.
    pub ssim_score: Option<f32>,
    /// 64-bit perceptual hash (DCT), as 16 hexadecimal digits in JSON.
    #[serde(with = "hex_u64")]
    pub phash: u64,
    /// Hamming distance to the camera's previous frame, 0 to 64.
    pub duplicate_distance: Option<u32>,
    /// Pixel-identical to the camera's previous frame, or closer than the recipe allows.
    pub is_duplicate: bool,
    /// Milliseconds from capture to the gate.
    pub age_ms: f32,
    pub status: QaStatus,
    pub issues: Vec<Reason>,
    /// Of each view, where the frame is made of several pictures: all else is that of the view with the most issues, or of
    /// the least sharp one, and `issues` those of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<FrameQuality>,
}

mod hex_u64 {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` passes a reference")]
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(serde::de::Error::custom)
    }
}
