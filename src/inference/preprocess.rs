//! From a box in a frame to a model's input, without copying the frame.
//!
//! The crop is scaled row by row ([`super::sampling`]) and each row is normalised through one table per plane while it is
//! still in the cache. Only pixels inside the box count, so the result equals that of cropping first.
//! Belongs to one worker; the buffers are kept between calls, so nothing is allocated once the sizes are known.

use half::f16;

use super::input::{Axes, ColorOrder, InputSpec, LetterboxPlacement, ResizeMode};
use super::sampling::{Crop, Sampler};
use crate::types::{BoundingBox, Image};

/// How a picture lies in an input: `x_input = (x − left) × scale_x + pad_x`, the same for y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    pub scale_x: f32,
    pub scale_y: f32,
    pub pad_x: f32,
    pub pad_y: f32,
    /// Of the crop in the frame, pixels.
    pub left: f32,
    pub top: f32,
}

impl Letterbox {
    /// A point of the input in frame pixels.
    #[must_use]
    pub fn to_frame(&self, x: f32, y: f32) -> (f32, f32) {
        ((x - self.pad_x) / self.scale_x + self.left, (y - self.pad_y) / self.scale_y + self.top)
    }

    /// A point of the frame in input pixels.
    #[must_use]
    pub fn to_input(&self, x: f32, y: f32) -> (f32, f32) {
        ((x - self.left) * self.scale_x + self.pad_x, (y - self.top) * self.scale_y + self.pad_y)
    }
}

/// How the crop is laid into the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Both sides scaled on their own.
    Stretch,
    /// Scaled as a whole and centred.
    Centre,
    /// Scaled as a whole, at the top left corner (YOLOX).
    TopLeft,
}

impl Placement {
    #[must_use]
    pub fn of(resize: ResizeMode, letterbox: LetterboxPlacement) -> Self {
        match (resize, letterbox) {
            (ResizeMode::Stretch, _) => Placement::Stretch,
            (ResizeMode::Letterbox, LetterboxPlacement::TopLeft) => Placement::TopLeft,
            (ResizeMode::Letterbox, LetterboxPlacement::Centre) => Placement::Centre,
        }
    }
}

/// What the graph's input is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    U8,
}

