//! What people say of decisions, and what is counted from it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Digest, InspectionId, Timestamp};

/// What a reviewer wants said; the body of `POST /api/v1/reviews`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviewOrder {
    /// An inspection's code or id, or either with `/` and an item's position; or an item's id.
    pub subject: String,
    pub action: ReviewAction,
    /// Who says so.
    pub reviewer: String,
    #[serde(default)]
    pub reason: Option<String>,
    /// Learn a template from the item's crop; a correction only.
    #[serde(default = "yes")]
    pub teach: bool,
    /// The part may be one that the index does not know yet.
    #[serde(default)]
    pub is_new_part: bool,
}

fn yes() -> bool {
    true
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum ReviewAction {
    /// What was shown is right.
    Confirm,
    /// It is this part.
    Part {
        part_id: String,
        #[serde(default)]
        color_id: Option<String>,
    },
    /// It is no part of the catalogue.
    Unknown,
}

/// How a review leaves its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReviewStatus {
    /// Not reviewed: what an undo leaves.
    Pending,
    Confirmed,
    /// What was shown is wrong; without a corrected part it is none of the catalogue.
    Rejected,
}

impl ReviewStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ReviewStatus::Pending => "pending",
            ReviewStatus::Confirmed => "confirmed",
            ReviewStatus::Rejected => "rejected",
        }
    }

    /// The status called `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Confirmed, Self::Rejected].into_iter().find(|status| status.as_str() == text)
    }
}

/// One review as the ledger holds it. Of several of one subject the last one wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Review {
    pub id: Uuid,
    pub occurred_at: Timestamp,
    pub inspection_id: InspectionId,
    /// The inspection's code.
    pub code: String,
    /// Position of the item; `None`: the whole inspection.
    pub ordinal: Option<u32>,
    pub status: ReviewStatus,
    /// What the search had put first.
    pub shown_part_id: Option<String>,
    pub corrected_part_id: Option<String>,
    pub corrected_color_id: Option<String>,
    /// The review that this one takes back.
    pub undoes_id: Option<Uuid>,
    pub reviewer: String,
    pub reason: Option<String>,
    /// No later review of the same subject stands.
    pub is_last: bool,
    /// Number of the template that was learned from it; it is searched while `is_last`.
    pub template: Option<u64>,
    /// Of the frame that the template was cut from.
    pub frame_sha256: Option<Digest>,
}

/// How often one part was shown for another, by the reviews that stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    pub shown_part_id: String,
    pub true_part_id: String,
    pub count: u64,
    pub last_at: Timestamp,
}

/// Items decided to be unknown, counted by the catalogue part that they look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnknownPart {
    /// The nearest catalogue part.
    pub best_part_id: String,
    pub detected_count: u64,
    /// Highest cosine to it, −1 to 1.
    pub nearest_similarity: f32,
    pub first_detected_at: Timestamp,
    pub last_detected_at: Timestamp,
    /// The newest example.
    pub example_inspection_id: InspectionId,
    pub example_code: String,
    pub example_ordinal: u32,
}
