//! What a person said of an item settles its doubt.

use crate::types::{ColourEvidence, Inspection, Verdict};

/// Take item `ordinal` as `part` (and `color`, where it was said) instead of what was decided.
///
/// What else was in doubt about the inspection stays in doubt.
pub fn settle(inspection: &mut Inspection, ordinal: u32, part: &str, color: Option<&str>) {
    let of_items = |inspection: &Inspection, reason| inspection.items.iter().any(|item| item.reasons.contains(reason));
    let of_picture: Vec<_> =
        inspection.reasons.iter().filter(|reason| !of_items(inspection, reason)).copied().collect();
    let Some(item) = inspection.items.iter_mut().find(|item| item.ordinal == ordinal) else { return };
    item.part_id = Some(part.to_owned());
    item.verdict = Verdict::Pass;
    item.reasons.clear();
    if let Some(color) = color {
        item.colour = Some(ColourEvidence::said(color));
    }
    if let Some(matched) = &mut item.matched {
        // The colour of another part's template says nothing of this one.
        if color.is_some() || matched.part_id != part {
            matched.color_id = color.map(str::to_owned);
        }
    }
    let mut reasons = of_picture;
    for reason in inspection.items.iter().flat_map(|item| &item.reasons) {
        if !reasons.contains(reason) {
            reasons.push(*reason);
        }
    }
    if reasons.is_empty() {
        inspection.verdict = Verdict::Pass;
    }
    inspection.reasons = reasons;
}
