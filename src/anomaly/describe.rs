//! A picture as descriptors, looked at as the bank's view says; the same code learns and scores.

use super::align::{Aligner, Warp};
use super::cells::Cells;
use super::patches::PatchGrid;
use super::seen::{Placement, reach_of};
use super::view::{Layout, View, area_px};
use super::{AnomalyError, Layer};
use crate::inference::{FeatureModel, OutputRole, OutputSpec};
use crate::types::{BoundingBox, Image};

/// A model and the view it is given.
#[derive(Debug)]
pub(super) struct Describer {
    pub(super) model: FeatureModel,
    /// Width and height of one run of the model.
    pub(super) input_px: (u32, u32),
    pub(super) view: View,
    /// Known from the first run on: what the model makes of one.
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    /// Width, height and descriptor length of one run.
    run: (usize, usize, usize),
    layout: Option<Layout>,
    cells: Cells,
}

/// A picture in the bank's terms.
#[derive(Debug)]
pub(super) struct Described {
    /// Of the patches that count and were seen, `[patches, dim]`.
    pub(super) patches: Vec<f32>,
    /// Which of the patches that count were seen; `None` = all.
    pub(super) seen: Option<Vec<usize>>,
    /// From the reference to the picture; `None` where the picture was taken as it is.
    pub(super) warp: Option<Warp>,
    /// With the reference, −1 to 1; `None` without registration.
    pub(super) correlation: Option<f32>,
    /// Which reference it was brought to.
    pub(super) aligner_index: Option<usize>,
}

/// What every picture of a bank has in common.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    /// Patches across and down the whole canvas.
    pub(super) grid: (usize, usize),
    pub(super) dim: usize,
    /// Width and height of the canvas and so of the map.
    pub(super) canvas_px: (usize, usize),
    pub(super) cells: Cells,
}

impl Describer {
    pub(super) fn new(model: FeatureModel, input_px: (u32, u32), view: View) -> Self {
        Self { model, input_px, view, place: None }
    }

    /// The grid and the region, known once a picture was described.
    pub(super) fn shape(&self) -> Option<Shape> {
        let place = self.place.as_ref()?;
        let (grid, canvas) = match &place.layout {
            Some(layout) => ((layout.columns.len(), layout.rows.len()), layout.canvas_px),
            None => ((place.run.0, place.run.1), self.input_px),
        };
        let canvas_px = (canvas.0 as usize, canvas.1 as usize);
        Some(Shape { grid, dim: place.run.2, canvas_px, cells: place.cells.clone() })
    }

