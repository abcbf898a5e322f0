//! Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004) against a reference picture.
//!
//! Uniform 8×8 windows at steps of 4 instead of the paper's 11×11 Gaussian at every pixel, as video encoders compute it:
//! the sums of 4×4 blocks are made once and each window adds four of them. Grey, at working resolution; the mean over
//! all windows, −1 to 1, is 1 exactly for identical pictures.

use super::working::Working;
use crate::types::Image;

const BLOCK: usize = 4;
/// Stabilisers for 8-bit levels: (0.01 × 255)² and (0.03 × 255)².
const C1: f32 = 6.502_5;
const C2: f32 = 58.522_5;

/// What a station's frames should look like, reduced to working resolution once.
#[derive(Debug, Clone)]
pub struct Reference {
    width_px: u32,
    height_px: u32,
    working: Working,
}

impl Reference {
    #[must_use]
    pub fn new(image: &Image) -> Self {
        Self { width_px: image.width_px(), height_px: image.height_px(), working: Working::of(image) }
    }
}

/// Outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Similarity {
    NoReference,
    /// Mean SSIM, −1 to 1.
    Ssim(f32),
    /// The frame has another size than the reference, so that nothing can be compared.
    OtherSize,
}

impl Similarity {
    #[must_use]
    pub fn ssim(self) -> Option<f32> {
        if let Similarity::Ssim(score) = self { Some(score) } else { None }
    }
}

pub(super) fn compare(reference: &Reference, image: &Image, working: &Working) -> Similarity {
    if (reference.width_px, reference.height_px) != (image.width_px(), image.height_px()) {
        return Similarity::OtherSize;
    }
    Similarity::Ssim(mean_ssim(&reference.working, working))
}

/// Sums over one 4×4 block, or over the four of a window.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    a: u32,
    b: u32,
    /// Σ a² + Σ b².
    squares: u32,
    products: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "summed up in f64, kept as f32")]
fn mean_ssim(a: &Working, b: &Working) -> f32 {
    let (columns, rows) = (a.width_px / BLOCK, a.height_px / BLOCK);
    if columns < 2 || rows < 2 {
        // Too small for a window: one window over everything.
        let mut sums = Sums::default();
        add(&mut sums, &a.grey, &b.grey);
        return window_ssim(sums, a.grey.len() as f32);
    }
    let mut before = block_row(a, b, 0, columns);
    let mut total = 0.0_f64;
    for row in 1..rows {
        let current = block_row(a, b, row, columns);
        let mut row_total = 0.0_f32;
        for (upper, lower) in before.windows(2).zip(current.windows(2)) {
            row_total += window_ssim(joined([upper[0], upper[1], lower[0], lower[1]]), 64.0);
        }
        total += f64::from(row_total);
        before = current;
    }
    (total / ((columns - 1) * (rows - 1)) as f64) as f32
}

fn block_row(a: &Working, b: &Working, row: usize, columns: usize) -> Vec<Sums> {
    let mut sums = vec![Sums::default(); columns];
    for y in row * BLOCK..(row + 1) * BLOCK {
        let (a_blocks, _) = a.row(y).as_chunks::<BLOCK>();
        let (b_blocks, _) = b.row(y).as_chunks::<BLOCK>();
        for ((sums, a), b) in sums.iter_mut().zip(a_blocks).zip(b_blocks) {
            add(sums, a, b);
        }
    }
    sums
}

fn add(sums: &mut Sums, a: &[u8], b: &[u8]) {
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (u32::from(a), u32::from(b));
        sums.a += a;
        sums.b += b;
        sums.squares += a * a + b * b;
        sums.products += a * b;
    }
}

fn joined(blocks: [Sums; 4]) -> Sums {
    blocks.into_iter().fold(Sums::default(), |sum, block| Sums {
        a: sum.a + block.a,
        b: sum.b + block.b,
        squares: sum.squares + block.squares,
        products: sum.products + block.products,
    })
}

fn window_ssim(sums: Sums, count: f32) -> f32 {
    let (mean_a, mean_b) = (sums.a as f32 / count, sums.b as f32 / count);
    let product = mean_a * mean_b;
    let means_squared = mean_a * mean_a + mean_b * mean_b;
    let variances = sums.squares as f32 / count - means_squared;
    let covariance = sums.products as f32 / count - product;
    (2.0 * product + C1) * (2.0 * covariance + C2) / ((means_squared + C1) * (variances + C2))
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "synthetic pixels, in range by construction")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quality::measure;
    use crate::quality::testing::{image, noise, pattern};

    fn ssim(a: &Image, b: &Image) -> f32 {
        measure(b, Some(&Reference::new(a))).similarity.ssim().unwrap()
    }

    #[test]
    fn identical_is_one_and_shifted_scene_is_not() {
        let scene = pattern(320, 240);
        assert!((ssim(&scene, &scene) - 1.0).abs() < 1e-5);
        let shifted = image(320, 240, |x, y| {
            let at = (y * 320 + (x + 9) % 320) as usize * 3;
            [scene.bgr()[at], scene.bgr()[at + 1], scene.bgr()[at + 2]]
        });
        assert!(ssim(&scene, &shifted) < 0.85, "{}", ssim(&scene, &shifted));
    }

    #[test]
    fn other_size_is_told_and_not_compared() {
        let reference = Reference::new(&pattern(320, 240));
        assert_eq!(measure(&pattern(320, 200), Some(&reference)).similarity, Similarity::OtherSize);
    }

    #[test]
    fn images_below_a_window_compare_whole() {
        let tiny = image(5, 3, |x, _| [x as u8 * 20; 3]);
        assert!((ssim(&tiny, &tiny) - 1.0).abs() < 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn more_noise_never_looks_more_alike(low in 1.0_f32..20.0, more in 5.0_f32..30.0) {
            let scene = pattern(160, 120);
            let (near, far) = (ssim(&scene, &noise(&scene, low)), ssim(&scene, &noise(&scene, low + more)));
            prop_assert!(far < near && near <= 1.0, "{low}+{more}: {near} {far}");
        }
    }
}
