//! One generation directory: `manifest.json`, `l1.vectors`, `l2.vectors`, `l2.lists`, `ids.bin`, perhaps
//! `groups.csv`, `sizes.csv`, `shapes.csv` with `shapes.bin`, `centres.safetensors`, `mirrors.csv`, and `evidence.csv`; named
//! `gen-` and the first 12 digits of the manifest's digest, and through the manifest's digests of everything in it.
//!
//! Invariants: never edited in place; opened only when every byte was compared with its digest, now or (as
//! [`super::proof`] says) before; L1 is in RAM, L2 and the ids memory-mapped. Checking reads L2 once through a small
//! buffer, which also brings it into the page cache (about 1 s per GB).
//! Thread: the caller's. Overload: none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::MatchError;
use super::centres::Centres;
use super::evidence::TierEvidence;
use super::groups::Groups;
use super::ids::TemplateIds;
use super::lists::Lists;
use super::manifest::{FileEntry, Manifest};
use super::map::Map;
use super::mirrors::Mirrors;
use super::proof::{self, Proof};
use super::shapes::{ShapeList, Shapes};
use super::sizes::Sizes;
use crate::types::Digest;

pub const MANIFEST_FILE: &str = "manifest.json";
pub const L1_FILE: &str = "l1.vectors";
pub const L2_FILE: &str = "l2.vectors";
pub const LISTS_FILE: &str = "l2.lists";
pub const IDS_FILE: &str = "ids.bin";
/// Only where the catalogue has confusion groups.
pub const GROUPS_FILE: &str = "groups.csv";
/// Only where the catalogue has the parts' sizes.
pub const SIZES_FILE: &str = "sizes.csv";
/// Only where the catalogue has confusion groups of two, with the file of their views.
pub const SHAPES_FILE: &str = "shapes.csv";
pub const SHAPE_VIEWS_FILE: &str = "shapes.bin";
/// Only where the build was given evidence; what the next build starts from.
pub const EVIDENCE_FILE: &str = "evidence.csv";
/// Only where the embedder learned directions of its own for some of the parts.
pub const CENTRES_FILE: &str = "centres.safetensors";
/// Only where the embedder tells a picture from its mirror image.
pub const MIRRORS_FILE: &str = "mirrors.csv";
/// Files whose digests the manifest holds.
pub const CONTENT_FILES: [&str; 4] = [L1_FILE, L2_FILE, LISTS_FILE, IDS_FILE];

/// A checked and opened generation.
#[derive(Debug)]
pub struct Generation {
    pub dir: PathBuf,
    /// Digest of `manifest.json`.
    pub sha256: Digest,
    pub manifest: Manifest,
    pub ids: TemplateIds,
    pub groups: Groups,
    pub sizes: Sizes,
    pub shapes: Shapes,
    pub centres: Centres,
    pub mirrors: Mirrors,
    /// Vectors of the hot tier, `[l1.count, dim]`.
    pub l1: Vec<f32>,
    /// Vectors of the cold tier, memory-mapped.
    l2: Map,
    /// A copy of them that takes the mapping's place; empty but for measurements.
    l2_copy: Vec<f32>,
    pub lists: Lists,
}

impl Generation {
    /// Open the generation in `dir`; files that the record beside it does not cover are read and compared in full, and
    /// the record then says so. Changes nothing else on disk.
    ///
    /// # Errors
    /// [`MatchError::Damaged`] with the first fault when content is wrong or missing; [`MatchError::OtherFormat`] when
    /// another version of Loupe wrote it; [`MatchError::Io`] when it could not be read for another reason (permissions,
    /// too many open files).
    pub fn open(dir: &Path) -> Result<Self, MatchError> {
        let (manifest, sha256) = read_manifest(dir)?;
        let recorded = Proof::load(dir);
        let mut proof = recorded.clone();
        for name in content_files(&manifest) {
            check_file(dir, name, &manifest, &mut proof)?;
        }
        let generation = Self::map(dir, manifest, sha256)?;
        if proof != recorded && has_name(dir) {
            proof.save(dir);
        }
        Ok(generation)
    }

