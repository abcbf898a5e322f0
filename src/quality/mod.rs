//! Frame quality: pure metrics and the gate that turns doubt into reasons.
//!
//! No I/O, no clock, no logging, no OpenCV. Runs in the pipeline's workers, once a frame; below a millisecond for a
//! 1280×720 frame on one core, allocating one working image of at most 640 pixels' width.

mod gate;
mod metrics;
pub mod phash;
mod ssim;
#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "synthetic pixels, in range by construction"
)]
mod testing;
mod working;

pub use gate::{PreviousFrame, QualityLimits, gate, of_views};
pub use metrics::{FrameMetrics, measure};
pub use ssim::{Reference, Similarity};
pub use working::WORKING_WIDTH_PX_MAX;