    /// Bring the picture into place where the view asks for it, to the reference of `aligners` that fits best, and
    /// describe it.
    ///
    /// # Errors
    /// When the part is not found or too much of it lies beyond the frame's edge, the model fails or its features are not
    /// what they were.
    pub(super) fn describe(&mut self, image: &Image, aligners: &[&Aligner]) -> Result<Described, AnomalyError> {
        let Some(registration) = self.view.registration else {
            let patches = self.patches(image)?;
            return Ok(Described { patches, seen: None, warp: None, correlation: None, aligner_index: None });
        };
        let found = aligners.iter().enumerate().map(|(index, aligner)| (index, aligner.find(image)));
        let best = found.max_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b));
        let (correlation, needed) = (best.map_or(-1.0, |(_, (found, _))| found), registration.correlation_min);
        match best {
            Some((index, (correlation, warp))) if correlation >= needed => {
                let frame_px = (image.width_px(), image.height_px());
                let reach = reach_of(layers(&self.model).iter().map(|layer| layer.stride));
                let placement = Placement { warp, reference_px: aligners[index].size_px(), frame_px, reach };
                let shape = self.probe()?;
                let seen = placement.seen(&shape.cells, &self.view)?;
                let aligned = aligners[index].straighten(image, warp);
                let mut patches = self.patches(&aligned)?;
                if let Some(seen) = &seen {
                    let rows = seen.iter().flat_map(|at| &patches[at * shape.dim..(at + 1) * shape.dim]);
                    patches = rows.copied().collect();
                }
                let (warp, correlation) = (Some(warp), Some(correlation));
                Ok(Described { patches, seen, warp, correlation, aligner_index: Some(index) })
            }
            _ => Err(AnomalyError::NotRegistered { correlation, needed }),
        }
    }

    /// Run the model once on an empty picture, so that the grid is known (and the model warm) before the first real one.
    ///
    /// # Errors
    /// When the model fails, its grid does not fit the tiles or no patch lies in the region.
    pub(super) fn probe(&mut self) -> Result<Shape, AnomalyError> {
        let side = 64;
        let blank = Image::from_bgr(side, side, vec![127; (side * side * 3) as usize]);
        if let (None, Ok(blank)) = (&self.place, blank) {
            let run = self.run(&blank, BoundingBox::whole(side, side))?;
            self.place = Some(self.place_of((run.width, run.height, run.dim))?);
        }
        let message = "it gave no grid".to_owned();
        self.shape().ok_or_else(|| AnomalyError::Features { model: self.model.manifest().name().to_owned(), message })
    }

    /// Descriptors of a picture that is in place.
    fn patches(&mut self, image: &Image) -> Result<Vec<f32>, AnomalyError> {
        let shape = self.probe()?;
        let layout = self.place.as_ref().and_then(|place| place.layout.clone());
        let shares = layout.as_ref().map_or_else(|| vec![[0.0, 0.0, 1.0, 1.0]], |layout| layout.tiles.clone());
        let expected = self.place.as_ref().map(|place| place.run);
        let mut runs = Vec::with_capacity(shares.len());
        for share in shares {
            let run = self.run(image, area_px(self.view.area(), share, image.width_px(), image.height_px()))?;
            let found = Some((run.width, run.height, run.dim));
            if found != expected {
                let (model, message) =
                    (self.model.manifest().name().to_owned(), format!("{found:?} after {expected:?}"));
                return Err(AnomalyError::Features { model, message });
            }
            runs.push(run);
        }
        let whole = match (&layout, runs.pop()) {
            (None, Some(run)) => run,
            (Some(layout), Some(last)) => {
                runs.push(last);
                merged(layout, &runs, shape.dim)
            }
            (_, None) => PatchGrid { width: 0, height: 0, dim: shape.dim, data: Vec::new() },
        };
        Ok(shape.cells.gather(whole))
    }

    fn run(&mut self, image: &Image, area: BoundingBox) -> Result<PatchGrid, AnomalyError> {
        let maps = self.model.features(image, area, self.input_px)?;
        let model = || self.model.manifest().name().to_owned();
        let grid = PatchGrid::from_maps(&maps).map_err(|message| AnomalyError::Features { model: model(), message })?;
        if grid.data.iter().all(|value| value.is_finite()) {
            Ok(grid)
        } else {
            Err(AnomalyError::NotFinite { model: model() })
        }
    }

    fn place_of(&self, run: (usize, usize, usize)) -> Result<Place, AnomalyError> {
        let grid = (run.0, run.1);
        let layout = match self.view.tiles {
            None => None,
            Some(tiles) => Some(Layout::new(tiles, self.input_px, grid).ok_or_else(|| AnomalyError::Option {
                option: "overlap of tiles",
                value: format!("{:?} px", tiles.overlap_px),
                allowed: "less than a tile and a whole number of the model's patches",
            })?),
        };
        let whole = layout.as_ref().map_or(grid, |layout| (layout.columns.len(), layout.rows.len()));
        let cells = Cells::new(whole, &self.view);
        if cells.len() == 0 {
            return Err(AnomalyError::EmptyRegion { grid: whole });
        }
        Ok(Place { run, layout, cells })
    }
}

/// One grid out of the tiles' grids.
fn merged(layout: &Layout, runs: &[PatchGrid], dim: usize) -> PatchGrid {
    let mut data = Vec::with_capacity(layout.columns.len() * layout.rows.len() * dim);
    for &(tile_row, row) in &layout.rows {
        for &(tile_column, column) in &layout.columns {
            let run = &runs[tile_row * layout.tile_columns + tile_column];
            let cell = (row * run.width + column) * dim;
            data.extend_from_slice(&run.data[cell..cell + dim]);
        }
    }
    PatchGrid { width: layout.columns.len(), height: layout.rows.len(), dim, data }
}

/// The feature maps of a model, as descriptors hold them.
pub(super) fn layers(model: &FeatureModel) -> Vec<Layer> {
    let outputs = model.manifest().outputs_of(OutputRole::Features);
    let layer = |spec: &OutputSpec| Layer {
        output: spec.name.clone(),
        stride: spec.stride.unwrap_or(1),
        channels: spec.channels.unwrap_or(0) as usize,
    };
    outputs.map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::{Layout, PatchGrid, merged};
    use crate::anomaly::view::Tiles;

    #[test]
    fn tiles_merge_into_one_grid_without_a_seam() {
        // Each patch holds its own column on the canvas, as both tiles see it.
        let tiles = Tiles { columns: 2, rows: 2, overlap_px: [32, 0] };
        let layout = Layout::new(tiles, (64, 64), (8, 8)).unwrap();
        let run = |tile: usize| {
            let (row, column) = (tile / 2, tile % 2);
            let cell = |index: usize| [(column * 4 + index % 8) as f32, (row * 8 + index / 8) as f32];
            PatchGrid { width: 8, height: 8, dim: 2, data: (0..64).flat_map(cell).collect() }
        };
        let whole = merged(&layout, &[run(0), run(1), run(2), run(3)], 2);
        assert_eq!((whole.width, whole.height), (12, 16));
        let expected: Vec<f32> = (0..12 * 16).flat_map(|index| [(index % 12) as f32, (index / 12) as f32]).collect();
        assert_eq!(whole.data, expected);
    }
}
