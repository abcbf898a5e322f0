//! Pictures of several cameras, or of an item that is turned, put together: one frame an item.
//!
//! `UNIT_VIEW.ext` says which pictures belong together: all of a name up to its last `_` or `-`. A frame leaves when its
//! last view has come, whatever came between; the views stand side by side in the natural order of their names. A unit
//! that stays incomplete for [`VIEWS_WAIT_MAX`], while [`UNITS_BEGUN_MAX`] others begin, or until the source ends, is a
//! fault: views are never made up, and views of different items never mixed. What comes of it later begins no unit of its own.
//! Overload: at most [`UNITS_BEGUN_MAX`] units of [`crate::limits::VIEWS_PER_ITEM_MAX`] picture files wait.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use super::list::natural_order;
use super::source::Poll;
use super::{CaptureError, CapturedFrame, FrameSource, Payload};
use crate::clock::Stopwatch;
use crate::limits::{IMAGE_PIXELS_MAX, IMAGE_SIDE_PX_MAX, WATCH_POLL};
use crate::shutdown::Shutdown;
use crate::types::{BoundingBox, Digest, FolderNote, Image, ImageError, Reason, Timestamp};

/// Units that may be incomplete at a time: cameras write at their own pace.
const UNITS_BEGUN_MAX: usize = 8;
/// How long a watched folder may keep a unit incomplete: cameras of one cell write within seconds.
const VIEWS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Grey of what no view covers.
const GROUND: u8 = 114;

/// Units given up whose late views are still known.
const UNITS_GIVEN_UP_MAX: usize = 256;

/// A unit that was given up.
#[derive(Debug)]
struct GivenUp {
    name: String,
    came: Vec<String>,
    /// Views that may still come.
    missing: usize,
}

/// A unit some of whose views have come.
#[derive(Debug)]
struct Unit {
    name: String,
    /// When the first of its pictures was read: how old the frame is.
    begun_at: Timestamp,
    since: Stopwatch,
    pictures: Vec<CapturedFrame>,
}

/// Puts the pictures of another source together.
#[derive(Debug)]
pub(super) struct ViewsSource {
    source: Box<dyn FrameSource + Send>,
    /// Pictures a unit.
    views: usize,
    /// In the order in which they began.
    begun: VecDeque<Unit>,
    given_up: VecDeque<GivenUp>,
    ready: VecDeque<CapturedFrame>,
    /// For the next frame: late views, and what has left the folder.
    watched: FolderNote,
    seq: u64,
    /// How long a watched folder may keep a unit incomplete.
    wait_max: Duration,
    shutdown: Shutdown,
}

impl ViewsSource {
    pub(super) fn new(source: Box<dyn FrameSource + Send>, views: usize, shutdown: Shutdown) -> Self {
        let (begun, given_up, ready) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let watched = FolderNote::default();
        Self { source, views, begun, given_up, ready, watched, seq: 0, wait_max: VIEWS_WAIT_MAX, shutdown }
    }

    fn take(&mut self, mut picture: CapturedFrame) {
        self.watched.gone.append(&mut picture.watched.gone);
        let Some(name) = unit_of(&picture.source) else {
            let message = format!("`{}` does not say which item it shows: name it UNIT_VIEW.ext", picture.source);
            let (source, at, watched) = (picture.source, picture.captured_at, picture.watched);
            let fault = CapturedFrame::fault(source, at, Reason::ViewMissing, message);
            self.ready.push_back(CapturedFrame { watched, ..fault });
            return;
        };
        if self.is_late(&name, &picture.source) {
            warn!(picture = picture.source, "this view came too late: its item was held without it");
            self.watched.append(picture.watched);
            return;
        }
        let position = self.begun.iter().position(|unit| unit.name == name).unwrap_or_else(|| {
            self.begun.push_back(Unit {
                name,
                begun_at: picture.captured_at,
                since: Stopwatch::start(),
                pictures: Vec::new(),
            });
            self.begun.len() - 1
        });
        let pictures = &mut self.begun[position].pictures;
        // A file that was written again shows the same view anew.
        pictures.retain(|known| known.source != picture.source);
        pictures.push(picture);
        if pictures.len() == self.views
            && let Some(unit) = self.begun.remove(position)
        {
            self.ready.push_back(unit.complete());
        }
        if self.begun.len() > UNITS_BEGUN_MAX {
            self.give_up_oldest();
        }
    }

