//! A perceptual hash: 64 bits that stay put under small changes of light, scale and coding.
//!
//! DCT hash after Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010): the picture is
//! averaged to 32×32, transformed by a DCT-II, and the 8×8 lowest frequencies without the constant row and column are
//! compared with their median.

use std::sync::LazyLock;

use super::working::Working;

const SIDE: usize = 32;
const KEPT: usize = 8;

/// `cos(π (2x + 1) u / 64)` for u = 1 to 8, x = 0 to 31.
static COSINES: LazyLock<[[f32; SIDE]; KEPT]> = LazyLock::new(|| {
    std::array::from_fn(|u| {
        std::array::from_fn(|x| (std::f32::consts::PI * ((2 * x + 1) * (u + 1)) as f32 / (2 * SIDE) as f32).cos())
    })
});

/// Bits that differ, 0 to 64.
#[must_use]
pub fn distance(a: u64, b: u64) -> u32 {
    (a ^ b).count_ones()
}

pub(super) fn of(working: &Working) -> u64 {
    let small = averaged(working);
    let mut rows = [[0.0_f32; KEPT]; SIDE];
    for (row, target) in small.iter().zip(&mut rows) {
        for (cosines, value) in COSINES.iter().zip(target) {
            *value = row.iter().zip(cosines).map(|(level, cosine)| level * cosine).sum();
        }
    }
    let mut spectrum = [0.0_f32; KEPT * KEPT];
    for (v, cosines) in COSINES.iter().enumerate() {
        for u in 0..KEPT {
            spectrum[v * KEPT + u] = rows.iter().zip(cosines).map(|(row, cosine)| row[u] * cosine).sum();
        }
    }
    let mut sorted = spectrum;
    sorted.sort_by(f32::total_cmp);
    let median = (sorted[31] + sorted[32]) / 2.0;
    spectrum.iter().enumerate().fold(0, |hash, (bit, &value)| hash | u64::from(value > median) << bit)
}

fn averaged(working: &Working) -> [[f32; SIDE]; SIDE] {
    let bounds = |length: usize, index: usize| {
        let start = index * length / SIDE;
        // Images below 32 pixels repeat some.
        (start, ((index + 1) * length / SIDE).max(start + 1))
    };
    std::array::from_fn(|row| {
        let (top, bottom) = bounds(working.height_px, row);
        std::array::from_fn(|column| {
            let (left, right) = bounds(working.width_px, column);
            let sum: u32 =
                (top..bottom).flat_map(|y| &working.row(y)[left..right]).map(|&level| u32::from(level)).sum();
            sum as f32 / ((bottom - top) * (right - left)) as f32
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::testing::{adjusted, image, noise, pattern};
    use crate::types::Image;

    fn hash(image: &Image) -> u64 {
        of(&Working::of(image))
    }

    #[test]
    fn brightness_noise_and_scale_hardly_move_it() {
        let scene = pattern(640, 480);
        assert!(distance(hash(&scene), hash(&adjusted(&scene, 0.8, 0.0))) <= 4);
        assert!(distance(hash(&scene), hash(&adjusted(&scene, 1.0, 12.0))) <= 4);
        assert!(distance(hash(&scene), hash(&noise(&scene, 6.0))) <= 4);
        assert!(distance(hash(&scene), hash(&pattern(1280, 960))) <= 4);
    }

    #[test]
    fn different_scenes_differ_in_many_bits() {
        let scene = pattern(640, 480);
        let other = image(640, 480, |x, y| {
            let inside = (x as i32 - 200).pow(2) + (y as i32 - 300).pow(2) < 90_i32.pow(2);
            if inside { [30, 40, 200] } else { [180; 3] }
        });
        assert!(distance(hash(&scene), hash(&other)) >= 16);
    }
}
