//! What goes wrong between a file and its pixels.

use std::path::PathBuf;

use crate::limits;
use crate::types::ImageError;

/// Why a picture or a source cannot be had. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("could not read `{}`: {source}; check that it exists and may be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{what}` is empty (0 bytes); copy or capture it again")]
    Empty { what: String },
    #[error("`{what}` is not an image Loupe reads: it {looks_like}; give a JPEG, PNG, BMP, TIFF or WebP file")]
    NotAnImage { what: String, looks_like: String },
    #[error("`{what}` is a broken {format} file: {fault}; copy or capture it again")]
    Broken { what: String, format: &'static str, fault: String },
    #[error("`{what}` is a picture of {width_px}x{height_px} pixels; the limits are {side} pixels a side and {pixels} pixels in all", side = limits::IMAGE_SIDE_PX_MAX, pixels = limits::IMAGE_PIXELS_MAX)]
    TooManyPixels { what: String, width_px: u32, height_px: u32 },
    #[error("`{what}` holds {bytes} bytes; the limit for an image file is {max}", max = limits::IMAGE_FILE_BYTES_MAX)]
    TooManyBytes { what: String, bytes: u64 },
    #[error("could not write a picture as {format}: {fault}")]
    Encode { format: &'static str, fault: String },
    #[error("could not resize a picture to {width_px} pixels wide: {fault}")]
    Resize { width_px: u32, fault: String },
    #[error("pixels of `{what}` do not make a picture: {source}")]
    Pixels { what: String, source: ImageError },
    #[error("`{}` holds no picture; looked for names ending in {extensions}", path.display())]
    NoPictures { path: PathBuf, extensions: String },
    #[error("could not use the image list `{}`: {fault}", path.display())]
    List { path: PathBuf, fault: String },
    #[error("could not open the video `{}`: {fault}; check it with ffprobe or record it again", path.display())]
    Video { path: PathBuf, fault: String },
    #[error("the source `{}` cannot be used so: {fault}", path.display())]
    Option { path: PathBuf, fault: String },
}
