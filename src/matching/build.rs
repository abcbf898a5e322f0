//! Building a generation: choose the hot tier, train and fill the cold one, measure how many of its lists must be
//! visited, write everything, switch over.
//!
//! Invariants: the live generation is untouched until the new one is complete, synced and checked; the same templates,
//! options and thread count give the same generation.
//! Thread: the caller's. Overload: memory is about twice the vectors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::MatchError;
use super::evidence::TierEvidence;
use super::faiss::{Index, Metric};
use super::generation::{
    self, CONTENT_FILES, EVIDENCE_FILE, GROUPS_FILE, Generation, IDS_FILE, L1_FILE, L2_FILE, MANIFEST_FILE,
};
use super::groups::Groups;
use super::hot;
use super::ids::{Template, TemplateIds};
use super::manifest::{ColdTier, Embedding, FORMAT, HotTier, Manifest};
use super::search::normalise;
use super::store;
use super::tune;
use crate::clock::Stopwatch;
use crate::limits::TEMPLATES_MAX;
use crate::types::Digest;

/// Share of the templates that L1 holds when the budget allows: a third keeps about six of a part's 18 views hot.
pub const L1_RATIO_DEFAULT: f32 = 0.34;
/// Bytes of vectors in L1: 64 MiB are 13 107 templates of 1 280 values.
pub const L1_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// Recall that the number of visited lists is chosen for.
pub const RECALL_TARGET_DEFAULT: f32 = 0.99;
/// Vectors per list that FAISS's k-means asks for.
const VECTORS_PER_LIST_MIN: usize = 39;

/// How to split and tune the tiers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BuildOptions {
    /// Share of the templates in L1, 0 to 1.
    pub l1_ratio: f32,
    /// Most bytes of vectors in L1.
    pub l1_bytes_max: usize,
    /// Least recall of L2 against an exhaustive search, 0 to 1.
    pub recall_target: f32,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { l1_ratio: L1_RATIO_DEFAULT, l1_bytes_max: L1_BYTES_MAX_DEFAULT, recall_target: RECALL_TARGET_DEFAULT }
    }
}

/// What a build made.
#[derive(Debug, Clone)]
pub struct Built {
    pub dir: PathBuf,
    pub sha256: Digest,
    pub manifest: Manifest,
    pub build_ms: f32,
}

/// Collects templates, then writes them as a generation.
#[derive(Debug)]
pub struct IndexBuilder {
    dim: usize,
    embedding: Embedding,
    options: BuildOptions,
    templates: Vec<Template>,
    vectors: Vec<f32>,
    groups: Groups,
    evidence: TierEvidence,
}

impl IndexBuilder {
    /// `dim`: values of one embedding; `embedding`: how the templates were embedded.
    #[must_use]
    pub fn new(dim: usize, embedding: Embedding, options: BuildOptions) -> Self {
        Self {
            dim,
            embedding,
            options,
            templates: Vec::new(),
            vectors: Vec::new(),
            groups: Groups::default(),
            evidence: TierEvidence::default(),
        }
    }

    /// Store these confusion groups with the generation.
    #[must_use]
    pub fn with_groups(mut self, groups: Groups) -> Self {
        self.groups = groups;
        self
    }

