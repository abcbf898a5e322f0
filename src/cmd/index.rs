//! `loupe index`.
