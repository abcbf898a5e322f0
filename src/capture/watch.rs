//! A folder into which a camera writes: new and overwritten pictures, each once, when they are complete.
//!
//! A file counts as complete when two looks, [`limits::WATCH_POLL`] apart, find the same length and time and it is
//! not empty. Names that start with a dot or end in anything but a picture's extension are left alone, so writers that
//! use `name.jpg.tmp` and rename are safe as well.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::picture;
use super::source::Poll;
use super::{CaptureError, CapturedFrame, FrameSource, list};
use crate::clock::Clock;
use crate::limits;
use crate::shutdown::Shutdown;

/// What a look sees of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    bytes: u64,
    modified: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    sight: Sight,
    is_taken: bool,
}

/// Never ends but by a stop request.
#[derive(Debug)]
pub(super) struct WatchSource {
    folder: PathBuf,
    /// Files of the last look; as many as the folder holds.
    known: BTreeMap<PathBuf, Known>,
    ready: VecDeque<PathBuf>,
    seq: u64,
    clock: Clock,
    shutdown: Shutdown,
}

impl WatchSource {
    pub(super) fn open(folder: &Path, clock: Clock, shutdown: Shutdown) -> Result<Self, CaptureError> {
        // An empty folder is fine, a missing one is not.
        list::pictures(folder)?;
        let (known, ready) = (BTreeMap::new(), VecDeque::new());
        Ok(Self { folder: folder.to_owned(), known, ready, seq: 0, clock, shutdown })
    }

    /// One look at the folder.
    fn look(&mut self) -> Result<(), CaptureError> {
        let mut seen = BTreeMap::new();
        for path in list::pictures(&self.folder)? {
            // Gone since the listing: renamed or deleted, not our concern.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let sight = Sight { bytes: metadata.len(), modified: metadata.modified().ok() };
            let before = self.known.get(&path).filter(|known| known.sight == sight);
            let was_taken = before.is_some_and(|known| known.is_taken);
            let is_complete = before.is_some() && sight.bytes > 0;
            if is_complete && !was_taken {
                self.ready.push_back(path.clone());
            }
            seen.insert(path, Known { sight, is_taken: was_taken || is_complete });
        }
        self.known = seen;
        Ok(())
    }
}

impl FrameSource for WatchSource {
    fn next(&mut self) -> Result<Option<CapturedFrame>, CaptureError> {
        loop {
            match self.poll()? {
                Poll::Frame(frame) => return Ok(Some(*frame)),
                Poll::Pending if !self.shutdown.wait_timeout(limits::WATCH_POLL) => {}
                Poll::Pending | Poll::End => return Ok(None),
            }
        }
    }

    fn poll(&mut self) -> Result<Poll, CaptureError> {
        if self.shutdown.is_requested() {
            return Ok(Poll::End);
        }
        if self.ready.is_empty() {
            self.look()?;
        }
        let Some(path) = self.ready.pop_front() else { return Ok(Poll::Pending) };
        let mut frame = picture(&path, self.clock.now());
        frame.seq = self.seq;
        self.seq += 1;
        Ok(Poll::Frame(Box::new(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_empty_and_temporary_files_wait_and_each_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let mut source = WatchSource::open(folder.path(), Clock::system(), Shutdown::new()).unwrap();
        let look = |source: &mut WatchSource| {
            source.look().unwrap();
            source
                .ready
                .drain(..)
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        write("a.jpg", b"12");
        write("b.jpg", b"");
        write("c.jpg.tmp", b"1");
        write(".d.jpg", b"1");
        assert!(look(&mut source).is_empty());
        write("a.jpg", b"1234");
        assert!(look(&mut source).is_empty(), "it grew");
        assert_eq!(look(&mut source), ["a.jpg"]);
        assert!(look(&mut source).is_empty(), "taken once");
        write("a.jpg", b"12345");
        write("b.jpg", b"1");
        assert!(look(&mut source).is_empty());
        assert_eq!(look(&mut source), ["a.jpg", "b.jpg"], "overwritten is new");
    }

    #[test]
    fn a_stop_ends_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new();
        let mut source = WatchSource::open(folder.path(), Clock::system(), shutdown.clone()).unwrap();
        shutdown.request();
        assert!(source.next().unwrap().is_none());
        assert!(WatchSource::open(&folder.path().join("none"), Clock::system(), shutdown).is_err());
    }
}
