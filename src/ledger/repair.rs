//! Repair of the outbox: what cannot be sent is set aside, what would never be sent is enqueued again, and the totals
//! are set right. Nothing is deleted; a second repair finds nothing to do.
//!
//! One transaction under the ledger's lock, so the daemon must not be running. A unit that may or may not have been
//! delivered is enqueued: sent again it changes nothing at the centre, left out it would be lost. After a repair
//! [`LedgerReader::verify`] holds, as far as the outbox goes: pictures and damaged pages are not its business.

use std::path::Path;

use rusqlite::params;
use serde::Serialize;

use super::LedgerError;
use super::balance::Balance;
use super::pack::Span;
use super::quarantine::{self, QuarantineKind};
use super::reader::LedgerReader;
use super::store;
use crate::clock::Clock;
use crate::types::Timestamp;

/// Lines listed of each kind; more are only counted.
const LINES_MAX: usize = 100;
/// Outbox entries read at a time.
const ENTRIES_PER_READ: usize = 500;

/// How the units of one table are found that no entry names: what the repair must know of each root.
pub(super) struct Root {
    pub table: &'static str,
    /// SELECT key time, id, row count and a name for people of every unit without an entry that meets `{also}`.
    pub select: &'static str,
    /// SQL condition: no delivery of it is noted, where deliveries of its table are.
    is_not_noted: &'static str,
    /// SQL condition: it was certainly not delivered, since its commit is later than that of the oldest entry that
    /// still waits for its first sending, or since deliveries of its table are noted.
    is_certain: &'static str,
}

pub(super) const ROOTS: [Root; 9] = [
    Root {
        table: "inspections",
        select: "SELECT u.captured_at, u.id, 1 + (SELECT count(*) FROM items c WHERE c.inspection_id = u.id)
                + (SELECT count(*) FROM anomaly_maps c WHERE c.inspection_id = u.id)
                + (SELECT count(*) FROM frame_qa_logs c WHERE c.inspection_id = u.id)
                + (SELECT count(*) FROM sent_artifacts c WHERE c.inspection_id = u.id), u.code
            FROM inspections u WHERE {also}
            ORDER BY u.rowid",
        is_not_noted: "u.id NOT IN (SELECT inspection_id FROM delivered_inspections)",
        is_certain: "true",
    },
    Root {
        table: "reviews",
        select: "SELECT u.occurred_at, u.id, 1, 'review of ' || u.reviewer FROM reviews u
            WHERE {also} ORDER BY u.seq",
        is_not_noted: "u.id NOT IN (SELECT review_id FROM delivered_reviews)",
        is_certain: "true",
    },
    Root {
        table: "kit_sessions",
        select: "SELECT u.started_at, u.id, 1 + (SELECT count(*) FROM stock_ledger b WHERE b.reference_id = u.id),
                'session of kit ' || u.kit_code FROM kit_sessions u WHERE u.ended_at IS NOT NULL AND {also}
            ORDER BY u.ended_at",
        is_not_noted: "true",
        is_certain: "u.ended_at > (SELECT min(enqueued_at) FROM outbox WHERE state = 'pending' AND attempts = 0)",
    },
    Root {
        table: "stock_ledger",
        select: "SELECT u.recorded_at, u.id, 1, 'booking of part ' || u.part_id FROM stock_ledger u
            WHERE u.reference_type = 'manual' AND {also} ORDER BY u.seq",
        is_not_noted: "true",
        is_certain: "u.recorded_at > (SELECT min(enqueued_at) FROM outbox WHERE state = 'pending' AND attempts = 0)",
    },
    Root {
        table: "refusal_reports",
        select: "SELECT u.minute, u.id, 1, 'report of ' || u.refused || ' refusals' FROM refusal_reports u WHERE {also}
            ORDER BY u.minute, u.id",
        is_not_noted: "true",
        is_certain: "u.minute > (SELECT min(enqueued_at) FROM outbox WHERE state = 'pending' AND attempts = 0)",
    },
    Root {
        table: "operators",
        select: "SELECT u.changed_at, u.id, 1, 'version ' || u.version || ' of person ' || u.username FROM operators u
            WHERE {also} ORDER BY u.seq",
        is_not_noted: "true",
        is_certain: "u.changed_at > (SELECT min(enqueued_at) FROM outbox WHERE state = 'pending' AND attempts = 0)",
    },
    Root {
        table: "feedback",
        select: "SELECT u.occurred_at, u.id, 1, 'feedback of ' || u.author FROM feedback u WHERE {also} ORDER BY u.seq",
        is_not_noted: "u.id NOT IN (SELECT remark_id FROM delivered_remarks)",
        is_certain: "true",
    },
    Root {
        table: "action_logs",
        select: "SELECT u.occurred_at, u.id, 1, 'action of ' || u.action_by FROM action_logs u
            WHERE {also} ORDER BY u.seq",
        is_not_noted: "u.id NOT IN (SELECT remark_id FROM delivered_remarks)",
        is_certain: "true",
    },
    Root {
        table: "config_history",
        select: "SELECT u.occurred_at, u.id, u.key_count, u.key_count || ' keys of the configuration'
            FROM config_changes u WHERE {also} ORDER BY u.occurred_at, u.id",
        is_not_noted: "true",
        is_certain: "u.occurred_at > (SELECT min(enqueued_at) FROM outbox WHERE state = 'pending' AND attempts = 0)",
    },
];

