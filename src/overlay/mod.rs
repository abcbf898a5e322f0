//! Pictures for people: boxes, labels and heat maps drawn over a copy of the frame.
//!
//! Pure Rust, no I/O. Nothing measured is taken from these pictures. Runs in the pipeline's workers, after the decision.

mod canvas;
mod font;
mod heat;
mod surface;

pub use heat::draw_heatmap;
pub use surface::{draw_beside, draw_mask, draw_regions};

use crate::types::{Image, Inspection, Item, Verdict};
use canvas::{Canvas, Colour};

/// Reasons written beside the verdict; more end in `+n`.
const REASONS_MAX: usize = 3;

/// A copy of `image` with each item's box, its label and the verdict with its reasons. Green is PASS, amber HOLD, red
/// FAIL; what is not PASS says so in letters too, for those who cannot tell the colours apart.
#[must_use]
pub fn draw_inspection(image: &Image, inspection: &Inspection) -> Image {
    let mut canvas = Canvas::of(image);
    // Legible in a picture shown 640 wide.
    let scale = (i64::from(image.width_px()) / 640).max(1);
    for item in &inspection.items {
        let colour = colour_of(item.verdict);
        item.boxes().iter().for_each(|bbox| canvas.outline(bbox, 2 * scale, colour));
    }
    // After the boxes, so that none crosses a label.
    for item in &inspection.items {
        label(&mut canvas, item, scale);
    }
    let regions = inspection.anomaly.as_ref().map_or(&[][..], |anomaly| &anomaly.surface.regions);
    surface::mark(&mut canvas, regions, scale);
    banner(&mut canvas, inspection, scale + 1);
    canvas.into_image().unwrap_or_else(|| image.clone())
}

fn colour_of(verdict: Verdict) -> Colour {
    match verdict {
        Verdict::Pass => Colour { bgr: [70, 150, 40], ink: [255; 3] },
        Verdict::Hold => Colour { bgr: [0, 170, 250], ink: [0; 3] },
        Verdict::Fail => Colour { bgr: [50, 40, 210], ink: [255; 3] },
    }
}

fn label(canvas: &mut Canvas, item: &Item, scale: i64) {
    let text = label_of(item);
    let height = canvas::text_height(scale);
    #[expect(clippy::cast_possible_truncation, reason = "rounded positions within an image; saturates elsewhere")]
    let (x, y) = item.boxes().first().map_or((0, 0), |bbox| (bbox.x1 as i64, bbox.y1 as i64));
    // Above the box, or inside it at the picture's upper border.
    let y = if y >= height { y - height } else { y };
    let y = y.min(canvas.height() - height).max(0);
    let x = x.min(canvas.width() - canvas::text_width(&text, scale)).max(0);
    canvas.text(x, y, scale, &text, colour_of(item.verdict));
}

fn label_of(item: &Item) -> String {
    let best = item.matched.as_ref().map(|matched| matched.part_id.as_str());
    let name = item.part_id.as_deref().or(best).unwrap_or(&item.label);
    let mut text = match item.verdict {
        Verdict::Pass => name.to_owned(),
        Verdict::Hold => format!("HOLD {name}"),
        Verdict::Fail => format!("FAIL {name}"),
    };
    if let Some(similarity) = item.similarity {
        text.push_str(&format!(" {similarity:.2}"));
    }
    text
}

fn banner(canvas: &mut Canvas, inspection: &Inspection, scale: i64) {
    let mut text = inspection.verdict.as_str().to_uppercase();
    for reason in inspection.reasons.iter().take(REASONS_MAX) {
        text.push_str("  ");
        text.push_str(reason.code());
    }
    if inspection.reasons.len() > REASONS_MAX {
        text.push_str(&format!("  +{}", inspection.reasons.len() - REASONS_MAX));
    }
    // Smaller where it would not fit.
    let fitting = (1..=scale).rev().find(|&scale| canvas::text_width(&text, scale) <= canvas.width()).unwrap_or(1);
    canvas.text(0, 0, fitting, &text, colour_of(inspection.verdict));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BoundingBox, Reason};

    fn item(verdict: Verdict, bbox: BoundingBox) -> Item {
        Item {
            views: Vec::new(),
            size_mm: None,
            colour: None,
            ordinal: 0,
            bbox,
            label: "part".to_owned(),
            detection_confidence: 1.0,
            part_id: Some("3001".to_owned()),
            similarity: Some(0.874),
            margin: None,
            tier: None,
            matched: None,
            verdict,
            reasons: if verdict == Verdict::Pass { vec![] } else { vec![Reason::MarginSmall] },
        }
    }

    #[test]
    fn labels_say_part_similarity_and_doubt() {
        let bbox = BoundingBox::new(1.0, 1.0, 9.0, 9.0);
        assert_eq!(label_of(&item(Verdict::Pass, bbox)), "3001 0.87");
        assert_eq!(label_of(&item(Verdict::Hold, bbox)), "HOLD 3001 0.87");
        let unmatched = Item { part_id: None, similarity: None, ..item(Verdict::Fail, bbox) };
        assert_eq!(label_of(&unmatched), "FAIL part");
    }

    #[test]
    fn labels_stay_inside_the_picture() {
        let image = Image::from_bgr(200, 100, vec![0; 60_000]).unwrap();
        for (x, y) in [(-20.0, -20.0), (190.0, 2.0), (150.0, 98.0)] {
            let mut canvas = Canvas::of(&image);
            label(&mut canvas, &item(Verdict::Hold, BoundingBox::new(x, y, x + 30.0, y + 30.0)), 1);
            let drawn = canvas.into_image().unwrap();
            let amber = drawn.bgr().chunks_exact(3).filter(|pixel| *pixel == colour_of(Verdict::Hold).bgr).count();
            assert!(amber > 500, "{x},{y}: {amber}");
        }
    }
}
