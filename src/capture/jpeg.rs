//! The markers of a JPEG (ITU-T T.81, annex B): its size, and proof that its data go on to the end marker.

use super::container::Header;

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;

/// Walk the markers from SOI to EOI.
///
/// # Errors
/// In words, where the file breaks off.
pub fn inspect(bytes: &[u8]) -> Result<Header, String> {
    let mut header = None;
    let mut has_scan = false;
    let mut at = 2;
    loop {
        let (marker, after) = next_marker(bytes, at, has_scan)?;
        at = after;
        match marker {
            EOI if !has_scan => return Err("it holds no picture data before its end marker".to_owned()),
            EOI => return header.ok_or_else(|| "it has no frame header".to_owned()),
            SOI => return Err("a second picture begins before the first ended".to_owned()),
            0x01 | 0xD0..=0xD7 => {}
            _ => {
                let segment = segment(bytes, at)?;
                if is_frame_header(marker) {
                    header = Some(frame_header(segment)?);
                }
                at += 2 + segment.len();
                if marker == SOS {
                    if header.is_none() {
                        return Err("its picture data stand before their frame header".to_owned());
                    }
                    has_scan = true;
                    at = end_of_scan(bytes, at)?;
                }
            }
        }
    }
}

fn next_marker(bytes: &[u8], at: usize, has_scan: bool) -> Result<(u8, usize), String> {
    let missing = || {
        let what = if has_scan { "without its end marker" } else { "before its picture data" };
        format!("it is cut off after {} bytes, {what}", bytes.len())
    };
    if *bytes.get(at).ok_or_else(missing)? != 0xFF {
        return Err(format!("there is no marker at byte {at}"));
    }
    // Any number of 0xFF may stand before the marker's code.
    let code = bytes[at..].iter().position(|&byte| byte != 0xFF).ok_or_else(missing)? + at;
    Ok((bytes[code], code + 1))
}

/// The content of the segment at `at`, without its two length bytes.
fn segment(bytes: &[u8], at: usize) -> Result<&[u8], String> {
    let cut = || format!("it is cut off after {} bytes, within a header", bytes.len());
    let length = bytes.get(at..at + 2).ok_or_else(cut)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(format!("the segment at byte {at} has an impossible length"));
    }
    bytes.get(at + 2..at + length).ok_or_else(cut)
}

/// SOF0 to SOF15 but DHT, JPG and DAC.
fn is_frame_header(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

fn frame_header(segment: &[u8]) -> Result<Header, String> {
    let [_, h1, h2, w1, w2, ..] = segment else {
        return Err("its frame header is too short".to_owned());
    };
    let side = |high: u8, low: u8| u32::from(u16::from_be_bytes([high, low]));
    Ok(Header { width_px: side(*w1, *w2), height_px: side(*h1, *h2), has_alpha: false })
}

/// Position of the marker that ends the entropy-coded data beginning at `at`.
fn end_of_scan(bytes: &[u8], mut at: usize) -> Result<usize, String> {
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == 0xFF) {
        at += found;
        match bytes.get(at + 1) {
            // Stuffed 0xFF, restart markers and fill bytes belong to the scan.
            Some(0x00 | 0xD0..=0xD7) => at += 2,
            Some(0xFF) => at += 1,
            Some(_) => return Ok(at),
            None => break,
        }
    }
    Err(format!("it is cut off after {} bytes, within its picture data", bytes.len()))
}
