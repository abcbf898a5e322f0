//! Embeddings → part: the FAISS wrapper, immutable index generations, and the two-stage search.
//!
//! A generation is built by [`IndexBuilder`], opened and checked by [`PartIndex::open`], searched by
//! [`PartIndex::search`] and measured against an exhaustive search by [`evaluate()`]. [`LiveIndex`] exchanges the
//! generation in service; [`lifecycle`] looks at, switches and tidies up what is on disk.
//!
//! Threads: everything runs on the caller's; one [`PartIndex`] serves several.

pub mod borrowed;
mod build;
pub mod catalogue;
mod centres;
mod clusters;
mod cold;
mod delta;
mod duplicates;
mod embedded;
mod error;
pub mod evaluate;
mod evidence;
pub mod faiss;
mod fit;
pub mod fitting;
mod fuse;
mod generation;
mod groups;
mod hot;
mod ids;
pub mod kernel;
pub mod lifecycle;
mod likeness;
mod lists;
mod live;
mod manifest;
mod map;
mod mirrors;
mod outline;
mod proof;
mod rank;
mod search;
mod shape;
mod shapes;
mod sizes;
mod store;
mod table;
pub mod tune;
mod verify;
mod views;

pub use build::{
    BuildOptions, Built, IndexBuilder, L1_BYTES_MAX_DEFAULT, L1_RATIO_DEFAULT, Phase, Progress, RECALL_TARGET_DEFAULT,
};
pub use centres::Centres;
pub use delta::{Delta, DeltaCell, Deltas, LEARNED_VIEW_PREFIX, Learning, index_name, learned_view};
pub use duplicates::{DuplicatePair, Duplicates};
pub use embedded::Embedded;
pub use error::MatchError;
pub use evaluate::{Evaluation, Query, evaluate};
pub use evidence::{HITS_HALF_LIFE, Rates, TierEvidence};
pub use fit::{Apart, Fit, Scored, Scorer, Several, Weights};
pub use fitting::FitRow;
pub use fuse::Seen;
pub use groups::Groups;
pub use ids::{Template, TemplateIds, TemplateRef};
pub use live::LiveIndex;
pub use manifest::{ColdTier, Embedding, FileEntry, HotTier, Manifest};
pub use mirrors::{Mirrors, Pictures};
pub use outline::Outline;
pub use rank::{AcceptRule, CANDIDATES};
pub use search::PartIndex;
pub use shape::{Shape, TurnedView, turned_views};
pub use shapes::{Shapes, ShapesBuilder};
pub use sizes::Sizes;
pub use store::{Quarantined, current_name};
pub use verify::{Verification, verify};
pub use views::{Together, seen_together};
