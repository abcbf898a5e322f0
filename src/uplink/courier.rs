//! [`Courier`]: takes what waits in the ledger to the central database, once.
//!
//! One batch is one central transaction: one INSERT … ON CONFLICT DO NOTHING a table, and a row in `ingest_batches`.
//! Only after its COMMIT do the entries leave the outbox. A lost reply, a kill in between, a restored backup: the batch
//! is sent again and changes nothing. Rows that central refuses are halved out of their batch and parked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use tracing::{info, warn};
use uuid::Uuid;

use super::central::Central;
use super::{Secret, UplinkError};
use crate::failpoint;
use crate::ledger::{Counters, Ledger, LedgerReader, PendingSamples, SENT_TABLES, SentTable, Unit};
use crate::limits;
use crate::types::Digest;

/// How long central may take over one batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Columns of `ingest_batches` that are sent.
const BATCH_COLUMNS: [&str; 11] = [
    "enqueued_at",
    "id",
    "epoch",
    "first_seq",
    "last_seq",
    "unit_count",
    "row_count",
    "committed_total",
    "delivered_total",
    "dropped_samples",
    "sha256",
];

/// What a run of the courier moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Inspections and reviews acknowledged by central.
    pub delivered: u64,
    /// Those it refused.
    pub parked: u64,
    /// GPU samples acknowledged.
    pub gpu_stats: u64,
}

/// A ledger on one side, the central database on the other.
#[derive(Debug)]
pub struct Courier {
    ledger: Ledger,
    reader: LedgerReader,
    central: Central,
    site_id: Uuid,
    units_max: usize,
}

impl Courier {
    /// Connect and agree on the site: `site_id`, or the one that the login is bound to.
    ///
    /// # Errors
    /// When the server refuses, its schema is older than this program, or the login may not write the site.
    pub async fn connect(ledger: Ledger, dsn: &Secret, site_id: Option<Uuid>) -> Result<Self, UplinkError> {
        failpoint::hit("uplink.connect.before");
        let mut central = Central::connect(dsn).await?;
        failpoint::hit("uplink.connect.after");
        central.check_schema().await?;
        let granted = granted_site(&mut central, site_id).await?;
        let server = central.server.clone();
        let site_id = match (granted, site_id) {
            (Some(granted), _) => granted,
            (None, Some(asked)) => return Err(UplinkError::WrongSite { server, asked }),
            (None, None) => return Err(UplinkError::NoSite { server }),
        };
        ledger.bind_site(site_id)?;
        let reader = LedgerReader::open(ledger.state_dir())?;
        Ok(Self { ledger, reader, central, site_id, units_max: limits::UPLINK_UNITS_MAX })
    }

    /// Send at most `units_max` inspections and reviews in one transaction, for slow links.
    pub fn limit_units(&mut self, units_max: usize) {
        self.units_max = units_max.clamp(1, limits::UPLINK_UNITS_MAX);
    }

    /// Deliver everything that waits now, inspections first; `progress` hears each step.
    ///
    /// # Errors
    /// When the server or the ledger fails; what was acknowledged until then stays delivered.
    pub async fn deliver_all(&mut self, mut progress: impl FnMut(&Delivery)) -> Result<Delivery, UplinkError> {
        let mut delivery = Delivery::default();
        loop {
            let pending = self.reader.pending_units(self.units_max, limits::UPLINK_BATCH_BYTES_MAX)?;
            failpoint::hit("uplink.read.after");
            for (seq, error) in &pending.unreadable {
                warn!(seq, %error, "an outbox entry cannot be read; parked");
                self.ledger.park(*seq, &error.to_string())?;
                delivery.parked += 1;
            }
            if pending.units.is_empty() && pending.unreadable.is_empty() {
                break;
            }
            self.deliver(pending.units, &mut delivery, &mut progress).await?;
        }
        self.deliver_gpu_stats(&mut delivery).await?;
        Ok(delivery)
    }

