//! Which patches of a registered picture show the frame, and whether they are enough to judge the part.
//!
//! A part that has moved is brought back to where the reference shows it, and what comes in from beyond the frame's edge is
//! filler: nothing is known of the surface there. Such patches are neither learnt nor scored, and where they are too many
//! the picture is held, since what was not seen must never pass.

use std::collections::BTreeSet;

use super::AnomalyError;
use super::align::Warp;
use super::cells::Cells;
use super::view::View;

/// Filler at the edge that does no harm, in patches: parts never lie to the pixel as the reference does, and the bank would
/// otherwise know the outermost patches from one picture alone.
const FILLER_CELLS_MAX: f32 = 0.5;
/// Share of the patches that may be unseen where no region says where the part lies: a part is seldom larger than the rest.
const UNSEEN_RATIO_MAX: f32 = 0.25;

/// Where a picture lies, relative to the reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    /// From the reference to the frame.
    pub(super) warp: Warp,
    pub(super) reference_px: (u32, u32),
    pub(super) frame_px: (u32, u32),
    /// Patches to each side that flow into a patch's descriptor.
    pub(super) reach: usize,
}

/// Patches to each side that a descriptor is pooled over: its 3×3 neighbourhood, in the coarsest map, between two cells of
/// which it lies. `strides` are those of the maps.
///
/// Good plates moved by 20 px of 580 scored 1.6 to 2.5 with the filler, 1.4 to 2.1 without the patches of the finest map's
/// neighbourhood, and 0.8 to 1.1 without these (at rest 0.7, threshold 1.07).
pub(super) fn reach_of(strides: impl Iterator<Item = u32> + Clone) -> usize {
    let (coarsest, finest) = (strides.clone().max().unwrap_or(1), strides.min().unwrap_or(1).max(1));
    let ratio = coarsest.div_ceil(finest) as usize;
    if ratio > 1 { 2 * ratio } else { 1 }
}

impl Placement {
    /// Positions, among the patches of `cells`, of those that the frame shows; `None` = all.
    ///
    /// # Errors
    /// [`AnomalyError::OutOfFrame`] when so much is not seen that nothing may be said of the part: more than a quarter of the
    /// patches, or, where `view` has regions, a patch that is not on their edge.
    pub(super) fn seen(&self, cells: &Cells, view: &View) -> Result<Option<Vec<usize>>, AnomalyError> {
        let counted = cells.counted();
        let shown: Vec<bool> = counted.iter().map(|&cell| self.shows(cell, cells.grid(), view.area())).collect();
        let seen: Vec<usize> = (0..counted.len()).filter(|&at| shown[at]).collect();
        if seen.len() == counted.len() {
            return Ok(None);
        }
        let unseen_ratio = 1.0 - seen.len() as f32 / counted.len() as f32;
        let fault = |allowed| Err(AnomalyError::OutOfFrame { unseen_ratio, allowed });
        if unseen_ratio > UNSEEN_RATIO_MAX {
            return fault("at most 25 % may");
        }
        // Harmless is a hidden patch on the edge of what is seen, not a narrow limb of a region that is hidden as a whole.
        let is_piece_hidden = || {
            let core = cells.core();
            let pairs = || counted.iter().zip(&shown);
            let seen_core: BTreeSet<usize> =
                pairs().filter(|(cell, shown)| **shown && core.contains(cell)).map(|(cell, _)| *cell).collect();
            let is_beside = |&cell: &usize| cells.around(cell).any(|other| seen_core.contains(&other));
            pairs().any(|(cell, shown)| !shown && (core.contains(cell) || !is_beside(cell)))
        };
        if !view.regions.is_empty() && is_piece_hidden() {
            return fault("and of the region no more than its outermost patches may");
        }
        Ok(Some(seen))
    }

