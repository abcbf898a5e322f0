//! Small grey pictures for registration: reduced by area, kept in a bank as PGM, which needs no codec.

use crate::types::Image;

/// Brightness of a picture, `[height, width]` f32, 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grey {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<f32>,
}

/// What one pixel of a reduced side covers: the first source pixel, and the share of each from there on.
struct Span {
    first: usize,
    weights: Vec<f32>,
}

impl Span {
    /// `index` of `to` pixels over `from`; the shares sum to 1.
    fn of(index: usize, to: usize, from: usize) -> Self {
        // In units of 1 / to of a source pixel, so that nothing is rounded.
        let (start, end) = (index * from, (index + 1) * from);
        let (first, last) = (start / to, (end.div_ceil(to)).min(from));
        let covered = |pixel: usize| (end.min((pixel + 1) * to) - start.max(pixel * to)) as f32 / from as f32;
        Self { first, weights: (first..last).map(covered).collect() }
    }
}

/// Largest PGM read, pixels: a reference is at most 256 × 256.
const PGM_PIXELS_MAX: usize = 1 << 20;

impl Grey {
    /// `image` reduced to `width × height`: each pixel is the mean of the area it covers (BT.601 brightness).
    pub(super) fn reduced(image: &Image, width: usize, height: usize) -> Self {
        let (from_width, from_height) = (image.width_px() as usize, image.height_px() as usize);
        let columns: Vec<Span> = (0..width).map(|x| Span::of(x, width, from_width)).collect();
        let mut data = Vec::with_capacity(width * height);
        let mut brightness = vec![0.0_f32; from_width];
        for y in 0..height {
            let rows = Span::of(y, height, from_height);
            brightness.fill(0.0);
            for (row, weight) in rows.weights.iter().enumerate() {
                let row = rows.first + row;
                let (pixels, _) = image.bgr()[row * from_width * 3..(row + 1) * from_width * 3].as_chunks::<3>();
                for (sum, [b, g, r]) in brightness.iter_mut().zip(pixels) {
                    *sum += weight * (0.114 * f32::from(*b) + 0.587 * f32::from(*g) + 0.299 * f32::from(*r));
                }
            }
            data.extend(columns.iter().map(|columns| {
                let below = &brightness[columns.first..columns.first + columns.weights.len()];
                below.iter().zip(&columns.weights).map(|(value, weight)| value * weight).sum::<f32>()
            }));
        }
        Self { width, height, data }
    }

    /// Half the size, each pixel the mean of 2×2; an odd last row or column is left out.
    pub(super) fn halved(&self) -> Self {
        let (width, height) = (self.width / 2, self.height / 2);
        let at = |x: usize, y: usize| self.data[y * self.width + x];
        let mean = |x: usize, y: usize| {
            (at(2 * x, 2 * y) + at(2 * x + 1, 2 * y) + at(2 * x, 2 * y + 1) + at(2 * x + 1, 2 * y + 1)) / 4.0
        };
        let data = (0..width * height).map(|index| mean(index % width, index / width)).collect();
        Self { width, height, data }
    }

    /// Bilinear value at `x`, `y` (pixel centres are whole numbers); `None` outside the outermost centres.
    pub(super) fn at(&self, x: f32, y: f32) -> Option<f32> {
        let (right, below) = ((self.width - 1) as f32, (self.height - 1) as f32);
        if !(x >= 0.0 && y >= 0.0 && x <= right && y <= below) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside the picture")]
        let (x0, y0) = (x as usize, y as usize);
        let (x1, y1) = ((x0 + 1).min(self.width - 1), (y0 + 1).min(self.height - 1));
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        let (upper, lower) = (&self.data[y0 * self.width..], &self.data[y1 * self.width..]);
        let top = upper[x0] + (upper[x1] - upper[x0]) * fx;
        let bottom = lower[x0] + (lower[x1] - lower[x0]) * fx;
        Some(top + (bottom - top) * fy)
    }

    /// Binary PGM (Netpbm's P5), rounded to 8 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 255")]
    pub(super) fn to_pgm(&self) -> Vec<u8> {
        let mut bytes = format!("P5\n{} {}\n255\n", self.width, self.height).into_bytes();
        bytes.extend(self.data.iter().map(|value| value.round().clamp(0.0, 255.0) as u8));
        bytes
    }

    /// What [`Grey::to_pgm`] wrote; `None` for anything else.
    pub(super) fn from_pgm(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(b"P5\n")?;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let text = std::str::from_utf8(&rest[..end]).ok()?.to_owned();
            rest = &rest[end + 1..];
            Some(text)
        };
        let size = line()?;
        let (width, height) = size.split_once(' ')?;
        let (width, height): (usize, usize) = (width.parse().ok()?, height.parse().ok()?);
        let is_ours = line()? == "255" && width > 0 && height > 0 && width.checked_mul(height)? <= PGM_PIXELS_MAX;
        (is_ours && rest.len() == width * height).then(|| Self {
            width,
            height,
            data: rest.iter().map(|value| f32::from(*value)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Grey, Image};

    #[test]
    fn reducing_takes_the_mean_of_what_lies_below() {
        let bgr = [0_u8, 100, 40, 60].into_iter().flat_map(|value| [value; 3]).collect();
        let image = Image::from_bgr(4, 1, bgr).unwrap();
        let grey = Grey::reduced(&image, 2, 1);
        assert!((grey.data[0] - 50.0).abs() < 1e-3 && (grey.data[1] - 50.0).abs() < 1e-3, "{:?}", grey.data);
        // 1⅓ pixels each: 0 and a third of 100; two thirds of 100 and of 40
        let thirds = Grey::reduced(&image, 3, 1);
        assert!((thirds.data[0] - 25.0).abs() < 1e-3 && (thirds.data[1] - 70.0).abs() < 1e-3, "{:?}", thirds.data);
        assert_eq!(Grey::reduced(&image, 8, 3).data[..2], [0.0, 0.0], "enlarged, each pixel is one of the source");
    }

    #[test]
    fn values_between_pixels_are_bilinear_and_none_outside() {
        let grey = Grey { width: 2, height: 2, data: vec![0.0, 10.0, 20.0, 30.0] };
        assert_eq!([grey.at(0.5, 0.5), grey.at(1.0, 1.0)], [Some(15.0), Some(30.0)]);
        assert_eq!([grey.at(-0.1, 0.0), grey.at(1.1, 0.0), grey.at(f32::NAN, 0.0)], [None; 3]);
    }

    #[test]
    fn a_pgm_reads_back_and_damage_is_refused() {
        let grey = Grey { width: 3, height: 2, data: vec![0.0, 1.0, 2.0, 10.0, 200.0, 255.0] };
        let bytes = grey.to_pgm();
        assert_eq!(Grey::from_pgm(&bytes), Some(grey));
        assert_eq!(Grey::from_pgm(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Grey::from_pgm(b"P5\n99999999 99999999\n255\n"), None);
        assert_eq!(Grey::from_pgm(b"P6\n1 1\n255\nabc"), None);
    }
}
