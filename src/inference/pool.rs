//! Who shares a session with whom: all stations of a worker, or, where the model is batched, all workers.
//!
//! A session is told by the model's folder and digest and the plan it runs by. Where a plan says nothing of batching, the
//! CPU gets a session a worker (docs/adr/0010: batching does not pay for graphs of ordinary size) and an accelerator one
//! session with batches. Told to batch, the CPU gets a session a core behind one queue. A graph that insists on its batch
//! gets a session a worker everywhere.
//!
//! Invariant: sessions of a pool come back after a fault of their device, proved by the model's goldens.
//! Thread: any; opening is one at a time. Overload: none of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tracing::{info, warn};

use super::batcher::Batcher;
use super::engine::Engine;
use super::golden::{Golden, Replayer};
use super::health::ModelHealth;
use super::keeper::{Keeper, Recovery, Reopen};
use super::provider::{BatchLimits, Batching};
use super::session::ModelSession;
use super::{InferenceError, ModelManifest, ProviderPlan, Runtime};
use crate::clock::Clock;
use crate::types::{Image, Provider};

/// Turns a picture file into pixels; goldens are replayed through it.
type Decode = dyn Fn(&Path) -> Result<Image, String> + Send + Sync;

/// The models that workers share; cheap to clone.
#[derive(Clone)]
pub struct ModelPool(Arc<Inner>);

struct Inner {
    runtime: Arc<Runtime>,
    clock: Clock,
    decode: Box<Decode>,
    lanes: AtomicUsize,
    models: Mutex<BTreeMap<String, Model>>,
}

/// One model by one plan. Sessions live as long as somebody uses them.
#[derive(Debug, Default)]
struct Model {
    health: ModelHealth,
    /// By worker.
    own: BTreeMap<usize, Weak<Keeper>>,
    shared: Weak<Batcher>,
}

impl std::fmt::Debug for ModelPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelPool").field("lanes", &self.0.lanes).finish_non_exhaustive()
    }
}

impl ModelPool {
    /// `decode` turns a golden's picture file into pixels.
    #[must_use]
    pub fn new(
        runtime: Arc<Runtime>,
        clock: Clock,
        decode: impl Fn(&Path) -> Result<Image, String> + Send + Sync + 'static,
    ) -> Self {
        let (lanes, models) = (AtomicUsize::new(0), Mutex::default());
        Self(Arc::new(Inner { runtime, clock, decode: Box::new(decode), lanes, models }))
    }

    /// Where one worker's models are opened; each worker has its own.
    #[must_use]
    pub fn worker(&self) -> Host {
        let number = self.0.lanes.fetch_add(1, Ordering::Relaxed);
        Host { runtime: Arc::clone(&self.0.runtime), lane: Some(Lane { pool: self.clone(), number }) }
    }

    fn open(&self, lane: usize, manifest: &ModelManifest, plan: &ProviderPlan) -> Result<Engine, InferenceError> {
        let key = format!("{}|{}|{plan:?}", manifest.folder().display(), manifest.sha256());
        let mut models = self.0.models.lock().unwrap_or_else(PoisonError::into_inner);
        let model = models.entry(key).or_default();
        let health = model.health.clone();
        if let Some(batcher) = model.shared.upgrade() {
            return Ok(Engine::batched(batcher.client(lane), health));
        }
        if let Some(keeper) = model.own.get(&lane).and_then(Weak::upgrade) {
            return Ok(Engine::own(keeper, health));
        }
        let mut plan = plan.clone();
        if matches!(plan.batching, Batching::On(_)) {
            // What was tuned for a session of its own does not hold beside others.
            plan.intra_threads.get_or_insert(1);
        }
        let plan = &plan;
        let keep = || {
            let recovery = Recovery {
                clock: self.0.clock.clone(),
                health: health.clone(),
                reopen: self.reopen(manifest.clone(), plan.clone()),
            };
            let session = ModelSession::open(&self.0.runtime, manifest, plan)?;
            Ok::<_, InferenceError>(Keeper::new(session, Some(recovery)))
        };
        let keeper = keep()?;
        let (provider, batch) = (keeper.facts().provider, keeper.facts().batch);
        let Some(limits) = limits_of(plan, provider, batch) else {
            model.own.insert(lane, Arc::downgrade(&keeper));
            return Ok(Engine::own(keeper, health));
        };
        let others = (1..sessions_of(plan, provider)).map(|_| keep()).collect::<Result<Vec<_>, _>>()?;
        info!(model = manifest.name(), %provider, sessions = 1 + others.len(), batch_max = limits.max,
            deadline_ms = limits.deadline.as_millis(), "the workers' pictures share runs");
        let batcher = Batcher::start(keeper, others, limits, &health)?;
        model.shared = Arc::downgrade(&batcher);
        Ok(Engine::batched(batcher.client(lane), health))
    }

