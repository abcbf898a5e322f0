//! What can go wrong with a part index.

use std::path::{Path, PathBuf};

use super::faiss::FaissError;
use super::manifest::{FORMAT, FORMAT_OLDEST};
use crate::types::Digest;

/// Why an index could not be built, opened or searched.
#[derive(Debug, thiserror::Error)]
pub enum MatchError {
    #[error("{} holds no part index (no readable CURRENT): {source}; build one with `loupe index build`", dir.display())]
    NoIndex { dir: PathBuf, source: std::io::Error },
    #[error("{}: CURRENT names `{name}`, which is no generation; run `loupe index build` again", dir.display())]
    BadName { dir: PathBuf, name: String },
    /// The generation is damaged: never served, and set aside by `PartIndex::open`.
    #[error("index generation {} is damaged: {fault}", dir.display())]
    Damaged { dir: PathBuf, fault: String },
    /// Nothing is wrong with it, but this version cannot read it; it stays where it is.
    #[error("index generation {} has format {format}, this version reads {FORMAT_OLDEST} to {FORMAT}; run `loupe index build` again", dir.display())]
    OtherFormat { dir: PathBuf, format: u64 },
    #[error("{}: another process builds or changes this index (it holds {file}); try again when it is done", dir.display())]
    Busy { dir: PathBuf, file: &'static str },
    #[error("{}: there is no generation {name}; `loupe index stats` lists those there are", dir.display())]
    NoGeneration { dir: PathBuf, name: String },
    #[error("{}: there is no generation before the live one to go back to", dir.display())]
    NoPrevious { dir: PathBuf },
    #[error("{fault}; {quarantined}; no earlier good generation is left, run `loupe index build` again")]
    NothingToServe { fault: String, quarantined: String },
    #[error(
        "the index was built from {index_dim}-value embeddings, the model gives {model_dim}; rebuild the index with this model"
    )]
    Dimension { index_dim: usize, model_dim: usize },
    #[error(
        "the index was built with model {name} ({index_model}), the model in use is {model}; rebuild the index or use that \
         model"
    )]
    Model { name: String, index_model: Digest, model: Digest },
    #[error(
        "the index was built when the manifest of model {name} gave its pictures another form ([input]: colour order, scale, \
         mean, std, resize, resample, padding), or by a version of Loupe that scaled them otherwise; put that back, or rebuild \
         the index"
    )]
    Preprocessing { name: String },
    #[error("{values} values are not whole embeddings of the index's dimension {dim}")]
    Shape { values: usize, dim: usize },
    #[error("{pictures} pictures came with {mirrored} mirrored ones, and each is to be looked at twice")]
    Mirrored { pictures: usize, mirrored: usize },
    #[error("embedding {position} is not finite or has no direction (norm {norm})")]
    NoDirection { position: usize, norm: f32 },
    #[error("no templates to build an index from")]
    NoTemplates,
    #[error("{templates} templates came with {vectors} vectors")]
    CountMismatch { templates: usize, vectors: usize },
    #[error("template {position}: {fault}")]
    BadTemplate { position: usize, fault: String },
    #[error("{}: {fault}; run `loupe index fit` again", path.display())]
    Fit { path: PathBuf, fault: String },
    #[error("{rows} pictures are too few to fit an index; give at least {needed}")]
    TooFewRows { rows: usize, needed: usize },
    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Faiss(#[from] FaissError),
}

impl MatchError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> MatchError {
        let path = path.to_owned();
        move |source| MatchError::Io { action, path, source }
    }

    pub(super) fn damaged(dir: &Path, fault: impl std::fmt::Display) -> MatchError {
        MatchError::Damaged { dir: dir.to_owned(), fault: fault.to_string() }
    }
}
