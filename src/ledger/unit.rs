//! Units: what the outbox names, encoded for the central side.
//!
//! A unit is one inspection with its items, map and frame quality, and with it goes its provenance record; or it is one
//! review. Rows are encoded
//! when they are sent, since ledger rows never change: one JSON object a row, keys as columns, `real` values as the
//! shortest decimals that read back to the same f32, digests as `\x…`, times in RFC 3339.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::LedgerError;
use super::reader::LedgerReader;
use crate::types::{Digest, Timestamp};

/// How a column travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Uuid,
    Digest,
    Time,
    Real,
    Int,
    Bool,
    Text,
    Json,
}

/// A table that is sent: its columns here and there, without `site_id` and `device_id`, which the uplink adds.
#[derive(Debug)]
pub struct SentTable {
    pub name: &'static str,
    /// Columns of the central key after `site_id`.
    pub key: &'static [&'static str],
    columns: &'static [(&'static str, Kind)],
}

impl SentTable {
    /// Names of the columns that are sent.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().map(|(name, _)| *name)
    }

    fn select(&self, condition: &str) -> String {
        let columns: Vec<_> = self.columns().collect();
        format!("SELECT {} FROM {} WHERE {condition}", columns.join(", "), self.name)
    }

    fn encode(&self, row: &Row<'_>) -> rusqlite::Result<Map<String, Value>> {
        self.columns
            .iter()
            .enumerate()
            .map(|(index, (name, kind))| Ok(((*name).to_owned(), encode(*kind, index, row.get_ref(index)?)?)))
            .collect()
    }
}

const INSPECTIONS: SentTable = SentTable {
    name: "inspections",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("code", Kind::Text),
        ("station", Kind::Text),
        ("camera", Kind::Text),
        ("recipe", Kind::Text),
        ("source", Kind::Text),
        ("frame_seq", Kind::Int),
        ("frame_width_px", Kind::Int),
        ("frame_height_px", Kind::Int),
        ("verdict", Kind::Text),
        ("reasons", Kind::Json),
        ("frame_sha256", Kind::Digest),
        ("provenance_sha256", Kind::Digest),
        ("anomaly_score_raw", Kind::Real),
        ("anomaly_score", Kind::Real),
        ("min_similarity", Kind::Real),
        ("min_margin", Kind::Real),
        ("item_count", Kind::Int),
        ("decided_at", Kind::Time),
        ("latency_ms", Kind::Real),
        ("deadline_ms", Kind::Real),
        ("is_provider_fallback", Kind::Bool),
    ],
};

const ITEMS: SentTable = SentTable {
    name: "items",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("ordinal", Kind::Int),
        ("x_px", Kind::Real),
        ("y_px", Kind::Real),
        ("width_px", Kind::Real),
        ("height_px", Kind::Real),
        ("label", Kind::Text),
        ("detection_confidence", Kind::Real),
        ("part_id", Kind::Text),
        ("color_id", Kind::Text),
        ("similarity", Kind::Real),
        ("second_part_id", Kind::Text),
        ("second_similarity", Kind::Real),
        ("margin", Kind::Real),
        ("tier", Kind::Text),
        ("entered_stage2", Kind::Bool),
        ("is_held", Kind::Bool),
        ("stage1_ms", Kind::Real),
        ("stage2_ms", Kind::Real),
        ("top_k", Kind::Json),
        ("verdict", Kind::Text),
        ("reasons", Kind::Json),
    ],
};

const ANOMALY_MAPS: SentTable = SentTable {
    name: "anomaly_maps",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("bank_sha256", Kind::Digest),
        ("score_raw", Kind::Real),
        ("score", Kind::Real),
        ("threshold", Kind::Real),
        ("image_threshold_raw", Kind::Real),
        ("pixel_threshold_raw", Kind::Real),
        ("map_min", Kind::Real),
        ("map_max", Kind::Real),
        ("area_above_ratio", Kind::Real),
    ],
};

