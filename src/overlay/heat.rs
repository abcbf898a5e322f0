//! A score map as colours over the frame.

use crate::types::Image;

/// Colours from low to high, BGR: seven points of matplotlib's `inferno` (van der Walt and Smith, CC0), whose lightness
/// rises steadily, so that it reads in grey print and for the colour-blind.
const RAMP: [[f32; 3]; 7] = [
    [4.0, 0.0, 0.0],
    [105.0, 18.0, 58.0],
    [104.0, 40.0, 133.0],
    [72.0, 77.0, 201.0],
    [30.0, 131.0, 241.0],
    [63.0, 201.0, 249.0],
    [164.0, 255.0, 252.0],
];
/// Opacity of the highest colour; it rises from 0 in proportion.
const OPACITY_MAX: f32 = 0.8;
const STEPS: usize = 256;

/// `image` with `map` (`[map_height, map_width]` f32, row by row) over it, scaled up bilinearly. Values at or below `low`
/// leave the frame as it is, those at or above `high` are the brightest; NaN counts as `low`. A map whose size does not
/// fit its data gives the frame back.
#[must_use]
pub fn draw_heatmap(image: &Image, map: &[f32], map_width: usize, map_height: usize, low: f32, high: f32) -> Image {
    if map_width == 0 || map_height == 0 || map_width.checked_mul(map_height) != Some(map.len()) {
        return image.clone();
    }
    let span = if high > low { high - low } else { f32::MIN_POSITIVE };
    let steps: Vec<f32> = map.iter().map(|&value| step_of((value - low) / span)).collect();
    let table = table();
    let (width, height) = (image.width_px() as usize, image.height_px() as usize);
    let columns: Vec<Sample> = (0..width).map(|x| Sample::of(x, width, map_width)).collect();
    let mut bgr = image.bgr().to_vec();
    let mut line = vec![0.0_f32; map_width];
    for (y, row) in bgr.chunks_exact_mut(width * 3).enumerate() {
        let sample = Sample::of(y, height, map_height);
        let upper = &steps[sample.first * map_width..][..map_width];
        let lower = &steps[sample.second * map_width..][..map_width];
        for ((value, &upper), &lower) in line.iter_mut().zip(upper).zip(lower) {
            *value = upper + (lower - upper) * sample.share;
        }
        let (pixels, _) = row.as_chunks_mut::<3>();
        for (pixel, column) in pixels.iter_mut().zip(&columns) {
            let (first, second) = (line[column.first], line[column.second]);
            blend(pixel, &table, first + (second - first) * column.share);
        }
    }
    Image::from_bgr(image.width_px(), image.height_px(), bgr).unwrap_or_else(|_| image.clone())
}

/// 0 to 255; NaN is 0.
fn step_of(ratio: f32) -> f32 {
    if ratio > 0.0 { ratio.min(1.0) * (STEPS - 1) as f32 } else { 0.0 }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Colour times opacity, and what remains of the frame.
    bgr: [f32; 3],
    frame_share: f32,
}

fn table() -> Vec<Entry> {
    let entry = |step: usize| {
        let ratio = step as f32 / (STEPS - 1) as f32;
        let place = ratio * (RAMP.len() - 1) as f32;
        let first = step * (RAMP.len() - 1) / (STEPS - 1);
        let (a, b) = (RAMP[first], RAMP[(first + 1).min(RAMP.len() - 1)]);
        let opacity = OPACITY_MAX * ratio;
        let share = place - first as f32;
        Entry { bgr: std::array::from_fn(|c| (a[c] + (b[c] - a[c]) * share) * opacity), frame_share: 1.0 - opacity }
    };
    (0..STEPS).map(entry).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255 by construction")]
fn blend(pixel: &mut [u8; 3], table: &[Entry], step: f32) {
    let entry = table[step as usize & (STEPS - 1)];
    for (value, colour) in pixel.iter_mut().zip(entry.bgr) {
        *value = (f32::from(*value) * entry.frame_share + colour + 0.5) as u8;
    }
}

/// Two neighbours in the map and the share of the second, with pixel centres aligned.
#[derive(Debug, Clone, Copy)]
struct Sample {
    first: usize,
    second: usize,
    share: f32,
}

impl Sample {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the map first")]
    fn of(position: usize, frame: usize, map: usize) -> Self {
        let centre = (position as f32 + 0.5) * map as f32 / frame as f32 - 0.5;
        let centre = centre.clamp(0.0, (map - 1) as f32);
        let first = (centre as usize).min(map - 1);
        Self { first, second: (first + 1).min(map - 1), share: centre - first as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey() -> Image {
        Image::from_bgr(64, 48, vec![100; 64 * 48 * 3]).unwrap()
    }

    #[test]
    fn low_leaves_the_frame_and_lightness_rises_with_the_score() {
        let light = |value: f32| {
            let image = draw_heatmap(&grey(), &[value], 1, 1, 0.0, 1.0);
            image.bgr()[..3].iter().map(|&level| u32::from(level)).sum::<u32>()
        };
        assert_eq!([light(0.0), light(-5.0), light(f32::NAN)], [300; 3]);
        assert!(light(1.0) > light(0.8) && light(0.8) > light(0.6));
        assert_eq!(light(f32::INFINITY), light(1.0));
        let luma = |entry: &Entry| entry.bgr[0] * 0.114 + entry.bgr[1] * 0.587 + entry.bgr[2] * 0.299;
        assert!(table().windows(2).all(|pair| luma(&pair[1]) > luma(&pair[0])));
    }

    #[test]
    fn a_hot_corner_stays_in_its_corner() {
        let image = draw_heatmap(&grey(), &[0.0, 0.0, 0.0, 1.0], 2, 2, 0.0, 1.0);
        assert_eq!(image.row(0)[..3], [100; 3]);
        assert_ne!(image.row(47)[63 * 3..], [100; 3]);
        assert_eq!(image.row(47)[..3], [100; 3]);
    }

    #[test]
    fn a_map_that_does_not_fit_gives_the_frame_back() {
        for (width, height) in [(0, 0), (2, 2), (usize::MAX, 2)] {
            assert_eq!(draw_heatmap(&grey(), &[1.0; 3], width, height, 0.0, 1.0).bgr(), grey().bgr());
        }
        assert_eq!(draw_heatmap(&grey(), &[1.0; 6], 3, 2, 1.0, 1.0).bgr(), grey().bgr());
    }
}
