//! `loupe check`.
