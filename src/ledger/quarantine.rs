//! The quarantine of the outbox: entries that cannot be sent, kept with their reason and never deleted.

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use uuid::Uuid;

use super::LedgerError;
use super::pack::Entry;
use super::reader::LedgerReader;
use crate::types::Timestamp;

/// Why an entry cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineKind {
    /// Its rows are damaged or incomplete.
    Unreadable,
    /// It names no row.
    Missing,
    /// An earlier entry names the same.
    Duplicate,
}

impl QuarantineKind {
    fn as_str(self) -> &'static str {
        match self {
            QuarantineKind::Unreadable => "unreadable",
            QuarantineKind::Missing => "missing",
            QuarantineKind::Duplicate => "duplicate",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "missing" => QuarantineKind::Missing,
            "duplicate" => QuarantineKind::Duplicate,
            _ => QuarantineKind::Unreadable,
        }
    }
}

/// An entry that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedUnit {
    pub seq: i64,
    pub kind: QuarantineKind,
    /// Table of the unit's first row.
    pub root_table: String,
    pub id: Uuid,
    pub reason: String,
    pub moved_at: Timestamp,
}

impl LedgerReader {
    /// Entries that were set aside, oldest first, at most `count_max`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn quarantined(&self, count_max: usize) -> Result<Vec<QuarantinedUnit>, LedgerError> {
        let limit = i64::try_from(count_max).unwrap_or(i64::MAX);
        let sql = "SELECT seq, kind, root_table, key_id, reason, moved_at FROM outbox_quarantine ORDER BY seq LIMIT ?1";
        let read = |row: &rusqlite::Row<'_>| {
            Ok(QuarantinedUnit {
                seq: row.get(0)?,
                kind: QuarantineKind::parse(&row.get::<_, String>(1)?),
                root_table: row.get(2)?,
                id: Uuid::from_bytes(row.get(3)?),
                reason: row.get(4)?,
                moved_at: Timestamp::from_micros(row.get(5)?),
            })
        };
        self.connection
            .prepare(sql)
            .and_then(|mut statement| statement.query_map([limit], read)?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }

    /// Why `entry` cannot be sent; `None`: it can.
    pub(super) fn entry_fault(&self, entry: &Entry) -> Result<Option<(QuarantineKind, String)>, LedgerError> {
        match self.unit(entry) {
            Ok(_) => Ok(None),
            Err(LedgerError::Unreadable { detail, .. }) => {
                let is_there = root_exists(&self.connection, &entry.root_table, &entry.key_id)
                    .map_err(LedgerError::sqlite(&self.path))?;
                if is_there {
                    return Ok(Some((QuarantineKind::Unreadable, detail)));
                }
                let id = Uuid::from_bytes(entry.key_id);
                let reason = format!("{detail}: no row {id} in {}", entry.root_table);
                Ok(Some((QuarantineKind::Missing, reason)))
            }
            Err(error) => Err(error),
        }
    }

    /// Positions of entries that name a unit which an earlier entry names too.
    pub(super) fn duplicate_entries(&self) -> Result<Vec<i64>, LedgerError> {
        // Grouping in the order of a sort, not by an index of (root_table, key_id), which each commit would pay for.
        let sql = "SELECT seq FROM outbox WHERE seq NOT IN (SELECT min(seq) FROM outbox GROUP BY root_table, key_id)
             ORDER BY seq";
        self.connection
            .prepare(sql)
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }
}

fn root_exists(connection: &Connection, root_table: &str, id: &[u8; 16]) -> rusqlite::Result<bool> {
    let sql = match root_table {
        "inspections" => "SELECT 1 FROM inspections WHERE id = ?1",
        "reviews" => "SELECT 1 FROM reviews WHERE id = ?1",
        "kit_sessions" => "SELECT 1 FROM kit_sessions WHERE id = ?1",
        "stock_ledger" => "SELECT 1 FROM stock_ledger WHERE id = ?1",
        "config_history" => "SELECT 1 FROM config_changes WHERE id = ?1",
        "refusal_reports" => "SELECT 1 FROM refusal_reports WHERE id = ?1",
        "operators" => "SELECT 1 FROM operators WHERE id = ?1",
        "feedback" => "SELECT 1 FROM feedback WHERE id = ?1",
        "action_logs" => "SELECT 1 FROM action_logs WHERE id = ?1",
        _ => return Ok(false),
    };
    connection.prepare_cached(sql)?.query_row(params![id], |_| Ok(())).optional().map(|found| found.is_some())
}

/// Move one entry out of the outbox.
pub(super) fn move_aside(
    connection: &Connection,
    seq: i64,
    kind: QuarantineKind,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO outbox_quarantine (seq, kind, root_table, key_at, key_id, row_count, attempts, last_error,
                enqueued_at, reason, moved_at)
             SELECT seq, ?2, root_table, key_at, key_id, row_count, attempts, last_error, enqueued_at, ?3, ?4
                 FROM outbox WHERE seq = ?1",
        )?
        .execute(params![seq, kind.as_str(), reason, now.as_micros()])?;
    connection.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// Put one entry back into the outbox at its old position.
pub(super) fn put_back(connection: &Connection, seq: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO outbox (seq, root_table, key_at, key_id, row_count, state, attempts, last_error, enqueued_at)
             SELECT seq, root_table, key_at, key_id, row_count, 'pending', attempts, last_error, enqueued_at
                 FROM outbox_quarantine WHERE seq = ?1",
        )?
        .execute([seq])?;
    connection.prepare_cached("DELETE FROM outbox_quarantine WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// Entries of the quarantine that may have become whole again: their rows are named by no other entry.
pub(super) fn candidates_to_put_back(connection: &Connection) -> rusqlite::Result<Vec<Entry>> {
    connection
        .prepare(
            "SELECT q.seq, q.key_id, q.row_count, q.enqueued_at, q.root_table FROM outbox_quarantine q
             WHERE q.kind <> 'duplicate' AND q.key_id NOT IN (SELECT key_id FROM outbox) ORDER BY q.seq",
        )?
        .query_map([], |row| {
            Ok(Entry {
                seq: row.get(0)?,
                key_id: row.get(1)?,
                row_count: row.get(2)?,
                enqueued_at: Timestamp::from_micros(row.get(3)?),
                root_table: row.get(4)?,
            })
        })?
        .collect()
}
