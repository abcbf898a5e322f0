//! Registration of a part to a reference picture, before anything is compared.
//!
//! The enhanced correlation coefficient of Evangelidis and Psarakis ("Parametric image alignment using enhanced
//! correlation coefficient maximization", PAMI 2008), forward additive, on a pyramid of small grey pictures; it does not
//! mind brightness and contrast. It climbs only, so a search over shifts (and turns) of the coarsest level starts it.
//! Pure and deterministic; one picture takes some milliseconds.

use serde::{Deserialize, Serialize};

use super::grey::Grey;
use crate::types::Image;

/// Longest side of the finest level, pixels: an error of 0.1 px there is half a pixel of 1280.
const FINEST_SIDE_PX: u32 = 256;
/// Shortest side of the coarsest level.
const COARSEST_SIDE_PX: usize = 12;
const LEVELS_MAX: usize = 5;
/// Steps on one level; a few suffice where it converges.
const STEPS_MAX: usize = 40;
/// A step that moves no corner farther than this, pixels of the level, is the last.
const STEP_PX_MIN: f32 = 0.01;
/// Share of a side that the first search looks to both sides.
const SEARCH_RATIO: f32 = 0.25;
/// Turns that the first search tries where the part may turn, degrees.
const SEARCH_TURNS: [f32; 9] = [0.0, -5.0, 5.0, -10.0, 10.0, -15.0, 15.0, -20.0, 20.0];
/// Share of the reference that must lie within the picture.
const OVERLAP_MIN: f32 = 0.5;

/// How a part may lie differently from one picture to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Motion {
    /// It is shifted.
    Translation,
    /// It is shifted and turned.
    Rigid,
    /// It is shifted, turned, scaled and sheared.
    Affine,
}

/// From a point of the reference to one of the picture, both in pixels with whole numbers at pixel centres:
/// `x' = a x + b y + c`, `y' = d x + e y + f`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Warp(pub(super) [f32; 6]);

impl Warp {
    pub(super) const IDENTITY: Warp = Warp([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);

    pub(super) fn apply(&self, x: f32, y: f32) -> (f32, f32) {
        let [a, b, c, d, e, f] = self.0;
        (a * x + b * y + c, d * x + e * y + f)
    }

    /// The other way round; `None` where it folds the plane.
    pub(super) fn inverse(&self) -> Option<Warp> {
        let [a, b, c, d, e, f] = self.0;
        let det = a * e - b * d;
        (det.is_finite() && det.abs() > 1e-6).then(|| {
            let (ia, ib, id, ie) = (e / det, -b / det, -d / det, a / det);
            Warp([ia, ib, -(ia * c + ib * f), id, ie, -(id * c + ie * f)])
        })
    }

    /// The same movement between pictures that are larger by these factors, across and down. A coordinate `u` of a small
    /// picture lies at `(u + 0.5) × factor − 0.5` of the large one.
    fn scaled(&self, reference: [f32; 2], picture: [f32; 2]) -> Warp {
        let [a, b, c, d, e, f] = self.0;
        // The large reference's origin in the small one.
        let (u, v) = (0.5 / reference[0] - 0.5, 0.5 / reference[1] - 0.5);
        let origin =
            |along: f32, across: f32, shift: f32, factor: f32| (along * u + across * v + shift + 0.5) * factor - 0.5;
        Warp([
            a * picture[0] / reference[0],
            b * picture[0] / reference[1],
            origin(a, b, c, picture[0]),
            d * picture[1] / reference[0],
            e * picture[1] / reference[1],
            origin(d, e, f, picture[1]),
        ])
    }
}

/// A reference picture, ready to register others to.
#[derive(Debug, Clone)]
pub(super) struct Aligner {
    /// Finest first.
    levels: Vec<Grey>,
    /// Size of the reference as it was taken.
    width_px: u32,
    height_px: u32,
    motion: Motion,
}

impl Aligner {
    /// `reference` is what [`Aligner::reduce`] made of a picture of `width_px × height_px`.
    pub(super) fn new(reference: Grey, (width_px, height_px): (u32, u32), motion: Motion) -> Self {
        Self { levels: pyramid(reference), width_px, height_px, motion }
    }

    /// Width and height of the reference as it was taken.
    pub(super) fn size_px(&self) -> (u32, u32) {
        (self.width_px, self.height_px)
    }

