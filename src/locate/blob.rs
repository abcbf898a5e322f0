//! Parts on a belt, tray or table, found by what the background does not explain. Needs no model and no teaching.
//!
//! Limits: parts that touch are one box, and a part of the background's own colour and lightness is found by its edges
//! at best. At most [`limits::ITEMS_PER_FRAME_MAX`] + 1 boxes come out, the largest first, so that the caller sees
//! there were too many.

use serde::{Deserialize, Serialize};

use super::Detection;
use super::background::{Background, Lanes, Scale};
use super::mask::{Component, Mask};
use super::planes::Planes;
use crate::limits;
use crate::types::{BoundingBox, Image};

/// Label of everything the blob locator finds.
pub const BLOB_LABEL: &str = "part";

/// Options of the blob locator; a key left out has its default. "Working pixels" are those of the frame averaged to at
/// most `working_width_px`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlobOptions {
    /// Width of the working picture at most, pixels. Default: 640.
    pub working_width_px: u32,
    /// Least difference in lightness to the background, grey levels. Default: 16.
    pub luma_min: f32,
    /// Least difference in colour to the background, grey levels. Default: 16.
    pub colour_min: f32,
    /// Both at least so many times the background's own variation. Default: 4.
    pub noise_factor: f32,
    /// A background pixel may be shaded down to this share of its lightness, 0 to 1. Default: 0.65.
    pub shadow_ratio: f32,
    /// Gaps up to twice this many working pixels are closed. Default: 2.
    pub close_px: u32,
    /// What is thinner than about twice this many working pixels is dropped. Default: 1.
    pub open_px: u32,
    /// Smallest part, share of the frame's area, 0 to 1. Default: 0.000 3 (276 pixels of 1280×720).
    pub min_area_ratio: f32,
    /// Largest part, share of the frame's area, 0 to 1. Default: 0.4.
    pub max_area_ratio: f32,
}

impl Default for BlobOptions {
    fn default() -> Self {
        Self {
            working_width_px: 640,
            luma_min: 16.0,
            colour_min: 16.0,
            noise_factor: 4.0,
            shadow_ratio: 0.65,
            close_px: 2,
            open_px: 1,
            min_area_ratio: 0.000_3,
            max_area_ratio: 0.4,
        }
    }
}

impl BlobOptions {
    /// What is wrong with the options, `(key, words)`; empty where nothing is.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let ranges = [
            ("working_width_px", self.working_width_px as f32, 64.0, 4_096.0),
            ("luma_min", self.luma_min, 1.0, 255.0),
            ("colour_min", self.colour_min, 1.0, 510.0),
            ("noise_factor", self.noise_factor, 0.0, 100.0),
            ("shadow_ratio", self.shadow_ratio, 0.0, 1.0),
            ("close_px", self.close_px as f32, 0.0, 32.0),
            ("open_px", self.open_px as f32, 0.0, 32.0),
            ("min_area_ratio", self.min_area_ratio, 0.0, 1.0),
            ("max_area_ratio", self.max_area_ratio, self.min_area_ratio, 1.0),
        ];
        ranges
            .into_iter()
            .filter(|(_, value, low, high)| !(*low..=*high).contains(value))
            .map(|(key, _, low, high)| (key, format!("must lie between {low} and {high}")))
            .collect()
    }
}

/// Every nth row counts in the estimate of the background's variation.
const NOISE_STEP: usize = 16;

/// Finds parts against the background. Stateless between frames.
#[derive(Debug, Clone)]
pub struct BlobLocator {
    options: BlobOptions,
}

impl BlobLocator {
    #[must_use]
    pub fn new(options: BlobOptions) -> Self {
        Self { options }
    }

    /// Boxes in frame pixels, top to bottom.
    #[must_use]
    pub fn locate(&self, image: &Image) -> Vec<Detection> {
        let planes = Planes::of(image, self.options.working_width_px);
        let background = Background::of(&planes);
        let scores = self.scores(&planes, &background);
        let mut mask = Mask::new(planes.width, planes.height);
        for (pixel, &score) in mask.pixels.iter_mut().zip(&scores) {
            *pixel = if score > 1.0 { 255 } else { 0 };
        }
        mask.open(self.options.open_px as usize);
        mask.close(self.options.close_px as usize);
        let mut components = mask.components();
        components.retain(|component| self.is_plausible(component, &planes));
        drop_enclosed(&mut components);
        components.sort_by_key(|component| std::cmp::Reverse(component.pixels));
        components.truncate(limits::ITEMS_PER_FRAME_MAX + 1);
        components.sort_by_key(|component| (component.top, component.left));
        components.iter().map(|component| detection(component, &scores, &mask, &planes, image)).collect()
    }

    fn scores(&self, planes: &Planes, background: &Background) -> Vec<f32> {
        let mut lanes = Lanes::with_width(planes.width);
        let mut scores = vec![0.0; planes.width * planes.height];
        let scale = self.scale(planes, background);
        for (y, row) in scores.chunks_exact_mut(planes.width).enumerate() {
            background.score_row(planes, y, scale, &mut lanes, row);
        }
        scores
    }

