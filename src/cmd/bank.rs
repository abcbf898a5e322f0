//! `loupe bank`.
