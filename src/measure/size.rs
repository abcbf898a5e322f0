//! True size as evidence: how likely a part of known dimensions looks as large as the box that was seen.
//!
//! A part is taken as the cuboid of its three sides, lying on one of them, turned any way, seen from 20° above the
//! ground to straight above. The outline of a cuboid along an image axis `a` is `Σ |a · eᵢ| sᵢ` over its edges `eᵢ` and
//! sides `sᵢ` (the support function of a zonotope). The density of the (longer, shorter) side of the box is that of
//! these outlines in logarithms, smoothed by [`BANDWIDTH`]: it also knows shapes by their aspect.
//!
//! Where the embedder says how much of a part's diagonal the picture shows, the part need not be seen any way at all: a
//! candidate must then have the diagonal that the longer side asks for.

use std::sync::LazyLock;

use crate::types::{BoundingBox, Foreshortening, SizeMm};

/// Standard deviation of the logarithm of a side that a cuboid cannot explain: rounding, perspective, a loose box, an
/// error of the scale. Chosen on rendered validation views.
const BANDWIDTH: f32 = 0.09;
/// Density below which a size says no more than "not this part": an occluded or joined box must not decide alone.
const DENSITY_FLOOR: f32 = 1e-4;
/// The same of what a network says of the picture: it takes look-alikes of other sizes for each other now and then.
/// Chosen on rendered validation views, where 0.001 to 0.05 differ by half a point.
const FORESHORTENING_FLOOR: f32 = 0.05;
/// The least that [`log_likelihood`] returns.
pub const SIZE_LOG_FLOOR: f32 = -9.210_34;
/// How much more often a part lies as it is modelled (studs up) than on a given other side.
const UPRIGHT_WEIGHT: f32 = 3.0;

/// `|a · eᵢ|` of the horizontal and the vertical image axis with the part's x, y and z, and the view's share.
struct View {
    across: [f32; 3],
    down: [f32; 3],
    share: f32,
}

static VIEWS: LazyLock<Vec<View>> = LazyLock::new(|| {
    // Which of the part's axes points up, and which two lie on the ground.
    const POSES: [([usize; 3], f32); 3] = [([0, 1, 2], UPRIGHT_WEIGHT), ([0, 2, 1], 1.0), ([1, 0, 2], 1.0)];
    let mut views = Vec::new();
    for ([ground_x, vertical, ground_z], share) in POSES {
        for yaw in (0_u8..12).map(|step| f32::from(step) * 15.0) {
            for elevation in [22.5_f32, 35.0, 47.5, 60.0, 75.0, 88.0] {
                for roll in [-6.0_f32, 6.0] {
                    let (yaw, elevation, roll) = (yaw.to_radians(), elevation.to_radians(), roll.to_radians());
                    // Image axes in ground coordinates (x, up, z), before and after the camera's roll.
                    let (right, up) = ([1.0, 0.0, 0.0], [0.0, elevation.cos(), -elevation.sin()]);
                    let mix = |a: f32, b: f32| -> [f32; 3] { std::array::from_fn(|i| right[i] * a + up[i] * b) };
                    let edge = |axis: [f32; 3]| {
                        let mut dots = [0.0; 3];
                        dots[ground_x] = (axis[0] * yaw.cos() - axis[2] * yaw.sin()).abs();
                        dots[vertical] = axis[1].abs();
                        dots[ground_z] = (axis[0] * yaw.sin() + axis[2] * yaw.cos()).abs();
                        dots
                    };
                    views.push(View {
                        across: edge(mix(roll.cos(), roll.sin())),
                        down: edge(mix(-roll.sin(), roll.cos())),
                        share,
                    });
                }
            }
        }
    }
    let total: f32 = views.iter().map(|view| view.share).sum();
    views.iter_mut().for_each(|view| view.share /= total);
    views
});

/// The sides of `bbox` at `px_per_mm`; `None` unless the scale is a positive number.
#[must_use]
pub fn measure_size(bbox: &BoundingBox, px_per_mm: f32) -> Option<SizeMm> {
    let (width, height) = (bbox.width_px() / px_per_mm, bbox.height_px() / px_per_mm);
    let is_size = |side: f32| side.is_finite() && side > 0.0;
    (is_size(width) && is_size(height)).then(|| SizeMm { long: width.max(height), short: width.min(height) })
}

/// Natural logarithm of the density of `seen` for a part of the three sides `part_mm` (x, y up, z), per unit of
/// ln² mm; at least [`SIZE_LOG_FLOOR`]. `None` when a side is not a positive number.
#[must_use]
pub fn log_likelihood(part_mm: [f32; 3], seen: SizeMm) -> Option<f32> {
    if part_mm.iter().any(|side| !side.is_finite() || *side <= 0.0) {
        return None;
    }
    let (long, short) = (seen.long.ln(), seen.short.ln());
    let outline = |edges: &[f32; 3]| edges.iter().zip(part_mm).map(|(edge, side)| edge * side).sum::<f32>();
    let density: f32 = VIEWS
        .iter()
        .map(|view| {
            let (a, b) = (outline(&view.across), outline(&view.down));
            let (d_long, d_short) = (a.max(b).ln() - long, a.min(b).ln() - short);
            view.share * (-(d_long * d_long + d_short * d_short) / (2.0 * BANDWIDTH * BANDWIDTH)).exp()
        })
        .sum();
    let log = (density / (std::f32::consts::TAU * BANDWIDTH * BANDWIDTH) + DENSITY_FLOOR).ln();
    log.is_finite().then_some(log)
}

