//! Axis-aligned boxes in pixels.

use serde::{Deserialize, Serialize};

/// A box in pixels, corners `x1,y1` (inclusive) to `x2,y2` (exclusive); serialised as `[x1, y1, x2, y2]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 4]", into = "[f32; 4]")]
pub struct BoundingBox {
    pub x1: f32,
    pub y1: f32,
    pub x2: f32,
    pub y2: f32,
}

impl BoundingBox {
    #[must_use]
    pub fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// The whole of an image.
    #[must_use]
    pub fn whole(width_px: u32, height_px: u32) -> Self {
        Self::new(0.0, 0.0, width_px as f32, height_px as f32)
    }

    #[must_use]
    pub fn width_px(&self) -> f32 {
        (self.x2 - self.x1).max(0.0)
    }

    #[must_use]
    pub fn height_px(&self) -> f32 {
        (self.y2 - self.y1).max(0.0)
    }

    #[must_use]
    pub fn area_px(&self) -> f32 {
        self.width_px() * self.height_px()
    }

    /// Cut to the image; NaN corners collapse to an empty box.
    #[must_use]
    pub fn clamped(&self, width_px: u32, height_px: u32) -> Self {
        let clamp = |value: f32, limit: u32| if value.is_nan() { 0.0 } else { value.clamp(0.0, limit as f32) };
        Self::new(
            clamp(self.x1, width_px),
            clamp(self.y1, height_px),
            clamp(self.x2, width_px),
            clamp(self.y2, height_px),
        )
    }

    /// Grown by `ratio` of its own width and height on each side.
    #[must_use]
    pub fn grown(&self, ratio: f32) -> Self {
        let (dx, dy) = (self.width_px() * ratio, self.height_px() * ratio);
        Self::new(self.x1 - dx, self.y1 - dy, self.x2 + dx, self.y2 + dy)
    }

    /// The smallest box around both.
    #[must_use]
    pub fn around(&self, other: &Self) -> Self {
        Self::new(self.x1.min(other.x1), self.y1.min(other.y1), self.x2.max(other.x2), self.y2.max(other.y2))
    }

    /// Intersection over union, 0 to 1; 0 where either box is empty.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let intersection = width * height;
        let union = self.area_px() + other.area_px() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// Whether the middle of `other` lies inside.
    #[must_use]
    pub fn holds_centre_of(&self, other: &Self) -> bool {
        let (x, y) = ((other.x1 + other.x2) / 2.0, (other.y1 + other.y2) / 2.0);
        x >= self.x1 && x < self.x2 && y >= self.y1 && y < self.y2
    }

    /// The box moved by so many pixels.
    #[must_use]
    pub fn moved(&self, dx: f32, dy: f32) -> Self {
        Self::new(self.x1 + dx, self.y1 + dy, self.x2 + dx, self.y2 + dy)
    }

    /// Whether a side lies within `margin_px` of a side of `picture`, so that the item may go on outside it.
    #[must_use]
    pub fn reaches_border_of(&self, picture: &Self, margin_px: f32) -> bool {
        self.x1 <= picture.x1 + margin_px
            || self.y1 <= picture.y1 + margin_px
            || self.x2 >= picture.x2 - margin_px
            || self.y2 >= picture.y2 - margin_px
    }
}

impl From<[f32; 4]> for BoundingBox {
    fn from([x1, y1, x2, y2]: [f32; 4]) -> Self {
        Self::new(x1, y1, x2, y2)
    }
}

impl From<BoundingBox> for [f32; 4] {
    fn from(b: BoundingBox) -> Self {
        [b.x1, b.y1, b.x2, b.y2]
    }
}

#[cfg(test)]
mod tests {
    use super::BoundingBox;

    #[test]
    fn iou_of_half_overlap_is_a_third() {
        let a = BoundingBox::new(0.0, 0.0, 2.0, 1.0);
        let b = BoundingBox::new(1.0, 0.0, 3.0, 1.0);
        assert!((a.iou(&b) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(a.iou(&BoundingBox::new(5.0, 5.0, 6.0, 6.0)), 0.0);
    }

    #[test]
    fn clamping_survives_nan_and_inverted_corners() {
        let b = BoundingBox::new(f32::NAN, -4.0, 99.0, 3.0).clamped(10, 10);
        assert_eq!([b.x1, b.y1, b.x2, b.y2], [0.0, 0.0, 10.0, 3.0]);
        assert_eq!(BoundingBox::new(5.0, 5.0, 1.0, 1.0).area_px(), 0.0);
    }
}
