//! `manifest.json`: what a generation is made of and how its embeddings were made.
//!
//! Invariant: the same templates, model and parameters give the same bytes, so a manifest holds no time and no path.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::Digest;

/// Layout of a generation directory; raised when an older reader would misread it. 3: with `mirrors.csv`, which a reader
/// of 2 would not weigh; one without it is written as 2.
pub const FORMAT: u32 = 3;
/// The oldest layout that is read.
pub const FORMAT_OLDEST: u32 = 2;

/// The layouts that are read.
const READ: std::ops::RangeInclusive<u64> = FORMAT_OLDEST as u64..=FORMAT as u64;

/// How crops become embeddings; a query must be embedded the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Name of the model folder, for people.
    pub model: String,
    /// Digest of the model file.
    pub model_sha256: Digest,
    /// Side of the square that a crop is letterboxed to.
    pub input_px: u32,
    /// A part's box is grown by this share of its width and height on each side before it is cropped.
    pub crop_margin_ratio: f32,
    /// Digest of how a crop's pixels become the model's input; `None` in generations of versions that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<Digest>,
}

/// The hot tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotTier {
    /// `flat`: searched exhaustively in RAM.
    pub kind: String,
    pub count: usize,
    /// Bytes of its vectors.
    pub bytes: usize,
}

/// The cold tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColdTier {
    /// `ivf_flat` or `flat`; exact vectors either way, memory-mapped.
    pub kind: String,
    pub count: usize,
    /// Inverted lists; 1 for `flat`.
    pub lists: usize,
    /// Lists visited for each query, chosen at build time.
    pub nprobe: usize,
    /// Vectors that a query is compared with on average at that `nprobe`.
    pub visited: f32,
    /// Share of disturbed template vectors whose exact nearest template was found at that `nprobe`.
    pub measured_recall: f32,
}

/// One file of the generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub bytes: u64,
    pub sha256: Digest,
}

/// The whole of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub dim: usize,
    /// `cosine`: inner product of L2-normalised vectors.
    pub metric: String,
    pub embedding: Embedding,
    pub part_count: usize,
    pub template_count: usize,
    pub l1: HotTier,
    pub l2: ColdTier,
    /// File name → size and digest of every other file in the directory.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// The bytes that are stored and whose digest names the generation.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // A struct of strings, numbers and maps with string keys always serialises.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The document's format where it is none that is read; `None` also for what is no manifest at all.
    #[must_use]
    pub fn other_format(bytes: &[u8]) -> Option<u64> {
        let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        document.get("format")?.as_u64().filter(|format| !READ.contains(format))
    }

    /// # Errors
    /// A sentence saying what is wrong with the document.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| format!("manifest.json: {error}"))?;
        if !READ.contains(&u64::from(manifest.format)) {
            return Err(format!(
                "manifest.json has format {}, this version reads {FORMAT_OLDEST} to {FORMAT}",
                manifest.format
            ));
        }
        if manifest.dim == 0 || manifest.template_count == 0 || manifest.metric != "cosine" {
            return Err("manifest.json: dim and template_count must be above 0, metric must be `cosine`".to_owned());
        }
        Ok(manifest)
    }
}
