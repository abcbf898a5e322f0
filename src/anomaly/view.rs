//! What of a picture a bank looks at: a region, brought into place and cut into tiles.
//!
//! Everything is in fractions of the *reference picture* (the registered one, or any picture where there is no
//! registration), is stored in the bank's manifest and is applied alike when learning and when scoring.

use serde::{Deserialize, Serialize};

use super::AnomalyError;
use super::align::Motion;
use crate::types::BoundingBox;

/// Points of one outline (data model, `camera_zones`).
pub const POINTS_MAX: usize = 64;
/// Outlines of one bank.
pub const OUTLINES_MAX: usize = 16;
/// Tiles of one picture, each a run of the model.
pub const TILES_MAX: u32 = 64;

/// A polygon, 3 to 64 points `[x, y]` in fractions, 0 to 1.
pub type Outline = Vec<[f32; 2]>;

/// How a picture becomes patches, as a manifest holds it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct View {
    /// Where patches count; everywhere where empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<Outline>,
    /// Where they do not, whatever `regions` says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<Outline>,
    /// The box round `regions`, not the whole picture, is stretched to the model's input.
    pub zoom: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles: Option<Tiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
}

/// The picture in pieces, each of the model's input size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiles {
    pub columns: u32,
    pub rows: u32,
    /// What neighbours share, across and down, pixels of the model's input.
    pub overlap_px: [u32; 2],
}

/// The part is brought to where the reference shows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    pub motion: Motion,
    /// Least correlation with the reference, 0 to 1; below it the picture is not scored but held.
    pub correlation_min: f32,
}

impl View {
    /// Whether it is the whole picture as it comes.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == View::default()
    }

    /// The first fault, as a manifest or a person may have written it.
    ///
    /// # Errors
    /// With what is wrong and what is allowed.
    pub fn check(&self) -> Result<(), AnomalyError> {
        let fault = |option, value: String, allowed| Err(AnomalyError::Option { option, value, allowed });
        let outlines = self.regions.iter().chain(&self.ignored);
        if outlines.clone().count() > OUTLINES_MAX {
            return fault("number of outlines", outlines.count().to_string(), "at most 16");
        }
        for outline in outlines {
            let is_inside = |value: &f32| (0.0..=1.0).contains(value);
            if !(3..=POINTS_MAX).contains(&outline.len()) || !outline.as_flattened().iter().all(is_inside) {
                return fault("region", format!("{outline:?}"), "3 to 64 points within the picture");
            }
        }
        if self.zoom && (self.regions.is_empty() || self.area_of_regions().iter().any(|side| !side.is_finite())) {
            return fault("zoom", "on".to_owned(), "off without a region");
        }
        if let Some(tiles) = self.tiles
            && (tiles.columns == 0 || tiles.rows == 0 || tiles.columns.saturating_mul(tiles.rows) > TILES_MAX)
        {
            return fault("tiles", format!("{}x{}", tiles.columns, tiles.rows), "1 to 64 tiles");
        }
        if let Some(registration) = self.registration
            && !(0.0..1.0).contains(&registration.correlation_min)
        {
            let value = registration.correlation_min.to_string();
            return fault("least correlation", value, "at least 0 and below 1");
        }
        Ok(())
    }

    /// Whether a point of the reference picture, in fractions, counts.
    #[must_use]
    pub fn contains(&self, point: [f32; 2]) -> bool {
        let is_in = |outlines: &[Outline]| outlines.iter().any(|outline| is_inside(outline, point));
        (self.regions.is_empty() || is_in(&self.regions)) && !is_in(&self.ignored)
    }

    /// `[x1, y1, x2, y2]` in fractions of what is stretched to the canvas.
    #[must_use]
    pub fn area(&self) -> [f32; 4] {
        if self.zoom { self.area_of_regions() } else { [0.0, 0.0, 1.0, 1.0] }
    }

    fn area_of_regions(&self) -> [f32; 4] {
        let points = self.regions.iter().flatten();
        points.fold([f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY], |[x1, y1, x2, y2], [x, y]| {
            [x1.min(*x), y1.min(*y), x2.max(*x), y2.max(*y)]
        })
    }
}

