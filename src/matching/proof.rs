//! The proof that every byte of a generation was compared with its manifest, so that the next opening need not do it
//! again: `gen-….verified.json` beside the generation.
//!
//! For each file it holds size, inode, device, times of the last change of content and of the file's entry, and the
//! digest that was computed; and which boot of the machine that was. A file that matches all of it is not read again.
//!
//! What a matching record catches: any write through the file system by any program (the kernel moves the time of change,
//! which no program can set), a file put in another's place, a file cut short, a restored backup, a record that does not
//! belong to the manifest, and everything that a power cut may have torn (after a boot every byte is read again).
//! What it does not: a disk that returns other bytes than it took while the machine stays up, and writes past the
//! file system to the raw device. `loupe index verify` reads every byte whatever the record says, from the disk where the
//! kernel allows it.
//!
//! Invariant: times are only trusted when they lie well before the reading began, because the kernel's clock for them has
//! ticks of up to 10 ms (git calls such an entry "racily clean").
//! Thread: the caller's. Overload: none.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::types::Digest;

const FORMAT: u32 = 1;
/// A change this close before a reading could share its tick with a later one.
const RACY_NS: i128 = 100_000_000;
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// What the file system says of a file, and the digest of the bytes that were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    bytes: u64,
    inode: u64,
    device: u64,
    modified_ns: i128,
    changed_ns: i128,
    sha256: Digest,
}

impl Seen {
    fn of(metadata: &Metadata, sha256: Digest) -> Self {
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            device: metadata.dev(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            sha256,
        }
    }
}

/// The files of one generation whose every byte was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    format: u32,
    /// The kernel's name of the boot that the files were read in.
    boot_id: String,
    files: BTreeMap<String, Seen>,
}

impl Proof {
    /// A proof of nothing, of this boot.
    #[must_use]
    pub fn new() -> Self {
        Self { format: FORMAT, boot_id: boot_id(), files: BTreeMap::new() }
    }

    /// What was written down beside the generation `dir`; of nothing when there is no record, or one of another boot.
    #[must_use]
    pub fn load(dir: &Path) -> Self {
        let read = || -> Option<Self> { serde_json::from_slice(&fs::read(path_of(dir)?).ok()?).ok() };
        let now = Self::new();
        read()
            .filter(|proof| proof.format == FORMAT && !now.boot_id.is_empty() && proof.boot_id == now.boot_id)
            .unwrap_or(now)
    }

    /// Write it beside the generation `dir`. A directory that cannot be written costs time at the next opening, no more,
    /// so failing is no error.
    pub fn save(&self, dir: &Path) {
        let Some(path) = path_of(dir) else { return };
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let Ok(text) = serde_json::to_vec_pretty(self) else { return };
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
    }

    /// Whether it proves something at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether the file `name` at `path` still is the one whose digest was found to be `sha256`.
    ///
    /// # Errors
    /// When the file is not there or may not be looked at.
    pub fn covers(&self, name: &str, path: &Path, sha256: Digest) -> std::io::Result<bool> {
        let metadata = fs::metadata(path)?;
        Ok(self.files.get(name).is_some_and(|seen| *seen == Seen::of(&metadata, sha256)))
    }

    /// Read every byte of the file `name` at `path`, and remember it where its times allow that.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&mut self, name: &str, path: &Path) -> std::io::Result<Digest> {
        let began_ns = i128::from(Clock::system().now().as_micros()) * 1_000;
        let file = File::open(path)?;
        let before = file.metadata()?;
        let sha256 = Digest::of_reader(&file)?;
        let seen = Seen::of(&before, sha256);
        let is_settled = began_ns - seen.modified_ns.max(seen.changed_ns) > RACY_NS;
        if is_settled && Seen::of(&file.metadata()?, sha256) == seen {
            self.files.insert(name.to_owned(), seen);
        } else {
            self.files.remove(name);
        }
        Ok(sha256)
    }
}

impl Default for Proof {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the record of the generation `dir` stands; `None` for a path without a name.
#[must_use]
pub fn path_of(dir: &Path) -> Option<PathBuf> {
    let name = dir.file_name()?.to_string_lossy();
    Some(dir.with_file_name(format!("{name}.verified.json")))
}

/// Ask the kernel to forget what it holds of a file in memory, so that the next reading comes from the disk. Pages that a
/// process has mapped stay.
pub fn forget_cached(path: &Path) {
    if let Ok(file) = File::open(path) {
        // A hint: a file system that knows none is read from memory.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
    }
}

/// Empty where the kernel does not say.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID_FILE).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::time::{Duration, SystemTime};

    use super::Proof;

    /// A file written long ago, as the file system sees it; its entry changed just now, which no program can hide.
    fn old_file(dir: &std::path::Path) -> std::path::PathBuf {
        let path = dir.join("l2.vectors");
        std::fs::write(&path, b"vectors").unwrap();
        path
    }

    /// The proof that reading the file an hour later gives.
    fn settled(path: &std::path::Path) -> Proof {
        let mut proof = Proof::new();
        let sha256 = proof.read("l2.vectors", path).unwrap();
        assert!(proof.is_empty(), "a file changed just now may change again in the same tick");
        proof.files.insert("l2.vectors".to_owned(), super::Seen::of(&path.metadata().unwrap(), sha256));
        proof
    }

    #[test]
    fn a_write_that_hides_behind_the_old_modification_time_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = old_file(dir.path());
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(past)).unwrap();
        let proof = settled(&path);
        let sha256 = crate::types::Digest::of(b"vectors");
        assert!(proof.covers("l2.vectors", &path, sha256).unwrap());
        assert!(!proof.covers("l2.vectors", &path, crate::types::Digest::of(b"other")).unwrap(), "another manifest");
        assert!(!proof.covers("l2.lists", &path, sha256).unwrap(), "another file");
        // The clock of the file system moves in ticks; a write in a later one must be seen.
        let before = path.metadata().unwrap();
        while super::Seen::of(&path.metadata().unwrap(), sha256) == super::Seen::of(&before, sha256) {
            std::fs::write(&path, b"VECTORS").unwrap();
            File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(past)).unwrap();
        }
        assert_eq!(path.metadata().unwrap().modified().unwrap(), past, "the usual time says nothing");
        assert!(!proof.covers("l2.vectors", &path, sha256).unwrap());
    }

    #[test]
    fn a_record_of_another_boot_or_garbage_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = old_file(dir.path());
        let generation = dir.path().join("gen-000000000000");
        let mut proof = settled(&path);
        proof.save(&generation);
        assert_eq!(Proof::load(&generation), proof);
        proof.boot_id = "another".to_owned();
        proof.save(&generation);
        assert!(Proof::load(&generation).is_empty());
        std::fs::write(super::path_of(&generation).unwrap(), b"{\"format\":1").unwrap();
        assert!(Proof::load(&generation).is_empty());
        assert!(Proof::load(&dir.path().join("gen-111111111111")).is_empty());
        proof.save(std::path::Path::new("/proc/none/gen-000000000000"));
    }
}
