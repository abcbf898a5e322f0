//! Files that travel by hand: lines with digests, a trailer over everything, written whole or not at all.
//!
//! ```text
//! loupe-outbox/1 SHA256 {header}
//! U SHA256 {record}
//! …
//! E SHA256 {"records": 12}
//! ```
//! The digest of a line is that of its JSON; that of the trailer is of all bytes before it. So a flipped bit is found in
//! its line, and a missing, doubled or moved line by the trailer. Read twice: once to prove it, once to use it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::LedgerError;
use crate::failpoint;
use crate::types::Digest;

/// Longest line: a unit of 256 items with all candidates stays far below.
const LINE_BYTES_MAX: u64 = 64 << 20;
const TRAILER: &str = "E";

/// A file being written; dropped before [`LinesWriter::finish`] it leaves nothing behind.
#[derive(Debug)]
pub(super) struct LinesWriter {
    /// `None` once finished.
    file: Option<BufWriter<File>>,
    target: PathBuf,
    partial: PathBuf,
    hasher: Sha256,
    records: u64,
}

impl LinesWriter {
    pub fn create(target: &Path, format: &str, header: &Value) -> Result<Self, LedgerError> {
        if target.exists() {
            return Err(LedgerError::Parcel {
                path: target.to_owned(),
                detail: "is there already; choose another name".to_owned(),
            });
        }
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = File::options();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(&partial);
        let file = Some(BufWriter::new(file.map_err(LedgerError::io("create", &partial))?));
        let mut writer = Self { file, target: target.to_owned(), partial, hasher: Sha256::new(), records: 0 };
        writer.line(format, &header.to_string())?;
        Ok(writer)
    }

    /// Write one record; answers with its digest.
    pub fn record(&mut self, tag: &str, json: &str) -> Result<Digest, LedgerError> {
        self.records += 1;
        failpoint::hit("export.record");
        self.line(tag, json)
    }

    fn line(&mut self, tag: &str, json: &str) -> Result<Digest, LedgerError> {
        let sha256 = Digest::of(json.as_bytes());
        let line = format!("{tag} {sha256} {json}\n");
        self.hasher.update(line.as_bytes());
        self.write(&line)?;
        Ok(sha256)
    }

    fn write(&mut self, line: &str) -> Result<(), LedgerError> {
        let on_io = LedgerError::io("write", &self.partial);
        match &mut self.file {
            Some(file) => file.write_all(line.as_bytes()).map_err(on_io),
            None => Err(on_io(std::io::Error::other("it is finished"))),
        }
    }

    /// Write the trailer and give the file its name, durably. Returns the digest of the whole.
    pub fn finish(mut self) -> Result<Digest, LedgerError> {
        let sha256 = Digest::from_bytes(self.hasher.clone().finalize().into());
        let trailer = format!("{TRAILER} {sha256} {{\"records\":{}}}\n", self.records);
        self.write(&trailer)?;
        let on_io = |source| LedgerError::io("write", &self.partial)(source);
        if let Some(file) = &mut self.file {
            file.flush().map_err(on_io)?;
            file.get_ref().sync_all().map_err(on_io)?;
        }
        failpoint::hit("export.synced");
        fs::rename(&self.partial, &self.target).map_err(LedgerError::io("rename into", &self.target))?;
        failpoint::hit("export.published");
        self.file = None;
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(LedgerError::io("sync", parent))?;
        Ok(sha256)
    }
}

impl Drop for LinesWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            drop(fs::remove_file(&self.partial));
        }
    }
}

/// What a whole file says of itself.
#[derive(Debug)]
pub(super) struct Proved {
    pub header: Value,
    /// Of everything before the trailer: names the file.
    pub sha256: Digest,
}

/// Read all of `path`, comparing every digest; each record goes to `visit` with its tag, its digest and its JSON.
pub(super) fn read<E: From<LedgerError>>(
    path: &Path,
    format: &str,
    mut visit: impl FnMut(&str, Digest, &str) -> Result<(), E>,
) -> Result<Proved, E> {
    let mut reader = BufReader::new(File::open(path).map_err(LedgerError::io("open", path))?);
    let mut state = Reading { path, hasher: Sha256::new(), offset: 0, record: 0 };
    let mut header = None;
    loop {
        let line = state.next(&mut reader)?;
        let (tag, sha256, json) = state.split(&line, format, header.is_none())?;
        if header.is_none() {
            header = Some(serde_json::from_str(json).map_err(|error| state.fault(&format!("its header: {error}")))?);
        } else if tag == TRAILER {
            state.check_trailer(sha256, json)?;
            let mut rest = [0_u8; 1];
            let more = reader.read(&mut rest).map_err(LedgerError::io("read", path))?;
            if more > 0 {
                return Err(state.fault("something follows its trailer").into());
            }
            return Ok(Proved { header: header.unwrap_or(Value::Null), sha256 });
        } else {
            if Digest::of(json.as_bytes()) != sha256 {
                return Err(state.fault("the record is not what its digest says").into());
            }
            visit(tag, sha256, json)?;
            state.record += 1;
        }
        state.hasher.update(line.as_bytes());
        state.offset += line.len() as u64;
    }
}

