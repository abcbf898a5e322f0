//! Heads that give finished boxes and class scores for every cell: YOLOv8, v9 and v11 (`4 + C` values a row), YOLOv5 and v7
//! (`5 + C`, with objectness), and their segmenting forms, with `M` mask coefficients after the classes.
//!
//! Exports write the values of a row either beside each other (`[N, values]`) or as planes (`[values, N]`). The number of
//! classes tells which; where the manifest names none, the shorter side is the values.

use super::{Decoder, Found, Geometry, LayoutFault, best, probability, shape_text};
use crate::inference::{OutputRole, RawOutputs, ScoreForm};

#[derive(Debug)]
pub(super) struct Yolo {
    pub class_count: Option<usize>,
    pub has_objectness: bool,
    pub scores: ScoreForm,
    pub geometry: Geometry,
}

/// How one output is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    rows: usize,
    class_count: usize,
    mask_count: usize,
    is_planar: bool,
}

impl Yolo {
    fn class_column(&self) -> usize {
        if self.has_objectness { 5 } else { 4 }
    }

    fn head(&self, raw: &RawOutputs<'_>) -> Result<Head, LayoutFault> {
        let first = self.class_column();
        let mask_count = raw.get(OutputRole::Prototypes).and_then(|output| output.shape.first().copied()).unwrap_or(0);
        let shape = raw.get(OutputRole::Detections).map_or(&[][..], |output| &output.shape);
        let fault = || {
            let values = match self.class_count {
                Some(count) => format!("{first} + {count} classes + {mask_count} mask coefficients"),
                None => format!("{first} + classes + {mask_count} mask coefficients"),
            };
            LayoutFault { expected: format!("[{values}, rows] or [rows, {values}]"), found: shape_text(shape) }
        };
        let &[a, b] = shape else { return Err(fault()) };
        let is_planar = match self.class_count.map(|count| first + count + mask_count) {
            Some(values) => match (a == values, b == values) {
                (true, true) => !self.has_objectness,
                (true, false) => true,
                (false, true) => false,
                (false, false) => return Err(fault()),
            },
            None => a < b,
        };
        let (values, rows) = if is_planar { (a, b) } else { (b, a) };
        let class_count = values.checked_sub(first + mask_count).filter(|count| *count > 0).ok_or_else(fault)?;
        Ok(Head { rows, class_count, mask_count, is_planar })
    }

    fn decode_rows(&self, values: &[f32], head: Head, input_px: [u32; 2], found: &mut Found<'_>) {
        let first = self.class_column();
        let columns = first + head.class_count + head.mask_count;
        let least = found.least();
        for (index, row) in values.chunks_exact(columns).enumerate() {
            let objectness = if self.has_objectness { probability(row[4], self.scores) } else { 1.0 };
            // A class score is at most 1, so most rows end here.
            if objectness < least {
                continue;
            }
            let (class, score) = best(&row[first..first + head.class_count]);
            let score = objectness * probability(score, self.scores);
            found.offer(index, class, score, || self.geometry.corners([row[0], row[1], row[2], row[3]], input_px));
        }
    }

    /// Plane by plane, in the order of memory: the best class of every row first.
    fn decode_planes(&self, values: &[f32], head: Head, input_px: [u32; 2], found: &mut Found<'_>) {
        if head.rows == 0 {
            return;
        }
        let first = self.class_column();
        let planes: Vec<&[f32]> = values.chunks_exact(head.rows).collect();
        let mut best_scores = vec![f32::NEG_INFINITY; head.rows];
        let mut best_classes = vec![0_u32; head.rows];
        for (class, plane) in (0_u32..).zip(&planes[first..first + head.class_count]) {
            for ((best, best_class), score) in best_scores.iter_mut().zip(&mut best_classes).zip(*plane) {
                // A score that is no number must win, so that it is seen; nothing is above it then.
                if score.is_nan() || *score > *best {
                    (*best, *best_class) = (*score, class);
                }
            }
        }
        for (index, (score, class)) in best_scores.iter().zip(&best_classes).enumerate() {
            let objectness = if self.has_objectness { probability(planes[4][index], self.scores) } else { 1.0 };
            let score = objectness * probability(*score, self.scores);
            found.offer(index, *class as usize, score, || {
                self.geometry.corners([0, 1, 2, 3].map(|plane: usize| planes[plane][index]), input_px)
            });
        }
    }
}

