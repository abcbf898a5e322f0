//! How a shared model is doing, for metrics and the dashboard: read without waiting for a run.
//!
//! Thread: any. Overload: none of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counters of one model as all its sessions see it; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ModelHealth(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Sessions that are gone and being opened again.
    down: AtomicU64,
    faults: AtomicU64,
    attempts: AtomicU64,
    rebuilds: AtomicU64,
    batches: AtomicU64,
    requests: AtomicU64,
    fault: Mutex<String>,
}

impl ModelHealth {
    /// Whether every session of the model can answer.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.down.load(Ordering::SeqCst) == 0
    }

    /// Times that a device failed under a session.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.0.faults.load(Ordering::SeqCst)
    }

    /// Attempts to open a session again that failed.
    #[must_use]
    pub fn failed_attempts(&self) -> u64 {
        self.0.attempts.load(Ordering::SeqCst)
    }

    /// Sessions that were opened again.
    #[must_use]
    pub fn rebuilds(&self) -> u64 {
        self.0.rebuilds.load(Ordering::SeqCst)
    }

    /// Runs of the shared session, and the requests that they answered; both 0 where nothing is batched.
    #[must_use]
    pub fn batches(&self) -> (u64, u64) {
        (self.0.batches.load(Ordering::Relaxed), self.0.requests.load(Ordering::Relaxed))
    }

    /// What was said last of a fault; empty where there was none.
    #[must_use]
    pub fn last_fault(&self) -> String {
        self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn lost(&self, message: &str) {
        self.0.faults.fetch_add(1, Ordering::SeqCst);
        self.0.down.fetch_add(1, Ordering::SeqCst);
        self.say(message);
    }

    pub(super) fn attempted(&self, message: &str) {
        self.0.attempts.fetch_add(1, Ordering::SeqCst);
        self.say(message);
    }

    pub(super) fn back(&self) {
        self.0.rebuilds.fetch_add(1, Ordering::SeqCst);
        self.0.down.fetch_sub(1, Ordering::SeqCst);
    }

    /// A session that was down and is wanted no more.
    pub(super) fn gone(&self) {
        self.0.down.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn ran(&self, requests: usize) {
        self.0.batches.fetch_add(1, Ordering::Relaxed);
        self.0.requests.fetch_add(requests as u64, Ordering::Relaxed);
    }

    fn say(&self, message: &str) {
        message.clone_into(&mut self.0.fault.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
