//! Embeddings → part: the FAISS wrapper, immutable index generations, and the two-stage search.

pub mod faiss;
