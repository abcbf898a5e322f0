//! Pictures from bytes and back, through OpenCV.
//!
//! What comes out is always 8-bit BGR: grey is repeated into three channels, 16-bit samples lose their lower half,
//! and transparency is composited over mid grey (127), so that invisible pixels do not leak their stored colour.
//! TIFF and BMP transparency is ignored. EXIF orientation is ignored on purpose: inspection cameras do not rotate,
//! and boxes, zones and calibrations are given in sensor pixels.

use std::path::Path;
use std::sync::Once;

use opencv::core::{CV_8UC3, Mat, MatTraitConst, MatTraitConstManual, Size, Vec3b, Vector};
use opencv::{imgcodecs, imgproc};

use super::CaptureError;
use super::container::{self, Format, Header};
use crate::limits;
use crate::types::Image;

/// Grey that shows through transparent pixels.
const ALPHA_BACKGROUND: u32 = 127;

/// Decode a complete image file held in memory; `what` names it in errors.
///
/// # Errors
/// Where the bytes are empty, no image, truncated or damaged, or announce more pixels than the limits allow.
pub fn decode_image(bytes: &[u8], what: &str) -> Result<Image, CaptureError> {
    let (format, header) = check(bytes, what)?;
    let broken = |fault: String| CaptureError::Broken { what: what.to_owned(), format: format.as_str(), fault };
    set_up_opencv();
    if header.has_alpha {
        return decode_with_alpha(bytes, what, header).map_err(|error| match error {
            DecodeFault::OpenCv(error) => broken(error.message),
            DecodeFault::Capture(error) => *error,
        });
    }
    // OpenCV writes straight into our buffer: nothing is copied.
    let mut bgr = vec![0_u8; header.width_px as usize * header.height_px as usize * 3];
    let decoded = decode_into(bytes, header, &mut bgr).map_err(|error| broken(error.message))?;
    match decoded {
        Decoded::InPlace => Image::from_bgr(header.width_px, header.height_px, bgr)
            .map_err(|source| CaptureError::Pixels { what: what.to_owned(), source }),
        Decoded::Nothing => Err(broken("its picture data could not be decoded".to_owned())),
        Decoded::OtherSize(mat) => {
            let size = mat.size().map_err(|error| broken(error.message))?;
            let fault = format!(
                "its header announces {}x{} pixels, its data hold {}x{}",
                header.width_px, header.height_px, size.width, size.height
            );
            Err(broken(fault))
        }
    }
}

/// Format of an image file that is whole, for its content type and extension.
///
/// # Errors
/// As [`decode_image`], short of faults in the compressed pixels.
pub fn check_image(bytes: &[u8], what: &str) -> Result<Format, CaptureError> {
    check(bytes, what).map(|(format, _)| format)
}

/// Read and decode one file.
///
/// # Errors
/// As [`decode_image`], and where the file cannot be read or is larger than the limit.
pub fn read_image(path: &Path) -> Result<Image, CaptureError> {
    decode_image(&read_bytes(path)?, &path.display().to_string())
}

/// A file's bytes, refused beyond [`limits::IMAGE_FILE_BYTES_MAX`] before they are read.
///
/// # Errors
/// Where the file cannot be read, is no regular file or is too large.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, CaptureError> {
    let failed = |source| CaptureError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    // A pipe or device would block or never end.
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("not a regular file")));
    }
    if metadata.len() > limits::IMAGE_FILE_BYTES_MAX {
        return Err(CaptureError::TooManyBytes { what: path.display().to_string(), bytes: metadata.len() });
    }
    std::fs::read(path).map_err(failed)
}

/// `image` as a baseline JPEG; `quality` 1 to 100.
///
/// # Errors
/// Where OpenCV refuses, as for a side above 65 500 pixels.
pub fn encode_jpeg(image: &Image, quality: u8) -> Result<Vec<u8>, CaptureError> {
    let quality = i32::from(quality.clamp(1, 100));
    encode(image, ".jpg", "JPEG", [imgcodecs::IMWRITE_JPEG_QUALITY, quality])
}

/// `image` as a PNG, compressed for speed.
///
/// # Errors
/// Where OpenCV refuses.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, CaptureError> {
    encode(image, ".png", "PNG", [imgcodecs::IMWRITE_PNG_COMPRESSION, 1])
}

/// `image` made `width_px` wide by area averaging, its shape kept; a narrower one is returned as it is.
///
/// # Errors
/// Where OpenCV refuses.
pub fn resize_to_width(image: &Image, width_px: u32) -> Result<Image, CaptureError> {
    let width_px = width_px.max(1);
    if image.width_px() <= width_px {
        return Ok(image.clone());
    }
    let height = u64::from(image.height_px()) * u64::from(width_px) / u64::from(image.width_px());
    let height_px = u32::try_from(height.max(1)).unwrap_or(1);
    resize(image, width_px, height_px)
}

