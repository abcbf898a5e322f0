//! Units as JSON: for the proof, and for a file that another machine can push.
//!
//! A unit is one inspection with its items, map, frame quality and artifacts, and with it goes its provenance record; or
//! it is one review, one ended kit session with its bookings, one correction of the stock, or one count of refusals.
//! One JSON object a row, keys as columns, `real` values as the shortest decimals that read back to the same f32,
//! digests as `\x…`, times in RFC 3339. What the uplink sends is packed by its own sink from the same cells.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::LedgerError;
use super::pack::{Entry, Span, Statements};
use super::reader::LedgerReader;
use super::sent::{Cell, RowSink, SENT_TABLES};
use crate::types::{Digest, Timestamp};

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
    /// The root and its children, without the provenance.
    pub rows: SentRows,
    /// Length of the rows as JSON, roughly.
    pub size_bytes: usize,
}

/// What waits: units, and positions in the outbox whose rows cannot be read.
#[derive(Debug, Default)]
pub struct PendingUnits {
    pub units: Vec<Unit>,
    pub unreadable: Vec<(i64, LedgerError)>,
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
        let span = Span { after_seq: 0, through_seq: i64::MAX, units_max, bytes_max };
        for entry in self.entries("state = 'pending' AND", span)? {
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

    /// Read the rows of one outbox entry.
    pub(super) fn unit(&self, entry: &Entry) -> Result<Unit, LedgerError> {
        let mut sink = JsonRows::default();
        sink.begin_unit();
        let provenance_sha256 = self.pack_entry(&mut Statements::new(&self.connection), entry, &mut sink)?;
        Ok(Unit {
            seq: entry.seq,
            id: Uuid::from_bytes(entry.key_id),
            enqueued_at: entry.enqueued_at,
            provenance_sha256,
            size_bytes: sink.size_bytes(),
            rows: sink.rows,
        })
    }

    /// The provenance rows called `digests`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn provenances(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<Vec<Map<String, Value>>, LedgerError> {
        let mut sink = JsonRows::default();
        for digest in digests {
            self.pack_provenance(digest, &mut sink)?;
        }
        Ok(sink.rows.into_values().flatten().collect())
    }
}

/// A sink that holds one unit as JSON.
#[derive(Debug, Default)]
struct JsonRows {
    rows: SentRows,
    table: usize,
    size_bytes: usize,
}

impl RowSink for JsonRows {
    fn begin_unit(&mut self) {
        *self = Self::default();
    }

    fn drop_unit(&mut self) {
        *self = Self::default();
    }

    fn begin_row(&mut self, table: usize) {
        self.table = table;
        self.rows.entry(SENT_TABLES[table].name).or_default().push(Map::new());
    }

    fn cell(&mut self, column: usize, cell: Cell<'_>) -> bool {
        let table = &SENT_TABLES[self.table];
        let (name, _) = table.columns[column];
        let Some(value) = json(cell) else { return false };
        // Quotes, colon and comma; values other than text are estimated.
        self.size_bytes += name.len() + 4 + value.as_str().map_or(12, |text| text.len() + 2);
        if let Some(row) = self.rows.get_mut(table.name).and_then(|rows| rows.last_mut()) {
            row.insert(name.to_owned(), value);
        }
        true
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

fn json(cell: Cell<'_>) -> Option<Value> {
    Some(match cell {
        Cell::Null => Value::Null,
        Cell::Uuid(bytes) => Uuid::from_bytes(*bytes).to_string().into(),
        Cell::Digest(bytes) => format!("\\x{}", Digest::from_bytes(*bytes)).into(),
        Cell::Time(micros) => Timestamp::from_micros(micros).to_string().into(),
        Cell::Real(real) => shortest(real)?,
        Cell::Int(int) => int.into(),
        Cell::Bool(is_set) => is_set.into(),
        Cell::Text(text) => text.into(),
        Cell::Codes(text) | Cell::Json(text) => serde_json::from_str(text).ok()?,
    })
}

/// A JSON number that prints as the shortest decimal of the f32.
fn shortest(real: f32) -> Option<Value> {
    // The f64 nearest to the f32's shortest decimal prints as that decimal: 17 digits distinguish far finer steps.
    real.to_string().parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::shortest;

    #[test]
    fn a_tenth_is_sent_as_a_tenth() {
        assert_eq!(shortest(0.1_f32).unwrap().to_string(), "0.1");
        assert!(shortest(f32::NAN).is_none());
        assert!(shortest(f32::INFINITY).is_none());
    }

    proptest! {
        #[test]
        fn every_real_reads_back_to_the_same_bits(real in any::<f32>().prop_filter("finite", |r| r.is_finite())) {
            let text = shortest(real).unwrap().to_string();
            prop_assert_eq!(text.parse::<f32>().unwrap().to_bits(), real.to_bits());
        }
    }
}
