//! Templates learned since the generation was built: searched with L1 in stage 1, without a restart.
//!
//! A [`Delta`] is an immutable snapshot; a [`DeltaCell`] hands the newest one to the workers and is swapped as a whole
//! after the ledger committed. Invariants: vectors are of length 1 and of one way of embedding; a template that the
//! generation already holds (its view says which review it came from) is not searched twice; the digest names exactly
//! the templates that were searched.
//! Thread: any. Overload: at most [`DELTA_TEMPLATES_MAX`] templates; the ledger refuses more.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tracing::warn;
use uuid::Uuid;

use super::ids::TemplateIds;
use super::kernel;
use super::likeness::cosine;
use super::manifest::Embedding;
use super::rank::{Candidate, TopParts};
use super::search::normalise;
use crate::limits::DELTA_TEMPLATES_MAX;
use crate::types::{Digest, LearnedTemplate, Tier};

/// View name of a template that came from a review: this and the review's id.
pub const LEARNED_VIEW_PREFIX: &str = "review-";

/// The view name that a learned template gets when a generation takes it in.
#[must_use]
pub fn learned_view(review_id: Uuid) -> String {
    format!("{LEARNED_VIEW_PREFIX}{review_id}")
}

/// The name by which learned templates know the index in `dir`: its real path.
#[must_use]
pub fn index_name(dir: &Path) -> String {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).display().to_string()
}

/// What one learned template shows.
#[derive(Debug, Clone, PartialEq)]
struct Learned {
    id: u64,
    part_id: String,
    color_id: Option<String>,
    view: String,
}

/// An immutable state of the learned templates of one index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    templates: Vec<Learned>,
    /// `[n, dim]`, of length 1.
    vectors: Vec<f32>,
    sha256: Option<Digest>,
    /// How its vectors were made; `None` for the empty one.
    embedding: Option<(Digest, u32, f32)>,
}

impl Delta {
    /// The templates among `learned` that were embedded as `embedding` says, in the order of their ids. Others (another
    /// model, another crop) cannot be compared and are left out with a warning.
    #[must_use]
    pub fn new(learned: &[LearnedTemplate], embedding: &Embedding, dim: usize) -> Self {
        let mut delta = Self { embedding: Some(way(embedding)), ..Self::default() };
        let mut text = String::new();
        let mut sorted: Vec<&LearnedTemplate> = learned.iter().collect();
        sorted.sort_by_key(|template| template.id);
        for template in sorted {
            if delta.templates.len() == DELTA_TEMPLATES_MAX {
                warn!(left_out = learned.len() - DELTA_TEMPLATES_MAX, "more learned templates than can be searched");
                break;
            }
            let mut vector = template.vector.clone();
            let is_comparable = (template.model_sha256, template.input_px, template.crop_margin_ratio)
                == way(embedding)
                && vector.len() == dim
                && normalise(&mut vector).is_ok();
            if !is_comparable {
                warn!(
                    template = template.id, part = template.part_id, model = %template.model_sha256.short(),
                    "a learned template was embedded in another way than the index and is not searched; teach it again"
                );
                continue;
            }
            let bits: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            text.push_str(&format!("{} {} {} ", template.id, template.part_id, Digest::of(&bits)));
            text.push_str(template.color_id.as_deref().unwrap_or("-"));
            text.push('\n');
            delta.vectors.extend(vector);
            delta.templates.push(Learned {
                id: template.id,
                part_id: template.part_id.clone(),
                color_id: template.color_id.clone(),
                view: learned_view(template.review_id),
            });
        }
        delta.sha256 = (!delta.templates.is_empty()).then(|| Digest::of(text.as_bytes()));
        delta
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// Names the templates in it; `None` when there are none.
    #[must_use]
    pub fn sha256(&self) -> Option<Digest> {
        self.sha256
    }

    /// Whether queries embedded so can be compared with it.
    #[must_use]
    pub fn fits(&self, embedding: &Embedding) -> bool {
        self.embedding == Some(way(embedding))
    }
}

fn way(embedding: &Embedding) -> (Digest, u32, f32) {
    (embedding.model_sha256, embedding.input_px, embedding.crop_margin_ratio)
}

/// What a search uses beyond the generation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Learning<'a> {
    pub delta: Option<&'a Delta>,
    /// Least margin between two parts of one confusion group at which the hot tier answers alone, 0 to 2.
    pub group_margin: f32,
}

