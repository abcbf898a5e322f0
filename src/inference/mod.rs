//! The only room that knows ONNX Runtime: sessions, execution providers, manifests and pre-processing.
//!
//! A model is opened only when the digest of its file and the names and shapes of its inputs and outputs agree with
//! its manifest. [`FeatureModel::provider`] is what the runtime says about the loaded graph, not what was asked for.
//!
//! Threads: a model belongs to one worker thread and blocks it while it runs; nothing here spawns threads except
//! ONNX Runtime itself, when `intra_threads` is above 1. Its threads never spin.
//! Overload: none of its own; one call is one inference.

mod assignment;
mod detector;
mod error;
mod features;
mod manifest;
mod preprocess;
mod provider;
mod runtime;
mod session;

pub use assignment::NodeCounts;
pub use detector::{DetectorModel, RawDetections};
pub use error::InferenceError;
pub use features::{FeatureMap, FeatureMaps, FeatureModel};
pub use manifest::{ColorOrder, InputSpec, ModelKind, ModelManifest, OutputRole, OutputSpec, ResizeMode};
pub use preprocess::{Letterbox, Preprocessor};
pub use provider::{ProviderChoice, ProviderPlan};
pub use runtime::Runtime;
