//! Embeddings → part: the FAISS wrapper, immutable index generations, and the two-stage search.
//!
//! A generation is built by [`IndexBuilder`], opened and checked by [`PartIndex::open`], searched by
//! [`PartIndex::search`] and measured against an exhaustive search by [`evaluate()`].
//!
//! Threads: everything runs on the caller's; one [`PartIndex`] serves several.

mod build;
pub mod catalogue;
mod cold;
mod delta;
mod duplicates;
mod error;
pub mod evaluate;
mod evidence;
pub mod faiss;
mod generation;
mod groups;
mod hot;
mod ids;
mod kernel;
mod manifest;
mod outline;
mod rank;
mod search;
mod store;
mod tune;
mod verify;

pub use build::{BuildOptions, Built, IndexBuilder, L1_BYTES_MAX_DEFAULT, L1_RATIO_DEFAULT, RECALL_TARGET_DEFAULT};
pub use delta::{Delta, DeltaCell, Deltas, LEARNED_VIEW_PREFIX, Learning, index_name, learned_view};
pub use duplicates::{DuplicatePair, Duplicates};
pub use error::MatchError;
pub use evaluate::{Evaluation, evaluate};
pub use evidence::{HITS_HALF_LIFE, Rates, TierEvidence};
pub use groups::Groups;
pub use ids::Template;
pub use manifest::{ColdTier, Embedding, FileEntry, HotTier, Manifest};
pub use outline::Outline;
pub use rank::AcceptRule;
pub use search::PartIndex;
pub use store::Quarantined;
pub use verify::{Verification, verify};
