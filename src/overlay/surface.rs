//! Defects of a surface: outlines with areas, the mask, and a picture beside another.

use super::canvas::{self, Canvas, Colour};
use crate::types::{DefectRegion, Image};

/// Outline and label of a defect.
const DEFECT: Colour = Colour { bgr: [50, 40, 210], ink: [255; 3] };
/// Stripe between two pictures, pixels.
const GAP_PX: usize = 8;
/// Widest picture that is made to stand beside another, pixels.
const BESIDE_WIDTH_PX_MAX: usize = 4_096;

/// A copy of `image` with each region's box and its area.
#[must_use]
pub fn draw_regions(image: &Image, regions: &[DefectRegion]) -> Image {
    let mut canvas = Canvas::of(image);
    mark(&mut canvas, regions, (i64::from(image.width_px()) / 640).max(1));
    canvas.into_image().unwrap_or_else(|| image.clone())
}

pub(super) fn mark(canvas: &mut Canvas, regions: &[DefectRegion], scale: i64) {
    for region in regions {
        canvas.outline(&region.bbox, 2 * scale, DEFECT);
    }
    for region in regions {
        let text = match region.area_mm2 {
            Some(area) => format!("{area:.2} mm2"),
            None => format!("{:.0} px", region.area_px),
        };
        #[expect(clippy::cast_possible_truncation, reason = "positions within an image; saturates elsewhere")]
        let (x, below) = (region.bbox.x1 as i64, region.bbox.y2 as i64);
        let height = canvas::text_height(scale);
        let x = x.min(canvas.width() - canvas::text_width(&text, scale)).max(0);
        canvas.text(x, below.min(canvas.height() - height).max(0), scale, &text, DEFECT);
    }
}

/// White where `mask` (`[height, width]` of `image`) is true, black elsewhere.
#[must_use]
pub fn draw_mask(mask: &[bool], image: &Image) -> Image {
    let bgr: Vec<u8> = mask.iter().flat_map(|is_bad| [if *is_bad { 255 } else { 0 }; 3]).collect();
    Image::from_bgr(image.width_px(), image.height_px(), bgr).unwrap_or_else(|_| image.clone())
}

/// `left`, a white stripe, and `right` scaled to the same height.
#[must_use]
pub fn draw_beside(left: &Image, right: &Image) -> Image {
    let (width, height) = (left.width_px() as usize, left.height_px() as usize);
    let (from_width, from_height) = (right.width_px() as usize, right.height_px() as usize);
    let right_width = (from_width * height / from_height).clamp(1, BESIDE_WIDTH_PX_MAX);
    let mut bgr = Vec::with_capacity((width + GAP_PX + right_width) * height * 3);
    for (y, row) in left.bgr().chunks_exact(width * 3).enumerate() {
        bgr.extend_from_slice(row);
        bgr.extend([255; GAP_PX * 3]);
        let from_row = (2 * y + 1) * from_height / (2 * height);
        for x in 0..right_width {
            let from = from_row * from_width + (2 * x + 1) * from_width / (2 * right_width);
            bgr.extend_from_slice(&right.bgr()[from * 3..from * 3 + 3]);
        }
    }
    let total = u32::try_from(width + GAP_PX + right_width).unwrap_or(0);
    Image::from_bgr(total, left.height_px(), bgr).unwrap_or_else(|_| left.clone())
}

#[cfg(test)]
mod tests {
    use super::{DEFECT, DefectRegion, GAP_PX, Image, draw_beside, draw_mask, draw_regions};
    use crate::types::BoundingBox;

    fn flat(width: u32, height: u32, level: u8) -> Image {
        Image::from_bgr(width, height, vec![level; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn a_region_is_outlined_and_keeps_its_inside() {
        let bbox = BoundingBox::new(20.0, 10.0, 60.0, 40.0);
        let region = DefectRegion { bbox, area_px: 900.0, area_mm2: Some(2.25), score_raw_max: 3.0 };
        let drawn = draw_regions(&flat(200, 100, 90), &[region]);
        let pixel = |x: usize, y: usize| &drawn.bgr()[(y * 200 + x) * 3..][..3];
        assert_eq!((pixel(20, 10), pixel(40, 25)), (&DEFECT.bgr[..], &[90; 3][..]));
    }

    #[test]
    fn the_second_picture_takes_the_height_of_the_first() {
        let both = draw_beside(&flat(30, 20, 10), &flat(8, 4, 200));
        assert_eq!((both.width_px() as usize, both.height_px()), (30 + GAP_PX + 40, 20));
        assert_eq!((both.bgr()[0], *both.bgr().last().unwrap()), (10, 200));
    }

    #[test]
    fn the_mask_is_black_and_white() {
        let mask = draw_mask(&[true, false], &flat(2, 1, 7));
        assert_eq!(mask.bgr(), [255, 255, 255, 0, 0, 0]);
    }
}
