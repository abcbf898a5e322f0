//! A bank's folder: `manifest.json`, which names everything a score rests on, and `bank.faiss`, a flat L2 index.
//!
//! The digest of `manifest.json` names the bank. The folder is written under a temporary name, synced and renamed, so
//! it is there as a whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::AnomalyError;
use super::memory::Memory;
use crate::matching::faiss::Index;
use crate::types::Digest;

const MANIFEST_FILE: &str = "manifest.json";
const VECTORS_FILE: &str = "bank.faiss";
const FORMAT: &str = "loupe-bank/1";
/// A manifest is about 1 kB.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// The model whose features a bank holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankModel {
    pub name: String,
    pub version: String,
    /// Of the model's file.
    pub sha256: Digest,
}

/// A feature map that went into the descriptors, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub output: String,
    pub stride: u32,
    pub channels: usize,
}

/// What `manifest.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankManifest {
    pub format: String,
    pub software_version: String,
    pub model: BankModel,
    pub layers: Vec<Layer>,
    /// Width and height that whole pictures are stretched to.
    pub input_px: [u32; 2],
    /// Patches across and down.
    pub grid: [usize; 2],
    /// Values of a descriptor.
    pub dim: usize,
    /// Share of the training patches that was asked for, above 0, at most 1.
    pub coreset_ratio: f64,
    /// Vectors in the bank.
    pub coreset_count: usize,
    pub seed: u64,
    pub train_count: usize,
    /// Image score of a picture on the edge of good, on the raw scale.
    pub image_threshold_raw: f32,
    /// Map value on the edge of good, on the raw scale.
    pub pixel_threshold_raw: f32,
    /// Digest of each other file of the folder.
    pub files: BTreeMap<String, Digest>,
}

/// A bank that was opened and found whole.
#[derive(Debug)]
pub struct Bank {
    manifest: BankManifest,
    sha256: Digest,
    memory: Memory,
}

impl Bank {
    /// Read a bank and check its files' digests, its dimension and its counts.
    ///
    /// # Errors
    /// When a file is missing, damaged or contradicts the manifest.
    pub fn open(dir: &Path) -> Result<Bank, AnomalyError> {
        let path = dir.join(MANIFEST_FILE);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AnomalyError::Io { action, path, source }
        };
        if fs::metadata(&path).map_err(io("open the bank's", &path))?.len() > MANIFEST_BYTES_MAX {
            return Err(AnomalyError::Manifest { path, message: "its manifest is larger than 1 MiB".to_owned() });
        }
        let bytes = fs::read(&path).map_err(io("open the bank's", &path))?;
        let manifest: BankManifest = serde_json::from_slice(&bytes)
            .map_err(|error| AnomalyError::Manifest { path: path.clone(), message: error.to_string() })?;
        check(&manifest).map_err(|message| AnomalyError::Manifest { path, message })?;
        for (file, &expected) in &manifest.files {
            let path = dir.join(file);
            let found = Digest::of_file(&path).map_err(io("read", &path))?;
            if found != expected {
                return Err(AnomalyError::FileDiffers { bank: dir.to_owned(), file: file.clone(), expected, found });
            }
        }
        let shape = |what, expected: String, found: String| {
            Err(AnomalyError::Shape { bank: dir.to_owned(), what, expected, found })
        };
        let index = Index::read(&dir.join(VECTORS_FILE))?;
        let Some(memory) = Memory::from_index(index) else {
            return shape("kind of bank.faiss", "a flat L2 index with vectors".to_owned(), "another".to_owned());
        };
        let expected = (manifest.coreset_count, manifest.dim);
        if (memory.len(), memory.dim()) != expected {
            let found = format!("{} of {}", memory.len(), memory.dim());
            return shape("vectors of bank.faiss", format!("{} of {}", expected.0, expected.1), found);
        }
        Ok(Bank { manifest, sha256: Digest::of(&bytes), memory })
    }

    /// Write a new bank to `dir`, which must not exist; the file digests of `manifest` are filled in.
    pub(super) fn write(dir: &Path, mut manifest: BankManifest, memory: Memory) -> Result<Bank, AnomalyError> {
        if dir.exists() {
            return Err(AnomalyError::Exists { path: dir.to_owned() });
        }
        let temporary = temporary_name(dir);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AnomalyError::Io { action, path, source }
        };
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(io("clear", &temporary))?;
        }
        fs::create_dir_all(&temporary).map_err(io("make", &temporary))?;
        let vectors = temporary.join(VECTORS_FILE);
        memory.index().write(&vectors)?;
        let digest = Digest::of_file(&vectors).map_err(io("read", &vectors))?;
        manifest.files = BTreeMap::from([(VECTORS_FILE.to_owned(), digest)]);
        let path = temporary.join(MANIFEST_FILE);
        let mut bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| AnomalyError::Manifest { path: path.clone(), message: error.to_string() })?;
        bytes.push(b'\n');
        fs::write(&path, &bytes).map_err(io("write", &path))?;
        for synced in [&vectors, &path, &temporary] {
            sync(synced).map_err(io("sync", synced))?;
        }
        fs::rename(&temporary, dir).map_err(io("move the finished bank to", dir))?;
        let parent = parent_of(dir);
        sync(&parent).map_err(io("sync", &parent))?;
        Ok(Bank { manifest, sha256: Digest::of(&bytes), memory })
    }

    #[must_use]
    pub fn manifest(&self) -> &BankManifest {
        &self.manifest
    }

    /// Of `manifest.json`, which holds the digests of everything else.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    /// Vectors in the bank.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

