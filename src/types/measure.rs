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
    /// Near enough to its colour and far enough from the next by the recipe's limits, or said by a person: only then it
    /// counts as the item's colour.
    #[serde(default)]
    pub is_clear: bool,
}

/// How clear a colour must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColourLimits {
    /// CIEDE2000 to the named colour at most, > 0.
    pub max_delta_e: f32,
    /// How much farther the next nearest must be, CIEDE2000, ≥ 0.
    pub min_margin: f32,
}

impl Default for ColourLimits {
    fn default() -> Self {
        Self { max_delta_e: 25.0, min_margin: 10.0 }
    }
}

impl ColourEvidence {
    /// What a person said; nothing was measured.
    #[must_use]
    pub fn said(color_id: &str) -> Self {
        let (color_id, lab) = (color_id.to_owned(), [f32::NAN; 3]);
        Self { lab, color_id, delta_e: 0.0, second_color_id: None, second_delta_e: None, is_clear: true }
    }

    /// Judged by `limits`; what is not a number is not clear.
    #[must_use]
    pub fn judged(self, limits: ColourLimits) -> Self {
        let is_far = |next: f32| next - self.delta_e >= limits.min_margin;
        let is_clear = self.delta_e <= limits.max_delta_e && self.second_delta_e.is_none_or(is_far);
        Self { is_clear, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::{ColourEvidence, ColourLimits};

    #[test]
    fn a_colour_is_clear_when_near_enough_and_alone() {
        let seen = |delta_e: f32, second: Option<f32>| {
            let evidence = ColourEvidence { delta_e, second_delta_e: second, ..ColourEvidence::said("4") };
            evidence.judged(ColourLimits { max_delta_e: 20.0, min_margin: 5.0 }).is_clear
        };
        assert!(seen(20.0, Some(25.0)) && seen(3.0, None));
        assert!(!seen(20.5, Some(60.0)) && !seen(3.0, Some(7.9)));
        assert!(!seen(f32::NAN, None) && !seen(3.0, Some(f32::NAN)));
        assert!(ColourEvidence::said("4").is_clear);
    }
}