    /// The grey picture that stands for `image` in a bank.
    pub(super) fn reduce(image: &Image) -> Grey {
        let longest = image.width_px().max(image.height_px());
        let side = |side: u32| {
            let reduced = u64::from(side) * u64::from(FINEST_SIDE_PX.min(longest)) / u64::from(longest);
            usize::try_from(reduced).unwrap_or(1).max(1)
        };
        Grey::reduced(image, side(image.width_px()), side(image.height_px()))
    }

    /// Correlation with the reference at the best place, −1 to 1, and that place.
    pub(super) fn find(&self, image: &Image) -> (f32, Warp) {
        let finest = &self.levels[0];
        let picture = pyramid_of(Grey::reduced(image, finest.width, finest.height), self.levels.len());
        let coarsest = self.levels.len() - 1;
        let mut warp = self.search(&picture[coarsest]);
        let mut correlation = -1.0;
        for level in (0..self.levels.len()).rev() {
            (correlation, warp) = climb(&self.levels[level], &picture[level], warp, self.motion);
            if level > 0 {
                let side = |fine: usize, coarse: usize| fine as f32 / coarse as f32;
                let (fine, coarse) = (&self.levels[level - 1], &self.levels[level]);
                let factor = [side(fine.width, coarse.width), side(fine.height, coarse.height)];
                warp = warp.scaled(factor, factor);
            }
        }
        let to_full = |full: u32, small: usize| full as f32 / small as f32;
        let reference = [to_full(self.width_px, finest.width), to_full(self.height_px, finest.height)];
        let own = [to_full(image.width_px(), finest.width), to_full(image.height_px(), finest.height)];
        (correlation, warp.scaled(reference, own))
    }

    /// `image` brought into the reference's place by `warp`, of the reference's size; what lies outside the picture repeats
    /// its border.
    pub(super) fn straighten(&self, image: &Image, warp: Warp) -> Image {
        let (width, height) = (self.width_px as usize, self.height_px as usize);
        let mut bgr = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = warp.apply(x as f32, y as f32);
                bgr.extend_from_slice(&sample(image, from_x, from_y));
            }
        }
        Image::from_bgr(self.width_px, self.height_px, bgr).unwrap_or_else(|_| image.clone())
    }

    /// The best of many shifts (and turns) on the coarsest level.
    #[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
    fn search(&self, picture: &Grey) -> Warp {
        let reference = &self.levels[self.levels.len() - 1];
        let turns: &[f32] = if self.motion == Motion::Translation { &SEARCH_TURNS[..1] } else { &SEARCH_TURNS };
        let reach = |side: usize| (side as f32 * SEARCH_RATIO).round() as i32;
        let mut best = (f32::NEG_INFINITY, Warp::IDENTITY);
        for turn in turns {
            let turned = turned_about_the_middle(reference, turn.to_radians());
            for dy in -reach(reference.height)..=reach(reference.height) {
                for dx in -reach(reference.width)..=reach(reference.width) {
                    let mut warp = turned;
                    warp.0[2] += dx as f32;
                    warp.0[5] += dy as f32;
                    let correlation = correlate(reference, picture, warp);
                    // Of equals the one nearest to the middle: a flat picture is not shifted at random.
                    if correlation > best.0 + 1e-4 {
                        best = (correlation, warp);
                    }
                }
            }
        }
        best.1
    }
}

fn pyramid(finest: Grey) -> Vec<Grey> {
    let mut levels = vec![finest];
    while let Some(last) = levels.last()
        && levels.len() < LEVELS_MAX
        && last.width.min(last.height) / 2 >= COARSEST_SIDE_PX
    {
        let next = last.halved();
        levels.push(next);
    }
    levels
}

fn pyramid_of(finest: Grey, count: usize) -> Vec<Grey> {
    let mut levels = vec![finest];
    while levels.len() < count {
        let next = levels[levels.len() - 1].halved();
        levels.push(next);
    }
    levels
}

fn turned_about_the_middle(reference: &Grey, angle: f32) -> Warp {
    let (sin, cos) = angle.sin_cos();
    let (x, y) = ((reference.width - 1) as f32 / 2.0, (reference.height - 1) as f32 / 2.0);
    Warp([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])
}

