//! Frames of a video file, through OpenCV's FFmpeg back-end.
//!
//! A file cut short plays up to the cut and then ends like a whole one, so the frames are counted against what the
//! container announces; too few end in one fault frame `source.ended_early`. Containers that announce no length
//! (a Matroska file whose recorder was killed) cannot be checked that way.
//! FFmpeg itself writes a line about damaged files to stderr; `OPENCV_FFMPEG_LOGLEVEL=-8` in the environment mutes it.

use std::path::{Path, PathBuf};

use opencv::core::{CV_8UC3, Mat, MatTraitConst, Vec3b};
use opencv::videoio::{self, VideoCapture, VideoCaptureTrait, VideoCaptureTraitConst};

use super::codec::set_up_opencv;
use super::{CaptureError, CapturedFrame, Payload, container};
use crate::clock::Clock;
use crate::limits;
use crate::types::{Image, Reason};

/// Announced lengths may be off by so many frames: Matroska's is computed from a rounded duration.
const COUNT_SLACK_FRAMES: u64 = 2;

/// Plays one video once.
pub(super) struct VideoReader {
    path: PathBuf,
    capture: VideoCapture,
    width_px: u32,
    height_px: u32,
    /// 0 where the container announces none.
    announced_frames: u64,
    /// Frames grabbed so far, skipped ones included.
    grabbed_frames: u64,
    every_nth: u32,
    is_over: bool,
}

impl std::fmt::Debug for VideoReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VideoReader({}, {} of {} frames)", self.path.display(), self.grabbed_frames, self.announced_frames)
    }
}

impl VideoReader {
    /// # Errors
    /// Where the file is missing, empty, no video, or holds pictures beyond the limits.
    pub(super) fn open(path: &Path, every_nth: u32) -> Result<Self, CaptureError> {
        check_file(path)?;
        let fault = |fault: String| CaptureError::Video { path: path.to_owned(), fault };
        set_up_opencv();
        let capture = VideoCapture::from_file(path, videoio::CAP_FFMPEG).map_err(|error| fault(error.message))?;
        if !capture.is_opened().map_err(|error| fault(error.message))? {
            return Err(fault("no video stream that FFmpeg can decode was found in it".to_owned()));
        }
        let property = |id| capture.get(id).map_err(|error| fault(error.message));
        let width_px = side(property(videoio::CAP_PROP_FRAME_WIDTH)?);
        let height_px = side(property(videoio::CAP_PROP_FRAME_HEIGHT)?);
        let pixels = u64::from(width_px) * u64::from(height_px);
        if pixels == 0 || width_px.max(height_px) > limits::IMAGE_SIDE_PX_MAX || pixels > limits::IMAGE_PIXELS_MAX {
            return Err(CaptureError::TooManyPixels { what: path.display().to_string(), width_px, height_px });
        }
        let announced_frames = frame_count(property(videoio::CAP_PROP_FRAME_COUNT)?);
        let (grabbed_frames, every_nth, is_over) = (0, every_nth.max(1), false);
        let path = path.to_owned();
        Ok(Self { path, capture, width_px, height_px, announced_frames, grabbed_frames, every_nth, is_over })
    }

    /// The next frame, unnumbered; a broken tail ends in one fault frame.
    pub(super) fn next(&mut self, clock: &Clock) -> Option<CapturedFrame> {
        if self.is_over {
            return None;
        }
        loop {
            if !self.capture.grab().unwrap_or(false) {
                return self.end(clock);
            }
            let index = self.grabbed_frames;
            self.grabbed_frames += 1;
            if index.is_multiple_of(u64::from(self.every_nth)) {
                let captured_at = clock.now();
                let source = format!("{}#{index}", self.path.display());
                return Some(match self.retrieve() {
                    Ok(image) => CapturedFrame {
                        is_stream: true,
                        ..CapturedFrame::still(source, captured_at, Payload::Pixels(image))
                    },
                    Err(fault) => {
                        let message = format!("could not decode `{source}`: {fault}");
                        let frame = CapturedFrame::fault(source, captured_at, Reason::FrameUnreadable, message);
                        CapturedFrame { is_stream: true, ..frame }
                    }
                });
            }
        }
    }

    /// Colours converted and copied straight into the image's own buffer.
    fn retrieve(&mut self) -> Result<Image, String> {
        let (rows, columns) = (self.height_px.cast_signed(), self.width_px.cast_signed());
        let mut bgr = vec![0_u8; self.width_px as usize * self.height_px as usize * 3];
        let buffer = bgr.as_ptr();
        let mut target = Mat::new_rows_cols_with_bytes_mut::<Vec3b>(rows, columns, &mut bgr).map_err(|e| e.message)?;
        if !self.capture.retrieve(&mut target, 0).map_err(|error| error.message)? {
            return Err("the decoder gave nothing".to_owned());
        }
        let is_in_place = target.data() == buffer && target.typ() == CV_8UC3;
        if !is_in_place || target.rows() != rows || target.cols() != columns {
            return Err(format!("its size changed to {}x{}", target.cols(), target.rows()));
        }
        drop(target);
        Image::from_bgr(self.width_px, self.height_px, bgr).map_err(|error| error.to_string())
    }

