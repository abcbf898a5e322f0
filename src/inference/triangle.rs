//! Pillow's BILINEAR for 8 bits, octet for octet: what torchvision and most Python training scale pictures with.
//!
//! A triangle as wide as the reduction, first along the rows, then down the columns, each pass with weights of 22 bits and
//! rounded to octets (`src/libImaging/Resample.c` of Pillow 12; 13 reduces the columns first where the height loses more
//! than twice the pixels that the width does). Another order or coarser weights change one octet in ten by a level, and
//! that alone moves the score of a transformer's box by up to 0.5.
//!
//! Rows are taken eight at a time and turned, so that the same column of all eight lies side by side: the sums of eight
//! rows then fill a vector register. Only the rows that the next line needs are kept.
//! Belongs to one worker; keeps its buffers between calls. Pure but for these.

use super::sampling::{Crop, octet, source_row};
use crate::types::Image;

/// 1.0 as a weight is 2 to this.
const BITS: u32 = 22;
/// Half of 1.0: what rounds.
const HALF: i32 = 1 << (BITS - 1);
/// Rows that are taken at once.
const ROWS: usize = 8;
/// Octets of one pixel of that many rows: channel by channel, row by row.
const LANES: usize = 3 * ROWS;
/// Target columns that are made at once, so that what they are made of stays in the first-level cache.
const COLUMNS: usize = 32;

/// The pixels of one column in [`ROWS`] rows.
type Pixels = [u8; LANES];

/// What each target position of one side is made of.
#[derive(Debug, Default)]
struct Taps {
    /// First source position.
    first: Vec<usize>,
    /// `each` weights a target position, those of the source positions from `first` on.
    weights: Vec<i32>,
    each: usize,
}

impl Taps {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sides are at most 16384, positions not negative where they are cast, weights at most 2^22"
    )]
    fn new(source: u32, target: u32) -> Self {
        let scale = f64::from(source) / f64::from(target);
        let support = scale.max(1.0);
        let each = (support.ceil() as usize * 2 + 1).min(source as usize);
        let mut taps = Self { first: Vec::new(), weights: Vec::new(), each };
        for at in 0..target {
            let centre = (f64::from(at) + 0.5) * scale;
            let from = (centre - support + 0.5).max(0.0) as u32;
            let to = ((centre + support + 0.5) as u32).min(source);
            let height = |position: u32| {
                let away = ((f64::from(position) - centre + 0.5) * (1.0 / support)).abs();
                (1.0 - away).max(0.0)
            };
            let total: f64 = (from..to).map(height).sum();
            let first = from.min(source - each as u32);
            let weight = |position: u32| match (from..to).contains(&position) {
                true => (0.5 + height(position) / total * f64::from(1_u32 << BITS)) as i32,
                false => 0,
            };
            taps.first.push(first as usize);
            taps.weights.extend((first..first + each as u32).map(weight));
        }
        taps
    }

    /// First source position and weights of each target position.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.first.iter().copied().zip(self.weights.chunks_exact(self.each))
    }
}

/// Makes rows of another size.
#[derive(Debug, Default)]
pub(super) struct Triangle {
    columns: Taps,
    rows: Taps,
    /// Source side and target side the taps are for: width, then height.
    taps_for: [(u32, u32); 2],
    /// Source columns, and target columns, of [`ROWS`] rows.
    turned: Vec<Pixels>,
    narrow: Vec<Pixels>,
    /// The latest source rows at the target's width: row `y` is the `y mod rows kept`-th.
    kept: Vec<u8>,
    sums: Vec<i32>,
    line: Vec<u8>,
}