    fn give_up_oldest(&mut self) {
        let Some(unit) = self.begun.pop_front() else { return };
        let came: Vec<String> = unit.pictures.iter().map(|picture| picture.source.clone()).collect();
        let missing = self.views.saturating_sub(came.len());
        self.given_up.push_back(GivenUp { name: unit.name.clone(), came, missing });
        if self.given_up.len() > UNITS_GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        self.ready.push_back(unit.incomplete(self.views));
    }

    /// Whether the picture is a view that a unit was given up for; one that had come shows the unit anew.
    fn is_late(&mut self, name: &str, source: &str) -> bool {
        let Some(position) = self.given_up.iter().position(|unit| unit.name == name) else { return false };
        let unit = &mut self.given_up[position];
        let is_late = !unit.came.iter().any(|came| came == source);
        unit.missing = unit.missing.saturating_sub(1);
        if !is_late || unit.missing == 0 {
            self.given_up.remove(position);
        }
        is_late
    }
}

impl FrameSource for ViewsSource {
    fn next(&mut self) -> Result<Option<CapturedFrame>, CaptureError> {
        loop {
            if let Some(mut frame) = self.ready.pop_front() {
                frame.seq = self.seq;
                frame.watched.append(std::mem::take(&mut self.watched));
                self.seq += 1;
                return Ok(Some(frame));
            }
            match self.source.poll()? {
                Poll::Frame(picture) => self.take(*picture),
                // What a stop leaves incomplete is found again by the next start.
                Poll::End if self.shutdown.is_requested() || self.begun.is_empty() => return Ok(None),
                Poll::End => self.give_up_oldest(),
                Poll::Pending if self.begun.front().is_some_and(|unit| unit.since.elapsed() >= self.wait_max) => {
                    self.give_up_oldest();
                }
                Poll::Pending if self.shutdown.wait_timeout(WATCH_POLL) => return Ok(None),
                Poll::Pending => {}
            }
        }
    }
}

impl Unit {
    /// The frame of all views.
    fn complete(mut self) -> CapturedFrame {
        self.pictures.sort_by(|a, b| natural_order(&a.source, &b.source));
        let (source, captured_at, watched) = (self.source(), self.begun_at, self.watched());
        let mut views = Vec::with_capacity(self.pictures.len());
        for picture in self.pictures {
            match picture.payload {
                Payload::Encoded(bytes) => views.push((picture.source, bytes)),
                fault @ Payload::Fault { .. } => {
                    return CapturedFrame { watched, ..CapturedFrame::still(source, captured_at, fault) };
                }
                Payload::Pixels(_) | Payload::Views(_) => {
                    let message = format!("`{}` is no picture file, so it is no view", picture.source);
                    let fault = CapturedFrame::fault(source, captured_at, Reason::ViewMissing, message);
                    return CapturedFrame { watched, ..fault };
                }
            }
        }
        CapturedFrame { watched, ..CapturedFrame::still(source, captured_at, Payload::Views(views)) }
    }

    /// What its pictures took, which leaves with the frame.
    fn watched(&mut self) -> FolderNote {
        let mut watched = FolderNote::default();
        self.pictures.iter_mut().for_each(|picture| watched.append(std::mem::take(&mut picture.watched)));
        watched
    }

