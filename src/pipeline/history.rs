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

/// By position; of each picture of the frame, nothing of one that could not be decoded.
type Frames = BTreeMap<u64, Vec<PreviousFrame>>;

impl History {
    /// Say what the pictures of frame `position` were; none when it could not be decoded.
    pub fn publish(&self, position: u64, frame: Vec<PreviousFrame>) {
        let mut frames = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        frames.insert(position, frame);
        while frames.len() > KEPT_FRAMES {
            frames.pop_first();
        }
        drop(frames);
        self.0.1.notify_all();
    }

    /// The pictures of the frame before `position`, once they are known.
    #[must_use]
    pub fn before(&self, position: u64) -> Vec<PreviousFrame> {
        let Some(wanted) = position.checked_sub(1) else { return Vec::new() };
        let frames = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (frames, _) = self
            .0
            .1
            .wait_timeout_while(frames, WAIT_MAX, |frames| !frames.contains_key(&wanted))
            .unwrap_or_else(PoisonError::into_inner);
        frames.get(&wanted).cloned().unwrap_or_default()
    }
}
