//! What a calibrated camera measured of an item.

use serde::{Deserialize, Serialize};

/// Sides of an item's box in the frame, millimetres.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SizeMm {
    /// The longer side, > 0.
    pub long: f32,
    /// The shorter side, > 0.
    pub short: f32,
}

/// The colour seen on an item and the catalogue's nearest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColourEvidence {
    /// CIE L*a*b* under D65, after the white balance.
    pub lab: [f32; 3],
    pub color_id: String,
    /// CIEDE2000 to that colour, ≥ 0.
    pub delta_e: f32,
    pub second_color_id: Option<String>,
    /// CIEDE2000 to the next nearest.
    pub second_delta_e: Option<f32>,
}