/// Things of one kind: the first hundred in words, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub count: u64,
    pub lines: Vec<String>,
}

impl Listed {
    fn add(&mut self, line: impl FnOnce() -> String) {
        self.count += 1;
        if self.lines.len() < LINES_MAX {
            self.lines.push(line());
        }
    }
}

/// A total that was set right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Correction {
    pub what: &'static str,
    pub before: i64,
    pub after: i64,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// Entries moved to the quarantine.
    pub quarantined: Listed,
    /// Entries that can be read again, put back.
    pub put_back: Listed,
    /// Units that were certainly not delivered and had no entry.
    pub enqueued: Listed,
    /// Units that may have been delivered and had no entry.
    pub enqueued_in_doubt: Listed,
    /// Entries that the centre refused and that are offered again.
    pub offered_again: u64,
    pub corrections: Vec<Correction>,
}

impl Repair {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Repair the ledger below `state_dir`; with `dry_run` say what would be done, and change nothing.
///
/// # Errors
/// When the daemon runs, the file is damaged (restore a backup) or the disk refuses.
pub fn repair(state_dir: &Path, clock: &Clock, dry_run: bool) -> Result<Repair, LedgerError> {
    let path = store::database_path(state_dir);
    // Opening would make a ledger, but where a restore was cut off it says so.
    if !path.exists() && !state_dir.join(store::RESTORE_MARKER).exists() {
        return Err(LedgerError::Missing { path });
    }
    let store = store::open(state_dir, clock)?;
    let reader = LedgerReader { connection: store.connection, path: path.clone(), state_dir: state_dir.to_owned() };
    let on_sqlite = LedgerError::sqlite(&path);
    let finding: String =
        reader.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&on_sqlite)?;
    if finding != "ok" {
        return Err(LedgerError::Corrupt { path: path.clone(), finding });
    }
    reader.connection.execute_batch("BEGIN IMMEDIATE").map_err(&on_sqlite)?;
    let outcome = Work { reader: &reader, now: clock.now(), done: Repair::default() }.run();
    let ending = if outcome.is_ok() && !dry_run { "COMMIT" } else { "ROLLBACK" };
    reader.connection.execute_batch(ending).map_err(&on_sqlite)?;
    store::end_run(&reader.connection).map_err(&on_sqlite)?;
    drop(store.lock);
    outcome
}

struct Work<'a> {
    reader: &'a LedgerReader,
    now: Timestamp,
    done: Repair,
}

