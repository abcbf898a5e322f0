//! Which patches of the grid count, and the map drawn from them alone.

use std::collections::BTreeSet;

use super::align::Warp;
use super::map::{MapDrawer, ScoreMap};
use super::patches::PatchGrid;
use super::view::View;

/// The grid of the whole canvas and its patches inside the view's region.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cells {
    grid: (usize, usize),
    /// Row by row; `None` = all.
    inside: Option<Vec<usize>>,
}

impl Cells {
    /// A patch counts where its centre lies in the region.
    pub(super) fn new(grid: (usize, usize), view: &View) -> Self {
        let [x1, y1, x2, y2] = view.area();
        let is_inside = |&index: &usize| {
            let (column, row) = (index % grid.0, index / grid.0);
            let x = x1 + (column as f32 + 0.5) / grid.0 as f32 * (x2 - x1);
            let y = y1 + (row as f32 + 0.5) / grid.1 as f32 * (y2 - y1);
            view.contains([x, y])
        };
        let inside: Vec<usize> = (0..grid.0 * grid.1).filter(is_inside).collect();
        let is_all = inside.len() == grid.0 * grid.1;
        Self { grid, inside: (!is_all).then_some(inside) }
    }

    pub(super) fn len(&self) -> usize {
        self.inside.as_ref().map_or(self.grid.0 * self.grid.1, Vec::len)
    }

    pub(super) fn grid(&self) -> (usize, usize) {
        self.grid
    }

    /// Places in the grid of the patches that count, in order.
    pub(super) fn counted(&self) -> Vec<usize> {
        self.inside.clone().unwrap_or_else(|| (0..self.grid.0 * self.grid.1).collect())
    }

    /// Those of them that only patches that count surround.
    pub(super) fn core(&self) -> BTreeSet<usize> {
        let counted: BTreeSet<usize> = self.counted().into_iter().collect();
        let (width, height) = self.grid;
        let is_core = |&&cell: &&usize| {
            let (x, y) = (cell % width, cell / width);
            let is_inner = x > 0 && y > 0 && x + 1 < width && y + 1 < height;
            is_inner && (y - 1..=y + 1).all(|y| (x - 1..=x + 1).all(|x| counted.contains(&(y * width + x))))
        };
        counted.iter().filter(is_core).copied().collect()
    }

    /// The places in the grid around one, itself too.
    pub(super) fn around(&self, cell: usize) -> impl Iterator<Item = usize> {
        let (width, height) = self.grid;
        let (x, y) = (cell % width, cell / width);
        let near = |at: usize, count: usize| at.saturating_sub(1)..=(at + 1).min(count - 1);
        near(y, height).flat_map(move |y| near(x, width).map(move |x| y * width + x))
    }

    /// Those of the patches that count at these positions among them.
    fn part(&self, positions: &[usize]) -> Self {
        let counted = self.counted();
        Self { grid: self.grid, inside: Some(positions.iter().map(|&at| counted[at]).collect()) }
    }

    /// Descriptors of the patches that count, `[len, dim]`.
    pub(super) fn gather(&self, grid: PatchGrid) -> Vec<f32> {
        let Some(inside) = &self.inside else { return grid.data };
        inside.iter().flat_map(|cell| &grid.data[cell * grid.dim..(cell + 1) * grid.dim]).copied().collect()
    }

    /// Values of the patches that count, brought to the whole grid; 0 elsewhere.
    fn scatter(&self, values: &[f32]) -> Vec<f32> {
        let Some(inside) = &self.inside else { return values.to_vec() };
        let mut all = vec![0.0; self.grid.0 * self.grid.1];
        inside.iter().zip(values).for_each(|(cell, value)| all[*cell] = *value);
        all
    }
}

/// Draws maps of the canvas; what lies outside the region is 0 and does not bleed inside.
#[derive(Debug)]
pub(super) struct SurfaceDrawer {
    cells: Cells,
    drawer: MapDrawer,
    /// What the same smoothing makes of 1 inside and 0 outside.
    weights: Option<Vec<f32>>,
}

impl SurfaceDrawer {
    pub(super) fn new(cells: Cells, canvas_px: (usize, usize)) -> Self {
        let mut drawer = MapDrawer::new(cells.grid, canvas_px);
        let weights = cells.inside.as_ref().map(|_| drawer.draw(&cells.scatter(&vec![1.0; cells.len()])).data);
        Self { cells, drawer, weights }
    }

    /// Patches that count.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// `distances` of the patches that count and are `seen` (all of them where `None`); 0 where nothing was seen.
    pub(super) fn draw(&mut self, distances: &[f32], seen: Option<&[usize]>) -> ScoreMap {
        let Some(seen) = seen else {
            let map = self.drawer.draw(&self.cells.scatter(distances));
            return match &self.weights {
                Some(weights) => within(map, weights),
                None => map,
            };
        };
        let part = self.cells.part(seen);
        let weights = self.drawer.draw(&part.scatter(&vec![1.0; part.len()])).data;
        within(self.drawer.draw(&part.scatter(distances)), &weights)
    }
}

/// A smoothed map without what its smoothing took from patches that do not count.
fn within(mut map: ScoreMap, weights: &[f32]) -> ScoreMap {
    for (value, weight) in map.data.iter_mut().zip(weights) {
        *value = if *weight >= 0.5 { *value / weight } else { 0.0 };
    }
    map
}

/// The way from a frame back to the canvas.
#[derive(Debug, Clone, Copy)]
pub(super) struct WayBack {
    /// From the reference to the frame.
    pub(super) warp: Warp,
    pub(super) reference_px: (u32, u32),
    pub(super) frame_px: (u32, u32),
    /// Fractions of the reference that the canvas shows.
    pub(super) area: [f32; 4],
}

