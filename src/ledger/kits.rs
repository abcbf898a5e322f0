//! Counting sessions and stock: the statements of a [`KitOrder`], run inside the writer's transaction, and the reads.
//!
//! Invariants: a session stores no count while it is open, its count follows from its trays; an inspection counts in one
//! session, once; a session's end, its bookings and their outbox entry are one transaction, so a kill leaves all or none.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::LedgerError;
use super::catalogue::read_kit;
use super::reader::{LedgerReader, parse};
use super::reviews::refused;
use crate::failpoint;
use crate::kit::{Doubt, KitCount, count, settle};
use crate::limits::KIT_TRAYS_MAX;
use crate::types::{Inspection, InspectionId, Kit, KitOrder, KitSession, KitTray, LowStock, Stock, Timestamp};

const SESSION: &str = "SELECT id, kit, station, started_at, started_by, ended_at, ended_by, outcome, is_complete
    FROM kit_sessions";

/// A booking to make.
struct Booking<'a> {
    part: &'a str,
    color_id: Option<i64>,
    delta: i64,
    session: Option<Uuid>,
    author: &'a str,
    note: Option<&'a str>,
}

/// Do what `order` says. On an error the caller rolls back.
pub(super) fn apply(connection: &Connection, order: &KitOrder, now: Timestamp) -> rusqlite::Result<Value> {
    match order {
        KitOrder::Start { kit_code, station, by } => start(connection, kit_code, station.as_deref(), by, now),
        KitOrder::AddTray { session, inspection } => add_tray(connection, *session, *inspection, now),
        KitOrder::RemoveTray { session, inspection, by, reason } => {
            remove_tray(connection, *session, *inspection, (by, reason.as_deref()), now)
        }
        KitOrder::Finish { session, by, accept_incomplete } => {
            finish(connection, *session, by, *accept_incomplete, now)
        }
        KitOrder::Cancel { session, by, reason } => {
            let open = open_session(connection, *session)?;
            let counted = count_of(connection, &open)?;
            end(connection, &open, &counted, (by, "cancelled", reason.as_deref()), now)?;
            enqueue(connection, "kit_sessions", open.started_at, *session, 1, now)?;
            Ok(json!({ "session": session, "outcome": "cancelled" }))
        }
        KitOrder::Adjust { part_number, color_id, delta, by, reason } => {
            adjust(connection, (part_number, *color_id, *delta), by, reason, now)
        }
        KitOrder::Threshold { part_number, min_quantity, by } => {
            named("by", by)?;
            known_part(connection, part_number)?;
            if *min_quantity < 0 {
                return Err(refused(format!("the threshold is {min_quantity}, it must be 0 or more")));
            }
            connection.execute("DELETE FROM stock_thresholds WHERE part_number = ?1", [part_number])?;
            if *min_quantity > 0 {
                let sql = "INSERT INTO stock_thresholds VALUES (?1, ?2, ?3, ?4)";
                connection.execute(sql, params![part_number, min_quantity, now.as_micros(), by])?;
            }
            Ok(json!({ "part_number": part_number, "min_quantity": min_quantity }))
        }
    }
}

/// Count a committed still frame in the session that its station counts for, if there is one.
pub(super) fn take_tray(connection: &Connection, inspection: &Inspection, now: Timestamp) -> rusqlite::Result<()> {
    // A stream shows the same parts in many frames.
    if inspection.is_stream {
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO kit_session_trays (session_id, inspection_id, counted_at)
             SELECT s.id, ?1, ?2 FROM kit_sessions s WHERE s.station = ?3 AND s.ended_at IS NULL
                AND (SELECT count(*) FROM kit_session_trays t WHERE t.session_id = s.id) < ?4",
        )?
        .execute(params![inspection.id.0.as_bytes(), now.as_micros(), inspection.station, trays_max()])?;
    Ok(())
}

fn trays_max() -> i64 {
    i64::try_from(KIT_TRAYS_MAX).unwrap_or(i64::MAX)
}

/// Trays ever taken in, those taken back included.
fn tray_rows(connection: &Connection, session: Uuid) -> rusqlite::Result<i64> {
    let sql = "SELECT count(*) FROM kit_session_trays WHERE session_id = ?1";
    connection.query_row(sql, [session.as_bytes()], |row| row.get(0))
}

