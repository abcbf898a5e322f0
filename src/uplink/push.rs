//! Push: another machine delivers what a device exported, with the same keys and so with the same effect.
//!
//! The file is proved whole before the first row is sent; then it goes in batches, one central transaction each. Speed
//! is no aim here: rows go as JSON, as they stand in the file. What the centre acknowledged can be put into a receipt.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::central::Central;
use super::courier::granted_site;
use super::{Secret, UplinkError};
use crate::ledger::{
    AcknowledgedBatch, LedgerError, ParcelHeader, ParcelRecord, SENT_TABLES, Unit, read_parcel, write_receipt,
};
use crate::limits;
use crate::types::{Digest, Timestamp};

/// How long the centre may take over one batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Refused units listed; more are only counted.
const REFUSED_MAX: usize = 100;
const BATCH_COLUMNS: &str = "enqueued_at, id, epoch, first_seq, last_seq, unit_count, row_count, committed_total, \
     delivered_total, dropped_samples, sha256";

/// What a push moved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Units that the centre acknowledged.
    pub delivered: u64,
    /// Rows that were new to it.
    pub new_rows: u64,
    /// Units that it refused.
    pub refused: u64,
    /// The first hundred of them, in words.
    pub refusals: Vec<String>,
    /// Units that the file names and that cannot be sent.
    pub unreadable: u64,
}

