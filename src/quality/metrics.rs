//! Metrics of one frame, on its grey picture at working resolution (≤ 640 px wide), so that limits do not depend on the
//! camera's resolution.

use super::ssim::{Reference, Similarity};
use super::working::Working;
use super::{phash, ssim};
use crate::types::Image;

/// What was measured; the gate judges it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameMetrics {
    pub width_px: u32,
    pub height_px: u32,
    /// Variance of the 4-neighbour Laplacian (Pech-Pacheco 2000), grey levels squared, ≥ 0; low = blurred.
    pub sharpness: f32,
    /// Standard deviation of the noise in grey levels (Immerkær 1996), ≥ 0.
    pub noise_level: f32,
    /// Standard deviation of grey over 127.5, 0 to 1.
    pub contrast_ratio: f32,
    /// Mean grey over 255, 0 to 1.
    pub brightness_ratio: f32,
    /// Mean HSV saturation, 0 to 1.
    pub saturation_ratio: f32,
    /// Share of pixels ≤ 2 or ≥ 253, 0 to 1.
    pub clipped_ratio: f32,
    /// Mean SSIM against the reference, where there is one.
    pub similarity: Similarity,
    /// DCT hash; see [`phash`].
    pub phash: u64,
}

/// Measure `image`, against `reference` where there is one.
#[must_use]
pub fn measure(image: &Image, reference: Option<&Reference>) -> FrameMetrics {
    let working = Working::of(image);
    let levels = levels(&working.grey);
    let (sharpness, noise_level) = texture(&working);
    FrameMetrics {
        width_px: image.width_px(),
        height_px: image.height_px(),
        sharpness,
        noise_level,
        contrast_ratio: levels.contrast_ratio,
        brightness_ratio: levels.brightness_ratio,
        saturation_ratio: working.saturation_ratio,
        clipped_ratio: levels.clipped_ratio,
        similarity: reference.map_or(Similarity::NoReference, |reference| ssim::compare(reference, image, &working)),
        phash: phash::of(&working),
    }
}

struct Levels {
    brightness_ratio: f32,
    contrast_ratio: f32,
    clipped_ratio: f32,
}

/// Pixels summed up in one go: sums of squares of so many octets fit an `u32`.
const CHUNK: usize = 1 << 14;

#[expect(clippy::cast_possible_truncation, reason = "summed up in f64, kept as f32")]
fn levels(grey: &[u8]) -> Levels {
    let (mut sum, mut squares, mut clipped) = (0_u64, 0_u64, 0_u64);
    for chunk in grey.chunks(CHUNK) {
        let (mut chunk_sum, mut chunk_squares, mut chunk_clipped) = (0_u32, 0_u32, 0_u32);
        for &value in chunk {
            let level = u32::from(value);
            chunk_sum += level;
            chunk_squares += level * level;
            // ≤ 2 or ≥ 253, as one comparison: both ends wrap to the lowest six values.
            chunk_clipped += u32::from(value.wrapping_add(3) < 6);
        }
        sum += u64::from(chunk_sum);
        squares += u64::from(chunk_squares);
        clipped += u64::from(chunk_clipped);
    }
    let count = grey.len() as f64;
    let mean = sum as f64 / count;
    let variance = (squares as f64 / count - mean * mean).max(0.0);
    Levels {
        brightness_ratio: (mean / 255.0) as f32,
        contrast_ratio: (variance.sqrt() / 127.5) as f32,
        clipped_ratio: (clipped as f64 / count) as f32,
    }
}

/// Variance of the Laplacian and Immerkær's noise estimate, in one walk over the rows; 0 for images below 3×3.
#[expect(clippy::cast_possible_truncation, reason = "summed up in f64, kept as f32")]
fn texture(working: &Working) -> (f32, f32) {
    let (width, height) = (working.width_px, working.height_px);
    if width < 3 || height < 3 {
        return (0.0, 0.0);
    }
    let (mut sum, mut squares, mut noise) = (0_i64, 0_u64, 0_u64);
    for y in 1..height - 1 {
        let row = row_texture(working.row(y - 1), working.row(y), working.row(y + 1));
        sum += i64::from(row.sum);
        squares += u64::from(row.squares);
        noise += u64::from(row.noise);
    }
    let count = ((width - 2) * (height - 2)) as f64;
    let mean = sum as f64 / count;
    let variance = (squares as f64 / count - mean * mean).max(0.0);
    let sigma = (std::f64::consts::PI / 2.0).sqrt() * noise as f64 / (6.0 * count);
    (variance as f32, sigma as f32)
}

