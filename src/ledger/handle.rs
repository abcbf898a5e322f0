//! [`Ledger`]: what the other rooms hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::Value;
use uuid::Uuid;

use super::LedgerError;
use super::artifacts::NewArtifact;
use super::cache::ProvisionNote;
use super::catalogue::QualityChange;
use super::commit_times::CommitTimes;
use super::desired::{CentralPage, CentralTable, Intake};
use super::reader::{Counters, LedgerReader, OutboxStatus};
use super::retention::{Step, StepDone};
use super::reviews::NewReview;
use super::samples::{SampleKind, Samples};
use super::store::{self, Meta};
use super::writer::{Edit, Reply, Request, Writer};
use crate::clock::Clock;
use crate::limits;
use crate::types::{
    Catalogue, ConfigRecord, Digest, FeedbackOrder, FolderNote, GpuStat, HoldOrder, Inspection, InspectionId, KitOrder,
    LearnedTemplate, PersonOrder, QualityLevel, Reason, Review, SystemStat, Timestamp,
};

/// A handle to the ledger's one writer, and to a reader. Cheap to clone.
///
/// The last handle to go closes the ledger: what is queued is committed first.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    reader: Mutex<LedgerReader>,
    state_dir: PathBuf,
    meta: Meta,
    free_critical_bytes: Arc<AtomicU64>,
    commit_times: Arc<CommitTimes>,
}

/// A commit under way.
#[derive(Debug)]
pub struct Pending(Receiver<Result<Inspection, LedgerError>>);

impl Pending {
    /// Wait until the inspection is on disk; returns it with its code and artifacts.
    ///
    /// # Errors
    /// When it could not be committed: then it is not in the ledger, and the station must hold.
    pub fn wait(self) -> Result<Inspection, LedgerError> {
        self.0.recv().map_err(|_| LedgerError::Stopped)?
    }
}

impl Ledger {
    /// Open the ledger below `state_dir`: made, migrated, and proved whole after a run that was cut off.
    ///
    /// # Errors
    /// When another process has it, when it is damaged or from a newer version, or when the disk refuses.
    pub fn open(state_dir: &Path, clock: Clock) -> Result<Self, LedgerError> {
        let store = store::open(state_dir, &clock)?;
        let meta = store.meta;
        let reader = Mutex::new(LedgerReader::open(state_dir)?);
        let (requests, queue) = bounded(limits::LEDGER_QUEUE_INSPECTIONS);
        let free_critical_bytes = Arc::new(AtomicU64::new(0));
        let commit_times = Arc::new(CommitTimes::default());
        let writer =
            Writer::new(store, state_dir, clock, queue, (Arc::clone(&free_critical_bytes), Arc::clone(&commit_times)))?;
        let thread = std::thread::Builder::new()
            .name("loupe-ledger".to_owned())
            .spawn(move || writer.run())
            .map_err(LedgerError::io("start the writer of", state_dir))?;
        let state_dir = state_dir.to_owned();
        Ok(Self(Arc::new(Inner {
            requests: Some(requests),
            thread: Some(thread),
            reader,
            state_dir,
            meta,
            free_critical_bytes,
            commit_times,
        })))
    }

    /// Store a provenance record (canonical JSON), once; durable before this returns its digest.
    ///
    /// # Errors
    /// When it could not be committed, or is not JSON.
    pub fn register_provenance(&self, canonical_json: &str) -> Result<Digest, LedgerError> {
        let sha256 = Digest::of(canonical_json.as_bytes());
        self.ask(|reply| Request::Provenance { sha256, record: canonical_json.to_owned(), reply })
    }

    /// Commit one inspection with its artifacts and wait until all of it is on disk.
    ///
    /// `inspection.code` and `inspection.artifacts` are given here, whatever they hold.
    ///
    /// # Errors
    /// When it could not be committed: then nothing of it is in the ledger, and the station must hold.
    pub fn commit(&self, inspection: Inspection, artifacts: Vec<NewArtifact>) -> Result<Inspection, LedgerError> {
        self.submit(inspection, artifacts)?.wait()
    }

