//! Generalised focal loss heads (Li et al. 2020, <https://arxiv.org/abs/2006.04388>): NanoDet, NanoDet-Plus, PicoDet.
//!
//! A row has C class scores and, for each side of the box, R values over the distances 0 to R − 1 in cells; the distance is
//! the mean of their softmax. Either one output `[N, C + 4 R]` over all grids, or `scores` `[n, C]` and `boxes` `[n, 4 R]` for
//! each stride. Grids round up where the input is no multiple of a stride.

use super::{Decoder, Found, LayoutFault, best, cells, probability, shape_text};
use crate::inference::{OutputRole, RawOutputs, RawTensor, ScoreForm};

/// Distances of NanoDet and PicoDet (`reg_max` 7), taken where the manifest names no classes.
const USUAL_DISTANCES: usize = 8;

#[derive(Debug)]
pub(super) struct Gfl {
    pub class_count: Option<usize>,
    pub strides: Vec<u32>,
    pub cell_offset: f32,
    pub scores: ScoreForm,
}

/// Rows of one grid.
#[derive(Debug, Clone, Copy)]
struct Level<'v> {
    scores: &'v [f32],
    distances: &'v [f32],
    /// Values from one row to the next.
    score_step: usize,
    distance_step: usize,
    class_count: usize,
    distance_count: usize,
    stride: u32,
    across: usize,
    rows: usize,
    first_row: usize,
}

impl Gfl {
    fn grids(&self, [width_px, height_px]: [u32; 2]) -> impl Iterator<Item = (u32, usize, usize)> {
        self.strides.iter().map(move |&stride| {
            let (across, down) = (cells(width_px, stride), cells(height_px, stride));
            (stride, across, across * down)
        })
    }

    /// One tensor: classes, then distances, in each row.
    fn joined<'v>(&self, output: &RawTensor<'v>, input_px: [u32; 2]) -> Result<Vec<Level<'v>>, LayoutFault> {
        let rows: usize = self.grids(input_px).map(|(_, _, rows)| rows).sum();
        let columns = match output.shape[..] {
            [first, columns] if first == rows && output.values.len() == rows * columns => columns,
            _ => 0,
        };
        let class_count = self.class_count.or_else(|| columns.checked_sub(4 * USUAL_DISTANCES)).unwrap_or(0);
        let distances = columns.saturating_sub(class_count);
        if class_count == 0 || distances < 8 || !distances.is_multiple_of(4) {
            let classes = self.class_count.map_or("C".to_owned(), |count| count.to_string());
            let strides = &self.strides;
            let expected = format!("[{rows}, {classes} + 4 x distances] for strides {strides:?}");
            return Err(LayoutFault { expected, found: shape_text(&output.shape) });
        }
        let mut first_row = 0;
        let level = |(stride, across, rows): (u32, usize, usize)| {
            let values = &output.values[first_row * columns..(first_row + rows) * columns];
            let level = Level {
                scores: values,
                distances: &values[class_count.min(values.len())..],
                score_step: columns,
                distance_step: columns,
                class_count,
                distance_count: distances / 4,
                stride,
                across,
                rows,
                first_row,
            };
            first_row += rows;
            level
        };
        Ok(self.grids(input_px).map(level).collect())
    }

    /// A pair of tensors for each grid, by their stride or in the order of the strides.
    fn split<'v>(&self, raw: &RawOutputs<'v>) -> Result<Vec<Level<'v>>, LayoutFault> {
        let find = |role, index: usize, stride| {
            let all = || raw.tensors.iter().filter(move |tensor| tensor.role == role);
            all().find(|tensor| tensor.stride == Some(stride)).or_else(|| all().nth(index))
        };
        let mut levels = Vec::new();
        let mut first_row = 0;
        for (index, (stride, across, rows)) in self.grids(raw.input_px).enumerate() {
            let pair = find(OutputRole::Scores, index, stride).zip(find(OutputRole::Boxes, index, stride));
            let expected = || format!("scores [{rows}, C] and boxes [{rows}, 4 x distances] for stride {stride}");
            let Some((scores, boxes)) = pair else {
                return Err(LayoutFault { expected: expected(), found: "no such outputs".to_owned() });
            };
            let columns = |tensor: &RawTensor<'_>| match tensor.shape[..] {
                [first, columns] if first == rows && tensor.values.len() == rows * columns => columns,
                _ => 0,
            };
            let (class_count, distances) = (columns(scores), columns(boxes));
            let are_classes_right = class_count > 0 && self.class_count.is_none_or(|count| count == class_count);
            if !are_classes_right || distances < 8 || !distances.is_multiple_of(4) {
                let found = format!("{} and {}", shape_text(&scores.shape), shape_text(&boxes.shape));
                return Err(LayoutFault { expected: expected(), found });
            }
            levels.push(Level {
                scores: scores.values,
                distances: boxes.values,
                score_step: class_count,
                distance_step: distances,
                class_count,
                distance_count: distances / 4,
                stride,
                across,
                rows,
                first_row,
            });
            first_row += rows;
        }
        Ok(levels)
    }

    fn decode_level(&self, level: Level<'_>, found: &mut Found<'_>) {
        for row in 0..level.rows {
            let (class, score) = best(&level.scores[row * level.score_step..][..level.class_count]);
            found.offer(level.first_row + row, class, probability(score, self.scores), || {
                let stride = level.stride as f32;
                let x = ((row % level.across) as f32 + self.cell_offset) * stride;
                let y = ((row / level.across) as f32 + self.cell_offset) * stride;
                let values = &level.distances[row * level.distance_step..][..4 * level.distance_count];
                let [left, top, right, bottom] = std::array::from_fn(|side| {
                    expectation(&values[side * level.distance_count..][..level.distance_count]) * stride
                });
                [x - left, y - top, x + right, y + bottom]
            });
        }
    }
}

