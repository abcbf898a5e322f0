//! Building a generation: choose the hot tier, train and fill the cold one, measure how many of its lists must be
//! visited, write everything, switch over.
//!
//! Invariants: the live generation is untouched until the new one is complete, synced and checked; the same templates,
//! options and thread count give the same generation.
//! Thread: the caller's. Overload: memory is about twice the vectors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::MatchError;
use super::centres::Centres;
use super::clusters::{self, Clusters};
use super::evidence::TierEvidence;
use super::generation::{
    self, CENTRES_FILE, CONTENT_FILES, EVIDENCE_FILE, GROUPS_FILE, Generation, IDS_FILE, L1_FILE, L2_FILE, LISTS_FILE,
    MANIFEST_FILE, MIRRORS_FILE, SHAPE_VIEWS_FILE, SHAPES_FILE, SIZES_FILE,
};
use super::groups::Groups;
use super::hot;
use super::ids::{IdsBuilder, Template};
use super::lists::Lists;
use super::manifest::{ColdTier, Embedding, FORMAT, FORMAT_OLDEST, HotTier, Manifest};
use super::mirrors::Mirrors;
use super::search::normalise;
use super::shapes::ShapesBuilder;
use super::sizes::Sizes;
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
/// Catalogues from this size on keep a hot tier only where searching it costs less than searching the cold one: of
/// 50 000 × 256 a third in L1 took milliseconds to scan and to open, where the cold tier visited 242 vectors.
const LARGE_COUNT: usize = 20_000;
/// Bytes handed to the file system at once.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// How to split and tune the tiers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BuildOptions {
    /// Share of the templates in L1, 0 to 1.
    pub l1_ratio: f32,
    /// Most bytes of vectors in L1.
    pub l1_bytes_max: usize,
    /// Least recall of L2 against an exhaustive search, 0 to 1.
    pub recall_target: f32,
    /// Inverted lists of L2; 0 chooses by the number of templates.
    pub lists: usize,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            l1_ratio: L1_RATIO_DEFAULT,
            l1_bytes_max: L1_BYTES_MAX_DEFAULT,
            recall_target: RECALL_TARGET_DEFAULT,
            lists: 0,
        }
    }
}

/// What a build made.
#[derive(Debug, Clone)]
pub struct Built {
    pub dir: PathBuf,
    pub sha256: Digest,
    pub manifest: Manifest,
    /// Parts whose direction the embedder learned.
    pub centre_count: usize,
    /// Parts whose mirror image is known.
    pub mirror_count: usize,
    /// Of these, those whose mirror image is another part.
    pub mirror_other_count: usize,
    pub build_ms: f32,
}

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Learning which directions the lists gather, and sorting the vectors into them.
    Clustering,
    /// Searching exhaustively for disturbed templates, to choose how many lists are visited.
    Tuning,
    /// Choosing the hot tier and writing the files.
    Writing,
    /// Reading every byte back.
    Checking,
    /// Making the generation the live one.
    Switching,
}

/// Hears how far a build is: what it is doing, how much of it is done, of how much.
pub type Progress<'a> = &'a (dyn Fn(Phase, usize, usize) + Sync);

/// Collects templates, then writes them as a generation.
#[derive(Debug)]
pub struct IndexBuilder {
    dim: usize,
    embedding: Embedding,
    options: BuildOptions,
    ids: IdsBuilder,
    vectors: Vec<f32>,
    groups: Groups,
    sizes: Sizes,
    shapes: ShapesBuilder,
    centres: Centres,
    mirrors: Mirrors,
    evidence: TierEvidence,
    /// Normalised; empty: disturbed templates.
    probes: Vec<f32>,
}

