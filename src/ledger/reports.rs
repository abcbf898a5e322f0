//! What the centre is to be told of the recipes and fits it wants: kept until it has it.
//!
//! Invariants: a report stands in the transaction that changed the state it tells of; its id is its key at the centre, so
//! sending it twice has its effect once. Overload: only the newest [`REPORTS_MAX`] are kept, since the last one of each
//! subject is its state. The statements run on the writer's thread, the reads on the caller's.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{LedgerError, LedgerReader};
use crate::types::{Digest, Timestamp};

/// Reports kept while the centre cannot be reached: a change a minute for a night.
const REPORTS_MAX: i64 = 1_000;

/// What became of a recipe or fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Serving,
    Refused,
    Withdrawn,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Serving => "serving",
            Outcome::Refused => "refused",
            Outcome::Withdrawn => "withdrawn",
        }
    }
}

/// What is to be told.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// `recipe` or `fit`.
    pub subject_kind: &'static str,
    /// Station, or index generation, by name.
    pub subject: &'a str,
    pub sha256: Digest,
    /// What served until then, or goes on serving.
    pub previous_sha256: Option<Digest>,
    pub outcome: Outcome,
    pub detail: Option<&'a str>,
}

/// A report as the ledger keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProvisionReport {
    /// Order on this device.
    pub number: i64,
    pub id: Uuid,
    pub occurred_at: Timestamp,
    pub subject_kind: String,
    pub subject: String,
    pub sha256: Digest,
    pub previous_sha256: Option<Digest>,
    pub outcome: String,
    pub detail: Option<String>,
}

pub(super) fn add(connection: &Connection, report: &Report<'_>, now: Timestamp) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO provision_reports (id, occurred_at, subject_kind, subject, sha256, previous_sha256, outcome, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            Uuid::now_v7().as_bytes(),
            now.as_micros(),
            report.subject_kind,
            report.subject,
            report.sha256.as_bytes(),
            report.previous_sha256.map(|sha256| *sha256.as_bytes()),
            report.outcome.as_str(),
            report.detail,
        ],
    )?;
    let keep = "DELETE FROM provision_reports WHERE number <= (SELECT max(number) FROM provision_reports) - ?1";
    connection.execute(keep, params![REPORTS_MAX]).map(drop)
}

/// The centre has all reports up to `number`.
pub(super) fn forget(connection: &Connection, number: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM provision_reports WHERE number <= ?1", params![number]).map(drop)
}

impl LedgerReader {
    /// At most `limit` reports that the centre does not have yet, oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn provision_reports(&self, limit: usize) -> Result<Vec<ProvisionReport>, LedgerError> {
        let sql = "SELECT number, id, occurred_at, subject_kind, subject, sha256, previous_sha256, outcome, detail
             FROM provision_reports ORDER BY number LIMIT ?1";
        self.list(sql, params![i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(ProvisionReport {
                number: row.get(0)?,
                id: Uuid::from_bytes(row.get(1)?),
                occurred_at: Timestamp::from_micros(row.get(2)?),
                subject_kind: row.get(3)?,
                subject: row.get(4)?,
                sha256: Digest::from_bytes(row.get(5)?),
                previous_sha256: row.get::<_, Option<[u8; 32]>>(6)?.map(Digest::from_bytes),
                outcome: row.get(7)?,
                detail: row.get(8)?,
            })
        })
    }
}
