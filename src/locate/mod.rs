//! Where the parts are: boxes with labels.
//!
//! Four ways: [`whole`] takes the frame as one item, [`regions`] what the recipe says, [`BlobLocator`] looks for what the background does not explain,
//! and [`DetectorLocator`] names what it knows. Runs in the pipeline's workers; keeps no state between frames.
//! Overload: more boxes than [`crate::limits::ITEMS_PER_FRAME_MAX`] are cut one above it, so that the caller notices.

mod background;
mod blob;
pub mod coco;
mod decoders;
mod detector;
mod mask;
pub mod nms;
mod planes;
mod segment;
mod tiles;

use crate::types::{BoundingBox, Image};

pub use blob::{BLOB_LABEL, BlobLocator, BlobOptions};
pub use decoders::RowFault;
pub use detector::{DetectorLocator, DetectorOptions, LocateError, Segment, decode_outputs};
pub use segment::BoxMask;

/// Label of the one item of [`whole`].
pub const WHOLE_LABEL: &str = "frame";

/// Label of the items of [`regions`].
pub const REGION_LABEL: &str = "region";

/// Whether a box of this label is where it is because somebody said so: that it ends at the border then proves nothing.
#[must_use]
pub fn is_placed(label: &str) -> bool {
    label == WHOLE_LABEL || label == REGION_LABEL
}

/// One located thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Frame pixels, inside the frame.
    pub bbox: BoundingBox,
    pub label: String,
    /// 0 to 1.
    pub confidence: f32,
}

/// The frame as a single item.
#[must_use]
pub fn whole(image: &Image) -> Vec<Detection> {
    let bbox = BoundingBox::whole(image.width_px(), image.height_px());
    vec![Detection { bbox, label: WHOLE_LABEL.to_owned(), confidence: 1.0 }]
}

/// The recipe's regions, px of the frame, an item each.
///
/// # Errors
/// When one of them reaches out of the frame, by its position.
pub fn regions(image: &Image, regions: &[BoundingBox]) -> Result<Vec<Detection>, LocateError> {
    let (width, height) = (image.width_px() as f32, image.height_px() as f32);
    let is_outside = |region: &BoundingBox| region.x2 > width || region.y2 > height;
    if let Some(position) = regions.iter().position(is_outside) {
        return Err(LocateError::Region { position, width_px: image.width_px(), height_px: image.height_px() });
    }
    let detection = |&bbox: &BoundingBox| Detection { bbox, label: REGION_LABEL.to_owned(), confidence: 1.0 };
    Ok(regions.iter().map(detection).collect())
}
