//! The tar of a backup: written under a temporary name with every digest, read back with every digest compared.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{BufReader, BufWriter, Read, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::BackupError;
use super::manifest::{FORMAT, FORMAT_FAMILY, Header, Manifest, Member, MemberKind};
use crate::failpoint;
use crate::types::Digest;

pub(super) const HEADER_NAME: &str = "loupe-backup.json";
pub(super) const LEDGER_NAME: &str = "ledger.db";
pub(super) const SECRETS_NAME: &str = "secrets.sealed";
const MANIFEST_NAME: &str = "manifest.json";
const MANIFEST_DIGEST_NAME: &str = "manifest.sha256";
/// Five million members of 200 bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
const BUFFER_BYTES: usize = 1 << 20;

/// Hears the bytes that passed since the last word.
pub(super) type Heard<'a> = &'a mut dyn FnMut(u64);

/// A reader that takes the digest and the length of what passes.
struct Tally<'a, R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
    heard: Heard<'a>,
}

impl<'a, R: Read> Tally<'a, R> {
    fn new(inner: R, heard: Heard<'a>) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0, heard }
    }

    fn digest(self) -> Digest {
        Digest::from_bytes(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Tally<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        (self.heard)(read as u64);
        Ok(read)
    }
}

/// A backup being written; dropped before [`ArchiveWriter::finish`] it leaves nothing behind.
pub(super) struct ArchiveWriter {
    /// `None` once finished.
    builder: Option<tar::Builder<BufWriter<File>>>,
    target: PathBuf,
    partial: PathBuf,
    pub members: Vec<Member>,
}

impl ArchiveWriter {
    pub fn create(target: &Path) -> Result<Self, BackupError> {
        if target.exists() {
            return Err(BackupError::Exists { path: target.to_owned() });
        }
        let partial = beside(target, ".partial");
        let on_io = BackupError::io("create", &partial);
        let mut options = File::options();
        // Pictures of the line, and perhaps secrets: for the owner alone.
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&partial).map_err(&on_io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BackupError::InUse { path: target.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(on_io(source)),
        }
        // What a backup that was cut off left.
        file.set_len(0).map_err(&on_io)?;
        let builder = Some(tar::Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file)));
        Ok(Self { builder, target: target.to_owned(), partial, members: Vec::new() })
    }

    pub fn add_bytes(&mut self, name: &str, kind: MemberKind, mode: u32, bytes: &[u8]) -> Result<(), BackupError> {
        let member = self.append(name, kind, (bytes.len() as u64, mode), bytes, &mut |_| ())?;
        self.members.push(member);
        Ok(())
    }

    /// Add a file as it is now; answers with its digest.
    pub fn add_file(
        &mut self,
        name: &str,
        kind: MemberKind,
        source: &Path,
        heard: Heard<'_>,
    ) -> Result<Digest, BackupError> {
        let on_io = BackupError::io("read", source);
        let file = File::open(source).map_err(&on_io)?;
        let metadata = file.metadata().map_err(&on_io)?;
        let size_bytes = metadata.len();
        let member = self.append(name, kind, (size_bytes, metadata.mode() & 0o777), file.take(size_bytes), heard)?;
        if member.size_bytes != size_bytes {
            return Err(BackupError::Changed { path: source.to_owned() });
        }
        let sha256 = member.sha256;
        self.members.push(member);
        Ok(sha256)
    }

    /// The member's length is what the reader gave.
    fn append(
        &mut self,
        name: &str,
        kind: MemberKind,
        (size_bytes, mode): (u64, u32),
        content: impl Read,
        heard: Heard<'_>,
    ) -> Result<Member, BackupError> {
        let on_io = BackupError::io("write", &self.partial);
        let Some(builder) = &mut self.builder else {
            return Err(on_io(std::io::Error::other("it is finished")));
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(size_bytes);
        header.set_mode(mode);
        let mut tally = Tally::new(content, heard);
        builder.append_data(&mut header, name, &mut tally).map_err(on_io)?;
        let size_bytes = tally.bytes;
        Ok(Member { name: name.to_owned(), kind, size_bytes, sha256: tally.digest(), mode })
    }

    /// Write the manifest and give the backup its name, durably. Returns the manifest's digest and the file's length.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(Digest, u64), BackupError> {
        let on_io = BackupError::io("write", &self.partial);
        let text = serde_json::to_vec(manifest).map_err(|error| on_io(error.into()))?;
        let sha256 = Digest::of(&text);
        let meta = |bytes: &[u8]| (bytes.len() as u64, 0o600);
        self.append(MANIFEST_NAME, MemberKind::Header, meta(&text), &text[..], &mut |_| ())?;
        let line = format!("{sha256}\n");
        self.append(MANIFEST_DIGEST_NAME, MemberKind::Header, meta(line.as_bytes()), line.as_bytes(), &mut |_| ())?;
        let Some(builder) = self.builder.take() else {
            return Err(on_io(std::io::Error::other("it is finished")));
        };
        let outcome = publish(builder, &self.partial, &self.target);
        if outcome.is_err() {
            drop(fs::remove_file(&self.partial));
        }
        outcome.map(|bytes| (sha256, bytes))
    }
}

