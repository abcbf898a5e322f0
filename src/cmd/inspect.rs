//! `loupe inspect`.