fn named(what: &str, name: &str) -> rusqlite::Result<()> {
    if name.trim().is_empty() { Err(refused(format!("`{what}` is empty; say who does this"))) } else { Ok(()) }
}

fn start(
    connection: &Connection,
    kit_code: &str,
    station: Option<&str>,
    by: &str,
    now: Timestamp,
) -> rusqlite::Result<Value> {
    named("by", by)?;
    let kit = read_kit(connection, kit_code)?
        .ok_or_else(|| refused(format!("kit `{kit_code}` is not in the catalogue; see `loupe kit list`")))?;
    if let Some(station) = station {
        let open: Option<[u8; 16]> = connection
            .query_row("SELECT id FROM kit_sessions WHERE station = ?1 AND ended_at IS NULL", [station], |r| r.get(0))
            .optional()?;
        if let Some(open) = open {
            let open = Uuid::from_bytes(open);
            return Err(refused(format!("station `{station}` counts for session {open}; finish or cancel that first")));
        }
    }
    let id = Uuid::now_v7();
    let text = serde_json::to_string(&kit).map_err(|error| refused(error.to_string()))?;
    connection.execute(
        "INSERT INTO kit_sessions (id, started_at, started_by, kit_code, kit, station) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![id.as_bytes(), now.as_micros(), by, kit_code, text, station],
    )?;
    Ok(json!({ "session": id, "kit_code": kit_code, "station": station }))
}

fn open_session(connection: &Connection, id: Uuid) -> rusqlite::Result<KitSession> {
    let session = connection
        .query_row(&format!("{SESSION} WHERE id = ?1"), [id.as_bytes()], read_session)
        .optional()?
        .ok_or_else(|| refused(format!("there is no session {id}; see `loupe kit status`")))?;
    match &session.outcome {
        Some(outcome) => Err(refused(format!("session {id} is {outcome} already"))),
        None => Ok(session),
    }
}