/// A delta as one generation sees it.
#[derive(Debug, Default)]
pub(super) struct DeltaView<'a> {
    delta: Option<&'a Delta>,
    /// Part number of each template, continuing the generation's for parts it lacks; `None`: the generation has it.
    parts: Vec<Option<u32>>,
    ids_len: usize,
}

impl<'a> DeltaView<'a> {
    pub fn new(delta: Option<&'a Delta>, embedding: &Embedding, ids: &TemplateIds) -> Self {
        let Some(delta) = delta.filter(|delta| !delta.is_empty() && delta.fits(embedding)) else {
            return Self::default();
        };
        let mut beyond: BTreeMap<&str, u32> = BTreeMap::new();
        let first = u32::try_from(ids.part_count()).unwrap_or(u32::MAX);
        let mut number = |part: &'a str| {
            ids.number_of(part).unwrap_or_else(|| {
                let next = first.saturating_add(u32::try_from(beyond.len()).unwrap_or(u32::MAX));
                *beyond.entry(part).or_insert(next)
            })
        };
        let parts = delta
            .templates
            .iter()
            .map(|template| (!ids.has_learned(&template.view)).then(|| number(&template.part_id)))
            .collect();
        Self { delta: Some(delta), parts, ids_len: ids.len() }
    }

    /// Compare every query with every learned template.
    pub fn search(&self, queries: &[f32], dim: usize, tops: &mut [TopParts]) {
        let Some(delta) = self.delta else { return };
        let similarities = kernel::similarities(queries, &delta.vectors, dim);
        for (row, top) in similarities.chunks_exact(delta.len()).zip(tops) {
            top.offer(row, |at, similarity| {
                let template = u32::try_from(self.ids_len + at).unwrap_or(u32::MAX);
                self.parts[at].map(|part| Candidate { template, part, similarity, tier: Tier::Delta })
            });
        }
    }

    /// The learned templates of `part`, each with its cosine with `query`, of length 1.
    pub fn candidates(&self, query: &[f32], part: u32) -> impl Iterator<Item = Candidate> {
        self.learned(part, query.len()).map(move |(at, vector)| Candidate {
            template: u32::try_from(self.ids_len + at).unwrap_or(u32::MAX),
            part,
            similarity: cosine(query, vector),
            tier: Tier::Delta,
        })
    }

    /// The vectors of the learned templates of `part`, `[dim]` each, of length 1.
    pub fn vectors(&self, part: u32, dim: usize) -> impl Iterator<Item = &'a [f32]> {
        self.learned(part, dim).map(|(_, vector)| vector)
    }

    /// Position and vector of each learned template of `part`.
    fn learned(&self, part: u32, dim: usize) -> impl Iterator<Item = (usize, &'a [f32])> {
        let vectors = self.delta.map_or(&[][..], |delta| &delta.vectors).chunks_exact(dim.max(1));
        let of_part = vectors.zip(&self.parts).enumerate().filter(move |(_, (_, of))| **of == Some(part));
        of_part.map(|(at, (vector, _))| (at, vector))
    }

    /// Number, part and colour of a candidate of [`Tier::Delta`].
    pub fn get(&self, candidate: u32) -> Option<(u64, &'a str, Option<&'a str>)> {
        let learned = self.delta?.templates.get((candidate as usize).checked_sub(self.ids_len)?)?;
        Some((self.ids_len as u64 + learned.id, &learned.part_id, learned.color_id.as_deref()))
    }

    pub fn sha256(&self) -> Option<Digest> {
        self.delta.and_then(Delta::sha256)
    }
}

/// The newest delta of one index; cheap to clone, swapped as a whole.
#[derive(Debug, Clone, Default)]
pub struct DeltaCell(Arc<RwLock<Arc<Delta>>>);

impl DeltaCell {
    #[must_use]
    pub fn get(&self) -> Arc<Delta> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn swap(&self, delta: Delta) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(delta);
    }
}

/// The deltas of all opened indexes; cheap to clone. The daemon fills it from the ledger at its start and after each
/// review.
#[derive(Debug, Clone, Default)]
pub struct Deltas(Arc<Mutex<DeltasInner>>);

#[derive(Debug, Default)]
struct DeltasInner {
    learned: Vec<LearnedTemplate>,
    /// By index and way of embedding.
    cells: Vec<(String, Embedding, usize, DeltaCell)>,
}

