//! Receipts: what a push delivered in a device's place, so that the device need not send it again.
//!
//! A receipt names each unit by its position, its id and the digest of what the centre acknowledged. A unit is settled
//! only where the ledger would still send exactly that; anything else stays pending and is sent again, which changes
//! nothing at the centre. So neither an old receipt nor one of another device can lose a unit.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::export::ParcelHeader;
use super::handle::Ledger;
use super::lines::{self, LinesWriter};
use super::reader::LedgerReader;
use super::{LedgerError, export};
use crate::types::{Digest, Timestamp};

const FORMAT: &str = "loupe-receipt/1";
const BATCH_TAG: &str = "A";

/// One transaction that the centre committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcknowledgedBatch {
    /// Of what was sent, as `ingest_batches` holds it.
    pub sha256: Digest,
    /// Position, id, and digest of the record.
    pub units: Vec<(i64, Uuid, Digest)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReceiptHeader {
    parcel: ParcelHeader,
    /// Of the pushed file.
    parcel_sha256: Digest,
    /// `host:port/database`.
    server: String,
    site_id: Uuid,
    pushed_at: Timestamp,
}

/// What came of a receipt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Units taken out of the outbox.
    pub settled: u64,
    /// Units that were delivered already.
    pub gone: u64,
    /// Units that the ledger would send otherwise now: they stay pending.
    pub different: u64,
}

/// Write a receipt of `batches`.
///
/// # Errors
/// When `target` is there or cannot be written.
pub fn write_receipt(
    target: &Path,
    (parcel, parcel_sha256): (ParcelHeader, Digest),
    (server, site_id): (String, Uuid),
    pushed_at: Timestamp,
    batches: &[AcknowledgedBatch],
) -> Result<(), LedgerError> {
    let header = ReceiptHeader { parcel, parcel_sha256, server, site_id, pushed_at };
    let mut writer = LinesWriter::create(target, FORMAT, &export::to_value(&header)?)?;
    for batch in batches {
        writer.record(BATCH_TAG, &export::to_value(batch)?.to_string())?;
    }
    writer.finish().map(drop)
}

impl Ledger {
    /// Take the units of a receipt out of the outbox.
    ///
    /// # Errors
    /// When the receipt is damaged or another device's or site's, or the ledger refuses.
    pub fn settle(&self, receipt: &Path) -> Result<Settled, LedgerError> {
        let refused = |detail: String| LedgerError::Parcel { path: receipt.to_owned(), detail };
        let parse = |json: &str| {
            serde_json::from_str::<AcknowledgedBatch>(json).map_err(|error| refused(format!("is unreadable: {error}")))
        };
        // Proved whole before anything is settled.
        let proved = lines::read(receipt, FORMAT, |_, _, json| parse(json).map(drop))?;
        let header: ReceiptHeader =
            serde_json::from_value(proved.header).map_err(|error| refused(format!("has a bad header: {error}")))?;
        let reader = LedgerReader::open(self.state_dir())?;
        let meta = reader.meta()?;
        if header.parcel.device_id != meta.device_id {
            return Err(refused(format!("is of device {}, this is {}", header.parcel.device_id, meta.device_id)));
        }
        if meta.site_id.is_some_and(|bound| bound != header.site_id) {
            return Err(refused(format!("is of site {}, this device reports to another", header.site_id)));
        }
        let mut outcome = Settled::default();
        lines::read(receipt, FORMAT, |_, _, json| -> Result<(), LedgerError> {
            let batch = parse(json)?;
            let mut seqs = Vec::with_capacity(batch.units.len());
            for (seq, id, sha256) in batch.units {
                match reader.record_at(seq)? {
                    Some(here) if here == (id, sha256) => seqs.push(seq),
                    Some(_) => outcome.different += 1,
                    None => outcome.gone += 1,
                }
            }
            if !seqs.is_empty() {
                outcome.settled += self.acknowledge(seqs, batch.sha256)? as u64;
            }
            Ok(())
        })?;
        Ok(outcome)
    }
}
