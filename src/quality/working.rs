//! The frame at working resolution: what every metric is computed on.

use crate::types::Image;

/// Widest working image. Frames are averaged over blocks of a whole number of pixels until they fit.
pub const WORKING_WIDTH_PX_MAX: u32 = 640;

/// A grey picture and what was summed up while it was made.
#[derive(Debug, Clone)]
pub struct Working {
    pub(super) width_px: usize,
    pub(super) height_px: usize,
    /// `[height, width]` u8: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of the block means.
    pub(super) grey: Vec<u8>,
    /// Mean HSV saturation, 0 to 1.
    pub(super) saturation_ratio: f32,
}

impl Working {
    /// Average `image` over blocks of `ceil(width / 640)` pixels a side; what is left over at the right and bottom,
    /// less than a block, is not looked at.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "summed up in f64, kept as f32")]
    pub fn of(image: &Image) -> Self {
        let block = image.width_px().div_ceil(WORKING_WIDTH_PX_MAX).min(image.height_px()) as usize;
        let width_px = image.width_px() as usize / block;
        let height_px = image.height_px() as usize / block;
        let mut working = Self { width_px, height_px, grey: vec![0; width_px * height_px], saturation_ratio: 0.0 };
        let mut planes = Planes::new(width_px);
        let mut rows_sum = vec![0_u16; width_px * block * 3];
        let mut saturation_sum = 0.0_f64;
        for y in 0..height_px {
            rows_sum.fill(0);
            for row in image.bgr().chunks_exact(image.width_px() as usize * 3).skip(y * block).take(block) {
                // Vertical first: contiguous, so that it runs in vector registers.
                for (sum, &value) in rows_sum.iter_mut().zip(row) {
                    *sum += u16::from(value);
                }
            }
            match block {
                1 => planes.split::<1>(&rows_sum),
                2 => planes.split::<2>(&rows_sum),
                3 => planes.split::<3>(&rows_sum),
                _ => planes.split_blocks(&rows_sum, block),
            }
            let scale = 1.0 / (block * block) as f32;
            saturation_sum += f64::from(planes.grey_row(scale, &mut working.grey[y * width_px..][..width_px]));
        }
        working.saturation_ratio = (saturation_sum / (width_px * height_px) as f64) as f32;
        working
    }

    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.grey[y * self.width_px..][..self.width_px]
    }
}

/// One row's block sums, a plane a channel.
struct Planes {
    blue: Vec<f32>,
    green: Vec<f32>,
    red: Vec<f32>,
}

impl Planes {
    fn new(width_px: usize) -> Self {
        Self { blue: vec![0.0; width_px], green: vec![0.0; width_px], red: vec![0.0; width_px] }
    }

    fn split<const BLOCK: usize>(&mut self, sums: &[u16]) {
        let targets = self.blue.iter_mut().zip(&mut self.green).zip(&mut self.red);
        for (((blue, green), red), block) in targets.zip(sums.chunks_exact(3 * BLOCK)) {
            let (mut b, mut g, mut r) = (0_i32, 0_i32, 0_i32);
            for pixel in 0..BLOCK {
                b += i32::from(block[3 * pixel]);
                g += i32::from(block[3 * pixel + 1]);
                r += i32::from(block[3 * pixel + 2]);
            }
            (*blue, *green, *red) = (b as f32, g as f32, r as f32);
        }
    }

    fn split_blocks(&mut self, sums: &[u16], block: usize) {
        let channel = |pixels: &[u16], at: usize| pixels.iter().skip(at).step_by(3).map(|&sum| f32::from(sum)).sum();
        for (x, pixels) in sums.chunks_exact(3 * block).enumerate() {
            self.blue[x] = channel(pixels, 0);
            self.green[x] = channel(pixels, 1);
            self.red[x] = channel(pixels, 2);
        }
    }

    /// Fill `grey`, and return the sum of the row's saturations.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a weighted mean of octets, rounded")]
    fn grey_row(&self, scale: f32, grey: &mut [u8]) -> f32 {
        let planes = self.blue.iter().zip(&self.green).zip(&self.red);
        for (grey, ((blue, green), red)) in grey.iter_mut().zip(planes.clone()) {
            let mean = (0.114 * blue + 0.587 * green + 0.299 * red) * scale;
            // By way of i32: a conversion the vector unit has.
            *grey = (mean + 0.5) as i32 as u8;
        }
        let (blues, _) = self.blue.as_chunks::<8>();
        let (greens, _) = self.green.as_chunks::<8>();
        let (reds, _) = self.red.as_chunks::<8>();
        let mut lanes = [0.0_f32; 8];
        for ((blue, green), red) in blues.iter().zip(greens).zip(reds) {
            for lane in 0..8 {
                lanes[lane] += saturation(blue[lane], green[lane], red[lane]);
            }
        }
        let rest = planes.skip(blues.len() * 8).map(|((&blue, &green), &red)| saturation(blue, green, red));
        lanes.iter().sum::<f32>() + rest.sum::<f32>()
    }
}

/// HSV saturation, scale-free.
fn saturation(blue: f32, green: f32, red: f32) -> f32 {
    let max = if blue > green { blue } else { green };
    let max = if max > red { max } else { red };
    let min = if blue < green { blue } else { green };
    let min = if min < red { min } else { red };
    let floor = if max > 1.0 { max } else { 1.0 };
    (max - min) / floor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_averaged_and_left_overs_dropped() {
        // 1283 wide: blocks of 3; every pixel of a block column carries the block's number.
        let row: Vec<u8> = (0..1283_u32).flat_map(|x| [(x / 3 % 200) as u8; 3]).collect();
        let image = Image::from_bgr(1283, 7, row.repeat(7)).unwrap();
        let working = Working::of(&image);
        assert_eq!((working.width_px, working.height_px), (427, 2));
        assert!(working.row(1).iter().enumerate().all(|(x, &grey)| usize::from(grey) == x % 200));
        assert_eq!(working.saturation_ratio, 0.0);
    }

    #[test]
    fn saturation_of_pure_and_pale_colours() {
        let image = |pixel: [u8; 3]| Image::from_bgr(13, 1, pixel.repeat(13)).unwrap();
        for (pixel, expected) in [([0, 0, 255], 1.0), ([128, 128, 255], 127.0 / 255.0), ([0, 0, 0], 0.0)] {
            assert!((Working::of(&image(pixel)).saturation_ratio - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn flat_and_tall_images_keep_a_pixel() {
        for (width_px, height_px) in [(5_000, 1), (1, 5_000), (1, 1), (16_384, 2)] {
            let bytes = width_px as usize * height_px as usize * 3;
            let working = Working::of(&Image::from_bgr(width_px, height_px, vec![9; bytes]).unwrap());
            assert!(working.grey.iter().all(|&grey| grey == 9) && !working.grey.is_empty());
        }
    }
}
