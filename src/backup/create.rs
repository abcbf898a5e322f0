//! Making a backup while the daemon goes on.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::archive::{ArchiveWriter, HEADER_NAME, LEDGER_NAME, SECRETS_NAME, beside};
use super::inventory::Plan;
use super::manifest::{FORMAT, Header, Manifest, MemberKind};
use super::sealed::{self, SecretFile};
use super::{BackupError, inventory};
use crate::clock::Clock;
use crate::failpoint;
use crate::ledger::{self, NamedFile, artifacts_dir};
use crate::types::Digest;
use crate::uplink::Secret;

/// What tar adds to a file: its header, and half a block of padding.
const OVERHEAD_BYTES: u64 = 768;
/// A file with secrets holds a line, not a disk image.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// What was backed up.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Of the manifest: names this backup.
    pub sha256: Digest,
    pub ledger_bytes: u64,
    pub picture_count: u64,
    pub picture_bytes: u64,
    /// Files of the configuration and of the state folder.
    pub file_count: u64,
    /// Pictures that the ledger names and that are gone or changed: everything else is in the backup.
    pub pictures_missing: Vec<String>,
    /// Pictures that retention took while they were copied: the backup's ledger says so.
    pub pictures_shed: usize,
    /// Files with secrets that are not in it.
    pub secrets_left_out: Vec<PathBuf>,
    pub secrets_sealed: Vec<PathBuf>,
    pub is_config_redacted: bool,
}

