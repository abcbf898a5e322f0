//! Detection transformers: RT-DETR, D-FINE, DEIM, RF-DETR.
//!
//! With their post-processing in the graph: labels `[Q]`, boxes `[Q, 4]` and scores `[Q]`, one a query. The graph scales the
//! boxes by its second input, which is given the size of its picture input, so that boxes come in input pixels like those of
//! every other layout. Without it (Hugging Face, RF-DETR): boxes `[Q, 4]` and scores `[Q, C]`, mostly `cxcywh` of 0 to 1 and
//! logits; the best class of a query counts. There are no duplicates by construction.

use super::{Decoder, Found, Geometry, LayoutFault, best, probability, shape_text};
use crate::inference::{OutputRole, RawOutputs, ScoreForm};

#[derive(Debug)]
pub(super) struct Detr {
    pub geometry: Geometry,
    /// Of the manifest, those below `class_offset` not among them.
    pub class_count: Option<usize>,
    pub class_offset: u32,
    pub scores: ScoreForm,
}

impl Detr {
    /// Scores of every class for each query.
    fn decode_classes(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        let (boxes, scores) = (raw.get(OutputRole::Boxes), raw.get(OutputRole::Scores));
        let shapes = [boxes, scores].map(|output| output.map_or(&[][..], |output| &output.shape));
        let columns = match (boxes, scores, shapes) {
            (Some(boxes), Some(scores), [&[queries, 4], &[rows, columns]])
                if queries == rows && boxes.values.len() == 4 * rows && scores.values.len() == rows * columns =>
            {
                columns
            }
            _ => 0,
        };
        let is_right = |count: usize| columns == count + self.class_offset as usize;
        let (Some(boxes), Some(scores), true) = (boxes, scores, columns > 0 && self.class_count.is_none_or(is_right))
        else {
            let classes =
                self.class_count.map_or("C".to_owned(), |count| (count + self.class_offset as usize).to_string());
            let expected = format!("boxes [N, 4] and scores [N, {classes}]");
            let found = format!("boxes {} and scores {}", shape_text(shapes[0]), shape_text(shapes[1]));
            return Err(LayoutFault { expected, found });
        };
        let (boxes, _) = boxes.values.as_chunks::<4>();
        for (index, (four, row)) in boxes.iter().zip(scores.values.chunks_exact(columns)).enumerate() {
            let (class, score) = best(row);
            let score = probability(score, self.scores);
            found.offer_label(index, class as f32, self.class_offset, score, || {
                self.geometry.corners(*four, raw.input_px)
            });
        }
        Ok(())
    }
}

impl Decoder for Detr {
    fn decode(&self, raw: &RawOutputs<'_>, found: &mut Found<'_>) -> Result<(), LayoutFault> {
        if raw.get(OutputRole::Labels).is_none() {
            return self.decode_classes(raw, found);
        }
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
            let score = probability(*score, self.scores);
            found.offer_label(index, *label, self.class_offset, score, || self.geometry.corners(*four, raw.input_px));
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
        let decoder = Detr { geometry, class_count: None, class_offset: 0, scores: ScoreForm::Probability };
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

    #[test]
    fn scores_of_every_class_give_the_best_one_and_must_be_as_many_as_the_manifest_names() {
        let geometry = Geometry { unit: BoxUnit::Unit, order: BoxOrder::Cxcywh };
        let decoder =
            |count, class_offset| Detr { geometry, class_count: Some(count), class_offset, scores: ScoreForm::Logit };
        // Query 0 is nothing, 1 is class 2 at 0.5, and 2 is class 0.
        let scores = [-9.0, -9.0, -9.0, -2.0, -1.0, 0.0, 1.0, -9.0, -9.0];
        let boxes = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 1.0, 1.0];
        let tensors = || vec![tensor(OutputRole::Boxes, &[3, 4], &boxes), tensor(OutputRole::Scores, &[3, 3], &scores)];
        let found = |decoder: &Detr| {
            let (found, _) = decoded(decoder, &outputs(tensors(), [80, 40])).unwrap();
            found.iter().map(|one| (one.class, one.corners)).collect::<Vec<_>>()
        };
        let (first, whole) = ([20.0, 15.0, 60.0, 25.0], [0.0, 0.0, 80.0, 40.0]);
        assert_eq!(found(&decoder(3, 0)), [(2, first), (0, whole)]);
        assert_eq!(found(&decoder(2, 1)), [(1, first)], "class 0 is the background");
        let fault = decoded(&decoder(2, 0), &outputs(tensors(), [80, 40])).unwrap_err();
        assert!(fault.expected.contains("[N, 2]") && fault.found.contains("[3, 3]"), "{fault:?}");
    }
}
