//! [`Scrub`]: whether the pictures on disk are those that the ledger names.
//!
//! It looks at each row of `artifacts` (is the file there, inside the folder, a plain file, and what was written?) and at
//! each file below `artifacts/` (does a row name it?). With a [`Ledger`] to write to, a changed file and a file without a
//! row are moved to `quarantine/` below the state folder, and the ledger notes it: nothing is ever deleted, but for a file
//! whose removal by the retention job was cut off. Without one it only looks. A missing file is reported and stays a
//! fault: nothing can bring it back. A symbolic link is never followed.
//! Runs on its caller's thread, who paces it; the daemon may go on meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{Row, params};
use serde::Serialize;
use uuid::Uuid;

use super::LedgerError;
use super::artifacts::{artifacts_dir, remove_file, sync_dir};
use super::handle::Ledger;
use super::reader::LedgerReader;
use super::retention::{PictureKey, Quarantined, Step};
use crate::clock::Clock;
use crate::types::Digest;

/// Rows read at a time.
const ROWS_PER_READ: usize = 200;
/// Faults listed; more are only counted.
const FAULTS_MAX: usize = 100;
/// A younger file without a row may be one whose commit is under way.
const ORPHAN_AGE_MIN: Duration = Duration::from_secs(600);
/// `artifacts/YYYY/MM/DD/file`
const DEPTH_MAX: usize = 4;

/// What a scrub looked at, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubReport {
    pub rows_checked: u64,
    pub files_checked: u64,
    pub bytes_read: u64,
    /// Rows whose file is not there.
    pub missing: u64,
    /// Rows whose file is not what was written.
    pub changed: u64,
    /// Rows that name a place outside the artifacts folder, or one reached through a link.
    pub outside: u64,
    /// Files that no row names.
    pub orphans: u64,
    /// Symbolic links below the artifacts folder.
    pub links: u64,
    /// Files that a cut-off removal had left; removed now.
    pub leftovers_removed: u64,
    /// Files moved to `quarantine/`.
    pub quarantined: u64,
    /// The first hundred faults, in words.
    pub faults: Vec<String>,
    /// The caller asked to stop before everything was looked at.
    pub is_cut_short: bool,
}

impl ScrubReport {
    /// Whether every picture is as it was written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.missing + self.changed + self.outside + self.orphans + self.links == 0
    }

    fn fault(&mut self, words: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(words);
        }
    }
}

/// Called after each file with the bytes read of it; `false` stops the scrub.
pub type ScrubPace<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Compares files with rows.
#[derive(Debug)]
pub struct Scrub {
    reader: LedgerReader,
    ledger: Option<Ledger>,
    clock: Clock,
    report: ScrubReport,
    /// Folders known to be real, below the artifacts folder.
    real_dirs: BTreeMap<PathBuf, bool>,
}

struct PictureRow {
    key: PictureKey,
    relative_path: String,
    size_bytes: i64,
    sha256: Digest,
}

impl Scrub {
    /// Look at the pictures below `state_dir`; with `ledger`, move what is wrong.
    ///
    /// # Errors
    /// When there is no ledger, or it cannot be read.
    pub fn new(state_dir: &Path, ledger: Option<Ledger>, clock: Clock) -> Result<Self, LedgerError> {
        let reader = LedgerReader::open(state_dir)?;
        Ok(Self { reader, ledger, clock, report: ScrubReport::default(), real_dirs: BTreeMap::new() })
    }

    /// # Errors
    /// When the artifacts folder is a link, or the ledger or the folder cannot be read.
    pub fn run(mut self, pace: ScrubPace<'_>) -> Result<ScrubReport, LedgerError> {
        super::artifacts::check_folders(&self.reader.state_dir)?;
        self.rows(pace)?;
        let dir = self.dir();
        self.folder(&dir, 0, pace)?;
        Ok(self.report)
    }

    fn dir(&self) -> PathBuf {
        artifacts_dir(&self.reader.state_dir)
    }