impl IndexBuilder {
    /// `dim`: values of one embedding; `embedding`: how the templates were embedded.
    #[must_use]
    pub fn new(dim: usize, embedding: Embedding, options: BuildOptions) -> Self {
        Self {
            dim,
            embedding,
            options,
            ids: IdsBuilder::default(),
            vectors: Vec::new(),
            probes: Vec::new(),
            groups: Groups::default(),
            sizes: Sizes::default(),
            shapes: ShapesBuilder::default(),
            centres: Centres::default(),
            mirrors: Mirrors::default(),
            evidence: TierEvidence::default(),
        }
    }

    /// Store these true sizes with the generation.
    #[must_use]
    pub fn with_sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Store the shapes of these parts with the generation.
    #[must_use]
    pub fn with_shapes(mut self, shapes: ShapesBuilder) -> Self {
        self.shapes = shapes;
        self
    }

    /// Store with the generation what the embedder learned of its parts.
    #[must_use]
    pub fn with_centres(mut self, centres: Centres) -> Self {
        self.centres = centres;
        self
    }

    /// Store with the generation what mirrored pictures of its parts show: whoever searches it embeds pictures mirrored too.
    #[must_use]
    pub fn with_mirrors(mut self, mirrors: Mirrors) -> Self {
        self.mirrors = mirrors;
        self
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
        let position = self.ids.len();
        let bad = |fault: String| MatchError::BadTemplate { position, fault };
        if embedding.len() != self.dim || self.dim == 0 {
            return Err(bad(format!("its embedding has {} values, the index {}", embedding.len(), self.dim)));
        }
        if position == TEMPLATES_MAX {
            return Err(bad(format!("an index holds {TEMPLATES_MAX} templates")));
        }
        let mut vector = embedding.to_vec();
        normalise(&mut vector).map_err(|norm| bad(format!("its embedding has no direction (norm {norm})")))?;
        self.ids.push(template)?;
        self.vectors.extend_from_slice(&vector);
        Ok(())
    }

    /// Choose the number of visited lists with these queries, `[n, dim]`, instead of disturbed templates. They should be
    /// like those to come, and not be used to measure the index afterwards.
    ///
    /// # Errors
    /// When they are not `[n, dim]` finite vectors that have a direction.
    pub fn tune_with(&mut self, queries: &[f32]) -> Result<(), MatchError> {
        if !queries.len().is_multiple_of(self.dim) {
            return Err(MatchError::Shape { values: queries.len(), dim: self.dim });
        }
        let mut probes = queries.to_vec();
        for (position, probe) in probes.chunks_exact_mut(self.dim).enumerate() {
            normalise(probe).map_err(|norm| MatchError::NoDirection { position, norm })?;
        }
        self.probes = probes;
        Ok(())
    }

    /// Write the generation below `root` (made when missing) and make it the live one.
    ///
    /// # Errors
    /// When there are no templates, FAISS fails or a file cannot be written; the live generation is then unchanged.
    pub fn build(self, root: &Path) -> Result<Built, MatchError> {
        self.build_with(root, &|_, _, _| {})
    }

    /// As [`IndexBuilder::build`], telling `progress` how far it is.
    ///
    /// # Errors
    /// As [`IndexBuilder::build`]; [`MatchError::Busy`] when another process builds in `root`.
    pub fn build_with(self, root: &Path, progress: Progress<'_>) -> Result<Built, MatchError> {
        let watch = Stopwatch::start();
        store::make_durably(root)?;
        let _lock = store::lock(root)?;
        let staged = root.join(format!("{}{}", store::STAGED_PREFIX, std::process::id()));
        // Left by a killed build with the same process number.
        if staged.exists() {
            std::fs::remove_dir_all(&staged).map_err(MatchError::io("remove", &staged))?;
        }
        std::fs::create_dir(&staged).map_err(MatchError::io("make", &staged))?;
        let written = self.write(&staged, progress).and_then(|manifest| {
            // A generation that would not open must never become the live one.
            progress(Phase::Checking, 0, 1);
            let (generation, proof) = Generation::open_reading_all(&staged)?;
            let (centre_count, mirrors) = (generation.centres.len(), &generation.mirrors);
            let (mirror_count, mirror_other_count) = (mirrors.len(), mirrors.other_count());
            progress(Phase::Switching, 0, 1);
            let sha256 = Digest::of(&manifest.to_bytes());
            let dir = store::publish(root, &staged, &generation::name_of(&sha256), &proof)?;
            progress(Phase::Switching, 1, 1);
            let build_ms = watch.ms();
            Ok(Built { dir, sha256, manifest, centre_count, mirror_count, mirror_other_count, build_ms })
        });
        if written.is_err() && staged.exists() {
            // The first error is the one to report; what stays behind is removed by a later build.
            drop(std::fs::remove_dir_all(&staged));
        }
        written
    }

