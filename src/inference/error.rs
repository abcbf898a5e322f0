//! What can go wrong with a model, in words for the engineer who has to put it right.

use std::path::PathBuf;

use crate::types::{Digest, Provider};

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    #[error(
        "ONNX Runtime's library `{path}` could not be loaded: {message}; run `make setup`, or take libonnxruntime.so \
         out of the PyPI wheel `onnxruntime` and name it with ORT_DYLIB_PATH",
        path = path.display()
    )]
    Library { path: PathBuf, message: String },
    #[error(
        "ONNX Runtime is already loaded from `{loaded}`; `{asked}` needs another process",
        loaded = loaded.display(),
        asked = asked.display()
    )]
    LibraryConflict { loaded: PathBuf, asked: PathBuf },
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("model manifest `{path}`: {message}", path = path.display())]
    Manifest { path: PathBuf, message: String },
    #[error(
        "model `{model}`: file `{path}` has sha256 {found}, its manifest says {expected}; fetch the model again",
        path = path.display()
    )]
    DigestDiffers { model: String, path: PathBuf, expected: Digest, found: Digest },
    #[error("`{path}` cannot be used as a model: {message}", path = path.display())]
    File { path: PathBuf, message: String },
    #[error("golden `{path}` cannot be used: {message}", path = path.display())]
    GoldenFile { path: PathBuf, message: String },
    #[error("cannot write `{path}`: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("model `{model}` is of kind `{found}`, a `{expected}` model is needed here")]
    Kind { model: String, expected: &'static str, found: &'static str },
    #[error("model `{model}`: {what}: expected {expected}, found {found}; the manifest does not describe this file")]
    Shape { model: String, what: String, expected: String, found: String },
    #[error("model `{model}` has no output of role `{role}`; name one in its manifest")]
    OutputMissing { model: String, role: &'static str },
    #[error("model `{model}` requires provider `{provider}`, which is not usable: {message}; {advice}")]
    ProviderRequired { model: String, provider: Provider, message: String, advice: &'static str },
    #[error("model `{model}`: none of its providers is usable: {message}")]
    NoProvider { model: String, message: String },
    #[error("model `{model}`: its provider list is empty; name at least `cpu`")]
    ProviderListEmpty { model: String },
    #[error("model `{model}` could not be run: {message}")]
    Run { model: String, message: String },
    #[error("model `{model}`: its device failed: {message}")]
    Device { model: String, message: String },
    #[error("model `{model}` is being opened again after a fault: {message}")]
    Unavailable { model: String, message: String },
    #[error("model `{model}`: the picture could not be scaled to {width_px}x{height_px}: {message}")]
    Resize { model: String, width_px: u32, height_px: u32, message: String },
}
