//! One request to stop, heard by every thread.
//!
//! Order of a stop: capture → pipeline → ledger → uplink → dashboard, the whole within `limits::SHUTDOWN_GRACE`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A latch: once requested it stays so. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<(Mutex<bool>, Condvar)>);

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn request(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleep up to `timeout`, or until a stop is requested; `true` when it is.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (stop, _) = self
            .0
            .1
            .wait_timeout_while(guard, timeout, |requested| !*requested)
            .unwrap_or_else(PoisonError::into_inner);
        *stop
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Shutdown;

    #[test]
    fn a_request_wakes_a_sleeping_clone() {
        let shutdown = Shutdown::new();
        let sleeper = shutdown.clone();
        let thread = std::thread::spawn(move || sleeper.wait_timeout(Duration::from_secs(60)));
        shutdown.request();
        assert!(thread.join().unwrap());
        assert!(shutdown.is_requested());
    }
}
