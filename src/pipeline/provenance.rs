//! The record of what a decision rests on; its digest stands in every inspection.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::types::{Digest, Provider};

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

/// Digest of the running executable.
///
/// # Errors
/// When the executable cannot be read.
pub fn software_sha256() -> std::io::Result<Digest> {
    Digest::of_file(&std::env::current_exe()?)
}
