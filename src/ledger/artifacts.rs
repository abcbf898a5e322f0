//! Artifact files: durable before the rows that name them.
//!
//! A file is written below `artifacts/tmp/`, fsynced, renamed into `artifacts/YYYY/MM/DD/` (the device's days) and its
//! directory fsynced; only then may the transaction that names it begin. So a row never names a missing file, and what
//! a cut-off run leaves are files without rows, which the next start removes. Runs on the ledger's writer thread; the
//! files of a group are fsynced side by side, since the file system then commits its journal once for all of them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tracing::warn;

use super::LedgerError;
use crate::failpoint;
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

/// Files fsynced at once; they wait for the disk, not for a core.
const SYNC_THREADS: usize = 16;

/// The folder that [`ArtifactRef::relative_path`] starts from.
#[must_use]
pub fn artifacts_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("artifacts")
}

fn temporary_dir(state_dir: &Path) -> PathBuf {
    artifacts_dir(state_dir).join("tmp")
}

/// Refuse folders that are links.
pub(super) fn check_folders(state_dir: &Path) -> Result<(), LedgerError> {
    check_not_linked(&artifacts_dir(state_dir))?;
    check_not_linked(&temporary_dir(state_dir))
}

fn check_not_linked(dir: &Path) -> Result<(), LedgerError> {
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_symlink() => Err(LedgerError::Linked { path: dir.to_owned() }),
        _ => Ok(()),
    }
}

/// Make the folders.
pub(super) fn prepare(state_dir: &Path) -> Result<(), LedgerError> {
    check_folders(state_dir)?;
    create_durably(&temporary_dir(state_dir))
}

/// `YYYY/MM/DD` of a time, in the device's time zone.
fn day_dir(captured_at: Timestamp) -> String {
    let day = captured_at.local_day();
    match (day.get(..4), day.get(4..6), day.get(6..)) {
        (Some(year), Some(month), Some(date)) if day.len() == 8 => format!("{year}/{month}/{date}"),
        _ => format!("undated/{day}"),
    }
}

/// A group's files on their way: written one by one, then made durable and published together.
#[derive(Debug)]
pub(super) struct ArtifactBatch<'a> {
    state_dir: &'a Path,
    dirs: BTreeSet<PathBuf>,
    files: Vec<Written>,
}

/// A file under its temporary name, its bytes not yet known to be on disk.
#[derive(Debug)]
struct Written {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
}

impl<'a> ArtifactBatch<'a> {
    pub fn new(state_dir: &'a Path) -> Self {
        Self { state_dir, dirs: BTreeSet::new(), files: Vec::new() }
    }

    /// Write one inspection's files under temporary names; on an error none of them stays.
    pub fn add(&mut self, inspection: &Inspection, artifacts: &[NewArtifact]) -> Result<Vec<ArtifactRef>, LedgerError> {
        let first = self.files.len();
        let mut references = Vec::with_capacity(artifacts.len());
        for (ordinal, artifact) in artifacts.iter().enumerate() {
            match self.write(inspection, ordinal, artifact) {
                Ok(reference) => references.push(reference),
                Err(error) => {
                    self.files.drain(first..).for_each(|written| remove_file(&written.temporary));
                    return Err(error);
                }
            }
        }
        Ok(references)
    }

    fn write(
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
            let artifacts = artifacts_dir(self.state_dir);
            dir.ancestors().take_while(|above| above.starts_with(&artifacts)).try_for_each(check_not_linked)?;
            create_durably(&dir)?;
            self.dirs.insert(dir.clone());
        }
        let temporary = temporary_dir(self.state_dir).join(&name);
        let mut file = File::create(&temporary).map_err(LedgerError::io("create", &temporary))?;
        if let Err(error) = failpoint::io("artifact.write").and_then(|()| file.write_all(&artifact.bytes)) {
            remove_file(&temporary);
            return Err(LedgerError::io("write", &temporary)(error));
        }
        failpoint::hit("artifact.written");
        self.files.push(Written { file, temporary, target: dir.join(&name) });
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

    /// Make the bytes durable, give the files their names, and make the names durable; on an error no file stays.
    pub fn publish(self) -> Result<(), LedgerError> {
        let outcome = self.publish_all();
        if outcome.is_err() {
            for written in &self.files {
                remove_file(&written.temporary);
                remove_file(&written.target);
            }
        }
        outcome
    }

    fn publish_all(&self) -> Result<(), LedgerError> {
        side_by_side(&self.files, |written| {
            failpoint::io("artifact.sync")
                .and_then(|()| written.file.sync_all())
                .map_err(LedgerError::io("sync", &written.temporary))
        })?;
        for written in &self.files {
            let Written { temporary, target, .. } = written;
            failpoint::io("artifact.rename")
                .and_then(|()| fs::rename(temporary, target))
                .map_err(LedgerError::io("rename into", target))?;
            failpoint::hit("artifact.renamed");
        }
        self.dirs.iter().try_for_each(|dir| sync_dir(dir))
    }
}

/// Do `work` for each of `things`, on up to [`SYNC_THREADS`] threads at once; the first error of any.
fn side_by_side<T: Sync>(things: &[T], work: impl Fn(&T) -> Result<(), LedgerError> + Sync) -> Result<(), LedgerError> {
    let [first, rest @ ..] = things else { return Ok(()) };
    if rest.is_empty() {
        return work(first);
    }
    let share = things.len().div_ceil(SYNC_THREADS);
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            things.chunks(share).map(|chunk| scope.spawn(move || chunk.iter().try_for_each(work))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(LedgerError::Stopped)))
    })
}

/// `create_dir_all` whose new names survive a power cut.
pub(super) fn create_durably(dir: &Path) -> Result<(), LedgerError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        create_durably(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made.map_err(LedgerError::io("create", dir))?,
        }
        failpoint::hit("artifact.dir_made");
        sync_dir(parent)?;
    }
    Ok(())
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    failpoint::io("artifact.dir_sync").and_then(|()| File::open(dir)?.sync_all()).map_err(LedgerError::io("sync", dir))
}

/// Remove the files of an inspection that was not committed; the next start finds what stays.
pub(super) fn remove(state_dir: &Path, artifacts: &[ArtifactRef]) {
    let dir = artifacts_dir(state_dir);
    for artifact in artifacts {
        remove_file(&dir.join(&artifact.relative_path));
    }
}

/// Remove a file that no row names; gone already is as good.
pub(super) fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "a file that no row names stays behind");
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
        // A run killed between making a folder and syncing its parent left a name that a power cut could still take.
        dir.ancestors().take_while(|above| above.starts_with(state_dir)).try_for_each(sync_dir)?;
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
