//! The one thread that writes: "loupe-ledger".
//!
//! It takes everything that waits into one transaction (group commit), so that callers share one fsync; each request
//! stands in a savepoint of its own, so that one bad row fails alone. Replies leave only after COMMIT returned.
//! A failed COMMIT (full disk, I/O error) fails its group, whose artifact files are removed; the thread goes on with
//! the next group. Overload: the queue is bounded and its senders wait, so that nothing is dropped here.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use rusqlite::Connection;
use serde_json::Value;
use tracing::{error, warn};
use uuid::Uuid;

use super::artifacts::{self, ArtifactBatch, NewArtifact};
use super::cache::{self, ProvisionNote};
use super::catalogue::{self, QualityChange};
use super::checkpoint::Checkpointer;
use super::commit_times::CommitTimes;
use super::desired::{self, CentralPage, CentralTable};
use super::retention::{self, Step, StepDone};
use super::reviews::{self, NewReview};
use super::samples::{self, SampleKind, Samples};
use super::{LedgerError, config_history, disk, feedback, holds, kits, operators, refusals, rows, store, watched};
use crate::clock::{Clock, Stopwatch};
use crate::failpoint;
use crate::limits;
use crate::types::{
    Catalogue, ConfigRecord, Digest, FeedbackOrder, FolderNote, HoldOrder, Inspection, KitOrder, PersonOrder, Review,
    Timestamp,
};

/// Where the outcome of a request goes; a caller that went away is no error.
pub(super) type Reply<T> = Sender<Result<T, LedgerError>>;

/// A change of what people keep: catalogue, kits, stock, who they are, what they say.
#[derive(Debug)]
pub(super) enum Edit {
    Catalogue(Catalogue),
    Quality(QualityChange),
    Kit(KitOrder),
    Hold(HoldOrder),
    Person(PersonOrder),
    Feedback(FeedbackOrder),
    Central(CentralPage),
    CentralAnew(CentralTable),
    CentralRetry,
    Provision(ProvisionNote),
    Configuration(ConfigRecord),
}

impl Edit {
    fn apply(&self, connection: &Connection, now: Timestamp) -> rusqlite::Result<Value> {
        match self {
            Edit::Catalogue(batch) => {
                desired::refuse_conflicts(connection, batch)?;
                catalogue::import(connection, batch).map(|()| Value::Null)
            }
            Edit::Central(page) => desired::take_in(connection, page, now),
            Edit::CentralAnew(table) => desired::start_over(connection, *table),
            Edit::CentralRetry => desired::retry(connection, now),
            Edit::Provision(note) => cache::note(connection, note, now),
            Edit::Configuration(record) => config_history::record(connection, record, now),
            Edit::Quality(change) => catalogue::change_quality(connection, change, now),
            Edit::Kit(order) => kits::apply(connection, order, now),
            Edit::Hold(order) => holds::apply(connection, order, now),
            Edit::Person(order) => operators::apply(connection, order, now),
            Edit::Feedback(order) => feedback::apply(connection, order, now),
        }
    }
}