fn publish(builder: tar::Builder<BufWriter<File>>, partial: &Path, target: &Path) -> Result<u64, BackupError> {
    let on_io = BackupError::io("write", partial);
    let mut buffer = builder.into_inner().map_err(&on_io)?;
    buffer.flush().map_err(&on_io)?;
    let file = buffer.into_inner().map_err(|error| on_io(error.into_error()))?;
    file.sync_all().map_err(&on_io)?;
    let bytes = file.metadata().map_err(&on_io)?.len();
    failpoint::hit("backup.synced");
    // Not over a file that came in the meantime.
    match fs::hard_link(partial, target) {
        Ok(()) => fs::remove_file(partial).map_err(&on_io)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists { path: target.to_owned() });
        }
        // A file system without links.
        Err(_) => fs::rename(partial, target).map_err(BackupError::io("rename into", target))?,
    }
    failpoint::hit("backup.published");
    sync_parent(target)?;
    Ok(bytes)
}

impl Drop for ArchiveWriter {
    fn drop(&mut self) {
        if self.builder.take().is_some() {
            drop(fs::remove_file(&self.partial));
        }
    }
}

/// `path` with `suffix` after its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Make the names in the folder of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), BackupError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(BackupError::io("sync", parent))
}

/// A member passing by: name, length, content.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&str, u64, &mut dyn Read) -> Result<(), BackupError>;

/// The header alone.
pub(super) fn read_header(path: &Path) -> Result<Header, BackupError> {
    let mut archive = tar::Archive::new(open(path)?);
    let mut entries = archive.entries().map_err(|error| foreign(path, &error.to_string()))?;
    let Some(Ok(mut entry)) = entries.next() else { return Err(foreign(path, "it is no tar file")) };
    header_of(path, &mut entry)
}

fn header_of<R: Read>(path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<Header, BackupError> {
    if entry.path_bytes().as_ref() != HEADER_NAME.as_bytes() {
        return Err(foreign(path, &format!("it does not begin with {HEADER_NAME}")));
    }
    let mut text = Vec::new();
    entry.take(1 << 20).read_to_end(&mut text).map_err(|error| damaged(path, 0, &error.to_string()))?;
    parse_header(path, &text)
}

fn parse_header(path: &Path, text: &[u8]) -> Result<Header, BackupError> {
    let raw: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| damaged(path, 0, &format!("{HEADER_NAME}: {error}")))?;
    let format = raw.get("format").and_then(serde_json::Value::as_str).unwrap_or_default();
    if format != FORMAT && format.starts_with(FORMAT_FAMILY) {
        return Err(BackupError::Newer { path: path.to_owned(), found: format.to_owned(), known: FORMAT });
    }
    if format != FORMAT {
        return Err(foreign(path, &format!("its format is `{format}`")));
    }
    serde_json::from_value(raw).map_err(|error| damaged(path, 0, &format!("{HEADER_NAME}: {error}")))
}

fn open(path: &Path) -> Result<BufReader<File>, BackupError> {
    Ok(BufReader::with_capacity(BUFFER_BYTES, File::open(path).map_err(BackupError::io("open", path))?))
}

fn foreign(path: &Path, detail: &str) -> BackupError {
    BackupError::Foreign { path: path.to_owned(), detail: detail.to_owned() }
}

fn damaged(path: &Path, offset: u64, what: &str) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), offset, what: what.to_owned() }
}

/// A member as it was read.
struct Seen {
    name: String,
    size_bytes: u64,
    sha256: Digest,
    offset: u64,
}

