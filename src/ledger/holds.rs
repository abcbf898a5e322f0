//! Legal holds: what must not go, whatever the policy and however full the disk.
//!
//! A hold is a condition on inspections, looked at again each time something would go: it also covers what is captured
//! after it was placed. Holds are never deleted; a released one stays, with who released it and why.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::LedgerError;
use super::reader::LedgerReader;
use super::reviews::refused;
use crate::limits::{REVIEW_REASON_CHARS_MAX, REVIEW_WORD_CHARS_MAX};
use crate::types::{HoldOrder, HoldScope, InspectionId, LegalHold, Timestamp};

/// Whether a hold covers the inspection: a condition on `inspections i`.
pub(super) const HELD: &str = "EXISTS (SELECT 1 FROM legal_holds h WHERE h.released_at IS NULL
    AND (h.inspection_id IS NULL OR h.inspection_id = i.id) AND (h.station IS NULL OR h.station = i.station)
    AND (h.from_at IS NULL OR i.captured_at >= h.from_at) AND (h.until_at IS NULL OR i.captured_at < h.until_at)
    AND (h.part IS NULL OR instr(i.record, json_quote(h.part)) > 0
        OR EXISTS (SELECT 1 FROM reviews r WHERE r.inspection_id = i.id AND r.corrected_part_id = h.part)))";

/// Do what `order` says. On an error the caller rolls back.
pub(super) fn apply(connection: &Connection, order: &HoldOrder, now: Timestamp) -> rusqlite::Result<Value> {
    match order {
        HoldOrder::Place { scope, by, reason } => place(connection, scope, (by, reason), now),
        HoldOrder::Release { id, by, reason } => release(connection, *id, (by, reason), now),
    }
}

fn place(
    connection: &Connection,
    scope: &HoldScope,
    (by, reason): (&str, &str),
    now: Timestamp,
) -> rusqlite::Result<Value> {
    word("by", by, REVIEW_WORD_CHARS_MAX)?;
    word("reason", reason, REVIEW_REASON_CHARS_MAX)?;
    for (name, value) in [("part", &scope.part), ("station", &scope.station)] {
        value.as_deref().map_or(Ok(()), |value| word(name, value, REVIEW_WORD_CHARS_MAX))?;
    }
    if *scope == HoldScope::default() {
        return Err(refused("a hold needs an inspection, a part, a station or a time range".to_owned()));
    }
    if scope.from.zip(scope.until).is_some_and(|(from, until)| from >= until) {
        return Err(refused("the hold's time range ends before it begins".to_owned()));
    }
    if let Some(inspection) = scope.inspection {
        let sql = "SELECT 1 FROM inspections WHERE id = ?1";
        let found = connection.query_row(sql, [inspection.0.as_bytes()], |_| Ok(())).optional()?;
        found.ok_or_else(|| refused(format!("inspection {inspection} is not in the ledger; it may have expired")))?;
    }
    let id = Uuid::now_v7();
    connection.execute(
        "INSERT INTO legal_holds (id, placed_at, placed_by, reason, inspection_id, part, station, from_at, until_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            id.as_bytes(),
            now.as_micros(),
            by,
            reason,
            scope.inspection.map(|inspection| *inspection.0.as_bytes()),
            scope.part,
            scope.station,
            scope.from.map(Timestamp::as_micros),
            scope.until.map(Timestamp::as_micros),
        ],
    )?;
    let sql =
        format!("SELECT count(*) FROM inspections i WHERE {}", HELD.replacen("h.released_at IS NULL", "h.id = ?1", 1));
    let covered: i64 = connection.query_row(&sql, [id.as_bytes()], |row| row.get(0))?;
    Ok(json!({ "id": id, "covered_now": covered }))
}

fn release(connection: &Connection, id: Uuid, (by, reason): (&str, &str), now: Timestamp) -> rusqlite::Result<Value> {
    word("by", by, REVIEW_WORD_CHARS_MAX)?;
    word("reason", reason, REVIEW_REASON_CHARS_MAX)?;
    let released = connection.execute(
        "UPDATE legal_holds SET released_at = ?2, released_by = ?3, release_reason = ?4
         WHERE id = ?1 AND released_at IS NULL",
        params![id.as_bytes(), now.as_micros(), by, reason],
    )?;
    if released == 0 {
        return Err(refused(format!("no standing hold is called {id}; see `loupe storage hold list`")));
    }
    Ok(json!({ "id": id, "released": true }))
}

fn word(field: &str, text: &str, chars_max: usize) -> rusqlite::Result<()> {
    match text.trim() {
        "" => Err(refused(format!("`{field}` is empty"))),
        text if text.chars().count() > chars_max => {
            Err(refused(format!("`{field}` is longer than {chars_max} characters")))
        }
        text if text.chars().any(char::is_control) => Err(refused(format!("`{field}` is not plain text"))),
        _ => Ok(()),
    }
}

fn read_hold(row: &Row<'_>) -> rusqlite::Result<LegalHold> {
    let time = |at: Option<i64>| at.map(Timestamp::from_micros);
    let inspection: Option<[u8; 16]> = row.get(4)?;
    Ok(LegalHold {
        id: Uuid::from_bytes(row.get(0)?),
        placed_at: Timestamp::from_micros(row.get(1)?),
        placed_by: row.get(2)?,
        reason: row.get(3)?,
        scope: HoldScope {
            inspection: inspection.map(|id| InspectionId(Uuid::from_bytes(id))),
            part: row.get(5)?,
            station: row.get(6)?,
            from: time(row.get(7)?),
            until: time(row.get(8)?),
        },
        released_at: time(row.get(9)?),
        released_by: row.get(10)?,
        release_reason: row.get(11)?,
    })
}

impl LedgerReader {
    /// The legal holds, oldest first; the released ones as well where `all`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn legal_holds(&self, all: bool) -> Result<Vec<LegalHold>, LedgerError> {
        let sql = "SELECT id, placed_at, placed_by, reason, inspection_id, part, station, from_at, until_at,
                released_at, released_by, release_reason
             FROM legal_holds WHERE ?1 OR released_at IS NULL ORDER BY id";
        self.list(sql, params![all], read_hold)
    }
}