    fn write(self, dir: &Path, progress: Progress<'_>) -> Result<Manifest, MatchError> {
        let Self { dim, embedding, options, mut ids, vectors, probes, groups, sizes, shapes, .. } = self;
        let (centres, mirrors, evidence) = (self.centres, self.mirrors, self.evidence);
        if ids.len() == 0 {
            return Err(MatchError::NoTemplates);
        }
        let probes = if probes.is_empty() { tune::probes(&vectors, dim) } else { probes };
        let cold = Cold::of(&vectors, dim, &probes, options, progress)?;
        progress(Phase::Writing, 0, 3);
        let row = |row: u32| &vectors[row as usize * dim..(row as usize + 1) * dim];
        write_vectors(&dir.join(L2_FILE), cold.order.iter().map(|&at| row(at)))?;
        store::write_synced(&dir.join(LISTS_FILE), &Lists::to_bytes(dim, &cold.starts, &cold.centroids))?;
        progress(Phase::Writing, 1, 3);
        let parts = ids.parts();
        let hot_max = hot_count_max(ids.len(), ids.part_count(), dim, options, &cold.tier);
        let mut is_hot = vec![false; ids.len()];
        let worth: Vec<f64> = ids.templates().map(|template| evidence.worth(&template)).collect();
        let chosen = hot::choose_by_worth(&parts, &vectors, dim, hot_max, &worth);
        chosen.into_iter().for_each(|at| is_hot[at as usize] = true);
        let hot: Vec<u32> =
            (0..).zip(&cold.order).filter(|&(_, &at)| is_hot[at as usize]).map(|(row, _)| row).collect();
        write_vectors(&dir.join(L1_FILE), hot.iter().map(|&at| row(cold.order[at as usize])))?;
        ids.reorder(&cold.order);
        store::write_synced(&dir.join(IDS_FILE), &ids.to_bytes(&hot))?;
        progress(Phase::Writing, 2, 3);

        let mut files = BTreeMap::new();
        for name in CONTENT_FILES {
            files.insert(name.to_owned(), generation::entry_of(&dir.join(name))?);
        }
        if !sizes.is_empty() {
            let path = dir.join(SIZES_FILE);
            store::write_synced(&path, &sizes.to_csv()?)?;
            files.insert(SIZES_FILE.to_owned(), generation::entry_of(&path)?);
        }
        if !shapes.is_empty() {
            let (list, views) = shapes.to_files()?;
            for (name, bytes) in [(SHAPES_FILE, list), (SHAPE_VIEWS_FILE, views)] {
                let path = dir.join(name);
                store::write_synced(&path, &bytes)?;
                files.insert(name.to_owned(), generation::entry_of(&path)?);
            }
        }
        let centres = centres.of_parts(&ids.templates().map(|template| template.part_id).collect());
        if !centres.is_empty() {
            let path = dir.join(CENTRES_FILE);
            store::write_synced(&path, &centres.to_bytes()?)?;
            files.insert(CENTRES_FILE.to_owned(), generation::entry_of(&path)?);
        }
        if !mirrors.is_empty() {
            let path = dir.join(MIRRORS_FILE);
            store::write_synced(&path, &mirrors.to_csv()?)?;
            files.insert(MIRRORS_FILE.to_owned(), generation::entry_of(&path)?);
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
        let l1 = HotTier { kind: "flat".to_owned(), count: hot.len(), bytes: hot.len() * dim * size_of::<f32>() };
        let (part_count, template_count) = (ids.part_count(), ids.len());
        let metric = "cosine".to_owned();
        let l2 = cold.tier;
        let format = if mirrors.is_empty() { FORMAT_OLDEST } else { FORMAT };
        let manifest = Manifest { format, dim, metric, embedding, part_count, template_count, l1, l2, files };
        store::write_synced(&dir.join(MANIFEST_FILE), &manifest.to_bytes())?;
        progress(Phase::Writing, 3, 3);
        Ok(manifest)
    }
}

/// Most templates of L1. Above [`LARGE_COUNT`] templates it holds at most as many as the cold tier visits, and none where
/// these cannot show every part: it would answer nothing alone and cost more than it saves.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to the count")]
fn hot_count_max(count: usize, parts: usize, dim: usize, options: BuildOptions, cold: &ColdTier) -> usize {
    let by_ratio = (count as f64 * f64::from(options.l1_ratio.clamp(0.0, 1.0))).ceil() as usize;
    let affordable = by_ratio.min(options.l1_bytes_max / (dim * size_of::<f32>())).min(count);
    if count < LARGE_COUNT {
        return affordable;
    }
    let by_time = affordable.min(cold.visited as usize + cold.lists);
    if by_time < parts { 0 } else { by_time }
}

/// The cold tier before it is written.
struct Cold {
    tier: ColdTier,
    /// The template of each row.
    order: Vec<u32>,
    /// First row of each list, and the number of rows.
    starts: Vec<u32>,
    /// `[lists, dim]`
    centroids: Vec<f32>,
}

impl Cold {
    /// Gather `vectors` in lists and choose how many are visited; one list where more do not pay.
    fn of(
        vectors: &[f32],
        dim: usize,
        probes: &[f32],
        options: BuildOptions,
        progress: Progress<'_>,
    ) -> Result<Self, MatchError> {
        let count = vectors.len() / dim;
        let lists = if options.lists == 0 { clusters::list_count(count) } else { options.lists.min(count) };
        if lists > 1 {
            progress(Phase::Clustering, 0, count);
            let clusters = clusters::gather(vectors, dim, lists, |done, of| progress(Phase::Clustering, done, of))?;
            progress(Phase::Tuning, 0, count);
            let exact = tune::nearest(vectors, dim, probes, |done, of| progress(Phase::Tuning, done, of));
            let tuned = tune::nprobe(&clusters, dim, probes, &exact, options.recall_target);
            // Visiting half the lists saves less than the lists cost; one list is as exact and simpler.
            if tuned.nprobe * 2 < lists {
                let (order, starts) = clusters.in_order(lists);
                let Clusters { centroids, .. } = clusters;
                let (nprobe, visited, measured_recall) = (tuned.nprobe, tuned.visited, tuned.recall);
                let kind = "ivf_flat".to_owned();
                let tier = ColdTier { kind, count, lists, nprobe, visited, measured_recall };
                return Ok(Self { tier, order, starts, centroids });
            }
        }
        // The builder holds at most `limits::TEMPLATES_MAX` templates.
        let rows = u32::try_from(count).unwrap_or(u32::MAX);
        let kind = "flat".to_owned();
        let tier = ColdTier { kind, count, lists: 1, nprobe: 1, visited: count as f32, measured_recall: 1.0 };
        Ok(Self { tier, order: (0..rows).collect(), starts: vec![0, rows], centroids: vec![0.0; dim] })
    }
}

/// Write vectors one after the other, and sync.
fn write_vectors<'a>(path: &Path, vectors: impl Iterator<Item = &'a [f32]>) -> Result<(), MatchError> {
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, File::create(path)?);
        for value in vectors.flatten() {
            out.write_all(&value.to_le_bytes())?;
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(MatchError::io("write", path))
}
