//! What can go wrong with a backup, in words that say what to do.

use std::path::{Path, PathBuf};

use crate::ledger::LedgerError;

/// Why a backup was not made, is not whole or was not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot {action} {}: {source}{}", path.display(), hint(.source))]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} is there already; choose another name, or move it away", path.display())]
    Exists { path: PathBuf },
    #[error("another backup is writing {}; wait for it", path.display())]
    InUse { path: PathBuf },
    #[error("{} needs {needed} bytes and has {free} free; make room, or choose another disk", folder.display())]
    NoSpace { folder: PathBuf, needed: u64, free: u64 },
    #[error("{} is not a loupe backup: {detail}", path.display())]
    Foreign { path: PathBuf, detail: String },
    #[error(
        "{} has format {found}, this program reads up to {known}; restore it with the loupe that made it, or a newer one",
        path.display()
    )]
    Newer { path: PathBuf, found: String, known: &'static str },
    #[error("{} is damaged at byte {offset}: {what}; use another backup", path.display())]
    Damaged { path: PathBuf, offset: u64, what: String },
    #[error("{} changed while it was copied; run the backup again", path.display())]
    Changed { path: PathBuf },
    #[error(
        "{} is not empty (it holds {example}); name an empty state folder, or say --force to move what is there aside",
        dir.display()
    )]
    NotEmpty { dir: PathBuf, example: String },
    #[error(
        "{count} files are there already and differ, the first is {}; say --force to keep them beside under another name",
        first.display()
    )]
    Differs { first: PathBuf, count: usize },
    #[error("the secrets of {} cannot be opened: the passphrase is wrong, or they were changed", path.display())]
    Passphrase { path: PathBuf },
    #[error("{} holds no secrets: it was made without --with-secrets", path.display())]
    NoSecrets { path: PathBuf },
    #[error("the passphrase is empty or shorter than {min} characters; choose a longer one")]
    WeakPassphrase { min: usize },
    #[error("the secrets cannot be encrypted: {detail}")]
    Sealing { detail: String },
    #[error("{}: the DSN in the file cannot be left out of the backup; move it into a file and name that by uplink.dsn_file", path.display())]
    SecretInConfig { path: PathBuf },
}

impl BackupError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path: path.clone(), source }
    }

    /// Whether trying again cannot help: a newer program is needed, or the state folder needs an operator.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Newer { .. } => true,
            Self::Ledger(error) => error.needs_operator(),
            _ => false,
        }
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "; make room, or choose another disk",
        std::io::ErrorKind::PermissionDenied => "; run it as root or as the daemon's user",
        _ => "",
    }
}