impl Decoder for Gfl {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let levels = match raw.get(OutputRole::Detections) {
            Some(output) => self.joined(output, raw.input_px)?,
            None => self.split(raw)?,
        };
        levels.into_iter().for_each(|level| self.decode_level(level, found));
        Ok(())
    }
}

/// Mean index under the softmax of `values`.
fn expectation(values: &[f32]) -> f32 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = (0.0_f32, 0.0_f32);
    for (index, value) in values.iter().enumerate() {
        let weight = (value - largest).exp();
        sums = (sums.0 + weight, sums.1 + weight * index as f32);
    }
    sums.1 / sums.0
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decoded, outputs, tensor};
    use super::*;

    /// An input of 20×16 with strides 8 and 16: 3×2 and 2×1 cells.
    const INPUT_PX: [u32; 2] = [20, 16];

    fn gfl(class_count: Option<usize>, cell_offset: f32) -> Gfl {
        Gfl { class_count, strides: vec![8, 16], cell_offset, scores: ScoreForm::Probability }
    }

    /// Distances of 1, 2, 3 and 0.5 cells.
    fn distances() -> Vec<f32> {
        let mut values = vec![-99.0; 32];
        values[1] = 9.0;
        values[8 + 2] = 9.0;
        values[16 + 3] = 9.0;
        (values[24], values[25]) = (4.0, 4.0);
        values
    }

    #[test]
    fn one_output_over_all_grids_is_read() {
        let mut data = vec![0.0; 8 * 34];
        for (row, score) in [(4, 0.9), (7, 0.6)] {
            data[row * 34 + 1] = score;
            data[row * 34 + 2..][..32].copy_from_slice(&distances());
        }
        for class_count in [Some(2), None] {
            let raw = outputs(vec![tensor(OutputRole::Detections, &[8, 34], &data)], INPUT_PX);
            let (found, _) = decoded(&gfl(class_count, 0.5), &raw).unwrap();
            // Row 4: stride 8, cell (1, 1), centre (12, 12). Row 7: stride 16, cell (1, 0), centre (24, 8).
            assert_eq!((found[0].class, found[0].corners), (1, [4.0, -4.0, 36.0, 16.0]));
            assert_eq!((found[1].class, found[1].corners), (1, [8.0, -24.0, 72.0, 16.0]));
        }
        let raw = outputs(vec![tensor(OutputRole::Detections, &[8, 34], &data)], INPUT_PX);
        assert_eq!(decoded(&gfl(Some(2), 0.0), &raw).unwrap().0[0].corners, [0.0, -8.0, 32.0, 12.0]);
    }

    #[test]
    fn a_pair_of_outputs_for_each_stride_is_read_whatever_their_order() {
        let mut scores = vec![0.0; 6 * 2];
        scores[4 * 2] = 0.9;
        let mut boxes = vec![0.0; 6 * 32];
        boxes[4 * 32..][..32].copy_from_slice(&distances());
        let (empty_scores, empty_boxes) = (vec![0.0; 2 * 2], vec![0.0; 2 * 32]);
        let with_stride = |mut tensor: RawTensor<'static>, stride| {
            tensor.stride = Some(stride);
            tensor
        };
        let leak = |data: &[f32]| -> &'static [f32] { Vec::leak(data.to_vec()) };
        let tensors = vec![
            with_stride(tensor(OutputRole::Scores, &[2, 2], leak(&empty_scores)), 16),
            with_stride(tensor(OutputRole::Scores, &[6, 2], leak(&scores)), 8),
            with_stride(tensor(OutputRole::Boxes, &[6, 32], leak(&boxes)), 8),
            with_stride(tensor(OutputRole::Boxes, &[2, 32], leak(&empty_boxes)), 16),
        ];
        let (found, _) = decoded(&gfl(Some(2), 0.5), &outputs(tensors, INPUT_PX)).unwrap();
        assert_eq!((found.len(), found[0].class, found[0].corners), (1, 0, [4.0, -4.0, 36.0, 16.0]));
    }

    #[test]
    fn other_grids_and_counts_are_faults_and_a_broken_distance_is_counted() {
        let mut data = vec![0.0; 8 * 34];
        let raw = |shape: &[usize], data: &'static [f32]| {
            outputs(vec![tensor(OutputRole::Detections, shape, data)], INPUT_PX)
        };
        let zeros: &'static [f32] = Vec::leak(data.clone());
        assert!(decoded(&gfl(None, 0.5), &raw(&[34, 8], zeros)).is_err());
        assert!(decoded(&gfl(Some(3), 0.5), &raw(&[8, 34], zeros)).unwrap_err().expected.contains("[8, 3 + 4"));
        (data[0], data[5]) = (0.9, f32::NAN);
        assert_eq!(decoded(&gfl(Some(2), 0.5), &raw(&[8, 34], Vec::leak(data))).unwrap(), (vec![], 1));
    }
}