    /// Thresholds from the background's own variation: the upper quartile of the differences over 1.1503, which is the
    /// standard deviation of a normal distribution and more than that of a grain with heavy tails.
    fn scale(&self, planes: &Planes, background: &Background) -> Scale {
        let shadow_ratio = self.options.shadow_ratio;
        let threshold = |floor: f32, probe: Scale| {
            let mut lanes = Lanes::with_width(planes.width);
            let mut row = vec![0.0; planes.width];
            let mut squares = Vec::with_capacity(planes.width * (planes.height / NOISE_STEP + 1));
            for y in (0..planes.height).step_by(NOISE_STEP) {
                background.score_row(planes, y, probe, &mut lanes, &mut row);
                squares.extend_from_slice(&row);
            }
            let rank = squares.len() * 3 / 4;
            let deviation = squares.select_nth_unstable_by(rank, f32::total_cmp).1.sqrt() / 1.150_3;
            let threshold = floor.max(self.options.noise_factor * deviation).max(1.0);
            1.0 / (threshold * threshold)
        };
        Scale {
            luma: threshold(self.options.luma_min, Scale { luma: 1.0, colour: 0.0, shadow_ratio }),
            colour: threshold(self.options.colour_min, Scale { luma: 0.0, colour: 1.0, shadow_ratio }),
            shadow_ratio,
        }
    }

    fn is_plausible(&self, component: &Component, planes: &Planes) -> bool {
        let ratio = component.pixels as f32 / (planes.width * planes.height) as f32;
        let (width, height) = (component.right - component.left, component.bottom - component.top);
        // Rims and rails: from edge to edge.
        let spans = width * 100 >= planes.width * 95 || height * 100 >= planes.height * 95;
        ratio >= self.options.min_area_ratio && ratio <= self.options.max_area_ratio && !spans
    }
}

/// Parts of a part: boxes that lie within a larger one.
fn drop_enclosed(components: &mut Vec<Component>) {
    let all = components.clone();
    components.retain(|inner| {
        !all.iter().any(|outer| {
            outer.pixels > inner.pixels
                && outer.left <= inner.left
                && outer.top <= inner.top
                && outer.right >= inner.right
                && outer.bottom >= inner.bottom
        })
    });
}

