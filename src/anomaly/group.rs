//! One group of a bank (a pose, a camera angle): its vectors, where each came from, its pictures and its reference.
//!
//! Files, with the group's number in their names: `bank.faiss` (the vectors), `origins.u32` (little-endian, the picture of
//! each vector), `pictures.json`, `reference.pgm` and one `picture-….jpg` per picture kept. Group 0 has plain names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::AnomalyError;
use super::align::Aligner;
use super::grey::Grey;
use super::memory::Memory;
use super::threshold::ThresholdRule;
use super::view::View;
use crate::matching::faiss::Index;
use crate::types::Digest;

/// Groups of one bank.
pub const GROUPS_MAX: usize = 32;
/// Small pictures kept of one group: 256 of about 10 kB.
pub const THUMBNAILS_MAX: usize = 256;
/// Largest list of pictures: 10 000 of 200 bytes.
const PICTURES_BYTES_MAX: u64 = 4 << 20;

/// What the manifest says of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupManifest {
    /// Empty where a bank has one group only and nobody named it.
    pub name: String,
    pub coreset_count: usize,
    pub train_count: usize,
    /// Image score on the edge of good, on the raw scale.
    pub image_threshold_raw: f32,
    /// Map value on the edge of good, on the raw scale.
    pub pixel_threshold_raw: f32,
    /// How these two were found; `None` in banks before format 3, where it is the bank's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<ThresholdRule>,
    /// Width and height of the picture that others are registered to, as it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_px: Option<[u32; 2]>,
}

/// A picture that was learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// Its file's name.
    pub name: String,
    /// A small copy within the bank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<String>,
    /// Raw score by a bank that had not seen it.
    pub image_score: f32,
    /// Largest value of its map by that bank.
    pub map_max: f32,
}

/// A group in RAM.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) manifest: GroupManifest,
    pub(super) memory: Memory,
    /// Of each vector, its place in `pictures`; empty in banks of the first format.
    pub(super) origins: Vec<u32>,
    pub(super) pictures: Vec<Picture>,
    pub(super) reference: Option<Grey>,
}

/// `bank.faiss` for the first group, `bank-1.faiss` for the second.
pub(super) fn file_name(stem: &str, extension: &str, group: usize) -> String {
    if group == 0 { format!("{stem}.{extension}") } else { format!("{stem}-{group}.{extension}") }
}

impl Group {
    /// Raw scores of its good pictures, none by its own patches.
    pub(super) fn good_scores(&self) -> (Vec<f32>, Vec<f32>) {
        self.pictures.iter().map(|picture| (picture.image_score, picture.map_max)).unzip()
    }

    /// Registers pictures to the group's reference, where the view asks for it.
    pub(super) fn aligner(&self, view: &View) -> Option<Aligner> {
        let ([width, height], registration) = (self.manifest.reference_px?, view.registration?);
        Some(Aligner::new(self.reference.clone()?, (width, height), registration.motion))
    }

    /// The picture that the most of `ids` (vectors) came from.
    pub(super) fn nearest_picture(&self, ids: &[i64]) -> Option<&Picture> {
        let mut votes: BTreeMap<u32, u32> = BTreeMap::new();
        for origin in ids.iter().filter_map(|id| self.origins.get(usize::try_from(*id).ok()?)) {
            *votes.entry(*origin).or_default() += 1;
        }
        let (origin, _) = votes.into_iter().max_by_key(|(origin, count)| (*count, std::cmp::Reverse(*origin)))?;
        self.pictures.get(origin as usize)
    }

    /// Write its files but the thumbnails to `dir`; their names.
    pub(super) fn write(&self, dir: &Path, number: usize) -> Result<Vec<String>, AnomalyError> {
        let mut files = vec![file_name("bank", "faiss", number)];
        self.memory.index().write(&dir.join(&files[0]))?;
        if !self.pictures.is_empty() {
            let origins: Vec<u8> = self.origins.iter().flat_map(|origin| origin.to_le_bytes()).collect();
            let path = dir.join(file_name("pictures", "json", number));
            let pictures = serde_json::to_vec(&self.pictures)
                .map_err(|error| AnomalyError::Manifest { path, message: error.to_string() })?;
            files.push(written(dir, file_name("origins", "u32", number), &origins)?);
            files.push(written(dir, file_name("pictures", "json", number), &pictures)?);
        }
        if let Some(reference) = &self.reference {
            files.push(written(dir, file_name("reference", "pgm", number), &reference.to_pgm())?);
        }
        Ok(files)
    }

    /// Read its files, whose digests were checked against `files`.
    pub(super) fn read(
        dir: &Path,
        number: usize,
        manifest: GroupManifest,
        dim: usize,
        files: &BTreeMap<String, Digest>,
    ) -> Result<Self, AnomalyError> {
        let shape = |what, expected: String, found: String| {
            Err(AnomalyError::Shape { bank: dir.to_owned(), what, expected, found })
        };
        let vectors = file_name("bank", "faiss", number);
        let index = Index::read(&dir.join(&vectors))?;
        let Some(memory) = Memory::from_index(index) else {
            return shape("kind of bank.faiss", "a flat L2 index with vectors".to_owned(), "another".to_owned());
        };
        let expected = (manifest.coreset_count, dim);
        if (memory.len(), memory.dim()) != expected {
            let found = format!("{} of {}", memory.len(), memory.dim());
            return shape("vectors of bank.faiss", format!("{} of {}", expected.0, expected.1), found);
        }
        let mut group = Self { manifest, memory, origins: Vec::new(), pictures: Vec::new(), reference: None };
        let listed = file_name("pictures", "json", number);
        if files.contains_key(&listed) {
            let path = dir.join(&listed);
            group.pictures = serde_json::from_slice(&read_bounded(&path)?)
                .map_err(|error| AnomalyError::Manifest { path, message: error.to_string() })?;
            let bytes = read_bounded(&dir.join(file_name("origins", "u32", number)))?;
            group.origins = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            let is_known = |origin: &u32| (*origin as usize) < group.pictures.len();
            if group.origins.len() != group.memory.len() || !group.origins.iter().all(is_known) {
                let found = format!("{} of {} pictures", group.origins.len(), group.pictures.len());
                return shape("origins of the vectors", group.memory.len().to_string(), found);
            }
        }
        if group.manifest.reference_px.is_some() {
            let path = dir.join(file_name("reference", "pgm", number));
            group.reference = Grey::from_pgm(&read_bounded(&path)?);
            if group.reference.is_none() {
                return shape(
                    "reference picture",
                    "a PGM as `loupe bank build` writes it".to_owned(),
                    "another".to_owned(),
                );
            }
        }
        Ok(group)
    }
}

pub(super) fn written(dir: &Path, name: String, bytes: &[u8]) -> Result<String, AnomalyError> {
    let path = dir.join(&name);
    std::fs::write(&path, bytes).map_err(|source| AnomalyError::Io { action: "write", path, source })?;
    Ok(name)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, AnomalyError> {
    let io = |source| AnomalyError::Io { action: "read", path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(io)?.len() > PICTURES_BYTES_MAX {
        let message = "it is larger than any that a bank holds".to_owned();
        return Err(AnomalyError::Manifest { path: path.to_owned(), message });
    }
    std::fs::read(path).map_err(io)
}

/// A small copy of a learnt picture on its way into a bank.
#[derive(Debug, Clone, PartialEq)]
pub enum Thumbnail {
    /// A JPEG's bytes.
    Bytes(Vec<u8>),
    /// A file of another bank.
    File(PathBuf),
}
