//! What can go wrong with a bank.

use std::path::PathBuf;

use crate::inference::InferenceError;
use crate::matching::faiss::FaissError;
use crate::types::Digest;

/// Why a bank could not be built, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AnomalyError {
    #[error("cannot {action} `{path}`: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{path}` is no bank: {message}; build one with `loupe bank build`", path = path.display())]
    Manifest { path: PathBuf, message: String },
    #[error(
        "bank `{bank}`: `{file}` has sha256 {found}, its manifest says {expected}; the file is damaged, build the bank again",
        bank = bank.display()
    )]
    FileDiffers { bank: PathBuf, file: String, expected: Digest, found: Digest },
    #[error(
        "bank `{bank}`: its `manifest.json` is damaged: {message}; restore it from a backup, or build the bank again",
        bank = bank.display()
    )]
    Seal { bank: PathBuf, message: String },
    #[error(
        "bank `{bank}` was built with model `{model}` of sha256 {expected}, the model at hand has {found}; build the \
         bank again or restore that model",
        bank = bank.display()
    )]
    OtherModel { bank: PathBuf, model: String, expected: Digest, found: Digest },
    #[error(
        "bank `{bank}` was built when the manifest of model `{model}` gave its pictures another form ([input]: colour order, \
         scale, mean, std, resize, resample), or by a version of Loupe that scaled them otherwise; put that back, or build the \
         bank again",
        bank = bank.display()
    )]
    Preprocessing { bank: PathBuf, model: String },
    #[error("bank `{bank}`: {what}: expected {expected}, found {found}; build the bank again", bank = bank.display())]
    Shape { bank: PathBuf, what: &'static str, expected: String, found: String },
    #[error("`{path}` exists already; a bank is never changed in place: remove it or name another folder", path = path.display())]
    Exists { path: PathBuf },
    #[error("a bank needs at least {needed} pictures of good parts, got {got}", needed = super::build::IMAGES_MIN)]
    TooFewImages { got: usize },
    #[error(
        "a false-reject rate of {rate} needs the scores of at least {needed} good pictures, there are {got}; take more \
         pictures or a larger rate"
    )]
    TooFewForRate { got: usize, needed: usize, rate: f64 },
    #[error(
        "the part is not where the reference picture shows it: correlation {correlation:.3}, needed {needed:.3}; check \
         that it lies as when the bank was built"
    )]
    NotRegistered { correlation: f32, needed: f32 },
    #[error(
        "{percent:.0} % of what is looked at lies beyond the edge of the picture, {allowed}; lay the part as when the bank was \
         built",
        percent = unseen_ratio * 100.0
    )]
    OutOfFrame { unseen_ratio: f32, allowed: &'static str },
    #[error("the region holds no patch of the {width}x{height} grid; draw it larger, zoom to it or use tiles", width = grid.0, height = grid.1)]
    EmptyRegion { grid: (usize, usize) },
    #[error("the bank has no group `{name}`; {known}")]
    NoGroup { name: String, known: String },
    #[error("group `{name}`: {source}")]
    OfGroup { name: String, source: Box<AnomalyError> },
    #[error("no picture was in place, so there are no scores to fit to; the thresholds are as they were")]
    NothingToFit,
    #[error("`{path}` does not exist; a bank is a folder that `loupe bank build` wrote", path = path.display())]
    Missing { path: PathBuf },
    #[error("cannot write bank `{path}`: {message}", path = path.display())]
    Unwritable { path: PathBuf, message: String },
    #[error("{option} is {value}: it must be {allowed}")]
    Option { option: &'static str, value: String, allowed: &'static str },
    #[error(
        "the features of {images} pictures need {bytes} bytes, more than the {limit} allowed; use fewer pictures or a \
         smaller input",
        limit = super::build::FEATURE_BYTES_MAX
    )]
    TooLarge { images: usize, bytes: usize },
    #[error("model `{model}` gave feature maps that do not fit together: {message}")]
    Features { model: String, message: String },
    #[error("model `{model}` gave a value that is no number; the picture cannot be scored")]
    NotFinite { model: String },
    #[error("anomaly graph `{model}`: {message}")]
    Graph { model: String, message: String },
    #[error(transparent)]
    Inference(#[from] InferenceError),
    #[error("bank search: {0}")]
    Search(#[from] FaissError),
}

impl AnomalyError {
    /// Whether the part does not lie, or not in full, where the bank's reference shows it: the picture is held, no engine
    /// failed.
    #[must_use]
    pub fn is_not_in_place(&self) -> bool {
        matches!(self, Self::NotRegistered { .. } | Self::OutOfFrame { .. })
    }

    /// The same of one group; as it is where the group has no name.
    pub(super) fn of_group(self, name: &str) -> Self {
        if name.is_empty() { self } else { Self::OfGroup { name: name.to_owned(), source: Box::new(self) } }
    }
}
