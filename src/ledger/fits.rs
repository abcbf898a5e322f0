//! Fits of the centre: which are wanted, and what became of them here.
//!
//! Invariants: a generation has at most one fit of the centre in service; one that was refused changes nothing of it.
//! The statements run on the writer's thread, the reads on the caller's.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::desired::{CENTRAL_FORMAT, CentralTable};
use super::reports::{self, Outcome, Report};
use super::{LedgerError, LedgerReader};
use crate::types::{Digest, Timestamp};

/// A fit as the centre sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CentralFit {
    /// The index generation that it was learned for.
    pub generation_sha256: Digest,
    /// Of `body`.
    pub sha256: Digest,
    /// The text of the fit's file.
    pub body: String,
}

/// What became of the centre's fits for one index generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitState {
    pub generation_sha256: Digest,
    /// Proved here, and beside the index.
    pub taken_sha256: Option<Digest>,
    pub taken_at: Option<Timestamp>,
    /// The last one that cannot be used here, and why.
    pub refused_sha256: Option<Digest>,
    pub refused_error: Option<String>,
}

impl FitState {
    /// The generation's folder within an index.
    #[must_use]
    pub fn generation_name(&self) -> String {
        generation_name(self.generation_sha256)
    }
}

/// Index folders call their generations so.
#[must_use]
pub fn generation_name(generation_sha256: Digest) -> String {
    format!("gen-{}", generation_sha256.short())
}

/// What is stored of a row, for the key; the text must be the one that its digest names.
pub(super) fn key_of(body: &str) -> Result<String, String> {
    let fit: CentralFit = serde_json::from_str(body).map_err(|error| format!("it cannot be read: {error}"))?;
    if Digest::of(fit.body.as_bytes()) != fit.sha256 {
        return Err("its text is not the one its digest names".to_owned());
    }
    Ok(fit.generation_sha256.to_string())
}

/// The fit lies beside its index from now on.
pub(super) fn take(
    connection: &Connection,
    generation_sha256: Digest,
    sha256: Digest,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let before = taken(connection, generation_sha256)?;
    connection.execute(
        "INSERT INTO central_fits (generation_sha256, taken_sha256, taken_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (generation_sha256) DO UPDATE SET taken_sha256 = excluded.taken_sha256,
            taken_at = excluded.taken_at, refused_sha256 = NULL, refused_error = NULL, refused_at = NULL",
        params![generation_sha256.as_bytes(), sha256.as_bytes(), now.as_micros()],
    )?;
    report(connection, generation_sha256, (sha256, before), Outcome::Serving, None, now)
}

/// The fit cannot be used here.
pub(super) fn refuse(
    connection: &Connection,
    generation_sha256: Digest,
    sha256: Digest,
    error: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let said = "SELECT 1 FROM central_fits
        WHERE generation_sha256 = ?1 AND refused_sha256 = ?2 AND refused_error = ?3";
    let is_said = connection
        .query_row(said, params![generation_sha256.as_bytes(), sha256.as_bytes(), error], |_| Ok(()))
        .optional()?
        .is_some();
    connection.execute(
        "INSERT INTO central_fits (generation_sha256, refused_sha256, refused_error, refused_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (generation_sha256) DO UPDATE SET refused_sha256 = excluded.refused_sha256,
            refused_error = excluded.refused_error, refused_at = excluded.refused_at",
        params![generation_sha256.as_bytes(), sha256.as_bytes(), error, now.as_micros()],
    )?;
    if is_said {
        return Ok(());
    }
    let serving = taken(connection, generation_sha256)?;
    report(connection, generation_sha256, (sha256, serving), Outcome::Refused, Some(error), now)
}

/// The centre took its fit back, and so did this device.
pub(super) fn give_up(connection: &Connection, generation_sha256: Digest, now: Timestamp) -> rusqlite::Result<()> {
    let before = taken(connection, generation_sha256)?;
    connection
        .execute("DELETE FROM central_fits WHERE generation_sha256 = ?1", params![generation_sha256.as_bytes()])?;
    let Some(sha256) = before else { return Ok(()) };
    report(connection, generation_sha256, (sha256, None), Outcome::Withdrawn, None, now)
}

fn taken(connection: &Connection, generation_sha256: Digest) -> rusqlite::Result<Option<Digest>> {
    let sql = "SELECT taken_sha256 FROM central_fits WHERE generation_sha256 = ?1";
    let found = connection.query_row(sql, params![generation_sha256.as_bytes()], |row| digest(row, 0)).optional()?;
    Ok(found.flatten())
}

fn report(
    connection: &Connection,
    generation_sha256: Digest,
    (sha256, previous_sha256): (Digest, Option<Digest>),
    outcome: Outcome,
    detail: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let subject = &generation_name(generation_sha256);
    reports::add(connection, &Report { subject_kind: "fit", subject, sha256, previous_sha256, outcome, detail }, now)
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Digest>> {
    Ok(row.get::<_, Option<[u8; 32]>>(index)?.map(Digest::from_bytes))
}

impl LedgerReader {
    /// The fits that the centre wants in service at this site, by generation.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn desired_fits(&self) -> Result<Vec<CentralFit>, LedgerError> {
        let sql = "SELECT body FROM central_rows WHERE table_name = ?1 AND state = 'applied' AND format <= ?2
             ORDER BY key";
        let table = CentralTable::Fits.name();
        let bodies = self.list(sql, params![table, CENTRAL_FORMAT], |row| row.get::<_, String>(0))?;
        Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
    }

    /// What became of the centre's fits, by generation.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn fit_states(&self) -> Result<Vec<FitState>, LedgerError> {
        let sql = "SELECT generation_sha256, taken_sha256, taken_at, refused_sha256, refused_error FROM central_fits
             ORDER BY generation_sha256";
        self.list(sql, params![], |row| {
            Ok(FitState {
                generation_sha256: Digest::from_bytes(row.get(0)?),
                taken_sha256: digest(row, 1)?,
                taken_at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_micros),
                refused_sha256: digest(row, 3)?,
                refused_error: row.get(4)?,
            })
        })
    }
}