fn detection(component: &Component, scores: &[f32], mask: &Mask, planes: &Planes, image: &Image) -> Detection {
    let (mut sum, mut count) = (0.0_f32, 0_u32);
    for y in component.top..component.bottom {
        let range = y * planes.width + component.left..y * planes.width + component.right;
        for (&score, &pixel) in scores[range.clone()].iter().zip(&mask.pixels[range]) {
            if pixel != 0 {
                sum += score.min(100.0).sqrt();
                count += 1;
            }
        }
    }
    // Mean difference in thresholds: at the threshold 0.5, at ten times it 0.91.
    let mean = sum / count.max(1) as f32;
    let scaled = |value: usize| (value * planes.block) as f32;
    let (left, top) = (scaled(component.left), scaled(component.top));
    let (right, bottom) = (scaled(component.right), scaled(component.bottom));
    let bbox = BoundingBox::new(left, top, right, bottom).clamped(image.width_px(), image.height_px());
    Detection { bbox, label: BLOB_LABEL.to_owned(), confidence: mean / (mean + 1.0) }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "synthetic pixels, in range by construction"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture;

    /// A scene of 640×360 by a colour for each pixel, with a little grain.
    fn scene(colour: impl Fn(f32, f32) -> [f32; 3]) -> Image {
        let mut random = fastrand::Rng::with_seed(3);
        let mut bgr = Vec::with_capacity(640 * 360 * 3);
        for y in 0..360 {
            for x in 0..640 {
                let grain = random.f32() * 6.0 - 3.0;
                bgr.extend(colour(x as f32, y as f32).map(|level| (level + grain).clamp(0.0, 255.0) as u8));
            }
        }
        Image::from_bgr(640, 360, bgr).unwrap()
    }

    fn within(x: f32, y: f32, area: [f32; 4]) -> bool {
        x >= area[0] && y >= area[1] && x < area[2] && y < area[3]
    }

    fn check(image: &Image, expected: &[[f32; 4]]) {
        let found = BlobLocator::new(BlobOptions::default()).locate(image);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, &expected) in found.iter().zip(expected) {
            assert!(found.bbox.iou(&BoundingBox::from(expected)) > 0.85, "{found:?} is not {expected:?}");
            assert!(found.confidence > 0.5 && found.label == "part");
        }
    }

    const RED: [f32; 4] = [100.0, 80.0, 180.0, 130.0];
    const GREY: [f32; 4] = [300.0, 200.0, 380.0, 260.0];

    #[test]
    fn coloured_and_grey_parts_are_found_on_a_shaded_belt() {
        let image = scene(|x, y| match () {
            () if within(x, y, RED) => [40.0, 40.0, 170.0],
            () if within(x, y, GREY) => [125.0; 3],
            () => [60.0 + x / 20.0 + y / 30.0; 3],
        });
        check(&image, &[RED, GREY]);
    }

    #[test]
    fn rails_seams_soft_shadows_and_an_empty_belt_are_background() {
        let belt = |x: f32, y: f32| match () {
            () if !(40.0..320.0).contains(&y) => [150.0; 3],
            () if (x - 210.0).abs() < 2.0 => [110.0; 3],
            () => [80.0; 3],
        };
        check(&scene(belt), &[]);
        let shaded = scene(|x, y| {
            let shade = 1.0 - 0.3 * (-((x - 140.0).powi(2) + (y - 150.0).powi(2)) / 900.0).exp();
            if within(x, y, GREY) { [30.0, 160.0, 60.0] } else { belt(x, y).map(|level| level * shade) }
        });
        check(&shaded, &[GREY]);
    }

    #[test]
    fn specks_and_parts_of_parts_are_dropped() {
        let image = scene(|x, y| match () {
            () if within(x, y, [20.0, 20.0, 23.0, 23.0]) => [0.0; 3],
            // A ring around a dot: one part.
            () if within(x, y, [320.0, 150.0, 330.0, 160.0]) => [200.0, 40.0, 40.0],
            () if within(x, y, [285.0, 115.0, 365.0, 195.0]) => [100.0; 3],
            () if within(x, y, [270.0, 100.0, 380.0, 210.0]) => [200.0, 40.0, 40.0],
            () => [100.0; 3],
        });
        check(&image, &[[270.0, 100.0, 380.0, 210.0]]);
    }

    #[test]
    fn boxes_are_in_frame_pixels_at_any_resolution() {
        let mut bgr = vec![90_u8; 1_900 * 1_000 * 3];
        for y in 300..500 {
            bgr[(y * 1_900 + 700) * 3..(y * 1_900 + 1_000) * 3].fill(220);
        }
        check(&Image::from_bgr(1_900, 1_000, bgr).unwrap(), &[[700.0, 300.0, 1_000.0, 500.0]]);
    }

    #[test]
    fn options_out_of_range_are_named() {
        assert!(BlobOptions::default().faults().is_empty());
        let options: BlobOptions = toml::from_str("luma_min = 0\nmin_area_ratio = 0.5\nworking_width_px = 9").unwrap();
        let keys: Vec<_> = options.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["working_width_px", "luma_min", "max_area_ratio"]);
        assert!(toml::from_str::<BlobOptions>("luma = 3").is_err());
    }

    /// Expected and found boxes that pair up at an IoU of 0.5, over the mean count of both.
    fn f1(found: &[Detection], expected: &[BoundingBox]) -> f32 {
        let hits = expected.iter().filter(|b| found.iter().any(|found| found.bbox.iou(b) >= 0.5)).count();
        2.0 * hits as f32 / (found.len() + expected.len()) as f32
    }

    #[test]
    fn sample_trays_without_overlap_are_found() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/parts/trays");
        let Ok(text) = std::fs::read_to_string(root.join("annotations_coco.json")) else {
            println!("skipped: {} is absent", root.display());
            return;
        };
        let coco: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
        for picture in coco["images"].as_array().unwrap().iter().filter(|picture| picture["overlap_level"] == 0) {
            let annotations = coco["annotations"].as_array().unwrap();
            let boxes: Vec<BoundingBox> = annotations
                .iter()
                .filter(|annotation| annotation["image_id"] == picture["id"])
                .map(|annotation| &annotation["bbox"])
                .map(|b| [number(&b[0]), number(&b[1]), number(&b[2]), number(&b[3])])
                .map(|[x, y, width, height]| BoundingBox::new(x, y, x + width, y + height))
                .collect();
            let image = capture::read_image(&root.join(picture["file_name"].as_str().unwrap())).unwrap();
            let found = BlobLocator::new(BlobOptions::default()).locate(&image);
            let score = f1(&found, &boxes);
            assert!(score >= 0.8, "{}: F1 {score}", picture["file_name"]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_picture_and_options_give_boxes_inside_the_frame(
            width in 1_u32..90,
            height in 1_u32..90,
            seed in any::<u64>(),
            width_max in 1_u32..100,
            open_px in 0_u32..6,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let bgr = (0..width * height * 3).map(|_| random.u8(..)).collect();
            let image = Image::from_bgr(width, height, bgr).unwrap();
            let options = BlobOptions {
                working_width_px: width_max,
                open_px,
                min_area_ratio: 0.0,
                noise_factor: 0.0,
                ..BlobOptions::default()
            };
            for found in BlobLocator::new(options).locate(&image) {
                let b = found.bbox;
                prop_assert!(b.x1 >= 0.0 && b.y1 >= 0.0 && b.x2 <= width as f32 && b.y2 <= height as f32);
                prop_assert!(b.area_px() > 0.0 && (0.0..=1.0).contains(&found.confidence));
            }
        }
    }
}
