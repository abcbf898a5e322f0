//! What a source is, how a recipe names one, and how it is opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::{Entry, FilesSource};
use super::views::ViewsSource;
use super::watch::WatchSource;
use super::{CaptureError, list};
use crate::clock::{Clock, Stopwatch};
use crate::limits::VIEWS_PER_ITEM_MAX;
use crate::shutdown::Shutdown;
use crate::types::{Digest, FolderNote, Image, Reason, Timestamp, WatchedFile};

/// File name endings taken for pictures.
pub const PICTURE_EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp"];
/// File name endings taken for videos.
pub const VIDEO_EXTENSIONS: [&str; 7] = ["mp4", "mkv", "avi", "mov", "m4v", "webm", "mpg"];

/// What a source delivers.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A picture file's bytes, not yet looked at.
    Encoded(Vec<u8>),
    /// Picture files of the views of one item, each with its name, in the order in which they stand side by side.
    Views(Vec<(String, Vec<u8>)>),
    /// Pixels of a video frame.
    Pixels(Image),
    /// A frame that should be there and is not; the source goes on after it.
    Fault {
        reason: Reason,
        message: String,
        /// Of the bytes there are; of nothing where none could be read.
        bytes_digest: Digest,
    },
}

/// One frame as it left its source.
#[derive(Debug, Clone)]
pub struct CapturedFrame {
    /// `path`, `path#frame` with frames counted from 0, or `unit*` of several pictures.
    pub source: String,
    /// Position in this source's output, from 0, without gaps.
    pub seq: u64,
    /// When it was read.
    pub captured_at: Timestamp,
    /// From a video: its neighbours show the same scene.
    pub is_stream: bool,
    pub payload: Payload,
    /// From a watched folder: what the station has taken of it.
    pub watched: FolderNote,
}

impl CapturedFrame {
    pub(super) fn fault(source: String, captured_at: Timestamp, reason: Reason, message: String) -> Self {
        let payload = Payload::Fault { reason, message, bytes_digest: Digest::of(b"") };
        Self::still(source, captured_at, payload)
    }

    /// One that is no video's, the first of its source as far as it knows.
    pub(super) fn still(source: String, captured_at: Timestamp, payload: Payload) -> Self {
        Self { source, seq: 0, captured_at, is_stream: false, payload, watched: FolderNote::default() }
    }
}

/// Somewhere frames come from. Blocks; belongs to one thread.
pub trait FrameSource: std::fmt::Debug {
    /// The next frame, `None` at the end or once a stop was requested. Picture faults are frames, not errors.
    ///
    /// # Errors
    /// Where the source as a whole is gone.
    fn next(&mut self) -> Result<Option<CapturedFrame>, CaptureError>;

    /// As [`FrameSource::next`], but without waiting for what has not come, for who has something else to look after.
    ///
    /// # Errors
    /// As [`FrameSource::next`].
    fn poll(&mut self) -> Result<Poll, CaptureError> {
        Ok(self.next()?.map_or(Poll::End, |frame| Poll::Frame(Box::new(frame))))
    }
}

/// What a source has now.
#[derive(Debug)]
pub enum Poll {
    Frame(Box<CapturedFrame>),
    /// Nothing yet; ask again.
    Pending,
    /// Nothing more, or a stop was requested.
    End,
}

/// Kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Pictures of a folder in natural order (`part2` before `part10`), without its subfolders.
    Folder,
    /// A text file with a path a line, or a CSV whose first column is the path; relative to the list's own folder.
    List,
    /// A video file.
    Video,
}

/// A source as a recipe or configuration names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    pub kind: SourceKind,
    pub path: PathBuf,
    /// Begin again at the end. Default: false.
    #[serde(default, rename = "loop")]
    pub repeat: bool,
    /// Folders only: wait for new and changed pictures instead of ending. Default: false.
    #[serde(default)]
    pub watch: bool,
    /// At most so many frames a second. Default: as fast as they are taken.
    #[serde(default)]
    pub rate_hz: Option<f64>,
    /// Videos only: every nth frame, ≥ 1. Default: 1.
    #[serde(default = "one")]
    pub every_nth: u32,
    /// Folders and lists only: so many pictures, named `UNIT_VIEW.ext`, are views of one item and make one frame, 2 to
    /// [`VIEWS_PER_ITEM_MAX`]. Default: each picture is a frame.
    #[serde(default)]
    pub views: Option<u32>,
}