/// Even-odd rule: a ray to the right crosses the outline an odd number of times.
fn is_inside(outline: &[[f32; 2]], [x, y]: [f32; 2]) -> bool {
    let mut is_inside = false;
    for (index, &[ax, ay]) in outline.iter().enumerate() {
        let [bx, by] = outline[(index + outline.len() - 1) % outline.len()];
        if (ay > y) != (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax {
            is_inside = !is_inside;
        }
    }
    is_inside
}

/// A region as a person wrote it: `x1,y1,x2,y2` (a rectangle) or `x,y x,y x,y …` (a polygon), in fractions of the picture,
/// or in pixels where any number is above 1.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedOutline(Outline);

impl std::str::FromStr for AskedOutline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| {
            let value: f32 = word.trim().parse().map_err(|_| format!("`{word}` is no number"))?;
            if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(format!("{word} is not 0 or more")) }
        };
        let points: Vec<Vec<f32>> = text
            .split([' ', ';'])
            .filter(|point| !point.is_empty())
            .map(|point| point.split(',').map(number).collect())
            .collect::<Result<_, String>>()?;
        match points.as_slice() {
            [rectangle] if rectangle.len() == 4 => {
                let [x1, y1, x2, y2] = [rectangle[0], rectangle[1], rectangle[2], rectangle[3]];
                if x2 <= x1 || y2 <= y1 {
                    return Err("a rectangle is x1,y1,x2,y2 with x1 < x2 and y1 < y2".to_owned());
                }
                Ok(Self(vec![[x1, y1], [x2, y1], [x2, y2], [x1, y2]]))
            }
            points if (3..=POINTS_MAX).contains(&points.len()) && points.iter().all(|point| point.len() == 2) => {
                Ok(Self(points.iter().map(|point| [point[0], point[1]]).collect()))
            }
            _ => Err("write a rectangle as x1,y1,x2,y2 or a polygon as 3 to 64 points x,y x,y x,y".to_owned()),
        }
    }
}

impl AskedOutline {
    /// In fractions of a picture of this size.
    #[must_use]
    pub fn in_fractions(&self, width_px: u32, height_px: u32) -> Outline {
        let is_pixels = self.0.as_flattened().iter().any(|value| *value > 1.0);
        let scale = if is_pixels { [width_px as f32, height_px as f32] } else { [1.0, 1.0] };
        self.0.iter().map(|[x, y]| [x / scale[0], y / scale[1]]).collect()
    }
}

/// How many tiles a person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedTiles {
    /// As many as keep the picture's own pixels.
    Auto,
    Count {
        columns: u32,
        rows: u32,
    },
}

impl std::str::FromStr for AskedTiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let count = text.split_once('x').and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
        let Some((columns, rows)) = count else {
            return Err("write COLUMNSxROWS, such as 3x1, or auto".to_owned());
        };
        Ok(Self::Count { columns, rows })
    }
}

impl AskedTiles {
    /// Tiles for an area of this size by a model input of `input_px`, with about `overlap_ratio` of a tile shared, rounded
    /// to `stride_px`; at most 64 when counted automatically.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares of an image side")]
    pub fn tiles(self, area_px: [f32; 2], input_px: (u32, u32), overlap_ratio: f32, stride_px: u32) -> Tiles {
        let input = [input_px.0, input_px.1];
        let overlap = input.map(|side| {
            let rounded = (side as f32 * overlap_ratio / stride_px as f32).round() as u32 * stride_px;
            rounded.min(side.saturating_sub(stride_px))
        });
        let needed = |axis: usize| {
            let step = (input[axis] - overlap[axis]).max(1) as f32;
            (((area_px[axis] - overlap[axis] as f32) / step).ceil() as u32).max(1)
        };
        let (mut columns, mut rows) = match self {
            Self::Count { columns, rows } => (columns, rows),
            Self::Auto => (needed(0), needed(1)),
        };
        while self == Self::Auto && columns * rows > TILES_MAX {
            if columns >= rows { columns -= 1 } else { rows -= 1 }
        }
        Tiles { columns, rows, overlap_px: overlap }
    }
}

