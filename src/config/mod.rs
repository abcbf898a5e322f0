//! What the user wrote, and what runs: `Raw…` (as typed) → validated, with every fault reported at once.
//!
//! Relative paths in a file are relative to that file's folder.

mod daemon;
mod effective;
mod faults;
mod locate;
mod recipe;

pub use daemon::{
    ArtifactPolicy, Change, Config, DashboardConfig, StationConfig, StationRecipe, StorageConfig, UplinkConfig,
};
pub use effective::{RunningRecipe, effective};
pub use faults::{ConfigError, Document, Fault};
pub use locate::LocateStage;
pub use recipe::{
    AnomalyStage, EdgeRule, EmptyRule, MatchStage, QualityStage, Recipe, Rules, StageProviders, SurfaceSource,
    UnknownPartRule,
};
