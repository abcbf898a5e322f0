//! A model for all workers: what several ask at about the same time goes through the graph as one batch.
//!
//! ```text
//! worker ─request─► queue (≤ one a worker) ─► thread `batch-<model>`: gather, run, take apart ─answer─► each worker
//! ```
//!
//! One thread with one session on an accelerator; on a CPU one for each core, since one session on all cores is slower than
//! its batches side by side (docs/adr/0010). The threads gather in turns: while one fills its batch the others run theirs.
//!
//! The first request waits for others, but never longer than its deadline leaves after the expected run, and not at all once
//! the batch is full or every worker that could send is waiting; where threads share the workers, not once half the thread's
//! share is waiting, and no longer than a run. Only requests of one size that want the same outputs share a batch; others
//! keep their place in line.
//!
//! Invariants: every request is answered; each gets its own pictures' rows in its own order. A batch that fails for a
//! reason other than its device is run again one request at a time, so that a bad input fails alone; a graph that keeps
//! failing in batches is run one request at a time from then on. A thread whose session is lost takes no request while
//! another has one.
//! Thread: one a session. Overload: workers wait, each with one request, so the queue cannot grow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use half::f16;
use tracing::warn;

use super::InferenceError;
use super::health::ModelHealth;
use super::keeper::{Keeper, LOOK_INTERVAL};
use super::manifest::OutputSpec;
use super::outputs::{Output, Wanted};
use super::preprocess::View;
use super::provider::BatchLimits;
use super::session::Facts;
use crate::clock::Stopwatch;
use crate::limits::BATCH_QUEUE_REQUESTS;

/// Batches of a graph that may fail while its requests alone succeed, before nothing is batched any more.
const STRIKES_MAX: u32 = 3;
/// Weight of the newest run in the expected time of the next.
const RUN_WEIGHT: f64 = 0.2;

/// Values of an input that travel to the batcher's thread and back, so that they are allocated once.
#[derive(Debug)]
enum Pixels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    U8(Vec<u8>),
}

impl Pixels {
    fn of(view: View<'_>) -> Self {
        match view {
            View::F32(values) => Pixels::F32(values.to_vec()),
            View::F16(values) => Pixels::F16(values.to_vec()),
            View::U8(values) => Pixels::U8(values.to_vec()),
        }
    }

    fn clear(&mut self) {
        match self {
            Pixels::F32(values) => values.clear(),
            Pixels::F16(values) => values.clear(),
            Pixels::U8(values) => values.clear(),
        }
    }

    /// Append values of the same type; those of another replace what is there.
    fn push(&mut self, view: View<'_>) {
        match (&mut *self, view) {
            (Pixels::F32(values), View::F32(more)) => values.extend_from_slice(more),
            (Pixels::F16(values), View::F16(more)) => values.extend_from_slice(more),
            (Pixels::U8(values), View::U8(more)) => values.extend_from_slice(more),
            (_, more) => *self = Pixels::of(more),
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Pixels::F32(values) => View::F32(values),
            Pixels::F16(values) => View::F16(values),
            Pixels::U8(values) => View::U8(values),
        }
    }
}

/// What one worker asks.
struct Request {
    pixels: Pixels,
    shape: [usize; 4],
    specs: Arc<[OutputSpec]>,
    watch: Stopwatch,
    answer: Sender<Reply>,
}

impl Request {
    fn pictures(&self) -> usize {
        self.shape[0]
    }

    fn fits(&self, other: &Request) -> bool {
        self.shape[1..] == other.shape[1..] && self.specs == other.specs
    }
}

struct Reply {
    pixels: Pixels,
    outcome: Result<Answer, InferenceError>,
}

/// Shape and values of each wanted output.
type Tensors = Vec<(Vec<usize>, Vec<f32>)>;

/// One request's outputs and its share of the time inside the runtime.
struct Answer {
    outputs: Tensors,
    session_ms: f64,
}

