//! Large frames in overlapping tiles, and one box for what lies across a seam.
//!
//! Pure. Overload: at most [`TILES_MAX`] tiles; a frame that would need more is cut into larger ones.

use crate::types::BoundingBox;

/// Tiles of one frame at most: 64 runs of a 30 ms model are 2 s.
pub const TILES_MAX: usize = 64;
/// A side this near to a seam, pixels, may go on behind it.
const SEAM_PX: f32 = 3.0;
/// Overlap of two cut boxes along the seam, as a share of both, from which they are one thing.
const SEAM_OVERLAP_MIN: f32 = 0.5;
/// Share of a cut box inside a whole one from which it is the same thing.
const INSIDE_MIN: f32 = 0.7;

/// A box that was found in one tile.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece<T> {
    pub bbox: BoundingBox,
    pub class: usize,
    pub score: f32,
    pub tile: usize,
    /// Touches a side of its tile that is no side of the frame.
    pub is_cut: bool,
    pub payload: T,
}

/// Areas of about `side_px`, overlapping by at least `overlap_px`, that cover the frame; equally spaced, equally large.
#[must_use]
pub(super) fn cut(width_px: u32, height_px: u32, side_px: u32, overlap_px: u32) -> Vec<BoundingBox> {
    let mut side_px = side_px.max(1);
    loop {
        let (columns, rows) = (spans(width_px, side_px, overlap_px), spans(height_px, side_px, overlap_px));
        if columns.len() * rows.len() <= TILES_MAX {
            let areas = rows.iter().flat_map(|(top, bottom)| {
                columns.iter().map(|(left, right)| BoundingBox::new(*left, *top, *right, *bottom))
            });
            return areas.collect();
        }
        side_px += side_px.div_ceil(4);
    }
}

/// Starts and ends along one side.
fn spans(length_px: u32, side_px: u32, overlap_px: u32) -> Vec<(f32, f32)> {
    if length_px <= side_px {
        return vec![(0.0, length_px as f32)];
    }
    let step = side_px.saturating_sub(overlap_px).max(1);
    let count = (length_px - side_px).div_ceil(step) + 1;
    let last = u64::from(length_px - side_px);
    let start = |index: u32| (last * u64::from(index) / u64::from(count - 1)) as f32;
    (0..count).map(|index| (start(index), start(index) + side_px as f32)).collect()
}

/// Whether a box touches a side of its tile behind which the frame goes on.
pub(super) fn is_cut(bbox: &BoundingBox, tile: &BoundingBox, width_px: u32, height_px: u32) -> bool {
    (tile.x1 > 0.0 && bbox.x1 <= tile.x1 + SEAM_PX)
        || (tile.y1 > 0.0 && bbox.y1 <= tile.y1 + SEAM_PX)
        || (tile.x2 < width_px as f32 && bbox.x2 >= tile.x2 - SEAM_PX)
        || (tile.y2 < height_px as f32 && bbox.y2 >= tile.y2 - SEAM_PX)
}

/// One piece a thing: halves of what a seam cuts become their common box, repeats vanish. Best first.
pub(super) fn merge<T>(mut pieces: Vec<Piece<T>>, iou_max: f32, is_class_agnostic: bool) -> Vec<Piece<T>> {
    // Whole boxes first, so that halves join what was seen whole.
    pieces.sort_by(|a, b| a.is_cut.cmp(&b.is_cut).then(b.score.total_cmp(&a.score)));
    let mut kept: Vec<Piece<T>> = Vec::new();
    for mut piece in pieces {
        // A box that grew may reach another one: look again until nothing changes.
        let mut is_repeat = false;
        while let Some(index) = kept.iter().position(|other| {
            (is_class_agnostic || other.class == piece.class) && joins(other, &piece, iou_max) != Join::Apart
        }) {
            if joins(&kept[index], &piece, iou_max) == Join::Repeat {
                is_repeat = true;
                kept[index].score = kept[index].score.max(piece.score);
                break;
            }
            let other = kept.swap_remove(index);
            let bbox = union(&other.bbox, &piece.bbox);
            let is_larger = other.bbox.area_px() >= piece.bbox.area_px();
            let score = other.score.max(piece.score);
            piece = Piece { bbox, score, is_cut: true, ..if is_larger { other } else { piece } };
        }
        if !is_repeat {
            kept.push(piece);
        }
    }
    kept.sort_by(|a, b| b.score.total_cmp(&a.score));
    kept
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Apart,
    /// The second shows what the first shows.
    Repeat,
    /// Both are parts of one thing.
    Halves,
}

fn joins<T>(first: &Piece<T>, second: &Piece<T>, iou_max: f32) -> Join {
    let (a, b) = (&first.bbox, &second.bbox);
    if first.tile == second.tile && !(first.is_cut && second.is_cut) {
        return Join::Apart;
    }
    if !first.is_cut && !second.is_cut {
        return if a.iou(b) > iou_max { Join::Repeat } else { Join::Apart };
    }
    let across = a.x2.min(b.x2) - a.x1.max(b.x1);
    let down = a.y2.min(b.y2) - a.y1.max(b.y1);
    if across < 0.0 || down < 0.0 {
        return Join::Apart;
    }
    let inside = across * down / b.area_px().max(1.0);
    if inside >= INSIDE_MIN && first.tile != second.tile {
        return Join::Repeat;
    }
    if !(first.is_cut && second.is_cut) || first.tile == second.tile {
        return Join::Apart;
    }
    let share = |common: f32, a: f32, b: f32| common / (a + b - common).max(1.0);
    let is_beside = share(down, a.height_px(), b.height_px()) >= SEAM_OVERLAP_MIN;
    let is_below = share(across, a.width_px(), b.width_px()) >= SEAM_OVERLAP_MIN;
    if is_beside || is_below { Join::Halves } else { Join::Apart }
}

