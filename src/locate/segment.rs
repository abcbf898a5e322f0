//! Masks from prototypes (Bolya et al. 2019, YOLACT, <https://arxiv.org/abs/1904.02689>), as the YOLO family's segmenting
//! exports give them: a mask is the sign of a weighted sum of prototypes, cut to its box.
//!
//! Pure. Overload: a mask has at most [`MASK_SIDE_MAX`] cells a side, however large its box is.

use crate::inference::{Letterbox, RawTensor};
use crate::types::BoundingBox;

/// Cells of a mask's longer side: 512 × 512 octets are 256 kB.
pub const MASK_SIDE_MAX: u32 = 512;

/// Which cells of a box belong to the thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxMask {
    /// Of the mask's corner in the frame, pixels.
    pub left_px: u32,
    pub top_px: u32,
    pub width: u32,
    pub height: u32,
    /// Frame pixels per cell and side: 1 but for very large boxes.
    pub cell_px: u32,
    /// `[height, width]`: 1 inside, 0 outside.
    pub cells: Vec<u8>,
}

impl BoxMask {
    /// Frame pixels inside.
    #[must_use]
    pub fn area_px(&self) -> u64 {
        let inside = self.cells.iter().filter(|cell| **cell != 0).count() as u64;
        inside * u64::from(self.cell_px) * u64::from(self.cell_px)
    }

    /// Lengths of alternating runs outside and inside, row by row, starting outside.
    #[must_use]
    pub fn runs(&self) -> Vec<u32> {
        let mut runs = vec![0_u32];
        let mut current = 0;
        for cell in &self.cells {
            if *cell != current {
                runs.push(0);
                current = *cell;
            }
            if let Some(last) = runs.last_mut() {
                *last += 1;
            }
        }
        runs
    }
}

/// The mask of one box; `None` where prototypes and coefficients do not belong together.
///
/// `prototypes` is `[M, h, w]` over the whole input of `input_px`, `bbox` lies within the frame.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a box within the frame: 0 to 16384")]
pub(super) fn mask(
    coefficients: &[f32],
    prototypes: &RawTensor<'_>,
    letterbox: &Letterbox,
    input_px: [u32; 2],
    bbox: &BoundingBox,
) -> Option<BoxMask> {
    let &[count, height, width] = &prototypes.shape[..] else { return None };
    let plane = height.checked_mul(width).filter(|plane| *plane > 0)?;
    if count != coefficients.len() || prototypes.values.len() != count * plane {
        return None;
    }
    let (left_px, top_px) = (bbox.x1.floor() as u32, bbox.y1.floor() as u32);
    let (box_width, box_height) = (bbox.x2.ceil() as u32 - left_px, bbox.y2.ceil() as u32 - top_px);
    let cell_px = box_width.max(box_height).div_ceil(MASK_SIDE_MAX).max(1);
    let (across, down) = (box_width.div_ceil(cell_px), box_height.div_ceil(cell_px));
    let weighted = weighted_sum(coefficients, prototypes.values, plane);
    let scale = [width as f32 / input_px[0] as f32, height as f32 / input_px[1] as f32];
    let mut cells = Vec::with_capacity(across as usize * down as usize);
    for y in 0..down {
        for x in 0..across {
            let centre = |start: u32, index: u32| (start + index * cell_px) as f32 + cell_px as f32 / 2.0;
            let (frame_x, frame_y) = (centre(left_px, x), centre(top_px, y));
            let is_in_box = frame_x >= bbox.x1 && frame_x < bbox.x2 && frame_y >= bbox.y1 && frame_y < bbox.y2;
            let (input_x, input_y) = letterbox.to_input(frame_x, frame_y);
            let value = sample(&weighted, (width, height), input_x * scale[0] - 0.5, input_y * scale[1] - 0.5);
            cells.push(u8::from(is_in_box && value > 0.0));
        }
    }
    Some(BoxMask { left_px, top_px, width: across, height: down, cell_px, cells })
}

fn weighted_sum(coefficients: &[f32], prototypes: &[f32], plane: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; plane];
    for (coefficient, prototype) in coefficients.iter().zip(prototypes.chunks_exact(plane)) {
        for (sum, value) in sum.iter_mut().zip(prototype) {
            *sum += coefficient * value;
        }
    }
    sum
}

/// Bilinear, with the border repeated.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the map first")]
fn sample(map: &[f32], (width, height): (usize, usize), x: f32, y: f32) -> f32 {
    let (x, y) = (x.clamp(0.0, (width - 1) as f32), y.clamp(0.0, (height - 1) as f32));
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
    let (part_x, part_y) = (x - left as f32, y - top as f32);
    let row = |y: usize| map[y * width + left] * (1.0 - part_x) + map[y * width + right] * part_x;
    row(top) * (1.0 - part_y) + row(bottom) * part_y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::OutputRole;

    const LETTERBOX: Letterbox = Letterbox { scale_x: 0.5, scale_y: 0.5, pad_x: 0.0, pad_y: 4.0, left: 10.0, top: 0.0 };

    fn prototypes<'v>(shape: &[usize], values: &'v [f32]) -> RawTensor<'v> {
        RawTensor { name: "p", role: OutputRole::Prototypes, stride: None, shape: shape.to_vec(), values }
    }

    #[test]
    fn a_half_plane_ends_where_it_ends_in_the_frame() {
        // Input 16×16, map 4×4: positive in its right half, which begins at input x 8 = frame x 26.
        let values: Vec<f32> =
            (0..2).flat_map(|_| (0..16).map(|cell| if cell % 4 >= 2 { 1.0 } else { -1.0 })).collect();
        let bbox = BoundingBox::new(20.0, 2.0, 30.0, 6.0);
        let found = mask(&[2.0, -1.0], &prototypes(&[2, 4, 4], &values), &LETTERBOX, [16, 16], &bbox).unwrap();
        assert_eq!((found.left_px, found.top_px, found.width, found.height, found.cell_px), (20, 2, 10, 4, 1));
        assert_eq!(found.cells[..10], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!((found.area_px(), found.runs()), (16, vec![6, 4, 6, 4, 6, 4, 6, 4]));
    }

    #[test]
    fn a_huge_box_has_coarser_cells_and_others_shapes_none() {
        let values = vec![1.0; 16];
        let letterbox = Letterbox { scale_x: 0.001, scale_y: 0.001, pad_x: 0.0, pad_y: 0.0, left: 0.0, top: 0.0 };
        let bbox = BoundingBox::new(0.0, 0.0, 16_000.0, 4_000.0);
        let found = mask(&[1.0], &prototypes(&[1, 4, 4], &values), &letterbox, [16, 16], &bbox).unwrap();
        assert!(found.width <= MASK_SIDE_MAX && found.cell_px == 32 && found.area_px() == 64_000_000);
        assert!(mask(&[1.0, 2.0], &prototypes(&[1, 4, 4], &values), &LETTERBOX, [16, 16], &bbox).is_none());
        assert!(mask(&[1.0], &prototypes(&[16], &values), &LETTERBOX, [16, 16], &bbox).is_none());
        assert!(mask(&[], &prototypes(&[0, 4, 4], &[]), &LETTERBOX, [16, 16], &bbox).unwrap().area_px() == 0);
    }
}
