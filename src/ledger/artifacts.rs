//! Artifact files: durable before the rows that name them.
//!
//! A file is written below `artifacts/tmp/`, fsynced, renamed into `artifacts/YYYY/MM/DD/` (the device's days) and its
//! directory fsynced; only then may the transaction that names it begin. So a row never names a missing file, and what
//! a cut-off run leaves are files without rows, which the next start removes. Runs on the ledger's writer thread.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tracing::warn;

use super::LedgerError;
use crate::types::{ArtifactKind, ArtifactRef, Digest, Inspection, Timestamp};

/// A picture to keep beside an inspection, not yet on disk.
#[derive(Clone)]
pub struct NewArtifact {
    pub kind: ArtifactKind,
    /// MIME type, e.g. `image/jpeg`.
    pub content_type: String,
    pub bytes: Vec<u8>,
    pub width_px: u32,
    pub height_px: u32,
    /// Of the file's name, without the dot; letters and digits.
    pub extension: String,
}

impl std::fmt::Debug for NewArtifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewArtifact")
            .field("kind", &self.kind)
            .field("size_bytes", &self.bytes.len())
            .field("extension", &self.extension)
            .finish_non_exhaustive()
    }
}

/// Days whose files are compared with the rows after a cut-off run: a run that crosses midnight touches two.
const DAYS_CHECKED: usize = 2;

/// The folder that [`ArtifactRef::relative_path`] starts from.
#[must_use]
pub fn artifacts_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("artifacts")
}

fn temporary_dir(state_dir: &Path) -> PathBuf {
    artifacts_dir(state_dir).join("tmp")
}

/// Make the folders.
pub(super) fn prepare(state_dir: &Path) -> Result<(), LedgerError> {
    let dir = temporary_dir(state_dir);
    fs::create_dir_all(&dir).map_err(LedgerError::io("create", &dir))
}

/// `YYYY/MM/DD` of a time, in the device's time zone.
fn day_dir(captured_at: Timestamp) -> String {
    let day = captured_at.local_day();
    match (day.get(..4), day.get(4..6), day.get(6..)) {
        (Some(year), Some(month), Some(date)) if day.len() == 8 => format!("{year}/{month}/{date}"),
        _ => format!("undated/{day}"),
    }
}

/// A group's files on their way: written, then published together, so that a directory is fsynced once a group.
#[derive(Debug)]
pub(super) struct ArtifactBatch<'a> {
    state_dir: &'a Path,
    dirs: BTreeSet<PathBuf>,
}

impl<'a> ArtifactBatch<'a> {
    pub fn new(state_dir: &'a Path) -> Self {
        Self { state_dir, dirs: BTreeSet::new() }
    }

    /// Write one inspection's files and rename them into place; on an error none of them stays.
    pub fn add(&mut self, inspection: &Inspection, artifacts: &[NewArtifact]) -> Result<Vec<ArtifactRef>, LedgerError> {
        let mut placed: Vec<ArtifactRef> = Vec::with_capacity(artifacts.len());
        for (ordinal, artifact) in artifacts.iter().enumerate() {
            match self.place(inspection, ordinal, artifact) {
                Ok(reference) => placed.push(reference),
                Err(error) => {
                    remove(self.state_dir, &placed);
                    return Err(error);
                }
            }
        }
        Ok(placed)
    }

    fn place(
        &mut self,
        inspection: &Inspection,
        ordinal: usize,
        artifact: &NewArtifact,
    ) -> Result<ArtifactRef, LedgerError> {
        let extension: String = artifact.extension.chars().filter(char::is_ascii_alphanumeric).collect();
        let name = format!("{}-{ordinal}-{}.{extension}", inspection.id, artifact.kind.as_str());
        let day = day_dir(inspection.captured_at);
        let dir = artifacts_dir(self.state_dir).join(&day);
        if !self.dirs.contains(&dir) {
            create_durably(&dir)?;
            self.dirs.insert(dir.clone());
        }
        let temporary = temporary_dir(self.state_dir).join(&name);
        let written = write_durably(&temporary, &artifact.bytes).and_then(|()| {
            let target = dir.join(&name);
            fs::rename(&temporary, &target).map_err(LedgerError::io("rename into", &target))
        });
        if let Err(error) = written {
            remove_file(&temporary);
            return Err(error);
        }
        Ok(ArtifactRef {
            kind: artifact.kind,
            relative_path: format!("{day}/{name}"),
            content_type: artifact.content_type.clone(),
            size_bytes: artifact.bytes.len() as u64,
            sha256: Digest::of(&artifact.bytes),
            width_px: artifact.width_px,
            height_px: artifact.height_px,
        })
    }

    /// Make the renames durable.
    pub fn sync(&self) -> Result<(), LedgerError> {
        self.dirs.iter().try_for_each(|dir| sync_dir(dir))
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let mut file = File::create(path).map_err(LedgerError::io("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(LedgerError::io("write", path))
}

/// `create_dir_all` whose new names survive a power cut.
fn create_durably(dir: &Path) -> Result<(), LedgerError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_durably(parent)?;
        fs::create_dir(dir).map_err(LedgerError::io("create", dir))?;
        sync_dir(parent)?;
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(LedgerError::io("sync", dir))
}

/// Remove the files of an inspection that was not committed; the next start finds what stays.
pub(super) fn remove(state_dir: &Path, artifacts: &[ArtifactRef]) {
    let dir = artifacts_dir(state_dir);
    for artifact in artifacts {
        remove_file(&dir.join(&artifact.relative_path));
    }
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "a file of an uncommitted inspection stays behind");
        }
        _ => {}
    }
}

/// After a cut-off run: remove temporary files, and files of the newest days that no row names. Returns how many.
pub(super) fn remove_leftovers(connection: &Connection, state_dir: &Path) -> Result<usize, LedgerError> {
    let mut removed = 0;
    for name in names(&temporary_dir(state_dir))? {
        remove_file(&temporary_dir(state_dir).join(name));
        removed += 1;
    }
    for day in newest_days(&artifacts_dir(state_dir))? {
        let dir = artifacts_dir(state_dir).join(&day);
        let known =
            paths_of_day(connection, &day).map_err(LedgerError::sqlite(&super::store::database_path(state_dir)))?;
        for name in names(&dir)? {
            if !known.contains(&format!("{day}/{name}")) {
                remove_file(&dir.join(name));
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn paths_of_day(connection: &Connection, day: &str) -> rusqlite::Result<BTreeSet<String>> {
    connection
        .prepare("SELECT relative_path FROM artifacts WHERE relative_path GLOB ?1")?
        .query_map([format!("{day}/*")], |row| row.get(0))?
        .collect()
}

/// `YYYY/MM/DD` of the newest days with files, newest first.
fn newest_days(dir: &Path) -> Result<Vec<String>, LedgerError> {
    let numbered = |dir: &Path| -> Result<Vec<String>, LedgerError> {
        let mut found = names(dir)?;
        found.retain(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    };
    let mut days = Vec::new();
    for year in numbered(dir)? {
        for month in numbered(&dir.join(&year))? {
            for date in numbered(&dir.join(&year).join(&month))? {
                days.push(format!("{year}/{month}/{date}"));
                if days.len() == DAYS_CHECKED {
                    return Ok(days);
                }
            }
        }
    }
    Ok(days)
}

fn names(dir: &Path) -> Result<Vec<String>, LedgerError> {
    let entries = fs::read_dir(dir).map_err(LedgerError::io("list", dir))?;
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(LedgerError::io("list", dir))
}
