//! Where a map is above the pixel threshold: defect regions with their area, and the mask.

use super::cells::bilinear;
use super::map::ScoreMap;
use super::metrics;
use crate::types::{BoundingBox, DefectRegion};

/// Regions listed of one picture; all are counted.
pub const REGIONS_MAX: usize = 32;

/// Regions of `map` (which covers the whole frame) above `threshold`, 8-connected, in pixels of the frame; the highest
/// score first, at most [`REGIONS_MAX`]; and how many there are. Areas in mm² where the scale is known.
pub(super) fn find(
    map: &ScoreMap,
    threshold: f32,
    frame_px: (u32, u32),
    px_per_mm: Option<f32>,
) -> (Vec<DefectRegion>, u32) {
    let mask: Vec<bool> = map.data.iter().map(|value| *value > threshold).collect();
    let (scale_x, scale_y) = (frame_px.0 as f32 / map.width as f32, frame_px.1 as f32 / map.height as f32);
    let mut regions: Vec<DefectRegion> = metrics::regions(&mask, map.width)
        .into_iter()
        .map(|pixels| {
            let place = |pixel: &usize| ((pixel % map.width) as f32, (pixel / map.width) as f32);
            let (mut x1, mut y1, mut x2, mut y2) = (f32::INFINITY, f32::INFINITY, 0.0_f32, 0.0_f32);
            for (x, y) in pixels.iter().map(place) {
                (x1, y1, x2, y2) = (x1.min(x), y1.min(y), x2.max(x + 1.0), y2.max(y + 1.0));
            }
            let area_px = pixels.len() as f32 * scale_x * scale_y;
            DefectRegion {
                bbox: BoundingBox::new(x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y),
                area_px,
                area_mm2: px_per_mm.map(|scale| area_px / (scale * scale)),
                score_raw_max: pixels.iter().map(|pixel| map.data[*pixel]).fold(0.0, f32::max),
            }
        })
        .collect();
    regions.sort_by(|a, b| b.score_raw_max.total_cmp(&a.score_raw_max));
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    regions.truncate(REGIONS_MAX);
    (regions, count)
}

/// `[height, width]`, true where the map, stretched over a frame of this size, is above `threshold`.
#[must_use]
pub fn mask(map: &ScoreMap, threshold: f32, width_px: u32, height_px: u32) -> Vec<bool> {
    let (width, height) = (width_px as usize, height_px as usize);
    let place = |index: usize, from: usize, to: usize| (index as f32 + 0.5) * to as f32 / from as f32 - 0.5;
    let is_above = |index: usize| {
        let (x, y) = (place(index % width, width, map.width), place(index / width, height, map.height));
        bilinear(map, x, y) > threshold
    };
    (0..width * height).map(is_above).collect()
}

#[cfg(test)]
mod tests {
    use super::{REGIONS_MAX, ScoreMap, find, mask};

    fn map(width: usize, height: usize, hot: &[(usize, usize, f32)]) -> ScoreMap {
        let mut data = vec![1.0; width * height];
        hot.iter().for_each(|&(x, y, value)| data[y * width + x] = value);
        ScoreMap { width, height, data }
    }

    #[test]
    fn regions_have_their_area_in_pixels_of_the_frame_and_in_square_millimetres() {
        let map = map(10, 5, &[(2, 1, 4.0), (3, 2, 5.0), (9, 4, 9.0)]);
        let (regions, count) = find(&map, 2.0, (100, 100), Some(4.0));
        assert_eq!((regions.len(), count), (2, 2));
        assert_eq!((regions[0].score_raw_max, regions[0].area_px, regions[0].area_mm2), (9.0, 200.0, Some(12.5)));
        let bbox = regions[1].bbox;
        assert_eq!([bbox.x1, bbox.y1, bbox.x2, bbox.y2], [20.0, 20.0, 40.0, 60.0]);
        assert_eq!(find(&map, 9.0, (100, 100), None).1, 0, "at the threshold is not above it");
    }

    #[test]
    fn more_regions_than_are_listed_are_counted() {
        let hot: Vec<_> = (0..100).map(|index| (index % 20 * 2, index / 20 * 2, 2.0 + index as f32)).collect();
        let (regions, count) = find(&map(40, 10, &hot), 1.5, (40, 10), None);
        assert_eq!((regions.len(), count), (REGIONS_MAX, 100));
        assert!(regions.windows(2).all(|pair| pair[0].score_raw_max >= pair[1].score_raw_max));
    }

    #[test]
    fn the_mask_is_as_large_as_the_frame() {
        let mask = mask(&map(4, 4, &[(1, 1, 9.0)]), 4.0, 40, 20);
        assert_eq!((mask.len(), mask[7 * 40 + 15], mask[0]), (800, true, false));
    }
}
