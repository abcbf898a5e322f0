//! The nouns every room speaks: images, boxes, evidence, verdicts, inspections.
//!
//! No I/O, no clock, no logging. Names and units follow `docs/glossary.md`.

mod bbox;
mod catalogue;
mod config_change;
mod digest;
mod feedback;
mod foreshortening;
mod gpu_stat;
mod image;
mod inspection;
mod kit;
mod learned;
mod measure;
mod people;
mod provider;
mod quality;
mod reason;
mod review;
mod spreadsheet;
mod storage;
mod system_stat;
mod time;
mod verdict;
mod watched;

pub use bbox::BoundingBox;
pub use catalogue::{AccessPolicy, Catalogue, Category, Color, Part, PartCard, PartRelation, QualityLevel};
pub use config_change::{ConfigChange, ConfigRecord, ConfigSource, ConfigValue};
pub use digest::{Digest, DigestError};
pub use feedback::{ActionResult, ActionTaken, Feedback, FeedbackOrder, FeedbackType};
pub use foreshortening::Foreshortening;
pub use gpu_stat::GpuStat;
pub use image::{Image, ImageError};
pub use inspection::{
    AnomalyEvidence, ArtifactKind, ArtifactRef, DefectRegion, Inspection, InspectionId, Item, ItemView, MatchEvidence,
    RankedPart, SurfaceReading, Tier, Timings,
};
pub use kit::{Kit, KitLine, KitOrder, KitSession, KitTray, LowStock, Stock};
pub use learned::LearnedTemplate;
pub use measure::{ColourEvidence, ColourLimits, SizeMm};
pub use people::{Person, PersonOrder, Role, username_key};
pub use provider::Provider;
pub use quality::{FrameQuality, QaStatus};
pub use reason::Reason;
pub use review::{Confusion, Review, ReviewAction, ReviewOrder, ReviewStatus, UnknownPart};
pub use spreadsheet::{NotUtf8, csv_separator, csv_text};
pub use storage::{DiskLevel, HoldOrder, HoldScope, LegalHold, StoragePolicy};
pub use system_stat::SystemStat;
pub use time::Timestamp;
pub use verdict::Verdict;
pub use watched::{FolderNote, WatchedFile};
