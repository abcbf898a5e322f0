//! How long the ledger's commits took, since somebody last asked: a COMMIT is one write and one fsync of the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Commits remembered: at 500 groups a second the last two seconds, at a common rate a minute.
const COMMITS_MAX: usize = 1_024;

/// The last commits; a ring.
#[derive(Debug, Default)]
pub(super) struct CommitTimes(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    ms: Vec<f32>,
    next: usize,
}

impl CommitTimes {
    pub fn note(&self, took: Duration) {
        let ms = took.as_secs_f32() * 1_000.0;
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ring.next;
        if ring.ms.len() < COMMITS_MAX {
            ring.ms.push(ms);
        } else {
            ring.ms[at] = ms;
        }
        ring.next = (at + 1) % COMMITS_MAX;
    }

    /// The 99th percentile (nearest rank) of the commits since the last call; `None`: there was none.
    pub fn take_p99_ms(&self) -> Option<f32> {
        let mut ms = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).ms;
        ms.sort_unstable_by(f32::total_cmp);
        let rank = (ms.len() * 99).div_ceil(100);
        ms.get(rank.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{COMMITS_MAX, CommitTimes};

    #[test]
    fn the_percentile_is_of_the_last_commits_and_asked_once() {
        let times = CommitTimes::default();
        assert_eq!(times.take_p99_ms(), None);
        times.note(Duration::from_millis(4));
        assert_eq!(times.take_p99_ms(), Some(4.0));
        assert_eq!(times.take_p99_ms(), None, "asked already");
        // The first are pushed out.
        (0..50).for_each(|_| times.note(Duration::from_secs(9)));
        (0..COMMITS_MAX).for_each(|_| times.note(Duration::from_millis(1)));
        (0..5).for_each(|_| times.note(Duration::from_millis(7)));
        assert_eq!(times.take_p99_ms(), Some(1.0), "five of a thousand are less than one in a hundred");
        (0..98).for_each(|_| times.note(Duration::from_millis(1)));
        (0..2).for_each(|_| times.note(Duration::from_millis(7)));
        assert_eq!(times.take_p99_ms(), Some(7.0));
    }
}
