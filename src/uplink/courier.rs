//! [`Courier`]: takes what waits in the ledger to the central database, once.
//!
//! One batch is one central transaction: one INSERT … ON CONFLICT DO NOTHING a table, and a row in `ingest_batches`.
//! Only after its COMMIT do the entries leave the outbox. A lost reply, a kill in between, a restored backup: the batch
//! is sent again and changes nothing. Rows that central refuses are halved out of their batch and parked.
//!
//! Three things go on at once: the server works on a batch, a thread packs the next, and the ledger forgets the one
//! before. There is never more than that in memory: what the server does not take stays in the ledger.

use std::time::Duration;

use serde::Serialize;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_postgres::types::Type;
use tracing::{info, warn};
use uuid::Uuid;

use super::batch::Batch;
use super::central::Central;
use super::packer::{Load, Packer};
use super::pipeline::transact;
use super::{Secret, UplinkError};
use crate::failpoint;
use crate::ledger::{Ledger, LedgerError, LedgerReader, PackedUnit, SampleKind, Span};
use crate::limits;

/// What a run of the courier moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Units acknowledged by central: inspections, reviews, kit sessions, corrections, reports of refusals, changes of the
    /// configuration.
    pub delivered: u64,
    /// Those it refused.
    pub parked: u64,
    /// GPU samples acknowledged.
    pub gpu_stats: u64,
    /// Samples of the machine acknowledged.
    pub system_stats: u64,
}

impl Delivery {
    fn samples_of(&mut self, kind: SampleKind) -> &mut u64 {
        match kind {
            SampleKind::Gpu => &mut self.gpu_stats,
            SampleKind::System => &mut self.system_stats,
        }
    }
}

/// A ledger on one side, the central database on the other.
#[derive(Debug)]
pub struct Courier {
    ledger: Ledger,
    /// For the downlink; what is sent is read by the packer.
    reader: LedgerReader,
    central: Central,
    site_id: Uuid,
    units_max: usize,
    batch_time_max: Duration,
    /// `None` while the thread has it.
    packer: Option<Packer>,
    /// Empty batches, whose buffers are used again.
    spare: Vec<Batch>,
}

/// The next batch, under way on another thread.
type Packing = JoinHandle<(Packer, Result<Load, LedgerError>)>;

impl Courier {
    /// Connect and agree on the site: `site_id`, or the one that the login is bound to.
    ///
    /// # Errors
    /// When the server refuses, its schema is older than this program, or the login may not write the site.
    pub async fn connect(ledger: Ledger, dsn: &Secret, site_id: Option<Uuid>) -> Result<Self, UplinkError> {
        failpoint::hit("uplink.connect.before");
        let mut central = Central::connect(dsn).await?;
        failpoint::hit("uplink.connect.after");
        let server = central.server.clone();
        let agree = async {
            central.check_schema().await?;
            granted_site(&mut central, site_id).await
        };
        let limit = limits::UPLINK_CONNECT_TIME_MAX;
        let silent = UplinkError::Timeout { server: server.clone(), seconds: limit.as_secs() };
        let granted = tokio::time::timeout(limit, agree).await.map_err(|_| silent)??;
        let site_id = match (granted, site_id) {
            (Some(granted), _) => granted,
            (None, Some(asked)) => return Err(UplinkError::WrongSite { server, asked }),
            (None, None) => return Err(UplinkError::NoSite { server }),
        };
        ledger.bind_site(site_id)?;
        let packer = Some(Packer::open(&ledger)?);
        let batch_time_max = limits::UPLINK_BATCH_TIME_MAX;
        let units_max = limits::UPLINK_UNITS_MAX;
        let reader = LedgerReader::open(ledger.state_dir())?;
        Ok(Self { ledger, reader, central, site_id, units_max, batch_time_max, packer, spare: Vec::new() })
    }

    /// What the downlink shares: the connection between two deliveries, the reader, and the site.
    pub(super) fn for_downlink(&mut self) -> (&mut Central, &LedgerReader, Uuid) {
        (&mut self.central, &self.reader, self.site_id)
    }