fn one() -> u32 {
    1
}

impl SourceSpec {
    /// A source with every option at its default.
    #[must_use]
    pub fn new(kind: SourceKind, path: impl Into<PathBuf>) -> Self {
        Self { kind, path: path.into(), repeat: false, watch: false, rate_hz: None, every_nth: 1, views: None }
    }

    /// What is wrong with the options, in words; empty where nothing is.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.rate_hz.is_some_and(|rate_hz| !(rate_hz > 0.0 && rate_hz <= 1_000.0)) {
            faults.push("rate_hz must lie above 0 and at most at 1000".to_owned());
        }
        if self.every_nth == 0 {
            faults.push("every_nth must be at least 1".to_owned());
        }
        if self.every_nth > 1 && self.kind != SourceKind::Video {
            faults.push("every_nth is for videos only".to_owned());
        }
        if let Some(fault) = self.views.and_then(|views| fault_of_views(views as usize)) {
            faults.push(fault);
        }
        if self.views.is_some() && self.kind == SourceKind::Video {
            faults.push("views is for folders and lists only".to_owned());
        }
        if self.watch && self.kind != SourceKind::Folder {
            faults.push("watch is for folders only".to_owned());
        }
        if self.watch && self.repeat {
            faults.push("watch and loop exclude each other".to_owned());
        }
        faults
    }
}

/// Open a source. A watched or paced one returns within its wait once `shutdown` is requested; of a watched folder, the
/// files that are as they were when they were `taken` are not taken again.
///
/// # Errors
/// Where options contradict each other, the path is missing or of another kind, a list is unreadable, a folder holds
/// no picture, or a video cannot be opened.
pub fn open_source(
    spec: &SourceSpec,
    taken: Vec<WatchedFile>,
    clock: Clock,
    shutdown: &Shutdown,
) -> Result<Box<dyn FrameSource + Send>, CaptureError> {
    let faults = spec.faults();
    if !faults.is_empty() {
        return Err(CaptureError::Option { path: spec.path.clone(), fault: faults.join("; ") });
    }
    let source: Box<dyn FrameSource + Send> = if spec.watch {
        Box::new(WatchSource::open(&spec.path, taken, clock, shutdown.clone())?)
    } else {
        let entries = match spec.kind {
            SourceKind::Folder => list::folder(&spec.path)?.into_iter().map(Entry::Picture).collect(),
            SourceKind::List => list::read(&spec.path)?.into_iter().map(Entry::Picture).collect(),
            SourceKind::Video => vec![Entry::Video { path: spec.path.clone(), every_nth: spec.every_nth }],
        };
        let mut files = FilesSource::new(entries, spec.repeat, clock, shutdown.clone());
        if spec.kind == SourceKind::Video {
            // A video that does not open is a fault of the configuration, to be told before the first frame.
            files.open_first()?;
        }
        Box::new(files)
    };
    let source: Box<dyn FrameSource + Send> = match spec.views {
        Some(views) => Box::new(ViewsSource::new(source, views as usize, shutdown.clone())),
        None => source,
    };
    Ok(match spec.rate_hz {
        Some(rate_hz) => Box::new(Paced::new(source, rate_hz, shutdown.clone())),
        None => source,
    })
}

/// Pictures, folders of pictures and videos in the order given, as a command line names them.
///
/// # Errors
/// Where a path does not exist, a folder holds no picture, or `views`, the pictures that make one frame, is not 2 to
/// [`VIEWS_PER_ITEM_MAX`]. What no name or content tells to be a video is taken for
/// a picture, so that decoding says what is wrong with it.
pub fn paths_source(
    paths: &[PathBuf],
    views: Option<usize>,
    clock: Clock,
    shutdown: &Shutdown,
) -> Result<Box<dyn FrameSource + Send>, CaptureError> {
    let mut entries = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(|source| CaptureError::Read { path: path.clone(), source })?;
        if metadata.is_dir() {
            entries.extend(list::folder(path)?.into_iter().map(Entry::Picture));
        } else if is_video(path) {
            entries.push(Entry::Video { path: path.clone(), every_nth: 1 });
        } else {
            entries.push(Entry::Picture(path.clone()));
        }
    }
    let files = Box::new(FilesSource::new(entries, false, clock, shutdown.clone()));
    let Some(views) = views else { return Ok(files) };
    if let Some(fault) = fault_of_views(views) {
        return Err(CaptureError::Option { path: paths.first().cloned().unwrap_or_default(), fault });
    }
    Ok(Box::new(ViewsSource::new(files, views, shutdown.clone())))
}