/// Deliver the export `file`; with `receipt` say there what was acknowledged. `progress` hears units done and in all.
///
/// # Errors
/// When the file is damaged, foreign or newer (then nothing was sent), or the server refuses (then whole batches were
/// sent; push again).
pub fn push(
    file: &Path,
    (dsn, site_id): (&Secret, Option<Uuid>),
    (receipt, now): (Option<&Path>, Timestamp),
    mut progress: impl FnMut(u64, u64),
) -> Result<Pushed, UplinkError> {
    let mut total = 0;
    let mut pushed = Pushed::default();
    let (header, sha256) = read_parcel(file, |record| -> Result<(), LedgerError> {
        match record {
            ParcelRecord::Unit(..) => total += 1,
            ParcelRecord::Aside => pushed.unreadable += 1,
            ParcelRecord::Provenance(..) => {}
        }
        Ok(())
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| UplinkError::Provision { detail: format!("no runtime: {error}") })?;
    let (central, site_id) = runtime.block_on(connect(dsn, site_id, &header))?;
    let mut sender =
        Sender { runtime, central, site_id, header, provenances: BTreeMap::new(), acknowledged: Vec::new() };

    let mut waiting: Vec<(Unit, Digest)> = Vec::new();
    let mut bytes = 0;
    read_parcel(file, |record| -> Result<(), UplinkError> {
        match record {
            ParcelRecord::Provenance(sha256, row) => drop(sender.provenances.insert(sha256, row)),
            ParcelRecord::Aside => {}
            ParcelRecord::Unit(unit, digest) => {
                bytes += unit.size_bytes;
                waiting.push((unit, digest));
                if waiting.len() >= limits::UPLINK_UNITS_MAX || bytes >= limits::UPLINK_BATCH_BYTES_MAX {
                    bytes = 0;
                    sender.deliver(std::mem::take(&mut waiting), &mut pushed)?;
                    progress(pushed.delivered + pushed.refused, total);
                }
            }
        }
        Ok(())
    })?;
    sender.deliver(waiting, &mut pushed)?;
    progress(total, total);
    if let Some(receipt) = receipt {
        let to = (sender.central.server.clone(), sender.site_id);
        write_receipt(receipt, (sender.header, sha256), to, now, &sender.acknowledged)?;
    }
    Ok(pushed)
}

/// Connect and agree on the site: the export's, `asked`, or the one that the login is bound to.
async fn connect(dsn: &Secret, asked: Option<Uuid>, header: &ParcelHeader) -> Result<(Central, Uuid), UplinkError> {
    if let (Some(bound), Some(asked)) = (header.site_id, asked)
        && bound != asked
    {
        return Err(LedgerError::OtherSite { bound, asked }.into());
    }
    let mut central = Central::connect(dsn).await?;
    central.check_schema().await?;
    let wanted = header.site_id.or(asked);
    let server = central.server.clone();
    match (granted_site(&mut central, wanted).await?, wanted) {
        (Some(granted), _) => Ok((central, granted)),
        (None, Some(asked)) => Err(UplinkError::WrongSite { server, asked }),
        (None, None) => Err(UplinkError::NoSite { server }),
    }
}

struct Sender {
    runtime: Runtime,
    central: Central,
    site_id: Uuid,
    header: ParcelHeader,
    /// As far as the file was read.
    provenances: BTreeMap<Digest, Map<String, Value>>,
    acknowledged: Vec<AcknowledgedBatch>,
}

impl Sender {
    /// Send `units`; where the centre refuses the rows, halve until the culprit stands alone, and leave it out.
    fn deliver(&mut self, units: Vec<(Unit, Digest)>, pushed: &mut Pushed) -> Result<(), UplinkError> {
        let mut batches = vec![units];
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            match self.send(&batch) {
                Ok((sha256, new_rows)) => {
                    pushed.delivered += batch.len() as u64;
                    pushed.new_rows += new_rows;
                    let units = batch.iter().map(|(unit, digest)| (unit.seq, unit.id, *digest)).collect();
                    self.acknowledged.push(AcknowledgedBatch { sha256, units });
                }
                Err(error) if error.is_about_the_rows() && batch.len() == 1 => {
                    pushed.refused += 1;
                    if pushed.refusals.len() < REFUSED_MAX {
                        pushed.refusals.push(format!("{}: {error}", batch[0].0.id));
                    }
                }
                Err(error) if error.is_about_the_rows() => {
                    let later = batch.split_off(batch.len() / 2);
                    batches.push(later);
                    batches.push(batch);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One central transaction; the digest of what was sent, and how many rows were new.
    fn send(&mut self, units: &[(Unit, Digest)]) -> Result<(Digest, u64), UplinkError> {
        let mut tables: BTreeMap<&str, Vec<Map<String, Value>>> = BTreeMap::new();
        for (unit, _) in units {
            for (table, rows) in &unit.rows {
                tables.entry(table).or_default().extend(rows.iter().cloned());
            }
            let named = unit.provenance_sha256.and_then(|digest| self.provenances.get(&digest));
            tables.entry("provenances").or_default().extend(named.cloned());
        }
        let mut statements = Vec::new();
        for table in SENT_TABLES {
            let Some(rows) = tables.remove(table.name).filter(|rows| !rows.is_empty()) else { continue };
            let columns = table.columns().collect::<Vec<_>>().join(", ");
            statements.push((insert(table.name, &columns, &table.key.join(", ")), self.sign(rows)));
        }
        let sha256 = Digest::of(statements.iter().map(|(_, rows)| rows.as_str()).collect::<String>().as_bytes());
        let batch = self.sign(vec![self.batch_row(units, sha256)]);
        statements.push((insert("ingest_batches", BATCH_COLUMNS, "enqueued_at, id"), batch));
        let work = transact(&mut self.central, self.site_id, &statements);
        let outcome = self.runtime.block_on(async { tokio::time::timeout(BATCH_TIMEOUT, work).await });
        match outcome {
            Ok(outcome) => outcome.map(|new_rows| (sha256, new_rows)),
            Err(_) => {
                Err(UplinkError::Timeout { server: self.central.server.clone(), seconds: BATCH_TIMEOUT.as_secs() })
            }
        }
    }

    /// The rows as one JSON list, each with its site and device.
    fn sign(&self, rows: Vec<Map<String, Value>>) -> String {
        let signed = rows.into_iter().map(|mut row| {
            row.insert("site_id".to_owned(), self.site_id.to_string().into());
            row.insert("device_id".to_owned(), self.header.device_id.to_string().into());
            Value::Object(row)
        });
        Value::Array(signed.collect()).to_string()
    }

    fn batch_row(&self, units: &[(Unit, Digest)], sha256: Digest) -> Map<String, Value> {
        let (half, _) = sha256.as_bytes().split_at(16);
        let id = uuid::Builder::from_custom_bytes(half.try_into().unwrap_or_default()).into_uuid();
        let row = json!({
            "enqueued_at": units.iter().map(|(unit, _)| unit.enqueued_at).min(),
            "id": id,
            "epoch": self.header.epoch,
            "first_seq": units.iter().map(|(unit, _)| unit.seq).min(),
            "last_seq": units.iter().map(|(unit, _)| unit.seq).max(),
            "unit_count": units.len(),
            "row_count": units.iter().flat_map(|(unit, _)| unit.rows.values()).map(Vec::len).sum::<usize>(),
            "committed_total": self.header.committed,
            "delivered_total": self.header.delivered,
            "dropped_samples": self.header.dropped_samples,
            "sha256": format!("\\x{sha256}"),
        });
        row.as_object().cloned().unwrap_or_default()
    }
}

fn insert(table: &str, columns: &str, key: &str) -> String {
    format!(
        "INSERT INTO loupe.{table} (site_id, device_id, {columns})
         SELECT site_id, device_id, {columns} FROM jsonb_populate_recordset(NULL::loupe.{table}, $1::jsonb)
         ON CONFLICT (site_id, {key}) DO NOTHING"
    )
}

/// Rows that were new, those of `ingest_batches` not among them.
async fn transact(central: &mut Central, site_id: Uuid, statements: &[(String, String)]) -> Result<u64, UplinkError> {
    let on_statement = UplinkError::statement(&central.server);
    let site_id = site_id.to_string();
    let transaction = central.client.transaction().await.map_err(&on_statement)?;
    let set = "SELECT set_config('loupe.site_id', $1, true)";
    transaction.query_typed(set, &[(&site_id, Type::TEXT)]).await.map_err(&on_statement)?;
    let mut new_rows = 0;
    for (sql, rows) in statements {
        let inserted = transaction.execute_typed(sql, &[(rows, Type::TEXT)]).await.map_err(&on_statement)?;
        if !sql.contains("loupe.ingest_batches") {
            new_rows += inserted;
        }
    }
    transaction.commit().await.map_err(&on_statement)?;
    Ok(new_rows)
}
