//! What is kept, what it takes, and what would go next: reads for the retention job and for people.
//!
//! Reads run on a connection of their own and never hold up the writer.

use rusqlite::{Row, params};
use serde::Serialize;

use super::LedgerError;
use super::disk::free_bytes;
use super::holds::HELD;
use super::reader::LedgerReader;
use super::retention::{FREE, PictureKey, TAUGHT};
use crate::types::{DiskLevel, StoragePolicy, Timestamp};

/// Pictures read at a time.
const PICTURES_PER_READ: usize = 500;

/// A kept picture, as the retention job sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub key: PictureKey,
    pub size_bytes: u64,
    /// Of a PASS.
    pub is_pass: bool,
    pub decided_at: Timestamp,
    /// A legal hold covers it, or a learned template was cut from it.
    pub must_stay: bool,
}

/// Some of a kind of thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub count: u64,
    /// 0 for rows, whose space the file keeps for the next ones.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What a line of the plan is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    PassPictures,
    OtherPictures,
    Detail,
    Verdicts,
    Samples,
}

/// What of a class would go, in the order in which it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Planned {
    pub class: Class,
    #[serde(flatten)]
    pub amount: Amount,
    /// Decided or delivered first among them.
    pub oldest_at: Option<Timestamp>,
}

/// How the store stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StorageStatus {
    pub level: DiskLevel,
    pub free_bytes: u64,
    pub policy: StoragePolicy,
    /// `ledger.db`, with `reusable_bytes` in it that rows which went have left.
    pub ledger_bytes: u64,
    pub reusable_bytes: u64,
    /// The write-ahead log beside it.
    pub log_bytes: u64,
    pub pictures: Amount,
    pub inspections: u64,
    /// Inspections, reviews and bookings that the central side does not have: never removed.
    pub undelivered: u64,
    pub samples: u64,
    /// Legal holds that stand, and the inspections and pictures they cover now.
    pub holds: u64,
    pub held_inspections: u64,
    pub held_pictures: Amount,
    /// Pictures that learned templates were cut from: kept with them.
    pub taught_pictures: Amount,
    pub gone_pictures: Amount,
    pub expired_inspections: u64,
    pub quarantined_files: u64,
    pub oldest_inspection_at: Option<Timestamp>,
    pub oldest_picture_at: Option<Timestamp>,
    /// What is over age and goes with the next pass.
    pub expired: Vec<Planned>,
    /// What would go next when the disk fills; verdicts never do.
    pub under_pressure: Vec<Planned>,
}

