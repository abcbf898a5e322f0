//! [`LedgerReader`]: a read-only connection, for lists, counters, the outbox and its proof.
//!
//! Reads never wait for the writer (WAL), and see one consistent state per statement.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;

use super::LedgerError;
use super::quarantine::QuarantinedUnit;
use super::store::{self, Meta};
use crate::types::{Digest, Inspection, InspectionId, Timestamp};

/// Invariant 3: `captured = committed + refused`, `committed = delivered + pending`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Inspections, reviews, ended kit sessions, stock corrections, reports of refusals, versions of people, feedback,
    /// actions and changes of the configuration ever committed.
    pub committed: u64,
    /// Reviews among them.
    pub reviews: u64,
    /// Ended kit sessions and stock corrections among them.
    pub kit_units: u64,
    /// Reports of refusals among them: what was refused in one minute for one reason.
    pub refusal_reports: u64,
    /// Versions of people among them.
    pub operators: u64,
    /// Feedback and actions among them.
    pub feedback: u64,
    /// Changes of the configuration among them: what changed at one start, or by one recipe.
    pub config_changes: u64,
    /// Those the central side acknowledged.
    pub delivered: u64,
    /// Those it did not, and that wait; includes `parked`.
    pub pending: u64,
    /// Those that cannot be sent and that a repair set aside.
    pub quarantined: u64,
    /// Those it refused.
    pub parked: u64,
    /// Frames captured and not inspected.
    pub refused: u64,
    /// Frames captured: inspections committed, and refused.
    pub captured: u64,
    /// Samples of GPUs and machine that fell out of the spool.
    pub dropped_samples: u64,
}

/// The state of the outbox.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutboxStatus {
    #[serde(flatten)]
    pub counters: Counters,
    /// When the oldest pending unit was committed.
    pub oldest_at: Option<Timestamp>,
    /// The first parked units and what central said of them, at most ten.
    pub parked_units: Vec<ParkedUnit>,
    /// The first that a repair set aside, at most ten.
    pub quarantined_units: Vec<QuarantinedUnit>,
}

/// A unit that central refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParkedUnit {
    pub seq: i64,
    /// Id of the inspection or review.
    pub id: uuid::Uuid,
    pub attempts: u32,
    pub last_error: String,
}

#[derive(Debug)]
pub struct LedgerReader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) state_dir: PathBuf,
}

impl LedgerReader {
    /// Open the ledger below `state_dir` for reading; the daemon may be running.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        let connection = store::open_for_reading(state_dir)?;
        Ok(Self { connection, path: store::database_path(state_dir), state_dir: state_dir.to_owned() })
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn meta(&self) -> Result<Meta, LedgerError> {
        store::read_meta(&self.connection).map_err(LedgerError::sqlite(&self.path))
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn counters(&self) -> Result<Counters, LedgerError> {
        let sql = "SELECT committed_total, delivered_total, dropped_samples,
                (SELECT count(*) FROM outbox WHERE state = 'parked'),
                (SELECT coalesce(sum(refused), 0) FROM refusals),
                (SELECT count(*) FROM reviews) + pruned_reviews,
                (SELECT count(*) FROM kit_sessions WHERE ended_at IS NOT NULL)
                    + (SELECT count(*) FROM stock_ledger WHERE reference_type = 'manual'),
                (SELECT count(*) FROM refusal_reports),
                (SELECT count(*) FROM outbox_quarantine WHERE kind <> 'duplicate'),
                (SELECT count(*) FROM operators),
                (SELECT count(*) FROM feedback) + (SELECT count(*) FROM action_logs) + pruned_remarks,
                (SELECT count(*) FROM config_changes)
             FROM outbox_state, retention_totals";
        let read = |row: &Row<'_>| -> rusqlite::Result<[u64; 12]> {
            let mut counts = [0; 12];
            for (index, slot) in counts.iter_mut().enumerate() {
                *slot = count(row, index)?;
            }
            Ok(counts)
        };
        let counts = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([], read))
            .map_err(LedgerError::sqlite(&self.path))?;
        let [committed, delivered, dropped_samples, parked, refused, reviews, kit_units, refusal_reports, ..] = counts;
        let [.., quarantined, operators, feedback, config_changes] = counts;
        let others = reviews + kit_units + refusal_reports + operators + feedback + config_changes;
        Ok(Counters {
            committed,
            reviews,
            kit_units,
            refusal_reports,
            operators,
            feedback,
            config_changes,
            delivered,
            pending: committed.saturating_sub(delivered + quarantined),
            quarantined,
            parked,
            refused,
            captured: committed.saturating_sub(others) + refused,
            dropped_samples,
        })
    }

    /// The last `count` inspections in the order of their commits, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn recent(&self, count: usize) -> Result<Vec<Inspection>, LedgerError> {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let records: Vec<String> = self
            .connection
            .prepare_cached("SELECT record FROM inspections ORDER BY rowid DESC LIMIT ?1")
            .and_then(|mut statement| statement.query_map([limit], |row| row.get(0))?.collect())
            .map_err(LedgerError::sqlite(&self.path))?;
        records.iter().map(|record| parse(record)).collect()
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn get(&self, id: InspectionId) -> Result<Option<Inspection>, LedgerError> {
        let record: Option<String> = self
            .connection
            .prepare_cached("SELECT record FROM inspections WHERE id = ?1")
            .and_then(|mut statement| statement.query_row(params![id.0.as_bytes()], |row| row.get(0)).optional())
            .map_err(LedgerError::sqlite(&self.path))?;
        record.map(|record| parse(&record)).transpose()
    }

    /// The provenance record called `digest`, canonical JSON.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn provenance(&self, digest: Digest) -> Result<Option<String>, LedgerError> {
        self.connection
            .prepare_cached("SELECT record FROM provenances WHERE sha256 = ?1")
            .and_then(|mut statement| statement.query_row(params![digest.as_bytes()], |row| row.get(0)).optional())
            .map_err(LedgerError::sqlite(&self.path))
    }

    /// Whether refusals were counted that are in no report yet; those of the running minute are among them.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn has_unreported_refusals(&self) -> Result<bool, LedgerError> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM refusals WHERE refused > reported)")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(LedgerError::sqlite(&self.path))
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox_status(&self) -> Result<OutboxStatus, LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        let counters = self.counters()?;
        let oldest_at: Option<i64> = self
            .connection
            .query_row("SELECT enqueued_at FROM outbox ORDER BY seq LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(&on_sqlite)?;
        let sql = "SELECT seq, key_id, attempts, coalesce(last_error, '') FROM outbox WHERE state = 'parked'
             ORDER BY seq LIMIT 10";
        let read = |row: &Row<'_>| {
            Ok(ParkedUnit {
                seq: row.get(0)?,
                id: uuid::Uuid::from_bytes(row.get(1)?),
                attempts: row.get(2)?,
                last_error: row.get(3)?,
            })
        };
        let parked_units = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map([], read)?.collect())
            .map_err(&on_sqlite)?;
        let quarantined_units = self.quarantined(10)?;
        Ok(OutboxStatus { counters, oldest_at: oldest_at.map(Timestamp::from_micros), parked_units, quarantined_units })
    }
}

fn count(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

pub(super) fn parse(record: &str) -> Result<Inspection, LedgerError> {
    serde_json::from_str(record)
        .map_err(|error| LedgerError::Unreadable { table: "inspections", detail: error.to_string() })
}