/// The workers' end of one model's threads.
#[derive(Debug)]
pub(super) struct Batcher {
    /// `None` only while it is dropped; so is `alive`, which threads without a session look at.
    queue: Option<Sender<Request>>,
    alive: Option<Arc<()>>,
    threads: Vec<JoinHandle<()>>,
    facts: Arc<Facts>,
    limits: BatchLimits,
    /// Clients by worker.
    lanes: Mutex<BTreeMap<usize, usize>>,
    /// Workers that could send.
    senders: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Batcher {
    /// A thread for `first` and for each of `others`, sessions of the same model.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(
        first: Arc<Keeper>,
        others: Vec<Arc<Keeper>>,
        limits: BatchLimits,
        health: &ModelHealth,
    ) -> Result<Arc<Self>, InferenceError> {
        let facts = Arc::clone(first.facts());
        let (senders, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (queue, requests) = bounded(BATCH_QUEUE_REQUESTS);
        let model = facts.manifest.name();
        let line = Arc::new(Mutex::default());
        let keepers: Arc<[Arc<Keeper>]> = std::iter::once(first).chain(others).collect();
        let start = |keeper: &Arc<Keeper>| {
            let loom = Loom {
                requests: requests.clone(),
                line: Arc::clone(&line),
                keepers: Arc::clone(&keepers),
                keeper: Arc::clone(keeper),
                limits,
                senders: Arc::clone(&senders),
                batcher: Arc::downgrade(&alive),
                health: health.clone(),
                buffer: Pixels::U8(Vec::new()),
                wanted: Vec::new(),
                picture_ms: 0.0,
                strikes: 0,
            };
            let thread = std::thread::Builder::new().name(format!("batch-{model}")).spawn(move || loom.run());
            thread.map_err(|error| InferenceError::NoProvider {
                model: model.to_owned(),
                message: format!("its thread cannot be started: {error}"),
            })
        };
        let threads = keepers.iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let lanes = Mutex::default();
        Ok(Arc::new(Self { queue: Some(queue), alive: Some(alive), threads, facts, limits, lanes, senders }))
    }

    /// A worker's access; `lane` tells the workers apart.
    pub(super) fn client(self: &Arc<Self>, lane: usize) -> Client {
        self.count(lane, |clients| clients + 1);
        Client { batcher: Arc::clone(self), lane, pixels: None }
    }

    fn count(&self, lane: usize, change: impl Fn(usize) -> usize) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = lanes.entry(lane).or_default();
        *clients = change(*clients);
        if *clients == 0 {
            lanes.remove(&lane);
        }
        self.senders.store(lanes.len(), Ordering::SeqCst);
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        (self.queue, self.alive) = (None, None);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!(model = self.facts.manifest.name(), "a thread that batches for this model died");
            }
        }
    }
}

/// One worker's access to a batcher.
#[derive(Debug)]
pub(super) struct Client {
    batcher: Arc<Batcher>,
    lane: usize,
    /// Kept from the last request.
    pixels: Option<Pixels>,
}

impl Client {
    pub(super) fn facts(&self) -> &Arc<Facts> {
        &self.batcher.facts
    }

    /// Most pictures of one request.
    pub(super) fn pictures_max(&self) -> usize {
        self.batcher.limits.max
    }