/// Read all of a backup: each member goes to `visit`, every digest is compared. What `visit` did is only good when this
/// returns the manifest and its digest.
pub(super) fn read(path: &Path, visit: Visit<'_>, heard: Heard<'_>) -> Result<(Manifest, Digest), BackupError> {
    let mut archive = tar::Archive::new(open(path)?);
    let length = fs::metadata(path).map_err(BackupError::io("open", path))?.len();
    let mut seen: Vec<Seen> = Vec::new();
    let mut names = BTreeSet::new();
    let mut manifest = Vec::new();
    let mut stated = Vec::new();
    let entries = archive.entries().map_err(|error| foreign(path, &error.to_string()))?;
    for entry in entries {
        let last = seen.last().map_or(0, |seen| seen.offset + seen.size_bytes);
        let mut entry = entry.map_err(|error| match seen.is_empty() {
            true => foreign(path, &error.to_string()),
            false => damaged(path, last, &error.to_string()),
        })?;
        let offset = entry.raw_file_position();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size_bytes = entry.size();
        if !names.insert(name.clone()) || entry.header().entry_type() != tar::EntryType::Regular {
            return Err(damaged(path, offset, &format!("member {name} stands twice or is no plain file")));
        }
        if seen.is_empty() {
            let mut text = Vec::new();
            let header = if name == HEADER_NAME { entry.read_to_end(&mut text) } else { Ok(0) };
            header.map_err(|error| damaged(path, offset, &error.to_string()))?;
            if name != HEADER_NAME {
                return Err(foreign(path, &format!("it does not begin with {HEADER_NAME}")));
            }
            parse_header(path, &text)?;
            seen.push(Seen { name, size_bytes, sha256: Digest::of(&text), offset });
            continue;
        }
        let mut tally = Tally::new(&mut entry, heard);
        match name.as_str() {
            MANIFEST_NAME => read_all(path, offset, &mut tally, &mut manifest)?,
            MANIFEST_DIGEST_NAME => read_all(path, offset, &mut tally, &mut stated)?,
            _ => {
                visit(&name, size_bytes, &mut tally)?;
                std::io::copy(&mut tally, &mut std::io::sink())
                    .map_err(|error| damaged(path, offset, &error.to_string()))?;
            }
        }
        if tally.bytes != size_bytes {
            return Err(damaged(path, length, &format!("it ends in the middle of {name}")));
        }
        if ![MANIFEST_NAME, MANIFEST_DIGEST_NAME].contains(&name.as_str()) {
            seen.push(Seen { name, size_bytes, sha256: tally.digest(), offset });
        }
    }
    if stated.is_empty() {
        return Err(damaged(path, length, "it ends before its manifest"));
    }
    compare(path, &seen, &manifest, &stated)
}

fn read_all(path: &Path, offset: u64, from: &mut dyn Read, into: &mut Vec<u8>) -> Result<(), BackupError> {
    from.take(MANIFEST_BYTES_MAX).read_to_end(into).map(drop).map_err(|error| damaged(path, offset, &error.to_string()))
}

fn compare(path: &Path, seen: &[Seen], text: &[u8], stated: &[u8]) -> Result<(Manifest, Digest), BackupError> {
    let sha256 = Digest::of(text);
    let end = seen.last().map_or(0, |seen| seen.offset + seen.size_bytes);
    if String::from_utf8_lossy(stated).trim() != sha256.to_string() {
        return Err(damaged(path, end, "its manifest is not what manifest.sha256 says"));
    }
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|error| damaged(path, end, &format!("its manifest: {error}")))?;
    for (index, found) in seen.iter().enumerate() {
        let Some(member) = manifest.members.get(index) else {
            return Err(damaged(path, found.offset, &format!("{} is not in the manifest", found.name)));
        };
        if (&member.name, member.size_bytes, member.sha256) != (&found.name, found.size_bytes, found.sha256) {
            return Err(damaged(path, found.offset, &format!("{} is not what the manifest says", found.name)));
        }
    }
    match manifest.members.get(seen.len()) {
        Some(member) => Err(damaged(path, end, &format!("{} is missing", member.name))),
        None => Ok((manifest, sha256)),
    }
}

/// Copy a member into a file that must not be there.
pub(super) fn unpack(archive: &Path, content: &mut dyn Read, target: &Path, mode: u32) -> Result<(), BackupError> {
    let on_write = BackupError::io("write", target);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(BackupError::io("create", parent))?;
    }
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(mode).open(target).map_err(&on_write)?;
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        let read = content.read(&mut buffer).map_err(|error| damaged(archive, 0, &error.to_string()))?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(&on_write)?;
    }
    file.flush().map_err(&on_write)?;
    file.rewind().map_err(&on_write)
}
