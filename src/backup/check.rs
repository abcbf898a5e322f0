//! Proving a backup: every byte against the manifest, the ledger against itself, the pictures against the ledger.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::BackupError;
use super::archive::{self, LEDGER_NAME, SECRETS_NAME};
use super::manifest::{Manifest, MemberKind};
use super::sealed;
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerReader, Proof, database_path};
use crate::types::Digest;
use crate::uplink::Secret;

/// A secret's file is at most 1 MiB; hexadecimal twice, and some.
const SEALED_BYTES_MAX: u64 = 64 << 20;

/// What a backup holds, and whether its ledger adds up.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    pub manifest: Manifest,
    /// Of the manifest: names this backup.
    pub sha256: Digest,
    /// Of its ledger, with its pictures.
    pub proof: Proof,
    /// Whether the passphrase opened the secrets; `None`: not tried, or there are none.
    pub opens_secrets: Option<bool>,
}

/// Read all of `file` and prove it; `scratch` is a folder with room for the ledger. `progress` hears bytes done and in
/// all.
///
/// # Errors
/// When the file is damaged, foreign or newer, the passphrase is wrong, or its ledger cannot be opened.
pub fn check(
    file: &Path,
    scratch: &Path,
    passphrase: Option<&Secret>,
    clock: &Clock,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Checked, BackupError> {
    let total = fs::metadata(file).map_err(BackupError::io("open", file))?.len();
    archive::read_header(file)?;
    let folder = ScratchFolder::make(scratch)?;
    let mut done = 0;
    let mut sealed = Vec::new();
    let (manifest, sha256) = archive::read(
        file,
        &mut |name, _, content| match name {
            LEDGER_NAME => archive::unpack(file, content, &database_path(&folder.0), 0o600),
            SECRETS_NAME => {
                use std::io::Read as _;
                let read = content.take(SEALED_BYTES_MAX).read_to_end(&mut sealed);
                read.map(drop).map_err(BackupError::io("read", file))
            }
            _ => Ok(()),
        },
        &mut |bytes| {
            done += bytes;
            progress(done, total);
        },
    )?;
    let opens_secrets = match passphrase {
        None => None,
        Some(_) if sealed.is_empty() => return Err(BackupError::NoSecrets { path: file.to_owned() }),
        Some(phrase) => Some(sealed::open(&sealed, phrase.expose()).is_some()),
    };
    if opens_secrets == Some(false) {
        return Err(BackupError::Passphrase { path: file.to_owned() });
    }
    let proof = prove(&folder.0, &manifest, clock)?;
    Ok(Checked { manifest, sha256, proof, opens_secrets })
}

/// Open the copy of the ledger as a start does (migrated, checked page by page), and prove it with the pictures.
fn prove(folder: &Path, manifest: &Manifest, clock: &Clock) -> Result<Proof, BackupError> {
    Ledger::open(folder, clock.clone())?.close()?;
    let pictures: BTreeMap<&str, Digest> = manifest
        .members
        .iter()
        .filter(|member| member.kind == MemberKind::Picture)
        .filter_map(|member| Some((member.name.strip_prefix("artifacts/")?, member.sha256)))
        .collect();
    let digest_of = |relative_path: &str| {
        let missing = || std::io::Error::new(ErrorKind::NotFound, "it is not in the backup");
        pictures.get(relative_path).copied().ok_or_else(missing)
    };
    Ok(LedgerReader::open(folder)?.verify_with(digest_of, |_, _| ())?)
}

/// A folder of our own, gone with its owner.
pub(super) struct ScratchFolder(pub PathBuf);

impl ScratchFolder {
    pub fn make(parent: &Path) -> Result<Self, BackupError> {
        let path = parent.join(format!(".loupe-backup-check-{}", std::process::id()));
        let on_io = BackupError::io("create", &path);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(on_io(error)),
            _ => fs::create_dir(&path).map_err(on_io)?,
        }
        Ok(Self(path))
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a scratch folder stays behind");
        }
    }
}