impl Triangle {
    /// Give `each` the rows of `crop` at this size, BGR, top to bottom, with their number.
    pub(super) fn rows(&mut self, image: &Image, crop: Crop, size_px: (u32, u32), each: impl FnMut(usize, &[u8])) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[expect(
                unsafe_code,
                reason = "a function compiled for AVX2 must be called behind a check that it is there"
            )]
            // SAFETY: the line above asked the processor for exactly the feature that the function is compiled for.
            unsafe {
                self.rows_avx2(image, crop, size_px, each);
            }
            return;
        }
        self.rows_by(image, crop, size_px, each, across);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn rows_avx2(&mut self, image: &Image, crop: Crop, size_px: (u32, u32), each: impl FnMut(usize, &[u8])) {
        self.rows_by(image, crop, size_px, each, |source, taps, out| across_avx2(source, taps, out));
    }

    #[inline(always)]
    fn rows_by(
        &mut self,
        image: &Image,
        crop: Crop,
        (width_px, height_px): (u32, u32),
        mut each: impl FnMut(usize, &[u8]),
        across: impl Fn(&[Pixels], Part<'_>, &mut [Pixels]),
    ) {
        let wanted = [(crop.width_px, width_px), (crop.height_px, height_px)];
        if self.taps_for != wanted {
            self.columns = Taps::new(crop.width_px, width_px);
            self.rows = Taps::new(crop.height_px, height_px);
            self.taps_for = wanted;
        }
        let (values, height) = (width_px as usize * 3, crop.height_px as usize);
        // Whole groups of rows, so that none is torn, and one more than a line needs.
        let rows_kept = (self.rows.each + ROWS).next_multiple_of(ROWS);
        self.kept.resize(rows_kept * values, 0);
        self.narrow.resize(width_px as usize, [0; LANES]);
        self.sums.resize(values, 0);
        self.line.resize(values, 0);
        let mut ready = 0;
        for (y, (first, weights)) in self.rows.iter().enumerate() {
            while ready < first + self.rows.each {
                let rows = std::array::from_fn(|row| source_row(image, crop, (ready + row).min(height - 1)));
                narrow(&rows, &self.columns, &mut self.turned, &mut self.narrow, &across);
                let start = ready % rows_kept * values;
                turn_back(&self.narrow, &mut self.kept[start..start + ROWS * values]);
                ready += ROWS;
            }
            self.sums.fill(HALF);
            for (source, &weight) in (first..).zip(weights) {
                let start = source % rows_kept * values;
                for (sum, value) in self.sums.iter_mut().zip(&self.kept[start..start + values]) {
                    *sum += i32::from(*value) * weight;
                }
            }
            self.line.iter_mut().zip(&self.sums).for_each(|(value, sum)| *value = octet(sum >> BITS));
            each(y, &self.line);
        }
    }
}

/// Some target columns: of each its first source column, counted from the first that is given, and its weights.
#[derive(Debug, Clone, Copy)]
struct Part<'t> {
    first: &'t [usize],
    from: usize,
    weights: &'t [i32],
    each: usize,
}

impl<'t> Part<'t> {
    fn iter(self) -> impl Iterator<Item = (usize, &'t [i32])> {
        self.first.iter().map(move |first| first - self.from).zip(self.weights.chunks_exact(self.each))
    }
}

/// `rows` at the target's width, turned; `turned` is a buffer.
#[inline(always)]
fn narrow(
    rows: &[&[u8]; ROWS],
    taps: &Taps,
    turned: &mut Vec<Pixels>,
    narrow: &mut [Pixels],
    across: &impl Fn(&[Pixels], Part<'_>, &mut [Pixels]),
) {
    let parts = taps.first.chunks(COLUMNS).zip(taps.weights.chunks(COLUMNS * taps.each));
    for ((first, weights), out) in parts.zip(narrow.chunks_mut(COLUMNS)) {
        let (from, to) = (first[0], first[first.len() - 1] + taps.each);
        turned.resize(to - from, [0; LANES]);
        turn(&rows.map(|row| &row[from * 3..to * 3]), turned.as_flattened_mut());
        across(turned, Part { first, from, weights, each: taps.each }, out);
    }
}

/// Weighted sums of columns, each of [`ROWS`] rows at once.
fn across(source: &[Pixels], taps: Part<'_>, out: &mut [Pixels]) {
    for ((first, weights), out) in taps.iter().zip(out) {
        let mut sums = [HALF; LANES];
        for (pixels, weight) in source[first..first + weights.len()].iter().zip(weights) {
            sums.iter_mut().zip(pixels).for_each(|(sum, value)| *sum += i32::from(*value) * weight);
        }
        *out = sums.map(|sum| octet(sum >> BITS));
    }
}

/// The same; left to itself, the compiler gathers single octets.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn across_avx2(source: &[Pixels], taps: Part<'_>, out: &mut [Pixels]) {
    use std::arch::x86_64::{
        _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_packs_epi32, _mm_packus_epi16, _mm256_add_epi32,
        _mm256_castsi256_si128, _mm256_cvtepu8_epi32, _mm256_extracti128_si256, _mm256_mullo_epi32, _mm256_set1_epi32,
        _mm256_srai_epi32,
    };
    for ((first, weights), out) in taps.iter().zip(out) {
        let mut sums = [_mm256_set1_epi32(HALF); 3];
        for (pixels, weight) in source[first..first + weights.len()].iter().zip(weights) {
            let weight = _mm256_set1_epi32(*weight);
            for (sum, values) in sums.iter_mut().zip(pixels.as_chunks::<ROWS>().0) {
                let values = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*values)));
                *sum = _mm256_add_epi32(*sum, _mm256_mullo_epi32(values, weight));
            }
        }
        for (sum, values) in sums.into_iter().zip(out.as_chunks_mut::<ROWS>().0) {
            let sum = _mm256_srai_epi32::<{ BITS.cast_signed() }>(sum);
            let sum = _mm_packs_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            *values = _mm_cvtsi128_si64(_mm_packus_epi16(sum, sum)).to_le_bytes();
        }
    }
}

