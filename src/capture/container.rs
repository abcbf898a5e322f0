//! What an image file says of itself before any pixel is decoded: format, size, and whether it is whole.
//!
//! OpenCV fills what is missing of a truncated JPEG with grey and says nothing, and allocates whatever size a header
//! claims. Both would turn a broken file into a verdict, so files are walked here first. Pure: no I/O, no OpenCV.

/// Formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Jpeg,
    Png,
    Bmp,
    Tiff,
    Webp,
}

impl Format {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
            Format::Webp => "WebP",
        }
    }

    /// Media type for HTTP and the ledger.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Jpeg => "image/jpeg",
            Format::Png => "image/png",
            Format::Bmp => "image/bmp",
            Format::Tiff => "image/tiff",
            Format::Webp => "image/webp",
        }
    }

    /// File name extension without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jpeg => "jpg",
            Format::Png => "png",
            Format::Bmp => "bmp",
            Format::Tiff => "tif",
            Format::Webp => "webp",
        }
    }
}

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub width_px: u32,
    pub height_px: u32,
    /// The file may carry transparency.
    pub has_alpha: bool,
}

/// The format by its first bytes, `None` where it is not one of ours.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<Format> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Format::Png),
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Some(Format::Bmp),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(Format::Tiff),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::Webp),
        _ => None,
    }
}

/// Words for what bytes that are no image of ours look like, to follow "it".
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    let known: [(&[u8], &str); 11] = [
        (b"GIF8", "looks like a GIF"),
        (b"%PDF", "looks like a PDF"),
        (b"PK\x03\x04", "looks like a ZIP archive"),
        (b"\x1F\x8B", "looks like gzip data"),
        (b"\x1A\x45\xDF\xA3", "looks like a Matroska video"),
        (b"<!DOCTYPE", "looks like a web page"),
        (b"<html", "looks like a web page"),
        (b"<svg", "looks like an SVG drawing"),
        (b"version https://git-lfs", "looks like a Git LFS pointer; run `git lfs pull`"),
        (b"\x7FELF", "looks like a program"),
        (b"\x00\x00\x00\x0CjP", "looks like a JPEG 2000"),
    ];
    if let Some((_, words)) = known.iter().find(|(start, _)| bytes.starts_with(start)) {
        return (*words).to_owned();
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return "looks like an MP4 video or HEIF".to_owned();
    }
    let start = &bytes[..bytes.len().min(512)];
    if start.iter().all(|&byte| byte == 0) {
        return "holds only zeros at its start".to_owned();
    }
    let is_text = |byte: u8| byte >= 0x20 && byte != 0x7F || matches!(byte, b'\t' | b'\n' | b'\r');
    // 512 bytes may cut the last UTF-8 character in two.
    let is_utf8 = std::str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true);
    if is_utf8 && start.iter().all(|&byte| is_text(byte)) {
        return "looks like text".to_owned();
    }
    let hex: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("begins with the bytes {}", hex.join(" "))
}

/// Size and transparency from the header, with the file proved whole as far as its container tells.
///
/// # Errors
/// In words, what is missing or wrong.
pub fn inspect(format: Format, bytes: &[u8]) -> Result<Header, String> {
    match format {
        Format::Jpeg => super::jpeg::inspect(bytes),
        Format::Png => super::png::inspect(bytes),
        Format::Bmp => inspect_bmp(bytes),
        Format::Tiff => inspect_tiff(bytes),
        Format::Webp => inspect_webp(bytes),
    }
}

fn inspect_bmp(bytes: &[u8]) -> Result<Header, String> {
    let cut = || "it ends within its header".to_owned();
    let offset = u64::from(le32(bytes, 10).ok_or_else(cut)?);
    let header_bytes = le32(bytes, 14).ok_or_else(cut)?;
    let (width, height, bits) = if header_bytes == 12 {
        let side = |at| le16(bytes, at).map(u32::from);
        (side(18).ok_or_else(cut)?, side(20).ok_or_else(cut)?, le16(bytes, 24).ok_or_else(cut)?)
    } else {
        let side = |at| le32(bytes, at).map(|value| value.cast_signed().unsigned_abs());
        (side(18).ok_or_else(cut)?, side(22).ok_or_else(cut)?, le16(bytes, 28).ok_or_else(cut)?)
    };
    let is_compressed = header_bytes > 12 && matches!(le32(bytes, 30), Some(1 | 2));
    let row_bytes = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
    // A header may claim more than 64 bits count.
    let needed = offset.saturating_add(if is_compressed { 0 } else { row_bytes.saturating_mul(u64::from(height)) });
    if (bytes.len() as u64) < needed {
        return Err(format!("it ends after {} of {needed} bytes", bytes.len()));
    }
    Ok(Header { width_px: width, height_px: height, has_alpha: false })
}

