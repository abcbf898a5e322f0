//! Backup and restore of a device: one file that holds the ledger, its pictures, the configuration and what it names.
//!
//! The file is a tar, so that any machine can look into it:
//!
//! ```text
//! loupe-backup.json        format, device, folders: read before anything is unpacked
//! ledger.db                one state of the ledger, copied while the daemon goes on
//! artifacts/…              every picture that this state names, each checked against the ledger's digest
//! state/…                  whatever else lies in the state folder
//! files/…                  configuration, recipes, banks, indexes, models, by their absolute paths
//! secrets.sealed           files with secrets, only on demand, encrypted with a passphrase
//! manifest.json            every member with its length and SHA-256, in order
//! manifest.sha256          of manifest.json
//! ```
//! Invariants: a backup appears under its name complete and synced, by rename; one that lacks its end or differs in one
//! byte from its manifest is refused; a state folder whose restore was cut off is refused by the daemon; nothing that is
//! there is overwritten or deleted by a restore. Thread: the caller's. Overload: files are streamed; in memory are the
//! list of members and the secrets.

mod archive;
mod check;
mod create;
mod error;
mod inventory;
mod manifest;
mod restore;
mod sealed;

pub use check::{Checked, check};
pub use create::{Created, create};
pub use error::BackupError;
pub use inventory::Plan;
pub use manifest::{Header, Manifest, Member, MemberKind};
pub use restore::{RestoreOptions, RestoreReport, restore};
