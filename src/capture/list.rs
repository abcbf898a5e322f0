//! Which files a folder or an image list names, and in which order.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::CaptureError;
use super::source::{PICTURE_EXTENSIONS, has_extension};
use crate::limits;

/// Largest list file, bytes: a million lines of 60 bytes.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Pictures of a folder in natural order; hidden names and subfolders are left out.
///
/// # Errors
/// Where it cannot be read, is no folder, holds no picture or more than the limit.
pub fn folder(path: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let found = pictures(path)?;
    if found.is_empty() {
        let extensions = PICTURE_EXTENSIONS.map(|extension| format!(".{extension}")).join(", ");
        return Err(CaptureError::NoPictures { path: path.to_owned(), extensions });
    }
    Ok(found)
}

/// As [`folder`], with an empty answer where there is no picture.
///
/// # Errors
/// Where the folder cannot be read or holds more than the limit.
pub fn pictures(path: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let failed = |source| CaptureError::Read { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let is_hidden = entry.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if is_hidden || !has_extension(&entry, &PICTURE_EXTENSIONS) || entry.is_dir() {
            continue;
        }
        found.push(entry);
        if found.len() > limits::SOURCE_FILES_MAX {
            let fault = format!("it holds more than {} pictures", limits::SOURCE_FILES_MAX);
            return Err(CaptureError::Option { path: path.to_owned(), fault });
        }
    }
    found.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(found)
}

/// Paths of a list file, made relative to the list's own folder. A `.csv` gives its first column, without a heading;
/// any other file a path a line, blank lines and those starting with `#` left out.
///
/// # Errors
/// Where it cannot be read, is no UTF-8 text, or names nothing.
pub fn read(path: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let fault = |fault: String| CaptureError::List { path: path.to_owned(), fault };
    let failed = |source| CaptureError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > LIST_BYTES_MAX {
        return Err(fault(format!("it holds {length} bytes; the limit is {LIST_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| fault("it is not UTF-8 text".to_owned()))?;
    let text = text.trim_start_matches('\u{FEFF}');
    let names: Vec<String> = if has_extension(path, &["csv"]) {
        first_column(text).map_err(|error| fault(error.to_string()))?
    } else {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    if names.is_empty() {
        return Err(fault("it names no picture".to_owned()));
    }
    if names.len() > limits::SOURCE_FILES_MAX {
        return Err(fault(format!("it names {} pictures; the limit is {}", names.len(), limits::SOURCE_FILES_MAX)));
    }
    let root = path.parent().unwrap_or(Path::new(""));
    Ok(names.into_iter().map(|name| root.join(name)).collect())
}

fn first_column(text: &str) -> Result<Vec<String>, csv::Error> {
    let mut names = Vec::new();
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    for (index, record) in reader.records().enumerate() {
        let record = record?;
        let name = record.get(0).unwrap_or("").trim();
        // A first row that names no picture file is the heading.
        let is_heading = index == 0 && !has_extension(Path::new(name), &PICTURE_EXTENSIONS);
        if !name.is_empty() && !is_heading {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Runs of digits compare as numbers, everything else by code point.
pub(super) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let (Some(&l), Some(&r)) = (left.first(), right.first()) {
        if l.is_ascii_digit() && r.is_ascii_digit() {
            let (number_l, rest_l) = split_number(left);
            let (number_r, rest_r) = split_number(right);
            let order = number_l.len().cmp(&number_r.len()).then_with(|| number_l.cmp(number_r));
            if order != Ordering::Equal {
                return order;
            }
            (left, right) = (rest_l, rest_r);
        } else if l == r {
            (left, right) = (&left[1..], &right[1..]);
        } else {
            return l.cmp(&r);
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// The digits at the start without leading zeros, and what follows them.
fn split_number(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let zeros = bytes[..end].iter().take_while(|&&byte| byte == b'0').count();
    (&bytes[zeros..end], &bytes[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut names =
            ["part10.png", "part2.png", "part02.png", "Part1.png", "part.png", "a99999999999999999999b", "a9b"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(
            names,
            ["Part1.png", "a9b", "a99999999999999999999b", "part.png", "part02.png", "part2.png", "part10.png"]
        );
    }

    #[test]
    fn folder_without_pictures_names_what_was_looked_for() {
        let folder_ = tempfile::tempdir().unwrap();
        for name in ["notes.txt", ".hidden.jpg", "half.jpg.tmp"] {
            std::fs::write(folder_.path().join(name), b"x").unwrap();
        }
        let message = folder(folder_.path()).unwrap_err().to_string();
        assert!(message.contains("holds no picture") && message.contains(".tiff"), "{message}");
        assert!(folder(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
    }

    fn check_list(name: &str, content: &[u8], expected: Result<&[&str], &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        match (read(&path), expected) {
            (Ok(paths), Ok(names)) => {
                let names: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
                assert_eq!(paths, names);
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, expected) => panic!("got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn lists_are_relative_to_their_folder() {
        check_list(
            "l.txt",
            b"\xEF\xBB\xBFa.jpg\n\n# no\n sub/b 1.png \r\n/abs.png",
            Ok(&["a.jpg", "sub/b 1.png", "/abs.png"]),
        );
        check_list("l.csv", b"file,label\n\"a,1.jpg\",ok\nb.png\n,x\n", Ok(&["a,1.jpg", "b.png"]));
        check_list("l.csv", b"a.jpg,1\nb.jpg,2,3\n", Ok(&["a.jpg", "b.jpg"]));
        check_list("l.txt", b"# nothing\n", Err("names no picture"));
        check_list("l.txt", b"\xFF\xFE\x00", Err("not UTF-8"));
    }
}
