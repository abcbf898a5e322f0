//! Copies of the ledger for backups, and the new epoch that a restored copy begins.
//!
//! A copy is one state of the ledger, taken by SQLite's backup interface from a read transaction while the daemon goes
//! on. Invariant: a restored ledger never gives a code or an (epoch, sequence number) again that the device may have
//! given after the backup was made, also where one backup is restored twice.

use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use uuid::Uuid;

use super::LedgerError;
use super::store::{self, Meta};
use crate::clock::Clock;
use crate::types::{Digest, Timestamp};

/// Pages copied between two words about the progress: 4 MiB.
const PAGES_A_STEP: i32 = 512;
/// 2026-01-01 00:00:00 UTC: epochs of restored ledgers count seconds from here, so that two restores of one backup
/// differ. 31 bits last until 2094.
const EPOCH_ORIGIN_US: i64 = 1_767_225_600_000_000;
/// More inspections than a device can commit in a second.
const CODES_A_SECOND_MAX: i64 = 1_000;

/// A copy of a ledger in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerCopy {
    pub meta: Meta,
    pub size_bytes: u64,
}

/// A picture that a ledger names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// Below `artifacts/`.
    pub relative_path: String,
    pub size_bytes: u64,
    pub sha256: Digest,
}

/// Which backup a ledger comes from.
#[derive(Debug, Clone, Copy)]
pub struct Restored {
    pub backup_created_at: Timestamp,
    /// Of the backup's manifest.
    pub backup_sha256: Digest,
    /// An epoch that this device had already, where it is known; the new one is higher.
    pub epoch_above: u32,
}

/// Copy one state of the ledger below `state_dir` to `target`, which must not be there; `progress` hears bytes done and
/// in all.
///
/// # Errors
/// When there is no ledger, it cannot be read, or `target` cannot be written.
pub fn copy_online(
    state_dir: &Path,
    target: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<LedgerCopy, LedgerError> {
    let path = store::database_path(state_dir);
    let on_source = LedgerError::sqlite(&path);
    let on_target = LedgerError::sqlite(target);
    let source = store::open_for_reading(state_dir)?;
    // The transaction holds the state: without it every commit of the daemon would start the copy again.
    source.execute_batch("BEGIN").map_err(&on_source)?;
    let meta = store::read_meta(&source).map_err(&on_source)?;
    let page_bytes: u64 = source
        .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))
        .map_err(&on_source)?
        .try_into()
        .unwrap_or(u64::from(store::PAGE_BYTES));
    let mut destination = Connection::open(target).map_err(&on_target)?;
    {
        let backup = Backup::new(&source, &mut destination).map_err(&on_target)?;
        loop {
            let step = backup.step(PAGES_A_STEP).map_err(|error| copy_error(&path, target, error))?;
            let pages = backup.progress();
            let bytes = |pages: i32| u64::try_from(pages).unwrap_or(0) * page_bytes;
            progress(bytes(pages.pagecount - pages.remaining), bytes(pages.pagecount));
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // Only the daemon's writer can be in the way, for the time of a checkpoint.
                _ => std::thread::yield_now(),
            }
        }
    }
    // One file without a log beside it.
    destination.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(&on_target)?;
    destination.close().map_err(|(_, error)| on_target(error))?;
    let size_bytes = std::fs::metadata(target).map_err(LedgerError::io("read", target))?.len();
    Ok(LedgerCopy { meta, size_bytes })
}

/// A damaged page belongs to the source, everything else to the target.
fn copy_error(source: &Path, target: &Path, error: rusqlite::Error) -> LedgerError {
    let is_damage = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt);
    LedgerError::sqlite(if is_damage { source } else { target })(error)
}

/// The pictures that the ledger file `copy` names, oldest first.
///
/// # Errors
/// When it cannot be read.
pub fn named_files(copy: &Path) -> Result<Vec<NamedFile>, LedgerError> {
    let on_sqlite = LedgerError::sqlite(copy);
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(&on_sqlite)?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(NamedFile {
            relative_path: row.get(0)?,
            size_bytes: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
            sha256: Digest::from_bytes(row.get(2)?),
        })
    };
    connection
        .prepare("SELECT relative_path, size_bytes, sha256 FROM artifacts ORDER BY captured_at, inspection_id, id")
        .and_then(|mut statement| statement.query_map([], read)?.collect())
        .map_err(on_sqlite)
}

