//! A session and its recovery: when the device fails under it, the session is dropped and opened again, later and later
//! until it works, while every request is answered at once with [`InferenceError::Unavailable`].
//!
//! Invariants: a session that was opened again is trusted only on the provider it ran on before and after its goldens were
//! replayed on it; one that the input alone made fail stays. A keeper without recovery (a command's own model) stays as
//! it is after any error.
//! Thread: any may ask, one at a time runs; after a fault a thread `model-rebuild` opens the session and ends. Overload:
//! callers wait for one another's runs, never for a rebuild.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tracing::{error, info, warn};

use super::InferenceError;
use super::health::ModelHealth;
use super::outputs::{Output, Wanted};
use super::preprocess::View;
use super::session::{Facts, ModelSession};
use crate::clock::Clock;
use crate::failpoint;
use crate::limits::{MODEL_REBUILD_BACKOFF_MAX, MODEL_REBUILD_BACKOFF_MIN};

/// How often a waiting rebuild looks at the clock, so that it neither outlives its keeper nor misses its time.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Opens the model again and proves it by its goldens.
pub(super) type Reopen = Box<dyn Fn() -> Result<ModelSession, InferenceError> + Send + Sync>;

/// How a session comes back.
pub(super) struct Recovery {
    pub clock: Clock,
    pub health: ModelHealth,
    pub reopen: Reopen,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery").field("health", &self.health).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum State {
    Ready(Box<ModelSession>),
    /// Why it is gone.
    Down(String),
}

/// Keeps one session running.
#[derive(Debug)]
pub(super) struct Keeper {
    facts: Arc<Facts>,
    state: Mutex<State>,
    /// That of `state`, for who cannot wait for a run.
    is_ready: AtomicBool,
    recovery: Option<Recovery>,
}

impl Keeper {
    pub(super) fn new(session: ModelSession, recovery: Option<Recovery>) -> Arc<Self> {
        let facts = Arc::clone(session.facts());
        Arc::new(Self {
            facts,
            state: Mutex::new(State::Ready(Box::new(session))),
            is_ready: AtomicBool::new(true),
            recovery,
        })
    }

