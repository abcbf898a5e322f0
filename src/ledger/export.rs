//! What waits, in one file that another machine can push: for a site whose network is gone.
//!
//! The ledger does not change: the device's own later delivery sends the same units again without effect, or a receipt
//! of the push settles them. Units are encoded as they are for the uplink.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::LedgerError;
use super::lines::{self, LinesWriter};
use super::pack::Span;
use super::quarantine::QuarantineKind;
use super::reader::LedgerReader;
use super::sent::SENT_TABLES;
use super::unit::{SentRows, Unit};
use crate::types::{Digest, Timestamp};

const FORMAT: &str = "loupe-outbox/1";
const PROVENANCE_TAG: &str = "P";
const UNIT_TAG: &str = "U";
/// What cannot be sent is named, so that nobody takes the file for all there is.
const ASIDE_TAG: &str = "Q";
/// Outbox entries read at a time.
const ENTRIES_PER_READ: usize = 500;

/// Whose outbox a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParcelHeader {
    pub software_version: String,
    pub created_at: Timestamp,
    /// The site the ledger reports to; `None` until it first reports.
    pub site_id: Option<Uuid>,
    pub device_id: Uuid,
    pub epoch: u32,
    pub committed: u64,
    pub delivered: u64,
    pub dropped_samples: u64,
}

/// What an export wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    pub path: PathBuf,
    pub header: ParcelHeader,
    pub units: u64,
    pub provenances: u64,
    /// Units that cannot be sent, named in the file.
    pub unreadable: u64,
    /// Names the file.
    pub sha256: Digest,
}

/// A unit as it travels by file.
#[derive(Debug, Serialize, Deserialize)]
struct UnitRecord {
    seq: i64,
    id: Uuid,
    enqueued_at: Timestamp,
    provenance_sha256: Option<Digest>,
    rows: Map<String, Value>,
}

/// A unit that cannot be sent.
#[derive(Debug, Serialize)]
struct AsideRecord<'a> {
    seq: i64,
    kind: QuarantineKind,
    root_table: &'a str,
    id: Uuid,
    reason: &'a str,
}

/// A record of a parcel.
#[derive(Debug)]
pub enum ParcelRecord {
    /// A row of `provenances`, before the first unit that names it.
    Provenance(Digest, Map<String, Value>),
    /// A unit, with the digest of its record.
    Unit(Unit, Digest),
    /// A unit that cannot be sent.
    Aside,
}

impl LedgerReader {
    /// Write what waits to `target`; `progress` hears units done and in all. The daemon may be running.
    ///
    /// # Errors
    /// When `target` is there, or the ledger or the disk refuses. No half file stays.
    pub fn export(
        &self,
        target: &Path,
        now: Timestamp,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Exported, LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        // One state of the ledger, from the first statement to the last.
        self.connection.execute_batch("BEGIN").map_err(&on_sqlite)?;
        let outcome = self.export_snapshot(target, now, &mut progress);
        self.connection.execute_batch("COMMIT").map_err(&on_sqlite)?;
        outcome
    }

