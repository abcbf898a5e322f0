//! The colour of a located part: the nearest named colour by CIEDE2000 in calibrated light.
//!
//! The ground's colour is that of a ring around the box; pixels in the box that differ from it are the part's. Of these
//! the brighter half without the highlights counts, because shadow darkens a part's sides far more than light
//! brightens its top. The light's colour is taken out by the gains of a white balance, measured once on a grey card.

use palette::color_difference::Ciede2000;
use palette::{IntoColor, Lab, Srgb};

use crate::types::{BoundingBox, ColourEvidence, Image};

/// Pixels around the box that show the ground.
const RING_PX: f32 = 5.0;
/// ΔE*76 above which a pixel is not the ground.
const GROUND_DELTA_E: f32 = 14.0;
/// The part's outer share on each side that is not looked at: a box's rim is ground and shadow.
const RIM_SHARE: f32 = 0.2;
/// Lightness quantiles between which the part's colour is taken.
const LIT: (f32, f32) = (0.55, 0.90);
/// Pixels looked at in a box; a larger one is sampled.
const SAMPLES_MAX: f32 = 4096.0;

/// A colour of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedColour {
    pub id: String,
    /// sRGB, 0 to 255.
    pub rgb: [u8; 3],
}

/// The catalogue's colours, ready to compare with.
#[derive(Debug, Clone, Default)]
pub struct ColourTable {
    colours: Vec<(String, Lab)>,
}