    fn incomplete(mut self, views: usize) -> CapturedFrame {
        let watched = self.watched();
        let names: Vec<&str> = self.pictures.iter().map(|picture| picture.source.as_str()).collect();
        let message = format!("{} of {views} views came: {}", names.len(), names.join(", "));
        let mut bytes = Vec::new();
        for picture in &self.pictures {
            if let Payload::Encoded(of_view) = &picture.payload {
                bytes.extend_from_slice(of_view);
            }
        }
        let payload = Payload::Fault { reason: Reason::ViewMissing, message, bytes_digest: Digest::of(&bytes) };
        CapturedFrame { watched, ..CapturedFrame::still(self.source(), self.begun_at, payload) }
    }

    /// The unit's name with an asterisk for its views.
    fn source(&self) -> String {
        format!("{}*", self.name)
    }
}

/// The path up to and with the last `_` or `-` of the file's name; `None` where either side of it would be empty.
fn unit_of(source: &str) -> Option<String> {
    let path = Path::new(source);
    let stem = path.file_stem()?.to_str()?;
    let at = stem.rfind(['_', '-']).filter(|&at| at > 0 && at + 1 < stem.len())?;
    Some(path.with_file_name(&stem[..=at]).display().to_string())
}

/// The pictures side by side on grey, and where each of them is, px.
///
/// # Errors
/// When together they are larger than a picture may be.
pub fn side_by_side(what: &str, images: &[Image]) -> Result<(Image, Vec<BoundingBox>), CaptureError> {
    let width = images.iter().map(|image| u64::from(image.width_px())).sum::<u64>();
    let height = images.iter().map(Image::height_px).max().unwrap_or(0);
    let width_px = u32::try_from(width).unwrap_or(u32::MAX);
    if width_px > IMAGE_SIDE_PX_MAX || width * u64::from(height) > IMAGE_PIXELS_MAX {
        return Err(CaptureError::TooManyPixels { what: what.to_owned(), width_px, height_px: height });
    }
    let stride = width_px as usize * 3;
    let mut bgr = vec![GROUND; stride * height as usize];
    let (mut left, mut places) = (0_u32, Vec::with_capacity(images.len()));
    for image in images {
        for y in 0..image.height_px() {
            let start = y as usize * stride + left as usize * 3;
            bgr[start..start + image.row(y).len()].copy_from_slice(image.row(y));
        }
        let right = left + image.width_px();
        places.push(BoundingBox::new(left as f32, 0.0, right as f32, image.height_px() as f32));
        left = right;
    }
    let pixels = |source: ImageError| CaptureError::Pixels { what: what.to_owned(), source };
    Ok((Image::from_bgr(width_px, height, bgr).map_err(pixels)?, places))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::watch::WatchSource;
    use crate::capture::{SourceKind, SourceSpec, open_source};
    use crate::clock::Clock;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), name.as_bytes()).unwrap();
        }
        folder
    }

    /// Of each frame: its source's name, and its views' bytes or its fault.
    fn frames(folder: &Path, views: u32) -> Vec<(String, Result<Vec<String>, Reason>)> {
        let spec = SourceSpec { views: Some(views), ..SourceSpec::new(SourceKind::Folder, folder) };
        let mut source = open_source(&spec, Vec::new(), Clock::system(), &Shutdown::new()).unwrap();
        let mut out = Vec::new();
        while let Some(frame) = source.next().unwrap() {
            assert_eq!(frame.seq, out.len() as u64);
            let name = Path::new(&frame.source).file_name().unwrap().to_str().unwrap().to_owned();
            out.push((
                name,
                match frame.payload {
                    Payload::Views(views) => {
                        Ok(views.into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect())
                    }
                    Payload::Fault { reason, .. } => Err(reason),
                    other => panic!("{other:?}"),
                },
            ));
        }
        out
    }

    #[test]
    fn views_of_a_unit_come_together_and_a_missing_one_is_a_fault_of_its_unit_only() {
        let folder =
            folder(&["a1_2.jpg", "a1_10.jpg", "a1_1.jpg", "b-left.png", "c_1.jpg", "c_2.jpg", "c_3.jpg", "plain.jpg"]);
        let whole = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            frames(folder.path(), 3),
            [
                ("a1_*".to_owned(), whole(&["a1_1.jpg", "a1_2.jpg", "a1_10.jpg"])),
                ("c_*".to_owned(), whole(&["c_1.jpg", "c_2.jpg", "c_3.jpg"])),
                ("plain.jpg".to_owned(), Err(Reason::ViewMissing)),
                ("b-*".to_owned(), Err(Reason::ViewMissing)),
            ]
        );
    }

    #[test]
    fn a_unit_that_stays_incomplete_is_given_up_while_others_go_on() {
        let mut names: Vec<String> = vec!["00_1.jpg".to_owned()];
        names.extend((1..=12).flat_map(|unit| [format!("{unit:02}_1.jpg"), format!("{unit:02}_2.jpg")]));
        // First views of all, as a camera that runs ahead writes them.
        names.sort_by_key(|name| (name.ends_with("_2.jpg"), name.clone()));
        let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let list = folder.path().join("list.txt");
        std::fs::write(&list, names.join("\n")).unwrap();
        let spec = SourceSpec { views: Some(2), ..SourceSpec::new(SourceKind::List, &list) };
        let mut source = open_source(&spec, Vec::new(), Clock::system(), &Shutdown::new()).unwrap();
        let mut faults = 0;
        let mut whole = 0;
        while let Some(frame) = source.next().unwrap() {
            match frame.payload {
                Payload::Views(_) => whole += 1,
                _ => faults += 1,
            }
        }
        // 13 begin before any is complete: the oldest 5 are given up; their late views begin nothing that would push others out.
        assert_eq!((whole, faults), (8, 5));
    }

    #[test]
    fn in_a_watched_folder_an_incomplete_unit_is_held_before_another_begins() {
        let folder = folder(&["7_1.jpg", "8_1.jpg", "8_2.jpg"]);
        let (clock, shutdown) = (Clock::system(), Shutdown::new());
        let watch = WatchSource::open(folder.path(), Vec::new(), clock, shutdown.clone()).unwrap();
        let mut source = ViewsSource::new(Box::new(watch), 2, shutdown.clone());
        source.wait_max = Duration::from_millis(1);
        assert!(matches!(source.next().unwrap().unwrap().payload, Payload::Views(_)), "what is there comes first");
        let alone = source.next().unwrap().unwrap();
        assert!(alone.source.ends_with("7_*"));
        assert!(matches!(alone.payload, Payload::Fault { reason: Reason::ViewMissing, .. }), "{alone:?}");
        shutdown.request();
        assert!(source.next().unwrap().is_none());
    }

    #[test]
    fn names_that_say_no_unit_are_told_from_those_that_do() {
        assert_eq!(unit_of("in/a_b_1.jpg"), Some("in/a_b_".to_owned()));
        assert_eq!(unit_of("in-1/7-top.png"), Some("in-1/7-".to_owned()));
        for bad in ["in_1/plain.jpg", "_1.jpg", "a_.jpg", "-.jpg", ""] {
            assert_eq!(unit_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn pictures_stand_side_by_side_and_too_many_pixels_are_refused() {
        let image = |width: u32, height: u32, grey: u8| {
            Image::from_bgr(width, height, vec![grey; width as usize * height as usize * 3]).unwrap()
        };
        let (whole, places) = side_by_side("x", &[image(2, 1, 10), image(1, 2, 20)]).unwrap();
        assert_eq!((whole.width_px(), whole.height_px()), (3, 2));
        assert_eq!(places, [BoundingBox::new(0.0, 0.0, 2.0, 1.0), BoundingBox::new(2.0, 0.0, 3.0, 2.0)]);
        assert_eq!(whole.row(0), [10, 10, 10, 10, 10, 10, 20, 20, 20]);
        assert_eq!(whole.row(1), [114, 114, 114, 114, 114, 114, 20, 20, 20]);
        let wide = image(IMAGE_SIDE_PX_MAX, 1, 0);
        assert!(side_by_side("x", &[wide.clone(), wide]).unwrap_err().to_string().contains("limits"));
        assert!(side_by_side("x", &[]).is_err());
    }
}
