//! Two-stage search: an embedding → the catalogue part it shows.
//!
//! Stage 1 compares with every template of L1 (RAM). It answers alone only when the best template is similar enough, the
//! best *other part* is far enough behind, and L1 shows every part, or when L1 holds every template; else stage 2 searches L2 (memory-mapped) and both
//! results are merged, one template a part, by exact cosine: L2 keeps the vectors themselves, so nothing is approximate
//! but which lists are visited.
//!
//! Thread: one opened index serves all workers, both stages in parallel, without a lock. Overload: none here; a batch costs `N × L1` in one
//! pass over memory plus the L2 lists of the queries that enter stage 2.

use std::borrow::Cow;
use std::path::Path;
use std::sync::OnceLock;

use super::MatchError;
use super::delta::{DeltaView, LEARNED_VIEW_PREFIX, Learning};
use super::embedded::{Embedded, Queries, Query};
use super::fit::Fit;
use super::generation::{self, Generation};
use super::ids::{TemplateIds, TemplateRef};
use super::kernel;
use super::likeness::{Alike, PartRows, centre, cosine, direction, likeness};
use super::manifest::Manifest;
use super::rank::{self, AcceptRule, Candidate, Names, Stages, TopParts};
use super::store::{self, Quarantined};
use crate::clock::Stopwatch;
use crate::types::{Digest, MatchEvidence, Tier};

/// An opened part index.
#[derive(Debug)]
pub struct PartIndex {
    pub(super) generation: Generation,
    quarantined: Option<Quarantined>,
    hot_covers_all_parts: bool,
    hot_is_all: bool,
    /// With the digest of its file.
    pub(super) fit: Option<(Fit, Digest)>,
    /// Views of the catalogue and taught ones, apart. Made when first asked for: only a fit weighs all of a part.
    part_rows: OnceLock<[PartRows; 2]>,
    /// What a mirrored picture of each part shows, both by number.
    mirror_of: Vec<Option<u32>>,
}

impl PartIndex {
    /// Open the live generation of the index directory `dir`, every byte of it checked. A damaged generation is moved
    /// to `quarantine/` and the previous one serves; [`PartIndex::quarantined`] then says so.
    ///
    /// # Errors
    /// When there is no index, or no generation that is whole.
    pub fn open(dir: &Path) -> Result<Self, MatchError> {
        let (generation, quarantined) = store::open_live(dir)?;
        Self::with_fit(dir, generation, quarantined)
    }