/// What the writer can be asked to do.
#[derive(Debug)]
pub(super) enum Request {
    Commit { inspection: Box<Inspection>, artifacts: Vec<NewArtifact>, watched: FolderNote, reply: Reply<Inspection> },
    Provenance { sha256: Digest, record: String, reply: Reply<Digest> },
    Samples { recorded_at: Timestamp, samples: Samples, reply: Reply<()> },
    Refused { station: String, reason: &'static str, count: u64 },
    ReportRefusals { reply: Reply<usize> },
    Acknowledge { seqs: Vec<i64>, batch: Digest, reply: Reply<usize> },
    AcknowledgeSamples { kind: SampleKind, seqs: Vec<i64>, reply: Reply<usize> },
    Park { seq: i64, error: String, reply: Reply<usize> },
    Unpark { reply: Reply<usize> },
    Review { review: Box<NewReview>, reply: Reply<Review> },
    Edit { edit: Box<Edit>, reply: Reply<Value> },
    BindSite { site_id: Uuid, reply: Reply<Uuid> },
    Retain { step: Step, reply: Reply<StepDone> },
    Close { reply: Reply<()> },
}

/// A request that did its part in the open transaction and waits for COMMIT.
enum Done {
    Inspection(Box<Inspection>, Reply<Inspection>),
    Digest(Digest, Reply<Digest>),
    Count(usize, Reply<usize>),
    Review(Box<Review>, Reply<Review>),
    Value(Value, Reply<Value>),
    Site(Uuid, Uuid, Reply<Uuid>),
    Unit(Reply<()>),
}

#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// Held, not used: the process owns the folder as long as the writer lives.
    _lock: File,
    state_dir: PathBuf,
    path: PathBuf,
    clock: Clock,
    requests: Receiver<Request>,
    /// Refusals not yet on disk; bounded by stations × reasons.
    refused: BTreeMap<(String, &'static str), u64>,
    /// Less free space than this, and commits are refused.
    free_critical_bytes: Arc<AtomicU64>,
    commit_times: Arc<CommitTimes>,
    checkpointer: Checkpointer,
}

impl Writer {
    pub fn new(
        store: store::Store,
        state_dir: &Path,
        clock: Clock,
        requests: Receiver<Request>,
        (free_critical_bytes, commit_times): (Arc<AtomicU64>, Arc<CommitTimes>),
    ) -> Result<Self, LedgerError> {
        let path = store::database_path(state_dir);
        let checkpointer = Checkpointer::start(&path)?;
        Ok(Self {
            connection: store.connection,
            _lock: store.lock,
            state_dir: state_dir.to_owned(),
            path,
            clock,
            requests,
            refused: BTreeMap::new(),
            free_critical_bytes,
            commit_times,
            checkpointer,
        })
    }

    /// Serve until asked to close or until every handle is gone; everything queued before that is committed.
    pub fn run(mut self) {
        Checkpointer::watch(&self.connection);
        let mut closing = None;
        while closing.is_none() {
            let Ok(first) = self.requests.recv() else { break };
            let mut group = Vec::with_capacity(limits::LEDGER_QUEUE_INSPECTIONS);
            let mut next = Some(first);
            let mut steps = Vec::new();
            while let Some(request) = next {
                match request {
                    Request::Close { reply } => {
                        closing = Some(reply);
                        break;
                    }
                    Request::Refused { station, reason, count } => {
                        *self.refused.entry((station, reason)).or_default() += count;
                    }
                    Request::Retain { step, reply } => steps.push((step, reply)),
                    other => group.push(other),
                }
                let is_full = group.len() >= limits::LEDGER_QUEUE_INSPECTIONS;
                next = if is_full { None } else { self.requests.try_recv().ok() };
            }
            self.commit_group(group);
            for (step, reply) in steps {
                answer(&reply, self.retain(&step));
            }
            self.checkpointer.after_commit(&self.connection);
        }
        self.checkpointer.stop();
        let ended = store::end_run(&self.connection).map_err(LedgerError::sqlite(&self.path));
        if let Err(error) = &ended {
            error!(path = %self.path.display(), %error, "the ledger could not be closed cleanly");
        }
        drop(self);
        failpoint::hit("ledger.close.after");
        if let Some(reply) = closing {
            answer(&reply, ended);
        }
    }

    fn commit_group(&mut self, group: Vec<Request>) {
        if group.is_empty() && self.refused.is_empty() {
            return;
        }
        let now = self.clock.now();
        let group = self.refuse_on_full_disk(group);
        let (group, placed) = self.place_artifacts(group);
        let mut done = Vec::with_capacity(group.len());
        let outcome = self.write_group(group, now, &mut done);
        match outcome {
            Ok(()) => {
                self.refused.clear();
                failpoint::hit("ledger.commit.after");
                for request in done {
                    request.confirm();
                    failpoint::hit("ledger.reply.after");
                }
            }
            Err(source) => {
                self.roll_back();
                error!(path = %self.path.display(), error = %source, requests = done.len(), "a group was not committed");
                if !is_ambiguous(&source) {
                    artifacts::remove(&self.state_dir, &placed);
                }
                let reason = source.to_string();
                for request in done {
                    request.fail(&reason);
                }
            }
        }
    }