fn resize(image: &Image, width_px: u32, height_px: u32) -> Result<Image, CaptureError> {
    let failed = |error: opencv::Error| CaptureError::Resize { width_px, fault: error.message };
    set_up_opencv();
    let source = as_mat(image).map_err(failed)?;
    let mut bgr = vec![0_u8; width_px as usize * height_px as usize * 3];
    let size = Size::new(width_px.cast_signed(), height_px.cast_signed());
    let mut target = Mat::new_rows_cols_with_bytes_mut::<Vec3b>(size.height, size.width, &mut bgr).map_err(failed)?;
    imgproc::resize(&source, &mut target, size, 0.0, 0.0, imgproc::INTER_AREA).map_err(failed)?;
    drop(target);
    Image::from_bgr(width_px, height_px, bgr)
        .map_err(|source| CaptureError::Pixels { what: "resized".to_owned(), source })
}

fn check(bytes: &[u8], what: &str) -> Result<(Format, Header), CaptureError> {
    if bytes.is_empty() {
        return Err(CaptureError::Empty { what: what.to_owned() });
    }
    if bytes.len() as u64 > limits::IMAGE_FILE_BYTES_MAX {
        return Err(CaptureError::TooManyBytes { what: what.to_owned(), bytes: bytes.len() as u64 });
    }
    let Some(format) = container::sniff(bytes) else {
        return Err(CaptureError::NotAnImage { what: what.to_owned(), looks_like: container::describe(bytes) });
    };
    let broken = |fault| CaptureError::Broken { what: what.to_owned(), format: format.as_str(), fault };
    let header = container::inspect(format, bytes).map_err(broken)?;
    let Header { width_px, height_px, .. } = header;
    if width_px == 0 || height_px == 0 {
        return Err(broken(format!("its header announces {width_px}x{height_px} pixels")));
    }
    let side_px = width_px.max(height_px);
    if side_px > limits::IMAGE_SIDE_PX_MAX || u64::from(width_px) * u64::from(height_px) > limits::IMAGE_PIXELS_MAX {
        return Err(CaptureError::TooManyPixels { what: what.to_owned(), width_px, height_px });
    }
    Ok((format, header))
}

enum Decoded {
    InPlace,
    OtherSize(Mat),
    Nothing,
}

fn decode_into(bytes: &[u8], header: Header, bgr: &mut [u8]) -> opencv::Result<Decoded> {
    let input = Mat::from_slice(bytes)?;
    let (rows, columns) = (header.height_px.cast_signed(), header.width_px.cast_signed());
    let buffer = bgr.as_ptr();
    let mut target = Mat::new_rows_cols_with_bytes_mut::<Vec3b>(rows, columns, bgr)?;
    let flags = imgcodecs::IMREAD_COLOR | imgcodecs::IMREAD_IGNORE_ORIENTATION;
    let mat = imgcodecs::imdecode_to(&input, flags, &mut target)?;
    if mat.empty() {
        return Ok(Decoded::Nothing);
    }
    if mat.data() == buffer && mat.typ() == CV_8UC3 && mat.rows() == rows && mat.cols() == columns {
        return Ok(Decoded::InPlace);
    }
    Ok(Decoded::OtherSize(mat))
}

enum DecodeFault {
    OpenCv(opencv::Error),
    Capture(Box<CaptureError>),
}

impl From<opencv::Error> for DecodeFault {
    fn from(error: opencv::Error) -> Self {
        DecodeFault::OpenCv(error)
    }
}

fn decode_with_alpha(bytes: &[u8], what: &str, header: Header) -> Result<Image, DecodeFault> {
    let input = Mat::from_slice(bytes)?;
    let flags = imgcodecs::IMREAD_UNCHANGED | imgcodecs::IMREAD_IGNORE_ORIENTATION;
    let mat = imgcodecs::imdecode(&input, flags)?;
    if mat.empty() {
        return Err(opencv::Error::new(0, "its picture data could not be decoded").into());
    }
    let mut eight_bit = Mat::default();
    let scale = if mat.depth() == opencv::core::CV_16U { 1.0 / 257.0 } else { 1.0 };
    mat.convert_to(&mut eight_bit, opencv::core::CV_8U, scale, 0.0)?;
    let samples = eight_bit.data_bytes()?;
    let bgr: Vec<u8> = match eight_bit.channels() {
        4 => composited(samples),
        3 => samples.to_vec(),
        1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        other => return Err(opencv::Error::new(0, format!("it has {other} channels")).into()),
    };
    Image::from_bgr(header.width_px, header.height_px, bgr)
        .map_err(|source| DecodeFault::Capture(Box::new(CaptureError::Pixels { what: what.to_owned(), source })))
}

