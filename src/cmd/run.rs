//! `loupe run`.