    /// Open the model again and replay its goldens on that very session.
    fn reopen(&self, manifest: ModelManifest, plan: ProviderPlan) -> Reopen {
        let inner = Arc::downgrade(&self.0);
        Box::new(move || {
            let gone = || InferenceError::NoProvider {
                model: manifest.name().to_owned(),
                message: "the program is stopping".to_owned(),
            };
            let inner = inner.upgrade().ok_or_else(gone)?;
            let session = ModelSession::open(&inner.runtime, &manifest, &plan)?;
            let mut replayer = Replayer::of(session);
            match Golden::load(&manifest)? {
                None => {
                    warn!(
                        model = manifest.name(),
                        "no goldens: the session that was opened again is tried on grey alone"
                    );
                    replayer.warm_up()?;
                }
                Some(golden) => {
                    let report = golden.replay(&mut replayer, &*inner.decode)?;
                    if !report.passed {
                        let message = format!("its goldens differ: {}", report.faults());
                        return Err(InferenceError::Run { model: manifest.name().to_owned(), message });
                    }
                }
            }
            Ok(replayer.into_session())
        })
    }
}

/// Sessions that stand for all workers: one of an accelerator; of the CPU as many as its cores have room for, because batches
/// side by side on a thread each took 1.4 to 2 times the pictures of one session with all cores (docs/adr/0010).
fn sessions_of(plan: &ProviderPlan, provider: Provider) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if provider == Provider::Cpu { (cores / plan.intra_threads.unwrap_or(1).max(1)).max(1) } else { 1 }
}

/// How a session is shared; `None`: a session a worker.
fn limits_of(plan: &ProviderPlan, provider: Provider, fixed_batch: Option<usize>) -> Option<BatchLimits> {
    let limits = match (plan.batching, provider) {
        (Batching::Off, _) | (Batching::Auto, Provider::Cpu) => return None,
        (Batching::Auto, _) => BatchLimits::default(),
        (Batching::On(limits), _) => limits,
    };
    match (fixed_batch, plan.batching) {
        (None, _) => Some(limits),
        (Some(batch), Batching::On(_)) => {
            warn!(batch, "the graph's batch is fixed: nothing is batched; export it with an open batch");
            None
        }
        (Some(_), _) => None,
    }
}

#[derive(Debug, Clone)]
struct Lane {
    pool: ModelPool,
    number: usize,
}

/// What a model is opened in: the runtime alone, or a worker's place in a [`ModelPool`].
#[derive(Debug, Clone)]
pub struct Host {
    runtime: Arc<Runtime>,
    lane: Option<Lane>,
}

impl Host {
    #[must_use]
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    pub(super) fn open(&self, manifest: &ModelManifest, plan: &ProviderPlan) -> Result<Engine, InferenceError> {
        match &self.lane {
            Some(lane) => lane.pool.open(lane.number, manifest, plan),
            None => {
                let session = ModelSession::open(&self.runtime, manifest, plan)?;
                Ok(Engine::own(Keeper::new(session, None), ModelHealth::default()))
            }
        }
    }
}

impl From<&Arc<Runtime>> for Host {
    /// A session of one's own, that stays as it is when its device fails.
    fn from(runtime: &Arc<Runtime>) -> Self {
        Self { runtime: Arc::clone(runtime), lane: None }
    }
}