    /// As [`PartIndex::open`] for the generation `name` of `dir`, live or not, without falling back.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub(super) fn open_generation(dir: &Path, name: &str) -> Result<Self, MatchError> {
        Self::with_fit(dir, Generation::open(&dir.join(name))?, None)
    }

    fn with_fit(dir: &Path, generation: Generation, quarantined: Option<Quarantined>) -> Result<Self, MatchError> {
        let name = generation::name_of(&generation.sha256);
        let fit = Fit::load(&Fit::path(dir, &name), generation.sha256)?;
        Ok(Self { fit, ..Self::of(generation, quarantined) })
    }

    /// Search one opened generation, without a fit.
    #[must_use]
    pub fn of(generation: Generation, quarantined: Option<Quarantined>) -> Self {
        let hot_covers_all_parts = generation.ids.hot_covers_all_parts();
        let hot_is_all = generation.ids.hot().len() == generation.ids.len();
        let (ids, mirrors) = (&generation.ids, &generation.mirrors);
        let mirror = |part| ids.number_of(mirrors.of(ids.part_name(part)?)?);
        let mirror_of =
            if mirrors.is_empty() { Vec::new() } else { (0..).take(ids.part_count()).map(mirror).collect() };
        let (fit, part_rows) = (None, OnceLock::new());
        Self { generation, quarantined, hot_covers_all_parts, hot_is_all, fit, part_rows, mirror_of }
    }

    /// The best parts for each of `embeddings`; one answer each, in order. Times are those of the batch, divided by the
    /// queries that took part.
    ///
    /// # Errors
    /// When `embeddings` are not `[N, dim]` finite vectors that have a direction, or the index is broken.
    pub fn search<'a>(
        &self,
        embeddings: impl Into<Embedded<'a>>,
        rule: AcceptRule,
    ) -> Result<Vec<MatchEvidence>, MatchError> {
        self.search_queries(&embeddings.into().normalised(self.dim())?, rule, Learning::default())
    }

    /// As [`PartIndex::search`], with what was learned since the generation was built. A delta of another way of
    /// embedding is not searched.
    ///
    /// # Errors
    /// As [`PartIndex::search`]; and where mirrored pictures are wanted and did not come: what was learned of two looks says
    /// nothing of one.
    pub fn search_with<'a>(
        &self,
        embeddings: impl Into<Embedded<'a>>,
        rule: AcceptRule,
        learning: Learning<'_>,
    ) -> Result<Vec<MatchEvidence>, MatchError> {
        let queries = embeddings.into().normalised(self.dim())?;
        queries.require_mirrored(self.wants_mirrored())?;
        self.search_queries(&queries, rule, learning)
    }

    fn search_queries(
        &self,
        queries: &Queries,
        rule: AcceptRule,
        learning: Learning<'_>,
    ) -> Result<Vec<MatchEvidence>, MatchError> {
        let delta = self.delta_view(learning);
        let tops = self.tops(&queries.pictures, rule, learning.group_margin, &delta);
        self.answers(queries, tops, &delta, self.fit.is_some())
    }

    /// As [`PartIndex::search`], comparing with every template of L2: slow, and what the two stages are measured by. Gives
    /// what a fit weighs without a fit too, so that one can be learned.
    ///
    /// # Errors
    /// As [`PartIndex::search`].
    pub fn search_exact<'a>(&self, embeddings: impl Into<Embedded<'a>>) -> Result<Vec<MatchEvidence>, MatchError> {
        let queries = embeddings.into().normalised(self.dim())?;
        self.answers(&queries, self.tops_exact(&queries.pictures), &DeltaView::default(), true)
    }

    /// The evidence of each query's parts; how alike they are to all of a part where `has_alike`.
    fn answers(
        &self,
        queries: &Queries,
        tops: Vec<(TopParts, Stages)>,
        delta: &DeltaView<'_>,
        has_alike: bool,
    ) -> Result<Vec<MatchEvidence>, MatchError> {
        let names = self.names(delta);
        let answers = tops.iter().zip(queries.iter()).map(|((top, stages), query)| {
            let alike = |candidate: &Candidate| match has_alike {
                true => self.alike(query, candidate.part, delta),
                false => Alike::default(),
            };
            // An index has at least one template, so only a broken one finds nothing.
            rank::evidence(top.parts(), &names, *stages, alike).ok_or_else(|| self.found_nothing())
        });
        answers.collect()
    }

    /// The best parts of each of `queries`, of length 1, by both stages.
    pub(super) fn tops(
        &self,
        queries: &[f32],
        rule: AcceptRule,
        group_margin: f32,
        delta: &DeltaView<'_>,
    ) -> Vec<(TopParts, Stages)> {
        let watch = Stopwatch::start();
        let mut tops = self.search_hot(queries);
        delta.search(queries, self.dim(), &mut tops);
        let names = self.names(delta);
        let stage1_ms = watch.ms() / tops.len().max(1) as f32;

        let unsure: Vec<usize> =
            (0..tops.len()).filter(|&at| !self.hot_answers(&tops[at], rule, group_margin, &names)).collect();
        let watch = Stopwatch::start();
        self.search_cold(queries, &unsure, self.generation.manifest.l2.nprobe, &mut tops);
        let stage2_ms = watch.ms() / unsure.len().max(1) as f32;

        let mut entered = vec![false; tops.len()];
        unsure.iter().for_each(|&at| entered[at] = true);
        let stages = |entered_stage2| Stages {
            entered_stage2,
            stage1_ms,
            stage2_ms: if entered_stage2 { stage2_ms } else { 0.0 },
        };
        tops.into_iter().zip(entered.into_iter().map(stages)).collect()
    }

    /// The same by comparing with every template of L2.
    pub(super) fn tops_exact(&self, queries: &[f32]) -> Vec<(TopParts, Stages)> {
        let mut tops = vec![TopParts::default(); queries.len() / self.dim()];
        let all: Vec<usize> = (0..tops.len()).collect();
        self.search_cold(queries, &all, usize::MAX, &mut tops);
        let stages = Stages { entered_stage2: true, stage1_ms: 0.0, stage2_ms: 0.0 };
        tops.into_iter().map(|top| (top, stages)).collect()
    }

    pub(super) fn delta_view<'a>(&'a self, learning: Learning<'a>) -> DeltaView<'a> {
        DeltaView::new(learning.delta, &self.generation.manifest.embedding, &self.generation.ids)
    }

    pub(super) fn found_nothing(&self) -> MatchError {
        MatchError::damaged(&self.generation.dir, "a search found nothing")
    }

    /// How alike `query` is to all that is known of the part of this number: where it was mirrored and is known what a mirrored
    /// picture of the part shows, the mean of both pictures.
    pub(super) fn alike(&self, query: Query<'_>, part: u32, delta: &DeltaView<'_>) -> Alike {
        let plain = self.picture_alike(query.picture, part, delta);
        let mirror = self.mirror_of.get(part as usize).copied().flatten();
        let second = query.mirrored.zip(mirror).map(|(picture, mirror)| self.picture_alike(picture, mirror, delta));
        second.map_or(plain, |second| plain.mean(second))
    }

    /// How alike `query`, of length 1, is to the part of this number.
    fn picture_alike(&self, query: &[f32], part: u32, delta: &DeltaView<'_>) -> Alike {
        let [catalogue, taught] = self.part_rows().each_ref().map(|rows| rows.of(part));
        let views = |rows| self.views(rows).map(|(_, view)| view);
        let taught = || views(taught).chain(delta.vectors(part, self.dim()));
        let cosine = |view| cosine(query, view);
        let learned = self.generation.ids.part_name(part).and_then(|name| self.generation.centres.of(name));
        let own = learned.map(Cow::Borrowed).or_else(|| direction(views(catalogue)).map(Cow::Owned));
        Alike {
            likeness: likeness(views(catalogue).map(cosine), taught().map(cosine)),
            centre: centre(query, own.as_deref(), direction(taught()).as_deref()),
        }
    }

    /// The template of the part of this number that `query`, of length 1, is most alike.
    pub(super) fn nearest(&self, query: &[f32], part: u32, delta: &DeltaView<'_>) -> Option<Candidate> {
        let rows = self.part_rows().iter().flat_map(|rows| self.views(rows.of(part)));
        let of_generation = rows.map(|(template, view)| {
            let tier = if self.generation.ids.is_hot(template) { Tier::L1 } else { Tier::L2 };
            Candidate { template, part, similarity: cosine(query, view), tier }
        });
        of_generation.chain(delta.candidates(query, part)).reduce(|best, one| if one.beats(&best) { one } else { best })
    }

    /// The templates at `rows`, each with its vector.
    fn views<'a>(&'a self, rows: &'a [u32]) -> impl Iterator<Item = (u32, &'a [f32])> + 'a {
        rows.iter().filter_map(|&row| {
            let at = row as usize * self.dim();
            Some((row, self.generation.l2().get(at..at + self.dim())?))
        })
    }

    fn part_rows(&self) -> &[PartRows; 2] {
        self.part_rows.get_or_init(|| {
            let ids = &self.generation.ids;
            let is_taught = |row| ids.get(row).is_some_and(|(view, _)| view.view.starts_with(LEARNED_VIEW_PREFIX));
            let of = |taught: bool| {
                let parts = ids.parts().iter().zip(0_u32..);
                parts.map(move |(&part, row)| if is_taught(row) == taught { part } else { u32::MAX })
            };
            [PartRows::new(of(false), ids.part_count()), PartRows::new(of(true), ids.part_count())]
        })
    }

    /// Check that embeddings of this model, fed with pictures of this form (where both sides know it), belong to this index.
    ///
    /// # Errors
    /// When the dimension, the model or the form differs.
    pub fn require_model(
        &self,
        dim: usize,
        model_sha256: Digest,
        input_sha256: Option<Digest>,
    ) -> Result<(), MatchError> {
        let embedding = &self.generation.manifest.embedding;
        if dim != self.dim() {
            return Err(MatchError::Dimension { index_dim: self.dim(), model_dim: dim });
        }
        if model_sha256 != embedding.model_sha256 {
            let (name, index_model) = (embedding.model.clone(), embedding.model_sha256);
            return Err(MatchError::Model { name, index_model, model: model_sha256 });
        }
        if embedding.input_sha256.zip(input_sha256).is_some_and(|(built, used)| built != used) {
            return Err(MatchError::Preprocessing { name: embedding.model.clone() });
        }
        Ok(())
    }

    /// Values of one embedding.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.generation.manifest.dim
    }

    /// Name of the live generation's folder.
    #[must_use]
    pub fn generation_name(&self) -> String {
        generation::name_of(&self.generation.sha256)
    }

    /// Digest of the live generation's manifest, and so of everything in it.
    #[must_use]
    pub fn generation_sha256(&self) -> Digest {
        self.generation.sha256
    }

    #[must_use]
    pub fn part_count(&self) -> usize {
        self.generation.manifest.part_count
    }

    #[must_use]
    pub fn template_count(&self) -> usize {
        self.generation.manifest.template_count
    }

    /// How the templates were embedded, the tiers' sizes, the files.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.generation.manifest
    }

    /// What the template at `position` of the generation shows.
    #[must_use]
    pub fn template(&self, position: u32) -> Option<TemplateRef<'_>> {
        self.generation.ids.get(position).map(|(template, _)| template)
    }

    /// Parts that are known to be confused.
    #[must_use]
    pub fn groups(&self) -> &super::Groups {
        &self.generation.groups
    }

    /// Shapes of the parts that only these tell apart.
    #[must_use]
    pub fn shapes(&self) -> &super::Shapes {
        &self.generation.shapes
    }

    /// True sizes of the parts.
    #[must_use]
    pub fn sizes(&self) -> &super::Sizes {
        &self.generation.sizes
    }

    /// What mirrored pictures of the parts show.
    #[must_use]
    pub fn mirrors(&self) -> &super::Mirrors {
        &self.generation.mirrors
    }

    /// Whether pictures are to be embedded mirrored too ([`Embedded::mirrored`]): a fit weighs it.
    #[must_use]
    pub fn wants_mirrored(&self) -> bool {
        self.fit.is_some() && !self.generation.mirrors.is_empty()
    }

    /// Directions that the embedder learned of the parts.
    #[must_use]
    pub fn centres(&self) -> &super::Centres {
        &self.generation.centres
    }

    /// The damaged generation that this one replaced at opening; the caller logs it and raises the alert.
    #[must_use]
    pub fn quarantined(&self) -> Option<&Quarantined> {
        self.quarantined.as_ref()
    }

    /// Vectors of the cold tier in the order of the ids, `[template_count, dim]`, normalised and memory-mapped.
    #[must_use]
    pub fn vectors(&self) -> &[f32] {
        self.generation.l2()
    }

    /// What each template shows.
    #[must_use]
    pub fn ids(&self) -> &TemplateIds {
        &self.generation.ids
    }

    /// Bring the cold tier into memory and into the process's page table, so that the first searches are as fast as the
    /// later ones. Takes as long as reading what is not in memory yet; run it off the hot path, and only where memory
    /// holds the index.
    pub fn warm(&self) {
        self.generation.warm();
        if self.fit.is_some() {
            self.part_rows();
        }
    }

    /// The same index with a copy of the cold tier in memory, to measure what mapping it costs.
    #[must_use]
    pub fn in_memory(mut self) -> Self {
        self.generation.copy_to_memory();
        self
    }

    fn hot_answers(&self, top: &TopParts, rule: AcceptRule, group_margin: f32, names: &Names<'_>) -> bool {
        if self.hot_is_all {
            return true; // exhaustive already: stage 2 could add nothing
        }
        self.hot_covers_all_parts
            && rule.accepts(top.parts())
            && (rank::margin(top.parts()) >= group_margin || !names.share_group(top.parts()))
    }

    pub(super) fn names<'a>(&'a self, delta: &'a DeltaView<'a>) -> Names<'a> {
        Names { ids: &self.generation.ids, groups: &self.generation.groups, delta }
    }

    fn search_hot(&self, queries: &[f32]) -> Vec<TopParts> {
        let (dim, hot, parts) = (self.dim(), self.generation.ids.hot(), self.generation.ids.parts());
        let mut tops = vec![TopParts::default(); queries.len() / dim];
        if hot.is_empty() {
            return tops;
        }
        let similarities = kernel::similarities(queries, &self.generation.l1, dim);
        for (row, top) in similarities.chunks_exact(hot.len()).zip(&mut tops) {
            top.offer(row, |at, similarity| {
                let template = hot[at];
                Some(Candidate { template, part: parts[template as usize], similarity, tier: Tier::L1 })
            });
        }
        tops
    }
}

/// Scale `vector` to length 1.
///
/// # Errors
/// Its norm, when that is zero or not finite.
pub(super) fn normalise(vector: &mut [f32]) -> Result<(), f32> {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if !norm.is_finite() || norm < 1e-12 {
        return Err(norm);
    }
    vector.iter_mut().for_each(|value| *value /= norm);
    Ok(())
}