    /// One retention step, a transaction of its own: what waited to be committed is on disk already.
    fn retain(&self, step: &Step) -> Result<StepDone, LedgerError> {
        let work = || {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            let done = retention::apply(&self.connection, step, self.clock.now())?;
            self.connection.execute_batch("COMMIT")?;
            Ok(done)
        };
        work().map_err(|source| {
            self.roll_back();
            LedgerError::Sqlite { path: self.path.clone(), source }
        })
    }

    /// Below the critical mark inspections are refused, so that their stations hold. All else goes on: deliveries and
    /// retention free space, and the mark leaves room for them.
    fn refuse_on_full_disk(&self, group: Vec<Request>) -> Vec<Request> {
        let critical_bytes = self.free_critical_bytes.load(Ordering::Relaxed);
        if critical_bytes == 0 {
            return group;
        }
        // A disk that does not answer will say so at the commit.
        let free_bytes = disk::free_bytes(&self.state_dir).unwrap_or(u64::MAX);
        if free_bytes >= critical_bytes {
            return group;
        }
        let mut ready = Vec::new();
        for request in group {
            if let Request::Commit { reply, .. } = request {
                let path = self.state_dir.clone();
                answer(&reply, Err(LedgerError::DiskFull { path, free_bytes, critical_bytes }));
            } else {
                ready.push(request);
            }
        }
        ready
    }

    /// Write the files of the group's inspections; those that fail are answered and leave the group.
    fn place_artifacts(&self, group: Vec<Request>) -> (Vec<Request>, Vec<crate::types::ArtifactRef>) {
        let mut batch = ArtifactBatch::new(&self.state_dir);
        let mut placed = Vec::new();
        let mut ready = Vec::with_capacity(group.len());
        for request in group {
            let Request::Commit { mut inspection, artifacts, watched, reply } = request else {
                ready.push(request);
                continue;
            };
            match batch.add(&inspection, &artifacts) {
                Ok(references) => {
                    placed.extend(references.iter().cloned());
                    inspection.artifacts = references;
                    ready.push(Request::Commit { inspection, artifacts: Vec::new(), watched, reply });
                }
                Err(error) => answer(&reply, Err(error)),
            }
        }
        if let Err(error) = batch.publish() {
            let reason = error.to_string();
            ready.retain(|request| match request {
                Request::Commit { reply, .. } => {
                    answer(reply, Err(LedgerError::GroupFailed { reason: reason.clone() }));
                    false
                }
                _ => true,
            });
            return (ready, Vec::new());
        }
        (ready, placed)
    }

    /// BEGIN, every request, COMMIT. What needs an answer after COMMIT is put into `done`, also when this fails.
    fn write_group(&mut self, group: Vec<Request>, now: Timestamp, done: &mut Vec<Done>) -> rusqlite::Result<()> {
        failpoint::hit("ledger.begin.before");
        let mut failed = self.run_sql("BEGIN IMMEDIATE").and_then(|()| disk("ledger.begin.after")).err();
        for request in group {
            match (&failed, request) {
                (None, request) => failed = self.write(request, now, done).err(),
                (Some(source), request) => request.fail(&source.to_string()),
            }
        }
        if let Some(source) = failed {
            return Err(source);
        }
        for ((station, reason), count) in &self.refused {
            refusals::insert_refusal(&self.connection, (station, reason), *count, now)?;
        }
        disk("ledger.commit.before")?;
        let watch = Stopwatch::start();
        self.run_sql("COMMIT")?;
        self.commit_times.note(watch.elapsed());
        Ok(())
    }

