//! The catalogue as the device keeps it: what parts there are, what they are called and how far each can be trusted.

use serde::{Deserialize, Serialize};

/// How well a catalogue part is prepared, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QualityLevel {
    /// A person must look at it before it is used.
    ReviewNeeded,
    /// Imported.
    Bronze,
    /// Has the views a template set needs.
    Silver,
    /// A person confirmed it on real items.
    Golden,
}

impl QualityLevel {
    pub const ALL: [QualityLevel; 4] =
        [QualityLevel::ReviewNeeded, QualityLevel::Bronze, QualityLevel::Silver, QualityLevel::Golden];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            QualityLevel::ReviewNeeded => "review_needed",
            QualityLevel::Bronze => "bronze",
            QualityLevel::Silver => "silver",
            QualityLevel::Golden => "golden",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

/// A category; its parent is named by code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Category {
    pub code: String,
    pub name_en: String,
    pub name_ko: Option<String>,
    pub parent_code: Option<String>,
}

/// A colour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Color {
    pub color_id: i64,
    pub name: String,
    pub name_ko: Option<String>,
    /// Six capital hexadecimal digits.
    pub rgb: String,
    pub is_transparent: bool,
}

/// A part as a file describes it; sizes in millimetres.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub part_number: String,
    pub name_en: String,
    pub name_ko: Option<String>,
    pub category_code: Option<String>,
    pub length_mm: Option<f64>,
    pub width_mm: Option<f64>,
    pub height_mm: Option<f64>,
    pub weight_g: Option<f64>,
    /// Code of the group of parts it is known to be confused with.
    pub confusion_group: Option<String>,
}

/// Two parts that look alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartRelation {
    pub part_number: String,
    pub related_part_number: String,
    /// Cosine, −1 to 1.
    pub similarity: f64,
}

/// Who may see something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessPolicy {
    /// `part`, `kit`, `product` or `recipe`.
    pub subject_kind: String,
    /// Part number, kit code or name.
    pub subject: String,
    /// `public`, `internal`, `restricted` or `secret`.
    pub security_level: String,
    /// Names of the groups that may see it; stored for when there are log-ins.
    pub allowed_groups: Vec<String>,
}

impl AccessPolicy {
    /// Whether only named groups may see the subject.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        matches!(self.security_level.as_str(), "restricted" | "secret")
    }
}

/// What an import brings, checked; or all that a ledger holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    pub categories: Vec<Category>,
    pub colors: Vec<Color>,
    pub parts: Vec<Part>,
    pub relations: Vec<PartRelation>,
    pub policies: Vec<AccessPolicy>,
    pub kits: Vec<super::Kit>,
}

/// A part with what the ledger knows beyond the files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartCard {
    #[serde(flatten)]
    pub part: Part,
    pub category_en: Option<String>,
    pub category_ko: Option<String>,
    pub quality_level: QualityLevel,
    /// Rises with each change of what the files say.
    pub version: i64,
    pub security_level: Option<String>,
    pub allowed_groups: Vec<String>,
}