    fn end(&mut self, clock: &Clock) -> Option<CapturedFrame> {
        self.is_over = true;
        let (got, announced) = (self.grabbed_frames, self.announced_frames);
        let is_short = got + COUNT_SLACK_FRAMES < announced || got == 0;
        is_short.then(|| {
            let message = format!(
                "`{}` announces {announced} frames but ends after {got}; the rest was not inspected, record it again",
                self.path.display()
            );
            let source = format!("{}#{got}", self.path.display());
            let frame = CapturedFrame::fault(source, clock.now(), Reason::SourceEndedEarly, message);
            CapturedFrame { is_stream: true, ..frame }
        })
    }
}

/// Refuse what FFmpeg would only complain about on stderr.
fn check_file(path: &Path) -> Result<(), CaptureError> {
    use std::io::Read;
    let failed = |source| CaptureError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("not a regular file")));
    }
    let mut start = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(512).read_to_end(&mut start).map_err(failed)?;
    let fault = if start.is_empty() {
        "it is empty (0 bytes)".to_owned()
    } else if let Some(format) = container::sniff(&start).filter(|_| start.get(8..12) != Some(b"AVI ")) {
        format!("it is a {} picture", format.as_str())
    } else if container::describe(&start) == "looks like text" || start.iter().all(|&byte| byte == 0) {
        format!("it {}", container::describe(&start))
    } else {
        return Ok(());
    };
    Err(CaptureError::Video { path: path.to_owned(), fault })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 2^31 first")]
fn side(value: f64) -> u32 {
    if value.is_finite() { value.clamp(0.0, f64::from(i32::MAX)) as u32 } else { 0 }
}

/// OpenCV gives huge negative numbers where the length is unknown.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 2^53 first")]
fn frame_count(value: f64) -> u64 {
    if value.is_finite() && value < 1e12 { value.max(0.0).round() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A 3 s test video of 75 frames, or `None` where ffmpeg is missing.
    fn video(folder: &Path, name: &str, options: &[&str]) -> Option<PathBuf> {
        let path = folder.join(name);
        let done = Command::new("ffmpeg")
            .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=3", "-c:v", "mpeg4"])
            .args(options)
            .arg(&path)
            .status();
        if done.is_ok_and(|status| status.success()) {
            return Some(path);
        }
        println!("skipped: ffmpeg is not installed or cannot write {name}");
        None
    }

    fn play(path: &Path, every_nth: u32) -> Vec<CapturedFrame> {
        let mut reader = VideoReader::open(path, every_nth).unwrap();
        std::iter::from_fn(|| reader.next(&Clock::system())).collect()
    }

    #[test]
    fn whole_videos_play_to_their_announced_length() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.mp4", "a.mkv", "a.avi"] {
            let Some(path) = video(folder.path(), name, &[]) else { return };
            let frames = play(&path, 1);
            assert_eq!(frames.len(), 75, "{name}");
            assert!(frames.iter().all(|frame| frame.is_stream && matches!(frame.payload, Payload::Pixels(_))));
            assert!(frames[74].source.ends_with("#74"));
            assert_eq!(play(&path, 10).iter().map(|f| f.source.rsplit('#').next().unwrap()).next_back(), Some("70"));
        }
    }

    #[test]
    fn broken_tail_ends_in_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        for (name, options) in [("a.mp4", &["-movflags", "+faststart"][..]), ("a.mkv", &[])] {
            let Some(path) = video(folder.path(), name, options) else { return };
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() * 6 / 10]).unwrap();
            let frames = play(&path, 1);
            let (last, played) = frames.split_last().unwrap();
            assert!(played.len() > 10 && played.len() < 73, "{name}: {}", played.len());
            assert!(played.iter().all(|frame| matches!(frame.payload, Payload::Pixels(_))), "{name}");
            let Payload::Fault { reason: Reason::SourceEndedEarly, message, .. } = &last.payload else {
                panic!("{name}: {last:?}")
            };
            assert!(message.contains("announces 75 frames"), "{message}");
        }
    }

    #[test]
    fn video_without_its_index_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let Some(path) = video(folder.path(), "a.mp4", &[]) else { return };
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = VideoReader::open(&path, 1).unwrap_err().to_string();
        assert!(message.contains("no video stream"), "{message}");
    }

    #[test]
    fn what_is_no_video_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mp4");
        let cases: [(&[u8], &str); 4] = [
            (b"", "empty (0 bytes)"),
            (b"some words", "looks like text"),
            (b"\xFF\xD8\xFF\xE0", "it is a JPEG picture"),
            (&[0; 600], "zeros"),
        ];
        for (bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = VideoReader::open(&path, 1).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("a.mp4"), "{message}");
        }
        assert!(VideoReader::open(folder.path(), 1).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn counts_that_are_no_numbers_mean_unknown() {
        assert_eq!([frame_count(f64::NAN), frame_count(-9.2e18), frame_count(1e300), frame_count(75.0)], [0, 0, 0, 75]);
        assert_eq!([side(f64::NAN), side(-3.0), side(640.0)], [0, 0, 640]);
    }
}
