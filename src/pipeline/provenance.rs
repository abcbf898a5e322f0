//! The record of what a decision rests on; its digest stands in every inspection.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

use crate::types::{Digest, Provider};

/// Name under which a generation's fit stands among the calibrations.
pub const FIT_CALIBRATION: &str = "match.fit";

/// Everything that decides besides the frame. Serialised with sorted keys and no spaces: the canonical form.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance {
    pub bank_sha256: Option<Digest>,
    pub calibration_sha256s: BTreeMap<String, Digest>,
    pub generation_sha256: Option<Digest>,
    /// By stage: `locate`, `embed`, `anomaly`.
    pub model_sha256s: BTreeMap<String, Digest>,
    /// The provider that really runs each stage.
    pub providers: BTreeMap<String, Provider>,
    /// The recipe's text, so that the rules can be applied again.
    pub recipe_body: String,
    pub recipe_name: String,
    pub recipe_sha256: Digest,
    /// Of the running executable.
    pub software_sha256: Digest,
    pub software_version: String,
}

impl Provenance {
    /// The canonical text, which the digest is taken of.
    #[must_use]
    pub fn canonical_json(&self) -> String {
        // Fields are declared in alphabetical order and maps are sorted; nothing here can fail to serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A generation, and its fit where it has one.
type Serving = (Digest, Option<Digest>);

/// The registered provenance of one station for each index generation that was in service since the start; clones share it.
///
/// Invariant: a generation's record is on disk and in here before a worker can search the generation.
#[derive(Debug, Clone)]
pub struct Provenances {
    /// What stays the same; its `generation_sha256` is that of the start.
    base: Arc<Provenance>,
    first: Digest,
    /// By generation and its fit.
    by_generation: Arc<RwLock<BTreeMap<Serving, Digest>>>,
}

impl Provenances {
    /// `first`: digest of `base`, which is registered.
    #[must_use]
    pub fn new(base: Provenance, first: Digest) -> Self {
        let known = base
            .generation_sha256
            .map(|generation| ((generation, base.calibration_sha256s.get(FIT_CALIBRATION).copied()), first))
            .into_iter()
            .collect();
        Self { base: Arc::new(base), first, by_generation: Arc::new(RwLock::new(known)) }
    }

    /// Digest of the record for decisions that rest on this generation and its fit.
    #[must_use]
    pub fn of(&self, generation: Option<(Digest, Option<Digest>)>) -> Digest {
        let known = self.by_generation.read().unwrap_or_else(PoisonError::into_inner);
        generation.and_then(|generation| known.get(&generation).copied()).unwrap_or(self.first)
    }

    /// Make the record for another generation, with its own fit, known; `register` stores it and gives its digest.
    ///
    /// # Errors
    /// Those of `register`.
    pub fn add<E>(
        &self,
        generation_sha256: Digest,
        fit_sha256: Option<Digest>,
        register: impl FnOnce(&str) -> Result<Digest, E>,
    ) -> Result<(), E> {
        let mut record = Provenance { generation_sha256: Some(generation_sha256), ..(*self.base).clone() };
        record.calibration_sha256s.remove(FIT_CALIBRATION);
        record.calibration_sha256s.extend(fit_sha256.map(|sha256| (FIT_CALIBRATION.to_owned(), sha256)));
        let sha256 = register(&record.canonical_json())?;
        self.by_generation
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((generation_sha256, fit_sha256), sha256);
        Ok(())
    }
}

/// Digest of the running executable.
///
/// # Errors
/// When the executable cannot be read.
pub fn software_sha256() -> std::io::Result<Digest> {
    Digest::of_file(&std::env::current_exe()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Provenance, Provenances};
    use crate::types::Digest;

    #[test]
    fn each_generation_has_its_own_record() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let base = Provenance {
            bank_sha256: None,
            calibration_sha256s: BTreeMap::new(),
            generation_sha256: Some(old),
            model_sha256s: BTreeMap::new(),
            providers: BTreeMap::new(),
            recipe_body: String::new(),
            recipe_name: String::new(),
            recipe_sha256: Digest::of(b"recipe"),
            software_sha256: Digest::of(b"software"),
            software_version: String::new(),
        };
        let first = Digest::of(base.canonical_json().as_bytes());
        let provenances = Provenances::new(base, first);
        let mut record = String::new();
        provenances
            .clone()
            .add(new, Some(Digest::of(b"fit")), |json| {
                record = json.to_owned();
                Ok::<_, ()>(Digest::of(json.as_bytes()))
            })
            .unwrap();
        assert!(record.contains(&Digest::of(b"fit").to_string()), "{record}");
        assert!(record.contains(&new.to_string()) && !record.contains(&old.to_string()), "{record}");
        assert_eq!(provenances.of(Some((old, None))), first);
        assert_eq!(provenances.of(Some((new, Some(Digest::of(b"fit"))))), Digest::of(record.as_bytes()));
        assert_eq!(provenances.of(None), first);
        let third = Digest::of(b"third");
        assert!(provenances.add(third, None, |_| Err(())).is_err(), "what could not be stored is not known");
        assert_eq!(provenances.of(Some((third, None))), first);
    }
}
