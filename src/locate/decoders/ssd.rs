//! Graphs that end in their own suppression with separate outputs: TensorFlow's SSD (`detection_boxes` as top, left, bottom,
//! right of 0..1, classes from 1 on, `num_detections`) and TensorRT's EfficientNMS (corners in pixels, classes from 0 on).
//! The manifest's `[detector]` tells them apart.

use super::{Decoder, Found, Geometry, LayoutFault, shape_text};
use crate::inference::{OutputRole, RawOutputs};

#[derive(Debug)]
pub(super) struct Ssd {
    pub geometry: Geometry,
    pub class_offset: u32,
}

impl Decoder for Ssd {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie between 0 and the rows"
    )]
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let boxes = raw.get(OutputRole::Boxes);
        let scores = raw.get(OutputRole::Scores).map_or(&[][..], |output| output.values);
        let labels = raw.get(OutputRole::Labels).map(|output| output.values);
        let box_shape = boxes.map_or(&[][..], |output| &output.shape);
        let rows = scores.len();
        let Some(boxes) = boxes.filter(|output| {
            output.shape.last() == Some(&4)
                && output.values.len() == 4 * rows
                && labels.is_none_or(|labels| labels.len() == rows)
        }) else {
            let found =
                format!("boxes {}, {rows} scores, {} labels", shape_text(box_shape), labels.map_or(0, <[f32]>::len));
            return Err(LayoutFault { expected: "boxes [N, 4], scores [N] and labels [N]".to_owned(), found });
        };
        let count = match raw.get(OutputRole::Count).and_then(|output| output.values.first()) {
            None => rows,
            Some(count) if (0.0..=rows as f32).contains(count) => *count as usize,
            Some(count) => {
                let (expected, found) = (format!("a count of 0 to {rows}"), format!("{count}"));
                return Err(LayoutFault { expected, found });
            }
        };
        let (boxes, _) = boxes.values.as_chunks::<4>();
        for (index, (four, score)) in boxes.iter().zip(scores).take(count).enumerate() {
            let label = labels.map_or(self.class_offset as f32, |labels| labels[index]);
            found.offer_label(index, label, self.class_offset, *score, || self.geometry.corners(*four, raw.input_px));
        }
        Ok(())
    }

    fn is_final(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{decoded, outputs, tensor};
    use super::*;
    use crate::inference::{BoxOrder, BoxUnit};

    const DECODER: Ssd = Ssd { geometry: Geometry { unit: BoxUnit::Unit, order: BoxOrder::Yxyx }, class_offset: 1 };

    fn raw(count: &'static [f32]) -> RawOutputs<'static> {
        let tensors = vec![
            tensor(OutputRole::Boxes, &[3, 4], &[0.125, 0.25, 0.5, 0.75, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
            tensor(OutputRole::Scores, &[3], &[0.9, 0.8, 0.7]),
            tensor(OutputRole::Labels, &[3], &[2.0, 0.0, 1.0]),
            tensor(OutputRole::Count, &[], count),
        ];
        outputs(tensors, [100, 50])
    }

    #[test]
    fn only_what_is_counted_counts_and_background_does_not() {
        let (found, _) = decoded(&DECODER, &raw(&[2.0])).unwrap();
        assert_eq!(
            found.iter().map(|one| (one.class, one.corners)).collect::<Vec<_>>(),
            [(1, [25.0, 6.25, 75.0, 25.0])]
        );
        assert_eq!(decoded(&DECODER, &raw(&[3.0])).unwrap().0.len(), 2);
        assert_eq!(decoded(&DECODER, &raw(&[0.0])).unwrap().0.len(), 0);
    }

    #[test]
    fn a_count_beyond_the_rows_or_no_number_is_a_fault() {
        for count in [&[4.0_f32], &[-1.0], &[f32::NAN]] {
            assert!(decoded(&DECODER, &raw(count)).unwrap_err().expected.contains("0 to 3"));
        }
    }
}
