//! What spreadsheets put between the fields of a "CSV" file.

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
    use super::csv_separator;

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
