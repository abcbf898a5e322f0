//! The frame as the blob locator sees it: small, and split into light and colour.

use crate::types::Image;

/// Luma and two opponent colours at working resolution, each `[height, width]` f32 in grey levels.
#[derive(Debug, Clone)]
pub(super) struct Planes {
    pub width: usize,
    pub height: usize,
    /// Frame pixels a working pixel, each way.
    pub block: usize,
    /// (R + 2 G + B) / 4, 0 to 255.
    pub luma: Vec<f32>,
    /// R − G, −255 to 255.
    pub red_green: Vec<f32>,
    /// B − (R + G) / 2, −255 to 255.
    pub blue_yellow: Vec<f32>,
}

impl Planes {
    /// Average `image` over blocks of `ceil(width / width_max)` pixels a side.
    pub(super) fn of(image: &Image, width_max: u32) -> Self {
        let block = image.width_px().div_ceil(width_max.max(1)).min(image.height_px()) as usize;
        let (width, height) = (image.width_px() as usize / block, image.height_px() as usize / block);
        let pixels = width * height;
        let plane = || vec![0.0; pixels];
        let mut planes = Self { width, height, block, luma: plane(), red_green: plane(), blue_yellow: plane() };
        let mut sums = vec![0_u16; width * block * 3];
        let mut rows = image.bgr().chunks_exact(image.width_px() as usize * 3);
        for y in 0..height {
            sums.fill(0);
            for row in rows.by_ref().take(block) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += u16::from(value);
                }
            }
            match block {
                1 => planes.split(y, &sums, 1),
                2 => planes.split(y, &sums, 2),
                3 => planes.split(y, &sums, 3),
                _ => planes.split(y, &sums, block),
            }
        }
        planes
    }

    #[inline(always)]
    fn split(&mut self, y: usize, sums: &[u16], block: usize) {
        let scale = 1.0 / (block * block) as f32;
        let range = y * self.width..(y + 1) * self.width;
        let lumas = self.luma[range.clone()].iter_mut();
        let colours = self.red_green[range.clone()].iter_mut().zip(&mut self.blue_yellow[range]);
        for ((luma, (red_green, blue_yellow)), pixels) in lumas.zip(colours).zip(sums.chunks_exact(3 * block)) {
            let (mut blue, mut green, mut red) = (0_i32, 0_i32, 0_i32);
            for pixel in 0..block {
                blue += i32::from(pixels[3 * pixel]);
                green += i32::from(pixels[3 * pixel + 1]);
                red += i32::from(pixels[3 * pixel + 2]);
            }
            *luma = (red + 2 * green + blue) as f32 * (0.25 * scale);
            *red_green = (red - green) as f32 * scale;
            *blue_yellow = (2 * blue - red - green) as f32 * (0.5 * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Planes;
    use crate::types::Image;

    #[test]
    fn grey_has_no_colour_and_blocks_are_averaged() {
        let image = Image::from_bgr(4, 2, [[10; 6], [20; 6], [30; 6], [40; 6]].concat()).unwrap();
        let planes = Planes::of(&image, 2);
        assert_eq!((planes.width, planes.height, planes.block), (2, 1, 2));
        assert_eq!(planes.luma, [20.0, 30.0]);
        assert_eq!((planes.red_green[0], planes.blue_yellow[1]), (0.0, 0.0));
    }
}