/// Of `paths`, pictures that the ledger file `copy` names and that have no file: those that the ledger below `state_dir`
/// has let go since the copy was made are noted in the copy as gone, too. Answers with the others: they are lost.
///
/// # Errors
/// When either cannot be read, or the copy not be written.
pub fn note_shed(state_dir: &Path, copy: &Path, paths: Vec<String>) -> Result<Vec<String>, LedgerError> {
    let source = store::open_for_reading(state_dir)?;
    let source_path = store::database_path(state_dir);
    let on_source = LedgerError::sqlite(&source_path);
    let copy_connection = Connection::open(copy).map_err(LedgerError::sqlite(copy))?;
    let mut lost = Vec::new();
    for path in paths {
        let is_named: bool = source
            .query_row("SELECT EXISTS (SELECT 1 FROM artifacts WHERE relative_path = ?1)", [&path], |row| row.get(0))
            .map_err(&on_source)?;
        if is_named {
            lost.push(path);
            continue;
        }
        // Nothing of it: its whole inspection has expired meanwhile.
        let gone: Option<(i64, String)> = source
            .query_row("SELECT gone_at, reason FROM gone_artifacts WHERE relative_path = ?1", [&path], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(&on_source)?;
        note_one(&copy_connection, &path, gone).map_err(LedgerError::sqlite(copy))?;
    }
    copy_connection.close().map_err(|(_, error)| LedgerError::sqlite(copy)(error))?;
    Ok(lost)
}

fn note_one(copy: &Connection, path: &str, gone: Option<(i64, String)>) -> rusqlite::Result<()> {
    let (gone_at, reason) = gone.map_or((None, "expired".to_owned()), |(at, reason)| (Some(at), reason));
    copy.execute_batch("BEGIN IMMEDIATE")?;
    copy.execute(
        "INSERT INTO gone_artifacts (captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes,
            sha256, width_px, height_px, gone_at, reason)
         SELECT captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes, sha256, width_px,
            height_px, coalesce(?2, captured_at), ?3 FROM artifacts WHERE relative_path = ?1",
        params![path, gone_at, reason],
    )?;
    copy.execute(
        "UPDATE retention_totals SET gone_pictures = gone_pictures + 1,
            gone_bytes = gone_bytes + (SELECT size_bytes FROM artifacts WHERE relative_path = ?1)",
        [path],
    )?;
    copy.execute("DELETE FROM artifacts WHERE relative_path = ?1", [path])?;
    copy.execute_batch("COMMIT")
}

/// Begin a new epoch in the restored ledger below `state_dir`: opened, migrated and proved whole first.
///
/// # Errors
/// When it is damaged, from a newer version or in use, or the disk refuses.
pub fn begin_epoch(state_dir: &Path, clock: &Clock, restored: Restored) -> Result<Meta, LedgerError> {
    let path: PathBuf = store::database_path(state_dir);
    if !path.exists() {
        return Err(LedgerError::Missing { path });
    }
    let store = store::open(state_dir, clock)?;
    let on_sqlite = LedgerError::sqlite(&path);
    let finding: String =
        store.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(&on_sqlite)?;
    if finding != "ok" {
        return Err(LedgerError::Corrupt { path: path.clone(), finding });
    }
    let now = clock.now();
    let epoch = next_epoch(store.meta.epoch.max(restored.epoch_above), now);
    let write = || {
        store.connection.execute_batch("BEGIN IMMEDIATE")?;
        store.connection.execute(
            "INSERT INTO restores (epoch, restored_at, backup_created_at, backup_sha256, code_day, code_floor)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                epoch,
                now.as_micros(),
                restored.backup_created_at.as_micros(),
                restored.backup_sha256.as_bytes(),
                now.local_day(),
                code_floor(now),
            ],
        )?;
        store.connection.execute("UPDATE ledger_meta SET epoch = ?1", [epoch])?;
        store.connection.execute_batch("COMMIT")?;
        store::end_run(&store.connection)
    };
    write().map_err(&on_sqlite)?;
    Ok(Meta { epoch, ..store.meta })
}

/// Device and epoch of the ledger file below `folder`, whatever its version and even where a restore was cut off: read
/// without touching the folder, and without the log, which never holds an epoch alone.
#[must_use]
pub fn identity_at(folder: &Path) -> Option<(Uuid, u32)> {
    let path = store::database_path(folder).to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags).ok()?;
    let read = |row: &rusqlite::Row<'_>| Ok((Uuid::from_bytes(row.get(0)?), row.get(1)?));
    connection.query_row("SELECT device_id, epoch FROM ledger_meta", [], read).ok()
}

/// Higher than `last`, and another one at each second.
fn next_epoch(last: u32, now: Timestamp) -> u32 {
    let seconds = (now.as_micros() - EPOCH_ORIGIN_US).div_euclid(1_000_000).clamp(0, i64::from(i32::MAX));
    u32::try_from(seconds).unwrap_or(0).max(last.saturating_add(1))
}

/// A number that no code of the present day can have reached by `now`.
fn code_floor(now: Timestamp) -> i64 {
    (now.local_second_of_day() + 1) * CODES_A_SECOND_MAX
}

#[cfg(test)]
mod tests {
    use super::{code_floor, next_epoch};
    use crate::types::Timestamp;

    #[test]
    fn one_backup_restored_twice_begins_two_epochs() {
        let at = |second: i64| Timestamp::from_micros(1_795_262_400_000_000 + second * 1_000_000);
        let first = next_epoch(1, at(0));
        assert!(first > 1 && next_epoch(1, at(1)) > first);
        assert_eq!(next_epoch(first, at(0)), first + 1, "also within one second, where the last is known");
        assert_eq!(next_epoch(5, Timestamp::from_micros(0)), 6, "a clock before 2026 still raises it");
    }

    #[test]
    fn a_later_restore_starts_above_what_the_earlier_one_can_have_given() {
        let noon = 1_795_262_400_000_000;
        let (early, late) =
            (code_floor(Timestamp::from_micros(noon)), code_floor(Timestamp::from_micros(noon + 60_000_000)));
        assert!(late - early >= 60 * 1_000 && early > 0);
    }
}
