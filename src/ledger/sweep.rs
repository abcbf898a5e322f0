//! [`Sweep`]: the retention job. It finds what is to go on a reading connection and has the writer take it out in small
//! steps, so that commits go on; then it removes the files.
//!
//! Order: what is over age (pictures of PASS, other pictures, detail, verdicts), oldest first within each.
//! When the disk is low or pictures exceed their budget: pictures of PASS, oldest first; then the other pictures, oldest
//! first, which is the order in which they would have expired; then samples of GPUs and machine, oldest first, counted as dropped. Never
//! verdicts, never anything undelivered of the outbox, never what a legal hold covers or a learned template needs.
//! Pictures are not sent to the centre, so theirs is the age of the decision, delivered or not.
//! Runs on the thread of its caller, who paces it.

use std::time::Duration;

use serde::Serialize;

use super::artifacts::{artifacts_dir, remove_file};
use super::handle::Ledger;
use super::reader::LedgerReader;
use super::retention::{Gone, PictureKey, Step, StepDone};
use super::usage::days_before;
use super::{LedgerError, disk};
use crate::clock::{Clock, Stopwatch};
use crate::failpoint;
use crate::limits::{RETENTION_ROWS_PER_READ, RETENTION_ROWS_PER_STEP};
use crate::types::{DiskLevel, StoragePolicy, Timestamp};

/// What a sweep took out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    pub pass_pictures: u64,
    pub other_pictures: u64,
    pub picture_bytes: u64,
    /// Inspections whose detail rows went.
    pub detail: u64,
    pub inspections: u64,
    pub samples: u64,
    /// The caller asked to stop before everything was done.
    pub is_cut_short: bool,
}

impl Swept {
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Swept::default()
    }
}

/// Called after each step with the time that it took the writer; `false` stops the sweep.
pub type Pace<'a> = &'a mut dyn FnMut(Duration) -> bool;

/// Takes out what is over age or too much.
#[derive(Debug)]
pub struct Sweep {
    ledger: Ledger,
    reader: LedgerReader,
    policy: StoragePolicy,
    clock: Clock,
    /// Bytes of pictures, counted at the start of a sweep, and how many looks at the level may still use that.
    picture_bytes: u64,
    looks_left: u32,
}

/// Looks at the level between two counts of the pictures' bytes, which read every row.
const LOOKS_PER_COUNT: u32 = 60;

const FIRST: PictureKey = PictureKey { inspection_id: [0; 16], id: [0; 16] };

impl Sweep {
    /// # Errors
    /// When the ledger cannot be opened for reading.
    pub fn new(ledger: Ledger, policy: StoragePolicy, clock: Clock) -> Result<Self, LedgerError> {
        let reader = LedgerReader::open(ledger.state_dir())?;
        Ok(Self { ledger, reader, policy, clock, picture_bytes: 0, looks_left: 0 })
    }

    /// How the disk stands, with the free bytes.
    ///
    /// # Errors
    /// When the disk does not answer or the ledger cannot be read.
    pub fn level(&mut self) -> Result<(DiskLevel, u64), LedgerError> {
        if self.policy.budget_bytes.is_some() && self.looks_left == 0 {
            self.picture_bytes = self.reader.picture_bytes()?;
            self.looks_left = LOOKS_PER_COUNT;
        }
        self.looks_left = self.looks_left.saturating_sub(1);
        let free_bytes = self.free_bytes()?;
        Ok((self.policy.level(free_bytes, self.picture_bytes), free_bytes))
    }

    /// Take out everything that is over age.
    ///
    /// # Errors
    /// When the ledger cannot be read or a step could not be committed; the steps before it stay done.
    pub fn expire(&mut self, pace: Pace<'_>) -> Result<Swept, LedgerError> {
        let mut swept = Swept::default();
        let now = self.clock.now();
        let pass_before = days_before(now, self.policy.pass_picture_days);
        let other_before = days_before(now, self.policy.picture_days);
        self.pictures(&mut swept, pace, Gone::Expired, |picture_is_pass, decided_at| {
            decided_at < if picture_is_pass { pass_before } else { other_before }
        })?;
        self.detail(&mut swept, days_before(now, self.policy.detail_days), pace)?;
        self.inspections(&mut swept, days_before(now, self.policy.verdict_days), pace)?;
        Ok(swept)
    }