/// Where the tiles lie and which of them each patch of the whole is taken from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// The whole, pixels of the model's input.
    pub(super) canvas_px: (u32, u32),
    /// Shares of the canvas, row by row.
    pub(super) tiles: Vec<[f32; 4]>,
    /// For each patch across (down) the whole: which tile column (row) and which patch of it.
    pub(super) columns: Vec<(usize, usize)>,
    pub(super) rows: Vec<(usize, usize)>,
    pub(super) tile_columns: usize,
}

impl Layout {
    /// For tiles of `input_px` whose own grid is `grid`; `None` where the overlap is no whole number of patches.
    pub(super) fn new(tiles: Tiles, input_px: (u32, u32), grid: (usize, usize)) -> Option<Self> {
        let (canvas_x, columns) = axis(tiles.columns, input_px.0, tiles.overlap_px[0], grid.0)?;
        let (canvas_y, rows) = axis(tiles.rows, input_px.1, tiles.overlap_px[1], grid.1)?;
        let step = |index: u32, side: u32, overlap: u32, canvas: u32| {
            let first = (index * (side - overlap)) as f32;
            (first / canvas as f32, (first + side as f32) / canvas as f32)
        };
        let tile = |row: u32, column: u32| {
            let (x1, x2) = step(column, input_px.0, tiles.overlap_px[0], canvas_x);
            let (y1, y2) = step(row, input_px.1, tiles.overlap_px[1], canvas_y);
            [x1, y1, x2, y2]
        };
        let tiles_of = |row| (0..tiles.columns).map(move |column| (row, column));
        Some(Self {
            canvas_px: (canvas_x, canvas_y),
            tiles: (0..tiles.rows).flat_map(tiles_of).map(|(row, column)| tile(row, column)).collect(),
            columns,
            rows,
            tile_columns: tiles.columns as usize,
        })
    }
}

/// The canvas side and, for each of its patches, the tile in which it lies farthest from a seam.
fn axis(count: u32, side: u32, overlap: u32, cells: usize) -> Option<(u32, Vec<(usize, usize)>)> {
    let step = side.checked_sub(overlap).filter(|step| *step > 0)?;
    let canvas = step.checked_mul(count.checked_sub(1)?)?.checked_add(side)?;
    let step_cells = step as usize * cells / side as usize;
    if step_cells * side as usize != step as usize * cells || step_cells == 0 {
        return None;
    }
    let count = count as usize;
    let depth = |tile: usize, local: usize| {
        let from_left = if tile == 0 { cells } else { local };
        let from_right = if tile + 1 == count { cells } else { cells - 1 - local };
        from_left.min(from_right)
    };
    let place = |cell: usize| {
        let tiles = (0..count).filter(|tile| (tile * step_cells..tile * step_cells + cells).contains(&cell));
        tiles
            .map(|tile| (tile, cell - tile * step_cells))
            .max_by_key(|&(tile, local)| (depth(tile, local), count - tile))
    };
    let total = step_cells * (count - 1) + cells;
    Some((canvas, (0..total).map(place).collect::<Option<_>>()?))
}

/// A share of `area` of a picture of this size, pixels.
pub(super) fn area_px(area: [f32; 4], share: [f32; 4], width_px: u32, height_px: u32) -> BoundingBox {
    let x = |ratio: f32| (area[0] + ratio * (area[2] - area[0])) * width_px as f32;
    let y = |ratio: f32| (area[1] + ratio * (area[3] - area[1])) * height_px as f32;
    BoundingBox::new(x(share[0]), y(share[1]), x(share[2]), y(share[3]))
}