    /// As [`Generation::open`], comparing every byte whatever was recorded. What it proved comes with it.
    ///
    /// # Errors
    /// As [`Generation::open`].
    pub fn open_reading_all(dir: &Path) -> Result<(Self, Proof), MatchError> {
        let (manifest, sha256) = read_manifest(dir)?;
        let mut proof = Proof::new();
        for name in content_files(&manifest) {
            proof::forget_cached(&dir.join(name));
            check_file(dir, name, &manifest, &mut proof)?;
        }
        Ok((Self::map(dir, manifest, sha256)?, proof))
    }

    /// Open what was checked.
    fn map(dir: &Path, manifest: Manifest, sha256: Digest) -> Result<Self, MatchError> {
        let damaged = |fault: String| MatchError::damaged(dir, fault);
        let mapped = |name: &'static str| {
            let path = dir.join(name);
            Map::open(&path).map_err(MatchError::io("map", &path))
        };
        let ids = TemplateIds::open(&dir.join(IDS_FILE)).map_err(damaged)?;
        let lists = Lists::open(&dir.join(LISTS_FILE)).map_err(damaged)?;
        let (l1, l2) = (mapped(L1_FILE)?, mapped(L2_FILE)?);
        check_shapes(&manifest, &l1, &l2, &lists).map_err(damaged)?;
        let groups = read_optional(dir, &manifest, GROUPS_FILE, Groups::parse)?;
        let sizes = read_optional(dir, &manifest, SIZES_FILE, Sizes::parse)?;
        let shapes = if manifest.files.contains_key(SHAPES_FILE) {
            let list = read_optional(dir, &manifest, SHAPES_FILE, ShapeList::parse)?;
            Shapes::new(list, mapped(SHAPE_VIEWS_FILE)?).map_err(damaged)?
        } else {
            Shapes::default()
        };
        let centres = read_optional(dir, &manifest, CENTRES_FILE, |bytes| {
            Centres::parse(bytes, manifest.dim).map_err(|fault| format!("{CENTRES_FILE}: {fault}"))
        })?;
        let mirrors = read_optional(dir, &manifest, MIRRORS_FILE, Mirrors::parse)?;
        check_counts(&manifest, &ids).map_err(damaged)?;
        let l1 = l1.values(0, manifest.l1.count * manifest.dim).unwrap_or(&[]).to_vec();
        Ok(Self {
            dir: dir.to_owned(),
            sha256,
            manifest,
            ids,
            groups,
            sizes,
            shapes,
            centres,
            mirrors,
            l1,
            l2,
            l2_copy: Vec::new(),
            lists,
        })
    }

    /// Vectors of the cold tier in the order of the ids, `[l2.count, dim]`, memory-mapped.
    #[must_use]
    pub fn l2(&self) -> &[f32] {
        if !self.l2_copy.is_empty() {
            return &self.l2_copy;
        }
        self.l2.values(0, self.manifest.l2.count * self.manifest.dim).unwrap_or(&[])
    }

    /// Search a copy in memory from now on.
    pub fn copy_to_memory(&mut self) {
        self.l2_copy = self.l2().to_vec();
    }

    /// Enter the cold tier into the process's page table, reading what is not in memory.
    pub fn warm(&self) {
        self.l2.populate();
    }
}

/// Every fault of the generation in `dir`, one sentence each; empty when it is whole. Reads every byte, and records it
/// when all is well.
#[must_use]
pub fn faults(dir: &Path) -> Vec<String> {
    let manifest = match read_manifest(dir) {
        Ok((manifest, _)) => manifest,
        Err(error) => return vec![error.to_string()],
    };
    let mut proof = Proof::new();
    let files: Vec<String> = content_files(&manifest)
        .filter_map(|name| {
            proof::forget_cached(&dir.join(name));
            check_file(dir, name, &manifest, &mut proof).err().map(|error| error.to_string())
        })
        .collect();
    if !files.is_empty() {
        return files;
    }
    proof.save(dir);
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
    let optional = [GROUPS_FILE, SIZES_FILE, SHAPES_FILE, SHAPE_VIEWS_FILE, EVIDENCE_FILE, CENTRES_FILE, MIRRORS_FILE];
    let optional = optional.into_iter().filter(|name| manifest.files.contains_key(*name));
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
    let mut proof = Proof::new();
    for name in content_files(&manifest).filter(|name| *name == IDS_FILE || name.ends_with(".csv")) {
        check_file(dir, name, &manifest, &mut proof)?;
    }
    let ids = TemplateIds::open(&dir.join(IDS_FILE)).map_err(|fault| MatchError::damaged(dir, fault))?;
    let groups = read_optional(dir, &manifest, GROUPS_FILE, Groups::parse)?;
    let evidence = read_optional(dir, &manifest, EVIDENCE_FILE, TierEvidence::parse)?;
    Ok(SmallFiles { manifest, sha256, ids, groups, evidence })
}