fn inspect_webp(bytes: &[u8]) -> Result<Header, String> {
    let cut = || "it ends within its header".to_owned();
    let needed = u64::from(le32(bytes, 4).ok_or_else(cut)?) + 8;
    if (bytes.len() as u64) < needed {
        return Err(format!("it ends after {} of {needed} bytes", bytes.len()));
    }
    let body = bytes.get(20..30).ok_or_else(cut)?;
    let side24 = |at: usize| (u32::from(body[at]) | u32::from(body[at + 1]) << 8 | u32::from(body[at + 2]) << 16) + 1;
    match &bytes[12..16] {
        b"VP8X" => Ok(Header { width_px: side24(4), height_px: side24(7), has_alpha: body[0] & 0x10 != 0 }),
        b"VP8L" => {
            let bits = u32::from_le_bytes([body[1], body[2], body[3], body[4]]);
            Ok(Header {
                width_px: (bits & 0x3FFF) + 1,
                height_px: (bits >> 14 & 0x3FFF) + 1,
                has_alpha: bits >> 28 & 1 == 1,
            })
        }
        b"VP8 " => {
            let side = |at: usize| u32::from(u16::from_le_bytes([body[at], body[at + 1]]) & 0x3FFF);
            Ok(Header { width_px: side(6), height_px: side(8), has_alpha: false })
        }
        _ => Err("its first chunk is none of VP8, VP8L, VP8X".to_owned()),
    }
}

/// Size from the first directory; libtiff itself refuses missing strips.
fn inspect_tiff(bytes: &[u8]) -> Result<Header, String> {
    let cut = || "it ends within its first directory".to_owned();
    let is_little = bytes[0] == b'I';
    let u16_at = |at: usize| {
        let pair: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let u32_at = |at: usize| {
        let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if is_little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) })
    };
    let directory = u32_at(4).ok_or_else(cut)? as usize;
    let entries = usize::from(u16_at(directory).ok_or_else(cut)?);
    let (mut width_px, mut height_px) = (0, 0);
    for entry in 0..entries {
        let at = directory + 2 + entry * 12;
        let (tag, kind) = (u16_at(at).ok_or_else(cut)?, u16_at(at + 2).ok_or_else(cut)?);
        let value = if kind == 3 { u16_at(at + 8).map(u32::from) } else { u32_at(at + 8) }.ok_or_else(cut)?;
        match tag {
            256 => width_px = value,
            257 => height_px = value,
            _ => {}
        }
    }
    Ok(Header { width_px, height_px, has_alpha: false })
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Format, describe, inspect, sniff};

    #[test]
    fn what_is_no_image_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"hello, world\n", "looks like text"),
            ("Straße".as_bytes(), "looks like text"),
            (b"GIF89a", "looks like a GIF"),
            (b"\0\0\0\x20ftypisom", "looks like an MP4 video or HEIF"),
            (b"\0\0\0\0", "holds only zeros at its start"),
            (b"\x01\x02\x03\x04\x05", "begins with the bytes 01 02 03 04"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), None);
            assert_eq!(describe(bytes), expected);
        }
    }

    #[test]
    fn bmp_shorter_than_its_pixels_is_refused() {
        let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\xFE\xFF\xFF\xFF\x01\0\x18\0".to_vec();
        bmp.resize(0x36 + 15, 0);
        assert_eq!(inspect(Format::Bmp, &bmp), Err("it ends after 69 of 70 bytes".to_owned()));
        bmp.push(0);
        let header = inspect(Format::Bmp, &bmp).unwrap();
        assert_eq!((header.width_px, header.height_px), (2, 2));
    }

    #[test]
    fn a_bmp_that_claims_more_than_64_bits_of_pixels_is_refused() {
        // 2³¹ px a side of 32 bits: 2⁶⁴ bytes, which counted in 64 bits are none.
        let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\0\0\0\x80\0\0\0\x80\x01\0\x20\0".to_vec();
        bmp.resize(200, 0);
        assert!(inspect(Format::Bmp, &bmp).unwrap_err().starts_with("it ends after 200 of"));
    }

    proptest! {
        #[test]
        fn garbage_behind_any_magic_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let magics: [&[u8]; 6] =
                [b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1A\n", b"BM\x01\x02\x03\x04\0\0\0\0", b"II\x2A\0", b"MM\0\x2A", b"RIFF\x10\0\0\0WEBP"];
            for magic in magics {
                let bytes = [magic, &tail[..]].concat();
                let format = sniff(&bytes).unwrap();
                drop(inspect(format, &bytes));
            }
            drop(describe(&tail));
        }
    }
}
