//! The only room that knows ONNX Runtime: sessions, execution providers, manifests and pre-processing.
//!
//! A model is opened only when the digest of its file and the names and shapes of its inputs and outputs agree with
//! its manifest. [`FeatureModel::provider`] is what the runtime says about the loaded graph, not what was asked for.
//!
//! Threads: a model blocks the worker that asks it. Workers of the pipeline open theirs in a [`ModelPool`]: a session each,
//! shared by all stations, or one session behind a batcher's thread for all workers; a session whose device failed is
//! opened again on a thread of its own. ONNX Runtime has threads where `intra_threads` is above 1; they never spin.
//! Overload: none of its own; a worker waits for its answer.

mod anomalib;
mod anomaly;
mod assignment;
mod batcher;
mod detector;
mod engine;
mod engine_cache;
mod error;
mod fault;
mod features;
mod golden;
mod guess;
mod health;
mod input;
mod keeper;
mod layout;
mod manifest;
mod onnx;
mod outputs;
mod pool;
mod preprocess;
mod probe;
mod provider;
mod runtime;
mod sampling;
mod session;
mod triangle;
mod tuning;

pub use anomaly::{AnomalyModel, AnomalySpec, Normalisation, RawAnomaly, RawMap, ScoreScale};
pub use assignment::NodeCounts;
pub use detector::{DetectorModel, RawOutputs, RawTensor};
pub use error::InferenceError;
pub use features::{Crop, FeatureMap, FeatureMaps, FeatureModel, Looks};
pub use golden::{GOLDEN_FILE, GOLDEN_FOLDER, Golden, GoldenReport, OutputReport};
pub use health::ModelHealth;
pub use input::{Axes, ColorOrder, InputSpec, LetterboxPlacement, Resample, ResizeMode};
pub use layout::{BoxOrder, BoxUnit, DetectorLayout, DetectorSpec, ScoreForm};
pub use manifest::{ExternalFile, GoldenTolerance, ModelKind, ModelManifest, OutputRole, OutputSpec};
pub use onnx::{Graph, Side, TensorInfo, read as read_graph};
pub use pool::{Host, ModelPool};
pub use preprocess::{Element, Letterbox, Placement, Preprocessor};
pub use probe::{OPEN_SIDE_PX, ProbeReport, ProviderSupport, probe};
pub use provider::{BatchLimits, Batching, ProviderChoice, ProviderPlan};
pub use runtime::Runtime;
pub use tuning::{TUNING_FILE, Tuning, TuningRow, measure as measure_threads};
