//! A picture at another size, row by row, so that what takes the rows works on pixels that are still in the cache.
//!
//! Two filters. *Triangle* is Pillow's BILINEAR ([`Triangle`]). *Linear* is OpenCV's INTER_LINEAR for 8 bits (`modules/imgproc/src/resize.cpp`):
//! weights of 11 bits, one rounding at the end, and the mean of 2×2 pixels where both sides halve exactly. Both are repeated
//! bit for bit: an export that was trained behind one of them sees what it saw then.
//! Belongs to one worker; keeps its buffers between calls.

use super::input::Resample;
use super::triangle::Triangle;
use crate::types::Image;

/// 1.0 as a weight.
const ONE: i32 = 1 << 11;

/// Whole pixels of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crop {
    pub left: u32,
    pub top: u32,
    pub width_px: u32,
    pub height_px: u32,
}

/// One position between two source pixels: their indices and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// Makes rows of another size.
#[derive(Debug)]
pub(super) struct Sampler {
    resample: Resample,
    triangle: Triangle,
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    /// Source side and target side the taps are for: width, then height.
    taps_for: [(u32, u32); 2],
    /// Two source rows at the target's width, and which rows they are.
    wide: [(Option<usize>, Vec<i32>); 2],
    line: Vec<u8>,
}

impl Sampler {
    pub(super) fn new(resample: Resample) -> Self {
        Self {
            resample,
            triangle: Triangle::default(),
            columns: Vec::new(),
            rows: Vec::new(),
            taps_for: [(0, 0); 2],
            wide: [(None, Vec::new()), (None, Vec::new())],
            line: Vec::new(),
        }
    }

    /// Give `each` the rows of `crop` at this size, BGR, top to bottom, with their number.
    pub(super) fn rows(
        &mut self,
        image: &Image,
        crop: Crop,
        (width_px, height_px): (u32, u32),
        mut each: impl FnMut(usize, &[u8]),
    ) {
        if (crop.width_px, crop.height_px) == (width_px, height_px) {
            (0..height_px).for_each(|y| each(y as usize, source_row(image, crop, y as usize)));
            return;
        }
        match self.resample {
            Resample::Triangle => self.triangle.rows(image, crop, (width_px, height_px), each),
            Resample::Linear if (crop.width_px, crop.height_px) == (2 * width_px, 2 * height_px) => {
                self.halved(image, crop, each);
            }
            Resample::Linear => self.linear(image, crop, (width_px, height_px), each),
        }
    }

    fn halved(&mut self, image: &Image, crop: Crop, mut each: impl FnMut(usize, &[u8])) {
        let width = crop.width_px as usize / 2;
        self.line.resize(width * 3, 0);
        for y in 0..crop.height_px as usize / 2 {
            let (upper, lower) = (source_row(image, crop, 2 * y), source_row(image, crop, 2 * y + 1));
            let (upper, _) = upper.as_chunks::<6>();
            let (lower, _) = lower.as_chunks::<6>();
            let (line, _) = self.line.as_chunks_mut::<3>();
            for ((pixel, above), below) in line.iter_mut().zip(upper).zip(lower) {
                for channel in 0..3 {
                    let sum = [above[channel], above[channel + 3], below[channel], below[channel + 3]];
                    pixel[channel] = octet((sum.iter().map(|value| i32::from(*value)).sum::<i32>() + 2) >> 2);
                }
            }
            each(y, &self.line);
        }
    }

    fn linear(
        &mut self,
        image: &Image,
        crop: Crop,
        (width_px, height_px): (u32, u32),
        mut each: impl FnMut(usize, &[u8]),
    ) {
        let wanted = [(crop.width_px, width_px), (crop.height_px, height_px)];
        if self.taps_for != wanted {
            self.columns = taps(crop.width_px, width_px, true);
            self.rows = taps(crop.height_px, height_px, false);
            self.taps_for = wanted;
        }
        let values = width_px as usize * 3;
        self.line.resize(values, 0);
        for (known, row) in &mut self.wide {
            *known = None;
            row.resize(values, 0);
        }
        for (y, tap) in self.rows.iter().enumerate() {
            for source in [tap.first, tap.second] {
                let slot = &mut self.wide[source % 2];
                if slot.0 != Some(source) {
                    widen(source_row(image, crop, source), &self.columns, &mut slot.1);
                    slot.0 = Some(source);
                }
            }
            let (first, second) = (&self.wide[tap.first % 2].1, &self.wide[tap.second % 2].1);
            blend(first, second, tap.weights, &mut self.line);
            each(y, &self.line);
        }
    }
}

