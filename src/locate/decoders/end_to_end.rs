//! Exports that end in finished rows `[N, 6 + M]`: corners, score, class and mask coefficients (YOLOv10, YOLO26, and
//! Ultralytics exports with `nms=True`). Rows beyond the found things have a score of 0.

use super::{Decoder, Found, Geometry, LayoutFault, shape_text};
use crate::inference::{OutputRole, RawOutputs};

const COLUMNS: usize = 6;

#[derive(Debug)]
pub(super) struct EndToEnd {
    pub geometry: Geometry,
    pub class_offset: u32,
}

fn columns(raw: &RawOutputs<'_>) -> usize {
    COLUMNS + raw.get(OutputRole::Prototypes).and_then(|output| output.shape.first().copied()).unwrap_or(0)
}

impl Decoder for EndToEnd {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let columns = columns(raw);
        let output = raw.get(OutputRole::Detections);
        let Some(output) = output.filter(|output| {
            matches!(output.shape[..], [rows, width] if width == columns && output.values.len() == rows * width)
        }) else {
            let found = shape_text(output.map_or(&[][..], |output| &output.shape));
            return Err(LayoutFault { expected: format!("[rows, {columns}]"), found });
        };
        for (index, row) in output.values.chunks_exact(columns).enumerate() {
            let four = [row[0], row[1], row[2], row[3]];
            found.offer_label(index, row[5], self.class_offset, row[4], || self.geometry.corners(four, raw.input_px));
        }
        Ok(())
    }

    fn is_final(&self) -> bool {
        true
    }

    fn coefficients(&self, raw: &RawOutputs<'_>, row: usize) -> Option<Vec<f32>> {
        let columns = columns(raw);
        let values = raw.get(OutputRole::Detections)?.values;
        let coefficients = values.get(row * columns + COLUMNS..(row + 1) * columns)?;
        (!coefficients.is_empty()).then(|| coefficients.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decoded, outputs, tensor};
    use super::*;
    use crate::inference::{BoxOrder, BoxUnit};

    const DECODER: EndToEnd =
        EndToEnd { geometry: Geometry { unit: BoxUnit::InputPx, order: BoxOrder::Xyxy }, class_offset: 0 };

    #[test]
    fn rows_are_read_and_the_filling_is_not() {
        let data = [[1.0, 2.0, 30.0, 40.0, 0.9, 3.0], [0.0; 6], [5.0, 5.0, 6.0, 6.0, 0.0, -1.0]].concat();
        let raw = outputs(vec![tensor(OutputRole::Detections, &[3, 6], &data)], [64, 64]);
        let (found, broken_rows) = decoded(&DECODER, &raw).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].class, found[0].corners, broken_rows), (3, [1.0, 2.0, 30.0, 40.0], 0));
        assert_eq!(DECODER.coefficients(&raw, 0), None);
    }

    #[test]
    fn a_label_that_is_no_number_is_counted_and_another_width_refused() {
        let data = [1.0, 2.0, 30.0, 40.0, 0.9, f32::NAN];
        let raw = outputs(vec![tensor(OutputRole::Detections, &[1, 6], &data)], [64, 64]);
        assert_eq!(decoded(&DECODER, &raw).unwrap(), (vec![], 1));
        let raw = outputs(vec![tensor(OutputRole::Detections, &[6, 1], &data)], [64, 64]);
        assert_eq!(decoded(&DECODER, &raw).unwrap_err().expected, "[rows, 6]");
    }
}
