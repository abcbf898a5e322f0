//! Inspections with every field set, to put into ledgers.

use loupe::ledger::{Ledger, NewArtifact};
use loupe::types::{
    AnomalyEvidence, ArtifactKind, BoundingBox, Digest, FrameQuality, Inspection, InspectionId, Item, MatchEvidence,
    Provider, QaStatus, RankedPart, Reason, SurfaceReading, Tier, Timestamp, Timings, Verdict,
};
use uuid::Uuid;

/// 2026-11-21 12:00:00 UTC.
pub const NOON_US: i64 = 1_795_262_400_000_000;

/// Register the provenance that [`inspection`] refers to.
pub fn provenance(ledger: &Ledger) -> Digest {
    ledger.register_provenance(PROVENANCE).unwrap()
}

pub const PROVENANCE: &str = r#"{"recipe":"tray","software":"0.1.0"}"#;

/// A PASS of one item; `number` makes it differ from the others and sets its time.
pub fn inspection(number: u64) -> Inspection {
    let similarity = 0.1 + (number % 800) as f32 / 1_000.0;
    Inspection {
        id: InspectionId(Uuid::now_v7()),
        code: String::new(),
        source: format!("conveyor.mp4#{number}"),
        station: "line-1".to_owned(),
        camera: "top".to_owned(),
        recipe: "tray".to_owned(),
        frame_seq: number,
        captured_at: Timestamp::from_micros(NOON_US + i64::try_from(number).unwrap()),
        decided_at: Timestamp::from_micros(NOON_US + i64::try_from(number).unwrap() + 40_000),
        views: Vec::new(),
        width_px: 1920,
        height_px: 1080,
        frame_sha256: Digest::of(&number.to_le_bytes()),
        provenance_sha256: Digest::of(PROVENANCE.as_bytes()),
        verdict: Verdict::Pass,
        reasons: Vec::new(),
        anomaly: Some(anomaly(number)),
        items: vec![item(0, similarity)],
        quality: Some(quality(number)),
        providers: vec![("embed".to_owned(), Provider::Cpu)],
        is_provider_fallback: false,
        deadline_ms: Some(100.0),
        timings_ms: Timings { decode: 1.1, quality: 5.7, total: 40.3, ..Timings::default() },
        artifacts: Vec::new(),
        is_stream: true,
        faults: Vec::new(),
        elapsed_ms: 40.1,
    }
}

/// The same as a HOLD with a doubtful item.
pub fn held(number: u64) -> Inspection {
    let mut inspection = inspection(number);
    inspection.verdict = Verdict::Hold;
    inspection.reasons = vec![Reason::MarginSmall, Reason::FrameBlurred];
    inspection.items[0].verdict = Verdict::Hold;
    inspection.items[0].reasons = vec![Reason::MarginSmall];
    inspection.items[0].part_id = None;
    inspection
}

fn anomaly(number: u64) -> AnomalyEvidence {
    AnomalyEvidence {
        score_raw: 3.3 + (number % 100) as f32 / 7.0,
        score: 0.1,
        threshold: 0.5,
        image_threshold_raw: 30.1,
        pixel_threshold_raw: 28.7,
        map_min: 0.3,
        map_max: 1.0e-7,
        area_above_ratio: 0.02,
        bank_sha256: Digest::of(b"bank"),
        surface: SurfaceReading::default(),
    }
}

pub fn item(ordinal: u32, similarity: f32) -> Item {
    let evidence = MatchEvidence {
        probability: None,
        unknown_probability: None,
        required_probability: None,
        part_id: "3001".to_owned(),
        color_id: Some("5".to_owned()),
        template: 17,
        similarity,
        second_part_id: Some("3003".to_owned()),
        second_similarity: Some(similarity - 0.1),
        margin: 0.1,
        tier: Tier::L2,
        entered_stage2: true,
        stage1_ms: 0.2,
        stage2_ms: 0.7,
        top_k: vec![RankedPart {
            template: 17,
            part_id: "3001".to_owned(),
            color_id: None,
            similarity,
            likeness: None,
            centre: None,
            probability: None,
            size_log: None,
            shape: None,
        }],
        shares_group: false,
        delta_sha256: None,
        quality_level: None,
    };
    Item {
        size_mm: None,
        colour: None,
        ordinal,
        bbox: BoundingBox::new(10.25, 20.5, 110.75, 95.125),
        views: Vec::new(),
        label: "part".to_owned(),
        detection_confidence: 0.9,
        part_id: Some("3001".to_owned()),
        similarity: Some(similarity),
        margin: Some(0.1),
        tier: Some(Tier::L2),
        matched: Some(evidence),
        verdict: Verdict::Pass,
        reasons: Vec::new(),
    }
}

fn quality(number: u64) -> FrameQuality {
    FrameQuality {
        views: Vec::new(),
        sharpness: 512.3,
        noise_level: 1.7,
        contrast_ratio: 0.41,
        brightness_ratio: 0.55,
        saturation_ratio: 0.2,
        clipped_ratio: 0.003,
        ssim_score: Some(0.97),
        phash: u64::MAX - number,
        duplicate_distance: Some(12),
        is_duplicate: false,
        age_ms: 3.2,
        status: QaStatus::Pass,
        issues: Vec::new(),
    }
}

pub fn thumbnail(bytes: usize) -> NewArtifact {
    NewArtifact {
        kind: ArtifactKind::Thumbnail,
        content_type: "image/jpeg".to_owned(),
        bytes: vec![7; bytes],
        width_px: 256,
        height_px: 144,
        extension: "jpg".to_owned(),
    }
}