fn add_tray(
    connection: &Connection,
    session: Uuid,
    inspection: InspectionId,
    now: Timestamp,
) -> rusqlite::Result<Value> {
    open_session(connection, session)?;
    let exists = connection
        .query_row("SELECT 1 FROM inspections WHERE id = ?1", [inspection.0.as_bytes()], |_| Ok(()))
        .optional()?
        .is_some();
    if !exists {
        return Err(refused(format!("there is no inspection {inspection}")));
    }
    let other: Option<[u8; 16]> = connection
        .query_row(
            "SELECT session_id FROM kit_session_trays WHERE inspection_id = ?1 AND removed_at IS NULL",
            [inspection.0.as_bytes()],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(other) = other {
        let other = Uuid::from_bytes(other);
        return Err(refused(format!("the inspection counts in session {other} already, and counts once")));
    }
    let trays = tray_rows(connection, session)?;
    if trays >= trays_max() {
        return Err(refused(format!("the session has {trays} trays, the most it takes; finish it")));
    }
    connection.execute(
        "INSERT INTO kit_session_trays (session_id, inspection_id, counted_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (session_id, inspection_id) DO UPDATE
            SET counted_at = excluded.counted_at, removed_at = NULL, removed_by = NULL, removed_reason = NULL",
        params![session.as_bytes(), inspection.0.as_bytes(), now.as_micros()],
    )?;
    Ok(json!({ "session": session, "added": inspection }))
}

fn remove_tray(
    connection: &Connection,
    session: Uuid,
    inspection: Option<InspectionId>,
    (by, reason): (&str, Option<&str>),
    now: Timestamp,
) -> rusqlite::Result<Value> {
    named("by", by)?;
    open_session(connection, session)?;
    let tray: Option<[u8; 16]> = connection
        .query_row(
            "SELECT t.inspection_id FROM kit_session_trays t JOIN inspections i ON i.id = t.inspection_id
             WHERE t.session_id = ?1 AND t.removed_at IS NULL AND (?2 IS NULL OR t.inspection_id = ?2)
             ORDER BY t.counted_at DESC, i.rowid DESC LIMIT 1",
            params![session.as_bytes(), inspection.map(|id| *id.0.as_bytes())],
            |row| row.get(0),
        )
        .optional()?;
    let tray = tray.ok_or_else(|| refused("no such tray counts in this session".to_owned()))?;
    connection.execute(
        "UPDATE kit_session_trays SET removed_at = ?3, removed_by = ?4, removed_reason = ?5
         WHERE session_id = ?1 AND inspection_id = ?2",
        params![session.as_bytes(), tray, now.as_micros(), by, reason],
    )?;
    Ok(json!({ "session": session, "removed": Uuid::from_bytes(tray) }))
}

fn finish(
    connection: &Connection,
    id: Uuid,
    by: &str,
    accept_incomplete: bool,
    now: Timestamp,
) -> rusqlite::Result<Value> {
    named("by", by)?;
    let open = open_session(connection, id)?;
    let counted = count_of(connection, &open)?;
    if !counted.is_complete && !accept_incomplete {
        return Err(refused(format!(
            "the kit is not complete: {} missing, {} over, {} in doubt; settle these, or finish it as incomplete",
            counted.missing, counted.surplus, counted.doubtful
        )));
    }
    end(connection, &open, &counted, (by, "finished", None), now)?;
    failpoint::hit("ledger.kit.ended");
    for movement in &counted.movements {
        let booking = Booking {
            part: &movement.part_number,
            color_id: movement.color_id,
            delta: i64::from(movement.count),
            session: Some(id),
            author: by,
            note: None,
        };
        book(connection, &booking, now)?;
    }
    failpoint::hit("ledger.kit.booked");
    enqueue(connection, "kit_sessions", open.started_at, id, 1 + counted.movements.len(), now)?;
    let low = low_stock(connection)?;
    Ok(json!({ "session": id, "outcome": "finished", "count": counted, "low_stock": low }))
}

fn count_of(connection: &Connection, session: &KitSession) -> rusqlite::Result<KitCount> {
    if session.ended_at.is_some() {
        let result: String =
            connection.query_row("SELECT result FROM kit_sessions WHERE id = ?1", [session.id.as_bytes()], |row| {
                row.get(0)
            })?;
        return serde_json::from_str(&result).map_err(|error| refused(format!("a session's result: {error}")));
    }
    let mut counted = count(&session.kit, &inspections_of(connection, session.id)?);
    if tray_rows(connection, session.id)? >= trays_max() {
        let reasons = vec!["kit.too_many_trays".to_owned()];
        counted.doubts.push(Doubt { inspection: String::new(), ordinal: None, looks_like: None, reasons });
        counted.doubtful += 1;
        counted.is_complete = false;
    }
    Ok(counted)
}

fn inspections_of(connection: &Connection, session: Uuid) -> rusqlite::Result<Vec<Inspection>> {
    let records: Vec<String> = connection
        .prepare_cached(
            "SELECT i.record FROM kit_session_trays t JOIN inspections i ON i.id = t.inspection_id
             WHERE t.session_id = ?1 AND t.removed_at IS NULL ORDER BY i.rowid",
        )?
        .query_map([session.as_bytes()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut inspections: Vec<Inspection> = records
        .iter()
        .map(|record| parse(record).map_err(|error| refused(error.to_string())))
        .collect::<rusqlite::Result<_>>()?;
    settle_reviewed(connection, session, &mut inspections)?;
    Ok(inspections)
}

/// What people said of the trays' items, the last word of each, takes the place of what was decided.
fn settle_reviewed(connection: &Connection, session: Uuid, trays: &mut [Inspection]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "SELECT r.inspection_id, r.ordinal, r.review_status, r.shown_part_id, r.corrected_part_id, r.corrected_color_id
         FROM reviews r JOIN kit_session_trays t ON t.inspection_id = r.inspection_id
         WHERE t.session_id = ?1 AND t.removed_at IS NULL AND r.subject_kind = 'item'
            AND NOT EXISTS (SELECT 1 FROM reviews l WHERE l.subject_id = r.subject_id AND l.seq > r.seq)",
    )?;
    let mut rows = statement.query([session.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let id = InspectionId(Uuid::from_bytes(row.get(0)?));
        let (ordinal, status): (u32, String) = (row.get(1)?, row.get(2)?);
        let part: Option<String> = if status == "confirmed" { row.get(3)? } else { row.get(4)? };
        let color: Option<String> = row.get(5)?;
        if let (Some(tray), Some(part)) = (trays.iter_mut().find(|tray| tray.id == id), part) {
            settle(tray, ordinal, &part, color.as_deref());
        }
    }
    Ok(())
}

fn end(
    connection: &Connection,
    session: &KitSession,
    counted: &KitCount,
    (by, outcome, reason): (&str, &str, Option<&str>),
    now: Timestamp,
) -> rusqlite::Result<()> {
    named("by", by)?;
    let result = serde_json::to_string(counted).map_err(|error| refused(error.to_string()))?;
    connection.execute(
        "UPDATE kit_sessions SET ended_at = ?2, ended_by = ?3, outcome = ?4, reason = ?5, is_complete = ?6,
            tray_count = ?7, expected_count = ?8, found_count = ?9, missing_count = ?10, surplus_count = ?11,
            doubtful_count = ?12, result = ?13 WHERE id = ?1",
        params![
            session.id.as_bytes(),
            now.max(session.started_at).as_micros(),
            by,
            outcome,
            reason,
            counted.is_complete,
            counted.trays,
            counted.expected,
            counted.found,
            counted.missing,
            counted.surplus,
            counted.doubtful,
            result,
        ],
    )?;
    Ok(())
}

fn known_part(connection: &Connection, part: &str) -> rusqlite::Result<()> {
    let known = connection.query_row("SELECT 1 FROM parts WHERE part_number = ?1", [part], |_| Ok(())).optional()?;
    known.ok_or_else(|| refused(format!("part `{part}` is not in the catalogue; see `loupe catalog list`")))
}

fn adjust(
    connection: &Connection,
    (part, color_id, delta): (&str, Option<i64>, i64),
    by: &str,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<Value> {
    named("by", by)?;
    named("reason", reason)?;
    known_part(connection, part)?;
    if delta == 0 || delta.unsigned_abs() > crate::limits::STOCK_DELTA_MAX {
        return Err(refused(format!(
            "the quantity is {delta}; it must be 1 to {} or the same below 0",
            crate::limits::STOCK_DELTA_MAX
        )));
    }
    let booking = Booking { part, color_id, delta, session: None, author: by, note: Some(reason) };
    let (id, quantity) = book(connection, &booking, now)?;
    // The refusal takes the booking back with its transaction.
    if delta < 0 && quantity < 0 {
        let (gone, there) = (delta.unsigned_abs(), quantity - delta);
        let color = color_id.map_or_else(|| "any".to_owned(), |color| color.to_string());
        return Err(refused(format!(
            "{gone} of `{part}` in colour {color} cannot have gone: {there} are in stock; book first what came uncounted"
        )));
    }
    failpoint::hit("ledger.stock.booked");
    enqueue(connection, "stock_ledger", now, id, 1, now)?;
    let low = low_stock(connection)?;
    Ok(json!({ "part_number": part, "color_id": color_id, "quantity": quantity, "low_stock": low }))
}

fn book(connection: &Connection, booking: &Booking<'_>, now: Timestamp) -> rusqlite::Result<(Uuid, i64)> {
    let before: i64 = connection
        .prepare_cached(
            "SELECT new_quantity FROM stock_ledger WHERE part_id = ?1 AND color_id IS ?2 ORDER BY seq DESC LIMIT 1",
        )?
        .query_row(params![booking.part, booking.color_id], |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    let id = Uuid::now_v7();
    let (reason, reference) = if booking.session.is_some() { ("counted", "kit") } else { ("adjustment", "manual") };
    connection
        .prepare_cached(
            "INSERT INTO stock_ledger (id, recorded_at, part_id, color_id, delta, reason, reference_type, reference_id,
                previous_quantity, new_quantity, author, note)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            id.as_bytes(),
            now.as_micros(),
            booking.part,
            booking.color_id,
            booking.delta,
            reason,
            reference,
            booking.session.map(|id| *id.as_bytes()),
            before,
            before + booking.delta,
            booking.author,
            booking.note,
        ])?;
    Ok((id, before + booking.delta))
}

fn enqueue(
    connection: &Connection,
    table: &str,
    key_at: Timestamp,
    id: Uuid,
    row_count: usize,
    now: Timestamp,
) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
         VALUES (?1, ?2, ?3, ?4, 'pending', 0, ?5)",
        params![
            table,
            key_at.as_micros(),
            id.as_bytes(),
            i64::try_from(row_count).unwrap_or(i64::MAX),
            now.as_micros()
        ],
    )?;
    connection.execute("UPDATE outbox_state SET committed_total = committed_total + 1", [])?;
    Ok(())
}

fn low_stock(connection: &Connection) -> rusqlite::Result<Vec<LowStock>> {
    connection
        .prepare_cached(
            "SELECT t.part_number, coalesce((SELECT sum(delta) FROM stock_ledger s WHERE s.part_id = t.part_number), 0)
                AS quantity, t.min_quantity
             FROM stock_thresholds t WHERE quantity < t.min_quantity ORDER BY t.part_number",
        )?
        .query_map([], |row| {
            Ok(LowStock { part_number: row.get(0)?, quantity: row.get(1)?, min_quantity: row.get(2)? })
        })?
        .collect()
}

fn read_session(row: &Row<'_>) -> rusqlite::Result<KitSession> {
    let kit: String = row.get(1)?;
    let kit: Kit = serde_json::from_str(&kit).map_err(|error| refused(format!("a session's kit: {error}")))?;
    Ok(KitSession {
        id: Uuid::from_bytes(row.get(0)?),
        kit,
        station: row.get(2)?,
        started_at: Timestamp::from_micros(row.get(3)?),
        started_by: row.get(4)?,
        ended_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_micros),
        ended_by: row.get(6)?,
        outcome: row.get(7)?,
        is_complete: row.get(8)?,
    })
}