    /// Send at most `units_max` units in one transaction, for slow links.
    pub fn limit_units(&mut self, units_max: usize) {
        self.units_max = units_max.clamp(1, limits::UPLINK_UNITS_MAX);
    }

    /// Give up on a batch that central does not answer within `batch_time_max`.
    pub fn limit_batch_time(&mut self, batch_time_max: Duration) {
        self.batch_time_max = batch_time_max;
    }

    /// Deliver everything that waits now, inspections first; `progress` hears each step.
    ///
    /// # Errors
    /// When the server or the ledger fails; what was acknowledged until then stays delivered.
    pub async fn deliver_all(&mut self, mut progress: impl FnMut(&Delivery)) -> Result<Delivery, UplinkError> {
        let mut delivery = Delivery::default();
        self.deliver_units(&mut delivery, &mut progress).await?;
        self.deliver_samples(&mut delivery).await?;
        Ok(delivery)
    }

    async fn deliver_units(
        &mut self,
        delivery: &mut Delivery,
        progress: &mut impl FnMut(&Delivery),
    ) -> Result<(), UplinkError> {
        self.report_refusals()?;
        let mut acknowledging: Option<JoinHandle<Result<usize, LedgerError>>> = None;
        let mut packing = self.start_packing(0)?;
        loop {
            let (packer, load) = packing.await.map_err(lost)?;
            self.packer = Some(packer);
            let load = load?;
            failpoint::hit("uplink.read.after");
            let Some(last_seq) = load.packed.last_seq() else { break };
            packing = self.start_packing(last_seq)?;
            self.park_unreadable(&load, delivery)?;
            let outcome = self.send(&load).await;
            settle(acknowledging.take(), delivery, progress).await?;
            match outcome {
                Ok(()) => {
                    let (ledger, sha256) = (self.ledger.clone(), load.sha256);
                    let seqs = load.packed.units.iter().map(|unit| unit.seq).collect();
                    acknowledging = Some(spawn_blocking(move || ledger.acknowledge(seqs, sha256)));
                }
                Err(error) if error.is_about_the_rows() => {
                    self.deliver_by_halves(&load.packed.units, error, delivery, progress).await?;
                }
                Err(error) => return Err(error),
            }
            self.spare.push(load.batch);
        }
        settle(acknowledging, delivery, progress).await
    }

    /// What was refused in minutes that are over joins the outbox.
    fn report_refusals(&mut self) -> Result<(), UplinkError> {
        while self.packer()?.has_unreported_refusals()? && self.ledger.report_refusals()? > 0 {}
        Ok(())
    }

    fn packer(&mut self) -> Result<&mut Packer, LedgerError> {
        match &mut self.packer {
            Some(packer) => Ok(packer),
            none => Ok(none.insert(Packer::open(&self.ledger)?)),
        }
    }

    /// Read the units beyond `after_seq` on another thread.
    fn start_packing(&mut self, after_seq: i64) -> Result<Packing, LedgerError> {
        let packer = match self.packer.take() {
            Some(packer) => packer,
            None => Packer::open(&self.ledger)?,
        };
        let batch = self.spare.pop().unwrap_or_else(Batch::new);
        let span = self.span(after_seq, i64::MAX);
        Ok(spawn_blocking(move || {
            let load = packer.pack(span, batch);
            (packer, load)
        }))
    }

    fn span(&self, after_seq: i64, through_seq: i64) -> Span {
        Span { after_seq, through_seq, units_max: self.units_max, bytes_max: limits::UPLINK_BATCH_BYTES_MAX }
    }

    fn park_unreadable(&self, load: &Load, delivery: &mut Delivery) -> Result<(), UplinkError> {
        for (seq, error) in &load.packed.unreadable {
            warn!(seq, %error, "an outbox entry cannot be read; parked");
            self.ledger.park(*seq, &error.to_string())?;
            delivery.parked += 1;
        }
        Ok(())
    }

