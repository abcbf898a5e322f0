//! What a person says of a decision: checked, turned into a template where it teaches, committed, and searched from then
//! on.
//!
//! Invariants: nothing is searched before the ledger committed it; the crop is cut from the very bytes that were
//! inspected (the kept frame's digest is checked) and embedded as the index's templates were.
//! Thread: the caller's (a file thread of the dashboard, or the command line); one review at a time. Overload: callers
//! wait for one another; a review takes as long as opening the embedding model.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use uuid::Uuid;

use crate::capture::{self, CaptureError};
use crate::config::Recipe;
use crate::inference::{Crop, FeatureModel, InferenceError, ModelManifest, Runtime};
use crate::ledger::{Ledger, LedgerError, LedgerReader, NewReview, artifacts_dir};
use crate::limits::{REVIEW_REASON_CHARS_MAX, REVIEW_WORD_CHARS_MAX};
use crate::matching::{Deltas, MatchError, Outline, index_name};
use crate::types::{
    ArtifactKind, Digest, Inspection, InspectionId, Item, LearnedTemplate, Review, ReviewAction, ReviewOrder,
    ReviewStatus,
};

/// Why a review was not stored. The messages of [`ReviewError::is_order`] name no path.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("no inspection or item is called `{0}`; give a code such as INS-20261121-0001, with /0 for its first item")]
    UnknownSubject(String),
    #[error("{code} has {items} items; say which one, {code}/0 to {code}/{last}", last = items.saturating_sub(1))]
    WhichItem { code: String, items: usize },
    #[error("{code} has no item {ordinal}")]
    NoItem { code: String, ordinal: u32 },
    #[error("`{field}` is {fault}")]
    Field { field: &'static str, fault: String },
    #[error("there is no review {0}")]
    UnknownReview(Uuid),
    #[error("review {0} took another one back; it can't be undone itself, review the item again")]
    IsUndo(Uuid),
    #[error("review {0} is not the last of its item; undo the later one")]
    NotLast(Uuid),
    #[error(
        "the frame of {code} was not kept (frames of PASS never are, nor any with artifacts = \"none\"), so nothing can \
         be learned from it; store the correction alone by not teaching (--no-teach)"
    )]
    FrameNotKept { code: String },
    #[error("the kept frame of {code} has changed on disk and is not learned from; see `loupe outbox verify`")]
    FrameChanged { code: String },
    #[error("no running recipe is called `{recipe}`, which {code} was decided by; name its file with --recipe")]
    NoRecipe { recipe: String, code: String },
    #[error("recipe {recipe} has no [match] stage, so nothing can be learned for it")]
    NoMatchStage { recipe: String },
    #[error("the index does not know part `{part_id}`; correct the number, or say that it is new (--new-part)")]
    UnknownPart { part_id: String },
    #[error("the embedding model of the recipe is not the one that the index was built with; build the index again")]
    OtherModel,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("part index: {0}")]
    Match(#[from] MatchError),
    #[error("embedding model: {0}")]
    Inference(#[from] Box<InferenceError>),
    #[error("kept frame: {0}")]
    Capture(#[from] CaptureError),
}

impl ReviewError {
    /// Whether the order is at fault, not the machine.
    #[must_use]
    pub fn is_order(&self) -> bool {
        match self {
            Self::Ledger(error) => error.is_about_the_row(),
            Self::Match(_) | Self::Inference(_) | Self::Capture(_) | Self::FrameChanged { .. } | Self::OtherModel => {
                false
            }
            _ => true,
        }
    }
}

/// The recipes whose inspections can be learned from, by name; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Recipes(Arc<RwLock<Vec<Arc<Recipe>>>>);

impl Recipes {
    #[must_use]
    pub fn new(recipes: Vec<Arc<Recipe>>) -> Self {
        Self(Arc::new(RwLock::new(recipes)))
    }

    /// One more that runs from now on; it takes the place of one of its name.
    pub fn add(&self, recipe: Arc<Recipe>) {
        let mut recipes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        recipes.retain(|known| known.name != recipe.name);
        recipes.push(recipe);
    }

    fn called(&self, name: &str) -> Option<Arc<Recipe>> {
        let recipes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        recipes.iter().find(|recipe| recipe.name == name).cloned()
    }
}

/// Takes reviews for one ledger.
#[derive(Debug)]
pub struct Reviewer {
    runtime: Option<Arc<Runtime>>,
    ledger: Ledger,
    deltas: Deltas,
    recipes: Recipes,
    /// So that an older list of templates never replaces a newer one.
    one_at_a_time: Mutex<()>,
}

impl Reviewer {
    /// `recipes`: those whose inspections can be learned from; `deltas`: where the searches look; without a `runtime`
    /// nothing can be learned.
    #[must_use]
    pub fn new(runtime: Option<Arc<Runtime>>, ledger: Ledger, deltas: Deltas, recipes: Recipes) -> Self {
        Self { runtime, ledger, deltas, recipes, one_at_a_time: Mutex::new(()) }
    }

    /// Check, learn, commit; the next search uses what was learned.
    ///
    /// # Errors
    /// When the order or the machine is at fault; nothing is stored then.
    pub fn review(&self, order: ReviewOrder) -> Result<Review, ReviewError> {
        check_text("reviewer", &order.reviewer, REVIEW_WORD_CHARS_MAX)?;
        let reason = checked_reason(order.reason)?;
        if let ReviewAction::Part { part_id, color_id } = &order.action {
            check_text("part_id", part_id, REVIEW_WORD_CHARS_MAX)?;
            color_id.as_deref().map_or(Ok(()), |color| check_text("color_id", color, REVIEW_WORD_CHARS_MAX))?;
        }
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let (inspection, item) = self.subject(&order.subject, order.action != ReviewAction::Confirm)?;
        let mut template = None;
        let (status, corrected_part_id, corrected_color_id) = match order.action {
            ReviewAction::Confirm => (ReviewStatus::Confirmed, None, None),
            ReviewAction::Unknown => (ReviewStatus::Rejected, None, None),
            ReviewAction::Part { part_id, color_id } => {
                if let (true, Some(item)) = (order.teach, &item) {
                    template = Some(self.learn(&inspection, item, &part_id, color_id.clone(), order.is_new_part)?);
                }
                (ReviewStatus::Rejected, Some(part_id), color_id)
            }
        };
        let shown = item.as_ref().and_then(|item| item.matched.as_ref()).map(|matched| matched.part_id.clone());
        self.commit(NewReview {
            inspection_id: inspection.id,
            ordinal: item.map(|item| item.ordinal),
            status,
            shown_part_id: shown,
            corrected_part_id,
            corrected_color_id,
            undoes_id: None,
            reviewer: order.reviewer.trim().to_owned(),
            reason,
            template,
        })
    }

    /// Take review `id` back: its item counts as not reviewed, and what it taught is searched no more.
    ///
    /// # Errors
    /// When there is none, it is an undo itself, or a later review of the same item stands.
    pub fn undo(&self, id: Uuid, reviewer: &str, reason: Option<String>) -> Result<Review, ReviewError> {
        check_text("reviewer", reviewer, REVIEW_WORD_CHARS_MAX)?;
        let reason = checked_reason(reason)?;
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let review = self.reader()?.review(id)?.ok_or(ReviewError::UnknownReview(id))?;
        if review.undoes_id.is_some() {
            return Err(ReviewError::IsUndo(id));
        }
        if !review.is_last {
            return Err(ReviewError::NotLast(id));
        }
        self.commit(NewReview {
            inspection_id: review.inspection_id,
            ordinal: review.ordinal,
            status: ReviewStatus::Pending,
            shown_part_id: review.shown_part_id,
            corrected_part_id: None,
            corrected_color_id: None,
            undoes_id: Some(id),
            reviewer: reviewer.trim().to_owned(),
            reason,
            template: None,
        })
    }

    fn commit(&self, review: NewReview) -> Result<Review, ReviewError> {
        let review = self.ledger.review(review)?;
        self.deltas.replace(self.ledger.learned_templates()?);
        Ok(review)
    }

    fn reader(&self) -> Result<LedgerReader, LedgerError> {
        LedgerReader::open(self.ledger.state_dir())
    }

    /// The inspection and, where one is meant, the item; `needs_item`: an inspection of one item stands for it.
    fn subject(&self, subject: &str, needs_item: bool) -> Result<(Inspection, Option<Item>), ReviewError> {
        let unknown = || ReviewError::UnknownSubject(subject.chars().take(REVIEW_WORD_CHARS_MAX).collect());
        let reader = self.reader()?;
        let (name, ordinal) = match subject.trim().split_once('/') {
            None => (subject.trim(), None),
            Some((name, ordinal)) => (name, Some(ordinal.parse::<u32>().map_err(|_| unknown())?)),
        };
        let (id, ordinal) = match name.parse::<Uuid>() {
            Err(_) => (reader.id_of_code(name)?.ok_or_else(unknown)?, ordinal),
            Ok(id) => match (reader.item(id)?, ordinal) {
                (Some((inspection_id, ordinal)), None) => (inspection_id, Some(ordinal)),
                _ => (InspectionId(id), ordinal),
            },
        };
        let inspection = reader.get(id)?.ok_or_else(unknown)?;
        let code = || inspection.code.clone();
        let ordinal = match ordinal {
            None if needs_item && inspection.items.len() != 1 => {
                return Err(ReviewError::WhichItem { code: code(), items: inspection.items.len() });
            }
            None if needs_item => Some(inspection.items[0].ordinal),
            ordinal => ordinal,
        };
        let item = match ordinal {
            None => None,
            Some(ordinal) => {
                let found = inspection.items.iter().find(|item| item.ordinal == ordinal).cloned();
                Some(found.ok_or_else(|| ReviewError::NoItem { code: code(), ordinal })?)
            }
        };
        Ok((inspection, item))
    }

    /// Cut the item out of its kept frame and embed it as the index's templates were.
    fn learn(
        &self,
        inspection: &Inspection,
        item: &Item,
        part_id: &str,
        color_id: Option<String>,
        is_new_part: bool,
    ) -> Result<LearnedTemplate, ReviewError> {
        let code = || inspection.code.clone();
        let no_recipe = || ReviewError::NoRecipe { recipe: inspection.recipe.clone(), code: code() };
        let recipe = self.recipes.called(&inspection.recipe).ok_or_else(no_recipe)?;
        let stage =
            recipe.matching.as_ref().ok_or_else(|| ReviewError::NoMatchStage { recipe: recipe.name.clone() })?;
        let outline = Outline::of_live(&stage.index)?;
        let index = index_name(&stage.index);
        if !is_new_part && !outline.knows_part(part_id) {
            let learned = self.ledger.learned_templates()?;
            if !learned.iter().any(|template| template.index == index && template.part_id == part_id) {
                return Err(ReviewError::UnknownPart { part_id: part_id.to_owned() });
            }
        }
        let (image, artifact) = kept_frame(self.ledger.state_dir(), inspection)?;
        let embedding = &outline.manifest.embedding;
        let bbox = item.largest_box();
        let crop = bbox.grown(embedding.crop_margin_ratio).clamped(image.width_px(), image.height_px());
        let manifest = ModelManifest::load(&stage.model).map_err(Box::new)?;
        if manifest.sha256() != embedding.model_sha256 {
            return Err(ReviewError::OtherModel);
        }
        let runtime = self.runtime.as_ref().ok_or_else(no_recipe)?;
        let mut model = FeatureModel::open(runtime, &manifest, &stage.providers.plan).map_err(Box::new)?;
        let shown = Crop { image: &image, area: crop, is_mirrored: stage.is_in_mirror(&bbox) };
        let vector = model.look(&[shown], embedding.input_px, false).map_err(Box::new)?.embeddings;
        Ok(LearnedTemplate {
            id: 0,
            review_id: Uuid::nil(),
            index,
            part_id: part_id.to_owned(),
            color_id,
            model_sha256: embedding.model_sha256,
            input_px: embedding.input_px,
            crop_margin_ratio: embedding.crop_margin_ratio,
            vector,
            inspection_id: inspection.id,
            ordinal: item.ordinal,
            frame_sha256: inspection.frame_sha256,
            artifact,
            crop,
        })
    }
}

/// The frame as it was kept, and the artifact's path.
fn kept_frame(state_dir: &Path, inspection: &Inspection) -> Result<(crate::types::Image, String), ReviewError> {
    let code = || inspection.code.clone();
    let kept = inspection.artifacts.iter().find(|artifact| artifact.kind == ArtifactKind::Frame);
    let kept = kept.ok_or_else(|| ReviewError::FrameNotKept { code: code() })?;
    let path = artifacts_dir(state_dir).join(&kept.relative_path);
    if !path.exists() {
        return Err(ReviewError::FrameNotKept { code: code() });
    }
    if Digest::of_file(&path).ok() != Some(kept.sha256) {
        return Err(ReviewError::FrameChanged { code: code() });
    }
    Ok((capture::read_image(&path)?, kept.relative_path.clone()))
}

fn check_text(field: &'static str, text: &str, chars_max: usize) -> Result<(), ReviewError> {
    let fault = match text.trim() {
        "" => "empty".to_owned(),
        text if text.chars().count() > chars_max => format!("longer than {chars_max} characters"),
        text if text.chars().any(char::is_control) => "not plain text".to_owned(),
        _ => return Ok(()),
    };
    Err(ReviewError::Field { field, fault })
}

fn checked_reason(reason: Option<String>) -> Result<Option<String>, ReviewError> {
    let reason = reason.map(|reason| reason.trim().to_owned()).filter(|reason| !reason.is_empty());
    reason.as_deref().map_or(Ok(()), |reason| check_text("reason", reason, REVIEW_REASON_CHARS_MAX))?;
    Ok(reason)
}

#[cfg(test)]
mod tests {
    use super::{check_text, checked_reason};

    #[test]
    fn empty_long_and_binary_words_are_refused() {
        assert!(check_text("reviewer", "Kim Min-jun 김민준", 40).is_ok());
        for bad in ["", "  ", "a\u{7}b", &"x".repeat(41)] {
            assert!(check_text("reviewer", bad, 40).is_err(), "{bad:?}");
        }
        assert_eq!(checked_reason(Some("  ".to_owned())).unwrap(), None);
        assert!(checked_reason(Some("x".repeat(1_001))).is_err());
    }
}