impl From<&Host> for Host {
    fn from(host: &Host) -> Self {
        host.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::inference::{DetectorModel, FeatureModel};

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    fn pool() -> ModelPool {
        let decode = |_: &Path| Image::from_bgr(1, 1, vec![0; 3]).map_err(|error| error.to_string());
        ModelPool::new(Runtime::load(None).unwrap(), Clock::system(), decode)
    }

    fn own_sessions(pool: &ModelPool) -> usize {
        let models = pool.0.models.lock().unwrap();
        models.values().flat_map(|model| model.own.values()).filter(|keeper| keeper.strong_count() > 0).count()
    }

    #[test]
    fn stations_of_a_worker_share_a_session_and_workers_do_not() {
        let (pool, plan) = (pool(), ProviderPlan::default());
        let manifest = ModelManifest::load(&folder("models/mobilenetv2")).unwrap();
        let open = |host: &Host| FeatureModel::open(host, &manifest, &plan).unwrap();
        let (first, second) = (pool.worker(), pool.worker());
        let models = [open(&first), open(&first), open(&first)];
        assert_eq!(own_sessions(&pool), 1);
        let another = open(&second);
        assert_eq!(own_sessions(&pool), 2);
        let other_plan = ProviderPlan { intra_threads: Some(2), ..plan.clone() };
        let tuned = FeatureModel::open(&second, &manifest, &other_plan).unwrap();
        assert_eq!(own_sessions(&pool), 3);
        drop((models, another, tuned));
        assert_eq!(own_sessions(&pool), 0, "nobody uses them");
    }

    #[test]
    fn the_cpu_batches_only_when_told_and_a_fixed_batch_never() {
        let on = Batching::On(BatchLimits { max: 4, deadline: Duration::from_millis(5) });
        let plan = |batching| ProviderPlan { batching, ..ProviderPlan::default() };
        let check = |batching, provider, fixed, expected: Option<usize>| {
            assert_eq!(limits_of(&plan(batching), provider, fixed).map(|limits| limits.max), expected);
        };
        check(Batching::Auto, Provider::Cpu, None, None);
        check(Batching::Auto, Provider::Cuda, None, Some(8));
        check(Batching::Auto, Provider::Cuda, Some(1), None);
        check(Batching::Off, Provider::Tensorrt, None, None);
        check(on, Provider::Cpu, None, Some(4));
        check(on, Provider::Cpu, Some(1), None);
        let manifest = ModelManifest::load(&folder("models/tiny-yolox")).unwrap();
        let pool = pool();
        let model = DetectorModel::open(pool.worker(), &manifest, &plan(on)).unwrap();
        assert_eq!(own_sessions(&pool), 1);
        assert!(model.health().is_ready());
    }

    #[test]
    fn a_session_is_not_trusted_again_before_its_goldens_pass() {
        let copy = tempfile::tempdir().unwrap();
        let golden = copy.path().join("golden");
        std::fs::create_dir(&golden).unwrap();
        for from in [folder("models/tiny-yolox"), folder("models/tiny-yolox/golden")] {
            for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
                let to = if from.ends_with("golden") {
                    golden.join(entry.file_name())
                } else {
                    copy.path().join(entry.file_name())
                };
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
        let manifest = ModelManifest::load(copy.path()).unwrap();
        // Black for every picture: the recorded numbers are of something else.
        let black = |_: &Path| Image::from_bgr(64, 64, vec![0; 64 * 64 * 3]).map_err(|error| error.to_string());
        let pool = ModelPool::new(Runtime::load(None).unwrap(), Clock::system(), black);
        let error = pool.reopen(manifest.clone(), ProviderPlan::default())().unwrap_err().to_string();
        assert!(error.contains("goldens differ") && error.contains("instead of"), "{error}");
        std::fs::remove_dir_all(&golden).unwrap();
        assert!(pool.reopen(manifest, ProviderPlan::default())().is_ok(), "without goldens it is tried on grey");
    }
}
