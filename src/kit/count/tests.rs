//! Counting: order, conservation, alternates, colours, doubt.

use proptest::prelude::*;

use super::{KitCount, count};
use crate::types::{
    BoundingBox, ColourEvidence, Digest, Inspection, InspectionId, Item, Kit, KitLine, MatchEvidence, Reason, Tier,
    Timestamp, Timings, Verdict,
};

/// A part, its colour, and whether it was accepted.
type Seen = (&'static str, Option<&'static str>, bool);

fn item(ordinal: u32, (part, color, is_accepted): Seen) -> Item {
    let matched = MatchEvidence {
        part_id: part.to_owned(),
        color_id: Some("99".to_owned()), // a template's, which proves nothing
        template: 0,
        similarity: 0.9,
        second_part_id: None,
        second_similarity: None,
        margin: 2.0,
        tier: Tier::L1,
        entered_stage2: false,
        stage1_ms: 0.0,
        stage2_ms: 0.0,
        top_k: Vec::new(),
        shares_group: false,
        delta_sha256: None,
        quality_level: None,
        probability: None,
        unknown_probability: None,
        required_probability: None,
    };
    Item {
        size_mm: None,
        colour: color.map(ColourEvidence::said),
        ordinal,
        bbox: BoundingBox::new(0.0, 0.0, 1.0, 1.0),
        views: Vec::new(),
        label: "part".to_owned(),
        detection_confidence: 1.0,
        part_id: is_accepted.then(|| part.to_owned()),
        similarity: Some(0.9),
        margin: Some(2.0),
        tier: Some(Tier::L1),
        matched: Some(matched),
        verdict: if is_accepted { Verdict::Pass } else { Verdict::Hold },
        reasons: if is_accepted { Vec::new() } else { vec![Reason::MarginSmall] },
    }
}

fn tray(code: usize, seen: &[Seen]) -> Inspection {
    let items: Vec<Item> = (0..).zip(seen).map(|(ordinal, seen)| item(ordinal, *seen)).collect();
    let is_held = items.iter().any(|item| item.verdict == Verdict::Hold);
    Inspection {
        id: InspectionId(uuid::Uuid::from_u128(code as u128)),
        code: format!("INS-20261121-{code:04}"),
        source: String::new(),
        station: String::new(),
        camera: String::new(),
        recipe: String::new(),
        frame_seq: 0,
        is_stream: false,
        captured_at: Timestamp::from_micros(0),
        decided_at: Timestamp::from_micros(0),
        views: Vec::new(),
        width_px: 1,
        height_px: 1,
        frame_sha256: Digest::of(b""),
        provenance_sha256: Digest::of(b""),
        verdict: if is_held { Verdict::Hold } else { Verdict::Pass },
        reasons: if is_held { vec![Reason::MarginSmall] } else { Vec::new() },
        anomaly: None,
        items,
        quality: None,
        providers: Vec::new(),
        is_provider_fallback: false,
        faults: Vec::new(),
        elapsed_ms: 0.0,
        deadline_ms: None,
        timings_ms: Timings::default(),
        artifacts: Vec::new(),
    }
}

fn line(part: &str, color_id: Option<i64>, quantity: u32, is_spare: bool, group: Option<&str>) -> KitLine {
    let alternate_group = group.map(str::to_owned);
    KitLine { part_number: part.to_owned(), color_id, quantity, is_spare, alternate_group }
}

fn kit(lines: Vec<KitLine>) -> Kit {
    Kit { kit_code: "k".to_owned(), name: "k".to_owned(), lines }
}

/// `(found, missing, surplus, doubtful, spares, is_complete)`
fn figures(count: &KitCount) -> (u32, u32, u32, u32, u32, bool) {
    (count.found, count.missing, count.surplus, count.doubtful, count.spares, count.is_complete)
}

fn check(lines: Vec<KitLine>, seen: &[Seen], expected: (u32, u32, u32, u32, u32, bool)) {
    let count = count(&kit(lines), [&tray(1, seen)]);
    assert_eq!(figures(&count), expected, "{count:#?}");
}

const A: Seen = ("a", Some("4"), true);
const A_BLUE: Seen = ("a", Some("1"), true);
const B: Seen = ("b", None, true);
const HELD: Seen = ("a", Some("4"), false);

#[test]
fn found_missing_surplus_and_doubt() {
    let lines = || vec![line("a", None, 2, false, None), line("b", None, 1, false, None)];
    check(lines(), &[A, A_BLUE, B], (3, 0, 0, 0, 0, true));
    check(lines(), &[A], (1, 2, 0, 0, 0, false));
    check(lines(), &[A, A, A, B], (3, 0, 1, 0, 0, false));
    check(lines(), &[A, A, B, HELD], (3, 0, 0, 1, 0, false));
    check(lines(), &[], (0, 3, 0, 0, 0, false));
}

