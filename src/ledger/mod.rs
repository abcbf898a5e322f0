//! The ledger: what this device decided, on disk before anyone hears of it.
//!
//! SQLite in WAL mode with `synchronous=FULL`, one writer thread ("loupe-ledger") for all callers, group commit.
//! Invariants: a commit that returned survives a power cut, its artifacts too; committed = delivered + pending;
//! captured = committed + refused; codes are never reused. Overload: the queue is bounded and callers wait; nothing is
//! dropped. When the disk refuses, the commit is an error, the caller holds, and later commits go on.
//!
//! This is the only room that names SQLite. The uplink asks it for units to send and tells it what arrived.

mod artifacts;
mod catalogue;
mod checkpoint;
mod disk;
mod error;
mod handle;
mod holds;
mod kits;
mod log_check;
mod reader;
mod retention;
mod reviews;
mod rows;
mod scrub;
mod store;
mod sweep;
mod unit;
mod usage;
mod verify;
mod writer;

pub use artifacts::{NewArtifact, artifacts_dir};
pub use catalogue::QualityChange;
pub use disk::free_bytes;
pub use error::LedgerError;
pub use handle::{Ledger, Pending};
pub use reader::{Counters, LedgerReader, OutboxStatus, ParkedUnit};
pub use reviews::NewReview;
pub use scrub::{Scrub, ScrubPace, ScrubReport};
pub use store::{Meta, database_path};
pub use sweep::{Pace, Sweep, Swept};
pub use unit::{PendingSamples, PendingUnits, SENT_TABLES, SentRows, SentTable, Unit};
pub use usage::{Amount, Class, Planned, StorageStatus};
pub use verify::Proof;