    /// One request within the open transaction. An error here is the disk's, and ends the group.
    fn write(&self, request: Request, now: Timestamp, done: &mut Vec<Done>) -> rusqlite::Result<()> {
        let connection = &self.connection;
        match request {
            Request::Commit { inspection, watched, reply, .. } => {
                self.write_inspection(inspection, &watched, reply, now, done)?;
            }
            Request::Provenance { sha256, record, reply } => {
                let written = self.in_savepoint(|| {
                    rows::insert_provenance(connection, sha256, &record, now)?;
                    disk("ledger.provenance.savepoint")
                });
                self.finish(written, reply, done, |(), reply| Done::Digest(sha256, reply))?;
            }
            Request::Samples { recorded_at, samples, reply } => {
                let written = self.in_savepoint(|| {
                    samples::insert(connection, recorded_at, &samples)?;
                    disk("ledger.samples.savepoint")
                });
                self.finish(written, reply, done, |(), reply| Done::Unit(reply))?;
            }
            Request::Acknowledge { seqs, batch, reply } => {
                let written = self.in_savepoint(|| {
                    after(rows::acknowledge(connection, &seqs, batch, now), "ledger.acknowledge.savepoint")
                });
                self.finish(written, reply, done, Done::Count)?;
            }
            Request::AcknowledgeSamples { kind, seqs, reply } => {
                let written = self.in_savepoint(|| samples::acknowledge(connection, kind, &seqs));
                self.finish(written, reply, done, Done::Count)?;
            }
            Request::Park { seq, error, reply } => {
                let written = self.in_savepoint(|| after(rows::park(connection, seq, &error), "ledger.park.savepoint"));
                self.finish(written, reply, done, Done::Count)?;
            }
            Request::Unpark { reply } => {
                let written = self.in_savepoint(|| rows::unpark(connection));
                self.finish(written, reply, done, Done::Count)?;
            }
            Request::BindSite { site_id, reply } => {
                let written =
                    self.in_savepoint(|| after(rows::bind_site(connection, site_id), "ledger.bind_site.savepoint"));
                self.finish(written, reply, done, |bound, reply| Done::Site(bound, site_id, reply))?;
            }
            Request::ReportRefusals { reply } => {
                let written = self.in_savepoint(|| refusals::report(connection, now));
                self.finish(written, reply, done, Done::Count)?;
            }
            Request::Review { review, reply } => {
                let written = self.in_savepoint(|| {
                    after(reviews::insert_review(connection, &review, now), "ledger.review.savepoint")
                });
                self.finish(written, reply, done, |review, reply| Done::Review(Box::new(review), reply))?;
            }
            Request::Edit { edit, reply } => {
                let written = self.in_savepoint(|| after(edit.apply(connection, now), "ledger.edit.savepoint"));
                self.finish(written, reply, done, Done::Value)?;
            }
            Request::Refused { .. } | Request::Retain { .. } | Request::Close { .. } => {}
        }
        Ok(())
    }

    fn write_inspection(
        &self,
        mut inspection: Box<Inspection>,
        watched: &FolderNote,
        reply: Reply<Inspection>,
        now: Timestamp,
        done: &mut Vec<Done>,
    ) -> rusqlite::Result<()> {
        match self.in_savepoint(|| {
            rows::insert_inspection(&self.connection, &mut inspection, now)?;
            if !watched.is_empty() {
                watched::note(&self.connection, &inspection.station, watched)?;
            }
            disk("ledger.inspection.savepoint")
        }) {
            Ok(()) => done.push(Done::Inspection(inspection, reply)),
            Err(source) if is_disk_error(&source) => {
                answer(&reply, Err(LedgerError::GroupFailed { reason: source.to_string() }));
                return Err(source);
            }
            Err(source) => {
                artifacts::remove(&self.state_dir, &inspection.artifacts);
                answer(&reply, Err(rows::classify(source, &inspection)));
            }
        }
        Ok(())
    }

    fn finish<T, U>(
        &self,
        written: rusqlite::Result<T>,
        reply: Reply<U>,
        done: &mut Vec<Done>,
        confirm: impl FnOnce(T, Reply<U>) -> Done,
    ) -> rusqlite::Result<()> {
        match written {
            Ok(value) => done.push(confirm(value, reply)),
            Err(source) if is_disk_error(&source) => {
                answer(&reply, Err(LedgerError::GroupFailed { reason: source.to_string() }));
                return Err(source);
            }
            Err(source) => answer(&reply, Err(LedgerError::Refused { what: "this".to_owned(), source })),
        }
        Ok(())
    }