/// Correlation of the reference with what `warp` shows of the picture; −1 where too little of it is inside.
fn correlate(reference: &Grey, picture: &Grey, warp: Warp) -> f32 {
    let (mut count, mut t, mut i, mut tt, mut ii, mut ti) = (0_u32, 0.0, 0.0, 0.0, 0.0, 0.0);
    for y in 0..reference.height {
        for x in 0..reference.width {
            let (from_x, from_y) = warp.apply(x as f32, y as f32);
            let Some(seen) = picture.at(from_x, from_y) else { continue };
            let wanted = reference.data[y * reference.width + x];
            count += 1;
            t += wanted;
            i += seen;
            tt += wanted * wanted;
            ii += seen * seen;
            ti += wanted * seen;
        }
    }
    let n = count as f32;
    if n < OVERLAP_MIN * reference.data.len() as f32 {
        return -1.0;
    }
    let (variance_t, variance_i) = (tt - t * t / n, ii - i * i / n);
    let scale = (variance_t.max(0.0) * variance_i.max(0.0)).sqrt();
    if scale > 1e-3 * n { (ti - t * i / n) / scale } else { -1.0 }
}

/// Values of the reference, of the picture and its derivative by each parameter, where both are.
struct Overlap {
    reference: Vec<f32>,
    picture: Vec<f32>,
    /// `[pixels, parameters]`.
    jacobian: Vec<f32>,
}

/// Climb from `start` to the nearest maximum of the correlation; the place found and its correlation.
fn climb(reference: &Grey, picture: &Grey, start: Warp, motion: Motion) -> (f32, Warp) {
    let mut best = (correlate(reference, picture, start), start);
    let mut warp = start;
    for _ in 0..STEPS_MAX {
        let overlap = overlap_of(reference, picture, warp, motion);
        if (overlap.reference.len() as f32) < OVERLAP_MIN * reference.data.len() as f32 {
            break;
        }
        let Some(step) = step_of(&overlap, parameters(motion)) else { break };
        let next = moved(warp, &step, motion);
        let corners = [(0, 0), (reference.width, 0), (0, reference.height), (reference.width, reference.height)];
        let movement = corners.map(|(x, y)| {
            let ((ax, ay), (bx, by)) = (warp.apply(x as f32, y as f32), next.apply(x as f32, y as f32));
            (ax - bx).hypot(ay - by)
        });
        let farthest = movement.into_iter().fold(0.0, f32::max);
        if !farthest.is_finite() {
            break;
        }
        warp = next;
        let correlation = correlate(reference, picture, warp);
        if correlation > best.0 {
            best = (correlation, warp);
        }
        if farthest < STEP_PX_MIN {
            break;
        }
    }
    best
}

fn parameters(motion: Motion) -> usize {
    match motion {
        Motion::Translation => 2,
        Motion::Rigid => 3,
        Motion::Affine => 6,
    }
}

fn overlap_of(reference: &Grey, picture: &Grey, warp: Warp, motion: Motion) -> Overlap {
    let mut overlap = Overlap { reference: Vec::new(), picture: Vec::new(), jacobian: Vec::new() };
    let angle = warp.0[3].atan2(warp.0[0]);
    let (sin, cos) = angle.sin_cos();
    for y in 0..reference.height {
        for x in 0..reference.width {
            let (fx, fy) = (x as f32, y as f32);
            let (u, v) = warp.apply(fx, fy);
            let Some(seen) = picture.at(u, v) else { continue };
            let slope = |ahead: Option<f32>, behind: Option<f32>| match (ahead, behind) {
                (Some(ahead), Some(behind)) => (ahead - behind) / 2.0,
                _ => 0.0,
            };
            let gx = slope(picture.at(u + 1.0, v), picture.at(u - 1.0, v));
            let gy = slope(picture.at(u, v + 1.0), picture.at(u, v - 1.0));
            overlap.reference.push(reference.data[y * reference.width + x]);
            overlap.picture.push(seen);
            match motion {
                Motion::Translation => overlap.jacobian.extend([gx, gy]),
                Motion::Rigid => {
                    let by_angle = gx * (-sin * fx - cos * fy) + gy * (cos * fx - sin * fy);
                    overlap.jacobian.extend([by_angle, gx, gy]);
                }
                Motion::Affine => overlap.jacobian.extend([gx * fx, gx * fy, gx, gy * fx, gy * fy, gy]),
            }
        }
    }
    overlap
}

