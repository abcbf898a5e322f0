//! Loupe: edge vision inspection.
//!
//! ```text
//! camera ─► capture ─► quality ─► locate ─► match ─┐
//!                         │          └────► anomaly ─┼─► decide ─► ledger ─► uplink ─► Postgres
//!                         └── gate: doubt = HOLD ────┘                │
//!                                                                     └─► dashboard (SSE), metrics
//! ```
//!
//! Data flows one way through the rooms; ARCHITECTURE.md has the map, the invariants and what each room may know.

pub mod anomaly;
pub mod backup;
pub mod capture;
pub mod catalogue;
pub mod clock;
pub mod cmd;
pub mod config;
pub mod dashboard;
pub mod decide;
pub mod failpoint;
pub mod inference;
pub mod kit;
pub mod ledger;
pub mod limits;
pub mod locate;
pub mod matching;
pub mod measure;
pub mod notify;
pub mod observe;
pub mod overlay;
pub mod pipeline;
pub mod quality;
pub mod shutdown;
pub mod types;
pub mod uplink;
