//! What goes: the statements that take expired rows and pictures out, run on the writer's thread.
//!
//! A [`Step`] is one small transaction of its own, behind the commits that wait, so that no commit waits long. It names
//! candidates; whether each may go is decided here again, inside the transaction: an inspection goes only when it was
//! delivered before the given time, nothing of it waits in the outbox, no legal hold covers it, and nothing refers to it
//! (a learned template, the example of an unknown part, an open kit session, a picture that is still kept).
//! Invariants: what goes is counted in `retention_totals`, so the ledger's counters hold; a picture's row goes before its
//! file, so a row never names a missing file, and a file left by a cut-off run is one that the scrub removes.

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};
use serde::Serialize;

use super::holds::HELD;
use super::samples;
use crate::failpoint;
use crate::types::{Digest, Timestamp};

/// Which picture: its inspection's id and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PictureKey {
    pub inspection_id: [u8; 16],
    pub id: [u8; 16],
}

/// Why a picture went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gone {
    /// It was older than the policy keeps it.
    Expired,
    /// The disk or the budget was full.
    Pressure,
}

impl Gone {
    fn as_str(self) -> &'static str {
        match self {
            Gone::Expired => "expired",
            Gone::Pressure => "pressure",
        }
    }
}

/// A file that a scrub moved, or is about to move, to `quarantine/`.
#[derive(Debug, Clone)]
pub(super) struct Quarantined {
    pub relative_path: String,
    pub quarantine_name: String,
    /// The row that names it; `None`: there is none.
    pub key: Option<PictureKey>,
    pub expected_sha256: Option<Digest>,
    pub found_sha256: Option<Digest>,
}

/// One bounded piece of work for the writer.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Take these pictures' rows out; the caller removes the files it is told.
    Pictures { keys: Vec<PictureKey>, reason: Gone },
    /// Take the detail rows of these deliveries out.
    Detail { numbers: Vec<i64>, delivered_before: Timestamp },
    /// Take the inspections of these deliveries out.
    Inspections { numbers: Vec<i64>, delivered_before: Timestamp },
    /// Drop the oldest samples of the spool, counted.
    Samples { rows_max: usize },
    /// Note what a scrub moved.
    Quarantine(Quarantined),
}

/// What a step did.
#[derive(Debug, Clone, Default)]
pub(super) struct StepDone {
    /// Pictures, inspections or samples that went.
    pub count: u64,
    /// Of files, whose paths below `artifacts/` are these.
    pub bytes: u64,
    pub paths: Vec<String>,
}

/// Conditions on `inspections i` under which it is free to go once it was delivered long enough ago (`?2`).
pub(super) const FREE: &str = "NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.inspection_id = i.id)
    AND NOT EXISTS (SELECT 1 FROM index_delta d WHERE d.inspection_id = i.id)
    AND NOT EXISTS (SELECT 1 FROM unknown_part_logs u WHERE u.example_inspection_id = i.id)
    AND NOT EXISTS (SELECT 1 FROM kit_session_trays t JOIN kit_sessions s ON s.id = t.session_id
        WHERE t.inspection_id = i.id AND s.ended_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM reviews r LEFT JOIN delivered_reviews v ON v.review_id = r.id
        WHERE r.inspection_id = i.id AND (v.delivered_at IS NULL OR v.delivered_at >= ?2))
    AND NOT EXISTS (SELECT 1 FROM feedback f LEFT JOIN delivered_remarks v ON v.remark_id = f.id
        WHERE f.inspection_id = i.id AND (v.delivered_at IS NULL OR v.delivered_at >= ?2))
    AND NOT EXISTS (SELECT 1 FROM action_logs c LEFT JOIN delivered_remarks v ON v.remark_id = c.id
        WHERE c.inspection_id = i.id AND (v.delivered_at IS NULL OR v.delivered_at >= ?2))";

/// Whether a learned template was cut from picture `a`: a condition on `artifacts a`.
pub(super) const TAUGHT: &str =
    "EXISTS (SELECT 1 FROM index_delta d WHERE d.inspection_id = a.inspection_id AND d.artifact = a.relative_path)";

