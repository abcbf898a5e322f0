//! How long a device keeps what, and what it does when the disk fills.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{InspectionId, Timestamp};

/// Retention and watermarks (data model §1.6). Nothing undelivered and nothing on legal hold goes by age; only pictures
/// and telemetry go when the disk fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StoragePolicy {
    /// Days that an inspection stays after its delivery, with its reviews.
    pub verdict_days: u32,
    /// Days that its items, map and frame quality stay as rows after its delivery; its record keeps them longer.
    pub detail_days: u32,
    /// Days that the pictures of a PASS stay after the decision.
    pub pass_picture_days: u32,
    /// Days that the pictures of a FAIL or HOLD stay after the decision.
    pub picture_days: u32,
    /// Below this much free space pictures and telemetry are shed.
    pub free_low_bytes: u64,
    /// Below this much free space nothing is committed and stations hold.
    pub free_critical_bytes: u64,
    /// What pictures may take in all; `None`: what the disk gives.
    pub budget_bytes: Option<u64>,
}

impl Default for StoragePolicy {
    fn default() -> Self {
        Self {
            verdict_days: 30,
            detail_days: 14,
            pass_picture_days: 3,
            picture_days: 30,
            free_low_bytes: 1 << 30,
            free_critical_bytes: 128 << 20,
            budget_bytes: None,
        }
    }
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskLevel {
    Enough,
    /// Below the low mark, or over the budget: pictures go.
    Low,
    /// Below the critical mark: nothing is committed.
    Critical,
}

impl DiskLevel {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DiskLevel::Enough => "enough",
            DiskLevel::Low => "low",
            DiskLevel::Critical => "critical",
        }
    }
}

impl StoragePolicy {
    /// What `free_bytes` of free space and `picture_bytes` of pictures mean.
    #[must_use]
    pub fn level(&self, free_bytes: u64, picture_bytes: u64) -> DiskLevel {
        if free_bytes < self.free_critical_bytes {
            DiskLevel::Critical
        } else if free_bytes < self.free_low_bytes || self.budget_bytes.is_some_and(|budget| picture_bytes > budget) {
            DiskLevel::Low
        } else {
            DiskLevel::Enough
        }
    }
}

/// What a legal hold covers: inspections that meet every criterion given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldScope {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspection: Option<InspectionId>,
    /// The record names it, as answer or as candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub station: Option<String>,
    /// Captured at or after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Captured before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A change of the legal holds; also the body of `POST /api/v1/holds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum HoldOrder {
    Place { scope: HoldScope, by: String, reason: String },
    Release { id: Uuid, by: String, reason: String },
}

/// A legal hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegalHold {
    pub id: Uuid,
    pub placed_at: Timestamp,
    pub placed_by: String,
    pub reason: String,
    pub scope: HoldScope,
    /// `None`: it stands.
    pub released_at: Option<Timestamp>,
    pub released_by: Option<String>,
    pub release_reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{DiskLevel, StoragePolicy};

    #[test]
    fn the_marks_and_the_budget_each_make_the_disk_low() {
        let policy = StoragePolicy {
            free_low_bytes: 100,
            free_critical_bytes: 10,
            budget_bytes: Some(50),
            ..StoragePolicy::default()
        };
        let check = |free, pictures, expected| assert_eq!(policy.level(free, pictures), expected);
        check(100, 50, DiskLevel::Enough);
        check(99, 0, DiskLevel::Low);
        check(100, 51, DiskLevel::Low);
        check(10, 0, DiskLevel::Low);
        check(9, 0, DiskLevel::Critical);
        let unbounded = StoragePolicy { budget_bytes: None, ..policy };
        assert_eq!(unbounded.level(100, u64::MAX), DiskLevel::Enough);
    }
}
