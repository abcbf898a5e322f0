//! The only room that knows ONNX Runtime: sessions, execution providers, manifests and pre-processing.
//!
//! A model is opened only when the digest of its file and the names and shapes of its inputs and outputs agree with
//! its manifest. [`FeatureModel::provider`] is what the runtime says about the loaded graph, not what was asked for.
//!
//! Threads: a model belongs to one worker thread and blocks it while it runs; nothing here spawns threads except
//! ONNX Runtime itself, when `intra_threads` is above 1. Its threads never spin.
//! Overload: none of its own; one call is one inference.

mod anomalib;
mod anomaly;
mod assignment;
mod detector;
mod error;
mod features;
mod golden;
mod guess;
mod layout;
mod manifest;
mod onnx;
mod preprocess;
mod probe;
mod provider;
mod runtime;
mod sampling;
mod session;
mod tuning;

pub use anomaly::{AnomalyModel, AnomalySpec, Normalisation, RawAnomaly, RawMap, ScoreScale};
pub use assignment::NodeCounts;
pub use detector::{DetectorModel, RawOutputs, RawTensor};
pub use error::InferenceError;
pub use features::{FeatureMap, FeatureMaps, FeatureModel};
pub use golden::{GOLDEN_FILE, GOLDEN_FOLDER, Golden, GoldenReport, OutputReport};
pub use layout::{BoxOrder, BoxUnit, DetectorLayout, DetectorSpec, ScoreForm};
pub use manifest::{
    Axes, ColorOrder, ExternalFile, GoldenTolerance, InputSpec, LetterboxPlacement, ModelKind, ModelManifest,
    OutputRole, OutputSpec, Resample, ResizeMode,
};
pub use onnx::{Graph, Side, TensorInfo, read as read_graph};
pub use preprocess::{Element, Letterbox, Placement, Preprocessor};
pub use probe::{OPEN_SIDE_PX, ProbeReport, ProviderSupport, probe};
pub use provider::{ProviderChoice, ProviderPlan};
pub use runtime::Runtime;
pub use tuning::{TUNING_FILE, Tuning, TuningRow, measure as measure_threads};
