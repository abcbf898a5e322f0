//! YOLOX detectors (Ge et al. 2021, <https://arxiv.org/abs/2107.08430>) with their raw head.
//!
//! The output is `[N, 5 + C]` f32: for each cell of the grids, finest first and row by row, the centre's offset in cells, the
//! logarithm of width and height in cells, the objectness and the class scores, the last two after their sigmoid.

use super::{Decoder, Found, LayoutFault, best, shape_text};
use crate::inference::{OutputRole, RawOutputs};

/// x, y, width, height, objectness.
const BOX_COLUMNS: usize = 5;

#[derive(Debug)]
pub(super) struct Yolox {
    pub class_count: Option<usize>,
    pub strides: Vec<u32>,
}

impl Yolox {
    fn rows(&self, [width_px, height_px]: [u32; 2]) -> usize {
        self.strides.iter().map(|stride| (width_px / stride) as usize * (height_px / stride) as usize).sum()
    }
}

impl Decoder for Yolox {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let output = raw.get(OutputRole::Detections);
        let (rows, shape) = (self.rows(raw.input_px), output.map_or(&[][..], |output| &output.shape));
        let columns = match shape {
            [first, columns] if *first == rows && *columns > BOX_COLUMNS => *columns,
            _ => 0,
        };
        let Some(output) = output.filter(|output| {
            columns > 0
                && output.values.len() == rows * columns
                && self.class_count.is_none_or(|count| columns == BOX_COLUMNS + count)
        }) else {
            let columns = self.class_count.map_or("6 or more".to_owned(), |count| (BOX_COLUMNS + count).to_string());
            let strides = &self.strides;
            let expected = format!("{rows} rows of {columns} columns for strides {strides:?}");
            return Err(LayoutFault { expected, found: shape_text(shape) });
        };
        let cells = self.strides.iter().flat_map(|&stride| {
            let (across, down) = (raw.input_px[0] / stride, raw.input_px[1] / stride);
            (0..down).flat_map(move |y| (0..across).map(move |x| (x as f32, y as f32, stride as f32)))
        });
        let least = found.least();
        for (index, (row, cell)) in output.values.chunks_exact(columns).zip(cells).enumerate() {
            let &[x, y, width, height, objectness, ref scores @ ..] = row else { continue };
            // A class score is at most 1, so most rows end here.
            if objectness < least {
                continue;
            }
            let (class, score) = best(scores);
            found.offer(index, class, objectness * score, || {
                let (cell_x, cell_y, stride) = cell;
                let (centre_x, centre_y) = ((x + cell_x) * stride, (y + cell_y) * stride);
                let (half_width, half_height) = (width.exp() * stride / 2.0, height.exp() * stride / 2.0);
                [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height]
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decoded, outputs, tensor};
    use super::*;

    /// An input of 64×32: 8×4 + 4×2 + 2×1 cells.
    const INPUT_PX: [u32; 2] = [64, 32];
    const ROWS: usize = 42;

    fn head(rows: &[(usize, [f32; 7])]) -> Vec<f32> {
        let mut data = vec![0.0; ROWS * 7];
        for (row, values) in rows {
            data[row * 7..][..7].copy_from_slice(values);
        }
        data
    }

    fn yolox(class_count: Option<usize>) -> Yolox {
        Yolox { class_count, strides: vec![8, 16, 32] }
    }

    #[test]
    fn rows_of_each_stride_land_on_their_cell() {
        let two = 2.0_f32.ln();
        // Row 9: stride 8, cell (1, 1). Row 32 + 5: stride 16, cell (1, 1). Row 41: stride 32, cell (1, 0).
        let data = head(&[
            (9, [0.5, 0.5, 0.0, two, 0.9, 0.1, 1.0]),
            (37, [0.5, 0.5, 0.0, 0.0, 0.8, 1.0, 0.0]),
            (41, [0.5, 0.5, 0.0, 0.0, 0.7, 0.0, 1.0]),
        ]);
        let raw = outputs(vec![tensor(OutputRole::Detections, &[ROWS, 7], &data)], INPUT_PX);
        let (found, broken_rows) = decoded(&yolox(Some(2)), &raw).unwrap();
        let boxes: Vec<_> = found.iter().map(|one| (one.class, one.corners, one.row)).collect();
        assert_eq!(boxes[0], (1, [8.0, 4.0, 16.0, 20.0], 9));
        assert_eq!(boxes[1], (0, [16.0, 16.0, 32.0, 32.0], 37));
        assert_eq!(boxes[2], (1, [32.0, 0.0, 64.0, 32.0], 41));
        assert!((found[0].score - 0.9).abs() < 1e-6);
        assert_eq!(broken_rows, 0);
    }

    #[test]
    fn weak_rows_are_ignored_and_rows_that_are_no_numbers_are_counted() {
        let data = head(&[
            (0, [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.2]),
            (1, [f32::NAN, 0.0, 0.0, 0.0, 0.9, 0.9, 0.0]),
            (2, [0.0, 0.0, 0.0, 0.0, f32::NAN, 0.9, 0.0]),
            (3, [0.0, 0.0, 0.0, 0.0, 0.9, f32::NAN, 0.5]),
            (4, [0.0, 0.0, 1e9, 0.0, 0.9, 0.9, 0.0]),
        ]);
        let raw = outputs(vec![tensor(OutputRole::Detections, &[ROWS, 7], &data)], INPUT_PX);
        assert_eq!(decoded(&yolox(None), &raw).unwrap(), (vec![], 4));
    }

    #[test]
    fn another_shape_is_no_yolox_head() {
        let data = head(&[]);
        let raw = |shape: &[usize], input_px| outputs(vec![tensor(OutputRole::Detections, shape, &data)], input_px);
        assert!(decoded(&yolox(None), &raw(&[ROWS, 7], INPUT_PX)).is_ok());
        let fault = decoded(&yolox(Some(1)), &raw(&[ROWS, 7], INPUT_PX)).unwrap_err();
        assert!(fault.expected.contains("42 rows of 6 columns") && fault.found == "[42, 7]", "{fault:?}");
        assert!(decoded(&yolox(None), &raw(&[ROWS, 7], [64, 64])).is_err());
        assert!(decoded(&yolox(None), &raw(&[7, ROWS], INPUT_PX)).is_err());
        assert!(decoded(&yolox(None), &outputs(vec![], INPUT_PX)).is_err());
    }
}
