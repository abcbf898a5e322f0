//! What the live generation holds, without its vectors: for reviews, and for builds that follow it.
//!
//! Only `manifest.json`, `ids.bin` and the CSV files are read, their digests checked; nothing is set aside.

use std::path::Path;

use super::MatchError;
use super::evidence::TierEvidence;
use super::generation;
use super::groups::Groups;
use super::ids::{Template, TemplateIds};
use super::manifest::Manifest;
use super::store;
use crate::types::Digest;

/// The templates of a generation and how they were embedded.
#[derive(Debug)]
pub struct Outline {
    /// Of the manifest: the generation's name in provenance records.
    pub sha256: Digest,
    pub manifest: Manifest,
    pub groups: Groups,
    /// What its templates did until it was built.
    pub evidence: TierEvidence,
    ids: TemplateIds,
}

impl Outline {
    /// Read the live generation of the index in `dir`.
    ///
    /// # Errors
    /// When there is none, or one of its small files is damaged.
    pub fn of_live(dir: &Path) -> Result<Self, MatchError> {
        let live = dir.join(store::current_name(dir)?);
        let generation::SmallFiles { manifest, sha256, ids, groups, evidence } = generation::read_small_files(&live)?;
        Ok(Self { sha256, manifest, groups, evidence, ids })
    }

    /// Whether a part has a template or a confusion group here.
    #[must_use]
    pub fn knows_part(&self, part_id: &str) -> bool {
        self.ids.number_of(part_id).is_some() || self.groups.share(part_id, part_id)
    }

    /// Whether it took in the template of a review, by the template's view.
    #[must_use]
    pub fn has_learned(&self, view: &str) -> bool {
        self.ids.has_learned(view)
    }

    /// Every template in order, with whether it is hot.
    pub fn templates(&self) -> impl Iterator<Item = (Template, bool)> {
        (0_u32..).map_while(|at| self.ids.get(at).map(|(template, _)| (template.to_template(), self.ids.is_hot(at))))
    }

    /// The template at `position`.
    #[must_use]
    pub fn template(&self, position: u64) -> Option<Template> {
        self.ids.get(u32::try_from(position).ok()?).map(|(template, _)| template.to_template())
    }
}