/// Equation 24 of the paper: `Δp = H⁻¹ Gᵀ (λ ī_r − ī_w)`, all brought to mean 0; `None` where it is not defined.
fn step_of(overlap: &Overlap, count: usize) -> Option<Vec<f64>> {
    let n = overlap.reference.len() as f64;
    let mean = |values: &[f32]| values.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    let (mean_r, mean_i) = (mean(&overlap.reference), mean(&overlap.picture));
    let mut hessian = vec![0.0_f64; count * count];
    let (mut with_i, mut with_r) = (vec![0.0_f64; count], vec![0.0_f64; count]);
    let (mut norm_i, mut correlation) = (0.0, 0.0);
    let rows = overlap.jacobian.chunks_exact(count).zip(&overlap.reference).zip(&overlap.picture);
    for ((row, reference), picture) in rows {
        let (r, i) = (f64::from(*reference) - mean_r, f64::from(*picture) - mean_i);
        norm_i += i * i;
        correlation += r * i;
        for (a, value) in row.iter().enumerate() {
            let value = f64::from(*value);
            with_i[a] += value * i;
            with_r[a] += value * r;
            for (b, other) in row.iter().enumerate() {
                hessian[a * count + b] += value * f64::from(*other);
            }
        }
    }
    let by_hessian = solve(hessian.clone(), &with_i)?;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let below = correlation - dot(&with_r, &by_hessian);
    if below <= 0.0 {
        return None;
    }
    let lambda = (norm_i - dot(&with_i, &by_hessian)) / below;
    let right: Vec<f64> = with_r.iter().zip(&with_i).map(|(r, i)| lambda * r - i).collect();
    solve(hessian, &right)
}

/// Gaussian elimination with pivots; `None` for a singular matrix.
fn solve(mut matrix: Vec<f64>, right: &[f64]) -> Option<Vec<f64>> {
    let n = right.len();
    let mut values = right.to_vec();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&a, &b| matrix[a * n + column].abs().total_cmp(&matrix[b * n + column].abs()))?;
        if matrix[pivot * n + column].abs() < 1e-9 {
            return None;
        }
        for k in 0..n {
            matrix.swap(column * n + k, pivot * n + k);
        }
        values.swap(column, pivot);
        for row in column + 1..n {
            let factor = matrix[row * n + column] / matrix[column * n + column];
            for k in column..n {
                matrix[row * n + k] -= factor * matrix[column * n + k];
            }
            values[row] -= factor * values[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| matrix[row * n + k] * values[k]).sum();
        values[row] = (values[row] - known) / matrix[row * n + row];
    }
    values.iter().all(|value| value.is_finite()).then_some(values)
}

#[expect(clippy::cast_possible_truncation, reason = "pixels; f32 is exact enough")]
fn moved(warp: Warp, step: &[f64], motion: Motion) -> Warp {
    let step: Vec<f32> = step.iter().map(|value| *value as f32).collect();
    let [a, b, c, d, e, f] = warp.0;
    match motion {
        Motion::Translation => Warp([a, b, c + step[0], d, e, f + step[1]]),
        Motion::Rigid => {
            let (sin, cos) = (d.atan2(a) + step[0]).sin_cos();
            Warp([cos, -sin, c + step[1], sin, cos, f + step[2]])
        }
        Motion::Affine => Warp([a + step[0], b + step[1], c + step[2], d + step[3], e + step[4], f + step[5]]),
    }
}