/// What a graph is to read, without a copy.
#[derive(Debug, Clone, Copy)]
pub(super) enum View<'v> {
    F32(&'v [f32]),
    F16(&'v [f16]),
    U8(&'v [u8]),
}

/// Values of an input, in the element type of the graph.
#[derive(Debug)]
enum Values {
    F32(Typed<f32>),
    F16(Typed<f16>),
    U8(Typed<u8>),
}

/// Values of one type, and what each level of 0..=255 becomes in it, per plane in the order of the input.
#[derive(Debug)]
struct Typed<T> {
    tables: Box<[[T; 256]; 3]>,
    values: Vec<T>,
}

/// Scales and normalises into an input it holds.
#[derive(Debug)]
pub struct Preprocessor {
    /// Plane of the blue, green and red value of a pixel.
    plane_of_bgr: [usize; 3],
    pad_value: u8,
    axes: Axes,
    sampler: Sampler,
    values: Values,
    batch: usize,
    size_px: (u32, u32),
}

/// Where rows go: the input's shape and the first column and row of the picture in it.
#[derive(Debug, Clone, Copy)]
struct Target {
    axes: Axes,
    plane_of_bgr: [usize; 3],
    plane: usize,
    stride: usize,
    left: usize,
    top: usize,
}

impl Preprocessor {
    #[must_use]
    pub fn new(spec: &InputSpec, element: Element) -> Self {
        let level = |plane: usize, level: usize| (level as f32 * spec.scale - spec.mean[plane]) / spec.std[plane];
        Self {
            plane_of_bgr: match spec.color {
                ColorOrder::Rgb => [2, 1, 0],
                ColorOrder::Bgr => [0, 1, 2],
            },
            pad_value: spec.pad_value,
            axes: spec.axes,
            sampler: Sampler::new(spec.resample),
            values: match element {
                Element::F32 => Values::F32(Typed::new(level)),
                Element::F16 => Values::F16(Typed::new(|plane, value| f16::from_f32(level(plane, value)))),
                Element::U8 => Values::U8(Typed::new(|plane, value| to_octet(level(plane, value)))),
            },
            batch: 0,
            size_px: (0, 0),
        }
    }

    /// Make room for `batch` pictures of this size (width, height); [`Preprocessor::fill`] writes them.
    ///
    /// # Errors
    /// When a side or the batch is 0.
    pub fn begin(&mut self, batch: usize, size_px: (u32, u32)) -> Result<(), String> {
        if batch == 0 || size_px.0 == 0 || size_px.1 == 0 {
            return Err(format!("a batch of {batch} inputs of {}x{} has no content", size_px.0, size_px.1));
        }
        (self.batch, self.size_px) = (batch, size_px);
        let count = batch * 3 * size_px.0 as usize * size_px.1 as usize;
        match &mut self.values {
            Values::F32(typed) => typed.values.resize(count, 0.0),
            Values::F16(typed) => typed.values.resize(count, f16::ZERO),
            Values::U8(typed) => typed.values.resize(count, 0),
        }
        Ok(())
    }

    /// Write `area` of `image` as picture `slot` of the batch that was begun.
    ///
    /// # Errors
    /// When there is no such slot or the resizer refuses the sizes.
    pub fn fill(
        &mut self,
        slot: usize,
        image: &Image,
        area: &BoundingBox,
        placement: Placement,
    ) -> Result<Letterbox, String> {
        if slot >= self.batch {
            return Err(format!("the input holds {} pictures, not {}", self.batch, slot + 1));
        }
        let crop = pixels_of(image, area);
        let (inner_width, inner_height, letterbox) = fit(crop, self.size_px, placement);
        let target = Target {
            axes: self.axes,
            plane_of_bgr: self.plane_of_bgr,
            plane: self.size_px.0 as usize * self.size_px.1 as usize,
            stride: self.size_px.0 as usize,
            left: whole(letterbox.pad_x),
            top: whole(letterbox.pad_y),
        };
        let inner = (inner_width, inner_height);
        let pad = (inner != self.size_px).then_some(self.pad_value);
        match &mut self.values {
            Values::F32(typed) => typed.fill(slot, &mut self.sampler, (image, crop), inner, target, pad),
            Values::F16(typed) => typed.fill(slot, &mut self.sampler, (image, crop), inner, target, pad),
            Values::U8(typed) => typed.fill(slot, &mut self.sampler, (image, crop), inner, target, pad),
        }
        Ok(letterbox)
    }

    /// Mirror picture `slot` left to right, with its border: where that is a pixel wider on the right, it then is on the left.
    pub fn mirror(&mut self, slot: usize) {
        match &mut self.values {
            Values::F32(typed) => typed.mirror(slot, self.axes, self.size_px),
            Values::F16(typed) => typed.mirror(slot, self.axes, self.size_px),
            Values::U8(typed) => typed.mirror(slot, self.axes, self.size_px),
        }
    }

    /// What was filled in, and its shape.
    pub(super) fn input(&self) -> (View<'_>, [usize; 4]) {
        let (width, height) = (self.size_px.0 as usize, self.size_px.1 as usize);
        let shape = match self.axes {
            Axes::Nchw => [self.batch, 3, height, width],
            Axes::Nhwc => [self.batch, height, width, 3],
        };
        let view = match &self.values {
            Values::F32(typed) => View::F32(&typed.values),
            Values::F16(typed) => View::F16(&typed.values),
            Values::U8(typed) => View::U8(&typed.values),
        };
        (view, shape)
    }
}

impl<T: Copy> Typed<T> {
    fn new(level: impl Fn(usize, usize) -> T) -> Self {
        let tables = std::array::from_fn(|plane| std::array::from_fn(|value| level(plane, value)));
        Self { tables: Box::new(tables), values: Vec::new() }
    }

    fn mirror(&mut self, slot: usize, axes: Axes, (width, height): (u32, u32)) {
        let (width, count) = (width as usize, 3 * width as usize * height as usize);
        let picture = &mut self.values[slot * count..][..count];
        match axes {
            Axes::Nchw => picture.chunks_exact_mut(width).for_each(<[T]>::reverse),
            Axes::Nhwc => picture.as_chunks_mut::<3>().0.chunks_exact_mut(width).for_each(<[[T; 3]]>::reverse),
        }
    }

    fn fill(
        &mut self,
        slot: usize,
        sampler: &mut Sampler,
        (image, crop): (&Image, Crop),
        inner: (u32, u32),
        target: Target,
        pad: Option<u8>,
    ) {
        let (tables, out) = (&*self.tables, &mut self.values[slot * 3 * target.plane..][..3 * target.plane]);
        if let Some(level) = pad.map(usize::from) {
            match target.axes {
                Axes::Nchw => {
                    out.chunks_exact_mut(target.plane).zip(tables).for_each(|(out, table)| out.fill(table[level]));
                }
                Axes::Nhwc => {
                    let pixel = [tables[0][level], tables[1][level], tables[2][level]];
                    out.as_chunks_mut::<3>().0.fill(pixel);
                }
            }
        }
        sampler.rows(image, crop, inner, |y, row| match target.axes {
            Axes::Nchw => write_planes(tables, out, target, y, row),
            Axes::Nhwc => write_pixels(tables, out, target, y, row),
        });
    }
}

fn write_planes<T: Copy>(tables: &[[T; 256]; 3], out: &mut [T], target: Target, y: usize, row: &[u8]) {
    let (first, rest) = out.split_at_mut(target.plane);
    let (second, third) = rest.split_at_mut(target.plane);
    let [blue, green, red] = target.plane_of_bgr.map(|index| &tables[index]);
    let (blue_plane, red_plane) = if target.plane_of_bgr[0] == 0 { (first, third) } else { (third, first) };
    let (pixels, _) = row.as_chunks::<3>();
    let start = (target.top + y) * target.stride + target.left;
    let span = start..start + pixels.len();
    let planes = blue_plane[span.clone()].iter_mut().zip(&mut second[span.clone()]).zip(&mut red_plane[span]);
    for (pixel, ((b, g), r)) in pixels.iter().zip(planes) {
        *b = blue[usize::from(pixel[0])];
        *g = green[usize::from(pixel[1])];
        *r = red[usize::from(pixel[2])];
    }
}

fn write_pixels<T: Copy>(tables: &[[T; 256]; 3], out: &mut [T], target: Target, y: usize, row: &[u8]) {
    let start = ((target.top + y) * target.stride + target.left) * 3;
    let (pixels, _) = row.as_chunks::<3>();
    let (out, _) = out[start..start + row.len()].as_chunks_mut::<3>();
    for (pixel, out) in pixels.iter().zip(out) {
        for (level, plane) in pixel.iter().zip(target.plane_of_bgr) {
            out[plane] = tables[plane][usize::from(*level)];
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded and clamped to an octet")]
fn to_octet(value: f32) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// The whole pixels that `area` touches, within the image, at least one (as [`Image::crop`] cuts them).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the image's size first")]
fn pixels_of(image: &Image, area: &BoundingBox) -> Crop {
    let (width_px, height_px) = (image.width_px(), image.height_px());
    let area = area.clamped(width_px, height_px);
    let left = (area.x1 as u32).min(width_px - 1);
    let top = (area.y1 as u32).min(height_px - 1);
    let right = (area.x2.ceil() as u32).clamp(left + 1, width_px);
    let bottom = (area.y2.ceil() as u32).clamp(top + 1, height_px);
    Crop { left, top, width_px: right - left, height_px: bottom - top }
}

/// Size of the crop within the input, and where it lies.
fn fit(crop: Crop, input: (u32, u32), placement: Placement) -> (u32, u32, Letterbox) {
    let (scale_x, scale_y) = (input.0 as f32 / crop.width_px as f32, input.1 as f32 / crop.height_px as f32);
    let (left, top) = (crop.left as f32, crop.top as f32);
    if placement == Placement::Stretch {
        return (input.0, input.1, Letterbox { scale_x, scale_y, pad_x: 0.0, pad_y: 0.0, left, top });
    }
    let scale = scale_x.min(scale_y);
    // YOLOX cuts the scaled size to whole pixels, the others round it.
    let inner = |side: u32, limit: u32| match placement {
        Placement::TopLeft => to_pixels((side as f32 * scale + 1e-3).floor()).clamp(1, limit),
        Placement::Stretch | Placement::Centre => to_pixels((side as f32 * scale).round()).clamp(1, limit),
    };
    let (width, height) = (inner(crop.width_px, input.0), inner(crop.height_px, input.1));
    let (pad_x, pad_y) = match placement {
        Placement::Centre => (((input.0 - width) / 2) as f32, ((input.1 - height) / 2) as f32),
        Placement::Stretch | Placement::TopLeft => (0.0, 0.0),
    };
    (width, height, Letterbox { scale_x: scale, scale_y: scale, pad_x, pad_y, left, top })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a side in pixels, at most 16384")]
fn to_pixels(value: f32) -> u32 {
    value as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of pixels, not negative")]
fn whole(value: f32) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::{ColorOrder, Element, InputSpec, Letterbox, Placement, Preprocessor, View};
    use crate::inference::{Axes, Resample, ResizeMode};
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
            placement: None,
            resample: Resample::Triangle,
            axes: Axes::Nchw,
            sizes: None,
        }
    }

    /// The whole input as f32.
    fn filled(
        spec: &InputSpec,
        element: Element,
        image: &Image,
        area: &BoundingBox,
        (size_px, placement): ((u32, u32), Placement),
    ) -> (Vec<f32>, Letterbox) {
        let mut preprocessor = Preprocessor::new(spec, element);
        preprocessor.begin(1, size_px).unwrap();
        let letterbox = preprocessor.fill(0, image, area, placement).unwrap();
        let values = match preprocessor.input().0 {
            View::F32(values) => values.to_vec(),
            View::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            View::U8(values) => values.iter().map(|value| f32::from(*value)).collect(),
        };
        (values, letterbox)
    }

    fn flat(width: u32, height: u32, bgr: [u8; 3]) -> Image {
        Image::from_bgr(width, height, bgr.repeat((width * height) as usize)).unwrap()
    }

    #[test]
    fn planes_follow_the_colour_order() {
        let (image, all) = (flat(6, 5, [10, 20, 30]), BoundingBox::whole(6, 5));
        let how = ((2, 2), Placement::Stretch);
        let (out, _) = filled(&spec(ColorOrder::Rgb), Element::F32, &image, &all, how);
        assert_eq!([out[0], out[4], out[8]], [29.0, 9.0, 1.75]);
        let (out, _) = filled(&spec(ColorOrder::Bgr), Element::F32, &image, &all, how);
        assert_eq!([out[0], out[4], out[8]], [9.0, 9.0, 6.75]);
        let pixels = InputSpec { axes: Axes::Nhwc, ..spec(ColorOrder::Rgb) };
        let (out, _) = filled(&pixels, Element::F32, &image, &all, how);
        assert_eq!(out[..6], [29.0, 9.0, 1.75, 29.0, 9.0, 1.75]);
    }

    #[test]
    fn half_floats_and_octets_hold_the_same_numbers() {
        let (image, all) = (flat(6, 5, [10, 20, 30]), BoundingBox::whole(6, 5));
        let how = ((4, 4), Placement::Centre);
        let plain = InputSpec { mean: [0.0; 3], std: [1.0; 3], ..spec(ColorOrder::Rgb) };
        let (expected, _) = filled(&plain, Element::F32, &image, &all, how);
        assert_eq!((expected[0], expected[15]), (30.0, 114.0));
        for element in [Element::F16, Element::U8] {
            assert_eq!(filled(&plain, element, &image, &all, how).0, expected);
        }
        // Below 0 and above 255 an octet ends.
        let steep = InputSpec { scale: 20.0, mean: [500.0; 3], ..plain };
        let (out, _) = filled(&steep, Element::U8, &image, &all, ((1, 1), Placement::Stretch));
        assert_eq!(out, [100.0, 0.0, 0.0]);
    }

    #[test]
    fn a_mirrored_picture_is_the_picture_of_the_mirrored_image_and_its_neighbour_stays() {
        let level = |x: u32, y: u32, colour: u32| u8::try_from((x * 31 + y * 17 + colour * 71) % 251).unwrap();
        let drawn = |is_mirrored: bool| {
            let at = |x: u32| if is_mirrored { 6 - x } else { x };
            let pixel = |x: u32, y: u32| (0..3).map(move |colour| level(at(x), y, colour));
            Image::from_bgr(7, 4, (0..4).flat_map(|y| (0..7).flat_map(move |x| pixel(x, y))).collect()).unwrap()
        };
        let (image, mirrored, all) = (drawn(false), drawn(true), BoundingBox::whole(7, 4));
        for axes in [Axes::Nchw, Axes::Nhwc] {
            for element in [Element::F32, Element::F16, Element::U8] {
                let spec = InputSpec { axes, ..spec(ColorOrder::Rgb) };
                let values = |preprocessor: &Preprocessor| match preprocessor.input().0 {
                    View::F32(values) => values.to_vec(),
                    View::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
                    View::U8(values) => values.iter().map(|value| f32::from(*value)).collect(),
                };
                let mut preprocessor = Preprocessor::new(&spec, element);
                preprocessor.begin(2, (9, 6)).unwrap();
                for slot in 0..2 {
                    preprocessor.fill(slot, &image, &all, Placement::Centre).unwrap();
                }
                preprocessor.mirror(1);
                let expected =
                    [&image, &mirrored].map(|image| filled(&spec, element, image, &all, ((9, 6), Placement::Centre)).0);
                assert_eq!(values(&preprocessor), expected.concat(), "{axes:?}");
            }
        }
    }

    #[test]
    fn pixels_outside_the_box_do_not_leak_in() {
        let mut bgr = vec![255_u8; 9 * 9 * 3];
        for y in 3..6 {
            bgr[(y * 9 + 3) * 3..(y * 9 + 6) * 3].fill(7);
        }
        let image = Image::from_bgr(9, 9, bgr).unwrap();
        let area = BoundingBox::new(3.0, 3.0, 6.0, 6.0);
        for resample in [Resample::Triangle, Resample::Linear] {
            let spec = InputSpec { resample, ..spec(ColorOrder::Bgr) };
            let (out, letterbox) = filled(&spec, Element::F32, &image, &area, ((8, 8), Placement::Stretch));
            assert!(out[..64].iter().all(|value| *value == 6.0), "{out:?}");
            assert_eq!(letterbox.to_frame(8.0, 0.0), (6.0, 3.0));
            assert_eq!(letterbox.to_input(6.0, 3.0), (8.0, 0.0));
        }
    }

    #[test]
    fn a_reduction_averages_instead_of_skipping() {
        let bgr = (0..64 * 64).flat_map(|index| [if index % 2 == 0 { 0 } else { 200 }; 3]).collect();
        let image = Image::from_bgr(64, 64, bgr).unwrap();
        let all = BoundingBox::whole(64, 64);
        let how = ((4, 4), Placement::Stretch);
        let (out, _) = filled(&spec(ColorOrder::Bgr), Element::F32, &image, &all, how);
        assert!(out[..16].iter().all(|value| (value - 99.0).abs() < 3.0), "{out:?}");
    }

    #[test]
    fn letterbox_centres_and_pads_with_grey() {
        let (image, all) = (flat(20, 10, [50, 50, 50]), BoundingBox::whole(20, 10));
        let spec = spec(ColorOrder::Bgr);
        let (out, letterbox) = filled(&spec, Element::F32, &image, &all, ((8, 8), Placement::Centre));
        assert_eq!((letterbox.scale_x, letterbox.scale_y, letterbox.pad_x, letterbox.pad_y), (0.4, 0.4, 0.0, 2.0));
        assert_eq!([out[0], out[16], out[47], out[63]], [113.0, 49.0, 49.0, 113.0]);
        let (out, letterbox) = filled(&spec, Element::F32, &image, &all, ((8, 8), Placement::TopLeft));
        assert_eq!((letterbox.pad_x, letterbox.pad_y), (0.0, 0.0));
        assert_eq!([out[0], out[31], out[32]], [49.0, 49.0, 113.0]);
    }

    #[test]
    fn a_picture_of_one_pixel_and_a_box_outside_the_frame_do_not_panic() {
        for resample in [Resample::Triangle, Resample::Linear] {
            let spec = InputSpec { resample, ..spec(ColorOrder::Bgr) };
            for placement in [Placement::Centre, Placement::TopLeft, Placement::Stretch] {
                let far = BoundingBox::new(90.0, f32::NAN, 95.0, -4.0);
                assert_eq!(filled(&spec, Element::F32, &flat(5, 5, [9; 3]), &far, ((8, 8), placement)).0[0], 8.0);
                let one = BoundingBox::whole(1, 1);
                assert_eq!(filled(&spec, Element::F32, &flat(1, 1, [9; 3]), &one, ((8, 8), placement)).0[0], 8.0);
                // So narrow that a side of the scaled picture rounds to nothing.
                let thread = BoundingBox::whole(1, 900);
                assert_eq!(
                    filled(&spec, Element::F32, &flat(1, 900, [9; 3]), &thread, ((8, 8), placement)).1.left,
                    0.0
                );
            }
        }
    }

    #[test]
    fn a_slot_that_is_not_there_and_an_empty_input_are_refused() {
        let mut preprocessor = Preprocessor::new(&spec(ColorOrder::Bgr), Element::F32);
        let (image, all) = (flat(5, 5, [9, 9, 9]), BoundingBox::whole(5, 5));
        assert!(preprocessor.fill(0, &image, &all, Placement::Centre).is_err());
        assert!(preprocessor.begin(1, (0, 4)).is_err());
        preprocessor.begin(2, (4, 4)).unwrap();
        assert!(preprocessor.fill(1, &image, &all, Placement::Centre).is_ok());
        assert!(preprocessor.fill(2, &image, &all, Placement::Centre).is_err());
    }
}
