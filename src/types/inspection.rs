//! One decision about one frame, as the ledger stores it and everything downstream reads it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BoundingBox, ColourEvidence, Digest, FrameQuality, Provider, Reason, SizeMm, Timestamp, Verdict};

/// UUIDv7, made where the row is born.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InspectionId(pub Uuid);

impl std::fmt::Display for InspectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which tier of the index answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Hot, in RAM.
    L1,
    /// Cold, memory-mapped.
    L2,
    /// Learned since the generation was built.
    Delta,
}

impl Tier {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::L1 => "l1",
            Tier::L2 => "l2",
            Tier::Delta => "delta",
        }
    }
}

/// One candidate of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedPart {
    /// Position in the generation's `ids`; from its template count on, that count plus the id of a learned template.
    pub template: u64,
    pub part_id: String,
    pub color_id: Option<String>,
    /// Cosine, −1 to 1.
    pub similarity: f32,
    /// Logarithm of the mean of `exp(8 × cosine)` over all templates of the part, divided by 8, those of the catalogue and
    /// those taught by reviews each standing for half: −1 to 1; `None` where nothing weighs it. Where the item's picture was
    /// looked at mirrored too, the mean of this and of the same with what a mirrored picture of the part shows; so `centre`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likeness: Option<f32>,
    /// Cosine with the part's centre: the direction that the embedder learned for it, else that of the sum of its catalogue
    /// views, and where reviews taught views, halfway to these; −1 to 1; `None` where nothing weighs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centre: Option<f32>,
    /// That this is the part, 0 to 1; `None` without a fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f32>,
    /// Natural logarithm of the density of the item's true size for this part, by how much of the part its picture shows
    /// where the embedder says; `None` where one of the sizes is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_log: Option<f32>,
    /// How much more the item's edges run like this part's than like those of its pair's two parts on average, −1 to 1;
    /// `None` where the shapes were not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<f32>,
}

/// What the two-tier search says of one crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatchEvidence {
    pub part_id: String,
    pub color_id: Option<String>,
    /// As [`RankedPart::template`].
    pub template: u64,
    /// Cosine to the best template, −1 to 1.
    pub similarity: f32,
    pub second_part_id: Option<String>,
    pub second_similarity: Option<f32>,
    /// `similarity` minus that of the best *other part*, 0 to 2; 2 where there is no other part.
    pub margin: f32,
    pub tier: Tier,
    pub entered_stage2: bool,
    pub stage1_ms: f32,
    pub stage2_ms: f32,
    /// Best first, one a part, at most five.
    pub top_k: Vec<RankedPart>,
    /// The best and the second part are of one confusion group, so that the recipe's `group_margin` applies.
    #[serde(default)]
    pub shares_group: bool,
    /// State of the learned templates that were searched with the generation; `None` where there were none.
    #[serde(default)]
    pub delta_sha256: Option<Digest>,
    /// That the answer is right, 0 to 1; `None` without a fit of the index.
    #[serde(default)]
    pub probability: Option<f32>,
    /// That the item is of no catalogue part, 0 to 1; `None` without a fit of the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_probability: Option<f32>,
    /// What the fit asks of it.
    #[serde(default)]
    pub required_probability: Option<f32>,
    /// The catalogue's level of the part, where the recipe asks for one; `None` as well where the catalogue lacks it.
    #[serde(default)]
    pub quality_level: Option<super::QualityLevel>,
}

/// One of several views of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemView {
    /// `[x1, y1, x2, y2]` px.
    pub bbox: BoundingBox,
    /// 0 to 1.
    pub detection_confidence: f32,
    /// Sides of the box where the camera's scale is calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mm: Option<SizeMm>,
    /// What this view by itself is most alike, and how much (cosine, −1 to 1); `None` where it was not searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
}

/// One located part within an inspection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Position in the frame's list, from 0.
    pub ordinal: u32,
    /// `[x1, y1, x2, y2]` px; around all views where there are several.
    pub bbox: BoundingBox,
    /// The views it was seen in, where the recipe asks for several; what `matched` says of a part is the mean over them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<ItemView>,
    /// Class name of the detector; `part` from the blob locator, `frame` for a whole frame, `region` for one of the recipe's.
    pub label: String,
    /// 0 to 1.
    pub detection_confidence: f32,
    /// The accepted part; `None` while in doubt or without a match stage.
    pub part_id: Option<String>,
    pub similarity: Option<f32>,
    pub margin: Option<f32>,
    pub tier: Option<Tier>,
    /// Sides of the box where the camera's scale is calibrated.
    #[serde(default)]
    pub size_mm: Option<SizeMm>,
    /// Where the recipe names colours.
    #[serde(default)]
    pub colour: Option<ColourEvidence>,
    /// The whole of the search's answer, also when it was not accepted.
    pub matched: Option<MatchEvidence>,
    pub verdict: Verdict,
    pub reasons: Vec<Reason>,
}

impl Item {
    /// Where it is seen: its views, or its one box.
    #[must_use]
    pub fn boxes(&self) -> Vec<BoundingBox> {
        if self.views.is_empty() { vec![self.bbox] } else { self.views.iter().map(|view| view.bbox).collect() }
    }

    /// Where most of it is to be seen.
    #[must_use]
    pub fn largest_box(&self) -> BoundingBox {
        self.boxes().into_iter().max_by(|a, b| a.area_px().total_cmp(&b.area_px())).unwrap_or(self.bbox)
    }
}

