//! [`Packer`]: makes the next batch ready on a thread of its own while the server works on the one before.

use uuid::Uuid;

use super::batch::{Batch, INGEST_BATCHES_AT};
use crate::ledger::{Cell, Counters, Ledger, LedgerError, LedgerReader, Packed, RowSink as _, SampleKind, Span};
use crate::types::Digest;

/// A batch with what is in it.
#[derive(Debug)]
pub(super) struct Load {
    pub batch: Batch,
    pub packed: Packed,
    /// Of the rows as they are sent.
    pub sha256: Digest,
}

/// A reader of the ledger that packs what it reads.
#[derive(Debug)]
pub(super) struct Packer {
    reader: LedgerReader,
    epoch: u32,
}

impl Packer {
    pub fn open(ledger: &Ledger) -> Result<Self, LedgerError> {
        Ok(Self { reader: LedgerReader::open(ledger.state_dir())?, epoch: ledger.epoch() })
    }

    /// The units of `span` and the row that describes the batch; into `batch`, whatever it held.
    pub fn pack(&self, span: Span, mut batch: Batch) -> Result<Load, LedgerError> {
        batch.clear();
        let packed = self.reader.pack_units(span, &mut batch)?;
        let sha256 = batch.sha256();
        if !packed.units.is_empty() {
            let counters = self.reader.counters()?;
            self.describe(&packed, &counters, sha256, &mut batch);
        }
        Ok(Load { batch, packed, sha256 })
    }

    /// Samples of a kind, and their positions in the spool.
    pub fn pack_samples(&self, kind: SampleKind, rows_max: usize, batch: &mut Batch) -> Result<Vec<i64>, LedgerError> {
        batch.clear();
        self.reader.pack_samples(kind, rows_max, batch)
    }

    pub fn has_unreported_refusals(&self) -> Result<bool, LedgerError> {
        self.reader.has_unreported_refusals()
    }

    /// The row of `ingest_batches`: its key is that of the rows, the same when they are sent again.
    fn describe(&self, packed: &Packed, counters: &Counters, sha256: Digest, batch: &mut Batch) {
        let seqs = packed.units.iter().map(|unit| unit.seq);
        let enqueued_at = packed.units.iter().map(|unit| unit.enqueued_at.as_micros()).min();
        let mut id = [0; 16];
        id.copy_from_slice(&sha256.as_bytes()[..16]);
        let id = uuid::Builder::from_custom_bytes(id).into_uuid();
        let row_count = packed.units.iter().map(|unit| unit.row_count).sum();
        let cells = [
            Cell::Time(enqueued_at.unwrap_or(0)),
            Cell::Uuid(Uuid::as_bytes(&id)),
            Cell::Int(i64::from(self.epoch)),
            Cell::Int(seqs.clone().min().unwrap_or(0)),
            Cell::Int(seqs.max().unwrap_or(0)),
            Cell::Int(i64::try_from(packed.units.len()).unwrap_or(i64::MAX)),
            Cell::Int(row_count),
            Cell::Int(counters.committed.cast_signed()),
            Cell::Int(counters.delivered.cast_signed()),
            Cell::Int(counters.dropped_samples.cast_signed()),
            Cell::Digest(sha256.as_bytes()),
        ];
        batch.begin_row(INGEST_BATCHES_AT);
        for (column, cell) in cells.into_iter().enumerate() {
            // None of these kinds can be unreadable.
            batch.cell(column, cell);
        }
    }
}
