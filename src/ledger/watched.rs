//! Which files of watched folders have become inspections: written in the transaction of the inspection, read at a start.

use rusqlite::{Connection, params};

use super::LedgerError;
use super::reader::LedgerReader;
use crate::types::{FolderNote, WatchedFile};

/// Note what an inspection of `station` took.
pub(super) fn note(connection: &Connection, station: &str, watched: &FolderNote) -> rusqlite::Result<()> {
    let mut forget = connection.prepare_cached("DELETE FROM watched_files WHERE station = ?1 AND path = ?2")?;
    for path in &watched.gone {
        forget.execute([station, path])?;
    }
    let mut take = connection.prepare_cached(
        "INSERT INTO watched_files (station, path, bytes, modified_ns) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET bytes = excluded.bytes, modified_ns = excluded.modified_ns",
    )?;
    for file in &watched.taken {
        take.execute(params![station, file.path, i64::try_from(file.bytes).unwrap_or(i64::MAX), file.modified_ns])?;
    }
    Ok(())
}

impl LedgerReader {
    /// The files of watched folders that `station` has inspected, as they were then, by path.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn watched_files(&self, station: &str) -> Result<Vec<WatchedFile>, LedgerError> {
        let read = || {
            let sql = "SELECT path, bytes, modified_ns FROM watched_files WHERE station = ?1 ORDER BY path";
            let mut statement = self.connection.prepare(sql)?;
            let files = statement.query_map([station], |row| {
                let bytes = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
                Ok(WatchedFile { path: row.get(0)?, bytes, modified_ns: row.get(2)? })
            })?;
            files.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(LedgerError::sqlite(&self.path))
    }
}