#[cfg(test)]
mod tests {
    use super::{AskedOutline, AskedTiles, Layout, Tiles, View, area_px};

    fn asked(text: &str) -> AskedOutline {
        text.parse().unwrap()
    }

    #[test]
    fn regions_are_read_in_fractions_and_in_pixels() {
        let fractions = asked("0.25,0.5,0.75,1").in_fractions(200, 100);
        assert_eq!(fractions, asked("50,50,150,100").in_fractions(200, 100));
        assert_eq!(asked("0,0 1,0 0.5,1").in_fractions(9, 9).len(), 3);
        for fault in ["", "1,2", "5,5,1,9", "a,b c,d e,f", "0,0 1,1", "-1,0,1,1", "0,0,nan,1"] {
            assert!(fault.parse::<AskedOutline>().is_err(), "{fault}");
        }
    }

    #[test]
    fn a_polygon_holds_its_inside_and_what_is_ignored_does_not_count() {
        let mut view = View { regions: vec![vec![[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], ..View::default() };
        assert!(view.contains([0.2, 0.2]) && !view.contains([0.8, 0.8]));
        view.ignored = vec![asked("0.1,0.1,0.3,0.3").in_fractions(1, 1)];
        assert!(!view.contains([0.2, 0.2]) && view.contains([0.05, 0.5]));
        assert!(View::default().contains([0.9, 0.1]));
    }

    #[test]
    fn views_that_make_no_sense_are_refused() {
        let outline = vec![[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
        assert!(View { zoom: true, ..View::default() }.check().is_err());
        assert!(View { regions: vec![outline.clone()], zoom: true, ..View::default() }.check().is_ok());
        assert!(View { regions: vec![vec![[0.0, 2.0]; 3]], ..View::default() }.check().is_err());
        assert!(View { regions: vec![outline; 17], ..View::default() }.check().is_err());
        let tiles = |columns| Some(Tiles { columns, rows: 9, overlap_px: [0, 0] });
        assert!(View { tiles: tiles(8), ..View::default() }.check().is_err());
        assert!(View { tiles: tiles(7), ..View::default() }.check().is_ok());
    }

    #[test]
    fn automatic_tiles_keep_the_pixels_of_an_elongated_picture() {
        let tiles = AskedTiles::Auto.tiles([1130.0, 460.0], (224, 224), 0.125, 16);
        assert_eq!(tiles, Tiles { columns: 6, rows: 3, overlap_px: [32, 32] });
        assert_eq!("3x1".parse(), Ok(AskedTiles::Count { columns: 3, rows: 1 }));
        assert!("3".parse::<AskedTiles>().is_err());
        let huge = AskedTiles::Auto.tiles([16_000.0, 16_000.0], (224, 224), 0.0, 16);
        assert!(huge.columns * huge.rows <= 64);
    }

    #[test]
    fn every_patch_comes_from_the_tile_where_it_lies_deepest() {
        let tiles = Tiles { columns: 2, rows: 1, overlap_px: [32, 0] };
        let layout = Layout::new(tiles, (64, 64), (8, 8)).unwrap();
        assert_eq!((layout.canvas_px, layout.columns.len(), layout.rows.len()), ((96, 64), 12, 8));
        let expected = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7)];
        assert_eq!(layout.columns, expected);
        assert_eq!(layout.tiles[1], [32.0 / 96.0, 0.0, 1.0, 1.0]);
        assert_eq!(Layout::new(Tiles { columns: 2, rows: 1, overlap_px: [3, 0] }, (64, 64), (8, 8)), None);
    }

    #[test]
    fn shares_of_an_area_are_pixels_of_the_picture() {
        let share = area_px([0.5, 0.0, 1.0, 0.5], [0.5, 0.0, 1.0, 1.0], 200, 100);
        assert_eq!([share.x1, share.y1, share.x2, share.y2], [150.0, 0.0, 200.0, 50.0]);
    }
}