impl LedgerReader {
    /// Pictures beyond `after` in the order in which their inspections were made.
    pub(super) fn pictures_after(&self, after: PictureKey, limit: usize) -> Result<Vec<Picture>, LedgerError> {
        let sql = format!(
            "SELECT a.inspection_id, a.id, a.size_bytes, i.verdict = 'pass', i.decided_at, {HELD} OR {TAUGHT}
             FROM artifacts a JOIN inspections i ON i.id = a.inspection_id
             WHERE (a.inspection_id, a.id) > (?1, ?2) ORDER BY a.inspection_id, a.id LIMIT ?3"
        );
        let read = |row: &Row<'_>| {
            Ok(Picture {
                key: PictureKey { inspection_id: row.get(0)?, id: row.get(1)? },
                size_bytes: unsigned(row.get(2)?),
                is_pass: row.get(3)?,
                decided_at: Timestamp::from_micros(row.get(4)?),
                must_stay: row.get(5)?,
            })
        };
        self.list(&sql, params![after.inspection_id, after.id, i64::try_from(limit).unwrap_or(i64::MAX)], read)
    }

    /// Numbers of deliveries beyond `after` from before `delivered_before` whose detail may go.
    pub(super) fn brief_next(
        &self,
        after: i64,
        delivered_before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError> {
        self.deliveries(after, delivered_before, limit, "v.is_brief = 0")
    }

    /// Numbers of deliveries beyond `after` from before `delivered_before` whose inspections may go.
    pub(super) fn prune_next(
        &self,
        after: i64,
        delivered_before: Timestamp,
        limit: usize,
    ) -> Result<Vec<i64>, LedgerError> {
        self.deliveries(after, delivered_before, limit, FREE)
    }

    fn deliveries(
        &self,
        after: i64,
        delivered_before: Timestamp,
        limit: usize,
        condition: &str,
    ) -> Result<Vec<i64>, LedgerError> {
        let sql = format!(
            "SELECT v.number FROM delivered_inspections v JOIN inspections i ON i.id = v.inspection_id
             WHERE v.number > ?1 AND v.delivered_at < ?2 AND NOT {HELD} AND {condition} ORDER BY v.number LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.list(&sql, params![after, delivered_before.as_micros(), limit], |row| row.get(0))
    }

    /// Bytes of all kept pictures.
    pub(super) fn picture_bytes(&self) -> Result<u64, LedgerError> {
        self.number("SELECT coalesce(sum(size_bytes), 0) FROM artifacts")
    }

    /// How the store stands under `policy`: a look at every kept picture's row.
    ///
    /// # Errors
    /// When the ledger cannot be read or the disk does not answer.
    pub fn storage_status(&self, policy: &StoragePolicy, now: Timestamp) -> Result<StorageStatus, LedgerError> {
        let free_bytes =
            free_bytes(&self.state_dir).map_err(LedgerError::io("ask the free space of", &self.state_dir))?;
        let pictures = self.sort_pictures(policy, now)?;
        let holds = self.legal_holds(false)?.len() as u64;
        let page_bytes = self.number("PRAGMA page_size")?;
        let log = std::fs::metadata(self.path.with_extension("db-wal"));
        let gone = self.number("SELECT gone_pictures FROM retention_totals")?;
        Ok(StorageStatus {
            level: policy.level(free_bytes, pictures.all.bytes),
            free_bytes,
            policy: *policy,
            ledger_bytes: self.number("PRAGMA page_count")? * page_bytes,
            reusable_bytes: self.number("PRAGMA freelist_count")? * page_bytes,
            log_bytes: log.map_or(0, |log| log.len()),
            pictures: pictures.all,
            inspections: self.number("SELECT count(*) FROM inspections")?,
            undelivered: self.number("SELECT count(*) FROM outbox")?,
            samples: self.sample_count()?,
            holds,
            held_inspections: if holds == 0 {
                0
            } else {
                self.number(&format!("SELECT count(*) FROM inspections i WHERE {HELD}"))?
            },
            held_pictures: pictures.held,
            taught_pictures: pictures.taught,
            gone_pictures: Amount { count: gone, bytes: self.number("SELECT gone_bytes FROM retention_totals")? },
            expired_inspections: self.number("SELECT pruned_inspections FROM retention_totals")?,
            quarantined_files: self.number("SELECT count(*) FROM quarantine")?,
            oldest_inspection_at: self.time("SELECT decided_at FROM inspections ORDER BY rowid LIMIT 1")?,
            oldest_picture_at: pictures.oldest_at,
            expired: self.over_age(policy, now, &pictures)?,
            under_pressure: vec![
                pictures.pass.planned(Class::PassPictures),
                pictures.other.planned(Class::OtherPictures),
                Planned {
                    class: Class::Samples,
                    amount: Amount { count: self.sample_count()?, bytes: 0 },
                    oldest_at: self.time(
                        "SELECT recorded_at FROM (SELECT recorded_at FROM gpu_stats UNION ALL SELECT recorded_at FROM system_stats)
                         ORDER BY 1 LIMIT 1",
                    )?,
                },
            ],
        })
    }

    fn over_age(
        &self,
        policy: &StoragePolicy,
        now: Timestamp,
        pictures: &SortedPictures,
    ) -> Result<Vec<Planned>, LedgerError> {
        let delivered = |days: u32, condition: &str| -> Result<(u64, Option<i64>), LedgerError> {
            let sql = format!(
                "SELECT count(*), min(v.delivered_at) FROM delivered_inspections v
                 JOIN inspections i ON i.id = v.inspection_id
                 WHERE v.delivered_at < ?2 AND NOT {HELD} AND {condition} AND ?1"
            );
            let read = |row: &Row<'_>| Ok((unsigned(row.get(0)?), row.get(1)?));
            let found = self.list(&sql, params![true, days_before(now, days).as_micros()], read)?;
            Ok(found.first().copied().unwrap_or_default())
        };
        let rows = |class, (count, oldest): (u64, Option<i64>)| Planned {
            class,
            amount: Amount { count, bytes: 0 },
            oldest_at: oldest.map(Timestamp::from_micros),
        };
        Ok(vec![
            pictures.expired_pass.planned(Class::PassPictures),
            pictures.expired_other.planned(Class::OtherPictures),
            rows(Class::Detail, delivered(policy.detail_days, "v.is_brief = 0")?),
            rows(Class::Verdicts, delivered(policy.verdict_days, FREE)?),
        ])
    }

    fn sort_pictures(&self, policy: &StoragePolicy, now: Timestamp) -> Result<SortedPictures, LedgerError> {
        let mut sorted = SortedPictures::default();
        let cutoffs = (days_before(now, policy.pass_picture_days), days_before(now, policy.picture_days));
        let mut after = PictureKey { inspection_id: [0; 16], id: [0; 16] };
        loop {
            let pictures = self.pictures_after(after, PICTURES_PER_READ)?;
            let Some(last) = pictures.last() else { return Ok(sorted) };
            after = last.key;
            for picture in &pictures {
                sorted.take(picture, cutoffs);
            }
            if sorted.holds_something {
                sorted.tell_held_from_taught(self, &pictures)?;
            }
        }
    }

    fn time(&self, sql: &str) -> Result<Option<Timestamp>, LedgerError> {
        Ok(self.list(sql, &[], |row| row.get(0))?.pop().map(Timestamp::from_micros))
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// `days` before `now`.
pub(super) fn days_before(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_micros(now.as_micros() - i64::from(days) * 86_400_000_000)
}

#[derive(Debug, Default)]
struct Pile {
    amount: Amount,
    oldest_at: Option<Timestamp>,
}

impl Pile {
    fn add(&mut self, picture: &Picture) {
        self.amount.add(picture.size_bytes);
        self.oldest_at = Some(self.oldest_at.map_or(picture.decided_at, |at| at.min(picture.decided_at)));
    }

    fn planned(&self, class: Class) -> Planned {
        Planned { class, amount: self.amount, oldest_at: self.oldest_at }
    }
}

/// Every kept picture by what becomes of it.
#[derive(Debug, Default)]
struct SortedPictures {
    all: Amount,
    held: Amount,
    taught: Amount,
    pass: Pile,
    other: Pile,
    expired_pass: Pile,
    expired_other: Pile,
    oldest_at: Option<Timestamp>,
    /// The last pictures taken include one that must stay.
    holds_something: bool,
}

impl SortedPictures {
    fn take(&mut self, picture: &Picture, (pass_before, other_before): (Timestamp, Timestamp)) {
        self.all.add(picture.size_bytes);
        self.oldest_at = Some(self.oldest_at.map_or(picture.decided_at, |at| at.min(picture.decided_at)));
        let (before, expired, kept) = if picture.is_pass {
            (pass_before, &mut self.expired_pass, &mut self.pass)
        } else {
            (other_before, &mut self.expired_other, &mut self.other)
        };
        if picture.must_stay {
            self.holds_something = true;
        } else if picture.decided_at < before {
            expired.add(picture);
        } else {
            kept.add(picture);
        }
    }

    /// Which of the pictures that must stay do so for a template, which for a hold.
    fn tell_held_from_taught(&mut self, reader: &LedgerReader, pictures: &[Picture]) -> Result<(), LedgerError> {
        self.holds_something = false;
        let sql = format!("SELECT {TAUGHT} FROM artifacts a WHERE a.inspection_id = ?1 AND a.id = ?2");
        for picture in pictures.iter().filter(|picture| picture.must_stay) {
            let key = params![picture.key.inspection_id, picture.key.id];
            let is_taught = reader.list(&sql, key, |row| row.get(0))?.pop().unwrap_or(false);
            if is_taught { &mut self.taught } else { &mut self.held }.add(picture.size_bytes);
        }
        Ok(())
    }
}