#[test]
fn a_colour_counts_only_where_the_line_names_one() {
    let lines = || vec![line("a", Some(4), 1, false, None)];
    check(lines(), &[A], (1, 0, 0, 0, 0, true));
    check(lines(), &[A_BLUE], (0, 1, 1, 0, 0, false));
    check(lines(), &[("a", None, true)], (0, 1, 0, 1, 0, false));
    let both = || vec![line("a", None, 1, false, None), line("a", Some(4), 1, false, None)];
    check(both(), &[A, A_BLUE], (2, 0, 0, 0, 0, true));
    check(both(), &[A, A], (2, 0, 0, 0, 0, true));
    check(both(), &[A_BLUE, A_BLUE], (1, 1, 1, 0, 0, false));
}

#[test]
fn a_colour_that_is_not_clear_is_a_doubt_until_a_person_says_it() {
    let kit = kit(vec![line("a", Some(4), 1, false, None)]);
    let mut seen = tray(1, &[A]);
    let colour = ColourEvidence { is_clear: false, ..ColourEvidence::said("4") };
    seen.items[0].colour = Some(colour);
    assert_eq!(figures(&count(&kit, [&seen])), (0, 1, 0, 1, 0, false));
    crate::kit::settle(&mut seen, 0, "a", Some("4"));
    assert_eq!(figures(&count(&kit, [&seen])), (1, 0, 0, 0, 0, true));
}

#[test]
fn alternates_share_one_quantity_and_spares_may_be_missing() {
    let lines = || vec![line("a", None, 2, false, Some("g")), line("b", None, 2, false, Some("g"))];
    check(lines(), &[A, B], (2, 0, 0, 0, 0, true));
    check(lines(), &[B, B], (2, 0, 0, 0, 0, true));
    check(lines(), &[A, B, B], (2, 0, 1, 0, 0, false));
    let spare = || vec![line("a", None, 1, false, None), line("a", None, 1, true, None)];
    check(spare(), &[A], (1, 0, 0, 0, 0, true));
    check(spare(), &[A, A], (1, 0, 0, 0, 1, true));
    check(spare(), &[A, A, A], (1, 0, 1, 0, 1, false));
}

#[test]
fn a_doubtful_picture_makes_all_its_items_doubtful() {
    let mut blurred = tray(1, &[A]);
    blurred.verdict = Verdict::Hold;
    blurred.reasons = vec![Reason::FrameBlurred];
    let count = count(&kit(vec![line("a", None, 1, false, None)]), [&blurred]);
    assert_eq!(figures(&count), (0, 1, 0, 2, 0, false), "{count:#?}");
}

fn any_line() -> impl Strategy<Value = KitLine> {
    let part = prop::sample::select(vec!["a", "b", "c"]);
    let group = prop::sample::select(vec![None, None, Some("g"), Some("h")]);
    (part, prop::option::of(1_i64..3), 1_u32..4, any::<bool>(), group).prop_map(
        |(part, color, quantity, spare, group)| {
            // Lines of a group say one quantity, as the import insists.
            line(part, color, if group.is_some() { 2 } else { quantity }, spare, group)
        },
    )
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let part = prop::sample::select(vec!["a", "b", "c", "d"]);
    let color = prop::sample::select(vec![None, Some("1"), Some("2"), Some("3")]);
    (part, color, prop::bool::weighted(0.8))
}

proptest! {
    #[test]
    fn the_order_of_the_trays_does_not_matter_and_nothing_is_lost(
        lines in prop::collection::vec(any_line(), 1..7),
        trays in prop::collection::vec(prop::collection::vec(any_seen(), 0..5), 0..6),
        turn in 0_usize..6,
    ) {
        let kit = kit(lines);
        let mut trays: Vec<Inspection> = trays.iter().enumerate().map(|(code, seen)| tray(code, seen)).collect();
        let first = count(&kit, &trays);
        trays.reverse();
        let turn = turn.min(trays.len());
        trays.rotate_left(turn);
        prop_assert_eq!(&first, &count(&kit, &trays));

        let items: usize = trays.iter().map(|tray| tray.items.len()).sum();
        prop_assert_eq!(first.expected, first.found + first.missing);
        prop_assert_eq!(first.accepted, first.found + first.spares + first.surplus);
        prop_assert_eq!(items, (first.accepted + first.doubtful) as usize);
        let booked: u32 = first.movements.iter().map(|movement| movement.count).sum();
        prop_assert_eq!(booked, first.accepted);
        for line in &first.lines {
            prop_assert!(line.found <= line.quantity);
            prop_assert!(line.is_spare || line.found + line.missing == line.quantity);
        }
        // What is over fits nowhere that has room.
        for surplus in &first.surplus_items {
            let open = first.lines.iter().any(|line| {
                line.found < line.quantity && line.parts.contains(&surplus.part_number) && line.color_id.is_none()
                    && line.alternate_group.is_none()
            });
            prop_assert!(!open, "{first:#?}");
        }
        prop_assert_eq!(first.is_complete, first.missing == 0 && first.surplus == 0 && first.doubtful == 0);
    }
}
