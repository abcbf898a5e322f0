//! What each frame needs of the one before it, although several workers inspect at once.
//!
//! Frames leave the capture queue in order, so when a worker asks for frame `n − 1`, another worker already holds it
//! and will publish: the wait is short and cannot deadlock. Only the last few frames are kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::quality::PreviousFrame;

/// Frames kept a station: more than workers can be apart.
const KEPT_FRAMES: usize = 1_024;
/// A worker that died would leave its slot empty: past this the frame counts as having no predecessor.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Hand-over of frame fingerprints between the workers of one station; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<(Mutex<Frames>, Condvar)>);

/// By position; `None` for a frame that could not be decoded.
type Frames = BTreeMap<u64, Option<PreviousFrame>>;

impl History {
    /// Say what frame `position` was; `None` when it could not be decoded.
    pub fn publish(&self, position: u64, frame: Option<PreviousFrame>) {
        let mut frames = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        frames.insert(position, frame);
        while frames.len() > KEPT_FRAMES {
            frames.pop_first();
        }
        drop(frames);
        self.0.1.notify_all();
    }

    /// The frame before `position`, once it is known.
    #[must_use]
    pub fn before(&self, position: u64) -> Option<PreviousFrame> {
        let wanted = position.checked_sub(1)?;
        let frames = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (frames, _) = self
            .0
            .1
            .wait_timeout_while(frames, WAIT_MAX, |frames| !frames.contains_key(&wanted))
            .unwrap_or_else(PoisonError::into_inner);
        frames.get(&wanted).cloned().flatten()
    }
}