    fn in_savepoint<T>(&self, work: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.run_sql("SAVEPOINT one")?;
        let outcome = work();
        if outcome.is_err() && !self.connection.is_autocommit() {
            self.run_sql("ROLLBACK TO one")?;
        }
        if !self.connection.is_autocommit() {
            self.run_sql("RELEASE one")?;
        }
        outcome
    }

    /// A statement of every commit, parsed once.
    fn run_sql(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// SQLite rolls back by itself on some errors; this makes sure that no transaction stays open.
    fn roll_back(&self) {
        failpoint::hit("ledger.rollback.before");
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            warn!(path = %self.path.display(), %error, "the ledger could not roll back");
        }
    }
}

/// A failpoint within a transaction; armed with `error` it is what SQLite says of a failing disk.
fn disk(name: &'static str) -> rusqlite::Result<()> {
    let failed = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    failpoint::io(name).map_err(|error| rusqlite::Error::SqliteFailure(failed, Some(error.to_string())))
}

/// What was written, unless the disk fails at the failpoint `name`.
fn after<T>(written: rusqlite::Result<T>, name: &'static str) -> rusqlite::Result<T> {
    let value = written?;
    disk(name)?;
    Ok(value)
}

/// Whether the disk failed, not the row.
pub(super) fn is_disk_error(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(code) => code != rusqlite::ErrorCode::ConstraintViolation && code != rusqlite::ErrorCode::TooBig,
        None => false,
    }
}

/// After a failed fsync the transaction may yet be found whole after a power cut: its files must stay.
fn is_ambiguous(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|cause| cause.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC)
}

fn answer<T>(reply: &Reply<T>, outcome: Result<T, LedgerError>) {
    if reply.send(outcome).is_err() {
        tracing::debug!("a caller of the ledger did not wait for its answer");
    }
}

impl Done {
    fn confirm(self) {
        match self {
            Done::Inspection(inspection, reply) => answer(&reply, Ok(*inspection)),
            Done::Review(review, reply) => answer(&reply, Ok(*review)),
            Done::Value(value, reply) => answer(&reply, Ok(value)),
            Done::Digest(digest, reply) => answer(&reply, Ok(digest)),
            Done::Count(count, reply) => answer(&reply, Ok(count)),
            Done::Unit(reply) => answer(&reply, Ok(())),
            Done::Site(bound, asked, reply) if bound == asked => answer(&reply, Ok(bound)),
            Done::Site(bound, asked, reply) => answer(&reply, Err(LedgerError::OtherSite { bound, asked })),
        }
    }

    fn fail(self, reason: &str) {
        let error = LedgerError::GroupFailed { reason: reason.to_owned() };
        match self {
            Done::Inspection(_, reply) => answer(&reply, Err(error)),
            Done::Review(_, reply) => answer(&reply, Err(error)),
            Done::Value(_, reply) => answer(&reply, Err(error)),
            Done::Digest(_, reply) => answer(&reply, Err(error)),
            Done::Count(_, reply) => answer(&reply, Err(error)),
            Done::Site(_, _, reply) => answer(&reply, Err(error)),
            Done::Unit(reply) => answer(&reply, Err(error)),
        }
    }
}

impl Request {
    fn fail(self, reason: &str) {
        let error = LedgerError::GroupFailed { reason: reason.to_owned() };
        match self {
            Request::Commit { reply, .. } => answer(&reply, Err(error)),
            Request::Provenance { reply, .. } => answer(&reply, Err(error)),
            Request::Samples { reply, .. } | Request::Close { reply } => answer(&reply, Err(error)),
            Request::Acknowledge { reply, .. }
            | Request::AcknowledgeSamples { reply, .. }
            | Request::Park { reply, .. }
            | Request::ReportRefusals { reply }
            | Request::Unpark { reply } => answer(&reply, Err(error)),
            Request::Review { reply, .. } => answer(&reply, Err(error)),
            Request::Edit { reply, .. } => answer(&reply, Err(error)),
            Request::BindSite { reply, .. } => answer(&reply, Err(error)),
            Request::Retain { reply, .. } => answer(&reply, Err(error)),
            Request::Refused { .. } => {}
        }
    }
}
