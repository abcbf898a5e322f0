//! One generation directory: `manifest.json`, `l1.faiss`, `l2.faiss`, `ids.csv`, perhaps
//! `groups.csv` and `evidence.csv`; named `gen-` and the first 12 digits of
//! the manifest's digest, and through the manifest's digests of everything in it.
//!
//! Invariants: never edited in place; opened only after the digest of every byte was checked, because FAISS trusts the
//! files it reads; L1 is in RAM, L2 memory-mapped. Checking reads L2 once through a small buffer, which also brings it
//! into the page cache (about 1 s per GB).
//! Thread: the caller's. Overload: none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::MatchError;
use super::evidence::TierEvidence;
use super::faiss::{Index, Metric};
use super::groups::Groups;
use super::ids::TemplateIds;
use super::manifest::{FileEntry, Manifest};
use crate::types::Digest;

pub const MANIFEST_FILE: &str = "manifest.json";
pub const L1_FILE: &str = "l1.faiss";
pub const L2_FILE: &str = "l2.faiss";
pub const IDS_FILE: &str = "ids.csv";
/// Only where the catalogue has confusion groups.
pub const GROUPS_FILE: &str = "groups.csv";
/// Only where the build was given evidence; what the next build starts from.
pub const EVIDENCE_FILE: &str = "evidence.csv";
/// Files whose digests the manifest holds.
pub const CONTENT_FILES: [&str; 3] = [L1_FILE, L2_FILE, IDS_FILE];

/// A checked and opened generation.
#[derive(Debug)]
pub struct Generation {
    pub dir: PathBuf,
    /// Digest of `manifest.json`.
    pub sha256: Digest,
    pub manifest: Manifest,
    pub ids: TemplateIds,
    pub groups: Groups,
    /// Vectors of the hot tier, `[l1.count, dim]`.
    pub l1: Vec<f32>,
    /// The cold tier, memory-mapped, with its nprobe set; one search at a time.
    pub l2: Mutex<Index>,
}

impl Generation {
    /// Check every byte of the generation in `dir`, then open it. Changes nothing on disk.
    ///
    /// # Errors
    /// [`MatchError::Damaged`] with the first fault when content is wrong or missing; [`MatchError::Io`] when it could
    /// not be read for another reason (permissions, too many open files).
    pub fn open(dir: &Path) -> Result<Self, MatchError> {
        let (manifest, sha256) = read_manifest(dir)?;
        for name in content_files(&manifest) {
            check_file(dir, name, &manifest)?;
        }
        let damaged = |fault: String| MatchError::damaged(dir, fault);
        let ids_path = dir.join(IDS_FILE);
        let ids = std::fs::read(&ids_path).map_err(MatchError::io("read", &ids_path))?;
        let ids = TemplateIds::parse(&ids).map_err(damaged)?;
        let groups = read_groups(dir, &manifest)?;
        let l1 = Index::read(&dir.join(L1_FILE)).map_err(|error| MatchError::damaged(dir, error))?;
        let mut l2 = Index::map(&dir.join(L2_FILE)).map_err(|error| MatchError::damaged(dir, error))?;
        check_shape(L1_FILE, &l1, manifest.dim, manifest.l1.count).map_err(damaged)?;
        check_shape(L2_FILE, &l2, manifest.dim, manifest.l2.count).map_err(damaged)?;
        check_counts(&manifest, &ids).map_err(damaged)?;
        let l1 = l1.flat_vectors().ok_or_else(|| damaged(format!("{L1_FILE} is not a flat index")))?;
        if l2.list_count().is_some() {
            l2.set_nprobe(manifest.l2.nprobe.max(1))?;
        }
        Ok(Self { dir: dir.to_owned(), sha256, manifest, ids, groups, l1, l2: Mutex::new(l2) })
    }
}

/// Every fault of the generation in `dir`, one sentence each; empty when it is whole. Changes nothing on disk.
#[must_use]
pub fn faults(dir: &Path) -> Vec<String> {
    let manifest = match read_manifest(dir) {
        Ok((manifest, _)) => manifest,
        Err(error) => return vec![error.to_string()],
    };
    let files: Vec<String> = content_files(&manifest)
        .filter_map(|name| check_file(dir, name, &manifest).err().map(|error| error.to_string()))
        .collect();
    if !files.is_empty() {
        return files;
    }
    Generation::open(dir).err().map(|error| error.to_string()).into_iter().collect()
}

/// The name that a manifest gives its generation.
#[must_use]
pub fn name_of(manifest_sha256: &Digest) -> String {
    format!("gen-{}", manifest_sha256.short())
}

/// Whether `name` could be a generation's, and cannot lead out of the directory.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.strip_prefix("gen-").is_some_and(|rest| {
        rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// Size and digest of a file just written.
pub(super) fn entry_of(path: &Path) -> Result<FileEntry, MatchError> {
    let bytes = std::fs::metadata(path).map_err(MatchError::io("read", path))?.len();
    let sha256 = Digest::of_file(path).map_err(MatchError::io("read", path))?;
    Ok(FileEntry { bytes, sha256 })
}

