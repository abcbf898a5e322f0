//! The ledger: what this device decided, on disk before anyone hears of it.
//!
//! SQLite in WAL mode with `synchronous=FULL`, one writer thread ("loupe-ledger") for all callers, group commit.
//! Invariants: a commit that returned survives a power cut, its artifacts too; committed = delivered + pending
//! (+ what a repair set aside);
//! captured = committed + refused; codes are never reused. Overload: the queue is bounded and callers wait; nothing is
//! dropped. When the disk refuses, the commit is an error, the caller holds, and later commits go on.
//!
//! This is the only room that names SQLite. The uplink asks it for units to send and tells it what arrived.

mod artifacts;
mod backup;
mod balance;
mod cache;
mod catalogue;
mod checkpoint;
mod commit_times;
mod config_history;
mod delivered;
mod desired;
mod disk;
mod error;
mod export;
mod feedback;
mod fits;
mod gone;
mod handle;
mod holds;
mod kits;
mod lines;
mod log_check;
mod operators;
mod orders;
mod pack;
mod quarantine;
mod reader;
mod receipt;
mod refusals;
mod repair;
mod reports;
mod retention;
mod reviews;
mod rows;
mod samples;
mod scrub;
mod sent;
mod store;
mod sweep;
mod unit;
mod usage;
mod verify;
mod watched;
mod writer;

pub use artifacts::{NewArtifact, artifacts_dir};
pub use backup::{LedgerCopy, NamedFile, Restored, begin_epoch, copy_online, identity_at, named_files, note_shed};
pub use cache::{
    CacheState, DesiredRecipe, ProvisionNote, Provisioning, RecipeOrigin, SetAside, StationRecipe, place_recipe,
    placed_recipe, placed_recipes, prune_recipes, recipe_path,
};
pub use catalogue::QualityChange;
pub use desired::{CENTRAL_FORMAT, CentralPage, CentralRecipe, CentralRow, CentralTable, Intake};
pub use disk::free_bytes;
pub use error::LedgerError;
pub use export::{Exported, ParcelHeader, ParcelRecord, read_parcel};
pub use fits::{CentralFit, FitState, generation_name};
pub use gone::{GonePicture, GoneReason};
pub use handle::{Ledger, Pending};
pub use orders::{check_feedback_order, check_person_order};
pub use pack::{Packed, PackedUnit, Span};
pub use quarantine::{QuarantineKind, QuarantinedUnit};
pub use reader::{Counters, LedgerReader, OutboxStatus, ParkedUnit};
pub use receipt::{AcknowledgedBatch, Settled, write_receipt};
pub use repair::{Correction, Listed, Repair, repair};
pub use reports::ProvisionReport;
pub use reviews::NewReview;
pub use samples::SampleKind;
pub use scrub::{Scrub, ScrubPace, ScrubReport};
pub use sent::{Cell, Kind, RowSink, SENT_TABLES, SentTable};
pub use store::{Meta, RESTORE_MARKER, database_path, hold_folder, schema_version};
pub use sweep::{Pace, Sweep, Swept};
pub use unit::{PendingUnits, SentRows, Unit};
pub use usage::{Amount, Class, Planned, StorageStatus};
pub use verify::Proof;
