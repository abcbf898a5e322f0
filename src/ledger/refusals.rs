//! Frames that were captured and not inspected: counted by minute, and reported once the minute is over.
//!
//! A count grows while its minute lasts, a delivered row must never change; so what goes to the outbox is a report, a
//! row of its own: version 1 holds the minute's count, and where the clock goes back into a reported minute the next
//! version holds the rest. Reports are named by what they report, so that a restored backup reports nothing twice.

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::store;
use crate::types::{Digest, Timestamp};

const MINUTE_US: i64 = 60_000_000;
/// Reports made in one transaction; the caller asks again.
const REPORTS_MAX: i64 = 500;

fn minute_of(at: Timestamp) -> i64 {
    at.as_micros() - at.as_micros().rem_euclid(MINUTE_US)
}

pub(super) fn insert_refusal(
    connection: &Connection,
    (station, reason): (&str, &str),
    refused: u64,
    now: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO refusals (minute, station, reason, refused) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (minute, station, reason) DO UPDATE SET refused = refused + excluded.refused",
        )?
        .execute(params![minute_of(now), station, reason, i64::try_from(refused).unwrap_or(i64::MAX)])?;
    Ok(())
}

/// A minute's count that is not reported yet.
struct Due {
    minute: i64,
    station: String,
    reason: String,
    version: i64,
    refused: i64,
}

impl Due {
    fn id(&self, device_id: Uuid) -> Uuid {
        let Self { minute, station, reason, version, .. } = self;
        let name = format!("{device_id}\n{minute}\n{station}\n{reason}\n{version}");
        let digest = Digest::of(name.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&digest.as_bytes()[..16]);
        uuid::Builder::from_custom_bytes(half).into_uuid()
    }
}

/// Report what was refused in minutes other than the one of `now`; returns how many reports joined the outbox.
pub(super) fn report(connection: &Connection, now: Timestamp) -> rusqlite::Result<usize> {
    let due = due(connection, minute_of(now))?;
    if due.is_empty() {
        return Ok(0);
    }
    let device_id = store::read_meta(connection)?.device_id;
    for due in &due {
        let id = due.id(device_id);
        connection
            .prepare_cached(
                "INSERT INTO refusal_reports (id, minute, station, reason, version, refused)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![id.as_bytes(), due.minute, due.station, due.reason, due.version, due.refused])?;
        connection
            .prepare_cached(
                "UPDATE refusals SET reported = refused, version = ?4
                 WHERE minute = ?1 AND station = ?2 AND reason = ?3",
            )?
            .execute(params![due.minute, due.station, due.reason, due.version])?;
        connection
            .prepare_cached(
                "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
                 VALUES ('refusal_reports', ?1, ?2, 1, 'pending', 0, ?3)",
            )?
            .execute(params![due.minute, id.as_bytes(), now.as_micros()])?;
    }
    let count = i64::try_from(due.len()).unwrap_or(i64::MAX);
    connection.prepare_cached("UPDATE outbox_state SET committed_total = committed_total + ?1")?.execute([count])?;
    Ok(due.len())
}

fn due(connection: &Connection, current_minute: i64) -> rusqlite::Result<Vec<Due>> {
    let read = |row: &Row<'_>| {
        Ok(Due {
            minute: row.get(0)?,
            station: row.get(1)?,
            reason: row.get(2)?,
            version: row.get(3)?,
            refused: row.get(4)?,
        })
    };
    connection
        .prepare_cached(
            "SELECT minute, station, reason, 1 + coalesce((SELECT max(f.version) FROM refusal_reports f
                WHERE f.minute = r.minute AND f.station = r.station AND f.reason = r.reason), 0), refused - reported
             FROM refusals r
             WHERE refused > reported AND minute <> ?1 ORDER BY minute, station, reason LIMIT ?2",
        )?
        .query_map([current_minute, REPORTS_MAX], read)?
        .collect()
}