/// Back up what `plan` says into `out`; with a passphrase the secrets too. `progress` hears bytes done and in all.
///
/// # Errors
/// When `out` is there, the disk is too small or refuses, or something cannot be read. Nothing is left behind then.
pub fn create(
    plan: &Plan,
    out: &Path,
    passphrase: Option<&Secret>,
    clock: &Clock,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Created, BackupError> {
    let out = &inventory::absolute(out)?;
    if passphrase.is_some_and(|phrase| phrase.expose().chars().count() < sealed::PASSPHRASE_CHARS_MIN) {
        return Err(BackupError::WeakPassphrase { min: sealed::PASSPHRASE_CHARS_MIN });
    }
    let created_at = clock.now();
    let mut writer = ArchiveWriter::create(out)?;
    let copy = Scratch(beside(out, ".ledger.partial"));
    copy.remove();
    let ledger_now = fs::metadata(ledger::database_path(&plan.state_dir)).map_or(0, |metadata| metadata.len());
    need_space(out, ledger_now)?;
    let taken = ledger::copy_online(&plan.state_dir, &copy.0, &mut *progress)?;
    failpoint::hit("backup.ledger.copied");
    let pictures = ledger::named_files(&copy.0)?;
    let others = plan.other_state()?;

    let total = taken.size_bytes
        + pictures.iter().map(|picture| picture.size_bytes).sum::<u64>()
        + plan.files.iter().chain(&others).map(|path| fs::metadata(path).map_or(0, |file| file.len())).sum::<u64>();
    let members = (pictures.len() + plan.files.len() + others.len()) as u64;
    need_space(out, total + members * OVERHEAD_BYTES)?;
    let mut done = 0;
    let mut heard = |bytes: u64| {
        done += bytes;
        progress(done.min(total), total);
    };

    let header = Header {
        format: FORMAT.to_owned(),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at,
        device_id: taken.meta.device_id,
        site_id: taken.meta.site_id,
        epoch: taken.meta.epoch,
        ledger_schema: ledger::schema_version(),
        state_dir: plan.state_dir.clone(),
        config: plan.config.clone(),
    };
    let text = serde_json::to_vec_pretty(&header).map_err(|error| BackupError::io("write", out)(error.into()))?;
    writer.add_bytes(HEADER_NAME, MemberKind::Header, 0o600, &text)?;
    let absent = add_pictures(&mut writer, &plan.state_dir, &pictures, &mut heard)?;
    // The ledger after its pictures: what was shed while they were copied is gone in the copy, too.
    let absent_count = absent.len();
    let pictures_missing = ledger::note_shed(&plan.state_dir, &copy.0, absent)?;
    let pictures_shed = absent_count - pictures_missing.len();
    writer.add_file(LEDGER_NAME, MemberKind::Ledger, &copy.0, &mut heard)?;
    failpoint::hit("backup.ledger.added");
    copy.remove();
    for path in &others {
        let below = path.strip_prefix(&plan.state_dir).unwrap_or(path);
        writer.add_file(&format!("state/{}", below.display()), MemberKind::State, path, &mut heard)?;
    }
    for path in plan.files.iter().filter(|path| !plan.secrets.contains(path)) {
        writer.add_file(&name_of(path), MemberKind::File, path, &mut heard)?;
    }
    if let (Some(config), Some(text)) = (&plan.config, &plan.redacted_config) {
        writer.add_bytes(&name_of(config), MemberKind::File, 0o600, text.as_bytes())?;
    }
    let sealed = add_secrets(&mut writer, plan, passphrase)?;
    let manifest = Manifest {
        header,
        members: std::mem::take(&mut writer.members),
        pictures_missing,
        secrets_left_out: if sealed { Vec::new() } else { plan.secrets.clone() },
        secrets_sealed: if sealed { plan.secrets.clone() } else { Vec::new() },
        is_config_redacted: plan.redacted_config.is_some(),
    };
    let (sha256, size_bytes) = writer.finish(&manifest)?;
    Ok(Created { pictures_shed, ..report(out, manifest, sha256, size_bytes) })
}

fn report(out: &Path, manifest: Manifest, sha256: Digest, size_bytes: u64) -> Created {
    let (picture_count, picture_bytes) = manifest.count(MemberKind::Picture);
    Created {
        path: out.to_owned(),
        size_bytes,
        sha256,
        ledger_bytes: manifest.count(MemberKind::Ledger).1,
        picture_count,
        picture_bytes,
        file_count: manifest.count(MemberKind::File).0 + manifest.count(MemberKind::State).0,
        pictures_missing: manifest.pictures_missing,
        pictures_shed: 0,
        secrets_left_out: manifest.secrets_left_out,
        secrets_sealed: manifest.secrets_sealed,
        is_config_redacted: manifest.is_config_redacted,
    }
}

/// Every picture that is still there; answers with the paths of those that are not, or not what the ledger says.
fn add_pictures(
    writer: &mut ArchiveWriter,
    state_dir: &Path,
    pictures: &[NamedFile],
    heard: &mut dyn FnMut(u64),
) -> Result<Vec<String>, BackupError> {
    let folder = artifacts_dir(state_dir);
    let mut missing = Vec::new();
    for picture in pictures {
        let path = folder.join(&picture.relative_path);
        failpoint::hit("backup.picture.next");
        let name = format!("artifacts/{}", picture.relative_path);
        match writer.add_file(&name, MemberKind::Picture, &path, heard) {
            Ok(sha256) if sha256 == picture.sha256 => {}
            Ok(_) => missing.push(picture.relative_path.clone()),
            // Retention may take one at any moment; once it is open its bytes stay.
            Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                missing.push(picture.relative_path.clone());
                heard(picture.size_bytes);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// Whether there were secrets to seal, and a passphrase.
fn add_secrets(writer: &mut ArchiveWriter, plan: &Plan, passphrase: Option<&Secret>) -> Result<bool, BackupError> {
    let Some(passphrase) = passphrase.filter(|_| !plan.secrets.is_empty()) else { return Ok(false) };
    let mut files = Vec::with_capacity(plan.secrets.len());
    for path in &plan.secrets {
        let on_io = BackupError::io("read", path);
        let metadata = fs::metadata(path).map_err(&on_io)?;
        if metadata.len() > SECRET_BYTES_MAX {
            return Err(on_io(std::io::Error::other(format!(
                "a file with a secret is at most {SECRET_BYTES_MAX} bytes"
            ))));
        }
        let bytes = fs::read(path).map_err(&on_io)?;
        files.push(SecretFile::new(path.clone(), metadata.mode() & 0o777, &bytes));
    }
    let sealed = sealed::seal(&files, passphrase.expose()).map_err(|detail| BackupError::Sealing { detail })?;
    writer.add_bytes(SECRETS_NAME, MemberKind::Secrets, 0o600, &sealed)?;
    Ok(true)
}

/// Name in the tar of a file with an absolute path.
fn name_of(path: &Path) -> String {
    format!("files{}", path.display())
}

fn need_space(out: &Path, needed: u64) -> Result<(), BackupError> {
    let folder = out.parent().unwrap_or(Path::new("/"));
    let free = ledger::free_bytes(folder).map_err(BackupError::io("look at", folder))?;
    if free < needed {
        return Err(BackupError::NoSpace { folder: folder.to_owned(), needed, free });
    }
    Ok(())
}

/// A file that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn remove(&self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            drop(fs::remove_file(beside(&self.0, suffix)));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}
