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
