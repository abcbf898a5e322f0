//! From inspections to found, missing, surplus and doubtful.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::assign::assign;
use crate::types::{Inspection, Item, Kit, KitLine, Verdict};

/// One line, or the lines of one alternate group, as counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCount {
    /// The part, or each that may stand for it.
    pub parts: Vec<String>,
    /// Where the line names one.
    pub color_id: Option<i64>,
    pub alternate_group: Option<String>,
    pub is_spare: bool,
    /// Expected.
    pub quantity: u32,
    pub found: u32,
    /// Expected and not found; 0 for spares.
    pub missing: u32,
}

/// Accepted items that no line has room for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surplus {
    pub part_number: String,
    pub color: Option<String>,
    pub count: u32,
    /// Whether the kit names the part at all.
    pub is_in_kit: bool,
}

/// An item that a person must look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Code of the inspection.
    pub inspection: String,
    /// `None`: the picture as a whole is in doubt.
    pub ordinal: Option<u32>,
    /// What it looks most like.
    pub looks_like: Option<String>,
    pub reasons: Vec<String>,
}

/// What to book: accepted items by part, and by colour where the kit's line names one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Movement {
    pub part_number: String,
    pub color_id: Option<i64>,
    pub count: u32,
}

/// A kit and what was counted against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitCount {
    pub kit_code: String,
    pub kit_name: String,
    pub trays: u32,
    /// Lines that must be full, spares aside.
    pub expected: u32,
    pub found: u32,
    pub missing: u32,
    pub spares: u32,
    pub surplus: u32,
    pub doubtful: u32,
    /// Accepted items: found, spares and surplus.
    pub accepted: u32,
    pub is_complete: bool,
    pub lines: Vec<SlotCount>,
    pub surplus_items: Vec<Surplus>,
    pub doubts: Vec<Doubt>,
    pub movements: Vec<Movement>,
}

/// A line to fill: what fits into it and how often.
struct Slot<'a> {
    lines: Vec<&'a KitLine>,
    quantity: u32,
    is_spare: bool,
}

/// Part and colour of accepted items; the colour only where the kit asks for one of that part.
type Kind = (String, Option<String>);

/// Count `trays` against `kit`, in any order.
#[must_use]
pub fn count<'a>(kit: &Kit, trays: impl IntoIterator<Item = &'a Inspection>) -> KitCount {
    let colored: BTreeSet<&str> =
        kit.lines.iter().filter(|line| line.color_id.is_some()).map(|line| line.part_number.as_str()).collect();
    let any_color: BTreeSet<&str> =
        kit.lines.iter().filter(|line| line.color_id.is_none()).map(|line| line.part_number.as_str()).collect();
    let (mut kinds, mut doubts, mut tray_count) = (BTreeMap::<Kind, u32>::new(), Vec::new(), 0_u32);
    for inspection in trays {
        tray_count += 1;
        let picture_doubt = doubt_of_picture(inspection);
        if !picture_doubt.is_empty() {
            let reasons = picture_doubt.clone();
            doubts.push(Doubt { inspection: inspection.code.clone(), ordinal: None, looks_like: None, reasons });
        }
        for item in &inspection.items {
            let accepted = item.part_id.as_ref().filter(|_| item.verdict == Verdict::Pass && picture_doubt.is_empty());
            let Some(part) = accepted else {
                doubts.push(doubt_of(inspection, item, picture_doubt.clone()));
                continue;
            };
            // Not the colour of the template that is most alike: parts look alike in any colour.
            let seen = item.colour.as_ref().filter(|colour| colour.is_clear).map(|colour| colour.color_id.clone());
            let color = seen.filter(|_| colored.contains(part.as_str()));
            if color.is_none() && colored.contains(part.as_str()) && !any_color.contains(part.as_str()) {
                doubts.push(doubt_of(inspection, item, vec!["kit.color_unknown".to_owned()]));
                continue;
            }
            *kinds.entry((part.clone(), color)).or_default() += 1;
        }
    }
    doubts.sort_by(|a, b| (&a.inspection, a.ordinal).cmp(&(&b.inspection, b.ordinal)));
    tally(kit, kinds, doubts, tray_count)
}