    /// Choose the hot tier by what the templates did, and store that with the generation.
    #[must_use]
    pub fn with_evidence(mut self, evidence: TierEvidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// Add one template and its embedding, `[dim]`; it is scaled to length 1.
    ///
    /// # Errors
    /// When the embedding has another length, is not finite or has no direction, or the index is full.
    pub fn push(&mut self, template: Template, embedding: &[f32]) -> Result<(), MatchError> {
        let position = self.templates.len();
        let bad = |fault: String| MatchError::BadTemplate { position, fault };
        if embedding.len() != self.dim || self.dim == 0 {
            return Err(bad(format!("its embedding has {} values, the index {}", embedding.len(), self.dim)));
        }
        if position == TEMPLATES_MAX {
            return Err(bad(format!("an index holds {TEMPLATES_MAX} templates")));
        }
        let mut vector = embedding.to_vec();
        normalise(&mut vector).map_err(|norm| bad(format!("its embedding has no direction (norm {norm})")))?;
        self.templates.push(template);
        self.vectors.extend_from_slice(&vector);
        Ok(())
    }

    /// Write the generation below `root` (made when missing) and make it the live one.
    ///
    /// # Errors
    /// When there are no templates, FAISS fails or a file cannot be written; the live generation is then unchanged.
    pub fn build(self, root: &Path) -> Result<Built, MatchError> {
        let watch = Stopwatch::start();
        std::fs::create_dir_all(root).map_err(MatchError::io("make", root))?;
        let staged = root.join(format!("{}{}", store::STAGED_PREFIX, std::process::id()));
        // Left by a killed build with the same process number.
        if staged.exists() {
            std::fs::remove_dir_all(&staged).map_err(MatchError::io("remove", &staged))?;
        }
        std::fs::create_dir(&staged).map_err(MatchError::io("make", &staged))?;
        let written = self.write(&staged).and_then(|manifest| {
            // A generation that would not open must never become the live one.
            Generation::open(&staged)?;
            let sha256 = Digest::of(&manifest.to_bytes());
            let dir = store::publish(root, &staged, &generation::name_of(&sha256))?;
            Ok(Built { dir, sha256, manifest, build_ms: watch.ms() })
        });
        if written.is_err() && staged.exists() {
            // The first error is the one to report; what stays behind is removed by a later build.
            drop(std::fs::remove_dir_all(&staged));
        }
        written
    }

    fn write(self, dir: &Path) -> Result<Manifest, MatchError> {
        let Self { dim, embedding, options, templates, vectors, groups, evidence } = self;
        let worth: Vec<f64> = templates.iter().map(|template| evidence.worth(template)).collect();
        let ids = TemplateIds::new(templates, Vec::new())?;
        let chosen = hot::choose_by_worth(ids.parts(), &vectors, dim, hot_count_max(ids.len(), dim, options), &worth);
        let ids = ids.with_hot(chosen)?;
        let hot_vectors: Vec<f32> =
            ids.hot().iter().flat_map(|&at| &vectors[at as usize * dim..(at as usize + 1) * dim]).copied().collect();
        write_index(&flat_of(dim, &hot_vectors)?, &dir.join(L1_FILE))?;
        store::write_synced(&dir.join(IDS_FILE), &ids.to_csv()?)?;
        let l2 = write_cold(dim, &vectors, options.recall_target, &dir.join(L2_FILE))?;

        let mut files = BTreeMap::new();
        for name in CONTENT_FILES {
            files.insert(name.to_owned(), generation::entry_of(&dir.join(name))?);
        }
        if !groups.is_empty() {
            let path = dir.join(GROUPS_FILE);
            store::write_synced(&path, &groups.to_csv()?)?;
            files.insert(GROUPS_FILE.to_owned(), generation::entry_of(&path)?);
        }
        if !evidence.is_empty() {
            let path = dir.join(EVIDENCE_FILE);
            store::write_synced(&path, &evidence.to_csv()?)?;
            files.insert(EVIDENCE_FILE.to_owned(), generation::entry_of(&path)?);
        }
        let l1 =
            HotTier { kind: "flat".to_owned(), count: ids.hot().len(), bytes: hot_vectors.len() * size_of::<f32>() };
        let (part_count, template_count) = (ids.part_count(), ids.len());
        let metric = "cosine".to_owned();
        let manifest = Manifest { format: FORMAT, dim, metric, embedding, part_count, template_count, l1, l2, files };
        store::write_synced(&dir.join(MANIFEST_FILE), &manifest.to_bytes())?;
        Ok(manifest)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to the count")]
fn hot_count_max(count: usize, dim: usize, options: BuildOptions) -> usize {
    let by_ratio = (count as f64 * f64::from(options.l1_ratio.clamp(0.0, 1.0))).ceil() as usize;
    by_ratio.min(options.l1_bytes_max / (dim * size_of::<f32>())).min(count)
}

/// Lists for `count` vectors: the square root of their number, as long as each list gets enough vectors to train on.
fn list_count(count: usize) -> usize {
    count.isqrt().min(count / VECTORS_PER_LIST_MIN).max(1)
}

/// Train, fill, tune and write L2.
fn write_cold(dim: usize, vectors: &[f32], recall_target: f32, path: &Path) -> Result<ColdTier, MatchError> {
    let count = vectors.len() / dim;
    let lists = list_count(count);
    if lists > 1 {
        let mut index = Index::factory(dim, &format!("IVF{lists},Flat"), Metric::InnerProduct)?;
        index.train(vectors)?;
        index.add(vectors)?;
        let tuned = tune::nprobe(&index, vectors, recall_target)?;
        // Visiting half the lists saves less than the lists cost; a flat file is as exact and simpler.
        if tuned.nprobe * 2 < lists {
            write_index(&index, path)?;
            let kind = "ivf_flat".to_owned();
            return Ok(ColdTier { kind, count, lists, nprobe: tuned.nprobe, measured_recall: tuned.recall });
        }
    }
    write_index(&flat_of(dim, vectors)?, path)?;
    Ok(ColdTier { kind: "flat".to_owned(), count, lists: 1, nprobe: 1, measured_recall: 1.0 })
}

fn flat_of(dim: usize, vectors: &[f32]) -> Result<Index, MatchError> {
    let mut index = Index::factory(dim, "Flat", Metric::InnerProduct)?;
    index.add(vectors)?;
    Ok(index)
}

fn write_index(index: &Index, path: &Path) -> Result<(), MatchError> {
    index.write(path)?;
    store::sync_file(path)
}
