//! Non-maximum suppression. Pure; quadratic in what it is given, which callers bound.

use super::Detection;
use crate::types::BoundingBox;

/// Of boxes with the same label that overlap by more than `iou_max` (0 to 1), keep the most confident. The rest come
/// out most confident first; equal confidence keeps the order given.
#[must_use]
pub fn suppress(mut detections: Vec<Detection>, iou_max: f32) -> Vec<Detection> {
    detections.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    keep_first(detections, iou_max, |a, b| a.label == b.label, |one| one.bbox)
}

/// Of `sorted` (best first) keep each that overlaps none before it that is kept, of the same class, by more than `iou_max`.
pub(super) fn keep_first<T>(
    sorted: Vec<T>,
    iou_max: f32,
    is_same_class: impl Fn(&T, &T) -> bool,
    box_of: impl Fn(&T) -> BoundingBox,
) -> Vec<T> {
    let mut kept: Vec<(BoundingBox, T)> = Vec::new();
    for one in sorted {
        let bbox = box_of(&one);
        if !kept.iter().any(|(better_box, better)| is_same_class(better, &one) && better_box.iou(&bbox) > iou_max) {
            kept.push((bbox, one));
        }
    }
    kept.into_iter().map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detection(x: f32, y: f32, size: f32, label: &str, confidence: f32) -> Detection {
        Detection { bbox: BoundingBox::new(x, y, x + size, y + size), label: label.to_owned(), confidence }
    }

    #[test]
    fn overlapping_boxes_of_one_class_leave_the_best() {
        let found = suppress(
            vec![
                detection(0.0, 0.0, 10.0, "a", 0.6),
                detection(1.0, 1.0, 10.0, "a", 0.9),
                detection(1.0, 0.0, 10.0, "b", 0.5),
            ],
            0.45,
        );
        let labels: Vec<_> = found.iter().map(|d| (d.label.as_str(), d.confidence)).collect();
        assert_eq!(labels, [("a", 0.9), ("b", 0.5)]);
    }

    fn detections() -> impl Strategy<Value = Vec<Detection>> {
        let one = (0.0_f32..50.0, 0.0_f32..50.0, 1.0_f32..30.0, prop_oneof![Just("a"), Just("b")], 0.0_f32..1.0);
        proptest::collection::vec(one.prop_map(|(x, y, size, label, score)| detection(x, y, size, label, score)), 0..40)
    }

    proptest! {
        #[test]
        fn kept_boxes_never_overlap_and_lost_ones_were_covered_by_better(all in detections(), iou_max in 0.1_f32..0.9) {
            let kept = suppress(all.clone(), iou_max);
            let covers = |a: &Detection, b: &Detection| a.label == b.label && a.bbox.iou(&b.bbox) > iou_max;
            for (index, a) in kept.iter().enumerate() {
                prop_assert!(kept[index + 1..].iter().all(|b| !covers(a, b) && b.confidence <= a.confidence));
            }
            for lost in all.iter().filter(|one| !kept.contains(one)) {
                prop_assert!(kept.iter().any(|better| covers(better, lost) && better.confidence >= lost.confidence));
            }
            prop_assert_eq!(suppress(kept.clone(), iou_max), kept);
        }
    }
}
