//! Patch distances → pixel map: bilinear up-sampling and a Gaussian, both separable, folded into one matrix per axis.

use super::patches::Interpolation;

/// Standard deviation of the smoothing, in pixels of an input of [`SIGMA_AT_PX`]; it scales with the input.
const SIGMA_PX: f32 = 4.0;
const SIGMA_AT_PX: f32 = 224.0;

/// Anomaly of each pixel of the model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreMap {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`, on the scale of patch distances, ≥ 0.
    pub data: Vec<f32>,
}

/// Draws maps of one size from grids of one size.
#[derive(Debug)]
pub struct MapDrawer {
    rows: Axis,
    columns: Axis,
    /// Grid rows already spread over all columns, `[grid height, width]`.
    spread: Vec<f32>,
}

impl MapDrawer {
    /// From a grid to a map, each (width, height).
    #[must_use]
    pub fn new(grid: (usize, usize), map: (usize, usize)) -> Self {
        let sigma = SIGMA_PX * map.0.max(map.1) as f32 / SIGMA_AT_PX;
        let (columns, rows) = (Axis::new(grid.0, map.0, sigma), Axis::new(grid.1, map.1, sigma));
        Self { spread: vec![0.0; grid.1 * map.0], rows, columns }
    }

    /// `distances` is `[grid height, grid width]`; other lengths give an empty map's zeros.
    pub fn draw(&mut self, distances: &[f32]) -> ScoreMap {
        let (width, height) = (self.columns.bands.len(), self.rows.bands.len());
        for (row, out) in distances.chunks_exact(self.columns.from).zip(self.spread.chunks_exact_mut(width)) {
            for (value, band) in out.iter_mut().zip(&self.columns.bands) {
                let cells = &row[band.first..band.first + band.weights.len()];
                *value = band.weights.iter().zip(cells).map(|(weight, cell)| weight * cell).sum();
            }
        }
        let mut data = vec![0.0_f32; width * height];
        for (out, band) in data.chunks_exact_mut(width).zip(&self.rows.bands) {
            for (weight, row) in band.weights.iter().zip(self.spread.chunks_exact(width).skip(band.first)) {
                out.iter_mut().zip(row).for_each(|(value, spread)| *value += weight * spread);
            }
        }
        ScoreMap { width, height, data }
    }
}

/// One axis: each target pixel as a weighted sum of neighbouring cells.
#[derive(Debug)]
struct Axis {
    from: usize,
    bands: Vec<Band>,
}

#[derive(Debug)]
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl Axis {
    fn new(from: usize, to: usize, sigma: f32) -> Self {
        let kernel = gaussian(sigma);
        let radius = kernel.len() / 2;
        let taps = Interpolation::new(from, to).taps;
        let bands = (0..to).map(|target| {
            let mut row = vec![0.0_f32; from];
            for (offset, weight) in kernel.iter().enumerate() {
                let (lower, upper, share) = taps[reflected(target + offset, radius, to)];
                row[lower] += weight * (1.0 - share);
                row[upper] += weight * share;
            }
            let first = row.iter().position(|weight| *weight > 0.0).unwrap_or(0);
            let last = row.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
            Band { first, weights: row[first..=last].to_vec() }
        });
        Self { from, bands: bands.collect() }
    }
}

/// Weights that sum to 1, cut at four standard deviations.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few dozen pixels, not negative")]
fn gaussian(sigma: f32) -> Vec<f32> {
    let radius = (4.0 * sigma).round().max(0.0) as usize;
    let weight = |index: usize| {
        let distance = index as f32 - radius as f32;
        (-0.5 * (distance / sigma.max(f32::MIN_POSITIVE)).powi(2)).exp()
    };
    let weights: Vec<f32> = (0..=2 * radius).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// `index − radius`, mirrored at the borders without repeating the outermost pixel.
fn reflected(index: usize, radius: usize, length: usize) -> usize {
    let period = 2 * (length - 1).max(1);
    let folded = (index + radius * (period - 1) % period) % period;
    let folded = if folded < length { folded } else { period - folded };
    folded.min(length - 1)
}

#[cfg(test)]
mod tests {
    use super::{Interpolation, MapDrawer, gaussian, reflected};

    #[test]
    fn borders_mirror_without_repeating_the_edge() {
        let found: Vec<usize> = (0..9).map(|index| reflected(index, 3, 4)).collect();
        assert_eq!(found, [3, 2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!([reflected(0, 2, 1), reflected(5, 2, 1)], [0, 0]);
    }

    #[test]
    fn a_flat_grid_stays_flat() {
        let map = MapDrawer::new((28, 28), (224, 224)).draw(&[2.0; 784]);
        assert_eq!((map.width, map.height, map.data.len()), (224, 224, 224 * 224));
        assert!(map.data.iter().all(|value| (value - 2.0).abs() < 1e-4));
    }

    #[test]
    fn the_folded_matrices_equal_up_sampling_then_blurring() {
        let (grid, size) = (7, 56);
        let distances: Vec<f32> = (0..grid * grid).map(|index| (index * 37 % 11) as f32).collect();
        let taps = Interpolation::new(grid, size).taps;
        let at = |y: usize, x: usize| distances[y * grid + x];
        let up = |y: usize, x: usize| {
            let ((y0, y1, fy), (x0, x1, fx)) = (taps[y], taps[x]);
            (1.0 - fy) * ((1.0 - fx) * at(y0, x0) + fx * at(y0, x1)) + fy * ((1.0 - fx) * at(y1, x0) + fx * at(y1, x1))
        };
        let kernel = gaussian(1.0);
        let radius = kernel.len() / 2;
        let map = MapDrawer::new((grid, grid), (size, size)).draw(&distances);
        for (y, x) in [(0, 0), (13, 40), (55, 3), (28, 28)] {
            let mut expected = 0.0;
            for (i, wy) in kernel.iter().enumerate() {
                for (j, wx) in kernel.iter().enumerate() {
                    expected += wy * wx * up(reflected(y + i, radius, size), reflected(x + j, radius, size));
                }
            }
            assert!((map.data[y * size + x] - expected).abs() < 1e-3, "{y} {x}");
        }
    }
}