fn fault_of_views(views: usize) -> Option<String> {
    let is_right = (2..=VIEWS_PER_ITEM_MAX).contains(&views);
    (!is_right).then(|| format!("views is {views}, must be 2 to {VIEWS_PER_ITEM_MAX}"))
}

fn is_video(path: &Path) -> bool {
    if has_extension(path, &PICTURE_EXTENSIONS) {
        return false;
    }
    has_extension(path, &VIDEO_EXTENSIONS) || has_video_magic(path).unwrap_or(false)
}

fn has_video_magic(path: &Path) -> std::io::Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    std::fs::File::open(path)?.take(12).read_to_end(&mut start)?;
    let is_avi = start.starts_with(b"RIFF") && start.get(8..12) == Some(b"AVI ");
    Ok(is_avi || start.starts_with(b"\x1A\x45\xDF\xA3") || start.get(4..8) == Some(b"ftyp"))
}

/// Whether the name ends in one of `extensions`, letter case aside.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    extensions.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Holds frames back to a rate; a late one is not made up for.
#[derive(Debug)]
struct Paced {
    source: Box<dyn FrameSource + Send>,
    period: Duration,
    since_last: Option<Stopwatch>,
    shutdown: Shutdown,
}

impl Paced {
    fn new(source: Box<dyn FrameSource + Send>, rate_hz: f64, shutdown: Shutdown) -> Self {
        Self { source, period: Duration::from_secs_f64(1.0 / rate_hz), since_last: None, shutdown }
    }
}

impl FrameSource for Paced {
    fn next(&mut self) -> Result<Option<CapturedFrame>, CaptureError> {
        let left = self.since_last.map_or(Duration::ZERO, |watch| self.period.saturating_sub(watch.elapsed()));
        if !left.is_zero() && self.shutdown.wait_timeout(left) {
            return Ok(None);
        }
        self.since_last = Some(Stopwatch::start());
        self.source.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_reads_from_toml_and_refuses_unknown_keys() {
        let spec: SourceSpec = toml::from_str("kind = 'video'\npath = 'a.mp4'\nloop = true\nrate_hz = 12.5").unwrap();
        assert_eq!((spec.kind, spec.repeat, spec.rate_hz, spec.every_nth), (SourceKind::Video, true, Some(12.5), 1));
        assert!(toml::from_str::<SourceSpec>("kind = 'folder'\npath = '.'\nspeed = 3").is_err());
    }

    #[test]
    fn contradicting_options_are_all_named() {
        let mut spec = SourceSpec::new(SourceKind::List, "l.txt");
        assert!(spec.faults().is_empty());
        (spec.watch, spec.repeat, spec.every_nth, spec.rate_hz) = (true, true, 0, Some(f64::NAN));
        assert_eq!(spec.faults().len(), 4);
        let message = open_source(&spec, Vec::new(), Clock::system(), &Shutdown::new()).unwrap_err().to_string();
        assert!(message.contains("rate_hz") && message.contains("every_nth") && message.contains("l.txt"), "{message}");
    }

    #[test]
    fn a_stop_ends_a_paced_source_within_its_wait() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png"] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        let shutdown = Shutdown::new();
        let mut spec = SourceSpec::new(SourceKind::Folder, folder.path());
        spec.rate_hz = Some(0.001);
        let mut source = open_source(&spec, Vec::new(), Clock::system(), &shutdown).unwrap();
        assert!(source.next().unwrap().is_some());
        shutdown.request();
        assert!(source.next().unwrap().is_none());
    }

    #[test]
    fn paths_of_every_kind_are_told_apart_by_name_and_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        assert!(is_video(&file("clip.MP4", b"")));
        assert!(is_video(&file("clip", b"\0\0\0\x20ftypisom")));
        assert!(!is_video(&file("text", b"hello")));
        assert!(!is_video(&file("odd.jpg", b"\0\0\0\x20ftypisom")));
        let missing = paths_source(&[folder.path().join("none.jpg")], None, Clock::system(), &Shutdown::new());
        assert!(missing.unwrap_err().to_string().contains("none.jpg"));
    }
}