    /// Wait for the answer to `input`; what `then` makes of it and the request's share of the time inside the runtime.
    ///
    /// # Errors
    /// As [`Keeper::run`].
    pub(super) fn run<R>(
        &mut self,
        input: View<'_>,
        shape: [usize; 4],
        wanted: &Wanted,
        then: impl FnOnce(&[Output<'_>]) -> Result<R, InferenceError>,
    ) -> Result<(R, f64), InferenceError> {
        let gone = || InferenceError::Unavailable {
            model: self.batcher.facts.manifest.name().to_owned(),
            message: "the thread that batches for it is gone; restart the service".to_owned(),
        };
        let mut pixels = self.pixels.take().unwrap_or(Pixels::U8(Vec::new()));
        pixels.clear();
        pixels.push(input);
        // A channel a request: when the thread dies, waiting ends.
        let (answer, replies) = bounded(1);
        let request = Request { pixels, shape, specs: Arc::clone(wanted.specs()), watch: Stopwatch::start(), answer };
        self.batcher.queue.as_ref().ok_or_else(gone)?.send(request).map_err(|_| gone())?;
        let Reply { pixels, outcome } = replies.recv().map_err(|_| gone())?;
        self.pixels = Some(pixels);
        let Answer { outputs, session_ms } = outcome?;
        let outputs: Vec<Output<'_>> =
            outputs.into_iter().map(|(shape, values)| Output { shape, values: values.into() }).collect();
        Ok((then(&outputs)?, session_ms))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.batcher.count(self.lane, |clients| clients.saturating_sub(1));
    }
}

/// The thread's end.
struct Loom {
    requests: Receiver<Request>,
    /// Requests that came and are in no batch yet. Whoever holds it gathers.
    line: Arc<Mutex<VecDeque<Request>>>,
    /// The sessions of this model, a thread each.
    keepers: Arc<[Arc<Keeper>]>,
    /// This thread's own.
    keeper: Arc<Keeper>,
    limits: BatchLimits,
    senders: Arc<AtomicUsize>,
    batcher: Weak<()>,
    health: ModelHealth,
    /// The batch put together, kept between runs.
    buffer: Pixels,
    /// Run options by what was asked for.
    wanted: Vec<Wanted>,
    /// Expected time of one picture inside the runtime.
    picture_ms: f64,
    strikes: u32,
}

impl Loom {
    fn run(mut self) {
        loop {
            // Without a session it would answer at once, and so take more requests than the others.
            while !self.keeper.is_ready() && self.looms() > 0 && self.batcher.strong_count() > 0 {
                std::thread::park_timeout(LOOK_INTERVAL);
            }
            let Some(batch) = self.next_batch() else { return };
            self.answer(batch);
        }
    }

    /// Threads of this model that have a session.
    fn looms(&self) -> usize {
        self.keepers.iter().filter(|keeper| keeper.is_ready()).count()
    }

    /// `None` when nobody can ask any more.
    fn next_batch(&self) -> Option<Vec<Request>> {
        let mut waiting = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            waiting.push_back(self.requests.recv().ok()?);
        }
        self.gather(&mut waiting);
        Some(self.take(&mut waiting))
    }

    /// Pictures that may go into one run.
    fn pictures_max(&self) -> usize {
        if self.strikes < STRIKES_MAX { self.limits.max } else { 1 }
    }

    /// Wait for what may share the first request's batch.
    fn gather(&self, waiting: &mut VecDeque<Request>) {
        loop {
            let looms = self.looms().max(1);
            let share = self.senders.load(Ordering::SeqCst).div_ceil(looms).max(1);
            // Beside others, half a share is enough to begin: the other half prepares its pictures meanwhile.
            let enough = if looms == 1 { share } else { share.div_ceil(2) };
            waiting.extend(self.requests.try_iter().take(share.saturating_sub(waiting.len())));
            let Some(first) = waiting.front() else { return };
            let pictures: usize = waiting.iter().filter(|one| one.fits(first)).map(Request::pictures).sum();
            // Each worker waits for its answer, so no more can come than there are workers.
            if pictures >= self.pictures_max() || waiting.len() >= enough {
                return;
            }
            let left = self.patience(share, looms).saturating_sub(first.watch.elapsed());
            if left.is_zero() {
                return;
            }
            match self.requests.recv_timeout(left) {
                Ok(request) => waiting.push_back(request),
                Err(_) => return,
            }
        }
    }

    /// How long a request may wait for company: what its deadline leaves beside a full batch's run; beside others no longer
    /// than they run for, because then they take what comes.
    fn patience(&self, share: usize, looms: usize) -> Duration {
        let run = |pictures: usize| Duration::from_secs_f64((self.picture_ms * pictures as f64).max(0.0) / 1_000.0);
        let left = self.limits.deadline.saturating_sub(run(self.pictures_max()));
        if looms == 1 { left } else { left.min(run(share)) }
    }

    /// The first request and those that fit it, in the order they came.
    fn take(&self, waiting: &mut VecDeque<Request>) -> Vec<Request> {
        let Some(first) = waiting.pop_front() else { return Vec::new() };
        let mut pictures = first.pictures();
        let mut batch = vec![first];
        let mut rest = VecDeque::with_capacity(waiting.len());
        for request in waiting.drain(..) {
            if request.fits(&batch[0]) && pictures + request.pictures() <= self.pictures_max() {
                pictures += request.pictures();
                batch.push(request);
            } else {
                rest.push_back(request);
            }
        }
        *waiting = rest;
        batch
    }

    fn answer(&mut self, batch: Vec<Request>) {
        let Some(first) = batch.first() else { return };
        let specs = Arc::clone(&first.specs);
        if batch.len() == 1 {
            self.answer_each(batch, &specs);
            return;
        }
        let counts: Vec<usize> = batch.iter().map(Request::pictures).collect();
        let shape = [counts.iter().sum(), first.shape[1], first.shape[2], first.shape[3]];
        let mut buffer = std::mem::replace(&mut self.buffer, Pixels::U8(Vec::new()));
        buffer.clear();
        batch.iter().for_each(|request| buffer.push(request.pixels.view()));
        let ran = self.run_on(buffer.view(), shape, &specs, |outputs, model| apart(outputs, &counts, &specs, model));
        self.buffer = buffer;
        match ran {
            Ok((parts, session_ms)) => {
                self.strikes = 0;
                self.health.ran(batch.len());
                let picture_ms = session_ms / shape[0].max(1) as f64;
                for (request, outputs) in batch.into_iter().zip(parts) {
                    let session_ms = picture_ms * request.pictures() as f64;
                    reply(request, Ok(Answer { outputs, session_ms }));
                }
            }
            Err(InferenceError::Device { model, message } | InferenceError::Unavailable { model, message }) => {
                for request in batch {
                    let (model, message) = (model.clone(), message.clone());
                    reply(request, Err(InferenceError::Device { model, message }));
                }
            }
            Err(error) => {
                let all_succeeded = self.answer_each(batch, &specs);
                self.strike(all_succeeded, &error);
            }
        }
    }

    /// Count a batch that failed although each of its requests alone did not.
    fn strike(&mut self, is_of_batch: bool, error: &InferenceError) {
        if !is_of_batch {
            return;
        }
        self.strikes += 1;
        if self.strikes == STRIKES_MAX {
            let model = self.keeper.facts().manifest.name();
            warn!(model, error = %error, "this graph cannot run batches: its requests run one by one; set batch_max = 1");
        }
    }

    /// Run every request by itself; whether all succeeded.
    fn answer_each(&mut self, batch: Vec<Request>, specs: &Arc<[OutputSpec]>) -> bool {
        let mut all_succeeded = true;
        for request in batch {
            all_succeeded &= self.answer_alone(request, specs);
        }
        all_succeeded
    }

    /// Run one request by itself; whether it succeeded.
    fn answer_alone(&mut self, request: Request, specs: &Arc<[OutputSpec]>) -> bool {
        let ran = self.run_on(request.pixels.view(), request.shape, specs, |outputs, _| {
            Ok(outputs.iter().map(|output| (output.shape.clone(), output.values.to_vec())).collect())
        });
        self.health.ran(1);
        let outcome = ran.map(|(outputs, session_ms)| Answer { outputs, session_ms });
        let is_ok = outcome.is_ok();
        reply(request, outcome);
        is_ok
    }

    fn run_on<R>(
        &mut self,
        input: View<'_>,
        shape: [usize; 4],
        specs: &Arc<[OutputSpec]>,
        then: impl FnOnce(&[Output<'_>], &str) -> Result<R, InferenceError>,
    ) -> Result<(R, f64), InferenceError> {
        let model = self.keeper.facts().manifest.name();
        let known = self.wanted.iter().position(|wanted| wanted.specs() == specs);
        let index = match known {
            Some(index) => index,
            None => {
                self.wanted.push(Wanted::new(Arc::clone(specs), model)?);
                self.wanted.len() - 1
            }
        };
        let (found, session_ms) = self.keeper.run(input, shape, &self.wanted[index], |outputs| then(outputs, model))?;
        let picture_ms = session_ms / shape[0].max(1) as f64;
        self.picture_ms += RUN_WEIGHT * (picture_ms - self.picture_ms);
        Ok((found, session_ms))
    }
}

/// Hand the buffer and the outcome back; a worker that is gone wants neither.
fn reply(request: Request, outcome: Result<Answer, InferenceError>) {
    let Request { pixels, answer, .. } = request;
    drop(answer.send(Reply { pixels, outcome }));
}

/// The rows of each request: `counts` pictures of each, in their order.
fn apart(
    outputs: &[Output<'_>],
    counts: &[usize],
    specs: &[OutputSpec],
    model: &str,
) -> Result<Vec<Tensors>, InferenceError> {
    let total: usize = counts.iter().sum();
    let mut parts: Vec<Tensors> = counts.iter().map(|_| Vec::new()).collect();
    for (output, spec) in outputs.iter().zip(specs) {
        let Some((_, sides)) = output.shape.split_first().filter(|(first, _)| **first == total) else {
            return Err(InferenceError::Shape {
                model: model.to_owned(),
                what: format!("shape of output `{}`", spec.name),
                expected: format!("[{total}, ...]"),
                found: format!("{:?}", output.shape),
            });
        };
        let row: usize = sides.iter().product();
        let mut values = output.values.as_ref();
        for (part, &count) in parts.iter_mut().zip(counts) {
            let (own, rest) = values.split_at_checked(count * row).unwrap_or((values, &[]));
            let shape = std::iter::once(count).chain(sides.iter().copied()).collect();
            part.push((shape, own.to_vec()));
            values = rest;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
