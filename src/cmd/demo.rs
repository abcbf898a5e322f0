//! `loupe demo`.