fn check(manifest: &BankManifest) -> Result<(), String> {
    if manifest.format != FORMAT {
        return Err(format!("its format is `{}`, this version reads `{FORMAT}`", manifest.format));
    }
    let is_plain = |name: &str| {
        !name.is_empty()
            && name != ".."
            && name != "."
            && Path::new(name).components().count() == 1
            && !name.contains('/')
    };
    if !manifest.files.contains_key(VECTORS_FILE) || !manifest.files.keys().all(|name| is_plain(name)) {
        return Err(format!("`files` must name {VECTORS_FILE} and plain file names only"));
    }
    if !is_plain(&manifest.model.name) {
        return Err(format!("the model's name `{}` is no folder name", manifest.model.name));
    }
    if manifest.input_px.iter().any(|&side| side == 0 || side > crate::limits::IMAGE_SIDE_PX_MAX) {
        return Err(format!("`input_px` is {:?}", manifest.input_px));
    }
    if manifest.grid.contains(&0) || manifest.grid.iter().zip(manifest.input_px).any(|(&cells, px)| cells > px as usize)
    {
        return Err(format!("`grid` is {:?}", manifest.grid));
    }
    let thresholds = [manifest.image_threshold_raw, manifest.pixel_threshold_raw];
    if thresholds.iter().any(|threshold| !threshold.is_finite() || *threshold < 0.0) {
        return Err(format!("its thresholds are {thresholds:?}"));
    }
    Ok(())
}

pub(super) fn format_name() -> String {
    FORMAT.to_owned()
}

fn parent_of(dir: &Path) -> PathBuf {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Beside `dir`, so that the rename stays within one file system.
fn temporary_name(dir: &Path) -> PathBuf {
    let name = dir.file_name().map_or_else(|| "bank".into(), |name| name.to_string_lossy().into_owned());
    parent_of(dir).join(format!(".{name}.partial-{}", std::process::id()))
}

fn sync(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{AnomalyError, Bank, BankManifest, BankModel, Layer, MANIFEST_FILE, Memory, VECTORS_FILE, format_name};
    use crate::types::Digest;

    pub fn manifest() -> BankManifest {
        BankManifest {
            format: format_name(),
            software_version: "0".to_owned(),
            model: BankModel { name: "m".to_owned(), version: "1".to_owned(), sha256: Digest::of(b"m") },
            layers: vec![Layer { output: "stride8".to_owned(), stride: 8, channels: 2 }],
            input_px: [64, 64],
            grid: [8, 8],
            dim: 2,
            coreset_ratio: 0.1,
            coreset_count: 3,
            seed: 0,
            train_count: 2,
            image_threshold_raw: 1.0,
            pixel_threshold_raw: 1.0,
            files: BTreeMap::new(),
        }
    }

    fn write(dir: &Path, manifest: BankManifest) {
        Bank::write(dir, manifest, Memory::new(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2).unwrap()).unwrap();
    }

    #[test]
    fn a_bank_reads_back_as_written_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/bank");
        let memory = Memory::new(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2).unwrap();
        let written = Bank::write(&path, manifest(), memory).unwrap();
        let read = Bank::open(&path).unwrap();
        assert_eq!((read.sha256(), read.manifest()), (written.sha256(), written.manifest()));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary folder is left");
        let again = Bank::write(&path, manifest(), Memory::new(vec![0.0, 1.0], 2).unwrap());
        assert!(matches!(again, Err(AnomalyError::Exists { .. })));
    }

    #[test]
    fn a_flipped_byte_in_the_vectors_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        let mut bytes = std::fs::read(path.join(VECTORS_FILE)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path.join(VECTORS_FILE), bytes).unwrap();
        let error = Bank::open(&path).unwrap_err();
        assert!(
            matches!(error, AnomalyError::FileDiffers { .. }) && error.to_string().contains("bank.faiss"),
            "{error}"
        );
    }

    fn check_manifest_fault(from: &str, to: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        let text = std::fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path.join(MANIFEST_FILE), text.replacen(from, to, 1)).unwrap();
        let error = Bank::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn manifests_that_contradict_the_files_or_reach_outside_are_refused() {
        check_manifest_fault("\"dim\": 2", "\"dim\": 4", "expected 3 of 4, found 3 of 2");
        check_manifest_fault("\"coreset_count\": 3", "\"coreset_count\": 9", "expected 9 of 2");
        check_manifest_fault("bank.faiss", "../bank.faiss", "plain file names");
        check_manifest_fault("\"name\": \"m\"", "\"name\": \"../m\"", "no folder name");
        check_manifest_fault("loupe-bank/1", "loupe-bank/9", "loupe-bank/9");
        check_manifest_fault("\"seed\"", "\"sead\"", "sead");
        check_manifest_fault("\"image_threshold_raw\": 1.0", "\"image_threshold_raw\": -1.0", "thresholds");
    }

    #[test]
    fn a_missing_bank_names_its_manifest() {
        let error = Bank::open(Path::new("/nowhere/bank")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/bank/manifest.json"), "{error}");
    }
}
