//! `loupe outbox`.
