//! Kits, counting sessions and stock: the nouns of counting against a bill of materials.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{InspectionId, Timestamp};

/// One line of a kit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitLine {
    pub part_number: String,
    /// Only this colour counts; `None`: any.
    pub color_id: Option<i64>,
    /// At least 1.
    pub quantity: u32,
    /// May be there and need not.
    pub is_spare: bool,
    /// Lines of one group stand in for one another; each says the group's whole quantity.
    pub alternate_group: Option<String>,
}

/// Expected parts and counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kit {
    pub kit_code: String,
    pub name: String,
    pub lines: Vec<KitLine>,
}

/// A counting session; while `ended_at` is `None` it takes trays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KitSession {
    pub id: Uuid,
    /// The kit as it was when the session began.
    pub kit: Kit,
    /// Each still frame inspected here counts; `None`: only trays added by hand.
    pub station: Option<String>,
    pub started_at: Timestamp,
    pub started_by: String,
    pub ended_at: Option<Timestamp>,
    pub ended_by: Option<String>,
    /// `finished` or `cancelled`.
    pub outcome: Option<String>,
    pub is_complete: Option<bool>,
}

/// An inspection that counts in a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KitTray {
    pub inspection_id: InspectionId,
    /// `INS-…`
    pub code: String,
    pub counted_at: Timestamp,
}

/// What is in stock of a part in a colour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stock {
    pub part_number: String,
    pub color_id: Option<i64>,
    pub quantity: i64,
    pub last_changed_at: Timestamp,
}

/// A part whose stock in all colours is below its threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowStock {
    pub part_number: String,
    pub quantity: i64,
    pub min_quantity: i64,
}

/// A change that the ledger's writer makes of kits and stock; also the body of `POST /api/v1/kits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum KitOrder {
    /// Begin to count against a kit.
    Start { kit_code: String, station: Option<String>, by: String },
    /// Count an inspection that is in the ledger.
    AddTray { session: Uuid, inspection: InspectionId },
    /// Count a tray no more; `None`: the last one.
    RemoveTray { session: Uuid, inspection: Option<InspectionId>, by: String, reason: Option<String> },
    /// End a session and book what was counted.
    Finish { session: Uuid, by: String, accept_incomplete: bool },
    /// End a session without booking anything.
    Cancel { session: Uuid, by: String, reason: Option<String> },
    /// Book a correction.
    Adjust { part_number: String, color_id: Option<i64>, delta: i64, by: String, reason: String },
    /// Warn below this quantity; 0: never.
    Threshold { part_number: String, min_quantity: i64, by: String },
}
