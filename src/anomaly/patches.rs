//! Feature maps → one descriptor per patch.
//!
//! As PatchCore does it (Roth et al. 2022, section 3.1): each map is averaged over 3×3 neighbourhoods (stride 1, zero
//! padding, always divided by 9, which is PyTorch's `AvgPool2d(3, 1, 1)`), the coarser maps are brought to the grid of
//! the finest by bilinear interpolation (half-pixel centres, `align_corners=False`), and all are concatenated.

use crate::inference::{FeatureMap, FeatureMaps};

/// Descriptors of a grid of patches.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchGrid {
    pub width: usize,
    pub height: usize,
    /// Values of one descriptor.
    pub dim: usize,
    /// `[height × width, dim]`.
    pub data: Vec<f32>,
}

impl PatchGrid {
    /// Descriptors of one picture.
    ///
    /// # Errors
    /// When there is no map, or one has no cells or another size than its data.
    pub fn from_maps(maps: &FeatureMaps) -> Result<PatchGrid, String> {
        let finest =
            maps.maps.iter().max_by_key(|map| map.width * map.height).ok_or("the model gave no feature maps")?;
        let (width, height) = (finest.width, finest.height);
        let dim = maps.maps.iter().map(|map| map.channels).sum();
        for map in &maps.maps {
            let cells = map.channels * map.height * map.width;
            if cells == 0 || cells != map.data.len() {
                let (channels, height, width) = (map.channels, map.height, map.width);
                return Err(format!("a map of {channels}x{height}x{width} with {} values", map.data.len()));
            }
        }
        let mut grid = PatchGrid { width, height, dim, data: vec![0.0; width * height * dim] };
        let mut first_channel = 0;
        for map in &maps.maps {
            let rows = Interpolation::new(map.height, height);
            let columns = Interpolation::new(map.width, width);
            let pooled = pooled_by_cell(map);
            grid.write(&pooled, map, (&rows, &columns), first_channel);
            first_channel += map.channels;
        }
        Ok(grid)
    }

    /// Interpolate `pooled`, `[h, w, channels]`, into the descriptors from `first_channel` on.
    fn write(
        &mut self,
        pooled: &[f32],
        map: &FeatureMap,
        (rows, columns): (&Interpolation, &Interpolation),
        first_channel: usize,
    ) {
        let channels = map.channels;
        let cell = |y: usize, x: usize| {
            let start = (y * map.width + x) * channels;
            &pooled[start..start + channels]
        };
        for (index, descriptor) in self.data.chunks_exact_mut(self.dim).enumerate() {
            let (y, x) = (index / self.width, index % self.width);
            let (y0, y1, fy) = rows.taps[y];
            let (x0, x1, fx) = columns.taps[x];
            let out = &mut descriptor[first_channel..first_channel + channels];
            if fy == 0.0 && fx == 0.0 {
                out.copy_from_slice(cell(y0, x0));
                continue;
            }
            let weights = [(1.0 - fy) * (1.0 - fx), (1.0 - fy) * fx, fy * (1.0 - fx), fy * fx];
            let corners = cell(y0, x0).iter().zip(cell(y0, x1)).zip(cell(y1, x0)).zip(cell(y1, x1));
            for (value, (((a, b), c), d)) in out.iter_mut().zip(corners) {
                *value = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
            }
        }
    }
}

/// Where each target cell lies between two source cells, along one axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Interpolation {
    /// Lower cell, upper cell, share of the upper.
    pub(super) taps: Vec<(usize, usize, f32)>,
}

impl Interpolation {
    /// Half-pixel centres, clamped at the ends.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the source's size")]
    pub(super) fn new(from: usize, to: usize) -> Self {
        let ratio = from as f32 / to as f32;
        let last = from.saturating_sub(1);
        let tap = |index: usize| {
            let position = ((index as f32 + 0.5) * ratio - 0.5).clamp(0.0, last as f32);
            let lower = (position as usize).min(last);
            (lower, (lower + 1).min(last), position - lower as f32)
        };
        Self { taps: (0..to).map(tap).collect() }
    }
}

/// 3×3 mean of every channel, turned from `[channels, h, w]` to `[h, w, channels]`.
fn pooled_by_cell(map: &FeatureMap) -> Vec<f32> {
    let (height, width, channels) = (map.height, map.width, map.channels);
    let mut turned = vec![0.0_f32; map.data.len()];
    let mut sums = vec![0.0_f32; width];
    for (channel, plane) in map.data.chunks_exact(height * width).enumerate() {
        for y in 0..height {
            let row = |y: usize| &plane[y * width..(y + 1) * width];
            sums.copy_from_slice(row(y));
            for neighbour in [y.checked_sub(1), Some(y + 1).filter(|&below| below < height)].into_iter().flatten() {
                sums.iter_mut().zip(row(neighbour)).for_each(|(sum, value)| *sum += value);
            }
            for x in 0..width {
                let left = if x > 0 { sums[x - 1] } else { 0.0 };
                let right = if x + 1 < width { sums[x + 1] } else { 0.0 };
                turned[(y * width + x) * channels + channel] = (left + sums[x] + right) / 9.0;
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::{FeatureMap, FeatureMaps, Interpolation, PatchGrid};

    fn map(stride: u32, channels: usize, height: usize, width: usize, data: Vec<f32>) -> FeatureMap {
        FeatureMap { stride, channels, height, width, data }
    }

    #[test]
    fn the_neighbourhood_mean_pads_with_zeros_and_divides_by_nine() {
        let maps = FeatureMaps { maps: vec![map(8, 1, 3, 3, (1..=9).map(|v| v as f32).collect())] };
        let grid = PatchGrid::from_maps(&maps).unwrap();
        let sums = [12.0, 21.0, 16.0, 27.0, 45.0, 33.0, 24.0, 39.0, 28.0];
        assert_eq!(grid.data, sums.map(|sum: f32| sum / 9.0));
    }

    #[test]
    fn a_coarse_map_is_interpolated_to_the_fine_grid_and_concatenated() {
        let fine = map(8, 1, 4, 4, vec![9.0; 16]);
        // each channel is flat within, so that only the zero padding shapes it
        let coarse = map(16, 2, 2, 2, vec![9.0, 9.0, 9.0, 9.0, 18.0, 18.0, 18.0, 18.0]);
        let grid = PatchGrid::from_maps(&FeatureMaps { maps: vec![fine, coarse] }).unwrap();
        assert_eq!((grid.width, grid.height, grid.dim), (4, 4, 3));
        assert_eq!(&grid.data[..3], [4.0, 4.0, 8.0]);
        assert_eq!(&grid.data[5 * 3..6 * 3], [9.0, 4.0, 8.0]);
    }

    #[test]
    fn interpolation_has_half_pixel_centres() {
        assert_eq!(Interpolation::new(2, 4).taps, [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.0)]);
        assert_eq!(Interpolation::new(3, 3).taps, [(0, 1, 0.0), (1, 2, 0.0), (2, 2, 0.0)]);
    }

    #[test]
    fn maps_without_cells_or_of_another_size_are_refused() {
        assert!(PatchGrid::from_maps(&FeatureMaps { maps: vec![] }).is_err());
        let short = map(8, 2, 2, 2, vec![0.0; 7]);
        assert!(PatchGrid::from_maps(&FeatureMaps { maps: vec![short] }).is_err());
    }
}