/// Natural logarithm of the density of `seen` for a part of the three sides `part_mm`, by how much of the part `shown` says
/// the picture shows, per unit of ln mm. `None` when a side is not a positive number.
#[must_use]
pub fn log_likelihood_shown(part_mm: [f32; 3], seen: SizeMm, shown: &Foreshortening) -> Option<f32> {
    if part_mm.iter().any(|side| !side.is_finite() || *side <= 0.0) {
        return None;
    }
    let diagonal = part_mm.iter().map(|side| side * side).sum::<f32>().sqrt();
    let log = (shown.density((seen.long / diagonal).ln()) + FORESHORTENING_FLOOR).ln();
    log.is_finite().then_some(log)
}

#[cfg(test)]
mod tests {
    use super::{SIZE_LOG_FLOOR, VIEWS, log_likelihood, log_likelihood_shown, measure_size};
    use crate::types::{BoundingBox, Foreshortening, SizeMm};

    #[test]
    fn a_part_seen_from_its_end_is_not_taken_for_a_shorter_one() {
        // A beam of 9 holes, foreshortened to the length of one of 5 that lies across the picture.
        let (beam5, beam9) = ([40.0, 8.0, 8.0], [72.0, 8.0, 8.0]);
        let seen = SizeMm { long: 40.0, short: 14.0 };
        let logits: Vec<f32> = (0..36_u8).map(|bin| if (18..22).contains(&bin) { 5.0 } else { 0.0 }).collect();
        let shown = Foreshortening::of_logits([-1.6, 0.15], &logits).unwrap();
        let of = |part| log_likelihood_shown(part, seen, &shown).unwrap();
        assert!(of(beam9) > of(beam5) + 2.0, "{} against {}", of(beam9), of(beam5));
        let blind = |part| log_likelihood(part, seen).unwrap();
        assert!(blind(beam9) < blind(beam5), "without it the shorter one explains the box better");
        for sides in [[0.0, 1.0, 1.0], [f32::NAN, 1.0, 1.0]] {
            assert_eq!(log_likelihood_shown(sides, seen, &shown), None);
        }
    }

    #[test]
    fn a_long_part_is_told_from_a_short_one_by_its_size_alone() {
        // Plates 1 × 2 and 1 × 4 straight from above: 16 × 8 and 32 × 8 mm.
        let (short, long) = ([16.0, 3.2, 8.0], [32.0, 3.2, 8.0]);
        let seen = SizeMm { long: 32.0, short: 8.4 };
        let (as_short, as_long) = (log_likelihood(short, seen).unwrap(), log_likelihood(long, seen).unwrap());
        assert!(as_long > as_short + 2.0, "{as_long} against {as_short}");
        assert!((as_short - SIZE_LOG_FLOOR).abs() < 0.5, "nothing explains a box twice as long: {as_short}");
    }

    #[test]
    fn the_same_outline_at_twice_the_scale_is_another_part() {
        let seen = SizeMm { long: 20.0, short: 12.0 };
        let right = log_likelihood([16.0, 9.6, 16.0], seen).unwrap();
        let twice = log_likelihood([32.0, 19.2, 32.0], seen).unwrap();
        assert!(right > twice + 3.0, "{right} against {twice}");
    }

    #[test]
    fn every_view_shows_a_ball_of_sides_no_larger_than_its_diagonal() {
        for view in VIEWS.iter() {
            let norm = |edges: &[f32; 3]| edges.iter().map(|edge| edge * edge).sum::<f32>().sqrt();
            assert!((norm(&view.across) - 1.0).abs() < 1e-5 && (norm(&view.down) - 1.0).abs() < 1e-5);
        }
        assert!((VIEWS.iter().map(|view| view.share).sum::<f32>() - 1.0).abs() < 1e-4);
    }

    #[test]
    fn what_is_no_size_is_no_evidence() {
        let bbox = BoundingBox::new(0.0, 0.0, 40.0, 20.0);
        assert_eq!(measure_size(&bbox, 2.0), Some(SizeMm { long: 20.0, short: 10.0 }));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(measure_size(&bbox, scale), None, "scale {scale}");
        }
        let seen = SizeMm { long: 20.0, short: 10.0 };
        for sides in [[0.0, 1.0, 1.0], [f32::NAN, 1.0, 1.0], [1.0, -2.0, 1.0]] {
            assert_eq!(log_likelihood(sides, seen), None);
        }
    }
}