/// Do one step. On an error the caller rolls back.
pub(super) fn apply(connection: &Connection, step: &Step, now: Timestamp) -> rusqlite::Result<StepDone> {
    match step {
        Step::Pictures { keys, reason } => remove_pictures(connection, keys, *reason, now),
        Step::Detail { numbers, delivered_before } => remove_detail(connection, numbers, *delivered_before),
        Step::Inspections { numbers, delivered_before } => remove_inspections(connection, numbers, *delivered_before),
        Step::Samples { rows_max } => drop_samples(connection, *rows_max),
        Step::Quarantine(found) => note_quarantine(connection, found, now),
    }
}

/// Before a unit leaves the outbox as delivered: note when, so that it can expire.
pub(super) fn note_delivery(connection: &Connection, seq: i64, now: Timestamp) -> rusqlite::Result<()> {
    let noted = cached(
        connection,
        "INSERT INTO delivered_inspections (inspection_id, delivered_at, is_brief)
         SELECT key_id, ?2, 0 FROM outbox WHERE seq = ?1 AND root_table = 'inspections'",
    )?
    .execute(params![seq, now.as_micros()])?;
    if noted > 0 {
        return Ok(());
    }
    for sql in [
        "INSERT OR REPLACE INTO delivered_reviews (review_id, delivered_at)
         SELECT key_id, ?2 FROM outbox WHERE seq = ?1 AND root_table = 'reviews'",
        "INSERT OR REPLACE INTO delivered_remarks (remark_id, delivered_at)
         SELECT key_id, ?2 FROM outbox WHERE seq = ?1 AND root_table IN ('feedback', 'action_logs')",
    ] {
        cached(connection, sql)?.execute(params![seq, now.as_micros()])?;
    }
    Ok(())
}

fn cached<'a>(connection: &'a Connection, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
    connection.prepare_cached(sql)
}

fn remove_pictures(
    connection: &Connection,
    keys: &[PictureKey],
    reason: Gone,
    now: Timestamp,
) -> rusqlite::Result<StepDone> {
    let mut done = StepDone::default();
    let sql = format!(
        "SELECT a.relative_path, a.size_bytes FROM artifacts a JOIN inspections i ON i.id = a.inspection_id
         WHERE a.inspection_id = ?1 AND a.id = ?2 AND NOT {HELD} AND NOT {TAUGHT}"
    );
    for key in keys {
        let free: Option<(String, i64)> = cached(connection, &sql)?
            .query_row(params![key.inspection_id, key.id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((path, size_bytes)) = free else { continue };
        move_out(connection, *key, reason.as_str(), now)?;
        done.count += 1;
        done.bytes += u64::try_from(size_bytes).unwrap_or(0);
        done.paths.push(path);
    }
    failpoint::hit("retention.pictures.savepoint");
    count_gone(connection, done.count, done.bytes)?;
    Ok(done)
}

/// Move a picture's row to `gone_artifacts`.
fn move_out(connection: &Connection, key: PictureKey, reason: &str, now: Timestamp) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO gone_artifacts (captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes,
            sha256, width_px, height_px, gone_at, reason)
         SELECT captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes, sha256, width_px,
            height_px, ?3, ?4 FROM artifacts
         WHERE inspection_id = ?1 AND id = ?2",
    )?
    .execute(params![key.inspection_id, key.id, now.as_micros(), reason])?;
    cached(connection, "DELETE FROM artifacts WHERE inspection_id = ?1 AND id = ?2")?
        .execute(params![key.inspection_id, key.id])?;
    Ok(())
}

fn count_gone(connection: &Connection, pictures: u64, bytes: u64) -> rusqlite::Result<()> {
    if pictures > 0 {
        cached(
            connection,
            "UPDATE retention_totals SET gone_pictures = gone_pictures + ?1, gone_bytes = gone_bytes + ?2",
        )?
        .execute([i64::try_from(pictures).unwrap_or(i64::MAX), i64::try_from(bytes).unwrap_or(i64::MAX)])?;
    }
    Ok(())
}

/// Of the delivery `number`, the inspection that may lose its detail, or go.
fn free_to_go(
    connection: &Connection,
    number: i64,
    before: Timestamp,
    condition: &str,
) -> rusqlite::Result<Option<[u8; 16]>> {
    let sql = format!(
        "SELECT v.inspection_id FROM delivered_inspections v JOIN inspections i ON i.id = v.inspection_id
         WHERE v.number = ?1 AND v.delivered_at < ?2 AND NOT {HELD} AND {condition}"
    );
    cached(connection, &sql)?.query_row(params![number, before.as_micros()], |row| row.get(0)).optional()
}