struct Reading<'a> {
    path: &'a Path,
    hasher: Sha256,
    /// Where the present line begins.
    offset: u64,
    record: u64,
}

impl Reading<'_> {
    fn fault(&self, what: &str) -> LedgerError {
        let detail =
            format!("is damaged at byte {} (record {}): {what}; nothing of it was used", self.offset, self.record);
        LedgerError::Parcel { path: self.path.to_owned(), detail }
    }

    fn next(&self, reader: &mut BufReader<File>) -> Result<String, LedgerError> {
        let mut bytes = Vec::new();
        reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(LedgerError::io("read", self.path))?;
        if bytes.last() != Some(&b'\n') {
            return Err(self.fault("it ends before its trailer"));
        }
        String::from_utf8(bytes).map_err(|_| self.fault("the line is no text"))
    }

    /// Tag, digest and JSON of a line.
    fn split<'l>(
        &self,
        line: &'l str,
        format: &str,
        is_first: bool,
    ) -> Result<(&'l str, Digest, &'l str), LedgerError> {
        let mut parts = line.trim_end_matches('\n').splitn(3, ' ');
        let (tag, digest, json) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if is_first && tag != format {
            let (family, _) = format.split_once('/').unwrap_or((format, ""));
            let detail = if tag.starts_with(&format!("{family}/")) {
                format!("has format {tag}, this program reads {format}; use the loupe that made it, or a newer one")
            } else {
                format!("does not begin with {format}: it is another kind of file")
            };
            return Err(LedgerError::Parcel { path: self.path.to_owned(), detail });
        }
        let sha256: Digest = digest.parse().map_err(|_| self.fault("the line has no digest"))?;
        if is_first && Digest::of(json.as_bytes()) != sha256 {
            return Err(self.fault("its header is not what its digest says"));
        }
        Ok((tag, sha256, json))
    }

    fn check_trailer(&self, sha256: Digest, json: &str) -> Result<(), LedgerError> {
        if Digest::from_bytes(self.hasher.clone().finalize().into()) != sha256 {
            return Err(self.fault("its trailer does not fit what precedes: lines are missing, doubled or moved"));
        }
        let records = serde_json::from_str::<Value>(json).ok().and_then(|trailer| trailer.get("records")?.as_u64());
        if records != Some(self.record) {
            return Err(self.fault("its trailer counts other records"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{LedgerError, LinesWriter, read};

    fn records(path: &Path) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let keep = |_: &str, _, json: &str| -> Result<(), LedgerError> {
            found.push(json.to_owned());
            Ok(())
        };
        read(path, "test/1", keep).map_err(|error| error.to_string())?;
        Ok(found)
    }

    #[test]
    fn every_flipped_bit_cut_and_moved_line_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("parcel");
        let mut writer = LinesWriter::create(&path, "test/1", &json!({"of": "tests"})).unwrap();
        for number in 0..3 {
            writer.record("U", &json!({ "number": number }).to_string()).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(records(&path).unwrap().len(), 3);
        let whole = std::fs::read(&path).unwrap();
        let check = |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = records(&path).expect_err(what);
            assert!(
                error.contains("is damaged at byte")
                    || error.contains("another kind of file")
                    || error.contains("has format"),
                "{what}: {error}"
            );
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x01;
            check(&bytes, &format!("byte {at} of {} flipped", whole.len()));
            check(&whole[..at], &format!("cut at {at}"));
        }
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        check(&[lines[0], lines[2], lines[1], lines[3], lines[4]].concat(), "moved");
        check(&[lines[0], lines[1], lines[3], lines[4]].concat(), "missing");
        check(&[lines[0], lines[1], lines[1], lines[2], lines[3], lines[4]].concat(), "doubled");
        check(&[&whole[..], b"more\n"].concat(), "followed");
    }
}
