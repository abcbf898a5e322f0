//! What people think of decisions, and what they did about them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{InspectionId, Timestamp};

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedbackType {
    /// The decision was right.
    Accurate,
    /// A good part was failed or held.
    FalsePositive,
    /// A bad part was passed, or a defect of it not seen.
    MissedDefect,
    /// The defect is there, and graver or slighter than was said.
    SeverityWrong,
    /// How well it sees, as a rating.
    DetectionAccuracy,
    /// How one likes to work with it, as a rating.
    Satisfaction,
}

impl FeedbackType {
    const ALL: [Self; 6] = [
        Self::Accurate,
        Self::FalsePositive,
        Self::MissedDefect,
        Self::SeverityWrong,
        Self::DetectionAccuracy,
        Self::Satisfaction,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accurate => "accurate",
            Self::FalsePositive => "false_positive",
            Self::MissedDefect => "missed_defect",
            Self::SeverityWrong => "severity_wrong",
            Self::DetectionAccuracy => "detection_accuracy",
            Self::Satisfaction => "satisfaction",
        }
    }

    /// The type called `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it says that a decision was wrong, so that something is to be done.
    #[must_use]
    pub fn is_complaint(self) -> bool {
        matches!(self, Self::FalsePositive | Self::MissedDefect | Self::SeverityWrong)
    }

    /// Whether it rates, so that it may be about the site as a whole.
    #[must_use]
    pub fn is_opinion(self) -> bool {
        matches!(self, Self::DetectionAccuracy | Self::Satisfaction)
    }
}

/// What came of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionResult {
    Resolved,
    Pending,
    Failed,
    Deferred,
}

impl ActionResult {
    const ALL: [Self; 4] = [Self::Resolved, Self::Pending, Self::Failed, Self::Deferred];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Deferred => "deferred",
        }
    }

    /// The result called `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|result| result.as_str() == text)
    }
}

/// What somebody wants kept; also the body of `POST /api/v1/feedback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum FeedbackOrder {
    Say {
        /// An inspection's code or id, or either with `/` and an item's position; `None`: the site as a whole.
        subject: Option<String>,
        feedback_type: FeedbackType,
        /// 1 poor to 5 excellent.
        rating: Option<u8>,
        /// 1 slight to 5 critical.
        expected_severity: Option<u8>,
        notes: Option<String>,
        by: String,
    },
    Act {
        /// An inspection's code or id.
        inspection: String,
        action_taken: String,
        action_result: ActionResult,
        notes: Option<String>,
        by: String,
    },
}

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    pub id: Uuid,
    pub occurred_at: Timestamp,
    /// `None`: the site as a whole.
    pub inspection_id: Option<InspectionId>,
    /// The inspection's code.
    pub code: Option<String>,
    /// Position of the item; `None`: the whole inspection.
    pub ordinal: Option<u32>,
    pub feedback_type: FeedbackType,
    pub rating: Option<u8>,
    pub expected_severity: Option<u8>,
    pub notes: Option<String>,
    pub author: String,
    /// The person, where people are registered.
    pub operator_id: Option<Uuid>,
    /// A complaint about an inspection whose last action since does not say `resolved`.
    pub is_open: bool,
}

/// What was done about an inspection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionTaken {
    pub id: Uuid,
    pub occurred_at: Timestamp,
    pub inspection_id: InspectionId,
    /// The inspection's code.
    pub code: String,
    pub action_taken: String,
    pub action_result: ActionResult,
    pub notes: Option<String>,
    pub action_by: String,
    /// The person, where people are registered.
    pub operator_id: Option<Uuid>,
}

#[cfg(test)]
mod tests {
    use super::{ActionResult, FeedbackType};

    #[test]
    fn every_name_reads_back() {
        for kind in FeedbackType::ALL {
            assert_eq!(FeedbackType::parse(kind.as_str()), Some(kind));
        }
        for result in ActionResult::ALL {
            assert_eq!(ActionResult::parse(result.as_str()), Some(result));
        }
    }
}
