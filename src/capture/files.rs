//! Pictures and videos one after another.

use std::path::{Path, PathBuf};

use super::video::VideoReader;
use super::{CaptureError, CapturedFrame, FrameSource, Payload, read_bytes};
use crate::clock::Clock;
use crate::shutdown::Shutdown;
use crate::types::{Reason, Timestamp};

/// One file to play.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Picture(PathBuf),
    Video { path: PathBuf, every_nth: u32 },
}

/// Plays its entries in order, once or for ever.
#[derive(Debug)]
pub(super) struct FilesSource {
    entries: Vec<Entry>,
    /// Entry to open next.
    at: usize,
    repeat: bool,
    /// The video being played.
    video: Option<VideoReader>,
    seq: u64,
    clock: Clock,
    shutdown: Shutdown,
}

impl FilesSource {
    pub(super) fn new(entries: Vec<Entry>, repeat: bool, clock: Clock, shutdown: Shutdown) -> Self {
        Self { entries, at: 0, repeat, video: None, seq: 0, clock, shutdown }
    }

    /// Open the first entry now where it is a video.
    pub(super) fn open_first(&mut self) -> Result<(), CaptureError> {
        if let Some(Entry::Video { path, every_nth }) = self.entries.first() {
            self.video = Some(VideoReader::open(path, *every_nth)?);
            self.at = 1;
        }
        Ok(())
    }

    fn next_unnumbered(&mut self) -> Option<CapturedFrame> {
        loop {
            if let Some(video) = &mut self.video {
                if let Some(frame) = video.next(&self.clock) {
                    return Some(frame);
                }
                self.video = None;
            }
            if self.at >= self.entries.len() {
                if !self.repeat || self.entries.is_empty() {
                    return None;
                }
                self.at = 0;
            }
            let now = self.clock.now();
            let entry = &self.entries[self.at];
            self.at += 1;
            match entry {
                Entry::Picture(path) => return Some(picture(path, now)),
                Entry::Video { path, every_nth } => match VideoReader::open(path, *every_nth) {
                    Ok(video) => self.video = Some(video),
                    Err(error) => {
                        let source = path.display().to_string();
                        return Some(CapturedFrame::fault(source, now, Reason::FrameUnreadable, error.to_string()));
                    }
                },
            }
        }
    }
}

impl FrameSource for FilesSource {
    fn next(&mut self) -> Result<Option<CapturedFrame>, CaptureError> {
        if self.shutdown.is_requested() {
            return Ok(None);
        }
        Ok(self.next_unnumbered().map(|mut frame| {
            frame.seq = self.seq;
            self.seq += 1;
            frame
        }))
    }
}

/// A picture file's bytes, or why they cannot be had.
pub(super) fn picture(path: &Path, captured_at: Timestamp) -> CapturedFrame {
    let source = path.display().to_string();
    match read_bytes(path) {
        Ok(bytes) => CapturedFrame::still(source, captured_at, Payload::Encoded(bytes)),
        Err(error) => CapturedFrame::fault(source, captured_at, Reason::FrameUnreadable, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_a_fault_and_not_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("b.jpg");
        std::fs::write(&good, b"bytes").unwrap();
        let entries = vec![
            Entry::Picture(folder.path().join("a.jpg")),
            Entry::Video { path: folder.path().join("a.mp4"), every_nth: 1 },
            Entry::Picture(good),
        ];
        let mut source = FilesSource::new(entries, true, Clock::system(), Shutdown::new());
        for round in 0..2 {
            for name in ["a.jpg", "a.mp4", "b.jpg"] {
                let frame = source.next().unwrap().unwrap();
                assert!(frame.source.ends_with(name), "{round} {frame:?}");
                assert_eq!(matches!(frame.payload, Payload::Encoded(_)), name == "b.jpg");
            }
        }
        assert_eq!(source.next().unwrap().unwrap().seq, 6);
    }

    #[test]
    fn nothing_to_repeat_ends_at_once() {
        let mut source = FilesSource::new(vec![], true, Clock::system(), Shutdown::new());
        assert!(source.next().unwrap().is_none());
    }
}