impl WayBack {
    /// `map` of the canvas as a map of the whole frame, of the same number of pixels; 0 where the canvas shows nothing.
    /// A warp without an inverse gives zeros.
    pub(super) fn map_of_frame(&self, map: &ScoreMap) -> ScoreMap {
        let (width, height) = (map.width, map.height);
        let mut data = vec![0.0; map.data.len()];
        let Some(inverse) = self.warp.inverse() else { return ScoreMap { width, height, data } };
        let [x1, y1, x2, y2] = self.area;
        let position = |index: usize, count: usize, side: u32| (index as f32 + 0.5) / count as f32 * side as f32 - 0.5;
        for (index, value) in data.iter_mut().enumerate() {
            let x = position(index % width, width, self.frame_px.0);
            let y = position(index / width, height, self.frame_px.1);
            let (u, v) = inverse.apply(x, y);
            let u = ((u + 0.5) / self.reference_px.0 as f32 - x1) / (x2 - x1);
            let v = ((v + 0.5) / self.reference_px.1 as f32 - y1) / (y2 - y1);
            if (0.0..=1.0).contains(&u) && (0.0..=1.0).contains(&v) {
                *value = bilinear(map, u * width as f32 - 0.5, v * height as f32 - 0.5);
            }
        }
        ScoreMap { width, height, data }
    }
}

/// Value at a position between pixel centres, clamped to the map.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the map first")]
pub(super) fn bilinear(map: &ScoreMap, x: f32, y: f32) -> f32 {
    let (x, y) = (x.clamp(0.0, (map.width - 1) as f32), y.clamp(0.0, (map.height - 1) as f32));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(map.width - 1), (y0 + 1).min(map.height - 1));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let at = |x: usize, y: usize| map.data[y * map.width + x];
    let (top, bottom) = (at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx, at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx);
    top * (1.0 - fy) + bottom * fy
}

#[cfg(test)]
mod tests {
    use super::{Cells, PatchGrid, ScoreMap, SurfaceDrawer, View, Warp, WayBack};

    fn left_half() -> View {
        View { regions: vec![vec![[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]], ..View::default() }
    }

    #[test]
    fn only_patches_inside_are_gathered() {
        let cells = Cells::new((4, 2), &left_half());
        let data: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let gathered = cells.gather(PatchGrid { width: 4, height: 2, dim: 2, data });
        assert_eq!((cells.len(), gathered), (4, vec![0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0]));
        assert_eq!(Cells::new((4, 2), &View::default()).len(), 8);
    }

    #[test]
    fn the_map_is_flat_to_the_regions_edge_and_zero_beyond() {
        let cells = Cells::new((28, 28), &left_half());
        let distances = vec![3.0; cells.len()];
        let map = SurfaceDrawer::new(cells, (224, 224)).draw(&distances, None);
        assert!(map.data.iter().all(|value| *value == 0.0 || (value - 3.0).abs() < 1e-3));
        let row = &map.data[100 * 224..101 * 224];
        let last = row.iter().rposition(|value| *value > 0.0).unwrap();
        assert!((108..=116).contains(&last), "{last}");
    }

    #[test]
    fn a_map_is_zero_where_nothing_was_seen_and_flat_elsewhere() {
        let cells = Cells::new((28, 28), &left_half());
        // The region's columns are 0 to 13; of these the first five were not seen.
        let seen: Vec<usize> = (0..cells.len()).filter(|at| at % 14 >= 5).collect();
        let map = SurfaceDrawer::new(cells, (224, 224)).draw(&vec![3.0; seen.len()], Some(&seen));
        assert!(map.data.iter().all(|value| *value == 0.0 || (value - 3.0).abs() < 1e-3));
        let row = &map.data[100 * 224..101 * 224];
        let ends = [row.iter().position(|value| *value > 0.0), row.iter().rposition(|value| *value > 0.0)];
        assert!((36..=44).contains(&ends[0].unwrap()) && (108..=116).contains(&ends[1].unwrap()), "{ends:?}");
    }

    #[test]
    fn the_core_is_what_counted_patches_surround() {
        let cells = Cells::new((4, 4), &View::default());
        assert_eq!(cells.core().into_iter().collect::<Vec<_>>(), [5, 6, 9, 10]);
        assert!(Cells::new((4, 4), &left_half()).core().is_empty());
    }

    #[test]
    fn a_zoomed_grid_measures_the_region_in_its_own_cells() {
        let view = View { zoom: true, ..left_half() };
        assert_eq!(Cells::new((4, 4), &view).len(), 16);
    }

    #[test]
    fn a_shifted_part_is_found_where_the_frame_shows_it() {
        let mut data = vec![0.0; 100];
        data[3 * 10 + 4] = 8.0;
        let way = WayBack {
            warp: Warp([1.0, 0.0, 20.0, 0.0, 1.0, 0.0]),
            reference_px: (100, 100),
            frame_px: (100, 100),
            area: [0.0, 0.0, 1.0, 1.0],
        };
        let map = way.map_of_frame(&ScoreMap { width: 10, height: 10, data: data.clone() });
        assert!((map.data[3 * 10 + 6] - 8.0).abs() < 1e-3, "{:?}", map.data);
        assert_eq!(map.data[0], 0.0);
        let half = WayBack { warp: Warp::IDENTITY, area: [0.0, 0.0, 0.5, 1.0], ..way };
        let map = half.map_of_frame(&ScoreMap { width: 10, height: 10, data });
        assert!(map.data[3 * 10 + 2] > 3.0 && map.data[3 * 10 + 7] == 0.0, "{:?}", map.data);
    }
}