/// What the anomaly model says of a frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnomalyEvidence {
    /// The model's own scale, ≥ 0.
    pub score_raw: f32,
    /// Monotone in `score_raw`, 0 to 1 and never clamped before ranking; 0.5 = the bank's threshold.
    pub score: f32,
    /// The threshold applied, on the same scale as `score`.
    pub threshold: f32,
    pub image_threshold_raw: f32,
    pub pixel_threshold_raw: f32,
    pub map_min: f32,
    pub map_max: f32,
    /// Share of the map above the pixel threshold, 0 to 1.
    pub area_above_ratio: f32,
    pub bank_sha256: Digest,
    #[serde(default, skip_serializing_if = "SurfaceReading::is_empty")]
    pub surface: SurfaceReading,
}

/// How a surface was read and where it is bad.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SurfaceReading {
    /// The bank's group that was compared with; `None` where the bank has no named groups.
    pub group: Option<String>,
    /// With the bank's reference picture, −1 to 1; `None` without registration.
    pub correlation: Option<f32>,
    /// Share of the patches that count which lay beyond the frame's edge once the part was in place, and were not judged,
    /// 0 to 1.
    #[serde(default, skip_serializing_if = "is_none_unseen")]
    pub unseen_ratio: f32,
    /// The learnt picture that is most alike; `None` in banks that do not remember theirs.
    pub nearest_picture: Option<String>,
    /// Where the map is above the pixel threshold, the highest score first; bounded.
    pub regions: Vec<DefectRegion>,
    /// How many there are, listed or not.
    pub region_count: u32,
}

impl SurfaceReading {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == SurfaceReading::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none_unseen(ratio: &f32) -> bool {
    *ratio == 0.0
}

/// A connected part of the map above the pixel threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DefectRegion {
    /// px of the frame.
    pub bbox: BoundingBox,
    /// px² of the frame.
    pub area_px: f32,
    /// Where the camera's scale is calibrated.
    pub area_mm2: Option<f32>,
    /// Largest map value inside, on the raw scale.
    pub score_raw_max: f32,
}

/// Milliseconds of each stage; a stage that did not run is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    pub decode: f32,
    pub quality: f32,
    pub locate: f32,
    pub embed: f32,
    #[serde(rename = "match")]
    pub matching: f32,
    pub anomaly: f32,
    pub decide: f32,
    pub commit: f32,
    /// From the frame's arrival to its commit, waiting included.
    pub total: f32,
}

/// Kinds of artifact files kept beside an inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// The frame as it came (the file's own bytes, or a JPEG of a video frame).
    Frame,
    /// At most 256 px wide.
    Thumbnail,
    /// The frame with boxes and verdicts drawn in.
    Overlay,
    /// The anomaly map as colours over the frame.
    Heatmap,
    /// White where the anomaly map is above the pixel threshold.
    Mask,
    /// The frame beside the learnt picture that is most alike.
    Comparison,
}

impl ArtifactKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ArtifactKind::Frame => "frame",
            ArtifactKind::Thumbnail => "thumbnail",
            ArtifactKind::Overlay => "overlay",
            ArtifactKind::Heatmap => "heatmap",
            ArtifactKind::Mask => "mask",
            ArtifactKind::Comparison => "comparison",
        }
    }
}

/// An artifact that is on disk, fsynced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRef {
    pub kind: ArtifactKind,
    /// Below the state folder's `artifacts/`.
    pub relative_path: String,
    pub content_type: String,
    pub size_bytes: u64,
    pub sha256: Digest,
    pub width_px: u32,
    pub height_px: u32,
}

/// One decision about one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    #[serde(rename = "inspection_id")]
    pub id: InspectionId,
    /// `INS-YYYYMMDD-NNNN`; empty until the ledger gives it at commit.
    pub code: String,
    /// File, or `video#frame`.
    pub source: String,
    pub station: String,
    pub camera: String,
    pub recipe: String,
    pub frame_seq: u64,
    /// Whether the frame came from a stream, whose neighbours show the same scene.
    pub is_stream: bool,
    pub captured_at: Timestamp,
    pub decided_at: Timestamp,
    pub width_px: u32,
    pub height_px: u32,
    /// Where the pictures lie that the frame is made of, `[x1, y1, x2, y2]` px; empty where it is one picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<BoundingBox>,
    /// Of the picture file, of all of them one after the other, or of a video frame's pixels.
    pub frame_sha256: Digest,
    /// Of the canonical JSON of the provenance record, which the ledger holds.
    pub provenance_sha256: Digest,
    pub verdict: Verdict,
    /// Without duplicates, gravest first; empty exactly when the verdict is PASS.
    pub reasons: Vec<Reason>,
    pub anomaly: Option<AnomalyEvidence>,
    pub items: Vec<Item>,
    /// `None` where the frame could not be decoded.
    pub quality: Option<FrameQuality>,
    /// Providers that really ran, by stage: `embed`, `anomaly`, `locate`.
    pub providers: Vec<(String, Provider)>,
    pub is_provider_fallback: bool,
    /// What went wrong before the decision: unreadable frame, model errors.
    pub faults: Vec<Reason>,
    /// Milliseconds from the frame's arrival to the decision: what the deadline was held against.
    pub elapsed_ms: f32,
    pub deadline_ms: Option<f32>,
    pub timings_ms: Timings,
    pub artifacts: Vec<ArtifactRef>,
}
