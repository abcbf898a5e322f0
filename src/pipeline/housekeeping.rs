//! Keeping the store within its bounds while frames are inspected: retention, disk pressure, the slow scrub.
//!
//! Every [`LOOK_INTERVAL`] the thread looks how much is free; when that is too little it sheds pictures at once. Once an
//! hour it takes out what is over age, resting four times as long as each step took. The ledger itself refuses commits
//! below the critical mark, so that stations hold; here that is said, once a change, at level ERROR.
//!
//! Threads: `housekeeping`, and `scrub`, which reads each picture once a week at about 4 MB/s. Overload: a full disk that
//! nothing can relieve is an operator's business; the log says so.

use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{error, info, warn};

use super::PipelineError;
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError, Scrub, Sweep, Swept};
use crate::observe::Metrics;
use crate::shutdown::Shutdown;
use crate::types::{DiskLevel, StoragePolicy};

/// Pause between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Looks between two sweeps by age: an hour.
const LOOKS_PER_EXPIRY: u64 = 720;
/// From the start to the first scrub, and from one to the next.
const SCRUB_DELAY: Duration = Duration::from_secs(600);
const SCRUB_INTERVAL: Duration = Duration::from_secs(7 * 86_400);
/// What the scrub reads a second at most, and how long it rests after each file.
const SCRUB_BYTES_PER_S: u64 = 4 << 20;
const SCRUB_REST: Duration = Duration::from_millis(5);

/// The threads.
#[derive(Debug)]
pub struct Housekeeping {
    stop: Shutdown,
    threads: Vec<JoinHandle<()>>,
}

impl Housekeeping {
    /// Keep the store by `policy` until stopped; the ledger's critical mark is set here.
    ///
    /// # Errors
    /// When the ledger cannot be read or no thread can be started.
    pub fn start(
        ledger: &Ledger,
        policy: StoragePolicy,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Self, PipelineError> {
        ledger.set_free_critical_bytes(policy.free_critical_bytes);
        let stop = Shutdown::new();
        let sweep = Sweep::new(ledger.clone(), policy, clock.clone())?;
        let keeper = Keeper { sweep, stop: stop.clone(), metrics: metrics.clone(), said: None };
        let housekeeping = super::spawn("housekeeping".to_owned(), move || keeper.run())?;
        let (ledger, clock, stopped) = (ledger.clone(), clock.clone(), stop.clone());
        let scrub = super::spawn("scrub".to_owned(), move || scrub_weekly(&ledger, &clock, &stopped))?;
        Ok(Self { stop, threads: vec![housekeeping, scrub] })
    }

    /// Stop, and wait until the step under way is done.
    pub fn stop(self) {
        self.stop.request();
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a thread that keeps the store died");
            }
        }
    }
}

struct Keeper {
    sweep: Sweep,
    stop: Shutdown,
    metrics: Metrics,
    /// The level that was last told: what lasts is said once.
    said: Option<DiskLevel>,
}

impl Keeper {
    fn run(mut self) {
        let mut look: u64 = 0;
        loop {
            if let Err(error) = self.look(look) {
                warn!(%error, "the store could not be looked after; the next attempt follows");
            }
            look += 1;
            if self.stop.wait_timeout(LOOK_INTERVAL) {
                return;
            }
        }
    }

    fn look(&mut self, look: u64) -> Result<(), LedgerError> {
        let (mut level, mut free_bytes) = self.sweep.level()?;
        self.tell(level, free_bytes);
        if level != DiskLevel::Enough {
            let stop = self.stop.clone();
            let swept = self.sweep.relieve(&mut |took| !stop.wait_timeout(took))?;
            report(&swept, "the disk is low: pictures were shed");
            (level, free_bytes) = self.sweep.level()?;
            if level != DiskLevel::Enough && swept.is_nothing() && look.is_multiple_of(LOOKS_PER_EXPIRY) {
                error!(free_bytes, "the disk is low and nothing is left that may go: free some space");
            }
            self.tell(level, free_bytes);
        }
        if look.is_multiple_of(LOOKS_PER_EXPIRY) {
            let stop = self.stop.clone();
            let swept = self.sweep.expire(&mut |took| !stop.wait_timeout(took * 4))?;
            report(&swept, "expired");
        }
        Ok(())
    }

    fn tell(&mut self, level: DiskLevel, free_bytes: u64) {
        self.metrics.set_disk(free_bytes, level);
        if self.said == Some(level) {
            return;
        }
        let free_mib = free_bytes >> 20;
        match (level, self.said) {
            (DiskLevel::Critical, _) => error!(
                free_mib,
                "the disk is almost full (storage.free_critical_mb): nothing is committed and every station holds until space returns"
            ),
            (DiskLevel::Low, _) => warn!(free_mib, "the disk is low or the budget spent: old pictures go"),
            (DiskLevel::Enough, Some(_)) => info!(free_mib, "the disk has room again: stations go on"),
            (DiskLevel::Enough, None) => {}
        }
        self.said = Some(level);
    }
}

fn report(swept: &Swept, what: &str) {
    if !swept.is_nothing() {
        info!(
            pass_pictures = swept.pass_pictures,
            other_pictures = swept.other_pictures,
            picture_bytes = swept.picture_bytes,
            detail = swept.detail,
            inspections = swept.inspections,
            samples = swept.samples,
            "{what}"
        );
    }
}

fn scrub_weekly(ledger: &Ledger, clock: &Clock, stop: &Shutdown) {
    let mut wait = SCRUB_DELAY;
    while !stop.wait_timeout(wait) {
        wait = SCRUB_INTERVAL;
        let mut pace = |bytes: u64| {
            !stop.wait_timeout(SCRUB_REST + Duration::from_micros(bytes.saturating_mul(1_000_000) / SCRUB_BYTES_PER_S))
        };
        let scrub = Scrub::new(ledger.state_dir(), Some(ledger.clone()), clock.clone());
        match scrub.and_then(|scrub| scrub.run(&mut pace)) {
            Ok(report) if report.is_clean() => info!(rows = report.rows_checked, "every picture is as it was written"),
            Ok(report) => {
                let (missing, changed, orphans) = (report.missing, report.changed, report.orphans);
                error!(missing, changed, orphans, quarantined = report.quarantined, first = ?report.faults.first(),
                    "pictures are not as they were written; see `loupe storage scrub`");
            }
            Err(error) => error!(%error, "the pictures could not be checked"),
        }
    }
}