const FRAME_QA_LOGS: SentTable = SentTable {
    name: "frame_qa_logs",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("camera", Kind::Text),
        ("frame_seq", Kind::Int),
        ("frame_sha256", Kind::Digest),
        ("ssim_score", Kind::Real),
        ("sharpness", Kind::Real),
        ("noise_level", Kind::Real),
        ("contrast_ratio", Kind::Real),
        ("brightness_ratio", Kind::Real),
        ("saturation_ratio", Kind::Real),
        ("clipped_ratio", Kind::Real),
        ("phash", Kind::Int),
        ("is_duplicate", Kind::Bool),
        ("duplicate_distance", Kind::Int),
        ("age_ms", Kind::Real),
        ("issues", Kind::Json),
        ("status", Kind::Text),
        ("processing_ms", Kind::Real),
    ],
};

const REVIEWS: SentTable = SentTable {
    name: "reviews",
    key: &["occurred_at", "id"],
    columns: &[
        ("occurred_at", Kind::Time),
        ("id", Kind::Uuid),
        ("subject_kind", Kind::Text),
        ("subject_id", Kind::Uuid),
        ("subject_at", Kind::Time),
        ("inspection_id", Kind::Uuid),
        ("ordinal", Kind::Int),
        ("review_status", Kind::Text),
        ("shown_part_id", Kind::Text),
        ("corrected_part_id", Kind::Text),
        ("corrected_color_id", Kind::Text),
        ("undoes_id", Kind::Uuid),
        ("reviewer", Kind::Text),
        ("reason", Kind::Text),
    ],
};

const KIT_SESSIONS: SentTable = SentTable {
    name: "kit_sessions",
    key: &["started_at", "id"],
    columns: &[
        ("started_at", Kind::Time),
        ("id", Kind::Uuid),
        ("started_by", Kind::Text),
        ("kit_code", Kind::Text),
        ("kit", Kind::Json),
        ("station", Kind::Text),
        ("ended_at", Kind::Time),
        ("ended_by", Kind::Text),
        ("outcome", Kind::Text),
        ("reason", Kind::Text),
        ("is_complete", Kind::Bool),
        ("tray_count", Kind::Int),
        ("expected_count", Kind::Int),
        ("found_count", Kind::Int),
        ("missing_count", Kind::Int),
        ("surplus_count", Kind::Int),
        ("doubtful_count", Kind::Int),
        ("result", Kind::Json),
    ],
};

const STOCK_LEDGER: SentTable = SentTable {
    name: "stock_ledger",
    key: &["recorded_at", "id"],
    columns: &[
        ("recorded_at", Kind::Time),
        ("id", Kind::Uuid),
        ("part_id", Kind::Text),
        ("color_id", Kind::Int),
        ("delta", Kind::Int),
        ("reason", Kind::Text),
        ("reference_type", Kind::Text),
        ("reference_id", Kind::Uuid),
        ("previous_quantity", Kind::Int),
        ("new_quantity", Kind::Int),
        ("author", Kind::Text),
        ("note", Kind::Text),
    ],
};

const PROVENANCES: SentTable = SentTable {
    name: "provenances",
    key: &["sha256"],
    columns: &[("sha256", Kind::Digest), ("created_at", Kind::Time), ("record", Kind::Text)],
};