/// BGRA over mid grey, straight alpha.
#[expect(clippy::cast_possible_truncation, reason = "a weighted mean of two octets is an octet")]
fn composited(bgra: &[u8]) -> Vec<u8> {
    let (pixels, _) = bgra.as_chunks::<4>();
    let mut bgr = Vec::with_capacity(pixels.len() * 3);
    for &[blue, green, red, alpha] in pixels {
        let alpha = u32::from(alpha);
        let over = |value: u8| ((u32::from(value) * alpha + ALPHA_BACKGROUND * (255 - alpha) + 127) / 255) as u8;
        bgr.extend_from_slice(&[over(blue), over(green), over(red)]);
    }
    bgr
}

fn encode(image: &Image, extension: &str, format: &'static str, options: [i32; 2]) -> Result<Vec<u8>, CaptureError> {
    let failed = |fault: String| CaptureError::Encode { format, fault };
    set_up_opencv();
    let mat = as_mat(image).map_err(|error| failed(error.message))?;
    let mut bytes = Vector::<u8>::new();
    let options = Vector::<i32>::from_slice(&options);
    let is_done = imgcodecs::imencode(extension, &mat, &mut bytes, &options).map_err(|error| failed(error.message))?;
    if is_done { Ok(bytes.as_slice().to_vec()) } else { Err(failed("the encoder gave up".to_owned())) }
}

fn as_mat(image: &Image) -> opencv::Result<opencv::boxed_ref::BoxedRef<'_, Mat>> {
    let (rows, columns) = (image.height_px().cast_signed(), image.width_px().cast_signed());
    Mat::new_rows_cols_with_bytes::<Vec3b>(rows, columns, image.bgr())
}

/// Once a process: no threads of its own (the pipeline has a worker a core) and nothing on stderr.
pub(super) fn set_up_opencv() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Neither can fail but by an exception of the C++ side, and neither is needed for right results.
        drop(opencv::core::set_num_threads(1));
        drop(opencv::core::set_log_level(opencv::core::LogLevel::LOG_LEVEL_SILENT));
    });
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "synthetic pixels, in range by construction")]
mod tests {
    use super::*;

    fn pattern(width_px: u32, height_px: u32) -> Image {
        let pixel = |x: u32, y: u32| [(x * 7 % 256) as u8, (y * 5 % 256) as u8, ((x ^ y) % 256) as u8];
        let bgr = (0..height_px).flat_map(|y| (0..width_px).flat_map(move |x| pixel(x, y))).collect();
        Image::from_bgr(width_px, height_px, bgr).unwrap()
    }

    fn check_refused(bytes: &[u8], expected: &str) {
        let message = decode_image(bytes, "a.jpg").unwrap_err().to_string();
        assert!(message.contains(expected), "`{message}` lacks `{expected}`");
        assert!(message.contains("a.jpg"), "{message}");
    }

    #[test]
    fn png_round_trip_is_exact_and_jpeg_close() {
        let image = pattern(61, 37);
        let back = decode_image(&encode_png(&image).unwrap(), "p").unwrap();
        assert_eq!(back.bgr(), image.bgr());
        let back = decode_image(&encode_jpeg(&image, 95).unwrap(), "j").unwrap();
        assert_eq!((back.width_px(), back.height_px()), (61, 37));
    }

    #[test]
    fn jpeg_cut_anywhere_is_refused() {
        let bytes = encode_jpeg(&pattern(200, 150), 90).unwrap();
        for tenth in 1..10 {
            check_refused(&bytes[..bytes.len() * tenth / 10], "cut off");
        }
        for missing in 1..3 {
            check_refused(&bytes[..bytes.len() - missing], "cut off");
        }
        assert!(decode_image(&[&bytes[..], b"trailing"].concat(), "a.jpg").is_ok());
    }

    #[test]
    fn png_with_a_cut_tail_or_flipped_byte_is_refused() {
        let mut bytes = encode_png(&pattern(200, 150)).unwrap();
        for tenth in 1..10 {
            check_refused(&bytes[..bytes.len() * tenth / 10], "cut off");
        }
        check_refused(&bytes[..bytes.len() - 12], "cut off");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        check_refused(&bytes, "checksum");
    }

    #[test]
    fn empty_text_and_foreign_files_are_named() {
        check_refused(b"", "empty (0 bytes)");
        check_refused(b"I am a text file\n", "looks like text");
        check_refused(b"%PDF-1.7", "looks like a PDF");
        check_refused(b"\xFF\xD8\xFF", "broken JPEG");
    }

