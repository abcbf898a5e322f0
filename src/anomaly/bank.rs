//! A bank's folder: `manifest.json`, which names everything a score rests on, and the files of its groups.
//!
//! A bank has at least one group (see [`super::group`]). The first format had one, without a name, and no more than
//! `bank.faiss`; the second had no seal. Such banks are read as before. The digest of `manifest.json` names the bank, and
//! `manifest.sha256` beside it seals it (see [`super::seal`]). The folder is written under a temporary name, synced and
//! renamed, so it is there as a whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::group::{Group, Picture, Thumbnail};
use super::manifest::{BankManifest, FORMAT, check, check_parts};
use super::memory::SearchMode;
use super::seal::{SEAL_FILE, check_seal, seal_of};
use super::staging::Staging;
use super::threshold::ThresholdRule;
use super::{AnomalyError, group};
use crate::types::Digest;

const MANIFEST_FILE: &str = "manifest.json";
/// A manifest is about 1 kB.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A bank that was opened and found whole.
#[derive(Debug)]
pub struct Bank {
    manifest: BankManifest,
    sha256: Digest,
    folder: PathBuf,
    groups: Vec<Group>,
}

impl Bank {
    /// Read a bank and check its seal, its files' digests, its dimension and its counts.
    ///
    /// # Errors
    /// When a file is missing, damaged or contradicts the manifest, or the manifest its seal.
    pub fn open(dir: &Path) -> Result<Bank, AnomalyError> {
        let path = dir.join(MANIFEST_FILE);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AnomalyError::Io { action, path, source }
        };
        if !dir.exists() {
            return Err(AnomalyError::Missing { path: dir.to_owned() });
        }
        if fs::metadata(&path).map_err(io("open the bank's", &path))?.len() > MANIFEST_BYTES_MAX {
            return Err(AnomalyError::Manifest { path, message: "its manifest is larger than 1 MiB".to_owned() });
        }
        let bytes = fs::read(&path).map_err(io("open the bank's", &path))?;
        let sha256 = Digest::of(&bytes);
        let is_sealed = check_seal(dir, MANIFEST_FILE, sha256)?;
        let manifest: BankManifest = serde_json::from_slice(&bytes)
            .map_err(|error| AnomalyError::Manifest { path: path.clone(), message: error.to_string() })?;
        check(&manifest).map_err(|message| AnomalyError::Manifest { path, message })?;
        if !is_sealed && manifest.format == FORMAT {
            let message = format!("`{SEAL_FILE}`, which says what it must be, is missing");
            return Err(AnomalyError::Seal { bank: dir.to_owned(), message });
        }
        for (file, &expected) in &manifest.files {
            let path = dir.join(file);
            let found = Digest::of_file(&path).map_err(io("read", &path))?;
            if found != expected {
                return Err(AnomalyError::FileDiffers { bank: dir.to_owned(), file: file.clone(), expected, found });
            }
        }
        let groups = manifest.group_list().into_iter().enumerate();
        let groups = groups.map(|(number, group)| Group::read(dir, number, group, manifest.dim, &manifest.files));
        let groups = groups.collect::<Result<Vec<_>, _>>()?;
        Ok(Bank { manifest, sha256, folder: dir.to_owned(), groups })
    }

    /// Write a new bank to `dir`, which must not exist; groups, counts, thresholds and file digests of `manifest` are
    /// filled in from `groups`, above 0 of them. `thumbnails` are named by the groups' pictures.
    pub(super) fn write(
        dir: &Path,
        mut manifest: BankManifest,
        groups: Vec<Group>,
        thumbnails: &[(String, Thumbnail)],
    ) -> Result<Bank, AnomalyError> {
        if dir.exists() {
            return Err(AnomalyError::Exists { path: dir.to_owned() });
        }
        manifest.describe(&groups);
        check_parts(&manifest).map_err(|message| AnomalyError::Unwritable { path: dir.to_owned(), message })?;
        let staging = Staging::new(dir)?;
        let temporary = staging.folder();
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AnomalyError::Io { action, path, source }
        };
        let mut files = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            files.extend(group.write(temporary, number)?);
        }
        for (name, thumbnail) in thumbnails {
            match thumbnail {
                Thumbnail::Bytes(bytes) => files.push(group::written(temporary, name.clone(), bytes)?),
                Thumbnail::File(path) => {
                    fs::copy(path, temporary.join(name)).map_err(io("copy", path))?;
                    files.push(name.clone());
                }
            }
        }
        manifest.files.clear();
        for name in files {
            let path = temporary.join(&name);
            manifest.files.insert(name, Digest::of_file(&path).map_err(io("read", &path))?);
        }
        let path = temporary.join(MANIFEST_FILE);
        let mut bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| AnomalyError::Manifest { path: path.clone(), message: error.to_string() })?;
        bytes.push(b'\n');
        fs::write(&path, &bytes).map_err(io("write", &path))?;
        let sha256 = Digest::of(&bytes);
        group::written(temporary, SEAL_FILE.to_owned(), seal_of(sha256, MANIFEST_FILE).as_bytes())?;
        staging.finish(manifest.files.keys().map(String::as_str).chain([MANIFEST_FILE, SEAL_FILE]))?;
        Ok(Bank { manifest, sha256, folder: dir.to_owned(), groups })
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
        self.groups.iter().map(|group| group.memory.len()).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the thresholds of group `number` were found.
    pub(super) fn rule_of(&self, number: usize) -> ThresholdRule {
        self.manifest.rule_of(&self.groups[number].manifest)
    }

    /// From now on search its vectors so.
    pub(super) fn set_search(&mut self, mode: SearchMode, threads: usize) {
        self.groups.iter_mut().for_each(|group| group.memory.set_search(mode, threads));
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Names of the groups; one empty name where the bank has one that nobody named.
    #[must_use]
    pub fn group_names(&self) -> Vec<&str> {
        self.groups.iter().map(|group| group.manifest.name.as_str()).collect()
    }

    /// The learnt pictures of each group, with their scores; empty for banks of the first format.
    #[must_use]
    pub fn pictures(&self) -> Vec<&[Picture]> {
        self.groups.iter().map(|group| group.pictures.as_slice()).collect()
    }

    /// The folder it was read from or written to.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The number of a group by its name.
    ///
    /// # Errors
    /// When the bank has no such group; the error lists those it has.
    pub(super) fn group_number(&self, name: &str) -> Result<usize, AnomalyError> {
        let found = self.groups.iter().position(|group| group.manifest.name == name);
        found.ok_or_else(|| {
            let known = match self.group_names()[..] {
                [""] => "its pictures have no group name: name none".to_owned(),
                ref names => {
                    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                    format!("it has {}", names.join(", "))
                }
            };
            AnomalyError::NoGroup { name: name.to_owned(), known }
        })
    }

    /// What must be copied so that another bank may hold this one's pictures.
    pub(super) fn thumbnails(&self) -> Vec<(String, Thumbnail)> {
        let names =
            self.groups.iter().flat_map(|group| &group.pictures).filter_map(|picture| picture.thumbnail.clone());
        names.map(|name| (name.clone(), Thumbnail::File(self.folder.join(name)))).collect()
    }

    /// For making another bank out of this one.
    pub(super) fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{
        AnomalyError, Bank, BankManifest, Group, MANIFEST_FILE, Picture, SEAL_FILE, ThresholdRule, Thumbnail, seal_of,
    };
    use crate::anomaly::View;
    use crate::anomaly::group::GroupManifest;
    use crate::anomaly::manifest::{BankModel, Layer, VECTORS_FILE};
    use crate::anomaly::memory::Memory;
    use crate::types::Digest;

    pub fn manifest() -> BankManifest {
        BankManifest {
            format: String::new(),
            software_version: "0".to_owned(),
            model: BankModel {
                name: "m".to_owned(),
                version: "1".to_owned(),
                sha256: Digest::of(b"m"),
                input_sha256: None,
            },
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
            threshold: ThresholdRule::Headroom,
            view: View::default(),
            groups: Vec::new(),
            parent: None,
            files: BTreeMap::new(),
        }
    }

    fn group(name: &str) -> Group {
        let thumbnail = Some(format!("picture-{name}.jpg"));
        let picture = Picture { name: format!("{name}.png"), thumbnail, image_score: 0.5, map_max: 0.25 };
        Group {
            manifest: GroupManifest {
                name: name.to_owned(),
                coreset_count: 3,
                train_count: 1,
                image_threshold_raw: 1.0,
                pixel_threshold_raw: 1.0,
                threshold: None,
                reference_px: None,
            },
            memory: Memory::new(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2).unwrap(),
            origins: vec![0; 3],
            pictures: vec![picture],
            reference: None,
        }
    }

    fn write(dir: &Path, manifest: BankManifest) {
        write_groups(dir, manifest, &[""]).unwrap();
    }

    pub fn write_groups(dir: &Path, manifest: BankManifest, names: &[&str]) -> Result<Bank, AnomalyError> {
        let thumbnails: Vec<_> =
            names.iter().map(|name| (format!("picture-{name}.jpg"), Thumbnail::Bytes(vec![1, 2, 3]))).collect();
        Bank::write(dir, manifest, names.iter().map(|name| group(name)).collect(), &thumbnails)
    }

    #[test]
    fn a_bank_reads_back_as_written_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/bank");
        let written = write_groups(&path, manifest(), &["left", "right"]).unwrap();
        let read = Bank::open(&path).unwrap();
        assert_eq!((read.sha256(), read.manifest()), (written.sha256(), written.manifest()));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary folder is left");
        assert_eq!((read.group_names(), read.len()), (vec!["left", "right"], 6));
        assert_eq!(read.pictures()[1][0].name, "right.png");
        assert!(path.join("bank-1.faiss").exists() && path.join("picture-left.jpg").exists());
        assert!(read.group_number("up").unwrap_err().to_string().ends_with("it has `left`, `right`"));
        let again = write_groups(&path, manifest(), &["left"]);
        assert!(matches!(again, Err(AnomalyError::Exists { .. })));
    }

    #[test]
    fn a_bank_of_the_first_format_is_read_as_one_group_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        let mut text: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.join(MANIFEST_FILE)).unwrap()).unwrap();
        text["format"] = "loupe-bank/1".into();
        for added in ["groups", "threshold", "view", "parent"] {
            text.as_object_mut().unwrap().remove(added);
        }
        let vectors = text["files"][VECTORS_FILE].clone();
        text["files"] = serde_json::json!({ VECTORS_FILE: vectors });
        std::fs::write(path.join(MANIFEST_FILE), text.to_string()).unwrap();
        std::fs::remove_file(path.join(SEAL_FILE)).unwrap();
        let bank = Bank::open(&path).unwrap();
        assert_eq!((bank.group_names(), bank.len(), bank.pictures()[0].len()), (vec![""], 3, 0));
        assert_eq!(bank.groups()[0].manifest.image_threshold_raw, 1.0);
    }

    #[test]
    fn groups_that_cannot_be_told_apart_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for names in [["same", "same"], ["", "named"]] {
            let error = write_groups(&dir.path().join("bank"), manifest(), &names).unwrap_err().to_string();
            assert!(error.contains("names of their own") && error.contains("cannot write"), "{error}");
        }
    }

    #[test]
    fn a_picture_that_was_swapped_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        std::fs::write(path.join("picture-.jpg"), [9]).unwrap();
        assert!(matches!(Bank::open(&path), Err(AnomalyError::FileDiffers { .. })));
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

    /// Replace the first `from` of a bank's manifest.
    fn edit(path: &Path, from: &str, to: &str) {
        let text = std::fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path.join(MANIFEST_FILE), text.replacen(from, to, 1)).unwrap();
    }

    const OF_GROUP: &str = "\"image_threshold_raw\": 1.0,\n      ";

    #[test]
    fn a_flipped_digit_of_any_groups_threshold_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write_groups(&path, manifest(), &["left", "right"]).unwrap();
        let text = std::fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
        let last = text.rfind("\"image_threshold_raw\": 1.0").unwrap() + "\"image_threshold_raw\": ".len();
        for (at, digit) in [(text.find(OF_GROUP).unwrap() + "\"image_threshold_raw\": ".len(), "9"), (last, "9")] {
            let mut flipped = text.clone();
            flipped.replace_range(at..=at, digit);
            std::fs::write(path.join(MANIFEST_FILE), &flipped).unwrap();
            let error = Bank::open(&path).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, AnomalyError::Seal { .. }) && said.contains("damaged"), "{said}");
        }
        std::fs::write(path.join(MANIFEST_FILE), &text).unwrap();
        assert!(Bank::open(&path).is_ok());
        std::fs::remove_file(path.join(SEAL_FILE)).unwrap();
        let error = Bank::open(&path).unwrap_err();
        assert!(matches!(error, AnomalyError::Seal { .. }) && error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn a_bank_before_the_seal_is_read_unless_its_thresholds_contradict_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        std::fs::remove_file(path.join(SEAL_FILE)).unwrap();
        edit(&path, "loupe-bank/3", "loupe-bank/2");
        assert!(Bank::open(&path).is_ok());
        edit(&path, OF_GROUP, &OF_GROUP.replace("1.0", "9.0"));
        let error = Bank::open(&path).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("[9.0, 1.0]"), "{error}");
    }

    fn check_manifest_fault(from: &str, to: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bank");
        write(&path, manifest());
        edit(&path, from, to);
        let sha256 = Digest::of_file(&path.join(MANIFEST_FILE)).unwrap();
        std::fs::write(path.join(SEAL_FILE), seal_of(sha256, MANIFEST_FILE)).unwrap();
        let error = Bank::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn manifests_that_contradict_the_files_or_reach_outside_are_refused() {
        check_manifest_fault("\"dim\": 2", "\"dim\": 4", "expected 3 of 4, found 3 of 2");
        check_manifest_fault(
            "\"coreset_count\": 3,\n      \"train",
            "\"coreset_count\": 9,\n      \"train",
            "expected 9 of 2",
        );
        check_manifest_fault("bank.faiss", "../bank.faiss", "plain file names");
        check_manifest_fault("\"name\": \"m\"", "\"name\": \"../m\"", "no folder name");
        check_manifest_fault("loupe-bank/3", "loupe-bank/9", "loupe-bank/9");
        check_manifest_fault("picture-.jpg", "../picture.jpg", "plain file names");
        check_manifest_fault("\"seed\"", "\"sead\"", "sead");
        check_manifest_fault(OF_GROUP, &OF_GROUP.replace("1.0", "-1.0"), "thresholds");
    }

    #[test]
    fn a_missing_bank_and_one_without_a_manifest_are_named() {
        let error = Bank::open(Path::new("/nowhere/bank")).unwrap_err().to_string();
        assert!(error.contains("`/nowhere/bank` does not exist"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let error = Bank::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
    }
}