const GPU_STATS: SentTable = SentTable {
    name: "gpu_stats",
    key: &["recorded_at", "id"],
    columns: &[
        ("recorded_at", Kind::Time),
        ("id", Kind::Uuid),
        ("gpu_index", Kind::Int),
        ("gpu_name", Kind::Text),
        ("gpu_util_pct", Kind::Real),
        ("memory_used_bytes", Kind::Int),
        ("memory_total_bytes", Kind::Int),
        ("temperature_c", Kind::Real),
        ("power_usage_w", Kind::Real),
        ("power_limit_w", Kind::Real),
        ("fan_speed_pct", Kind::Real),
        ("sm_clock_mhz", Kind::Int),
        ("memory_clock_mhz", Kind::Int),
        ("pstate", Kind::Int),
        ("throttle_reasons", Kind::Int),
        ("inference_rate_hz", Kind::Real),
        ("memory_bandwidth_util_pct", Kind::Real),
        ("sm_clock_max_mhz", Kind::Int),
        ("compute_processes_count", Kind::Int),
        ("pcie_replay_counter", Kind::Int),
        ("temp_slowdown_threshold_c", Kind::Real),
        ("memory_clock_max_mhz", Kind::Int),
        ("pcie_link_gen", Kind::Int),
        ("pcie_link_width", Kind::Int),
        ("pcie_tx_kb_s", Kind::Int),
        ("pcie_rx_kb_s", Kind::Int),
        ("encoder_util_pct", Kind::Real),
        ("decoder_util_pct", Kind::Real),
        ("bar1_used_bytes", Kind::Int),
    ],
};

/// Every table that is sent, in the order of sending.
pub const SENT_TABLES: &[SentTable] =
    &[PROVENANCES, INSPECTIONS, ITEMS, ANOMALY_MAPS, FRAME_QA_LOGS, REVIEWS, KIT_SESSIONS, STOCK_LEDGER, GPU_STATS];

/// The members of an inspection's family that are found by inspection_id.
const CHILDREN: [&SentTable; 3] = [&ITEMS, &ANOMALY_MAPS, &FRAME_QA_LOGS];

/// Rows to send, by table.
pub type SentRows = BTreeMap<&'static str, Vec<Map<String, Value>>>;

/// One outbox entry, ready to send.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Position in the outbox.
    pub seq: i64,
    /// Id of the inspection or review.
    pub id: Uuid,
    /// When it was committed.
    pub enqueued_at: Timestamp,
    /// Its provenance, which other units may share; a review has none.
    pub provenance_sha256: Option<Digest>,
    /// The inspection and its children, without the provenance; or the review.
    pub rows: SentRows,
    /// Length of the rows as JSON.
    pub size_bytes: usize,
}

/// What waits: units, and positions in the outbox whose rows cannot be read.
#[derive(Debug, Default)]
pub struct PendingUnits {
    pub units: Vec<Unit>,
    pub unreadable: Vec<(i64, LedgerError)>,
}

/// GPU samples that wait, with their positions in the spool.
#[derive(Debug, Default)]
pub struct PendingSamples {
    pub seqs: Vec<i64>,
    pub rows: Vec<Map<String, Value>>,
}