impl Decoder for Yolo {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let head = self.head(raw)?;
        let Some(output) = raw.get(OutputRole::Detections) else { return Ok(()) };
        let values = self.class_column() + head.class_count + head.mask_count;
        if output.values.len() != head.rows * values {
            let expected = format!("{} values", head.rows * values);
            return Err(LayoutFault { expected, found: format!("{} values", output.values.len()) });
        }
        if head.is_planar {
            self.decode_planes(output.values, head, raw.input_px, found);
        } else {
            self.decode_rows(output.values, head, raw.input_px, found);
        }
        Ok(())
    }

    fn coefficients(&self, raw: &RawOutputs<'_>, row: usize) -> Option<Vec<f32>> {
        let head = self.head(raw).ok().filter(|head| head.mask_count > 0 && row < head.rows)?;
        let values = raw.get(OutputRole::Detections)?.values;
        let first = self.class_column() + head.class_count;
        let columns = first + head.mask_count;
        let at = |mask: usize| {
            if head.is_planar { (first + mask) * head.rows + row } else { row * columns + first + mask }
        };
        (0..head.mask_count).map(|mask| values.get(at(mask)).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decoded, outputs, tensor};
    use super::*;
    use crate::inference::{BoxOrder, BoxUnit};

    const INPUT_PX: [u32; 2] = [64, 64];

    fn yolo(class_count: Option<usize>, has_objectness: bool) -> Yolo {
        let geometry = Geometry { unit: BoxUnit::InputPx, order: BoxOrder::Cxcywh };
        Yolo { class_count, has_objectness, scores: ScoreForm::Probability, geometry }
    }

    /// Eight rows of four values and two classes; only row 3 is anything.
    fn rows(extra: &[f32]) -> Vec<f32> {
        let columns = 6 + extra.len();
        let mut data = vec![0.0; 8 * columns];
        data[3 * columns..][..6].copy_from_slice(&[20.0, 30.0, 10.0, 8.0, 0.1, 0.8]);
        data[3 * columns + 6..][..extra.len()].copy_from_slice(extra);
        data
    }

    fn transposed(data: &[f32], rows: usize) -> Vec<f32> {
        let columns = data.len() / rows;
        (0..columns).flat_map(|column| (0..rows).map(move |row| data[row * columns + column])).collect()
    }

    fn check_found(decoder: &Yolo, shape: &[usize], data: &[f32], score: f32) {
        let raw = outputs(vec![tensor(OutputRole::Detections, shape, data)], INPUT_PX);
        let (found, broken_rows) = decoded(decoder, &raw).unwrap();
        let all: Vec<_> = found.iter().map(|one| (one.class, one.corners, one.row)).collect();
        assert_eq!(all, [(1, [15.0, 26.0, 25.0, 34.0], 3)], "{shape:?}");
        assert!((found[0].score - score).abs() < 1e-6 && broken_rows == 0);
    }

    #[test]
    fn planes_and_rows_hold_the_same() {
        let data = rows(&[]);
        for class_count in [Some(2), None] {
            check_found(&yolo(class_count, false), &[8, 6], &data, 0.8);
            check_found(&yolo(class_count, false), &[6, 8], &transposed(&data, 8), 0.8);
        }
    }

    #[test]
    fn objectness_multiplies_and_logits_are_bent() {
        let mut data = vec![0.0; 8 * 7];
        data[3 * 7..][..7].copy_from_slice(&[20.0, 30.0, 10.0, 8.0, 0.5, 0.1, 0.8]);
        check_found(&yolo(Some(2), true), &[8, 7], &data, 0.4);
        check_found(&yolo(Some(2), true), &[7, 8], &transposed(&data, 8), 0.4);
        let mut logits = vec![-9.0; 8 * 6];
        logits[3 * 6..][..6].copy_from_slice(&[20.0, 30.0, 10.0, 8.0, -1.0, 0.0]);
        let decoder = Yolo { scores: ScoreForm::Logit, ..yolo(Some(2), false) };
        check_found(&decoder, &[8, 6], &logits, 0.5);
        check_found(&decoder, &[6, 8], &transposed(&logits, 8), 0.5);
    }

    #[test]
    fn mask_coefficients_follow_the_classes() {
        let data = rows(&[7.0, 8.0, 9.0]);
        let prototypes = vec![0.0; 3 * 4];
        for (shape, data) in [([8, 9], data.clone()), ([9, 8], transposed(&data, 8))] {
            let tensors = vec![
                tensor(OutputRole::Detections, &shape, &data),
                tensor(OutputRole::Prototypes, &[3, 2, 2], &prototypes),
            ];
            let raw = outputs(tensors, INPUT_PX);
            let decoder = yolo(Some(2), false);
            assert_eq!(decoded(&decoder, &raw).unwrap().0.len(), 1);
            assert_eq!(decoder.coefficients(&raw, 3), Some(vec![7.0, 8.0, 9.0]));
            assert_eq!(decoder.coefficients(&raw, 8), None);
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_counted_in_rows_and_planes() {
        let mut data = rows(&[]);
        data[5 * 6 + 4] = f32::NAN;
        for (shape, data) in [([8, 6], data.clone()), ([6, 8], transposed(&data, 8))] {
            let raw = outputs(vec![tensor(OutputRole::Detections, &shape, &data)], INPUT_PX);
            assert_eq!(decoded(&yolo(Some(2), false), &raw).unwrap().1, 1, "{shape:?}");
        }
    }

    #[test]
    fn another_number_of_classes_is_a_fault_that_says_what_was_due() {
        let data = rows(&[]);
        let raw = outputs(vec![tensor(OutputRole::Detections, &[8, 6], &data)], INPUT_PX);
        let fault = decoded(&yolo(Some(3), false), &raw).unwrap_err();
        assert!(fault.expected.contains("4 + 3 classes") && fault.found == "[8, 6]", "{fault:?}");
        assert!(decoded(&yolo(None, true), &outputs(vec![], INPUT_PX)).is_err());
    }
}