impl ColourTable {
    #[must_use]
    pub fn new(colours: &[NamedColour]) -> Self {
        let lab = |colour: &NamedColour| (colour.id.clone(), lab_of(colour.rgb.map(f32::from), [1.0; 3]));
        Self { colours: colours.iter().map(lab).collect() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.colours.is_empty()
    }

    /// The nearest colour and how much farther the next one is.
    fn nearest(&self, seen: Lab) -> Option<ColourEvidence> {
        let mut by_distance: Vec<(f32, &str)> =
            self.colours.iter().map(|(id, lab)| (seen.difference(*lab), id.as_str())).collect();
        by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (delta_e, id) = *by_distance.first()?;
        let (second_delta_e, second_id) = by_distance.get(1).map_or((None, None), |(d, id)| (Some(*d), Some(*id)));
        Some(ColourEvidence {
            lab: [seen.l, seen.a, seen.b],
            color_id: id.to_owned(),
            delta_e,
            second_color_id: second_id.map(str::to_owned),
            second_delta_e,
            is_clear: false,
        })
    }
}

/// The colour of the part in `bbox` among those of `table`, not yet judged; `gains` are multiplied to linear-light red, green and blue.
/// `None` for an empty box or table.
#[must_use]
pub fn measure_colour(
    image: &Image,
    bbox: &BoundingBox,
    gains: [f32; 3],
    table: &ColourTable,
) -> Option<ColourEvidence> {
    let inside = bbox.clamped(image.width_px(), image.height_px());
    let ground = median(samples(image, &ring(image, &inside), Some(&inside), gains));
    let (dx, dy) = (inside.width_px() * RIM_SHARE, inside.height_px() * RIM_SHARE);
    let core = BoundingBox::new(inside.x1 + dx, inside.y1 + dy, inside.x2 - dx, inside.y2 - dy);
    let all = samples(image, &core, None, gains);
    let is_part = |lab: &Lab| ground.is_none_or(|ground| distance(*lab, ground) > GROUND_DELTA_E);
    let mut part: Vec<Lab> = all.iter().copied().filter(is_part).collect();
    // A part of the ground's own colour: better all of the core than its few odd pixels.
    if part.len() * 10 < all.len() {
        part = all;
    }
    part.sort_by(|a, b| a.l.total_cmp(&b.l));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let at = |share: f32| (part.len() as f32 * share) as usize;
    let lit = part.get(at(LIT.0)..at(LIT.1).max(at(LIT.0) + 1).min(part.len()))?;
    table.nearest(median(lit.to_vec())?)
}

/// The box and [`RING_PX`] around it, within the frame.
fn ring(image: &Image, inside: &BoundingBox) -> BoundingBox {
    BoundingBox::new(inside.x1 - RING_PX, inside.y1 - RING_PX, inside.x2 + RING_PX, inside.y2 + RING_PX)
        .clamped(image.width_px(), image.height_px())
}

/// The pixels of `area` outside `hole`, at most about [`SAMPLES_MAX`] of them.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixel positions inside the frame")]
fn samples(image: &Image, area: &BoundingBox, hole: Option<&BoundingBox>, gains: [f32; 3]) -> Vec<Lab> {
    let step = ((area.area_px() / SAMPLES_MAX).sqrt().ceil() as usize).max(1);
    let (x1, x2) = (area.x1.max(0.0) as u32, (area.x2.ceil() as u32).min(image.width_px()));
    let (y1, y2) = (area.y1.max(0.0) as u32, (area.y2.ceil() as u32).min(image.height_px()));
    let mut found = Vec::new();
    for y in (y1..y2).step_by(step) {
        for x in (x1..x2).step_by(step) {
            let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
            if hole.is_some_and(|h| px > h.x1 && px < h.x2 && py > h.y1 && py < h.y2) {
                continue;
            }
            if let Some(bgr) = image.row(y).get(x as usize * 3..x as usize * 3 + 3) {
                found.push(lab_of([bgr[2], bgr[1], bgr[0]].map(f32::from), gains));
            }
        }
    }
    found
}

/// sRGB 0 to 255, its linear light scaled by `gains`, as CIE L*a*b* under D65.
fn lab_of(rgb: [f32; 3], gains: [f32; 3]) -> Lab {
    let linear = Srgb::new(rgb[0] / 255.0, rgb[1] / 255.0, rgb[2] / 255.0).into_linear();
    let balanced = palette::LinSrgb::new(linear.red * gains[0], linear.green * gains[1], linear.blue * gains[2]);
    balanced.into_color()
}

fn distance(a: Lab, b: Lab) -> f32 {
    ((a.l - b.l).powi(2) + (a.a - b.a).powi(2) + (a.b - b.b).powi(2)).sqrt()
}

/// The median of each coordinate.
fn median(colours: Vec<Lab>) -> Option<Lab> {
    let middle = |pick: fn(&Lab) -> f32| {
        let mut values: Vec<f32> = colours.iter().map(pick).collect();
        values.sort_unstable_by(f32::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Lab::new(middle(|c| c.l)?, middle(|c| c.a)?, middle(|c| c.b)?))
}

#[cfg(test)]
mod tests {
    use palette::Lab;
    use palette::color_difference::Ciede2000;

    use super::{ColourTable, NamedColour, measure_colour};
    use crate::types::{BoundingBox, Image};

    fn table() -> ColourTable {
        let named = |id: &str, rgb| NamedColour { id: id.to_owned(), rgb };
        ColourTable::new(&[
            named("red", [201, 26, 9]),
            named("orange", [254, 138, 24]),
            named("blue", [30, 90, 168]),
            named("white", [244, 244, 244]),
        ])
    }

    /// A part of `rgb` in the middle of a grey ground, under light of the colour `light`.
    fn scene(rgb: [u8; 3], light: [f32; 3]) -> Image {
        let mut bgr = Vec::new();
        for y in 0..60_u32 {
            for x in 0..80_u32 {
                let pixel = if (20..60).contains(&x) && (15..45).contains(&y) { rgb } else { [128; 3] };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a colour in a test")]
                bgr.extend((0..3).rev().map(|c| (f32::from(pixel[c]) * light[c]).min(255.0) as u8));
            }
        }
        Image::from_bgr(80, 60, bgr).unwrap()
    }

    const BOX: BoundingBox = BoundingBox { x1: 20.0, y1: 15.0, x2: 60.0, y2: 45.0 };

    #[test]
    fn ciede2000_is_that_of_the_published_pairs() {
        // Sharma, Wu, Dalal 2005, table 1, pairs 1, 17 and 25.
        let pairs = [
            ([50.0, 2.6772, -79.7751], [50.0, 0.0, -82.7485], 2.0425),
            ([50.0, 2.5, 0.0], [73.0, 25.0, -18.0], 27.1492),
            ([60.2574, -34.0099, 36.2677], [60.4626, -34.1751, 39.4387], 1.2644),
        ];
        for (a, b, wanted) in pairs {
            let lab = |v: [f64; 3]| -> Lab<palette::white_point::D65, f64> { Lab::new(v[0], v[1], v[2]) };
            assert!((lab(a).difference(lab(b)) - wanted).abs() < 1e-4, "{a:?}");
        }
    }

    #[test]
    fn a_part_is_named_by_its_colour_and_its_ground_is_not() {
        for (rgb, id) in [([190, 30, 20], "red"), ([250, 130, 30], "orange"), ([40, 90, 160], "blue")] {
            let seen = measure_colour(&scene(rgb, [1.0; 3]), &BOX, [1.0; 3], &table()).unwrap();
            assert_eq!(seen.color_id, id);
            assert!(seen.second_delta_e.unwrap() > seen.delta_e);
        }
    }

    #[test]
    fn warm_light_misleads_until_it_is_balanced() {
        let image = scene([244, 244, 244], [1.0, 0.72, 0.38]);
        let blind = measure_colour(&image, &BOX, [1.0; 3], &table()).unwrap();
        assert_ne!(blind.color_id, "white");
        // The gains of the linear light that make the grey ground grey again.
        let gains = [1.0, 1.0 / 0.72_f32.powf(2.2), 1.0 / 0.38_f32.powf(2.2)];
        assert_eq!(measure_colour(&image, &BOX, gains, &table()).unwrap().color_id, "white");
    }

    #[test]
    fn boxes_at_and_beyond_the_border_do_not_panic() {
        let image = scene([200, 20, 10], [1.0; 3]);
        for bbox in [
            BoundingBox::new(0.0, 0.0, 80.0, 60.0),
            BoundingBox::new(-10.0, -10.0, 5.0, 5.0),
            BoundingBox::new(79.0, 59.0, 200.0, 200.0),
        ] {
            let seen = measure_colour(&image, &bbox, [1.0; 3], &table());
            assert!(seen.is_none_or(|seen| seen.delta_e.is_finite()));
        }
        assert!(measure_colour(&image, &BOX, [1.0; 3], &ColourTable::default()).is_none());
    }
}
