//! The proof that nothing is lost: invariants 1 and 3, checked against what is on disk.

use std::path::Path;

use rusqlite::Row;
use serde::Serialize;

use super::LedgerError;
use super::artifacts::artifacts_dir;
use super::balance::{self, Balance};
use super::pack::Span;
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
    pub fn verify(&self, progress: impl FnMut(u64, u64)) -> Result<Proof, LedgerError> {
        let dir = artifacts_dir(&self.state_dir);
        self.verify_with(|relative_path| Digest::of_file(&dir.join(relative_path)), progress)
    }

    /// As [`LedgerReader::verify`], with pictures that lie elsewhere: `digest_of` says what is at a relative path.
    ///
    /// # Errors
    /// As there.
    pub fn verify_with(
        &self,
        digest_of: impl Fn(&str) -> std::io::Result<Digest>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Proof, LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        // Every statement up to COMMIT sees the state of the first.
        self.connection.execute_batch("BEGIN").map_err(&on_sqlite)?;
        let outcome = self.verify_snapshot(&digest_of, &mut progress);
        self.connection.execute_batch("COMMIT").map_err(&on_sqlite)?;
        outcome
    }

    fn verify_snapshot(
        &self,
        digest_of: &impl Fn(&str) -> std::io::Result<Digest>,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<Proof, LedgerError> {
        let mut proof = Proof { counters: self.counters()?, ..Proof::default() };
        let finding = self.text("PRAGMA quick_check(1)")?;
        proof.expect(finding == "ok", || format!("the file is damaged: {finding}; restore the last backup"));
        self.verify_totals(&mut proof)?;
        self.verify_references(&mut proof)?;
        self.verify_records(&mut proof)?;
        self.verify_units(&mut proof)?;
        self.verify_artifacts(&mut proof, digest_of, progress)?;
        Ok(proof)
    }

    fn verify_totals(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        let balance = Balance::read(&self.connection).map_err(&on_sqlite)?;
        for fault in balance.faults() {
            proof.expect(false, || fault);
        }
        if balance.deficit() > 0 {
            for (from, to) in balance::gaps(&self.connection).map_err(&on_sqlite)? {
                proof.expect(false, || format!("outbox entries {from} to {to} are gone and were not delivered"));
            }
        }
        for seq in self.duplicate_entries()? {
            proof.expect(false, || {
                format!("outbox entry {seq} names a unit that an earlier entry names too; run `loupe outbox repair`")
            });
        }
        // Each inspection waits, was set aside or is noted as delivered: what is none of these would never go.
        let stray = "SELECT i.code FROM inspections i
             WHERE i.id NOT IN (SELECT inspection_id FROM delivered_inspections)
                AND i.id NOT IN (SELECT key_id FROM outbox WHERE root_table = 'inspections')
                AND i.id NOT IN (SELECT key_id FROM outbox_quarantine)";
        self.for_each(stray, |row| {
            let code: String = row.get(0)?;
            proof.expect(false, || format!("{code} neither waits nor was delivered; run `loupe outbox repair`"));
            Ok(())
        })?;
        let unbalanced =
            "SELECT r.station, r.reason FROM refusals r WHERE r.reported <> (SELECT coalesce(sum(f.refused), 0)
                 FROM refusal_reports f WHERE f.minute = r.minute AND f.station = r.station AND f.reason = r.reason)";
        self.for_each(unbalanced, |row| {
            let (station, reason): (String, String) = (row.get(0)?, row.get(1)?);
            proof.expect(false, || format!("what {station} refused for {reason} differs from its reports"));
            Ok(())
        })?;
        self.verify_people(proof)?;
        let above = "SELECT i.code FROM inspections i LEFT JOIN inspection_codes c ON c.day = substr(i.code, 5, 8)
             WHERE CAST(substr(i.code, 14) AS INTEGER) > coalesce(c.last_number, 0)";
        self.for_each(above, |row| {
            let code: String = row.get(0)?;
            proof.expect(false, || format!("{code} could be given a second time; run `loupe outbox repair`"));
            Ok(())
        })
    }

    /// Every version of a person is there, and no two people sign with one name.
    fn verify_people(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        let torn = "SELECT max(username) FROM operators GROUP BY operator_id HAVING count(*) <> max(version)";
        self.for_each(torn, |row| {
            let name: String = row.get(0)?;
            proof.expect(false, || format!("versions of person {name} are missing; restore the last backup"));
            Ok(())
        })?;
        let shared = "SELECT min(username) FROM current_operators GROUP BY username_key HAVING count(*) > 1";
        self.for_each(shared, |row| {
            let name: String = row.get(0)?;
            proof.expect(false, || format!("two people sign as {name}; rename one with `loupe people rename`"));
            Ok(())
        })
    }

    /// What the rows rest on: provenance records octet by octet, and every reference.
    fn verify_references(&self, proof: &mut Proof) -> Result<(), LedgerError> {
        self.for_each("SELECT sha256, record FROM provenances", |row| {
            let (sha256, record): ([u8; 32], String) = (row.get(0)?, row.get(1)?);
            let sha256 = Digest::from_bytes(sha256);
            proof.expect(Digest::of(record.as_bytes()) == sha256, || {
                format!("the provenance record {} has changed; restore the last backup", sha256.short())
            });
            Ok(())
        })?;
        self.for_each("PRAGMA foreign_key_check", |row| {
            let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
            proof.expect(false, || format!("a row of {table} names one of {parent} that is not there"));
            Ok(())
        })
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
            let entries = self.entries("", Span::beyond(after_seq, ENTRIES_PER_READ))?;
            let Some(last) = entries.last() else { return Ok(()) };
            after_seq = last.seq;
            for entry in &entries {
                proof.units_checked += 1;
                if let Some((_, reason)) = self.entry_fault(entry)? {
                    proof.expect(false, || format!("{reason}; `loupe outbox repair` sets it aside"));
                }
            }
        }
    }

    fn verify_artifacts(
        &self,
        proof: &mut Proof,
        digest_of: &impl Fn(&str) -> std::io::Result<Digest>,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<(), LedgerError> {
        let total = self.number("SELECT count(*) FROM artifacts")?;
        let dir = artifacts_dir(&self.state_dir);
        self.for_each("SELECT relative_path, sha256 FROM artifacts ORDER BY captured_at", |row| {
            let (relative_path, sha256): (String, [u8; 32]) = (row.get(0)?, row.get(1)?);
            proof.artifacts_checked += 1;
            let found = digest_of(&relative_path);
            let fault = artifact_fault(&dir.join(&relative_path), found, Digest::from_bytes(sha256));
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

fn artifact_fault(path: &Path, found: std::io::Result<Digest>, expected: Digest) -> Option<String> {
    match found {
        Ok(found) if found == expected => None,
        Ok(found) => Some(format!("{} has changed: {} instead of {}", path.display(), found.short(), expected.short())),
        Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
    }
}