impl Deltas {
    /// The cell of the index in `dir`, whose queries are embedded as `embedding` says.
    #[must_use]
    pub fn cell(&self, dir: &Path, embedding: &Embedding, dim: usize) -> DeltaCell {
        let mut inner = self.lock();
        let name = index_name(dir);
        if let Some((.., cell)) = inner.cells.iter().find(|(index, way, ..)| *index == name && way == embedding) {
            return cell.clone();
        }
        let cell = DeltaCell::default();
        cell.swap(Delta::new(&of_index(&inner.learned, &name), embedding, dim));
        inner.cells.push((name, embedding.clone(), dim, cell.clone()));
        cell
    }

    /// From now on these templates are searched, and no others.
    pub fn replace(&self, learned: Vec<LearnedTemplate>) {
        let mut inner = self.lock();
        inner.learned = learned;
        for (index, embedding, dim, cell) in &inner.cells {
            cell.swap(Delta::new(&of_index(&inner.learned, index), embedding, *dim));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, DeltasInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_index(learned: &[LearnedTemplate], index: &str) -> Vec<LearnedTemplate> {
    learned.iter().filter(|template| template.index == index).cloned().collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{Delta, Deltas, index_name};
    use crate::matching::Embedding;
    use crate::types::{BoundingBox, Digest, InspectionId, LearnedTemplate};

    fn embedding() -> Embedding {
        let model_sha256 = Digest::of(b"model");
        Embedding { model: "test".to_owned(), model_sha256, input_px: 160, crop_margin_ratio: 0.0, input_sha256: None }
    }

    fn learned(id: u64, part: &str, vector: &[f32]) -> LearnedTemplate {
        LearnedTemplate {
            id,
            review_id: Uuid::from_u128(u128::from(id)),
            index: index_name(std::path::Path::new("/i")),
            part_id: part.to_owned(),
            color_id: None,
            model_sha256: Digest::of(b"model"),
            input_px: 160,
            crop_margin_ratio: 0.0,
            vector: vector.to_vec(),
            inspection_id: InspectionId(Uuid::nil()),
            ordinal: 0,
            frame_sha256: Digest::of(b"frame"),
            artifact: "a.jpg".to_owned(),
            crop: BoundingBox::new(0.0, 0.0, 1.0, 1.0),
        }
    }

    #[test]
    fn another_model_another_size_and_no_direction_are_left_out() {
        let good = learned(1, "a", &[3.0, 4.0]);
        let other_model = LearnedTemplate { model_sha256: Digest::of(b"other"), ..good.clone() };
        let other_size = LearnedTemplate { input_px: 224, ..good.clone() };
        let flat = learned(3, "b", &[0.0, 0.0]);
        let short = learned(4, "b", &[1.0]);
        let delta = Delta::new(&[good.clone(), other_model, other_size, flat, short], &embedding(), 2);
        assert_eq!((delta.len(), delta.vectors.as_slice()), (1, &[0.6, 0.8][..]));
        assert_eq!(delta, Delta::new(&[good], &embedding(), 2));
    }

    #[test]
    fn the_digest_names_the_templates_and_not_their_order() {
        let (a, b) = (learned(1, "a", &[1.0, 0.0]), learned(2, "b", &[0.0, 1.0]));
        let both = Delta::new(&[a.clone(), b.clone()], &embedding(), 2);
        assert_eq!(both.sha256(), Delta::new(&[b.clone(), a.clone()], &embedding(), 2).sha256());
        assert_ne!(both.sha256(), Delta::new(std::slice::from_ref(&a), &embedding(), 2).sha256());
        let other_part = LearnedTemplate { part_id: "c".to_owned(), ..b };
        assert_ne!(both.sha256(), Delta::new(&[a, other_part], &embedding(), 2).sha256());
        assert_eq!(Delta::new(&[], &embedding(), 2).sha256(), None);
    }

    #[test]
    fn replacing_reaches_cells_handed_out_before_and_only_those_of_the_index() {
        let deltas = Deltas::default();
        let (mine, other) = (std::path::Path::new("/i"), std::path::Path::new("/j"));
        let (cell, elsewhere) = (deltas.cell(mine, &embedding(), 2), deltas.cell(other, &embedding(), 2));
        let held = cell.get();
        deltas.replace(vec![learned(1, "a", &[1.0, 0.0])]);
        assert_eq!((held.len(), cell.get().len(), elsewhere.get().len()), (0, 1, 0));
        assert_eq!(deltas.cell(mine, &embedding(), 2).get().len(), 1);
        deltas.replace(Vec::new());
        assert!(cell.get().is_empty());
    }
}