    fn export_snapshot(
        &self,
        target: &Path,
        now: Timestamp,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<Exported, LedgerError> {
        let (meta, counters) = (self.meta()?, self.counters()?);
        let header = ParcelHeader {
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: now,
            site_id: meta.site_id,
            device_id: meta.device_id,
            epoch: meta.epoch,
            committed: counters.committed,
            delivered: counters.delivered,
            dropped_samples: counters.dropped_samples,
        };
        let mut writer = LinesWriter::create(target, FORMAT, &to_value(&header)?)?;
        let (mut units, mut unreadable, mut written) = (0, 0, BTreeSet::new());
        let mut after_seq = i64::MIN;
        loop {
            let entries = self.entries("", Span::beyond(after_seq, ENTRIES_PER_READ))?;
            let Some(last) = entries.last() else { break };
            after_seq = last.seq;
            for entry in &entries {
                if let Some((kind, reason)) = self.entry_fault(entry)? {
                    let id = Uuid::from_bytes(entry.key_id);
                    let aside =
                        AsideRecord { seq: entry.seq, kind, root_table: &entry.root_table, id, reason: &reason };
                    writer.record(ASIDE_TAG, &to_value(&aside)?.to_string())?;
                    unreadable += 1;
                    continue;
                }
                let unit = self.unit(entry)?;
                if let Some(digest) = unit.provenance_sha256
                    && written.insert(digest)
                {
                    for row in self.provenances([digest])? {
                        writer.record(PROVENANCE_TAG, &Value::Object(row).to_string())?;
                    }
                }
                writer.record(UNIT_TAG, &record_of(&unit)?)?;
                units += 1;
                progress(units, counters.pending);
            }
        }
        for aside in self.quarantined(usize::MAX)? {
            let (seq, kind, id) = (aside.seq, aside.kind, aside.id);
            let record = AsideRecord { seq, kind, root_table: &aside.root_table, id, reason: &aside.reason };
            writer.record(ASIDE_TAG, &to_value(&record)?.to_string())?;
            unreadable += 1;
        }
        let sha256 = writer.finish()?;
        let provenances = written.len() as u64;
        Ok(Exported { path: target.to_owned(), header, units, provenances, unreadable, sha256 })
    }

    /// The unit at `seq` of the outbox, and the digest of the record that an export would write of it; `None` where
    /// there is none, or it cannot be read.
    pub(super) fn record_at(&self, seq: i64) -> Result<Option<(Uuid, Digest)>, LedgerError> {
        let entries = self.entries("", Span::beyond(seq - 1, 1))?;
        let Some(entry) = entries.first().filter(|entry| entry.seq == seq) else { return Ok(None) };
        match self.unit(entry) {
            Ok(unit) => Ok(Some((unit.id, Digest::of(record_of(&unit)?.as_bytes())))),
            Err(LedgerError::Unreadable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn record_of(unit: &Unit) -> Result<String, LedgerError> {
    let rows = unit
        .rows
        .iter()
        .map(|(table, rows)| {
            let rows = rows.iter().cloned().map(Value::Object).collect();
            ((*table).to_owned(), Value::Array(rows))
        })
        .collect();
    let record = UnitRecord {
        seq: unit.seq,
        id: unit.id,
        enqueued_at: unit.enqueued_at,
        provenance_sha256: unit.provenance_sha256,
        rows,
    };
    Ok(to_value(&record)?.to_string())
}

pub(super) fn to_value(value: &impl Serialize) -> Result<Value, LedgerError> {
    serde_json::to_value(value).map_err(|error| LedgerError::Unreadable { table: "outbox", detail: error.to_string() })
}

/// Read a parcel to its end, comparing every digest; each record goes to `visit`. Returns whose it is and its name.
///
/// # Errors
/// When it is damaged, cut off, foreign or newer, with byte and record; or those of `visit`.
pub fn read_parcel<E: From<LedgerError>>(
    path: &Path,
    mut visit: impl FnMut(ParcelRecord) -> Result<(), E>,
) -> Result<(ParcelHeader, Digest), E> {
    let unknown = |detail: String| LedgerError::Parcel { path: path.to_owned(), detail };
    let proved = lines::read(path, FORMAT, |tag, sha256, json| {
        let record = match tag {
            PROVENANCE_TAG => provenance(json),
            UNIT_TAG => unit(json).map(|unit| ParcelRecord::Unit(unit, sha256)),
            ASIDE_TAG => Ok(ParcelRecord::Aside),
            other => Err(format!("holds a record of the unknown kind {other}; use a newer loupe")),
        };
        visit(record.map_err(unknown)?)
    })?;
    let header =
        serde_json::from_value(proved.header).map_err(|error| unknown(format!("has a bad header: {error}")))?;
    Ok((header, proved.sha256))
}

fn provenance(json: &str) -> Result<ParcelRecord, String> {
    let row: Map<String, Value> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let sha256 = row.get("sha256").and_then(Value::as_str).and_then(|text| text.trim_start_matches("\\x").parse().ok());
    let sha256 = sha256.ok_or("holds a provenance without a digest")?;
    Ok(ParcelRecord::Provenance(sha256, row))
}

fn unit(json: &str) -> Result<Unit, String> {
    let record: UnitRecord = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let mut rows = SentRows::new();
    for (name, list) in record.rows {
        let table = SENT_TABLES.iter().find(|table| table.name == name);
        let table = table.ok_or_else(|| format!("holds rows of the unknown table {name}; use a newer loupe"))?;
        let list: Vec<Map<String, Value>> = serde_json::from_value(list).map_err(|error| error.to_string())?;
        rows.insert(table.name, list);
    }
    Ok(Unit {
        seq: record.seq,
        id: record.id,
        enqueued_at: record.enqueued_at,
        provenance_sha256: record.provenance_sha256,
        rows,
        size_bytes: json.len(),
    })
}