    /// Send `units`; where central refuses the rows, halve until the culprit stands alone, and park it.
    async fn deliver(
        &mut self,
        units: Vec<Unit>,
        delivery: &mut Delivery,
        progress: &mut impl FnMut(&Delivery),
    ) -> Result<(), UplinkError> {
        let mut batches = vec![units];
        while let Some(mut batch) = batches.pop() {
            if batch.is_empty() {
                continue;
            }
            match self.send(&batch).await {
                Ok(sha256) => {
                    let seqs = batch.iter().map(|unit| unit.seq).collect();
                    delivery.delivered += self.ledger.acknowledge(seqs, sha256)? as u64;
                    failpoint::hit("uplink.acknowledge.after");
                }
                Err(error) if error.is_about_the_rows() && batch.len() == 1 => {
                    let unit = &batch[0];
                    warn!(seq = unit.seq, id = %unit.id, %error, "central refuses; parked");
                    failpoint::hit("uplink.park.before");
                    self.ledger.park(unit.seq, &error.to_string())?;
                    delivery.parked += 1;
                }
                Err(error) if error.is_about_the_rows() => {
                    info!(units = batch.len(), %error, "central refuses a batch; halving it");
                    failpoint::hit("uplink.halve");
                    let later = batch.split_off(batch.len() / 2);
                    batches.push(later);
                    batches.push(batch);
                }
                Err(error) => return Err(error),
            }
            progress(delivery);
        }
        Ok(())
    }

    /// One central transaction, within [`BATCH_TIMEOUT`]. Returns the digest of what was sent.
    async fn send(&mut self, units: &[Unit]) -> Result<Digest, UplinkError> {
        let counters = self.reader.counters()?;
        let mut tables: BTreeMap<&'static str, Vec<Map<String, Value>>> = BTreeMap::new();
        for unit in units {
            for (table, rows) in &unit.rows {
                tables.entry(table).or_default().extend(rows.iter().cloned());
            }
        }
        let provenances: BTreeSet<Digest> = units.iter().filter_map(|unit| unit.provenance_sha256).collect();
        if !provenances.is_empty() {
            tables.insert("provenances", self.reader.provenances(provenances)?);
        }
        let encoded = self.encode(tables)?;
        failpoint::hit("uplink.encode.after");
        let sha256 = Digest::of(encoded.iter().map(|(_, json)| json.as_str()).collect::<String>().as_bytes());
        let row_count = units.iter().flat_map(|unit| unit.rows.values()).map(Vec::len).sum();
        let batch = self.batch_row(units, row_count, &counters, sha256);
        self.transact(encoded, Some(batch)).await?;
        Ok(sha256)
    }

    /// GPU samples, oldest first; refused ones are dropped, since samples may be.
    async fn deliver_gpu_stats(&mut self, delivery: &mut Delivery) -> Result<(), UplinkError> {
        loop {
            let PendingSamples { seqs, rows } = self.reader.pending_gpu_stats(limits::UPLINK_UNITS_MAX)?;
            if seqs.is_empty() {
                return Ok(());
            }
            let encoded = self.encode(BTreeMap::from([("gpu_stats", rows)]))?;
            match self.transact(encoded, None).await {
                Err(error) if error.is_about_the_rows() => {
                    warn!(samples = seqs.len(), %error, "central refuses GPU samples; dropped");
                }
                outcome => {
                    outcome?;
                    delivery.gpu_stats += seqs.len() as u64;
                }
            }
            failpoint::hit("uplink.gpu_stats.sent");
            self.ledger.acknowledge_gpu_stats(seqs)?;
        }
    }

    /// The rows of each table as one JSON list, in the order of sending.
    fn encode(
        &self,
        mut tables: BTreeMap<&'static str, Vec<Map<String, Value>>>,
    ) -> Result<Vec<(&'static SentTable, String)>, UplinkError> {
        let mut encoded = Vec::new();
        for table in SENT_TABLES {
            let Some(mut rows) = tables.remove(table.name) else { continue };
            for row in &mut rows {
                row.insert("site_id".to_owned(), self.site_id.to_string().into());
                row.insert("device_id".to_owned(), self.ledger.device_id().to_string().into());
            }
            encoded.push((table, json_text(table.name, &rows)?));
        }
        Ok(encoded)
    }