    /// Where the disk is low or the budget spent: shed pictures, then samples, until it is not.
    ///
    /// # Errors
    /// As [`Sweep::expire`].
    pub fn relieve(&mut self, pace: Pace<'_>) -> Result<Swept, LedgerError> {
        let mut swept = Swept::default();
        self.picture_bytes = self.reader.picture_bytes()?;
        self.looks_left = 0;
        for wants_pass in [true, false] {
            if self.is_relieved(&swept)? || swept.is_cut_short {
                return Ok(swept);
            }
            self.pictures(&mut swept, pace, Gone::Pressure, |is_pass, _| is_pass == wants_pass)?;
        }
        // The file keeps the space of rows, for the next ones: that too puts off the day when it must grow.
        while !swept.is_cut_short && !self.is_relieved(&swept)? {
            let done = self.step(Step::Samples { rows_max: RETENTION_ROWS_PER_STEP }, &mut swept, pace)?;
            swept.samples += done.count;
            if done.count == 0 {
                break;
            }
        }
        Ok(swept)
    }

    /// A tenth beyond the mark, so that the next picture does not start it all again.
    fn is_relieved(&self, swept: &Swept) -> Result<bool, LedgerError> {
        let pictures = self.picture_bytes.saturating_sub(swept.picture_bytes);
        let over_budget = self.policy.budget_bytes.is_some_and(|budget| pictures > budget - budget / 10);
        let free_wanted = self.policy.free_low_bytes + self.policy.free_low_bytes / 10;
        Ok(!over_budget && self.free_bytes()? >= free_wanted)
    }

    fn free_bytes(&self) -> Result<u64, LedgerError> {
        let state_dir = self.ledger.state_dir();
        disk::free_bytes(state_dir).map_err(LedgerError::io("ask the free space of", state_dir))
    }

    /// Walk all pictures, oldest inspection first, and take out those that `goes` names, by verdict and time.
    fn pictures(
        &self,
        swept: &mut Swept,
        pace: Pace<'_>,
        reason: Gone,
        goes: impl Fn(bool, Timestamp) -> bool,
    ) -> Result<(), LedgerError> {
        let mut after = FIRST;
        loop {
            let pictures = self.reader.pictures_after(after, RETENTION_ROWS_PER_READ)?;
            let Some(last) = pictures.last() else { return Ok(()) };
            after = last.key;
            let going: Vec<_> = pictures
                .iter()
                .filter(|picture| !picture.must_stay && goes(picture.is_pass, picture.decided_at))
                .collect();
            for share in going.chunks(RETENTION_ROWS_PER_STEP) {
                if swept.is_cut_short || (reason == Gone::Pressure && self.is_relieved(swept)?) {
                    return Ok(());
                }
                // A step holds pictures of one kind, so that what went can be told apart.
                for is_pass in [true, false] {
                    let keys: Vec<_> = share.iter().filter(|p| p.is_pass == is_pass).map(|p| p.key).collect();
                    if keys.is_empty() {
                        continue;
                    }
                    let done = self.step(Step::Pictures { keys, reason }, swept, pace)?;
                    swept.picture_bytes += done.bytes;
                    *if is_pass { &mut swept.pass_pictures } else { &mut swept.other_pictures } += done.count;
                }
            }
        }
    }

    fn detail(&self, swept: &mut Swept, delivered_before: Timestamp, pace: Pace<'_>) -> Result<(), LedgerError> {
        let mut after = 0;
        while !swept.is_cut_short {
            let numbers = self.reader.brief_next(after, delivered_before, RETENTION_ROWS_PER_STEP)?;
            let Some(last) = numbers.last() else { break };
            after = *last;
            swept.detail += self.step(Step::Detail { numbers, delivered_before }, swept, pace)?.count;
        }
        Ok(())
    }

    fn inspections(&self, swept: &mut Swept, delivered_before: Timestamp, pace: Pace<'_>) -> Result<(), LedgerError> {
        let mut after = 0;
        while !swept.is_cut_short {
            let numbers = self.reader.prune_next(after, delivered_before, RETENTION_ROWS_PER_STEP)?;
            let Some(last) = numbers.last() else { break };
            after = *last;
            swept.inspections += self.step(Step::Inspections { numbers, delivered_before }, swept, pace)?.count;
        }
        Ok(())
    }

    fn step(&self, step: Step, swept: &mut Swept, pace: Pace<'_>) -> Result<StepDone, LedgerError> {
        let stopwatch = Stopwatch::start();
        let done = self.ledger.retain(step)?;
        let dir = artifacts_dir(self.ledger.state_dir());
        failpoint::hit("retention.step.done");
        for path in &done.paths {
            remove_file(&dir.join(path));
            failpoint::hit("retention.file.removed");
        }
        swept.is_cut_short |= !pace(stopwatch.elapsed());
        Ok(done)
    }
}