fn remove_detail(connection: &Connection, numbers: &[i64], before: Timestamp) -> rusqlite::Result<StepDone> {
    let mut done = StepDone::default();
    for number in numbers {
        let Some(id) = free_to_go(connection, *number, before, "v.is_brief = 0")? else { continue };
        delete_detail(connection, id)?;
        failpoint::hit("retention.detail.half");
        cached(connection, "UPDATE delivered_inspections SET is_brief = 1 WHERE number = ?1")?.execute([number])?;
        done.count += 1;
    }
    Ok(done)
}

fn delete_detail(connection: &Connection, id: [u8; 16]) -> rusqlite::Result<()> {
    for table in ["items", "anomaly_maps", "frame_qa_logs"] {
        cached(connection, &format!("DELETE FROM {table} WHERE inspection_id = ?1"))?.execute([id])?;
    }
    Ok(())
}

fn remove_inspections(connection: &Connection, numbers: &[i64], before: Timestamp) -> rusqlite::Result<StepDone> {
    let mut done = StepDone::default();
    let (mut reviews, mut remarks) = (0, 0);
    for number in numbers {
        let Some(id) = free_to_go(connection, *number, before, FREE)? else { continue };
        delete_detail(connection, id)?;
        for sql in [
            "DELETE FROM gone_artifacts WHERE inspection_id = ?1",
            "DELETE FROM kit_session_trays WHERE inspection_id = ?1",
            "DELETE FROM delivered_reviews WHERE review_id IN (SELECT id FROM reviews WHERE inspection_id = ?1)",
            "DELETE FROM delivered_remarks WHERE remark_id IN (SELECT id FROM feedback WHERE inspection_id = ?1
                UNION ALL SELECT id FROM action_logs WHERE inspection_id = ?1)",
        ] {
            cached(connection, sql)?.execute([id])?;
        }
        reviews += cached(connection, "DELETE FROM reviews WHERE inspection_id = ?1")?.execute([id])?;
        remarks += cached(connection, "DELETE FROM feedback WHERE inspection_id = ?1")?.execute([id])?;
        remarks += cached(connection, "DELETE FROM action_logs WHERE inspection_id = ?1")?.execute([id])?;
        cached(connection, "DELETE FROM inspections WHERE id = ?1")?.execute([id])?;
        cached(connection, "DELETE FROM delivered_inspections WHERE number = ?1")?.execute([number])?;
        done.count += 1;
    }
    cached(
        connection,
        "UPDATE retention_totals SET pruned_inspections = pruned_inspections + ?1, pruned_reviews = pruned_reviews + ?2,
            pruned_remarks = pruned_remarks + ?3",
    )?
    .execute([
        i64::try_from(done.count).unwrap_or(i64::MAX),
        i64::try_from(reviews).unwrap_or(i64::MAX),
        i64::try_from(remarks).unwrap_or(i64::MAX),
    ])?;
    Ok(done)
}

fn drop_samples(connection: &Connection, rows_max: usize) -> rusqlite::Result<StepDone> {
    let dropped = samples::drop_oldest(connection, rows_max)?;
    Ok(StepDone { count: dropped as u64, ..StepDone::default() })
}

fn note_quarantine(connection: &Connection, found: &Quarantined, now: Timestamp) -> rusqlite::Result<StepDone> {
    if let Some(key) = found.key {
        move_out(connection, key, "quarantined", now)?;
        count_gone(connection, 1, 0)?;
    }
    cached(
        connection,
        "INSERT INTO quarantine (moved_at, relative_path, quarantine_name, expected_sha256, found_sha256, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        now.as_micros(),
        found.relative_path,
        found.quarantine_name,
        found.expected_sha256.map(|sha256| *sha256.as_bytes()),
        found.found_sha256.map(|sha256| *sha256.as_bytes()),
        if found.key.is_some() { "changed" } else { "orphan" },
    ])?;
    Ok(StepDone { count: 1, ..StepDone::default() })
}
