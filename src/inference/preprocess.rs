//! From a box in a frame to the planes of a model's input, without copying the frame.
//!
//! The crop is scaled with the anti-aliased triangle filter (Pillow's BILINEAR: its support grows with the reduction,
//! so no pixel of a large picture is skipped), then normalised through one table per plane. Only pixels inside the
//! box count, so the result equals that of cropping first.

use fast_image_resize::images::{CroppedImage, Image as ResizedImage, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::manifest::{ColorOrder, InputSpec};
use crate::types::{BoundingBox, Image};

/// Where a picture lies in a padded input: `x_input = x × scale + pad_x`, the same for y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    pub scale: f32,
    pub pad_x: f32,
    pub pad_y: f32,
}

/// How the crop is laid into the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// Both sides scaled on their own.
    Stretch,
    /// Scaled as a whole and centred.
    Centre,
    /// Scaled as a whole, at the top left corner (YOLOX).
    TopLeft,
}

/// Scales and normalises; keeps its buffers between calls.
#[derive(Debug)]
pub struct Preprocessor {
    /// Value of each level of 0..=255, per plane in the order of the input.
    tables: [[f32; 256]; 3],
    /// Plane of the blue, green and red value of a pixel.
    plane_of_bgr: [usize; 3],
    pad_value: u8,
    resizer: Resizer,
    scaled: ResizedImage<'static>,
}

impl Preprocessor {
    #[must_use]
    pub fn new(spec: &InputSpec) -> Self {
        let table = |plane: usize| {
            std::array::from_fn(|level| (level as f32 * spec.scale - spec.mean[plane]) / spec.std[plane])
        };
        Self {
            tables: [table(0), table(1), table(2)],
            plane_of_bgr: match spec.color {
                ColorOrder::Rgb => [2, 1, 0],
                ColorOrder::Bgr => [0, 1, 2],
            },
            pad_value: spec.pad_value,
            resizer: Resizer::new(),
            scaled: ResizedImage::new(1, 1, PixelType::U8x3),
        }
    }

    /// Write `area` of `image` as `[3, height, width]` f32 into `out`.
    ///
    /// # Errors
    /// When `out` has another length or the resizer refuses the sizes.
    pub(super) fn fill(
        &mut self,
        image: &Image,
        area: &BoundingBox,
        (width_px, height_px): (u32, u32),
        placement: Placement,
        out: &mut [f32],
    ) -> Result<Letterbox, String> {
        let plane = width_px as usize * height_px as usize;
        if out.len() != 3 * plane || plane == 0 {
            return Err(format!("a buffer of {} values does not hold 3x{height_px}x{width_px}", out.len()));
        }
        let [left, top, crop_width, crop_height] = pixels_of(image, area);
        let (inner_width, inner_height, letterbox) = fit((crop_width, crop_height), (width_px, height_px), placement);
        self.scale_crop(image, [left, top, crop_width, crop_height], inner_width, inner_height)?;
        if (inner_width, inner_height) != (width_px, height_px) {
            for (values, table) in out.chunks_exact_mut(plane).zip(&self.tables) {
                values.fill(table[usize::from(self.pad_value)]);
            }
        }
        let (left, top) = (whole(letterbox.pad_x), whole(letterbox.pad_y));
        self.normalise(out, plane, width_px as usize, left, top);
        Ok(letterbox)
    }

    fn scale_crop(&mut self, image: &Image, crop: [u32; 4], width_px: u32, height_px: u32) -> Result<(), String> {
        if (self.scaled.width(), self.scaled.height()) != (width_px, height_px) {
            self.scaled = ResizedImage::new(width_px, height_px, PixelType::U8x3);
        }
        let frame = ImageRef::new(image.width_px(), image.height_px(), image.bgr(), PixelType::U8x3)
            .map_err(|error| error.to_string())?;
        let [left, top, crop_width, crop_height] = crop;
        let cropped =
            CroppedImage::new(&frame, left, top, crop_width, crop_height).map_err(|error| error.to_string())?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        self.resizer.resize(&cropped, &mut self.scaled, &options).map_err(|error| error.to_string())
    }

    /// Spread the scaled pixels over the planes of `out`, from column `left` and row `top` on.
    fn normalise(&self, out: &mut [f32], plane: usize, stride: usize, left: usize, top: usize) {
        let width = self.scaled.width() as usize;
        let (first, rest) = out.split_at_mut(plane);
        let (second, third) = rest.split_at_mut(plane);
        let [blue, green, red] = self.plane_of_bgr.map(|index| &self.tables[index]);
        let (blue_plane, red_plane) = if self.plane_of_bgr[0] == 0 { (first, third) } else { (third, first) };
        for (y, row) in self.scaled.buffer().chunks_exact(width * 3).enumerate() {
            let start = (top + y) * stride + left;
            let span = start..start + width;
            let planes = blue_plane[span.clone()].iter_mut().zip(&mut second[span.clone()]).zip(&mut red_plane[span]);
            for (pixel, ((b, g), r)) in row.chunks_exact(3).zip(planes) {
                *b = blue[usize::from(pixel[0])];
                *g = green[usize::from(pixel[1])];
                *r = red[usize::from(pixel[2])];
            }
        }
    }
}

/// Left, top, width and height of the whole pixels that `area` touches, within the image, at least one (as
/// [`Image::crop`] cuts them).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the image's size first")]
fn pixels_of(image: &Image, area: &BoundingBox) -> [u32; 4] {
    let (width_px, height_px) = (image.width_px(), image.height_px());
    let area = area.clamped(width_px, height_px);
    let left = (area.x1 as u32).min(width_px - 1);
    let top = (area.y1 as u32).min(height_px - 1);
    let right = (area.x2.ceil() as u32).clamp(left + 1, width_px);
    let bottom = (area.y2.ceil() as u32).clamp(top + 1, height_px);
    [left, top, right - left, bottom - top]
}

