//! The only place that asks the machine what time it is, so that tests can move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use crate::types::Timestamp;

/// Wall clock and stopwatch; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Microseconds added to the system's time; moved by tests.
    offset_us: Arc<AtomicI64>,
}

impl Clock {
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Wall-clock time, cut to microseconds.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let system = jiff::Timestamp::now().as_microsecond();
        Timestamp::from_micros(system + self.offset_us.load(Ordering::Relaxed))
    }

    /// Move this clock (and its clones) by `delta_us`.
    pub fn shift(&self, delta_us: i64) {
        self.offset_us.fetch_add(delta_us, Ordering::Relaxed);
    }
}

/// Measures a span of monotonic time.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one stopwatch")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn ms(&self) -> f32 {
        self.elapsed().as_secs_f32() * 1_000.0
    }

    #[must_use]
    pub fn elapsed(&self) -> std::time::Duration {
        self.0.elapsed()
    }
}
