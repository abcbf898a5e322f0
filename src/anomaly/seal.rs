//! The seal of a bank's manifest: `manifest.sha256` beside it, one line as `sha256sum` writes it.
//!
//! The manifest names the digest of every other file, and nothing names its own: without the seal one flipped digit of a
//! threshold lets bad parts pass. The seal is no signature: it shows damage, not intent.

use std::fs;
use std::path::Path;

use super::AnomalyError;
use crate::types::Digest;

pub(super) const SEAL_FILE: &str = "manifest.sha256";
/// A seal is 81 bytes.
const SEAL_BYTES_MAX: u64 = 4_096;

/// The text of the seal of `file`, whose digest is `sha256`; `sha256sum -c` takes it.
pub(super) fn seal_of(sha256: Digest, file: &str) -> String {
    format!("{sha256}  {file}\n")
}

/// Whether the seal in `bank` is that of `file`, whose digest is `found`; `false` where there is no seal.
///
/// # Errors
/// When the seal cannot be read, is none, or names another digest.
pub(super) fn check_seal(bank: &Path, file: &str, found: Digest) -> Result<bool, AnomalyError> {
    let path = bank.join(SEAL_FILE);
    let io = |source| AnomalyError::Io { action: "read", path: path.clone(), source };
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(error)),
    };
    let text = if length > SEAL_BYTES_MAX { Vec::new() } else { fs::read(&path).map_err(io)? };
    let Some(expected) = digest_in(&text, file) else {
        return Err(AnomalyError::Seal {
            bank: bank.to_owned(),
            message: format!("`{SEAL_FILE}` holds no digest of it"),
        });
    };
    if expected == found {
        return Ok(true);
    }
    let message = format!("it has sha256 {found}, `{SEAL_FILE}` says {expected}");
    Err(AnomalyError::Seal { bank: bank.to_owned(), message })
}

/// The digest that one line of `sha256sum` gives for `file`; `None` for anything else.
fn digest_in(text: &[u8], file: &str) -> Option<Digest> {
    let line = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let (digest, name) = line.split_once(' ')?;
    // The second character says text (a blank) or binary (an asterisk).
    let name = name.strip_prefix([' ', '*'])?;
    if name == file { digest.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{AnomalyError, Digest, SEAL_FILE, check_seal, digest_in, seal_of};

    #[test]
    fn a_seal_is_one_line_of_sha256sum() {
        let digest = Digest::of(b"m");
        assert_eq!(digest_in(seal_of(digest, "m.json").as_bytes(), "m.json"), Some(digest));
        assert_eq!(digest_in(format!("{digest} *m.json\n").as_bytes(), "m.json"), Some(digest));
        let cut = format!("{digest}  m.json");
        for other in [&cut, "", "\n", &format!("{digest}  n.json\n"), &format!("{}  m.json\n", &cut[1..64])] {
            assert_eq!(digest_in(other.as_bytes(), "m.json"), None, "{other:?}");
        }
    }

    #[test]
    fn a_seal_that_is_missing_is_told_from_one_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let check = |found: &[u8]| check_seal(dir.path(), "m.json", Digest::of(found));
        assert!(!check(b"m").unwrap());
        std::fs::write(dir.path().join(SEAL_FILE), seal_of(Digest::of(b"m"), "m.json")).unwrap();
        assert!(check(b"m").unwrap());
        assert!(matches!(check(b"n"), Err(AnomalyError::Seal { .. })));
        std::fs::write(dir.path().join(SEAL_FILE), vec![b'0'; 5_000]).unwrap();
        assert!(matches!(check(b"m"), Err(AnomalyError::Seal { .. })));
    }
}