/// The files that this generation has by its manifest.
fn content_files(manifest: &Manifest) -> impl Iterator<Item = &'static str> {
    let optional = [GROUPS_FILE, EVIDENCE_FILE].into_iter().filter(|name| manifest.files.contains_key(*name));
    CONTENT_FILES.into_iter().chain(optional)
}

/// What the small files of a generation hold.
pub(super) struct SmallFiles {
    pub manifest: Manifest,
    pub sha256: Digest,
    pub ids: TemplateIds,
    pub groups: Groups,
    pub evidence: TierEvidence,
}

/// The small files of the generation in `dir`, checked.
pub(super) fn read_small_files(dir: &Path) -> Result<SmallFiles, MatchError> {
    let (manifest, sha256) = read_manifest(dir)?;
    for name in content_files(&manifest).filter(|name| name.ends_with(".csv")) {
        check_file(dir, name, &manifest)?;
    }
    let path = dir.join(IDS_FILE);
    let ids = std::fs::read(&path).map_err(MatchError::io("read", &path))?;
    let ids = TemplateIds::parse(&ids).map_err(|fault| MatchError::damaged(dir, fault))?;
    let groups = read_groups(dir, &manifest)?;
    let mut evidence = TierEvidence::default();
    if manifest.files.contains_key(EVIDENCE_FILE) {
        let path = dir.join(EVIDENCE_FILE);
        let bytes = std::fs::read(&path).map_err(MatchError::io("read", &path))?;
        evidence = TierEvidence::parse(&bytes).map_err(|fault| MatchError::damaged(dir, fault))?;
    }
    Ok(SmallFiles { manifest, sha256, ids, groups, evidence })
}

fn read_groups(dir: &Path, manifest: &Manifest) -> Result<Groups, MatchError> {
    if !manifest.files.contains_key(GROUPS_FILE) {
        return Ok(Groups::default());
    }
    let path = dir.join(GROUPS_FILE);
    let bytes = std::fs::read(&path).map_err(MatchError::io("read", &path))?;
    Groups::parse(&bytes).map_err(|fault| MatchError::damaged(dir, fault))
}

fn read_manifest(dir: &Path) -> Result<(Manifest, Digest), MatchError> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = std::fs::read(&path).map_err(|error| missing_or_io(dir, MANIFEST_FILE, error))?;
    let sha256 = Digest::of(&bytes);
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if is_name(&name) && name != name_of(&sha256) {
        let fault =
            format!("{MANIFEST_FILE} was changed: its digest begins with {}, not as the name says", sha256.short());
        return Err(MatchError::damaged(dir, fault));
    }
    Ok((Manifest::parse(&bytes).map_err(|fault| MatchError::damaged(dir, fault))?, sha256))
}

fn check_file(dir: &Path, name: &str, manifest: &Manifest) -> Result<(), MatchError> {
    let Some(wanted) = manifest.files.get(name) else {
        return Err(MatchError::damaged(dir, format!("{MANIFEST_FILE} has no digest of {name}")));
    };
    let path = dir.join(name);
    let bytes = std::fs::metadata(&path).map_err(|error| missing_or_io(dir, name, error))?.len();
    if bytes != wanted.bytes {
        return Err(MatchError::damaged(dir, format!("{name} has {bytes} bytes, the manifest says {}", wanted.bytes)));
    }
    let got = Digest::of_file(&path).map_err(|error| missing_or_io(dir, name, error))?;
    if got != wanted.sha256 {
        let fault = format!("{name} has sha256 {}…, the manifest says {}…", got.short(), wanted.sha256.short());
        return Err(MatchError::damaged(dir, fault));
    }
    Ok(())
}

fn missing_or_io(dir: &Path, name: &str, error: std::io::Error) -> MatchError {
    if error.kind() == ErrorKind::NotFound {
        return MatchError::damaged(dir, format!("{name} is missing"));
    }
    MatchError::io("read", &dir.join(name))(error)
}

fn check_shape(name: &str, index: &Index, dim: usize, count: usize) -> Result<(), String> {
    if index.dim() != dim {
        return Err(format!("{name} has dimension {}, the manifest says {dim}", index.dim()));
    }
    if index.len() != count {
        return Err(format!("{name} holds {} vectors, the manifest says {count}", index.len()));
    }
    if index.metric() != Some(Metric::InnerProduct) {
        return Err(format!("{name} does not compare by inner product"));
    }
    Ok(())
}

fn check_counts(manifest: &Manifest, ids: &TemplateIds) -> Result<(), String> {
    let checks = [
        ("templates in the manifest", manifest.template_count, "vectors in l2.faiss", manifest.l2.count),
        ("rows in ids.csv", ids.len(), "vectors in l2.faiss", manifest.l2.count),
        ("hot rows in ids.csv", ids.hot().len(), "vectors in l1.faiss", manifest.l1.count),
        ("parts in ids.csv", ids.part_count(), "parts in the manifest", manifest.part_count),
    ];
    match checks.into_iter().find(|(_, a, _, b)| a != b) {
        Some((what_a, a, what_b, b)) => Err(format!("{a} {what_a}, but {b} {what_b}")),
        None => Ok(()),
    }
}
