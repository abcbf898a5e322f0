//! Where the parts are: boxes with labels.
//!
//! Three ways: [`whole`] takes the frame as one item, [`BlobLocator`] looks for what the background does not explain,
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
pub use detector::{DetectorLocator, DetectorOptions, LocateError, Segment, decode_outputs};
pub use segment::BoxMask;

/// Label of the one item of [`whole`].
pub const WHOLE_LABEL: &str = "frame";

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