    /// As [`Ledger::commit`], without waiting for the disk. Waits for room in the queue.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub fn submit(&self, inspection: Inspection, artifacts: Vec<NewArtifact>) -> Result<Pending, LedgerError> {
        self.submit_watched(inspection, artifacts, FolderNote::default())
    }

    /// As [`Ledger::submit`]; what the frame's folder gave is remembered with the inspection, or with it not at all.
    ///
    /// # Errors
    /// As [`Ledger::submit`].
    pub fn submit_watched(
        &self,
        inspection: Inspection,
        artifacts: Vec<NewArtifact>,
        watched: FolderNote,
    ) -> Result<Pending, LedgerError> {
        let (reply, outcome) = bounded(1);
        self.send(Request::Commit { inspection: Box::new(inspection), artifacts, watched, reply })?;
        Ok(Pending(outcome))
    }

    /// Spool samples for the central side; the oldest beyond [`limits::GPU_STATS_SPOOL_MAX`] fall out, counted.
    ///
    /// # Errors
    /// When they could not be committed.
    pub fn record_gpu_stats(&self, recorded_at: Timestamp, samples: Vec<GpuStat>) -> Result<(), LedgerError> {
        self.ask(|reply| Request::Samples { recorded_at, samples: Samples::Gpu(samples), reply })
    }

    /// Spool a sample of the machine; the oldest beyond [`limits::SYSTEM_STATS_SPOOL_MAX`] fall out, counted.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn record_system_stat(&self, recorded_at: Timestamp, sample: SystemStat) -> Result<(), LedgerError> {
        self.ask(|reply| Request::Samples { recorded_at, samples: Samples::System(sample), reply })
    }

    /// The 99th percentile of the commits since the last call, milliseconds; `None`: there was none.
    #[must_use]
    pub fn take_commit_p99_ms(&self) -> Option<f32> {
        self.0.commit_times.take_p99_ms()
    }

    /// Count frames of a station that were captured and not inspected. Does not wait for the disk: the writer keeps
    /// the count until it is committed.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub fn refused(&self, station: &str, reason: Reason, count: u64) -> Result<(), LedgerError> {
        if count == 0 {
            return Ok(());
        }
        self.send(Request::Refused { station: station.to_owned(), reason: reason.code(), count })
    }

    /// Put what was refused in minutes that are over into the outbox; returns how many units joined it.
    ///
    /// # Errors
    /// When that could not be committed; it is then reported later.
    pub fn report_refusals(&self) -> Result<usize, LedgerError> {
        self.ask(|reply| Request::ReportRefusals { reply })
    }

    /// Take delivered units out of the outbox; returns how many were still there.
    ///
    /// # Errors
    /// When that could not be committed; the units are then sent again.
    pub fn acknowledge(&self, seqs: Vec<i64>, batch_sha256: Digest) -> Result<usize, LedgerError> {
        self.ask(|reply| Request::Acknowledge { seqs, batch: batch_sha256, reply })
    }

    /// Take delivered samples out of the spool; returns how many were still there.
    ///
    /// # Errors
    /// When that could not be committed; the samples are then sent again.
    pub fn acknowledge_samples(&self, kind: SampleKind, seqs: Vec<i64>) -> Result<usize, LedgerError> {
        self.ask(|reply| Request::AcknowledgeSamples { kind, seqs, reply })
    }

    /// Set a unit aside that the central side refuses; it stays pending and is not sent by itself.
    ///
    /// # Errors
    /// When that could not be committed.
    pub fn park(&self, seq: i64, error: &str) -> Result<(), LedgerError> {
        self.ask(|reply| Request::Park { seq, error: error.to_owned(), reply }).map(drop)
    }

    /// Offer every parked unit again; returns how many.
    ///
    /// # Errors
    /// When that could not be committed.
    pub fn unpark(&self) -> Result<usize, LedgerError> {
        self.ask(|reply| Request::Unpark { reply })
    }

    /// Store a review, what is learned from it, and its outbox entry; on disk before this returns.
    ///
    /// # Errors
    /// When its subject is not in the ledger, a later review stands against an undo, too many templates are learned, or
    /// it could not be committed.
    pub fn review(&self, review: NewReview) -> Result<Review, LedgerError> {
        self.ask(|reply| Request::Review { review: Box::new(review), reply })
    }

    /// The templates that are to be searched now, of all indexes.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn learned_templates(&self) -> Result<Vec<LearnedTemplate>, LedgerError> {
        self.read(LedgerReader::learned_templates)
    }

    /// Bring the catalogue up to date: all of `batch`, or nothing.
    ///
    /// # Errors
    /// When it could not be committed, or a row names what is not there.
    pub fn import_catalogue(&self, batch: Catalogue) -> Result<(), LedgerError> {
        self.edit(Edit::Catalogue(batch)).map(drop)
    }

    /// Move a part to another quality level; answers with the levels before and after.
    ///
    /// # Errors
    /// When it could not be committed, or the part is unknown or there already.
    pub fn change_quality(&self, change: QualityChange) -> Result<Value, LedgerError> {
        self.edit(Edit::Quality(change))
    }

    /// Do what `order` says with kits and stock; answers with what came of it.
    ///
    /// # Errors
    /// When it could not be committed, or the order is refused in words.
    pub fn kit(&self, order: KitOrder) -> Result<Value, LedgerError> {
        self.edit(Edit::Kit(order))
    }

    /// Place or release a legal hold; answers with what came of it.
    ///
    /// # Errors
    /// When it could not be committed, or the order is refused in words.
    pub fn hold(&self, order: HoldOrder) -> Result<Value, LedgerError> {
        self.edit(Edit::Hold(order))
    }

    /// Change the register of people; answers with the [`crate::types::Person`].
    ///
    /// # Errors
    /// When it could not be committed, or the order is refused in words.
    pub fn person(&self, order: PersonOrder) -> Result<Value, LedgerError> {
        self.edit(Edit::Person(order))
    }

    /// Keep what somebody thinks or did, with its outbox entry; answers with the [`crate::types::Feedback`] or
    /// [`crate::types::ActionTaken`].
    ///
    /// # Errors
    /// When it could not be committed, or the order is refused in words.
    pub fn feedback(&self, order: FeedbackOrder) -> Result<Value, LedgerError> {
        self.edit(Edit::Feedback(order))
    }

    /// Refuse commits while less than this is free below the state folder; 0, as at first, never does.
    pub fn set_free_critical_bytes(&self, bytes: u64) {
        self.0.free_critical_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Do one retention step, behind what waits to be committed.
    pub(super) fn retain(&self, step: Step) -> Result<StepDone, LedgerError> {
        self.ask(|reply| Request::Retain { step, reply })
    }

    /// Take in rows of the centre and move the cursor of their table, in one transaction.
    ///
    /// # Errors
    /// When it could not be committed, or the page does not follow the cursor.
    pub fn take_in(&self, page: CentralPage) -> Result<Intake, LedgerError> {
        self.edit(Edit::Central(page)).map(|done| serde_json::from_value(done).unwrap_or_default())
    }

    /// Forget how far `table` has come down: everything is read anew.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn read_central_anew(&self, table: CentralTable) -> Result<(), LedgerError> {
        self.edit(Edit::CentralAnew(table)).map(drop)
    }

    /// Try the rows of the centre again that were set aside.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn retry_central(&self) -> Result<Intake, LedgerError> {
        self.edit(Edit::CentralRetry).map(|done| serde_json::from_value(done).unwrap_or_default())
    }

    /// Note what became of a recipe or a pull.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn note_provisioning(&self, note: ProvisionNote) -> Result<(), LedgerError> {
        self.edit(Edit::Provision(note)).map(drop)
    }

    /// Record what differs between `record` and what was recorded last; returns the number of keys.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn record_configuration(&self, record: ConfigRecord) -> Result<u64, LedgerError> {
        self.edit(Edit::Configuration(record)).map(|count| count.as_u64().unwrap_or(0))
    }

    fn edit(&self, edit: Edit) -> Result<Value, LedgerError> {
        self.ask(|reply| Request::Edit { edit: Box::new(edit), reply })
    }

    /// The quality level of each part of the catalogue.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn quality_levels(&self) -> Result<BTreeMap<String, QualityLevel>, LedgerError> {
        self.read(LedgerReader::quality_levels)
    }

    /// Bind this ledger to the site it reports to.
    ///
    /// # Errors
    /// [`LedgerError::OtherSite`] when it already reports to another one.
    pub fn bind_site(&self, site_id: Uuid) -> Result<(), LedgerError> {
        self.ask(|reply| Request::BindSite { site_id, reply }).map(drop)
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn counters(&self) -> Result<Counters, LedgerError> {
        self.read(LedgerReader::counters)
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox_status(&self) -> Result<OutboxStatus, LedgerError> {
        self.read(LedgerReader::outbox_status)
    }

    /// The last `count` inspections in the order of their commits, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn recent(&self, count: usize) -> Result<Vec<Inspection>, LedgerError> {
        self.read(|reader| reader.recent(count))
    }

    /// # Errors
    /// When the ledger cannot be read.
    pub fn get(&self, id: InspectionId) -> Result<Option<Inspection>, LedgerError> {
        self.read(|reader| reader.get(id))
    }

    /// Which device this is; made with the ledger.
    #[must_use]
    pub fn device_id(&self) -> Uuid {
        self.0.meta.device_id
    }

    /// Rises when a backup is restored.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.0.meta.epoch
    }

    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.0.state_dir
    }

    /// Commit what is queued, move it into the file and mark the run as ended well. Other handles get
    /// [`LedgerError::Stopped`] from now on.
    ///
    /// # Errors
    /// When the ledger could not be closed cleanly; what was committed is on disk all the same.
    pub fn close(self) -> Result<(), LedgerError> {
        self.ask(|reply| Request::Close { reply })
    }

    fn send(&self, request: Request) -> Result<(), LedgerError> {
        let requests = self.0.requests.as_ref().ok_or(LedgerError::Stopped)?;
        requests.send(request).map_err(|_| LedgerError::Stopped)
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, LedgerError> {
        let (reply, outcome) = bounded(1);
        self.send(request(reply))?;
        outcome.recv().map_err(|_| LedgerError::Stopped)?
    }

    fn read<T>(&self, work: impl FnOnce(&LedgerReader) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        work(&self.0.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(state_dir = %self.state_dir.display(), "the ledger's writer panicked");
        }
    }
}