impl LedgerReader {
    /// The last `count` sessions, newest first; with `only_open` those that still count.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kit_sessions(&self, only_open: bool, count: usize) -> Result<Vec<KitSession>, LedgerError> {
        let sql = format!("{SESSION} WHERE ended_at IS NULL OR NOT ?1 ORDER BY id DESC LIMIT ?2");
        self.list(&sql, params![only_open, i64::try_from(count).unwrap_or(i64::MAX)], read_session)
    }

    /// The session called `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kit_session(&self, id: Uuid) -> Result<Option<KitSession>, LedgerError> {
        Ok(self.list(&format!("{SESSION} WHERE id = ?1"), params![id.as_bytes()], read_session)?.pop())
    }

    /// The session's count, from its trays as they are in the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kit_count(&self, session: &KitSession) -> Result<KitCount, LedgerError> {
        count_of(&self.connection, session).map_err(LedgerError::sqlite(&self.path))
    }

    /// The trays that count in a session, in the order they were taken in.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kit_trays(&self, session: Uuid) -> Result<Vec<KitTray>, LedgerError> {
        let sql = "SELECT t.inspection_id, i.code, t.counted_at FROM kit_session_trays t
             JOIN inspections i ON i.id = t.inspection_id
             WHERE t.session_id = ?1 AND t.removed_at IS NULL ORDER BY t.counted_at, i.rowid";
        self.list(sql, params![session.as_bytes()], |row| {
            Ok(KitTray {
                inspection_id: InspectionId(Uuid::from_bytes(row.get(0)?)),
                code: row.get(1)?,
                counted_at: Timestamp::from_micros(row.get(2)?),
            })
        })
    }

    /// What is in stock, by part and colour.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn stock(&self) -> Result<Vec<Stock>, LedgerError> {
        let sql =
            "SELECT part_id, color_id, sum(delta), max(recorded_at) FROM stock_ledger GROUP BY 1, 2 ORDER BY 1, 2";
        self.list(sql, params![], |row| {
            Ok(Stock {
                part_number: row.get(0)?,
                color_id: row.get(1)?,
                quantity: row.get(2)?,
                last_changed_at: Timestamp::from_micros(row.get(3)?),
            })
        })
    }

    /// Parts below their threshold.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn low_stock(&self) -> Result<Vec<LowStock>, LedgerError> {
        low_stock(&self.connection).map_err(LedgerError::sqlite(&self.path))
    }
}
