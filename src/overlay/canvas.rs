//! Filled rectangles, outlines and text on pixels, cut to the picture.

use super::font;
use crate::types::{BoundingBox, Image};

/// A fill and the ink that is legible on it, BGR.
#[derive(Debug, Clone, Copy)]
pub(super) struct Colour {
    pub bgr: [u8; 3],
    pub ink: [u8; 3],
}

/// Pixels being drawn on. Coordinates may lie outside.
#[derive(Debug)]
pub(super) struct Canvas {
    width_px: u32,
    height_px: u32,
    bgr: Vec<u8>,
}

/// Width of `text` with its margins at `scale` pixels a dot.
pub(super) fn text_width(text: &str, scale: i64) -> i64 {
    let characters = i64::try_from(text.chars().count()).unwrap_or(i64::MAX / 1_000);
    (characters * (font::WIDTH + 1) + 3) * scale
}

/// Height of a line with its margins.
pub(super) fn text_height(scale: i64) -> i64 {
    (font::HEIGHT + 4) * scale
}

impl Canvas {
    pub(super) fn of(image: &Image) -> Self {
        Self { width_px: image.width_px(), height_px: image.height_px(), bgr: image.bgr().to_vec() }
    }

    pub(super) fn width(&self) -> i64 {
        i64::from(self.width_px)
    }

    pub(super) fn height(&self) -> i64 {
        i64::from(self.height_px)
    }

    pub(super) fn into_image(self) -> Option<Image> {
        Image::from_bgr(self.width_px, self.height_px, self.bgr).ok()
    }

    /// Fill `x1..x2`, `y1..y2`.
    pub(super) fn fill(&mut self, [x1, y1, x2, y2]: [i64; 4], bgr: [u8; 3]) {
        let inside = |value: i64, limit: u32| usize::try_from(value.clamp(0, i64::from(limit))).unwrap_or(0);
        let (left, right) = (inside(x1, self.width_px), inside(x2, self.width_px));
        let (top, bottom) = (inside(y1, self.height_px), inside(y2, self.height_px));
        if left >= right {
            return;
        }
        let stride = self.width_px as usize * 3;
        for y in top..bottom {
            let (pixels, _) = self.bgr[y * stride + left * 3..y * stride + right * 3].as_chunks_mut::<3>();
            pixels.fill(bgr);
        }
    }

    /// The border of `bbox`, `thickness` pixels inwards.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to pixels; `as` saturates")]
    pub(super) fn outline(&mut self, bbox: &BoundingBox, thickness: i64, colour: Colour) {
        let bbox = bbox.clamped(self.width_px, self.height_px);
        let [x1, y1, x2, y2] = [bbox.x1, bbox.y1, bbox.x2, bbox.y2].map(|value| value.round() as i64);
        let thick = thickness.min(((x2 - x1) / 2).max(1)).min(((y2 - y1) / 2).max(1));
        self.fill([x1, y1, x2, y1 + thick], colour.bgr);
        self.fill([x1, y2 - thick, x2, y2], colour.bgr);
        self.fill([x1, y1, x1 + thick, y2], colour.bgr);
        self.fill([x2 - thick, y1, x2, y2], colour.bgr);
    }

    /// `text` on a filled strip whose upper left corner is `x`, `y`.
    pub(super) fn text(&mut self, x: i64, y: i64, scale: i64, text: &str, colour: Colour) {
        self.fill([x, y, x + text_width(text, scale), y + text_height(scale)], colour.bgr);
        let mut left = x + 2 * scale;
        for character in text.chars() {
            for (row, dots) in (0_i64..).zip(font::glyph(character)) {
                for column in (0..font::WIDTH).filter(|column| dots >> (font::WIDTH - 1 - column) & 1 == 1) {
                    let (dot_x, dot_y) = (left + column * scale, y + (row + 2) * scale);
                    self.fill([dot_x, dot_y, dot_x + scale, dot_y + scale], colour.ink);
                }
            }
            left += (font::WIDTH + 1) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOUR: Colour = Colour { bgr: [1, 2, 3], ink: [9, 9, 9] };

    fn blank() -> Canvas {
        Canvas::of(&Image::from_bgr(20, 12, vec![0; 720]).unwrap())
    }

    #[test]
    fn outlines_cover_the_border_and_nothing_inside() {
        let mut canvas = blank();
        canvas.outline(&BoundingBox::new(2.0, 3.0, 8.0, 9.0), 1, COLOUR);
        let painted = canvas.bgr.chunks_exact(3).filter(|pixel| *pixel == [1, 2, 3]).count();
        assert_eq!(painted, 20);
        assert_eq!(canvas.bgr[(3 * 20 + 2) * 3..][..3], [1, 2, 3]);
        assert_eq!(canvas.bgr[(5 * 20 + 5) * 3..][..3], [0, 0, 0]);
    }

    #[test]
    fn drawing_outside_the_picture_is_cut_off() {
        let mut canvas = blank();
        canvas.outline(&BoundingBox::new(-50.0, f32::NAN, f32::INFINITY, 1e30), 3, COLOUR);
        canvas.text(-5, 8, 2, "Ünknown ~", COLOUR);
        canvas.text(1 << 40, -(1 << 40), 2, "X", COLOUR);
        canvas.fill([9, 9, 3, 3], [7; 3]);
        assert!(canvas.bgr.chunks_exact(3).all(|pixel| pixel != [7; 3]));
        assert!(canvas.into_image().is_some());
    }
}