    /// Whether the frame shows a patch and what it is pooled over, but for a harmless strip. `area`: what of the reference the
    /// grid covers, in fractions.
    fn shows(&self, cell: usize, grid: (usize, usize), area: [f32; 4]) -> bool {
        let reach = self.reach as f32;
        // Pixels of the reference's side of `length_px`; what lies beyond the grid is no picture's.
        let ends = |at: usize, count: usize, [from, to]: [f32; 2], length_px: u32| {
            let first = (at as f32 - reach).max(0.0) + FILLER_CELLS_MAX;
            let last = (at as f32 + 1.0 + reach).min(count as f32) - FILLER_CELLS_MAX;
            [first, last].map(|end| (from + end / count as f32 * (to - from)) * length_px as f32 - 0.5)
        };
        let xs = ends(cell % grid.0, grid.0, [area[0], area[2]], self.reference_px.0);
        let ys = ends(cell / grid.0, grid.1, [area[1], area[3]], self.reference_px.1);
        let is_within = |at: f32, side: u32| (-0.5..=side as f32 - 0.5).contains(&at);
        xs.iter().all(|&x| {
            ys.iter().all(|&y| {
                let (u, v) = self.warp.apply(x, y);
                is_within(u, self.frame_px.0) && is_within(v, self.frame_px.1)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AnomalyError, Cells, Placement, View, Warp, reach_of};

    const GRID: (usize, usize) = (20, 10);

    /// A part that lies `dx`, `dy` patches (of 10 px) from where the reference shows it.
    fn moved(dx: f32, dy: f32) -> Placement {
        let warp = Warp([1.0, 0.0, dx * 10.0, 0.0, 1.0, dy * 10.0]);
        Placement { warp, reference_px: (200, 100), frame_px: (200, 100), reach: 1 }
    }

    fn with_region(x1: f32, y1: f32, x2: f32, y2: f32) -> View {
        View { regions: vec![vec![[x1, y1], [x2, y1], [x2, y2], [x1, y2]]], ..View::default() }
    }

    fn seen(placement: Placement, view: &View) -> Result<Option<Vec<usize>>, AnomalyError> {
        placement.seen(&Cells::new(GRID, view), view)
    }

    #[test]
    fn what_lies_beyond_the_frame_and_what_is_pooled_with_it_is_not_seen() {
        let plain = View::default();
        assert_eq!(seen(moved(0.0, 0.0), &plain).unwrap(), None);
        assert_eq!(seen(moved(0.2, -0.2), &plain).unwrap(), None, "a harmless strip");
        // Two patches to the right: of the reference's right side two are lost, and a third is pooled with them.
        let left: Vec<usize> = (0..200).filter(|cell| cell % 20 < 17).collect();
        assert_eq!(seen(moved(2.0, 0.0), &plain).unwrap(), Some(left));
        let below: Vec<usize> = (0..200).filter(|cell| cell / 20 >= 2).collect();
        assert_eq!(seen(moved(0.0, -1.0), &plain).unwrap(), Some(below));
    }

    #[test]
    fn a_coarser_map_reaches_farther() {
        assert_eq!(
            [reach_of([8].into_iter()), reach_of([8, 16].into_iter()), reach_of([32, 8].into_iter())],
            [1, 4, 8]
        );
        let far = Placement { reach: 4, ..moved(1.0, 0.0) };
        assert_eq!(seen(far, &View::default()).unwrap().unwrap().len(), 15 * 10, "one lost and four pooled with it");
    }

    #[test]
    fn more_than_a_quarter_unseen_is_held() {
        let plain = View::default();
        assert!(seen(moved(4.0, 0.0), &plain).is_ok());
        let error = seen(moved(5.0, 0.0), &plain).unwrap_err();
        assert!(matches!(error, AnomalyError::OutOfFrame { unseen_ratio, .. } if (unseen_ratio - 0.3).abs() < 1e-3));
        assert!(error.to_string().contains("30 %"), "{error}");
        assert!(seen(moved(-2.0, -2.0), &plain).is_err(), "3 of 20 columns and 3 of 10 rows");
    }

    #[test]
    fn a_region_may_lose_its_edge_only() {
        let inner = with_region(0.2, 0.2, 0.8, 0.8);
        assert_eq!(seen(moved(3.0, 0.0), &inner).unwrap(), None, "the region is in view");
        // The region ends 4 patches from the frame's right edge.
        let at_edge = seen(moved(4.0, 0.0), &inner).unwrap().unwrap();
        assert_eq!(at_edge.len(), 12 * 6 - 6);
        assert!(seen(moved(5.0, 0.0), &inner).unwrap_err().to_string().contains("outermost"));
        let ignoring = View { ignored: inner.regions.clone(), ..View::default() };
        assert!(seen(moved(2.0, 0.0), &ignoring).is_ok(), "what is ignored is no region");
        let narrow = with_region(0.9, 0.0, 1.0, 1.0);
        assert!(seen(moved(1.0, 0.0), &narrow).is_err(), "a region of two patches has nothing but an edge");
        let mut two = with_region(0.2, 0.2, 0.7, 0.8);
        two.regions.extend(with_region(0.9, 0.4, 1.0, 0.6).regions);
        assert!(seen(moved(1.0, 0.0), &two).is_err(), "beside a wide one it is hidden all the same");
    }

    #[test]
    fn a_zoomed_region_is_measured_by_the_reference() {
        let view = View { zoom: true, ..with_region(0.5, 0.0, 1.0, 1.0) };
        // Its grid shows the right half: 20 px are 4 of its columns.
        assert!(seen(moved(2.0, 0.0), &view).is_err());
        assert_eq!(seen(moved(-2.0, 0.0), &view).unwrap(), None);
    }
}