pub(super) fn source_row(image: &Image, crop: Crop, y: usize) -> &[u8] {
    let stride = image.width_px() as usize * 3;
    let start = (crop.top as usize + y) * stride + crop.left as usize * 3;
    &image.bgr()[start..start + crop.width_px as usize * 3]
}

/// Where each target position lies between source positions. Columns beyond the last pixel repeat it with its whole weight;
/// rows keep their weights and repeat the pixel (the same value, rounded as OpenCV rounds it).
#[expect(clippy::cast_possible_truncation, reason = "sides are at most 16384, weights at most 2048")]
fn taps(source: u32, target: u32, is_columns: bool) -> Vec<Tap> {
    let scale = f64::from(source) / f64::from(target);
    let last = i64::from(source) - 1;
    let index = |at: i64| usize::try_from(at.clamp(0, last)).unwrap_or(0);
    (0..target)
        .map(|at| {
            let place = ((f64::from(at) + 0.5) * scale - 0.5) as f32;
            let mut first = place.floor() as i64;
            let mut part = place - first as f32;
            if is_columns && (first < 0 || first >= last) {
                first = first.clamp(0, last);
                part = 0.0;
            }
            let weight = |share: f32| (share * ONE as f32).round_ties_even() as i32;
            Tap { first: index(first), second: index(first + 1), weights: [weight(1.0 - part), weight(part)] }
        })
        .collect()
}

/// A source row at the target's width, times [`ONE`].
fn widen(row: &[u8], taps: &[Tap], wide: &mut [i32]) {
    let (pixels, _) = row.as_chunks::<3>();
    let (wide, _) = wide.as_chunks_mut::<3>();
    for (out, tap) in wide.iter_mut().zip(taps) {
        let (first, second) = (pixels[tap.first], pixels[tap.second]);
        let [a, b] = tap.weights;
        *out = std::array::from_fn(|channel| i32::from(first[channel]) * a + i32::from(second[channel]) * b);
    }
}

/// Two wide rows into one, as OpenCV's `VResizeLinear` for 8 bits rounds.
fn blend(first: &[i32], second: &[i32], [a, b]: [i32; 2], line: &mut [u8]) {
    for ((out, first), second) in line.iter_mut().zip(first).zip(second) {
        *out = octet((((a * (first >> 4)) >> 16) + ((b * (second >> 4)) >> 16) + 2) >> 2);
    }
}

/// A weighted mean of octets is an octet.
pub(super) fn octet(value: i32) -> u8 {
    u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(image: &Image, crop: Crop, size: (u32, u32)) -> Vec<u8> {
        let mut out = Vec::new();
        Sampler::new(Resample::Linear).rows(image, crop, size, |_, row| out.extend_from_slice(row));
        out
    }

    fn grey(levels: &[u8], width_px: u32) -> Image {
        let height_px = u32::try_from(levels.len()).unwrap() / width_px;
        Image::from_bgr(width_px, height_px, levels.iter().flat_map(|level| [*level; 3]).collect()).unwrap()
    }

    fn whole(image: &Image) -> Crop {
        Crop { left: 0, top: 0, width_px: image.width_px(), height_px: image.height_px() }
    }

    #[test]
    fn linear_agrees_with_numbers_from_opencv() {
        // cv2.resize(np.array([[0,10,200,30,90],[7,255,3,60,120],[90,80,70,60,50]],'u1'), (3,2)), OpenCV 5.0
        let image = grey(&[0, 10, 200, 30, 90, 7, 255, 3, 60, 120, 90, 80, 70, 60, 50], 5);
        let found: Vec<u8> = sampled(&image, whole(&image), (3, 2)).chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(found, [25, 151, 77, 87, 53, 65]);
        let found: Vec<u8> = sampled(&image, whole(&image), (7, 4)).chunks(3).map(|pixel| pixel[0]).collect();
        let expected = [
            [0, 5, 64, 200, 78, 56, 90],
            [4, 95, 138, 77, 57, 74, 109],
            [38, 124, 143, 28, 51, 74, 94],
            [90, 84, 77, 70, 63, 55, 50],
        ];
        assert_eq!(found, expected.concat());
    }

    #[test]
    fn an_exact_half_is_the_mean_of_four() {
        let image = grey(&[0, 1, 10, 20, 2, 4, 30, 41], 4);
        let found: Vec<u8> = sampled(&image, whole(&image), (2, 1)).chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(found, [2, 25]);
    }

    #[test]
    fn only_the_crop_counts_and_one_pixel_fills_everything() {
        let mut levels = vec![255_u8; 64];
        levels[27] = 9;
        let image = grey(&levels, 8);
        let crop = Crop { left: 3, top: 3, width_px: 1, height_px: 1 };
        assert!(sampled(&image, crop, (5, 4)).iter().all(|value| *value == 9));
    }
}