/// Rows → the octets of each position of all of them side by side.
#[inline(always)]
fn turn(rows: &[&[u8]; ROWS], turned: &mut [u8]) {
    let (groups, rest) = turned.as_chunks_mut::<{ ROWS * ROWS }>();
    for (at, group) in groups.iter_mut().enumerate() {
        let mut square = rows.map(|row| u64::from_le_bytes(row.as_chunks::<ROWS>().0[at]));
        transpose(&mut square);
        group.as_chunks_mut::<ROWS>().0.iter_mut().zip(square).for_each(|(out, octets)| *out = octets.to_le_bytes());
    }
    let done = groups.len() * ROWS;
    for (at, out) in rest.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        *out = rows.map(|row| row[done + at]);
    }
}

/// The other way: into whole rows, one after the other.
#[inline(always)]
fn turn_back(turned: &[Pixels], rows: &mut [u8]) {
    let (columns, _) = turned.as_flattened().as_chunks::<ROWS>();
    let (groups, rest) = columns.as_chunks::<ROWS>();
    let width = columns.len();
    for (at, group) in groups.iter().enumerate() {
        let mut square = group.map(u64::from_le_bytes);
        transpose(&mut square);
        for (row, octets) in rows.chunks_exact_mut(width).zip(square) {
            row[at * ROWS..(at + 1) * ROWS].copy_from_slice(&octets.to_le_bytes());
        }
    }
    for (at, column) in (groups.len() * ROWS..).zip(rest) {
        rows.chunks_exact_mut(width).zip(column).for_each(|(row, value)| row[at] = *value);
    }
}

/// Octet `i` of word `j` becomes octet `j` of word `i`: exchange of halves, quarters and octets (Warren, Hacker's Delight,
/// 2nd ed., 7-3).
#[inline(always)]
fn transpose(square: &mut [u64; ROWS]) {
    fn exchange(a: &mut u64, b: &mut u64, bits: u32, mask: u64) {
        let changed = ((*a >> bits) ^ *b) & mask;
        *b ^= changed;
        *a ^= changed << bits;
    }
    let [a, b, c, d, e, f, g, h] = square;
    for (upper, lower) in [(&mut *a, &mut *e), (&mut *b, &mut *f), (&mut *c, &mut *g), (&mut *d, &mut *h)] {
        exchange(upper, lower, 32, 0x0000_0000_ffff_ffff);
    }
    for (upper, lower) in [(&mut *a, &mut *c), (&mut *b, &mut *d), (&mut *e, &mut *g), (&mut *f, &mut *h)] {
        exchange(upper, lower, 16, 0x0000_ffff_0000_ffff);
    }
    for (upper, lower) in [(a, b), (c, d), (e, f), (g, h)] {
        exchange(upper, lower, 8, 0x00ff_00ff_00ff_00ff);
    }
}

#[cfg(test)]
mod tests {
    use super::{Crop, Triangle, across, transpose};
    use crate::types::{Digest, Image};

    fn whole(image: &Image) -> Crop {
        Crop { left: 0, top: 0, width_px: image.width_px(), height_px: image.height_px() }
    }

    fn sampled(image: &Image, crop: Crop, size_px: (u32, u32)) -> Vec<u8> {
        let mut out = Vec::new();
        Triangle::default().rows(image, crop, size_px, |_, row| out.extend_from_slice(row));
        out
    }