    /// What is known of the session; it stays true of one that is opened again.
    pub(super) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Whether there is a session to run on; never waits.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::SeqCst)
    }

    /// Run on `input`; what `then` makes of the outputs and the milliseconds inside the runtime.
    ///
    /// # Errors
    /// As [`ModelSession::run`]; [`InferenceError::Unavailable`] while the session is being opened again.
    pub(super) fn run<R>(
        self: &Arc<Self>,
        input: View<'_>,
        shape: [usize; 4],
        wanted: &Wanted,
        then: impl FnOnce(&[Output<'_>]) -> Result<R, InferenceError>,
    ) -> Result<(R, f64), InferenceError> {
        let mut state = self.lock();
        let model = || self.facts.manifest.name().to_owned();
        let session = match &mut *state {
            State::Ready(session) => session,
            State::Down(message) => {
                return Err(InferenceError::Unavailable { model: model(), message: message.clone() });
            }
        };
        let before_ms = session.session_ms();
        let result = session.run(input, shape, wanted, then);
        let spent_ms = session.session_ms() - before_ms;
        match (result, &self.recovery) {
            (Ok(found), _) => Ok((found, spent_ms)),
            (Err(InferenceError::Device { model, message }), Some(recovery)) => {
                let lost = std::mem::replace(&mut *state, State::Down(message.clone()));
                self.is_ready.store(false, Ordering::SeqCst);
                drop(state);
                // Its memory must be free before another is opened.
                drop(lost);
                self.recover(recovery, &message);
                Err(InferenceError::Device { model, message })
            }
            (Err(error), _) => Err(error),
        }
    }

    fn recover(self: &Arc<Self>, recovery: &Recovery, message: &str) {
        let model = self.facts.manifest.name();
        error!(model, provider = %self.facts.provider, error = message,
            "the model's device failed: the session is opened again, frames are held until its goldens pass");
        recovery.health.lost(message);
        let keeper = Arc::downgrade(self);
        let started = std::thread::Builder::new().name("model-rebuild".to_owned()).spawn(move || rebuild(&keeper));
        if let Err(error) = started {
            error!(model, error = %error, "the session cannot be opened again: no thread; restart the service");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt; whether the session is back.
    fn reopen(&self, recovery: &Recovery, attempt: u32) -> bool {
        let model = self.facts.manifest.name();
        let opened = failpoint::io("model.rebuild")
            .map_err(|error| InferenceError::NoProvider { model: model.to_owned(), message: error.to_string() })
            .and_then(|()| (recovery.reopen)());
        let fault = match opened {
            Ok(session) if session.facts().provider == self.facts.provider => {
                *self.lock() = State::Ready(Box::new(session));
                self.is_ready.store(true, Ordering::SeqCst);
                recovery.health.back();
                info!(model, attempt, "the session is open again and its goldens pass: inspecting goes on");
                return true;
            }
            Ok(session) => {
                let (found, expected) = (session.facts().provider, self.facts.provider);
                format!("it would run on {found} instead of {expected}; restart the service to accept that")
            }
            Err(error) => error.to_string(),
        };
        warn!(model, attempt, error = fault, "the session could not be opened again; the next attempt comes later");
        recovery.health.attempted(&fault);
        *self.lock() = State::Down(fault);
        false
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let (State::Down(_), Some(recovery)) = (&*self.lock(), &self.recovery) {
            recovery.health.gone();
        }
    }
}

/// Try until the session is back or nobody wants it any more.
fn rebuild(keeper: &Weak<Keeper>) {
    let mut attempt = 0;
    loop {
        let Some((clock, since)) = keeper.upgrade().and_then(|keeper| {
            let clock = keeper.recovery.as_ref()?.clock.clone();
            let since = clock.now();
            Some((clock, since))
        }) else {
            return;
        };
        let pause_ms = backoff(attempt, fastrand::f64()).as_secs_f64() * 1_000.0;
        loop {
            if keeper.strong_count() == 0 {
                return;
            }
            let waited_ms = clock.now().ms_since(since);
            // A clock that was set back must not hold up the line.
            if waited_ms >= pause_ms || waited_ms < 0.0 {
                break;
            }
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        attempt += 1;
        let Some(keeper) = keeper.upgrade() else { return };
        let Some(recovery) = &keeper.recovery else { return };
        if keeper.reopen(recovery, attempt) {
            return;
        }
    }
}

/// The pause after `failures` earlier attempts: doubling, between half of it and all of it by `jitter` (0 to 1), so that
/// many models of one device do not come back in the same moment.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = MODEL_REBUILD_BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(failures.min(16)));
    doubled.min(MODEL_REBUILD_BACKOFF_MAX).mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::Stopwatch;
    use crate::inference::{ModelManifest, ProviderPlan, Runtime};

    const SHAPE: [usize; 4] = [1, 3, 416, 416];

    fn session() -> Result<ModelSession, InferenceError> {
        let manifest = ModelManifest::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-yolox"))?;
        ModelSession::open(&Runtime::load(None)?, &manifest, &ProviderPlan::default())
    }

    /// A keeper whose first `failing` attempts to open again fail.
    fn keeper(clock: &Clock, failing: u32) -> (Arc<Keeper>, ModelHealth, Arc<AtomicU32>) {
        let (health, attempts) = (ModelHealth::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&attempts);
        let reopen: Reopen = Box::new(move || {
            if counted.fetch_add(1, Ordering::SeqCst) < failing {
                return Err(InferenceError::NoProvider { model: "m".to_owned(), message: "no GPU yet".to_owned() });
            }
            session()
        });
        let recovery = Recovery { clock: clock.clone(), health: health.clone(), reopen };
        (Keeper::new(session().unwrap(), Some(recovery)), health, attempts)
    }

    /// One run, whose outputs `then` judges.
    fn run(keeper: &Arc<Keeper>, then: Result<(), InferenceError>) -> Result<(), InferenceError> {
        let wanted = Wanted::new(keeper.facts().manifest.outputs().into(), "m")?;
        let values = vec![0.0_f32; SHAPE.iter().product()];
        keeper.run(View::F32(&values), SHAPE, &wanted, |_| then).map(drop)
    }

    fn device_fault() -> Result<(), InferenceError> {
        Err(InferenceError::of_message("m", "CUDA failure 2: out of memory".to_owned()))
    }

    /// Until `is_so`, moving the clock by a pause each time round.
    fn wait(clock: &Clock, mut is_so: impl FnMut() -> bool) {
        let watch = Stopwatch::start();
        while !is_so() {
            assert!(watch.elapsed() < Duration::from_secs(60), "it never came");
            clock.shift(2_000_000);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_lost_device_answers_at_once_and_comes_back_after_failed_attempts() {
        let clock = Clock::system();
        let (keeper, health, attempts) = keeper(&clock, 2);
        run(&keeper, Ok(())).unwrap();
        let error = run(&keeper, device_fault()).unwrap_err();
        assert!(matches!(error, InferenceError::Device { .. }) && error.is_unavailable(), "{error}");
        assert!(!health.is_ready() && health.faults() == 1 && health.last_fault().contains("out of memory"));
        let error = run(&keeper, Ok(())).unwrap_err();
        assert!(matches!(&error, InferenceError::Unavailable { message, .. } if message.contains("memory")), "{error}");
        wait(&clock, || health.failed_attempts() == 2);
        assert!(health.last_fault().contains("no GPU yet"), "{}", health.last_fault());
        wait(&clock, || health.is_ready());
        run(&keeper, Ok(())).unwrap();
        assert_eq!((attempts.load(Ordering::SeqCst), health.rebuilds(), health.faults()), (3, 1, 1));
    }

    #[test]
    fn a_bad_input_opens_nothing_again() {
        let (keeper, health, attempts) = keeper(&Clock::system(), 0);
        let wanted = Wanted::new(keeper.facts().manifest.outputs().into(), "m").unwrap();
        let values = vec![0.0_f32; 3 * 7 * 416];
        let error = keeper.run(View::F32(&values), [1, 3, 7, 416], &wanted, |_| Ok(())).unwrap_err();
        assert!(matches!(error, InferenceError::Run { .. }) && !error.is_unavailable(), "{error}");
        run(&keeper, Ok(())).unwrap();
        assert_eq!((attempts.load(Ordering::SeqCst), health.faults(), health.is_ready()), (0, 0, true));
    }

    #[test]
    fn the_clock_alone_decides_when_the_next_attempt_is_due() {
        let clock = Clock::system();
        // So far ahead of the pause that only a clock that runs on can reach it.
        let (keeper, health, attempts) = keeper(&clock, u32::MAX);
        run(&keeper, device_fault()).unwrap_err();
        wait(&clock, || attempts.load(Ordering::SeqCst) == 12);
        assert!(!health.is_ready());
        drop(keeper);
        wait(&clock, || health.is_ready());
    }

    #[test]
    fn without_recovery_a_session_stays_as_it_is() {
        let keeper = Keeper::new(session().unwrap(), None);
        assert!(run(&keeper, device_fault()).is_err());
        run(&keeper, Ok(())).unwrap();
    }

    #[test]
    fn pauses_grow_to_a_minute_and_stay_there() {
        assert_eq!(backoff(0, 0.0), MODEL_REBUILD_BACKOFF_MIN / 2);
        assert!(backoff(1, 0.5) < backoff(3, 0.5));
        for failures in 0..100 {
            for jitter in [0.0, 0.3, 0.999] {
                let pause = backoff(failures, jitter);
                assert!(pause >= MODEL_REBUILD_BACKOFF_MIN / 2 && pause <= MODEL_REBUILD_BACKOFF_MAX, "{pause:?}");
            }
        }
    }
}