    fn rows(&mut self, pace: ScrubPace<'_>) -> Result<(), LedgerError> {
        let sql = "SELECT inspection_id, id, relative_path, size_bytes, sha256 FROM artifacts
             WHERE (inspection_id, id) > (?1, ?2) ORDER BY inspection_id, id LIMIT ?3";
        let read = |row: &Row<'_>| {
            Ok(PictureRow {
                key: PictureKey { inspection_id: row.get(0)?, id: row.get(1)? },
                relative_path: row.get(2)?,
                size_bytes: row.get(3)?,
                sha256: Digest::from_bytes(row.get(4)?),
            })
        };
        let mut after = PictureKey { inspection_id: [0; 16], id: [0; 16] };
        loop {
            let key = params![after.inspection_id, after.id, ROWS_PER_READ as i64];
            let rows = self.reader.list(sql, key, read)?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.key;
            for row in &rows {
                self.report.rows_checked += 1;
                let bytes = self.row(row)?;
                self.report.bytes_read += bytes;
                if !pace(bytes) {
                    self.report.is_cut_short = true;
                    return Ok(());
                }
            }
        }
    }

    /// Check one row's file; says how many bytes were read.
    fn row(&mut self, row: &PictureRow) -> Result<u64, LedgerError> {
        let relative = Path::new(&row.relative_path);
        let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || !self.is_inside(relative) {
            self.report.outside += 1;
            self.report.fault(format!("a row names {}, which is not inside the artifacts folder", row.relative_path));
            return Ok(0);
        }
        let path = self.dir().join(relative);
        let found = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => Digest::of_file(&path).ok(),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.row_stands(row.key)? {
                    self.report.missing += 1;
                    self.report.fault(format!("{} is missing", path.display()));
                }
                return Ok(0);
            }
            Err(error) => {
                self.report.missing += 1;
                self.report.fault(format!("{} cannot be read: {error}", path.display()));
                return Ok(0);
            }
        };
        if found != Some(row.sha256) && self.row_stands(row.key)? {
            self.report.changed += 1;
            let is = found.map_or("no plain file".to_owned(), |found| found.short());
            self.report.fault(format!("{} has changed: it is {is} instead of {}", path.display(), row.sha256.short()));
            self.quarantine(relative, Some((row.key, row.sha256)), found)?;
        }
        Ok(u64::try_from(row.size_bytes).unwrap_or(0))
    }

    /// The retention job may have taken it out meanwhile.
    fn row_stands(&self, key: PictureKey) -> Result<bool, LedgerError> {
        let sql = "SELECT 1 FROM artifacts WHERE inspection_id = ?1 AND id = ?2";
        Ok(!self.reader.list(sql, params![key.inspection_id, key.id], |_| Ok(()))?.is_empty())
    }

    /// No folder on the way is a link.
    fn is_inside(&mut self, relative: &Path) -> bool {
        let dir = self.dir();
        let mut parents: Vec<&Path> = relative.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        parents.reverse();
        parents.into_iter().all(|parent| {
            *self
                .real_dirs
                .entry(parent.to_owned())
                .or_insert_with(|| fs::symlink_metadata(dir.join(parent)).map_or(true, |found| !found.is_symlink()))
        })
    }

    /// Look at the files of one folder, and at the folders in it.
    fn folder(&mut self, dir: &Path, depth: usize, pace: ScrubPace<'_>) -> Result<(), LedgerError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(LedgerError::io("list", dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(LedgerError::io("list", dir))?;
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_symlink() {
                self.report.links += 1;
                self.report.fault(format!("{} is a symbolic link; nothing below it is used", path.display()));
            } else if kind.is_dir() {
                // Files on their way in; a start after a cut-off run clears them.
                let is_temporary = depth == 0 && entry.file_name() == "tmp";
                if !is_temporary && depth < DEPTH_MAX {
                    self.folder(&path, depth + 1, pace)?;
                }
            } else {
                self.report.files_checked += 1;
                self.file(&path)?;
                self.report.is_cut_short |= !pace(0);
            }
            if self.report.is_cut_short {
                return Ok(());
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<(), LedgerError> {
        let dir = self.dir();
        let Ok(relative) = path.strip_prefix(&dir) else { return Ok(()) };
        let named = relative.to_string_lossy().into_owned();
        let id = path.file_name().and_then(|name| name.to_str()?.get(..36)?.parse::<Uuid>().ok());
        if let Some(id) = id {
            let exists = |sql: &str| -> Result<bool, LedgerError> {
                Ok(!self.reader.list(sql, params![id.as_bytes(), named], |_| Ok(()))?.is_empty())
            };
            if exists("SELECT 1 FROM artifacts WHERE inspection_id = ?1 AND relative_path = ?2")? {
                return Ok(());
            }
            let was_removed = "SELECT 1 FROM gone_artifacts WHERE inspection_id = ?1 AND relative_path = ?2
                 AND reason <> 'quarantined'";
            if exists(was_removed)? {
                if self.ledger.is_some() {
                    remove_file(path);
                    self.report.leftovers_removed += 1;
                }
                return Ok(());
            }
        }
        if self.is_young(path) {
            return Ok(());
        }
        self.report.orphans += 1;
        self.report.fault(format!("{} is named by no row", path.display()));
        self.quarantine(relative, None, None)
    }

    fn is_young(&self, path: &Path) -> bool {
        let modified = fs::metadata(path).and_then(|found| found.modified());
        let Some(since) = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()) else { return false };
        let now = u64::try_from(self.clock.now().as_micros()).unwrap_or(0);
        Duration::from_micros(now).saturating_sub(since) < ORPHAN_AGE_MIN
    }

    /// The ledger first: cut off in between, the file is an orphan, which the next scrub moves.
    fn quarantine(
        &mut self,
        relative: &Path,
        row: Option<(PictureKey, Digest)>,
        found_sha256: Option<Digest>,
    ) -> Result<(), LedgerError> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let file_name = relative.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let quarantine_name = format!("{}-{file_name}", self.clock.now().as_micros());
        let dir = self.reader.state_dir.join("quarantine");
        fs::create_dir_all(&dir).map_err(LedgerError::io("create", &dir))?;
        ledger.retain(Step::Quarantine(Quarantined {
            relative_path: relative.to_string_lossy().into_owned(),
            quarantine_name: quarantine_name.clone(),
            key: row.map(|(key, _)| key),
            expected_sha256: row.map(|(_, sha256)| sha256),
            found_sha256,
        }))?;
        let from = self.dir().join(relative);
        let to = dir.join(quarantine_name);
        fs::rename(&from, &to).map_err(LedgerError::io("move into", &to))?;
        sync_dir(&dir)?;
        if let Some(parent) = from.parent() {
            sync_dir(parent)?;
        }
        self.report.quarantined += 1;
        Ok(())
    }
}
