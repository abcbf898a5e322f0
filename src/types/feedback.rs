//! What people think of decisions, and what they did about them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::people::check_words;
use super::{InspectionId, Timestamp};
use crate::limits::{ACTION_TAKEN_CHARS_MAX, REVIEW_REASON_CHARS_MAX, REVIEW_WORD_CHARS_MAX};

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

    fn is_opinion(self) -> bool {
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

impl FeedbackOrder {
    /// What is wrong with the words themselves, for whoever gave them.
    ///
    /// # Errors
    /// The fault in a sentence.
    pub fn check(&self) -> Result<(), String> {
        let (Self::Say { notes, by, .. } | Self::Act { notes, by, .. }) = self;
        check_words("by", by, REVIEW_WORD_CHARS_MAX)?;
        notes.as_deref().map_or(Ok(()), |notes| check_words("notes", notes, REVIEW_REASON_CHARS_MAX))?;
        match self {
            Self::Act { action_taken, .. } => check_words("action_taken", action_taken, ACTION_TAKEN_CHARS_MAX),
            Self::Say { subject, feedback_type, rating, expected_severity, .. } => {
                let kind = feedback_type.as_str();
                for (field, value) in [("rating", rating), ("expected_severity", expected_severity)] {
                    if value.is_some_and(|value| !(1..=5).contains(&value)) {
                        return Err(format!("`{field}` is not between 1 and 5"));
                    }
                }
                if subject.is_none() && !feedback_type.is_opinion() {
                    return Err(format!("`{kind}` is said of an inspection or item; name its code"));
                }
                if feedback_type.is_opinion() && rating.is_none() && notes.is_none() {
                    return Err(format!("`{kind}` without a rating and without notes says nothing"));
                }
                let is_about_a_defect =
                    matches!(feedback_type, FeedbackType::MissedDefect | FeedbackType::SeverityWrong);
                if expected_severity.is_some() && !is_about_a_defect {
                    return Err(format!(
                        "an expected severity goes with missed_defect or severity_wrong, not with {kind}"
                    ));
                }
                Ok(())
            }
        }
    }
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
    use super::{ActionResult, FeedbackOrder, FeedbackType};

    fn say(kind: FeedbackType, subject: Option<&str>, rating: Option<u8>, severity: Option<u8>) -> Result<(), String> {
        let subject = subject.map(str::to_owned);
        let (feedback_type, expected_severity, by) = (kind, severity, "kim".to_owned());
        FeedbackOrder::Say { subject, feedback_type, rating, expected_severity, notes: None, by }.check()
    }

    #[test]
    fn ratings_and_severities_outside_one_to_five_are_refused() {
        let of = Some("INS-20261121-0001");
        for good in [None, Some(1), Some(5)] {
            assert!(say(FeedbackType::SeverityWrong, of, good, good).is_ok(), "{good:?}");
        }
        for bad in [Some(0), Some(6), Some(255)] {
            assert!(say(FeedbackType::Accurate, of, bad, None).is_err(), "{bad:?}");
            assert!(say(FeedbackType::SeverityWrong, of, None, bad).is_err(), "{bad:?}");
        }
        assert!(say(FeedbackType::Accurate, of, None, Some(3)).is_err());
    }

    #[test]
    fn only_an_opinion_is_about_the_site_and_an_opinion_says_something() {
        assert!(say(FeedbackType::Satisfaction, None, Some(4), None).is_ok());
        assert!(say(FeedbackType::Satisfaction, None, None, None).is_err());
        assert!(say(FeedbackType::FalsePositive, None, Some(4), None).is_err());
    }

    #[test]
    fn long_and_binary_words_are_refused() {
        let act = |action: &str, notes: &str| {
            FeedbackOrder::Act {
                inspection: "INS-20261121-0001".to_owned(),
                action_taken: action.to_owned(),
                action_result: ActionResult::Resolved,
                notes: Some(notes.to_owned()),
                by: "kim".to_owned(),
            }
            .check()
        };
        assert!(act("cleaned the lens", "a smear").is_ok());
        assert!(act("", "a smear").is_err());
        assert!(act(&"x".repeat(201), "a smear").is_err());
        assert!(act("cleaned", &"x".repeat(100_000)).unwrap_err().contains("1000 characters"));
        assert!(act("cleaned", "a\0b").is_err());
    }

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
