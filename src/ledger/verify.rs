//! The proof that nothing is lost: invariants 1 and 3, checked against what is on disk.

use std::path::Path;

use rusqlite::Row;
use serde::Serialize;

use super::LedgerError;
use super::artifacts::artifacts_dir;
use super::reader::{Counters, LedgerReader, parse};
use crate::types::Digest;

/// Outbox entries read at a time.
const ENTRIES_PER_READ: usize = 500;
/// Faults listed; more are only counted.
const FAULTS_MAX: usize = 100;

/// What [`LedgerReader::verify`] looked at, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Proof {
    pub counters: Counters,
    pub inspections_checked: u64,
    pub units_checked: u64,
    pub artifacts_checked: u64,
    /// The first hundred, in words.
    pub faults: Vec<String>,
    pub fault_count: u64,
}

impl Proof {
    #[must_use]
    pub fn holds(&self) -> bool {
        self.fault_count == 0
    }

    fn expect(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.fault_count += 1;
            if self.faults.len() < FAULTS_MAX {
                self.faults.push(fault());
            }
        }
    }
}

impl LedgerReader {
    /// Check one consistent state of the ledger, while the daemon may go on; `progress` hears (done, total) artifacts.
    ///
    /// # Errors
    /// When the ledger cannot be read at all; what it finds wrong is in the [`Proof`].
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<Proof, LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        // Every statement up to COMMIT sees the state of the first.
        self.connection.execute_batch("BEGIN").map_err(&on_sqlite)?;
        let outcome = self.verify_snapshot(&mut progress);
        self.connection.execute_batch("COMMIT").map_err(&on_sqlite)?;
        outcome
    }

    fn verify_snapshot(&self, progress: &mut impl FnMut(u64, u64)) -> Result<Proof, LedgerError> {
        let mut proof = Proof { counters: self.counters()?, ..Proof::default() };
        let finding = self.text("PRAGMA quick_check(1)")?;
        proof.expect(finding == "ok", || format!("the file is damaged: {finding}"));
        self.verify_totals(&mut proof)?;
        self.verify_records(&mut proof)?;
        self.verify_units(&mut proof)?;
        self.verify_artifacts(&mut proof, progress)?;
        Ok(proof)
    }

    fn verify_totals(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        let committed = proof.counters.committed;
        let inspections = committed.saturating_sub(proof.counters.reviews + proof.counters.kit_units);
        let waiting = self.number("SELECT count(*) FROM outbox")?;
        let stored = self.number("SELECT count(*) FROM inspections")?;
        let pruned = self.number("SELECT pruned_inspections FROM retention_totals")?;
        // Each inspection is waiting or noted as delivered: what is neither would never go.
        let noted = self.number(
            "SELECT (SELECT count(*) FROM delivered_inspections)
                + (SELECT count(*) FROM outbox WHERE root_table = 'inspections')",
        )?;
        let last_seq = self.number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'")?;
        let numbered = self.number("SELECT coalesce(sum(last_number), 0) FROM inspection_codes")?;
        let delivered = proof.counters.delivered;
        proof.expect(committed == delivered + waiting, || {
            format!("committed {committed} is not delivered {delivered} + waiting {waiting}")
        });
        proof.expect(inspections == stored + pruned, || {
            format!("committed {inspections}, but {stored} inspections are stored and {pruned} have expired")
        });
        proof
            .expect(stored == noted, || format!("{stored} inspections are stored, but {noted} wait or were delivered"));
        proof.expect(committed == last_seq, || {
            format!("committed {committed}, but the outbox has numbered {last_seq}: entries are missing or double")
        });
        proof.expect(inspections == numbered, || format!("committed {inspections}, but {numbered} codes were given"));
        let strays = self.number(
            "SELECT count(*) FROM outbox o WHERE NOT EXISTS
                 (SELECT 1 FROM inspections i
                  WHERE o.root_table = 'inspections' AND i.captured_at = o.key_at AND i.id = o.key_id)
             AND NOT EXISTS
                 (SELECT 1 FROM reviews r
                  WHERE o.root_table = 'reviews' AND r.occurred_at = o.key_at AND r.id = o.key_id)
             AND NOT EXISTS
                 (SELECT 1 FROM kit_sessions s
                  WHERE o.root_table = 'kit_sessions' AND s.started_at = o.key_at AND s.id = o.key_id)
             AND NOT EXISTS
                 (SELECT 1 FROM stock_ledger b
                  WHERE o.root_table = 'stock_ledger' AND b.recorded_at = o.key_at AND b.id = o.key_id)",
        )?;
        proof.expect(strays == 0, || format!("{strays} outbox entries name no row that is there"));
        Ok(())
    }

    fn verify_records(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        let sql = "SELECT i.code, i.record, i.verdict, i.item_count,
                (SELECT count(*) FROM items c WHERE c.inspection_id = i.id),
                (SELECT count(*) FROM artifacts a WHERE a.inspection_id = i.id)
                    + (SELECT count(*) FROM gone_artifacts g WHERE g.inspection_id = i.id),
                i.id IN (SELECT inspection_id FROM delivered_inspections WHERE is_brief = 1)
             FROM inspections i";
        self.for_each(sql, |row| {
            let (code, record, verdict): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (item_count, items, artifacts): (i64, i64, i64) = (row.get(3)?, row.get(4)?, row.get(5)?);
            // The detail of a delivered inspection expires before it does; its record keeps the items.
            let items = if row.get(6)? && items == 0 { item_count } else { items };
            proof.inspections_checked += 1;
            proof.expect(item_count == items, || format!("{code} has {items} items instead of {item_count}"));
            match parse(&record) {
                Ok(inspection) => {
                    let agrees = inspection.code == code
                        && inspection.verdict.as_str() == verdict
                        && i64::try_from(inspection.items.len()) == Ok(items)
                        && i64::try_from(inspection.artifacts.len()) == Ok(artifacts);
                    proof.expect(agrees, || format!("{code}: the record and its rows differ"));
                }
                Err(error) => proof.expect(false, || format!("{code}: {error}")),
            }
            Ok(())
        })
    }

    fn verify_units(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        let mut after_seq = 0;
        loop {
            let entries = self.entries("", after_seq, ENTRIES_PER_READ)?;
            let Some(last) = entries.last() else { return Ok(()) };
            after_seq = last.seq;
            for entry in &entries {
                proof.units_checked += 1;
                if let Err(error) = self.unit(entry) {
                    proof.expect(false, || error.to_string());
                }
            }
        }
    }

    fn verify_artifacts(&self, proof: &mut Proof, progress: &mut impl FnMut(u64, u64)) -> Result<(), LedgerError> {
        let total = self.number("SELECT count(*) FROM artifacts")?;
        let dir = artifacts_dir(&self.state_dir);
        self.for_each("SELECT relative_path, sha256 FROM artifacts ORDER BY captured_at", |row| {
            let (relative_path, sha256): (String, [u8; 32]) = (row.get(0)?, row.get(1)?);
            proof.artifacts_checked += 1;
            let fault = artifact_fault(&dir.join(&relative_path), Digest::from_bytes(sha256));
            proof.expect(fault.is_none(), || fault.unwrap_or_default());
            progress(proof.artifacts_checked, total);
            Ok(())
        })
    }

    fn for_each(&self, sql: &str, mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<()>) -> Result<(), LedgerError> {
        let mut run = || {
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                visit(row)?;
            }
            Ok(())
        };
        run().map_err(LedgerError::sqlite(&self.path))
    }

    pub(super) fn number(&self, sql: &str) -> Result<u64, LedgerError> {
        let number: i64 =
            self.connection.query_row(sql, [], |row| row.get(0)).map_err(LedgerError::sqlite(&self.path))?;
        Ok(u64::try_from(number).unwrap_or(0))
    }

    fn text(&self, sql: &str) -> Result<String, LedgerError> {
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(LedgerError::sqlite(&self.path))
    }
}

fn artifact_fault(path: &Path, expected: Digest) -> Option<String> {
    match Digest::of_file(path) {
        Ok(found) if found == expected => None,
        Ok(found) => Some(format!("{} has changed: {} instead of {}", path.display(), found.short(), expected.short())),
        Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
    }
}