    #[test]
    fn giant_size_in_the_header_is_refused_before_decoding() {
        let mut jpeg = encode_jpeg(&pattern(16, 16), 90).unwrap();
        let sof = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        jpeg[sof + 5..sof + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
        check_refused(&jpeg, "65500x65500");
        let mut png = b"\x89PNG\r\n\x1A\n\0\0\0\x0DIHDR\x7F\xFF\xFF\xFF\x7F\xFF\xFF\xFF\x08\x02\0\0\0".to_vec();
        png.extend_from_slice(&[0; 4]);
        check_refused(&png, "checksum");
    }

    #[test]
    fn transparent_pixels_become_mid_grey() {
        let bgra: Vec<u8> = [[10, 20, 30, 0], [10, 20, 30, 255]].concat();
        assert_eq!(composited(&bgra), [127, 127, 127, 10, 20, 30]);
        let mat = Mat::new_rows_cols_with_bytes::<opencv::core::Vec4b>(1, 2, &bgra).unwrap();
        let mut png = Vector::<u8>::new();
        assert!(imgcodecs::imencode_def(".png", &mat, &mut png).unwrap());
        assert_eq!(decode_image(png.as_slice(), "alpha").unwrap().bgr(), composited(&bgra));
    }

    #[test]
    fn grey_and_16_bit_inputs_become_8_bit_bgr() {
        let grey = Mat::new_rows_cols_with_data::<u8>(1, 2, &[5, 250]).unwrap().try_clone().unwrap();
        let deep = Mat::new_rows_cols_with_data::<u16>(1, 2, &[0x0500, 0xFA00]).unwrap().try_clone().unwrap();
        for extension in [".png", ".tiff"] {
            for mat in [&grey, &deep] {
                let mut bytes = Vector::<u8>::new();
                assert!(imgcodecs::imencode_def(extension, mat, &mut bytes).unwrap());
                let image = decode_image(bytes.as_slice(), extension).unwrap();
                assert_eq!(image.bgr(), [5, 5, 5, 250, 250, 250], "{extension}");
            }
        }
    }

    #[test]
    fn four_inks_become_bgr_and_an_exif_turn_is_left_alone() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/images");
        let cmyk = read_image(&folder.join("cmyk.jpg")).unwrap();
        let &[blue, green, red] = &cmyk.bgr()[..3] else { panic!("no pixel") };
        assert!(red > 200 && green < 60 && blue < 60, "{blue} {green} {red}");
        // 24×8 as the sensor saw it, red at its left, although the EXIF asks for a quarter turn.
        let rotated = read_image(&folder.join("rotated.jpg")).unwrap();
        assert_eq!((rotated.width_px(), rotated.height_px()), (24, 8));
        let red_at = |x: u32| rotated.row(4)[x as usize * 3 + 1] < 60;
        assert!(red_at(2) && !red_at(20));
    }

    #[test]
    fn a_picture_of_one_pixel_is_read_and_one_of_20000_a_side_refused() {
        let one = Image::from_bgr(1, 1, vec![1, 2, 3]).unwrap();
        assert_eq!(decode_image(&encode_png(&one).unwrap(), "one.png").unwrap().bgr(), [1, 2, 3]);
        let mut jpeg = encode_jpeg(&pattern(16, 16), 90).unwrap();
        let sof = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        jpeg[sof + 5..sof + 9].copy_from_slice(&[0x4E, 0x20, 0x4E, 0x20]);
        check_refused(&jpeg, "20000x20000");
    }

    proptest::proptest! {
        /// A short deterministic run of what `fuzz/` does without end.
        #[test]
        fn changed_and_cut_files_are_refused_or_read_and_never_panic(
            at in 0_usize..4_000, byte in proptest::prelude::any::<u8>(), cut in 0_usize..4_000,
        ) {
            let image = pattern(24, 16);
            for mut bytes in [encode_jpeg(&image, 80).unwrap(), encode_png(&image).unwrap()] {
                let at = at % bytes.len();
                bytes[at] = byte;
                drop(decode_image(&bytes, "changed"));
                bytes.truncate(cut % bytes.len());
                drop(decode_image(&bytes, "cut"));
            }
        }
    }

    #[test]
    fn thumbnails_keep_their_shape_and_never_grow() {
        let image = pattern(640, 480);
        let small = resize_to_width(&image, 256).unwrap();
        assert_eq!((small.width_px(), small.height_px()), (256, 192));
        assert_eq!(resize_to_width(&small, 512).unwrap().width_px(), 256);
        assert_eq!(resize_to_width(&pattern(1_000, 1), 10).unwrap().height_px(), 1);
    }

    #[test]
    fn missing_file_and_folder_are_named() {
        let message = read_image(Path::new("/nonexistent/a.jpg")).unwrap_err().to_string();
        assert!(message.contains("could not read `/nonexistent/a.jpg`"), "{message}");
        assert!(read_image(Path::new("/")).unwrap_err().to_string().contains("not a regular file"));
    }
}