    /// Central refuses the rows of these units: halve them until the culprit stands alone, and park it.
    async fn deliver_by_halves(
        &mut self,
        units: &[PackedUnit],
        error: UplinkError,
        delivery: &mut Delivery,
        progress: &mut impl FnMut(&Delivery),
    ) -> Result<(), UplinkError> {
        // The other packer is at work on what follows.
        let packer = Packer::open(&self.ledger)?;
        let mut refused = vec![(units, error)];
        while let Some((units, error)) = refused.pop() {
            if let [unit] = units {
                warn!(seq = unit.seq, id = %unit.id, %error, "central refuses; parked");
                failpoint::hit("uplink.park.before");
                self.ledger.park(unit.seq, &error.to_string())?;
                delivery.parked += 1;
                progress(delivery);
                continue;
            }
            info!(units = units.len(), %error, "central refuses a batch; halving it");
            failpoint::hit("uplink.halve");
            let (early, late) = units.split_at(units.len() / 2);
            for half in [late, early] {
                let (Some(first), Some(last)) = (half.first(), half.last()) else { continue };
                let load = packer.pack(self.span(first.seq - 1, last.seq), Batch::new())?;
                match self.send(&load).await {
                    Ok(()) => {
                        let seqs = load.packed.units.iter().map(|unit| unit.seq).collect();
                        delivery.delivered += self.ledger.acknowledge(seqs, load.sha256)? as u64;
                        progress(delivery);
                    }
                    Err(error) if error.is_about_the_rows() => refused.push((half, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Samples of each kind, oldest first; refused ones are dropped, since samples may be.
    async fn deliver_samples(&mut self, delivery: &mut Delivery) -> Result<(), UplinkError> {
        let mut batch = self.spare.pop().unwrap_or_else(Batch::new);
        for kind in SampleKind::ALL {
            loop {
                let seqs = self.packer()?.pack_samples(kind, limits::UPLINK_UNITS_MAX, &mut batch)?;
                if seqs.is_empty() {
                    break;
                }
                match self.send_batch(&batch).await {
                    Err(error) if error.is_about_the_rows() => {
                        warn!(samples = seqs.len(), ?kind, %error, "central refuses samples; dropped");
                    }
                    outcome => {
                        outcome?;
                        *delivery.samples_of(kind) += seqs.len() as u64;
                    }
                }
                failpoint::hit("uplink.samples.sent");
                self.ledger.acknowledge_samples(kind, seqs)?;
            }
        }
        self.spare.push(batch);
        Ok(())
    }

    async fn send(&self, load: &Load) -> Result<(), UplinkError> {
        if load.packed.units.is_empty() { Ok(()) } else { self.send_batch(&load.batch).await }
    }

    /// One central transaction, within the time a batch may take.
    async fn send_batch(&self, batch: &Batch) -> Result<(), UplinkError> {
        let server = &self.central.server;
        failpoint::io("uplink.encode.after")
            .map_err(|_| UplinkError::Timeout { server: server.clone(), seconds: 0 })?;
        let work = transact(&self.central.client, self.site_id, self.ledger.device_id(), batch);
        match tokio::time::timeout(self.batch_time_max, work).await {
            Ok(outcome) => outcome.map_err(UplinkError::statement(server)),
            Err(_) => Err(UplinkError::Timeout { server: server.clone(), seconds: self.batch_time_max.as_secs() }),
        }
    }
}

/// Wait until the ledger has forgotten what was delivered.
async fn settle(
    acknowledging: Option<JoinHandle<Result<usize, LedgerError>>>,
    delivery: &mut Delivery,
    progress: &mut impl FnMut(&Delivery),
) -> Result<(), UplinkError> {
    if let Some(acknowledging) = acknowledging {
        delivery.delivered += acknowledging.await.map_err(lost)?? as u64;
        failpoint::hit("uplink.acknowledge.after");
        progress(delivery);
    }
    Ok(())
}

/// A thread that panicked; what it was to do is done again after the next connection.
fn lost(error: JoinError) -> UplinkError {
    UplinkError::Provision { detail: format!("a thread of the uplink ended early: {error}") }
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
