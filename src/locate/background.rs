//! What the picture would be without parts, estimated from the picture itself.
//!
//! Three estimates stand side by side and a pixel belongs to the background when one of them explains it: the median of
//! its row (rails along a belt), of its column (seams across it), and of its neighbourhood (uneven light, grain).
//! Each explains shadows too: the same colour, darker by no more than the shadow ratio.

use super::planes::Planes;

/// Side of a neighbourhood's cell, working pixels.
const CELL: usize = 32;
/// Cells to each side that make a neighbourhood.
const REACH: usize = 2;
/// Every nth pixel and row counts in a cell's median.
const CELL_STEP: usize = 4;
/// Every nth row counts in a column's median.
const COLUMN_STEP: usize = 3;

/// Luma, red-green and blue-yellow of one estimate at one place.
type Colour = [f32; 3];

#[derive(Debug)]
pub(super) struct Background {
    rows: Vec<Colour>,
    columns: Lanes,
    cells: Vec<Colour>,
    cells_across: usize,
    cells_down: usize,
}

/// An estimate for each pixel of a row, plane by plane for the vector unit.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    planes: [Vec<f32>; 3],
    /// 1 / luma.
    inverse: Vec<f32>,
}

impl Lanes {
    pub(super) fn with_width(width: usize) -> Self {
        Self { planes: std::array::from_fn(|_| vec![0.0; width]), inverse: vec![0.0; width] }
    }

    fn invert(&mut self) {
        for (inverse, &luma) in self.inverse.iter_mut().zip(&self.planes[0]) {
            *inverse = 1.0 / if luma > 1.0 { luma } else { 1.0 };
        }
    }
}

/// Weights of a difference and what a shadow may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// 1 / (luma threshold)².
    pub luma: f32,
    /// 1 / (colour threshold)².
    pub colour: f32,
    /// Luma of the deepest shadow over that of the lit background, 0 to 1.
    pub shadow_ratio: f32,
}

impl Background {
    pub(super) fn of(planes: &Planes) -> Self {
        let (width, height) = (planes.width, planes.height);
        let sources = [&planes.luma, &planes.red_green, &planes.blue_yellow];
        let rows = (0..height).map(|y| sources.map(|plane| row_median(&plane[y * width..][..width]))).collect();
        let mut columns = Lanes::with_width(width);
        columns.planes = sources.map(|plane| column_medians(plane, width));
        columns.invert();
        let (cells_across, cells_down) = (width.div_ceil(CELL), height.div_ceil(CELL));
        let cells = cells(planes, cells_across, cells_down);
        Self { rows, columns, cells: neighbourhoods(&cells, cells_across, cells_down), cells_across, cells_down }
    }

    /// Squared differences of row `y` to the estimate that explains each pixel best, in units of the thresholds: above
    /// 1 is no background. `lanes` is scratch as wide as the picture.
    pub(super) fn score_row(&self, planes: &Planes, y: usize, scale: Scale, lanes: &mut Lanes, scores: &mut [f32]) {
        scores.fill(f32::INFINITY);
        explain(planes, y, &self.columns, scale, scores);
        for (plane, value) in lanes.planes.iter_mut().zip(self.rows[y]) {
            plane.fill(value);
        }
        lanes.invert();
        explain(planes, y, lanes, scale, scores);
        self.interpolate_row(y, lanes);
        explain(planes, y, lanes, scale, scores);
    }

    /// The neighbourhoods' estimate for row `y`, linear between the cells' centres.
    fn interpolate_row(&self, y: usize, lanes: &mut Lanes) {
        let (top, bottom, share) = between(y, self.cells_down);
        for (channel, plane) in lanes.planes.iter_mut().enumerate() {
            let cell = |column: usize| {
                let upper = self.cells[top * self.cells_across + column][channel];
                let lower = self.cells[bottom * self.cells_across + column][channel];
                upper + (lower - upper) * share
            };
            let centre = (CELL / 2).min(plane.len());
            let (edge, inner) = plane.split_at_mut(centre);
            edge.fill(cell(0));
            for (column, segment) in inner.chunks_mut(CELL).enumerate() {
                let first = cell(column.min(self.cells_across - 1));
                let step = (cell((column + 1).min(self.cells_across - 1)) - first) / CELL as f32;
                for (x, value) in segment.iter_mut().enumerate() {
                    *value = first + step * x as f32;
                }
            }
        }
        lanes.invert();
    }
}

/// The two cells whose centres enclose `position`, and the share of the second.
fn between(position: usize, cells: usize) -> (usize, usize, f32) {
    let centred = position.saturating_sub(CELL / 2);
    let first = (centred / CELL).min(cells - 1);
    (first, (first + 1).min(cells - 1), (centred % CELL) as f32 / CELL as f32)
}