impl LedgerReader {
    /// Units that wait to be sent, oldest first: at most `units_max`, and no more than `bytes_max` of JSON unless the
    /// first alone is longer. Parked units are not among them.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn pending_units(&self, units_max: usize, bytes_max: usize) -> Result<PendingUnits, LedgerError> {
        let mut pending = PendingUnits::default();
        let mut size_bytes = 0;
        for entry in self.entries("state = 'pending' AND", 0, units_max)? {
            match self.unit(&entry) {
                Ok(unit) => {
                    size_bytes += unit.size_bytes;
                    if size_bytes > bytes_max && !pending.units.is_empty() {
                        break;
                    }
                    pending.units.push(unit);
                }
                Err(error @ LedgerError::Unreadable { .. }) => pending.unreadable.push((entry.seq, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(pending)
    }

    /// Outbox entries beyond `after_seq` that meet `condition` (SQL ending in AND, or nothing).
    pub(super) fn entries(&self, condition: &str, after_seq: i64, count_max: usize) -> Result<Vec<Entry>, LedgerError> {
        let sql = format!(
            "SELECT seq, key_id, row_count, enqueued_at, root_table FROM outbox WHERE {condition} seq > ?1
             ORDER BY seq LIMIT ?2"
        );
        let read = |row: &Row<'_>| {
            Ok(Entry {
                seq: row.get(0)?,
                key_id: row.get(1)?,
                row_count: row.get(2)?,
                enqueued_at: Timestamp::from_micros(row.get(3)?),
                root_table: row.get(4)?,
            })
        };
        let limit = i64::try_from(count_max).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_map([after_seq, limit], read)?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }

    /// Read the rows of one outbox entry.
    pub(super) fn unit(&self, entry: &Entry) -> Result<Unit, LedgerError> {
        let unreadable = |detail: String| LedgerError::Unreadable { table: "outbox", detail };
        let (rows, provenance_sha256) = match entry.root_table.as_str() {
            "inspections" => self.inspection_family(entry)?,
            "reviews" => {
                (SentRows::from([(REVIEWS.name, self.rows(&REVIEWS, "id = ?1", params![entry.key_id])?)]), None)
            }
            "kit_sessions" => {
                let mut rows =
                    SentRows::from([(KIT_SESSIONS.name, self.rows(&KIT_SESSIONS, "id = ?1", params![entry.key_id])?)]);
                let bookings = self.rows(&STOCK_LEDGER, "reference_id = ?1 ORDER BY seq", params![entry.key_id])?;
                if !bookings.is_empty() {
                    rows.insert(STOCK_LEDGER.name, bookings);
                }
                (rows, None)
            }
            "stock_ledger" => {
                let booking = self.rows(&STOCK_LEDGER, "id = ?1", params![entry.key_id])?;
                (SentRows::from([(STOCK_LEDGER.name, booking)]), None)
            }
            other => return Err(unreadable(format!("outbox entry {} names table {other}", entry.seq))),
        };
        let row_count: usize = rows.values().map(Vec::len).sum();
        if i64::try_from(row_count) != Ok(entry.row_count) {
            let detail = format!("outbox entry {} has {row_count} rows instead of {}", entry.seq, entry.row_count);
            return Err(unreadable(detail));
        }
        let size_bytes = size_bytes(&rows);
        let id = Uuid::from_bytes(entry.key_id);
        Ok(Unit { seq: entry.seq, id, enqueued_at: entry.enqueued_at, provenance_sha256, rows, size_bytes })
    }

    fn inspection_family(&self, entry: &Entry) -> Result<(SentRows, Option<Digest>), LedgerError> {
        let key = params![entry.key_id];
        let root = self.rows(&INSPECTIONS, "id = ?1", key)?;
        let provenance_sha256: Digest = root
            .first()
            .and_then(|row| row.get("provenance_sha256")?.as_str()?.trim_start_matches("\\x").parse().ok())
            .ok_or_else(|| LedgerError::Unreadable {
                table: "outbox",
                detail: format!("the inspection of outbox entry {} is missing", entry.seq),
            })?;
        let mut rows = SentRows::from([(INSPECTIONS.name, root)]);
        for table in CHILDREN {
            let found = self.rows(table, "inspection_id = ?1 ORDER BY id", key)?;
            if !found.is_empty() {
                rows.insert(table.name, found);
            }
        }
        Ok((rows, Some(provenance_sha256)))
    }

    /// The provenance rows called `digests`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn provenances(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<Vec<Map<String, Value>>, LedgerError> {
        let mut found = Vec::new();
        for digest in digests {
            found.append(&mut self.rows(&PROVENANCES, "sha256 = ?1", params![digest.as_bytes()])?);
        }
        Ok(found)
    }

    /// GPU samples that wait to be sent, oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn pending_gpu_stats(&self, rows_max: usize) -> Result<PendingSamples, LedgerError> {
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let seqs: Vec<i64> = self
            .connection
            .prepare_cached("SELECT seq FROM gpu_stats ORDER BY seq LIMIT ?1")
            .and_then(|mut statement| statement.query_map([limit], |row| row.get(0))?.collect())
            .map_err(LedgerError::sqlite(&self.path))?;
        let Some(last) = seqs.last() else { return Ok(PendingSamples::default()) };
        let rows = self.rows(&GPU_STATS, "seq BETWEEN ?1 AND ?2 ORDER BY seq", params![seqs[0], last])?;
        Ok(PendingSamples { seqs, rows })
    }