/// The content of an optional file; its default where the generation has none.
fn read_optional<T: Default>(
    dir: &Path,
    manifest: &Manifest,
    name: &str,
    parse: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<T, MatchError> {
    if !manifest.files.contains_key(name) {
        return Ok(T::default());
    }
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(MatchError::io("read", &path))?;
    parse(&bytes).map_err(|fault| MatchError::damaged(dir, fault))
}

/// The manifest of the generation in `dir`, and its digest. No other file is looked at.
///
/// # Errors
/// As [`Generation::open`].
pub fn read_manifest(dir: &Path) -> Result<(Manifest, Digest), MatchError> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = std::fs::read(&path).map_err(|error| missing_or_io(dir, MANIFEST_FILE, error))?;
    let sha256 = Digest::of(&bytes);
    if has_name(dir) && dir.file_name().is_some_and(|name| *name != *name_of(&sha256)) {
        let fault =
            format!("{MANIFEST_FILE} was changed: its digest begins with {}, not as the name says", sha256.short());
        return Err(MatchError::damaged(dir, fault));
    }
    if let Some(format) = Manifest::other_format(&bytes) {
        return Err(MatchError::OtherFormat { dir: dir.to_owned(), format });
    }
    Ok((Manifest::parse(&bytes).map_err(|fault| MatchError::damaged(dir, fault))?, sha256))
}

fn has_name(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| is_name(&name.to_string_lossy()))
}

fn check_file(dir: &Path, name: &str, manifest: &Manifest, proof: &mut Proof) -> Result<(), MatchError> {
    let Some(wanted) = manifest.files.get(name) else {
        return Err(MatchError::damaged(dir, format!("{MANIFEST_FILE} has no digest of {name}")));
    };
    let path = dir.join(name);
    if proof.covers(name, &path, wanted.sha256).map_err(|error| missing_or_io(dir, name, error))? {
        return Ok(());
    }
    let bytes = std::fs::metadata(&path).map_err(|error| missing_or_io(dir, name, error))?.len();
    if bytes != wanted.bytes {
        return Err(MatchError::damaged(dir, format!("{name} has {bytes} bytes, the manifest says {}", wanted.bytes)));
    }
    let got = proof.read(name, &path).map_err(|error| missing_or_io(dir, name, error))?;
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

fn check_shapes(manifest: &Manifest, l1: &Map, l2: &Map, lists: &Lists) -> Result<(), String> {
    let dim = manifest.dim;
    if lists.dim() != dim {
        return Err(format!("{LISTS_FILE} has dimension {}, the manifest says {dim}", lists.dim()));
    }
    let (rows, count) = (manifest.l2.count, manifest.l2.lists);
    if (lists.rows(), lists.count()) != (rows, count) {
        let (has, of) = (lists.count(), lists.rows());
        return Err(format!("{LISTS_FILE} has {has} lists of {of} vectors, the manifest says {count} of {rows}"));
    }
    for (name, map, count) in [(L1_FILE, l1, manifest.l1.count), (L2_FILE, l2, manifest.l2.count)] {
        let wanted = count.checked_mul(dim).and_then(|values| values.checked_mul(size_of::<f32>()));
        if wanted != Some(map.byte_count()) {
            return Err(format!("{name} has {} bytes, not those of {count} vectors of {dim} values", map.byte_count()));
        }
    }
    Ok(())
}

fn check_counts(manifest: &Manifest, ids: &TemplateIds) -> Result<(), String> {
    let checks = [
        ("templates in the manifest", manifest.template_count, "vectors in l2.vectors", manifest.l2.count),
        ("rows in ids.bin", ids.len(), "vectors in l2.vectors", manifest.l2.count),
        ("hot rows in ids.bin", ids.hot().len(), "vectors in l1.vectors", manifest.l1.count),
        ("parts in ids.bin", ids.part_count(), "parts in the manifest", manifest.part_count),
    ];
    match checks.into_iter().find(|(_, a, _, b)| a != b) {
        Some((what_a, a, what_b, b)) => Err(format!("{a} {what_a}, but {b} {what_b}")),
        None => Ok(()),
    }
}
