//! Detection transformers with their post-processing in the graph: RT-DETR, D-FINE, DEIM.
//!
//! Labels `[Q]`, boxes `[Q, 4]` and scores `[Q]`, one a query. The graph scales the boxes by its second input, which is given
//! the size of its picture input, so that boxes come in input pixels like those of every other layout. There are no
//! duplicates by construction.

use super::{Decoder, Found, Geometry, LayoutFault, class_of, probability, shape_text};
use crate::inference::{OutputRole, RawOutputs, ScoreForm};

#[derive(Debug)]
pub(super) struct Detr {
    pub geometry: Geometry,
    pub class_offset: u32,
    pub scores: ScoreForm,
}

impl Decoder for Detr {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let values = |role| raw.get(role).map_or((&[][..], &[][..]), |output| (&output.shape[..], output.values));
        let ((_, labels), (box_shape, boxes), (_, scores)) =
            (values(OutputRole::Labels), values(OutputRole::Boxes), values(OutputRole::Scores));
        let queries = scores.len();
        if labels.len() != queries || boxes.len() != 4 * queries || box_shape.last() != Some(&4) {
            return Err(LayoutFault {
                expected: "labels [N], boxes [N, 4] and scores [N]".to_owned(),
                found: format!("{} labels, boxes {} and {queries} scores", labels.len(), shape_text(box_shape)),
            });
        }
        let (boxes, _) = boxes.as_chunks::<4>();
        for (index, ((label, four), score)) in labels.iter().zip(boxes).zip(scores).enumerate() {
            if let Some(class) = class_of(*label, self.class_offset) {
                let score = probability(*score, self.scores);
                found.offer(index, class, score, || self.geometry.corners(*four, raw.input_px));
            }
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

    #[test]
    fn three_outputs_make_boxes_and_their_lengths_must_agree() {
        let geometry = Geometry { unit: BoxUnit::InputPx, order: BoxOrder::Xyxy };
        let decoder = Detr { geometry, class_offset: 0, scores: ScoreForm::Probability };
        let raw = |scores: &'static [f32]| {
            let tensors = vec![
                tensor(OutputRole::Labels, &[2], &[7.0, 2.0]),
                tensor(OutputRole::Boxes, &[2, 4], &[0.0, 0.0, 1.0, 1.0, -3.0, 4.0, 50.0, 60.0]),
                tensor(OutputRole::Scores, &[2], scores),
            ];
            outputs(tensors, [64, 64])
        };
        let (found, _) = decoded(&decoder, &raw(&[0.2, 0.6])).unwrap();
        assert_eq!(
            found.iter().map(|one| (one.class, one.corners)).collect::<Vec<_>>(),
            [(2, [-3.0, 4.0, 50.0, 60.0])]
        );
        assert!(decoded(&decoder, &raw(&[0.2])).unwrap_err().found.contains("2 labels"));
    }
}