    fn batch_row(&self, units: &[Unit], row_count: usize, counters: &Counters, sha256: Digest) -> Map<String, Value> {
        let (half, _) = sha256.as_bytes().split_at(16);
        let id = uuid::Builder::from_custom_bytes(half.try_into().unwrap_or_default()).into_uuid();
        let values: [Value; BATCH_COLUMNS.len()] = [
            units.iter().map(|unit| unit.enqueued_at).min().map(|at| at.to_string()).into(),
            id.to_string().into(),
            self.ledger.epoch().into(),
            units.iter().map(|unit| unit.seq).min().into(),
            units.iter().map(|unit| unit.seq).max().into(),
            units.len().into(),
            row_count.into(),
            counters.committed.into(),
            counters.delivered.into(),
            counters.dropped_samples.into(),
            format!("\\x{sha256}").into(),
        ];
        let mut row: Map<String, Value> = BATCH_COLUMNS.iter().map(|name| (*name).to_owned()).zip(values).collect();
        row.insert("site_id".to_owned(), self.site_id.to_string().into());
        row.insert("device_id".to_owned(), self.ledger.device_id().to_string().into());
        row
    }

    async fn transact(
        &mut self,
        encoded: Vec<(&'static SentTable, String)>,
        batch: Option<Map<String, Value>>,
    ) -> Result<(), UplinkError> {
        let server = self.central.server.clone();
        let site_id = self.site_id.to_string();
        let work = async {
            let on_statement = UplinkError::statement(&server);
            let transaction = self.central.client.transaction().await.map_err(&on_statement)?;
            failpoint::io("uplink.begin.after")
                .map_err(|_| UplinkError::Timeout { server: server.clone(), seconds: 0 })?;
            let set = "SELECT set_config('loupe.site_id', $1, true)";
            transaction.query_typed(set, &[(&site_id, Type::TEXT)]).await.map_err(&on_statement)?;
            for (table, rows) in &encoded {
                let columns: Vec<&str> = table.columns().collect();
                insert(&transaction, table.name, &columns, table.key, rows).await.map_err(&on_statement)?;
                failpoint::hit("uplink.insert.after");
            }
            if let Some(batch) = batch {
                let rows = json_text("ingest_batches", &[batch])?;
                let key = ["enqueued_at", "id"];
                insert(&transaction, "ingest_batches", &BATCH_COLUMNS, &key, &rows).await.map_err(&on_statement)?;
            }
            failpoint::hit("uplink.commit.before");
            transaction.commit().await.map_err(&on_statement)?;
            failpoint::hit("uplink.commit.after");
            Ok(())
        };
        let timed_out = UplinkError::Timeout { server: server.clone(), seconds: BATCH_TIMEOUT.as_secs() };
        tokio::time::timeout(BATCH_TIMEOUT, work).await.map_err(|_| timed_out)?
    }
}

/// The site this login may write: `asked`, or the one it is bound to.
pub(super) async fn granted_site(central: &mut Central, asked: Option<Uuid>) -> Result<Option<Uuid>, UplinkError> {
    let on_statement = UplinkError::statement(&central.server);
    let asked = asked.map(|id| id.to_string()).unwrap_or_default();
    let transaction = central.client.transaction().await.map_err(&on_statement)?;
    let set = "SELECT set_config('loupe.site_id', $1, true)";
    transaction.query_typed(set, &[(&asked, Type::TEXT)]).await.map_err(&on_statement)?;
    let rows = transaction.query_typed("SELECT loupe.current_site()", &[]).await.map_err(&on_statement)?;
    transaction.rollback().await.map_err(&on_statement)?;
    Ok(rows.first().and_then(|row| row.get(0)))
}

fn json_text(table: &'static str, rows: &[Map<String, Value>]) -> Result<String, UplinkError> {
    serde_json::to_string(rows).map_err(|error| {
        UplinkError::Ledger(crate::ledger::LedgerError::Unreadable { table, detail: error.to_string() })
    })
}

/// One INSERT of many rows; those already there stay as they are.
async fn insert(
    transaction: &Transaction<'_>,
    table: &str,
    columns: &[&str],
    key: &[&str],
    rows: &str,
) -> Result<u64, tokio_postgres::Error> {
    let columns = columns.join(", ");
    let key = key.join(", ");
    // Unnamed statements: a pooler in transaction mode keeps no named ones.
    let sql = format!(
        "INSERT INTO loupe.{table} (site_id, device_id, {columns})
         SELECT site_id, device_id, {columns} FROM jsonb_populate_recordset(NULL::loupe.{table}, $1::jsonb)
         ON CONFLICT (site_id, {key}) DO NOTHING"
    );
    transaction.execute_typed(&sql, &[(&rows, Type::TEXT)]).await
}
