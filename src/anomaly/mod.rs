//! PatchCore (Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022): banks of good surfaces.
//!
//! [`BankBuilder`] turns pictures of good parts into a bank: a folder named by the digest of its manifest and never
//! changed afterwards. [`PatchCore`] opens one, checks every digest and scores pictures against it; [`metrics`] says
//! how well that separates good from bad. [`GraphSurface`] runs graphs that others trained; [`Surface`] is what both are.
//!
//! Invariants: a bank is opened only with the model it was built with; scores are never clamped before ranking.
//! Threads: a [`PatchCore`] belongs to one worker and blocks it; building uses every core and is an offline job.
//! Overload: none of its own; a bank's size is bounded when it is built.

mod align;
mod bank;
mod build;
mod cells;
mod coreset;
mod defects;
mod describe;
mod error;
mod fit;
mod folds;
mod graph;
mod grey;
mod group;
mod lists;
mod manifest;
mod map;
mod memory;
pub mod metrics;
mod nearest;
mod outliers;
#[cfg(test)]
mod parity;
mod patchcore;
mod patches;
mod score;
mod seal;
mod seen;
mod staging;
mod surface;
mod threshold;
mod view;

pub use align::Motion;
pub use bank::Bank;
pub use build::{BankBuilder, BankOptions, DEFAULT_CORRELATION_MIN, PictureNote};
pub use defects::mask;
pub use error::AnomalyError;
pub use fit::{FitOn, FitScores, refit};
pub use graph::GraphSurface;
pub use group::{GroupManifest, Picture, THUMBNAILS_MAX};
pub use manifest::{BankManifest, BankModel, Layer};
pub use map::ScoreMap;
pub use memory::SearchMode;
pub use outliers::outliers;
pub use patchcore::{AnomalyResult, NearestPicture, PatchCore};
pub use score::normalise;
pub use surface::Surface;
pub use threshold::ThresholdRule;
pub use view::{AskedOutline, AskedTiles, Registration, Tiles, View};
