//! How an item's edges run: evidence that tells a part from its mirror image, which an embedding pools away. Pure.
//!
//! A box is stretched to a square and described by its oriented gradients (Dalal and Triggs 2005): 12 × 12 cells of nine
//! unsigned directions, each cell scaled by the energy around it. A template is described once for each of 24 turns, its
//! own ground left out; an item is like a part as its best turn of its best view. A mirrored part fits no turn well.
//! Thread: any. Overload: none; one description takes about a third of a millisecond.

use std::f32::consts::{PI, TAU};

use crate::types::{BoundingBox, Image};

/// Side of the square, px.
const SIDE_PX: usize = 96;
const CELL_PX: usize = 8;
/// Cells a side.
const CELLS: usize = SIDE_PX / CELL_PX;
/// Directions over half a turn; an edge has no sign, since parts are lighter or darker than their ground.
const BINS: usize = 9;
/// Values of one description.
pub(super) const VALUES: usize = CELLS * CELLS * BINS;
/// Turns of a template, 15° apart; 30° lost a tenth of the mirror pairs, 10° gained none.
pub(super) const TURNS: usize = 24;
/// Gaussian, σ 1 px.
const BLUR: [f32; 5] = [0.061_36, 0.244_77, 0.387_74, 0.244_77, 0.061_36];
/// A pixel whose channel differs by more from the ground's colour belongs to the part.
const GROUND_STEP: f32 = 10.0;
/// Energy of a cell below which its directions are noise, (levels per px)².
const NOISE_ENERGY: f32 = 1.5;

/// The edges of one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape(Vec<f32>);

/// One turn of a template: its edges in 255ths, and the sum of their lengths over the cells.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnedView {
    pub(super) total: f32,
    pub(super) edges: Vec<u8>,
}

impl Shape {
    /// The edges inside `bbox`, px of `image`, turned back where that is seen in a mirror; what lies outside the image repeats
    /// its border.
    #[must_use]
    pub fn of(image: &Image, bbox: &BoundingBox, is_mirrored: bool) -> Self {
        let (x_step, y_step) = (bbox.width_px().max(1.0) / SIDE_PX as f32, bbox.height_px().max(1.0) / SIDE_PX as f32);
        let (x, y) = (bbox.x1 + 0.5 * x_step - 0.5, bbox.y1 + 0.5 * y_step - 0.5);
        let pixel = |x: i32, y: i32| pixel(image, x, y);
        let last = x + x_step * (SIDE_PX - 1) as f32;
        let (x, x_step) = if is_mirrored { (last, -x_step) } else { (x, x_step) };
        let square = sample([x_step, 0.0, x, 0.0, y_step, y], pixel);
        let mut edges = described(blurred(square));
        for cell in edges.chunks_exact_mut(BINS) {
            let length = length(cell) + 1e-3;
            cell.iter_mut().for_each(|value| *value /= length);
        }
        Self(edges)
    }

    /// How well the edges of `edges` (in 255ths, their lengths summing to `total`) are met: the mean cosine of the cells,
    /// weighted by the template's edges, 0 to 1.
    pub(super) fn likeness(&self, total: f32, edges: &[u8]) -> f32 {
        const LANES: usize = 16;
        let mut sums = [0.0_f32; LANES];
        for (own, other) in self.0.chunks_exact(LANES).zip(edges.chunks_exact(LANES)) {
            for lane in 0..LANES {
                sums[lane] += own[lane] * f32::from(other[lane]);
            }
        }
        if total > 0.0 { sums.iter().sum::<f32>() / (255.0 * total) } else { 0.0 }
    }
}