impl Work<'_> {
    fn run(mut self) -> Result<Repair, LedgerError> {
        let before = self.sql(Balance::read)?;
        self.set_aside()?;
        self.take_back()?;
        self.enqueue_forgotten()?;
        self.offer_again()?;
        self.set_totals(&before)?;
        Ok(self.done)
    }

    fn sql<T>(&self, work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        work(&self.reader.connection).map_err(LedgerError::sqlite(&self.reader.path))
    }

    /// Entries that cannot be sent go to the quarantine.
    fn set_aside(&mut self) -> Result<(), LedgerError> {
        let now = self.now;
        for seq in self.reader.duplicate_entries()? {
            let reason = format!("outbox entry {seq} names a unit that an earlier entry names too");
            self.sql(|db| quarantine::move_aside(db, seq, QuarantineKind::Duplicate, &reason, now))?;
            self.done.quarantined.add(|| reason);
        }
        let mut after_seq = i64::MIN;
        loop {
            let entries = self.reader.entries("", Span::beyond(after_seq, ENTRIES_PER_READ))?;
            let Some(last) = entries.last() else { return Ok(()) };
            after_seq = last.seq;
            for entry in &entries {
                if let Some((kind, reason)) = self.reader.entry_fault(entry)? {
                    self.sql(|db| quarantine::move_aside(db, entry.seq, kind, &reason, now))?;
                    self.done.quarantined.add(|| reason);
                }
            }
        }
    }

    /// Entries of the quarantine that can be read by now go back to their place.
    fn take_back(&mut self) -> Result<(), LedgerError> {
        for entry in self.sql(quarantine::candidates_to_put_back)? {
            if self.reader.entry_fault(&entry)?.is_none() {
                self.sql(|db| quarantine::put_back(db, entry.seq))?;
                self.done.put_back.add(|| format!("outbox entry {} can be read again", entry.seq));
            }
        }
        Ok(())
    }

    /// Units without an entry that were not, or may not have been, delivered.
    fn enqueue_forgotten(&mut self) -> Result<(), LedgerError> {
        // Taken before the first insertion, which would itself become the oldest that waits.
        let mut certain = Vec::new();
        for root in &ROOTS {
            certain.extend(self.units_without_entry(root, root.is_certain)?);
        }
        let deficit = self.sql(Balance::read)?.deficit();
        for unit in &certain {
            self.enqueue(unit)?;
            self.done.enqueued.add(|| unit.to_string());
        }
        if i64::try_from(certain.len()).unwrap_or(i64::MAX) >= deficit {
            return Ok(());
        }
        for root in &ROOTS {
            for unit in self.units_without_entry(root, "true")? {
                self.enqueue(&unit)?;
                self.done.enqueued_in_doubt.add(|| unit.to_string());
            }
        }
        Ok(())
    }

    fn units_without_entry(&self, root: &Root, also: &str) -> Result<Vec<Forgotten>, LedgerError> {
        let also = format!(
            "({also}) AND {} AND u.id NOT IN (SELECT key_id FROM outbox) AND u.id NOT IN (SELECT key_id FROM outbox_quarantine)",
            root.is_not_noted
        );
        let sql = root.select.replace("{also}", &also);
        self.sql(|db| {
            db.prepare(&sql)?
                .query_map([], |row| {
                    Ok(Forgotten {
                        root_table: root.table,
                        key_at: row.get(0)?,
                        key_id: row.get(1)?,
                        row_count: row.get(2)?,
                        name: row.get(3)?,
                    })
                })?
                .collect()
        })
    }

    fn enqueue(&self, unit: &Forgotten) -> Result<(), LedgerError> {
        self.sql(|db| {
            db.prepare_cached(
                "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
                 VALUES (?1, ?2, ?3, ?4, 'pending', 0, ?5)",
            )?
            .execute(params![unit.root_table, unit.key_at, unit.key_id, unit.row_count, self.now.as_micros()])
            .map(drop)
        })
    }

    /// What the centre refused is offered again.
    fn offer_again(&mut self) -> Result<(), LedgerError> {
        let offered = self.sql(super::rows::unpark)?;
        self.done.offered_again = offered as u64;
        Ok(())
    }

    fn set_totals(&mut self, before: &Balance) -> Result<(), LedgerError> {
        self.sql(|db| {
            // No number may be given twice, whatever happened to the tables that remember the last one.
            db.execute(
                "UPDATE sqlite_sequence SET seq = max(seq, (SELECT coalesce(max(seq), 0) FROM outbox),
                    (SELECT coalesce(max(seq), 0) FROM outbox_quarantine), (SELECT last_acked_seq FROM outbox_state))
                 WHERE name = 'outbox'",
                [],
            )?;
            db.execute(
                "INSERT INTO inspection_codes (day, last_number, skipped)
                 SELECT substr(code, 5, 8), max(CAST(substr(code, 14) AS INTEGER)), 0 FROM inspections GROUP BY 1
                 ON CONFLICT (day) DO UPDATE SET last_number = max(last_number, excluded.last_number)",
                [],
            )
        })?;
        let found = self.sql(Balance::read)?;
        let committed = found.accounted();
        let delivered = (committed - found.waiting - found.quarantined).max(0);
        let void_seqs = found.last_seq - committed;
        let void_codes = found.numbered - found.inspections();
        for (what, before, after) in [
            ("committed", before.committed, committed),
            ("delivered", before.delivered, delivered),
            ("outbox positions without a commit", before.void_seqs, void_seqs),
            ("code numbers without an inspection", before.void_codes, void_codes),
        ] {
            if before != after {
                self.done.corrections.push(Correction { what, before, after });
            }
        }
        if self.done.is_empty() {
            return Ok(());
        }
        self.sql(|db| {
            db.execute("UPDATE outbox_state SET committed_total = ?1, delivered_total = ?2", [committed, delivered])?;
            db.execute(
                "INSERT INTO outbox_repairs (repaired_at, software_version, committed_before, committed_after,
                    delivered_before, delivered_after, void_seqs, void_codes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    self.now.as_micros(),
                    env!("CARGO_PKG_VERSION"),
                    before.committed,
                    committed,
                    before.delivered,
                    delivered,
                    void_seqs - found.void_seqs,
                    void_codes - found.void_codes,
                ],
            )
        })?;
        Ok(())
    }
}

/// A unit that no entry names.
struct Forgotten {
    root_table: &'static str,
    key_at: i64,
    key_id: [u8; 16],
    row_count: i64,
    /// Code, or what else people know it by.
    name: String,
}

impl std::fmt::Display for Forgotten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, uuid::Uuid::from_bytes(self.key_id))
    }
}
