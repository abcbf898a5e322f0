//! The generation in service, exchanged while it is searched.
//!
//! Searches take the generation of the moment and keep it until they are done; [`LiveIndex::refresh`], on a thread of its
//! own, opens and checks what `CURRENT` names and puts it in its place. Nobody waits for the opening, and the lock is held
//! for the copy of a pointer.
//!
//! Invariants: a generation that is damaged, or that another model's embeddings are for, never enters service, and the one
//! in service stays; an old generation is given back (its mapping undone) on the refreshing thread, not on a searching one.
//! Thread: any number search, one refreshes at a time. Overload: at most two generations are mapped while searches of the
//! old one end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::MatchError;
use super::fit::Fit;
use super::search::PartIndex;
use super::store;
use crate::failpoint;
use crate::types::Digest;

/// The part index in service; clones share it.
#[derive(Debug, Clone)]
pub struct LiveIndex {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    current: RwLock<Arc<PartIndex>>,
    refreshing: Mutex<Refreshing>,
}

#[derive(Debug, Default)]
struct Refreshing {
    /// Out of service, maybe still searched.
    retired: Vec<Arc<PartIndex>>,
    /// The generation and the fit that could not enter service: tried once, not each second.
    refused: Option<(String, Option<Digest>)>,
}

impl LiveIndex {
    /// Open the live generation of the index directory `root`, as [`PartIndex::open`].
    ///
    /// # Errors
    /// As [`PartIndex::open`].
    pub fn open(root: &Path) -> Result<Self, MatchError> {
        let index = RwLock::new(Arc::new(PartIndex::open(root)?));
        let shared = Shared { root: root.to_owned(), current: index, refreshing: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The generation in service. Keep it for all searches that must agree with each other.
    #[must_use]
    pub fn current(&self) -> Arc<PartIndex> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Put the generation that `CURRENT` names into service when it, or its fit, is another one; its digest, or `None` when there is
    /// nothing new.
    ///
    /// # Errors
    /// When it cannot be used. The generation in service stays; the same generation is not tried again.
    pub fn refresh(&self) -> Result<Option<Digest>, MatchError> {
        self.refresh_with(|_| Ok::<(), MatchError>(()))
    }

    /// As [`LiveIndex::refresh`]; `prepare` is called with the new generation before any search sees it.
    ///
    /// # Errors
    /// As [`LiveIndex::refresh`], and those of `prepare`; then the generation is tried again.
    pub fn refresh_with<E: From<MatchError>>(
        &self,
        prepare: impl FnOnce(&PartIndex) -> Result<(), E>,
    ) -> Result<Option<Digest>, E> {
        let mut state = self.shared.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        state.retired.retain(|index| Arc::strong_count(index) > 1);
        let name = store::current_name(&self.shared.root)?;
        let serving = self.current();
        let fit_sha256 = Fit::stored_sha256(&self.shared.root, &name);
        if serving.generation_name() == name && serving.fit_sha256() == fit_sha256 {
            state.refused = None;
            return Ok(None);
        }
        if state.refused.as_ref().is_some_and(|(refused, fit)| *refused == name && *fit == fit_sha256) {
            return Ok(None);
        }
        let next = match self.open_next(&name, &serving) {
            Ok(next) => next,
            Err(error) => {
                state.refused = Some((name, fit_sha256));
                return Err(error.into());
            }
        };
        failpoint::hit("index.switch.opened");
        prepare(&next)?;
        next.warm();
        let sha256 = next.generation_sha256();
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        failpoint::hit("index.switch.taken");
        state.retired.push(serving);
        state.refused = None;
        Ok(Some(sha256))
    }

    /// Open the generation `name`, checked, when it can take over from `serving`.
    fn open_next(&self, name: &str, serving: &PartIndex) -> Result<PartIndex, MatchError> {
        let next = PartIndex::open_generation(&self.shared.root, name)?;
        let embedding = &serving.manifest().embedding;
        next.require_model(serving.dim(), embedding.model_sha256, embedding.input_sha256)?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::LiveIndex;
    use crate::matching::{
        AcceptRule, BuildOptions, Embedding, FitRow, IndexBuilder, MatchError, Scored, Template, fitting,
    };
    use crate::types::Digest;

    const RULE: AcceptRule = AcceptRule { accept_similarity: 0.5, accept_margin: 0.1 };

    /// Two parts at right angles, the first one named `name`.
    fn build(root: &std::path::Path, name: &str, model: &[u8]) {
        let model_sha256 = Digest::of(model);
        let embedding =
            Embedding { model: "test".into(), model_sha256, input_px: 160, crop_margin_ratio: 0.0, input_sha256: None };
        let mut builder = IndexBuilder::new(2, embedding, BuildOptions::default());
        for (part, vector) in [(name, [1.0, 0.0]), ("other", [0.0, 1.0])] {
            let template = Template { part_id: part.to_owned(), color_id: None, view: String::new() };
            builder.push(template, &vector).unwrap();
        }
        builder.build(root).unwrap();
    }

    fn answer(live: &LiveIndex) -> String {
        live.current().search(&[0.9, 0.1], RULE).unwrap()[0].part_id.clone()
    }

    #[test]
    fn a_new_fit_of_the_serving_generation_takes_over_and_a_broken_one_does_not() {
        let root = tempfile::tempdir().unwrap();
        build(root.path(), "one", b"model");
        let live = LiveIndex::open(root.path()).unwrap();
        let serving = live.current();
        assert!(serving.fit().is_none());
        let candidates = [("one", 0.9), ("other", 0.1)];
        let scored = |similarity| Scored { similarity, ..Scored::default() };
        let row = FitRow {
            part_id: "one".to_owned(),
            candidates: candidates.map(|(part, similarity)| (part.to_owned(), scored(similarity))).to_vec(),
        };
        let fit = fitting::fit(serving.generation_sha256(), &vec![row; 60], 0.1, 0.01).unwrap();
        let path = fit.store(root.path(), &serving.generation_name()).unwrap();
        assert_eq!(live.refresh().unwrap(), Some(serving.generation_sha256()));
        assert_eq!(live.current().fit(), Some(&fit));
        assert_eq!(live.refresh().unwrap(), None, "nothing new");
        std::fs::write(&path, "{").unwrap();
        assert!(live.refresh().is_err());
        assert_eq!(live.refresh().unwrap(), None, "tried once");
        assert_eq!(live.current().fit(), Some(&fit));
    }

    #[test]
    fn a_new_generation_takes_over_and_searches_of_the_old_one_end_in_it() {
        let root = tempfile::tempdir().unwrap();
        build(root.path(), "old", b"model");
        let live = LiveIndex::open(root.path()).unwrap();
        let held = live.current();
        assert_eq!(live.refresh().unwrap(), None, "nothing new");
        build(root.path(), "new", b"model");
        assert_eq!(answer(&live), "old", "nothing changes unasked");
        let sha256 = live.refresh().unwrap().unwrap();
        assert_eq!((answer(&live).as_str(), live.current().generation_sha256()), ("new", sha256));
        assert_eq!(held.search(&[0.9, 0.1], RULE).unwrap()[0].part_id, "old");
        assert_ne!(held.generation_sha256(), sha256);
    }

    #[test]
    fn a_damaged_generation_or_another_model_leaves_the_old_one_in_service() {
        let root = tempfile::tempdir().unwrap();
        build(root.path(), "old", b"model");
        let live = LiveIndex::open(root.path()).unwrap();
        build(root.path(), "new", b"another model");
        assert!(matches!(live.refresh(), Err(MatchError::Model { .. })));
        assert!(matches!(live.refresh(), Ok(None)), "said once");
        build(root.path(), "newest", b"model");
        let name = std::fs::read_to_string(root.path().join("CURRENT")).unwrap();
        let file = root.path().join(name.trim()).join("l2.vectors");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(live.refresh(), Err(MatchError::Damaged { .. })));
        assert_eq!(answer(&live), "old");
    }

    #[test]
    fn what_cannot_be_prepared_is_not_seen_and_tried_again() {
        let root = tempfile::tempdir().unwrap();
        build(root.path(), "old", b"model");
        let live = LiveIndex::open(root.path()).unwrap();
        build(root.path(), "new", b"model");
        assert!(live.refresh_with(|_| Err(MatchError::NoTemplates)).is_err());
        assert_eq!(answer(&live), "old");
        assert!(live.refresh().unwrap().is_some());
        assert_eq!(answer(&live), "new");
    }
}