/// Size of the crop within the input, and where it lies.
fn fit(crop: (u32, u32), input: (u32, u32), placement: Placement) -> (u32, u32, Letterbox) {
    let scales = (input.0 as f32 / crop.0 as f32, input.1 as f32 / crop.1 as f32);
    let scale = scales.0.min(scales.1);
    if placement == Placement::Stretch {
        return (input.0, input.1, Letterbox { scale, pad_x: 0.0, pad_y: 0.0 });
    }
    let inner = |side: u32, limit: u32| rounded(side as f32 * scale).clamp(1, limit);
    let (width, height) = (inner(crop.0, input.0), inner(crop.1, input.1));
    let (pad_x, pad_y) = match placement {
        Placement::Centre => (((input.0 - width) / 2) as f32, ((input.1 - height) / 2) as f32),
        Placement::Stretch | Placement::TopLeft => (0.0, 0.0),
    };
    (width, height, Letterbox { scale, pad_x, pad_y })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a side in pixels, at most 16384")]
fn rounded(value: f32) -> u32 {
    value.round() as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of pixels, not negative")]
fn whole(value: f32) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::{ColorOrder, InputSpec, Letterbox, Placement, Preprocessor};
    use crate::inference::ResizeMode;
    use crate::types::{BoundingBox, Image};

    fn spec(color: ColorOrder) -> InputSpec {
        InputSpec {
            name: "images".to_owned(),
            size_px: [4, 4],
            color,
            scale: 1.0,
            mean: [1.0, 2.0, 3.0],
            std: [1.0, 2.0, 4.0],
            resize: ResizeMode::Stretch,
            pad_value: 114,
        }
    }

    fn flat(width: u32, height: u32, bgr: [u8; 3]) -> Image {
        Image::from_bgr(width, height, bgr.repeat((width * height) as usize)).unwrap()
    }

    #[test]
    fn planes_follow_the_colour_order() {
        let image = flat(6, 5, [10, 20, 30]);
        let mut out = vec![0.0; 12];
        let all = BoundingBox::whole(6, 5);
        Preprocessor::new(&spec(ColorOrder::Rgb)).fill(&image, &all, (2, 2), Placement::Stretch, &mut out).unwrap();
        assert_eq!([out[0], out[4], out[8]], [29.0, 9.0, 1.75]);
        Preprocessor::new(&spec(ColorOrder::Bgr)).fill(&image, &all, (2, 2), Placement::Stretch, &mut out).unwrap();
        assert_eq!([out[0], out[4], out[8]], [9.0, 9.0, 6.75]);
    }

    #[test]
    fn pixels_outside_the_box_do_not_leak_in() {
        let mut bgr = vec![255_u8; 9 * 9 * 3];
        for y in 3..6 {
            bgr[(y * 9 + 3) * 3..(y * 9 + 6) * 3].fill(7);
        }
        let image = Image::from_bgr(9, 9, bgr).unwrap();
        let mut out = vec![0.0; 3 * 64];
        let area = BoundingBox::new(3.0, 3.0, 6.0, 6.0);
        Preprocessor::new(&spec(ColorOrder::Bgr)).fill(&image, &area, (8, 8), Placement::Stretch, &mut out).unwrap();
        assert!(out[..64].iter().all(|value| *value == 6.0), "{out:?}");
    }

    #[test]
    fn a_reduction_averages_instead_of_skipping() {
        let bgr = (0..64 * 64).flat_map(|index| [if index % 2 == 0 { 0 } else { 200 }; 3]).collect();
        let image = Image::from_bgr(64, 64, bgr).unwrap();
        let mut out = vec![0.0; 3 * 16];
        let all = BoundingBox::whole(64, 64);
        Preprocessor::new(&spec(ColorOrder::Bgr)).fill(&image, &all, (4, 4), Placement::Stretch, &mut out).unwrap();
        assert!(out[..16].iter().all(|value| (value - 99.0).abs() < 3.0), "{out:?}");
    }

    #[test]
    fn letterbox_centres_and_pads_with_grey() {
        let image = flat(20, 10, [50, 50, 50]);
        let mut out = vec![0.0; 3 * 64];
        let all = BoundingBox::whole(20, 10);
        let mut preprocessor = Preprocessor::new(&spec(ColorOrder::Bgr));
        let letterbox = preprocessor.fill(&image, &all, (8, 8), Placement::Centre, &mut out).unwrap();
        assert_eq!(letterbox, Letterbox { scale: 0.4, pad_x: 0.0, pad_y: 2.0 });
        assert_eq!([out[0], out[16], out[47], out[63]], [113.0, 49.0, 49.0, 113.0]);
        let letterbox = preprocessor.fill(&image, &all, (8, 8), Placement::TopLeft, &mut out).unwrap();
        assert_eq!((letterbox.pad_x, letterbox.pad_y), (0.0, 0.0));
        assert_eq!([out[0], out[31], out[32]], [49.0, 49.0, 113.0]);
    }

    #[test]
    fn a_box_outside_the_frame_and_a_wrong_buffer_do_not_panic() {
        let image = flat(5, 5, [9, 9, 9]);
        let mut preprocessor = Preprocessor::new(&spec(ColorOrder::Bgr));
        let far = BoundingBox::new(90.0, f32::NAN, 95.0, -4.0);
        assert!(preprocessor.fill(&image, &far, (8, 8), Placement::Centre, &mut [0.0; 192]).is_ok());
        assert!(preprocessor.fill(&image, &far, (8, 8), Placement::Centre, &mut [0.0; 191]).is_err());
    }
}