    fn rows(
        &self,
        table: &SentTable,
        condition: &str,
        key: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<Map<String, Value>>, LedgerError> {
        read_rows(&self.connection, table, condition, key).map_err(|source| match source {
            rusqlite::Error::InvalidColumnType(..) => {
                LedgerError::Unreadable { table: table.name, detail: source.to_string() }
            }
            source => LedgerError::Sqlite { path: self.path.clone(), source },
        })
    }
}

/// A row of `outbox`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub seq: i64,
    pub key_id: [u8; 16],
    pub row_count: i64,
    pub enqueued_at: Timestamp,
    pub root_table: String,
}

fn read_rows(
    connection: &Connection,
    table: &SentTable,
    condition: &str,
    key: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<Vec<Map<String, Value>>> {
    let mut statement = connection.prepare_cached(&table.select(condition))?;
    statement.query_map(key, |row| table.encode(row))?.collect()
}

fn size_bytes(rows: &SentRows) -> usize {
    rows.values().flatten().map(|row| serde_json::to_string(row).map_or(0, |text| text.len())).sum()
}

fn encode(kind: Kind, index: usize, value: ValueRef<'_>) -> rusqlite::Result<Value> {
    let wrong = || rusqlite::Error::InvalidColumnType(index, format!("{kind:?}"), value.data_type());
    Ok(match (kind, value) {
        (_, ValueRef::Null) => Value::Null,
        (Kind::Uuid, ValueRef::Blob(bytes)) => Uuid::from_slice(bytes).map_err(|_| wrong())?.to_string().into(),
        (Kind::Digest, ValueRef::Blob(bytes)) => {
            let digest = Digest::from_bytes(bytes.try_into().map_err(|_| wrong())?);
            format!("\\x{digest}").into()
        }
        (Kind::Time, ValueRef::Integer(micros)) => Timestamp::from_micros(micros).to_string().into(),
        (Kind::Real, ValueRef::Real(real)) => shortest(real).ok_or_else(wrong)?,
        (Kind::Int, ValueRef::Integer(int)) => int.into(),
        (Kind::Bool, ValueRef::Integer(int)) => (int != 0).into(),
        (Kind::Text, ValueRef::Text(text)) => std::str::from_utf8(text).map_err(|_| wrong())?.into(),
        (Kind::Json, ValueRef::Text(text)) => serde_json::from_slice(text).map_err(|_| wrong())?,
        _ => return Err(wrong()),
    })
}

/// A JSON number that prints as the shortest decimal of the f32 it holds.
fn shortest(real: f64) -> Option<Value> {
    #[expect(clippy::cast_possible_truncation, reason = "the column holds an f32, stored exactly")]
    let real = real as f32;
    // The f64 nearest to the f32's shortest decimal prints as that decimal: 17 digits distinguish far finer steps.
    real.to_string().parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::shortest;

    #[test]
    fn a_tenth_is_sent_as_a_tenth() {
        assert_eq!(shortest(f64::from(0.1_f32)).unwrap().to_string(), "0.1");
        assert!(shortest(f64::NAN).is_none());
        assert!(shortest(f64::INFINITY).is_none());
    }

    proptest! {
        #[test]
        fn every_real_reads_back_to_the_same_bits(real in any::<f32>().prop_filter("finite", |r| r.is_finite())) {
            let text = shortest(f64::from(real)).unwrap().to_string();
            prop_assert_eq!(text.parse::<f32>().unwrap().to_bits(), real.to_bits());
        }
    }
}