struct RowTexture {
    sum: i32,
    squares: u32,
    noise: u32,
}

/// The Laplacian is at most 4 × 255 and its square 2^20: 640 of them fit an `u32`, as do 640 of |noise| ≤ 8 × 255.
fn row_texture(above: &[u8], row: &[u8], below: &[u8]) -> RowTexture {
    let mut total = RowTexture { sum: 0, squares: 0, noise: 0 };
    let inner = row.len() - 2;
    let (above, below) = (&above[..inner + 2], &below[..inner + 2]);
    for x in 0..inner {
        let at = |pixels: &[u8], offset: usize| i16::from(pixels[x + offset]);
        let cross = at(above, 1) + at(row, 0) + at(row, 2) + at(below, 1);
        let diagonal = at(above, 0) + at(above, 2) + at(below, 0) + at(below, 2);
        let laplacian = i32::from(cross - 4 * at(row, 1));
        let immerkaer = diagonal - 2 * cross + 4 * at(row, 1);
        total.sum += laplacian;
        total.squares += (laplacian * laplacian).cast_unsigned();
        total.noise += u32::from(immerkaer.unsigned_abs());
    }
    total
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "synthetic pixels, in range by construction")]
mod tests {
    use super::*;
    use crate::quality::testing::{image, noise, pattern};

    #[test]
    fn a_checkerboard_has_known_numbers() {
        let metrics = measure(&image(8, 8, |x, y| if (x + y) % 2 == 0 { [0; 3] } else { [255; 3] }), None);
        assert!((metrics.brightness_ratio - 0.5).abs() < 1e-6);
        assert!((metrics.contrast_ratio - 1.0).abs() < 1e-6);
        assert_eq!(metrics.clipped_ratio, 1.0);
        // Laplacian ±1020, mean 0.
        assert!((metrics.sharpness - 1_040_400.0).abs() < 1.0);
    }

    #[test]
    fn ends_of_the_scale_count_as_clipped_and_nothing_else() {
        for level in 0..=255_u8 {
            let clipped = levels(&[level]).clipped_ratio;
            assert_eq!(clipped == 1.0, level <= 2 || level >= 253, "{level}");
        }
    }

    #[test]
    fn immerkaer_finds_the_sigma_that_was_added() {
        for sigma in [2.0, 5.0, 10.0] {
            let flat = image(400, 300, |_, _| [128; 3]);
            let measured = measure(&noise(&flat, sigma), None).noise_level;
            assert!((measured - sigma).abs() < 0.05 * sigma + 0.2, "{sigma}: {measured}");
        }
    }

    #[test]
    fn ramps_are_neither_sharp_nor_noisy() {
        let metrics = measure(&image(200, 200, |x, _| [x as u8; 3]), None);
        assert_eq!((metrics.sharpness, metrics.noise_level), (0.0, 0.0));
    }

    #[test]
    fn the_same_scene_at_twice_the_resolution_measures_alike() {
        let (small, large) = (pattern(640, 360), pattern(1280, 720));
        let (small, large) = (measure(&small, None), measure(&large, None));
        assert!((small.brightness_ratio - large.brightness_ratio).abs() < 0.01);
        assert!((small.contrast_ratio - large.contrast_ratio).abs() < 0.02);
    }

    #[test]
    fn tiny_images_do_not_panic() {
        for (width, height) in [(1, 1), (2, 5), (5, 2), (3, 3)] {
            let metrics = measure(&image(width, height, |_, _| [40, 50, 60]), None);
            assert_eq!(metrics.sharpness, 0.0);
        }
    }
}
