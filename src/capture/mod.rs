//! Frames from files: folders, image lists and videos; pictures of several views put together.
//!
//! The only user of OpenCV. Everything behind this room sees [`crate::types::Image`] and never a `Mat`.
//! Invariant: a picture is complete or it is refused with a reason; nothing is filled in for missing data.
//! Thread: each source belongs to the station's capture thread and blocks there; decoding happens in the workers.
//! Overload: sources are pulled, so they never queue anything themselves. File input is never dropped.

mod codec;
pub mod container;
mod error;
mod files;
mod jpeg;
mod list;
mod png;
mod source;
mod video;
mod views;
mod watch;

pub use codec::{check_image, decode_image, encode_jpeg, encode_png, read_bytes, read_image, resize_to_width};
pub use container::sniff;
pub use error::CaptureError;
pub use source::{
    CapturedFrame, FrameSource, PICTURE_EXTENSIONS, Payload, SourceKind, SourceSpec, VIDEO_EXTENSIONS, open_source,
    paths_source,
};
pub use views::side_by_side;