    /// Values that any language makes alike: ((x · 131 + y · 71 + channel · 29) · 2654435761 mod 2^32) / 2^24.
    fn picture(width_px: u32, height_px: u32) -> Image {
        let octet = |x: u32, y: u32, channel: u32| {
            let mixed = (x * 131 + y * 71 + channel * 29).wrapping_mul(2_654_435_761);
            mixed.to_be_bytes()[0]
        };
        let rows = (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y)));
        Image::from_bgr(width_px, height_px, rows.flat_map(|(x, y)| [0, 1, 2].map(|c| octet(x, y, c))).collect())
            .unwrap()
    }

    /// Both ways to add up give the same, so the numbers from Pillow hold for each.
    fn same_by_both(image: &Image, crop: Crop, size_px: (u32, u32)) -> Vec<u8> {
        let mut plain = Vec::new();
        Triangle::default().rows_by(image, crop, size_px, |_, row| plain.extend_from_slice(row), across);
        assert_eq!(sampled(image, crop, size_px), plain, "{size_px:?}");
        plain
    }

    #[test]
    fn numbers_and_whole_pictures_are_those_of_pillow() {
        // Image.fromarray(picture).resize(size, Image.BILINEAR), Pillow 12.0
        let image = picture(5, 3);
        let [first, second] =
            [[149, 220, 200, 225, 205, 185, 209, 190, 170], [202, 182, 162, 187, 167, 147, 171, 152, 132]];
        assert_eq!(same_by_both(&image, whole(&image), (3, 2)), [first, second].concat());
        for ((width_px, height_px), size_px, sha256) in [
            ((57, 41), (160, 115), "14558b7337aba8312c9c4306686afe3d64f9a190d5b6e10a356000ac5fd89dbe"),
            ((300, 200), (160, 107), "953faf58e2267bf7c0ee857fa50580f04702e23830f6e66f7e6481ffd476b443"),
            ((640, 480), (416, 312), "007244d94042e42639f514ea1c38967c9eb07fc571c555f7d36e7205d3a1fb51"),
            ((1920, 1080), (320, 180), "1331f95ccba3cd5f43573680f7b80a56bf95b4b1c27a6f1dd870a11c92595781"),
            ((31, 17), (7, 5), "18dce0486bac1b06bdfad2fb0aedf27cee2cb8fd872c8cd1d29bee8d97c78992"),
            ((300, 1000), (2, 900), "c34ef5e3bcc461b3ab99f7ddc0611eb3b0721d6199cd812b2df75febc09cf6f1"),
            ((100, 100), (100, 37), "4d22060f0982e88ff054e7e8feeda90678233823c35dee5df3d15d00f6db0b03"),
            ((9, 9), (8, 8), "df74ff695c667c1f840b99523968ef2d0cf7ee1e2958f05b69449d4a1c39ce79"),
            ((1, 40), (33, 1), "19be2df595799beb14eaa270953809f039cfa58ee384655bdd8feb50829bed30"),
        ] {
            let image = picture(width_px, height_px);
            let found = Digest::of(&same_by_both(&image, whole(&image), size_px));
            assert_eq!(found.to_string(), sha256, "{width_px}x{height_px} to {size_px:?}");
        }
    }

    #[test]
    fn only_the_crop_counts_and_one_pixel_fills_everything() {
        let mut bgr = vec![255_u8; 8 * 8 * 3];
        bgr[27 * 3..28 * 3].fill(9);
        let image = Image::from_bgr(8, 8, bgr).unwrap();
        let crop = Crop { left: 3, top: 3, width_px: 1, height_px: 1 };
        assert!(same_by_both(&image, crop, (5, 4)).iter().all(|value| *value == 9));
        let (large, part) = (picture(90, 70), Crop { left: 11, top: 5, width_px: 61, height_px: 40 });
        let cut: Vec<u8> = (5..45).flat_map(|y| large.row(y)[11 * 3..72 * 3].to_vec()).collect();
        let cut = Image::from_bgr(61, 40, cut).unwrap();
        assert_eq!(same_by_both(&large, part, (17, 55)), same_by_both(&cut, whole(&cut), (17, 55)));
    }

    #[test]
    fn a_sampler_that_was_used_for_another_size_gives_the_same() {
        let (image, mut used) = (picture(200, 90), Triangle::default());
        for size_px in [(7, 5), (160, 72), (31, 200), (7, 5)] {
            let mut out = Vec::new();
            used.rows(&image, whole(&image), size_px, |_, row| out.extend_from_slice(row));
            assert_eq!(out, sampled(&image, whole(&image), size_px), "{size_px:?}");
        }
    }

    #[test]
    fn a_square_of_octets_is_turned() {
        let mut square: [u64; 8] = std::array::from_fn(|row| {
            u64::from_le_bytes(std::array::from_fn(|column| u8::try_from(row * 8 + column).unwrap()))
        });
        transpose(&mut square);
        for (row, word) in square.iter().enumerate() {
            let wanted: [u8; 8] = std::array::from_fn(|column| u8::try_from(column * 8 + row).unwrap());
            assert_eq!(word.to_le_bytes(), wanted);
        }
    }
}