/// Bilinear, with the border repeated outside.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture first")]
fn sample(image: &Image, x: f32, y: f32) -> [u8; 3] {
    let (width, height) = (image.width_px() as usize, image.height_px() as usize);
    let (x, y) = (x.clamp(0.0, (width - 1) as f32), y.clamp(0.0, (height - 1) as f32));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(width - 1), (y0 + 1).min(height - 1));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let pixel = |x: usize, y: usize| &image.bgr()[(y * width + x) * 3..][..3];
    let (a, b, c, d) = (pixel(x0, y0), pixel(x1, y0), pixel(x0, y1), pixel(x1, y1));
    std::array::from_fn(|channel| {
        let [a, b, c, d] = [a, b, c, d].map(|pixel| f32::from(pixel[channel]));
        let (top, bottom) = (a + (b - a) * fx, c + (d - c) * fx);
        (top + (bottom - top) * fy + 0.5) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::{Aligner, Image, Motion, Warp};

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
    /// A plate with holes, bright on dark, as seen through `warp` (from this picture to the plate).
    fn plate(width: u32, height: u32, warp: Warp, gain: f32) -> Image {
        let mut bgr = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let (u, v) = warp.apply(x as f32, y as f32);
                let holes = [(90.0, 50.0, 14.0), (210.0, 60.0, 20.0), (140.0, 120.0, 17.0), (250.0, 140.0, 9.0)];
                let is_hole = holes.iter().any(|&(cx, cy, r): &(f32, f32, f32)| (u - cx).hypot(v - cy) < r);
                let is_plate = u > 40.0 && u < 280.0 && v > 25.0 && v < 175.0;
                let level = if is_hole {
                    60.0
                } else if is_plate {
                    190.0
                } else {
                    30.0
                };
                let shade = level + 12.0 * (u / 17.0).sin() + 9.0 * (v / 23.0).cos();
                bgr.extend([(shade * gain).clamp(0.0, 255.0) as u8; 3]);
            }
        }
        Image::from_bgr(width, height, bgr).unwrap()
    }

    fn aligner(motion: Motion) -> Aligner {
        let reference = plate(320, 200, Warp::IDENTITY, 1.0);
        Aligner::new(Aligner::reduce(&reference), (320, 200), motion)
    }

    /// Largest error over the reference's corners, pixels.
    fn error_px(found: Warp, expected: Warp) -> f32 {
        let corners = [(0.0, 0.0), (319.0, 0.0), (0.0, 199.0), (319.0, 199.0)];
        let errors = corners.map(|(x, y)| {
            let ((ax, ay), (bx, by)) = (found.apply(x, y), expected.apply(x, y));
            (ax - bx).hypot(ay - by)
        });
        errors.into_iter().fold(0.0, f32::max)
    }

    fn check(motion: Motion, truth: Warp, gain: f32, error_px_max: f32) {
        let seen = plate(320, 200, truth.inverse().unwrap(), gain);
        let (correlation, warp) = aligner(motion).find(&seen);
        assert!(correlation > 0.95, "{motion:?}: {correlation}");
        assert!(error_px(warp, truth) < error_px_max, "{motion:?}: {warp:?} instead of {truth:?}");
        let straight = aligner(motion).straighten(&seen, warp);
        assert_eq!((straight.width_px(), straight.height_px()), (320, 200));
    }

    #[test]
    fn shifts_turns_and_scales_are_found_to_a_few_pixels() {
        check(Motion::Translation, Warp([1.0, 0.0, 31.0, 0.0, 1.0, -17.5]), 1.0, 1.0);
        let (sin, cos) = 8.0_f32.to_radians().sin_cos();
        check(Motion::Rigid, Warp([cos, -sin, 14.0, sin, cos, -9.0]), 1.0, 1.5);
        check(Motion::Affine, Warp([1.04, 0.02, -6.0, -0.01, 0.97, 5.0]), 1.0, 3.0);
    }

    #[test]
    fn another_exposure_does_not_move_the_part() {
        check(Motion::Translation, Warp([1.0, 0.0, 9.0, 0.0, 1.0, 4.0]), 0.6, 1.0);
    }

    #[test]
    fn a_picture_of_another_size_is_brought_to_the_references() {
        let half = plate(160, 100, Warp([2.0, 0.0, 0.5, 0.0, 2.0, 0.5]), 1.0);
        let (correlation, warp) = aligner(Motion::Translation).find(&half);
        assert!(correlation > 0.95, "{correlation}");
        assert!(error_px(warp, Warp([0.5, 0.0, -0.25, 0.0, 0.5, -0.25])) < 0.8, "{warp:?}");
    }

    #[test]
    fn another_scene_and_an_empty_one_do_not_correlate() {
        let mut random = fastrand::Rng::with_seed(8);
        let noise = Image::from_bgr(320, 200, (0..320 * 200 * 3).map(|_| random.u8(..)).collect()).unwrap();
        let flat = Image::from_bgr(320, 200, vec![90; 320 * 200 * 3]).unwrap();
        for (what, image) in [("noise", noise), ("flat", flat)] {
            let (correlation, _) = aligner(Motion::Rigid).find(&image);
            assert!(correlation < 0.6, "{what}: {correlation}");
        }
    }

    #[test]
    fn a_warp_and_its_inverse_cancel() {
        let warp = Warp([1.1, 0.2, 5.0, -0.1, 0.9, -3.0]);
        let (x, y) = warp.apply(17.0, 4.0);
        let (back_x, back_y) = warp.inverse().unwrap().apply(x, y);
        assert!((back_x - 17.0).abs() < 1e-4 && (back_y - 4.0).abs() < 1e-4);
        assert_eq!(Warp([0.0; 6]).inverse(), None);
    }
}
