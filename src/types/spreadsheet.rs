//! What spreadsheets make of a CSV file: its encoding and its separator. Pure.

/// The file is in another encoding from this line on, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not UTF-8; save the file as UTF-8 (a spreadsheet calls it CSV UTF-8)")]
pub struct NotUtf8 {
    pub line: usize,
}

/// The file's text without its byte order mark.
///
/// # Errors
/// [`NotUtf8`].
pub fn csv_text(bytes: &[u8]) -> Result<&str, NotUtf8> {
    let newlines_before = |end: usize| bytes[..end].iter().filter(|byte| **byte == b'\n').count();
    let text =
        std::str::from_utf8(bytes).map_err(|error| NotUtf8 { line: 1 + newlines_before(error.valid_up_to()) })?;
    Ok(text.trim_start_matches('\u{feff}'))
}

/// The byte between the fields of a file with this header line: a comma, unless it has none and has semicolons or tabs,
/// as spreadsheets write them where the comma is the decimal point.
#[must_use]
pub fn csv_separator(header: &str) -> u8 {
    let count = |byte: u8| header.bytes().filter(|&other| other == byte).count();
    match (count(b','), count(b';'), count(b'\t')) {
        (0, semicolons, tabs) if semicolons > 0 && semicolons >= tabs => b';',
        (0, _, tabs) if tabs > 0 => b'\t',
        _ => b',',
    }
}

#[cfg(test)]
mod tests {
    use super::{NotUtf8, csv_separator, csv_text};

    #[test]
    fn the_line_that_is_in_another_encoding_is_named() {
        assert_eq!(csv_text("\u{feff}part\nBrücke\n".as_bytes()), Ok("part\nBrücke\n"));
        assert_eq!(csv_text(b"part\nBr\xFCcke\n"), Err(NotUtf8 { line: 2 }));
        assert_eq!(csv_text(b""), Ok(""));
    }

    #[test]
    fn a_header_says_its_separator() {
        for (header, separator) in [
            ("part_num,name", b','),
            ("part_num;name;size_x_mm", b';'),
            ("part_num\tname", b'\t'),
            ("part_num", b','),
            ("", b','),
            ("a,b;c", b','),
        ] {
            assert_eq!(csv_separator(header), separator, "{header}");
        }
    }
}