/// Every turn of a picture of one part on an even ground, whose colour is that of its top left pixel; none where nothing
/// differs from it.
#[must_use]
pub fn turned_views(image: &Image) -> Vec<TurnedView> {
    let ground = pixel(image, 0, 0);
    let is_part = |colour: [f32; 3]| colour.iter().zip(ground).any(|(a, b)| (a - b).abs() > GROUND_STEP);
    let outline = outline(image, is_part);
    if outline.is_empty() {
        return Vec::new();
    }
    let (width, height) = (image.width_px().cast_signed(), image.height_px().cast_signed());
    let within = |x: i32, y: i32| x >= 0 && y >= 0 && x < width && y < height;
    let colour_at = |x: i32, y: i32| if within(x, y) { pixel(image, x, y) } else { ground };
    let cover_at = |x: i32, y: i32| [if is_part(colour_at(x, y)) { 1.0 } else { 0.0 }; 3];
    (0..TURNS)
        .map(|turn| {
            let map = turned_square(&outline, turn as f32 / TURNS as f32 * TAU);
            let mut edges = described(blurred(sample(map, colour_at)));
            let cover = sample(map, cover_at);
            let mut total = 0.0;
            for (at, cell) in edges.chunks_exact_mut(BINS).enumerate() {
                let covered = cell_mean(&cover, at);
                cell.iter_mut().for_each(|value| *value *= covered);
                total += length(cell);
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255 by the clamp")]
            let edges = edges.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
            TurnedView { total, edges }
        })
        .collect()
}

/// The leftmost and rightmost pixel of the part in each row: enough to bound it however it is turned.
fn outline(image: &Image, is_part: impl Fn([f32; 3]) -> bool) -> Vec<[f32; 2]> {
    let mut points = Vec::new();
    for y in 0..image.height_px().cast_signed() {
        let mut row = (0..image.width_px().cast_signed()).filter(|&x| is_part(pixel(image, x, y)));
        if let Some(first) = row.next() {
            points.push([first as f32, y as f32]);
            points.push([row.next_back().unwrap_or(first) as f32, y as f32]);
        }
    }
    points
}

/// Square → picture, for the picture turned by `angle` and the box of its part stretched to the square:
/// `x = m0 i + m1 j + m2`, `y = m3 i + m4 j + m5`.
fn turned_square(outline: &[[f32; 2]], angle: f32) -> [f32; 6] {
    let (sin, cos) = angle.sin_cos();
    let turned = outline.iter().map(|[x, y]| [cos * x + sin * y, cos * y - sin * x]);
    let (mut low, mut high) = ([f32::MAX; 2], [f32::MIN; 2]);
    for point in turned {
        for axis in 0..2 {
            (low[axis], high[axis]) = (low[axis].min(point[axis]), high[axis].max(point[axis]));
        }
    }
    let step = [0, 1].map(|axis| (high[axis] - low[axis] + 1.0) / SIDE_PX as f32);
    let start = [0, 1].map(|axis| low[axis] + 0.5 * step[axis] - 0.5);
    let back = |u: f32, v: f32| [cos * u - sin * v, sin * u + cos * v];
    let ([x0, y0], [xi, yi], [xj, yj]) = (back(start[0], start[1]), back(step[0], 0.0), back(0.0, step[1]));
    [xi, xj, x0, yi, yj, y0]
}

/// The square that `map` leads to, [`SIDE_PX`]² BGR, bilinear.
fn sample(map: [f32; 6], pixel: impl Fn(i32, i32) -> [f32; 3]) -> Vec<[f32; 3]> {
    let mut square = Vec::with_capacity(SIDE_PX * SIDE_PX);
    for j in 0..SIDE_PX {
        for i in 0..SIDE_PX {
            let (i, j) = (i as f32, j as f32);
            let (x, y) = (map[0] * i + map[1] * j + map[2], map[3] * i + map[4] * j + map[5]);
            let (right, down) = (x - x.floor(), y - y.floor());
            #[expect(clippy::cast_possible_truncation, reason = "a float too large for an i32 becomes the largest")]
            let (x, y) = (x.floor() as i32, y.floor() as i32);
            let (x1, y1) = (x.saturating_add(1), y.saturating_add(1));
            let corners = [pixel(x, y), pixel(x1, y), pixel(x, y1), pixel(x1, y1)];
            let mix = |a: f32, b: f32, share: f32| a + (b - a) * share;
            square.push(std::array::from_fn(|c| {
                mix(mix(corners[0][c], corners[1][c], right), mix(corners[2][c], corners[3][c], right), down)
            }));
        }
    }
    square
}

fn pixel(image: &Image, x: i32, y: i32) -> [f32; 3] {
    let inside = |at: i32, count: u32| at.clamp(0, count.cast_signed() - 1).cast_unsigned();
    let (x, y) = (inside(x, image.width_px()) as usize, inside(y, image.height_px()));
    let bgr = &image.row(y)[x * 3..x * 3 + 3];
    [f32::from(bgr[0]), f32::from(bgr[1]), f32::from(bgr[2])]
}

/// Smoothed along rows and columns.
fn blurred(square: Vec<[f32; 3]>) -> Vec<[f32; 3]> {
    let along = |square: &[[f32; 3]], is_row: bool| -> Vec<[f32; 3]> {
        let taps = |at: usize| (0..BLUR.len()).map(move |tap| (at + tap).saturating_sub(2).min(SIDE_PX - 1));
        let smooth = |at: usize| {
            let (x, y) = (at % SIDE_PX, at / SIDE_PX);
            let mut sum = [0.0; 3];
            for (from, weight) in taps(if is_row { x } else { y }).zip(BLUR) {
                let source = square[if is_row { y * SIDE_PX + from } else { from * SIDE_PX + x }];
                (0..3).for_each(|c| sum[c] += weight * source[c]);
            }
            sum
        };
        (0..square.len()).map(smooth).collect()
    };
    along(&along(&square, true), false)
}

/// `[CELLS, CELLS, BINS]`: mean gradient by direction, each cell scaled by the energy of its 3 × 3 neighbourhood.
fn described(square: Vec<[f32; 3]>) -> Vec<f32> {
    let mut edges = vec![0.0_f32; VALUES];
    for y in 0..SIDE_PX {
        for x in 0..SIDE_PX {
            let at = |x: usize, y: usize| square[y.min(SIDE_PX - 1) * SIDE_PX + x.min(SIDE_PX - 1)];
            let (left, right) = (at(x.saturating_sub(1), y), at(x + 1, y));
            let (above, below) = (at(x, y.saturating_sub(1)), at(x, y + 1));
            // The channel with the strongest edge, since a part and its ground may differ in hue alone.
            let steps = (0..3).map(|c| [right[c] - left[c], below[c] - above[c]]);
            let energy = |[dx, dy]: &[f32; 2]| dx * dx + dy * dy;
            let Some(step) = steps.max_by(|a, b| energy(a).total_cmp(&energy(b))) else { continue };
            let strength = energy(&step).sqrt() / (CELL_PX * CELL_PX) as f32;
            let direction = (step[1].atan2(step[0]) / PI).rem_euclid(1.0) * BINS as f32;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to BINS, cut to the last")]
            let bin = (direction as usize).min(BINS - 1);
            let share = direction - bin as f32;
            let cell = (y / CELL_PX * CELLS + x / CELL_PX) * BINS;
            edges[cell + bin] += strength * (1.0 - share);
            edges[cell + (bin + 1) % BINS] += strength * share;
        }
    }
    let energies: Vec<f32> = edges.chunks_exact(BINS).map(|cell| length(cell).powi(2)).collect();
    for (at, cell) in edges.chunks_exact_mut(BINS).enumerate() {
        let (x, y) = (at % CELLS, at / CELLS);
        let near = |at: usize, by: usize| (at + by).saturating_sub(1).min(CELLS - 1);
        let around: f32 = (0..9).map(|k| energies[near(y, k / 3) * CELLS + near(x, k % 3)]).sum();
        let scale = (around / 9.0 * BINS as f32 + NOISE_ENERGY).sqrt();
        cell.iter_mut().for_each(|value| *value /= scale);
    }
    edges
}

fn length(cell: &[f32]) -> f32 {
    cell.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// Mean of the first channel over the cell at `at`.
fn cell_mean(square: &[[f32; 3]], at: usize) -> f32 {
    let (x, y) = (at % CELLS * CELL_PX, at / CELLS * CELL_PX);
    let row = |j: usize| square[(y + j) * SIDE_PX + x..][..CELL_PX].iter().map(|pixel| pixel[0]).sum::<f32>();
    (0..CELL_PX).map(row).sum::<f32>() / (CELL_PX * CELL_PX) as f32
}

#[cfg(test)]
mod tests {
    use super::{Shape, TURNS, turned_views};
    use crate::types::{BoundingBox, Image};

    /// An L: a long upright bar with a foot to the right (or, mirrored, to the left), turned by quarter turns.
    fn ell(is_mirrored: bool, quarters: u32, part: u8, ground: u8) -> Image {
        const SIDE: u32 = 80;
        let is_part = |x: u32, y: u32| {
            let (mut x, mut y) = (x, y);
            for _ in 0..quarters {
                (x, y) = (y, SIDE - 1 - x);
            }
            let x = if is_mirrored { SIDE - 1 - x } else { x };
            ((24..36).contains(&x) && (10..70).contains(&y)) || ((24..56).contains(&x) && (56..70).contains(&y))
        };
        let level = |at: u32| if is_part(at % SIDE, at / SIDE) { part } else { ground };
        Image::from_bgr(SIDE, SIDE, (0..SIDE * SIDE).flat_map(|at| [level(at); 3]).collect()).unwrap()
    }

    fn likeness(item: &Image, template: &Image) -> f32 {
        let found = item.bgr().chunks_exact(3).zip(0..).filter(|(pixel, _)| pixel[0] != item.bgr()[0]);
        let (mut x1, mut y1, mut x2, mut y2) = (u32::MAX, u32::MAX, 0, 0);
        for (_, at) in found {
            let (x, y) = (at % item.width_px(), at / item.width_px());
            (x1, y1, x2, y2) = (x1.min(x), y1.min(y), x2.max(x + 1), y2.max(y + 1));
        }
        let shape = Shape::of(item, &BoundingBox::new(x1 as f32, y1 as f32, x2 as f32, y2 as f32), false);
        turned_views(template).iter().map(|view| shape.likeness(view.total, &view.edges)).fold(0.0, f32::max)
    }

    #[test]
    fn a_turned_part_is_like_itself_and_less_like_its_mirror_image() {
        let (left, right) = (ell(false, 0, 220, 40), ell(true, 0, 220, 40));
        for quarters in 0..4 {
            // Darker than its ground, too: an edge has no sign.
            let item = ell(false, quarters, 60, 200);
            let (own, mirrored) = (likeness(&item, &left), likeness(&item, &right));
            assert!(own > 0.9 && own > mirrored + 0.1, "{quarters} quarter turns: {own} and {mirrored}");
        }
    }

    #[test]
    fn what_is_seen_in_a_mirror_is_turned_back() {
        let (direct, mirrored) = (ell(false, 0, 220, 40), ell(true, 0, 220, 40));
        // Where the part is seen, and where in the picture that is mirrored.
        let (bbox, opposite) = (BoundingBox::new(24.0, 10.0, 56.0, 70.0), BoundingBox::new(24.0, 10.0, 56.0, 70.0));
        let (as_seen, turned_back) = (Shape::of(&direct, &bbox, false), Shape::of(&mirrored, &opposite, true));
        let apart = |a: &Shape, b: &Shape| a.0.iter().zip(&b.0).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart(&as_seen, &turned_back) < 1e-5, "{}", apart(&as_seen, &turned_back));
        assert!(apart(&as_seen, &Shape::of(&mirrored, &opposite, false)) > 0.5, "an L is not its own mirror image");
    }

    #[test]
    fn even_pictures_tiny_ones_and_boxes_outside_are_described_without_a_panic() {
        let even = Image::from_bgr(20, 20, vec![90; 20 * 20 * 3]).unwrap();
        assert!(turned_views(&even).is_empty());
        let one = Image::from_bgr(1, 1, vec![7; 3]).unwrap();
        for bbox in [
            BoundingBox::new(0.0, 0.0, 0.0, 0.0),
            BoundingBox::new(-1e9, -1e9, 1e9, 1e9),
            BoundingBox::new(50.0, 50.0, 60.0, 51.0),
        ] {
            for image in [&one, &even] {
                let shape = Shape::of(image, &bbox, false);
                assert!(shape.0.iter().all(|value| value.is_finite()));
            }
        }
        let views = turned_views(&ell(false, 0, 220, 40));
        assert_eq!(views.len(), TURNS);
        assert_eq!(Shape::of(&even, &BoundingBox::whole(20, 20), false).likeness(views[0].total, &views[0].edges), 0.0);
    }
}
