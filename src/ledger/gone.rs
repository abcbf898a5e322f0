//! Pictures that the ledger once named and that are gone: when, and why.

use std::path::Path;

use rusqlite::{OptionalExtension as _, params};
use uuid::Uuid;

use super::{LedgerError, LedgerReader};
use crate::types::Timestamp;

/// Why a picture is not here any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// It was older than the policy keeps it.
    Expired,
    /// The disk or the budget was full.
    Pressure,
    /// Its file was not what the ledger says.
    Quarantined,
}

/// A picture that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GonePicture {
    pub reason: GoneReason,
    pub gone_at: Timestamp,
    /// Whether it was of a PASS, which is kept for a shorter time.
    pub is_pass: bool,
}

impl LedgerReader {
    /// What became of the picture at `relative_path` (below `artifacts/`); `None`: nobody knows of one, or it is there.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn gone_picture(&self, relative_path: &str) -> Result<Option<GonePicture>, LedgerError> {
        // Files are called by their inspection, which spares an index that every removal would write.
        let name = Path::new(relative_path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(inspection) = name.get(..36).and_then(|id| id.parse::<Uuid>().ok()) else { return Ok(None) };
        let sql = "SELECT g.reason, g.gone_at, i.verdict = 'pass' FROM gone_artifacts g
             JOIN inspections i ON i.id = g.inspection_id WHERE g.inspection_id = ?1 AND g.relative_path = ?2";
        let read = |row: &rusqlite::Row<'_>| {
            let reason = match row.get::<_, String>(0)?.as_str() {
                "expired" => GoneReason::Expired,
                "pressure" => GoneReason::Pressure,
                _ => GoneReason::Quarantined,
            };
            Ok(GonePicture { reason, gone_at: Timestamp::from_micros(row.get(1)?), is_pass: row.get(2)? })
        };
        self.connection
            .query_row(sql, params![inspection.as_bytes(), relative_path], read)
            .optional()
            .map_err(LedgerError::sqlite(&self.path))
    }
}