fn tally(kit: &Kit, kinds: BTreeMap<Kind, u32>, doubts: Vec<Doubt>, trays: u32) -> KitCount {
    let slots = slots_of(kit);
    let regular = slots.iter().filter(|slot| !slot.is_spare).count();
    let kinds: Vec<(Kind, u32)> = kinds.into_iter().collect();
    let counts: Vec<u32> = kinds.iter().map(|(_, count)| *count).collect();
    let rooms: Vec<u32> = slots.iter().map(|slot| slot.quantity).collect();
    let flow = assign(&counts, &rooms, regular, |kind, slot| slots[slot].lines.iter().any(|l| fits(&kinds[kind].0, l)));
    let filled = |slot: usize| flow.iter().map(|row| row[slot]).sum::<u32>();
    let lines: Vec<SlotCount> = slots.iter().enumerate().map(|(at, slot)| slot_count(slot, filled(at))).collect();
    let mut surplus_items = Vec::new();
    let mut movements: BTreeMap<(String, Option<i64>), u32> = BTreeMap::new();
    for (row, ((part, color), count)) in flow.iter().zip(&kinds) {
        let over = count - row.iter().sum::<u32>();
        let is_in_kit = kit.lines.iter().any(|line| line.part_number == *part);
        if over > 0 {
            surplus_items.push(Surplus { part_number: part.clone(), color: color.clone(), count: over, is_in_kit });
            *movements.entry((part.clone(), None)).or_default() += over;
        }
        for (slot, moved) in slots.iter().zip(row).filter(|(_, moved)| **moved > 0) {
            let line = slot.lines.iter().find(|line| fits(&(part.clone(), color.clone()), line));
            *movements.entry((part.clone(), line.and_then(|line| line.color_id))).or_default() += moved;
        }
    }
    let sum = |of: fn(&SlotCount) -> u32, spares: bool| -> u32 {
        lines.iter().filter(|line| line.is_spare == spares).map(of).sum()
    };
    let (expected, found, spares) = (sum(|l| l.quantity, false), sum(|l| l.found, false), sum(|l| l.found, true));
    let surplus = surplus_items.iter().map(|surplus| surplus.count).sum();
    KitCount {
        kit_code: kit.kit_code.clone(),
        kit_name: kit.name.clone(),
        trays,
        expected,
        found,
        missing: expected - found,
        spares,
        surplus,
        doubtful: u32::try_from(doubts.len()).unwrap_or(u32::MAX),
        accepted: counts.iter().sum(),
        is_complete: expected == found && surplus == 0 && doubts.is_empty(),
        lines,
        surplus_items,
        doubts,
        movements: movements
            .into_iter()
            .map(|((part_number, color_id), count)| Movement { part_number, color_id, count })
            .collect(),
    }
}

fn fits((part, color): &Kind, line: &KitLine) -> bool {
    line.part_number == *part
        && line.color_id.is_none_or(|wanted| color.as_deref().is_some_and(|color| color == wanted.to_string()))
}

fn slot_count(slot: &Slot<'_>, found: u32) -> SlotCount {
    let first = slot.lines.first();
    SlotCount {
        parts: slot.lines.iter().map(|line| line.part_number.clone()).collect(),
        color_id: first.and_then(|line| line.color_id),
        alternate_group: first.and_then(|line| line.alternate_group.clone()),
        is_spare: slot.is_spare,
        quantity: slot.quantity,
        found,
        missing: if slot.is_spare { 0 } else { slot.quantity - found },
    }
}

/// Lines with colours first, so that they are filled before those that take any; spares last.
fn slots_of(kit: &Kit) -> Vec<Slot<'_>> {
    let mut slots: Vec<Slot<'_>> = Vec::new();
    for line in &kit.lines {
        let same = slots.iter_mut().find(|slot| {
            let first = slot.lines.first();
            line.alternate_group.is_some()
                && slot.is_spare == line.is_spare
                && first.is_some_and(|first| first.alternate_group == line.alternate_group)
        });
        match same {
            Some(slot) => slot.lines.push(line),
            None => slots.push(Slot { lines: vec![line], quantity: line.quantity, is_spare: line.is_spare }),
        }
    }
    slots.sort_by_key(|slot| (slot.is_spare, slot.lines.first().is_none_or(|line| line.color_id.is_none())));
    slots
}

/// Reasons of the inspection that none of its items explains: the picture, a model, the whole scene.
fn doubt_of_picture(inspection: &Inspection) -> Vec<String> {
    if inspection.verdict == Verdict::Pass {
        return Vec::new();
    }
    let is_of_item = |reason| inspection.items.iter().any(|item| item.reasons.contains(reason));
    inspection.reasons.iter().filter(|reason| !is_of_item(reason)).map(|reason| reason.code().to_owned()).collect()
}

fn doubt_of(inspection: &Inspection, item: &Item, mut reasons: Vec<String>) -> Doubt {
    reasons.extend(item.reasons.iter().map(|reason| reason.code().to_owned()));
    if reasons.is_empty() {
        // Nothing matched it: the recipe names no parts.
        reasons.push("kit.not_named".to_owned());
    }
    let looks_like = item.matched.as_ref().map(|matched| matched.part_id.clone());
    Doubt { inspection: inspection.code.clone(), ordinal: Some(item.ordinal), looks_like, reasons }
}

#[cfg(test)]
mod tests;
