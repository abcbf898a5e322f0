//! What can go wrong with the ledger, in words that say what to do.

use std::path::{Path, PathBuf};

/// Why the ledger refused. A commit that ends so is not on disk: the station must hold.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{} is in use by another loupe process ({holder}); stop that one first", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("there is no ledger at {}; run `loupe run` or `loupe inspect` with this state folder first", path.display())]
    Missing { path: PathBuf },
    #[error("{} is not a Loupe ledger (application id {found:#010x}); move the file away", path.display())]
    Foreign { path: PathBuf, found: i32 },
    #[error(
        "the ledger {} is damaged: {finding}; keep a copy of the whole folder, save what can still be read with \
         `loupe outbox export`, then restore the last backup",
        path.display()
    )]
    Corrupt { path: PathBuf, finding: String },
    #[error("the ledger {} could not be brought to this version: {source}", path.display())]
    Migrate { path: PathBuf, source: Box<refinery::Error> },
    #[error(
        "the ledger {} has schema {found} and this program knows {known}: it was written by a newer version of Loupe; \
         install that version again, or use another state folder",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "a restore into {} was cut off and left {}; run the same `loupe backup restore` again",
        state_dir.display(), marker.display()
    )]
    HalfRestored { state_dir: PathBuf, marker: PathBuf },
    #[error("{} {detail}", path.display())]
    Parcel { path: PathBuf, detail: String },
    #[error(
        "the ledger {} has schema {found} and this program reads {known}: start `loupe run` (or any command that \
         writes) once, which brings it up to date",
        path.display()
    )]
    Older { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{} is a symbolic link: pictures are written into real folders only, so that nobody can lead them elsewhere; \
         mount the disk there instead",
        path.display()
    )]
    Linked { path: PathBuf },
    #[error("cannot {action} {}: {source}; check the disk and the folder's owner", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the ledger {} could not be read or written: {source}; check free space and the disk", path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error("the ledger refuses {what}: {source}")]
    Refused { what: String, source: rusqlite::Error },
    #[error("the provenance {sha256} of {what} is not in the ledger; register it before the first commit")]
    UnknownProvenance { what: String, sha256: String },
    #[error("the ledger could not commit the group this belongs to: {reason}; check free space and the disk")]
    GroupFailed { reason: String },
    #[error(
        "only {} MiB are free below {}, less than the {} MiB of `storage.free_critical_mb`: nothing is committed until \
         there is more; free some space",
        free_bytes >> 20, path.display(), critical_bytes >> 20
    )]
    DiskFull { path: PathBuf, free_bytes: u64, critical_bytes: u64 },
    #[error("the ledger's writer has stopped; nothing more can be committed")]
    Stopped,
    #[error("a row of {table} cannot be read back: {detail}")]
    Unreadable { table: &'static str, detail: String },
    #[error("this ledger reports to site {bound}, not to {asked}; use another state folder for another site")]
    OtherSite { bound: uuid::Uuid, asked: uuid::Uuid },
}

impl LedgerError {
    pub(super) fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| {
            if Self::is_damage(&source) {
                Self::Corrupt { path: path.to_owned(), finding: source.to_string() }
            } else {
                Self::Sqlite { path: path.to_owned(), source }
            }
        }
    }

    /// Whether SQLite says that the file itself is damaged.
    pub(super) fn is_damage(source: &rusqlite::Error) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        matches!(source.sqlite_error_code(), Some(NotADatabase | DatabaseCorrupt))
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether starting again cannot help: the state folder is another program's, damaged, too new or taken.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::Locked { .. }
                | Self::Foreign { .. }
                | Self::Corrupt { .. }
                | Self::Newer { .. }
                | Self::HalfRestored { .. }
                | Self::Migrate { .. }
                | Self::OtherSite { .. }
                | Self::Linked { .. }
        )
    }

    /// Whether the row itself is at fault, not the disk: the ledger goes on without it.
    #[must_use]
    pub fn is_about_the_row(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::UnknownProvenance { .. })
    }
}