fn union(a: &BoundingBox, b: &BoundingBox) -> BoundingBox {
    BoundingBox::new(a.x1.min(b.x1), a.y1.min(b.y1), a.x2.max(b.x2), a.y2.max(b.y2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What two tiles of 100 over a frame of 180×100, overlapping by 20, see of these boxes; merged.
    fn seen(things: &[[f32; 4]]) -> Vec<[f32; 4]> {
        let tiles = cut(180, 100, 100, 20);
        assert_eq!(tiles.len(), 2);
        let mut pieces = Vec::new();
        for (tile, area) in tiles.iter().enumerate() {
            for &[x1, y1, x2, y2] in things {
                let bbox = BoundingBox::new(x1.max(area.x1), y1.max(area.y1), x2.min(area.x2), y2.min(area.y2));
                if bbox.width_px() > 4.0 && bbox.height_px() > 4.0 {
                    let is_cut = is_cut(&bbox, area, 180, 100);
                    pieces.push(Piece { bbox, class: 0, score: 0.9, tile, is_cut, payload: () });
                }
            }
        }
        let mut boxes: Vec<[f32; 4]> = merge(pieces, 0.45, false).iter().map(|piece| piece.bbox.into()).collect();
        boxes.sort_by(|a, b| a[0].total_cmp(&b[0]));
        boxes
    }

    #[test]
    fn a_thing_across_the_seam_is_one_box_and_neighbours_stay_two() {
        // Wider than the overlap, inside the overlap, and two that only meet the seam from both sides.
        assert_eq!(seen(&[[60.0, 10.0, 130.0, 40.0]]), [[60.0, 10.0, 130.0, 40.0]]);
        assert_eq!(seen(&[[84.0, 10.0, 96.0, 40.0]]), [[84.0, 10.0, 96.0, 40.0]]);
        assert_eq!(seen(&[[75.0, 10.0, 95.0, 40.0]]), [[75.0, 10.0, 95.0, 40.0]]);
        let two = [[40.0, 10.0, 79.0, 40.0], [101.0, 12.0, 140.0, 38.0]];
        assert_eq!(seen(&two), two);
        let stacked = [[60.0, 5.0, 130.0, 30.0], [60.0, 50.0, 130.0, 90.0]];
        assert_eq!(seen(&stacked).len(), 2);
    }

    #[test]
    fn a_thing_over_four_tiles_is_one_box() {
        let tiles = cut(180, 180, 100, 20);
        let thing = BoundingBox::new(50.0, 55.0, 140.0, 135.0);
        let pieces = tiles.iter().enumerate().map(|(tile, area)| {
            let bbox = BoundingBox::new(
                thing.x1.max(area.x1),
                thing.y1.max(area.y1),
                thing.x2.min(area.x2),
                thing.y2.min(area.y2),
            );
            Piece {
                bbox,
                class: 3,
                score: 0.5 + tile as f32 / 10.0,
                tile,
                is_cut: is_cut(&bbox, area, 180, 180),
                payload: tile,
            }
        });
        let merged = merge(pieces.collect(), 0.45, false);
        assert_eq!(merged.len(), 1, "{merged:?}");
        assert_eq!((merged[0].bbox, merged[0].score), (thing, 0.8));
    }

    #[test]
    fn other_classes_are_not_merged_unless_asked() {
        let piece = |class, tile| Piece {
            bbox: BoundingBox::new(80.0, 0.0, 100.0, 20.0),
            class,
            score: 0.5,
            tile,
            is_cut: true,
            payload: (),
        };
        assert_eq!(merge(vec![piece(0, 0), piece(1, 1)], 0.45, false).len(), 2);
        assert_eq!(merge(vec![piece(0, 0), piece(1, 1)], 0.45, true).len(), 1);
    }

    proptest! {
        #[test]
        fn tiles_cover_the_frame_and_overlap(
            width in 1_u32..16_384, height in 1_u32..16_384, side in 1_u32..2_000, overlap in 0_u32..2_500,
        ) {
            let tiles = cut(width, height, side, overlap);
            prop_assert!(tiles.len() <= TILES_MAX && !tiles.is_empty());
            prop_assert_eq!((tiles[0].x1, tiles[0].y1), (0.0, 0.0));
            let last = tiles[tiles.len() - 1];
            prop_assert_eq!((last.x2, last.y2), (width as f32, height as f32));
            for pair in tiles.windows(2) {
                prop_assert!(pair[1].x1 == 0.0 || pair[1].x1 <= pair[0].x2, "{:?}", pair);
                prop_assert!(pair[0].x1 >= 0.0 && pair[0].x2 <= width as f32 && pair[0].y2 <= height as f32);
            }
        }
    }
}