/// Levels of every plane lie between; ten halvings find a median to a level.
const LEVEL_MIN: f32 = -512.0;
const HALVINGS: u32 = 10;

/// Median to one level, by halving the range: counting runs in vector registers where sorting does not.
fn row_median(values: &[f32]) -> f32 {
    let (mut low, mut span) = (LEVEL_MIN, -2.0 * LEVEL_MIN);
    for _ in 0..HALVINGS {
        span /= 2.0;
        let middle = low + span;
        let below: u32 = values.iter().map(|&value| u32::from(value < middle)).sum();
        if (below as usize) * 2 <= values.len() {
            low = middle;
        }
    }
    low + span / 2.0
}

/// [`row_median`] of every column at once, on every third row.
fn column_medians(plane: &[f32], width: usize) -> Vec<f32> {
    let mut low = vec![LEVEL_MIN; width];
    let mut below = vec![0_u32; width];
    let mut span = -2.0 * LEVEL_MIN;
    for _ in 0..HALVINGS {
        span /= 2.0;
        below.fill(0);
        let mut rows = 0;
        for row in plane.chunks_exact(width).step_by(COLUMN_STEP) {
            rows += 1;
            for ((below, &value), &low) in below.iter_mut().zip(row).zip(&low) {
                *below += u32::from(value < low + span);
            }
        }
        for (low, &below) in low.iter_mut().zip(&below) {
            *low += if below * 2 <= rows { span } else { 0.0 };
        }
    }
    low.iter().map(|low| low + span / 2.0).collect()
}

/// Lower `scores` where `lanes` explains row `y` better.
fn explain(planes: &Planes, y: usize, lanes: &Lanes, scale: Scale, scores: &mut [f32]) {
    let width = scores.len();
    let range = y * planes.width..y * planes.width + width;
    let (luma, red_green, blue_yellow) =
        (&planes.luma[range.clone()], &planes.red_green[range.clone()], &planes.blue_yellow[range]);
    let [luma_bg, red_green_bg, blue_yellow_bg] = lanes.planes.each_ref().map(|plane| &plane[..width]);
    let inverse = &lanes.inverse[..width];
    for x in 0..width {
        let ratio = luma[x] * inverse[x];
        let ratio = if ratio > scale.shadow_ratio { ratio } else { scale.shadow_ratio };
        let shade = if ratio < 1.0 { ratio } else { 1.0 };
        let light = luma[x] - luma_bg[x] * shade;
        let first = red_green[x] - red_green_bg[x] * shade;
        let second = blue_yellow[x] - blue_yellow_bg[x] * shade;
        let score = light * light * scale.luma + (first * first + second * second) * scale.colour;
        scores[x] = if score < scores[x] { score } else { scores[x] };
    }
}

fn cells(planes: &Planes, across: usize, down: usize) -> Vec<Colour> {
    let sources = [&planes.luma, &planes.red_green, &planes.blue_yellow];
    let mut values = Vec::with_capacity(CELL * CELL);
    let mut cells = Vec::with_capacity(across * down);
    for row in 0..down {
        for column in 0..across {
            let columns = column * CELL..((column + 1) * CELL).min(planes.width);
            let rows = || (row * CELL..((row + 1) * CELL).min(planes.height)).step_by(CELL_STEP);
            cells.push(sources.map(|plane| {
                let pixels = rows().flat_map(|y| plane[y * planes.width..][columns.clone()].iter().step_by(CELL_STEP));
                median(&mut values, pixels)
            }));
        }
    }
    cells
}

fn neighbourhoods(cells: &[Colour], across: usize, down: usize) -> Vec<Colour> {
    let mut values = Vec::new();
    let mut out = Vec::with_capacity(cells.len());
    for row in 0..down {
        for column in 0..across {
            let rows = row.saturating_sub(REACH)..(row + REACH + 1).min(down);
            let columns = column.saturating_sub(REACH)..(column + REACH + 1).min(across);
            out.push(std::array::from_fn(|channel| {
                let near = rows.clone().flat_map(|y| cells[y * across..][columns.clone()].iter());
                median(&mut values, near.map(|cell| &cell[channel]))
            }));
        }
    }
    out
}

fn median<'a>(scratch: &mut Vec<f32>, values: impl Iterator<Item = &'a f32>) -> f32 {
    scratch.clear();
    scratch.extend(values);
    if scratch.is_empty() {
        return 0.0;
    }
    let middle = scratch.len() / 2;
    *scratch.select_nth_unstable_by(middle, f32::total_cmp).1
}
