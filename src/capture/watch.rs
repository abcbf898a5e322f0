//! A folder into which a camera writes: new and overwritten pictures, each once, when they are complete.
//!
//! Each frame says which file it took; committed with the inspection and given back to [`WatchSource::open`], that keeps a
//! start, after a stop or a kill, from taking it again. A file of another length or time is another picture.
//!
//! A file counts as complete when two looks, [`limits::WATCH_POLL`] apart, find the same length and time and it is
//! not empty. Names that start with a dot or end in anything but a picture's extension are left alone, so writers that
//! use `name.jpg.tmp` and rename are safe as well.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::files::picture;
use super::source::Poll;
use super::{CaptureError, CapturedFrame, FrameSource, list};
use crate::clock::Clock;
use crate::limits;
use crate::shutdown::Shutdown;
use crate::types::{FolderNote, WatchedFile};

/// What a look sees of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    bytes: u64,
    /// As [`WatchedFile::modified_ns`].
    modified_ns: i64,
}

impl From<&Metadata> for Sight {
    fn from(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        let modified_ns = since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        Self { bytes: metadata.len(), modified_ns }
    }
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
    ready: VecDeque<(PathBuf, Sight)>,
    /// Taken files that have left the folder, for the next frame to say.
    gone: Vec<String>,
    seq: u64,
    clock: Clock,
    shutdown: Shutdown,
}

impl WatchSource {
    /// `taken` is what an earlier run took, of this folder or of another one that the station watched.
    pub(super) fn open(
        folder: &Path,
        taken: Vec<WatchedFile>,
        clock: Clock,
        shutdown: Shutdown,
    ) -> Result<Self, CaptureError> {
        // An empty folder is fine, a missing one is not.
        let there: HashSet<PathBuf> = list::pictures(folder)?.into_iter().collect();
        let (mut known, mut gone) = (BTreeMap::new(), Vec::new());
        for WatchedFile { path, bytes, modified_ns } in taken {
            let file = PathBuf::from(&path);
            if there.contains(&file) {
                known.insert(file, Known { sight: Sight { bytes, modified_ns }, is_taken: true });
            } else {
                gone.push(path);
            }
        }
        Ok(Self { folder: folder.to_owned(), known, ready: VecDeque::new(), gone, seq: 0, clock, shutdown })
    }

    /// One look at the folder.
    fn look(&mut self) -> Result<(), CaptureError> {
        let mut seen = BTreeMap::new();
        for path in list::pictures(&self.folder)? {
            // Gone since the listing: renamed or deleted, not our concern.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let sight = Sight::from(&metadata);
            let before = self.known.get(&path).filter(|known| known.sight == sight);
            let was_taken = before.is_some_and(|known| known.is_taken);
            let is_complete = before.is_some() && sight.bytes > 0;
            if is_complete && !was_taken {
                self.ready.push_back((path.clone(), sight));
            }
            seen.insert(path, Known { sight, is_taken: was_taken || is_complete });
        }
        let left = self.known.iter().filter(|(path, known)| known.is_taken && !seen.contains_key(*path));
        self.gone.extend(left.map(|(path, _)| path.display().to_string()));
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
        let Some((path, sight)) = self.ready.pop_front() else { return Ok(Poll::Pending) };
        let mut frame = picture(&path, self.clock.now());
        let Sight { bytes, modified_ns } = sight;
        let taken = vec![WatchedFile { path: path.display().to_string(), bytes, modified_ns }];
        frame.watched = FolderNote { taken, gone: std::mem::take(&mut self.gone) };
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
        let mut source = WatchSource::open(folder.path(), Vec::new(), Clock::system(), Shutdown::new()).unwrap();
        let look = |source: &mut WatchSource| {
            source.look().unwrap();
            source
                .ready
                .drain(..)
                .map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned())
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
    fn what_an_earlier_run_took_is_taken_again_only_where_it_was_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let open = |taken| WatchSource::open(folder.path(), taken, Clock::system(), Shutdown::new()).unwrap();
        // What each start takes, as its frames tell the ledger.
        let run = |taken: Vec<WatchedFile>| {
            let mut source = open(taken);
            source.look().unwrap();
            let mut watched = FolderNote::default();
            while let Poll::Frame(frame) = source.poll().unwrap() {
                watched.append(frame.watched);
            }
            watched
        };
        for name in ["a.jpg", "b.jpg", "c.jpg"] {
            write(name, b"1");
        }
        let first = run(Vec::new());
        assert_eq!((first.taken.len(), first.gone.len()), (3, 0));
        assert!(run(first.taken.clone()).is_empty(), "all is known");
        write("b.jpg", b"12");
        write("d.jpg", b"1");
        std::fs::remove_file(folder.path().join("c.jpg")).unwrap();
        let second = run(first.taken);
        let names: Vec<&str> = second.taken.iter().filter_map(|file| file.path.rsplit('/').next()).collect();
        assert_eq!(names, ["b.jpg", "d.jpg"]);
        assert!(matches!(second.gone.as_slice(), [path] if path.ends_with("c.jpg")), "{second:?}");
        // What leaves the folder in a run is told by the next frame of that run.
        let mut source = open(second.taken);
        source.look().unwrap();
        std::fs::remove_file(folder.path().join("d.jpg")).unwrap();
        write("e.jpg", b"1");
        source.look().unwrap();
        source.look().unwrap();
        let mut gone = Vec::new();
        while let Poll::Frame(frame) = source.poll().unwrap() {
            gone.extend(frame.watched.gone);
        }
        assert!(matches!(gone.as_slice(), [path] if path.ends_with("d.jpg")), "{gone:?}");
    }

    #[test]
    fn a_stop_ends_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new();
        let mut source = WatchSource::open(folder.path(), Vec::new(), Clock::system(), shutdown.clone()).unwrap();
        shutdown.request();
        assert!(source.next().unwrap().is_none());
        assert!(WatchSource::open(&folder.path().join("none"), Vec::new(), Clock::system(), shutdown).is_err());
    }
}
