//! `loupe db`.
