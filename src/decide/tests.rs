use super::{Criteria, Decision, Evidence, ItemEvidence, decide};
use crate::config::{
    AnomalyStage, EdgeRule, EmptyRule, MatchStage, Rules, StageProviders, SurfaceSource, UnknownPartRule,
};
use crate::types::{
    AnomalyEvidence, BoundingBox, Digest, FrameQuality, MatchEvidence, QaStatus, QualityLevel, Reason, SurfaceReading,
    Tier, Verdict,
};

fn quality(issues: Vec<Reason>) -> FrameQuality {
    FrameQuality {
        views: Vec::new(),
        sharpness: 100.0,
        noise_level: 1.0,
        contrast_ratio: 0.3,
        brightness_ratio: 0.5,
        saturation_ratio: 0.2,
        clipped_ratio: 0.0,
        ssim_score: None,
        phash: 1,
        duplicate_distance: None,
        is_duplicate: false,
        age_ms: 1.0,
        status: if issues.is_empty() { QaStatus::Pass } else { QaStatus::Fail },
        issues,
    }
}

fn matched(similarity: f32, margin: f32) -> MatchEvidence {
    MatchEvidence {
        probability: None,
        unknown_probability: None,
        required_probability: None,
        part_id: "3001".into(),
        color_id: None,
        template: 0,
        similarity,
        second_part_id: Some("3002".into()),
        second_similarity: Some(similarity - margin),
        margin,
        tier: Tier::L1,
        entered_stage2: false,
        stage1_ms: 0.1,
        stage2_ms: 0.0,
        top_k: vec![],
        shares_group: false,
        delta_sha256: None,
        quality_level: None,
    }
}

fn part(similarity: f32, margin: f32) -> ItemEvidence {
    ItemEvidence {
        size_mm: None,
        colour: None,
        views: Vec::new(),
        bbox: BoundingBox::new(10.0, 10.0, 50.0, 50.0),
        label: "part".into(),
        confidence: 1.0,
        matched: Some(matched(similarity, margin)),
    }
}

fn evidence(items: Vec<ItemEvidence>) -> Evidence {
    Evidence {
        views: Vec::new(),
        width_px: 100,
        height_px: 100,
        is_stream: false,
        quality: Some(quality(vec![])),
        items,
        anomaly: None,
        faults: vec![],
        is_provider_fallback: false,
        elapsed_ms: 5.0,
    }
}

fn anomaly(score: f32) -> AnomalyEvidence {
    AnomalyEvidence {
        score_raw: score * 10.0,
        score,
        threshold: 0.5,
        image_threshold_raw: 5.0,
        pixel_threshold_raw: 5.0,
        map_min: 0.0,
        map_max: 9.0,
        area_above_ratio: 0.0,
        bank_sha256: Digest::of(b"bank"),
        surface: SurfaceReading::default(),
    }
}

fn matching() -> MatchStage {
    MatchStage {
        use_fit: false,
        px_per_mm: None,
        views: None,
        mirrors: Vec::new(),
        color: None,
        index: "i".into(),
        model: "m".into(),
        providers: StageProviders::default(),
        accept_similarity: 0.8,
        accept_margin: 0.03,
        group_margin: 0.05,
        unknown_similarity: None,
        unknown_probability: None,
        min_quality_level: None,
    }
}

fn surface() -> AnomalyStage {
    AnomalyStage {
        source: SurfaceSource::Graph { model: "m".into() },
        providers: StageProviders::default(),
        threshold: 0.5,
        hold_band: 0.02,
        group: None,
        px_per_mm: None,
    }
}

fn check(evidence: &Evidence, rules: &Rules, verdict: Verdict, reasons: &[Reason]) {
    let matching = matching();
    let surface = surface();
    let criteria = Criteria {
        rules,
        matching: evidence.anomaly.is_none().then_some(&matching),
        anomaly: evidence.anomaly.is_some().then_some(&surface),
        has_detector: false,
    };
    match decide(evidence, criteria) {
        Decision::Decided { verdict: got, reasons: why, .. } => assert_eq!((got, why.as_slice()), (verdict, reasons)),
        Decision::Ignored(reason) => panic!("ignored: {reason}"),
    }
}

#[test]
fn a_clear_match_passes_and_a_small_margin_holds() {
    let rules = Rules::default();
    check(&evidence(vec![part(0.95, 0.1)]), &rules, Verdict::Pass, &[]);
    check(&evidence(vec![part(0.95, 0.02)]), &rules, Verdict::Hold, &[Reason::MarginSmall]);
    check(&evidence(vec![part(0.5, 0.1)]), &rules, Verdict::Hold, &[Reason::SimilarityLow]);
}

#[test]
fn not_a_number_is_a_doubt() {
    let rules = Rules::default();
    check(&evidence(vec![part(f32::NAN, 0.1)]), &rules, Verdict::Hold, &[Reason::SimilarityLow]);
    check(&evidence(vec![part(0.9, f32::NAN)]), &rules, Verdict::Hold, &[Reason::MarginSmall]);
    let mut surface = evidence(vec![part(0.9, 0.1)]);
    surface.anomaly = Some(anomaly(f32::NAN));
    check(&surface, &rules, Verdict::Hold, &[Reason::AnomalyNearThreshold]);
}

#[test]
fn unknown_parts_fail_only_where_the_recipe_says_so() {
    let rules = Rules { unknown_part: UnknownPartRule::Fail, ..Rules::default() };
    check(&evidence(vec![part(0.5, 0.1)]), &rules, Verdict::Fail, &[Reason::SimilarityLow]);
}

#[test]
fn a_doubtful_frame_neither_passes_nor_fails() {
    let rules = Rules { unknown_part: UnknownPartRule::Fail, ..Rules::default() };
    let mut blurred = evidence(vec![part(0.95, 0.1)]);
    blurred.quality = Some(quality(vec![Reason::FrameBlurred]));
    check(&blurred, &rules, Verdict::Hold, &[Reason::FrameBlurred]);
    let mut defect = evidence(vec![part(0.5, 0.1)]);
    defect.quality = Some(quality(vec![Reason::FrameDark]));
    check(&defect, &rules, Verdict::Hold, &[Reason::FrameDark, Reason::SimilarityLow]);
}

#[test]
fn model_errors_fallbacks_and_late_answers_hold() {
    let rules = Rules { deadline_ms: Some(4.0), ..Rules::default() };
    let mut late = evidence(vec![part(0.95, 0.1)]);
    late.faults = vec![Reason::ModelError];
    late.is_provider_fallback = true;
    check(&late, &rules, Verdict::Hold, &[Reason::ModelError, Reason::ProviderFallback, Reason::DeadlineMissed]);
}

#[test]
fn an_item_that_nothing_matched_holds() {
    let mut unmatched = part(0.9, 0.1);
    unmatched.matched = None;
    check(&evidence(vec![unmatched]), &Rules::default(), Verdict::Hold, &[Reason::NotInspected]);
}

#[test]
fn anomaly_fails_above_holds_near_and_passes_below() {
    for (score, verdict, reasons) in [
        (0.5, Verdict::Fail, &[Reason::AnomalyAboveThreshold][..]),
        (0.49, Verdict::Hold, &[Reason::AnomalyNearThreshold][..]),
        (0.40, Verdict::Pass, &[][..]),
    ] {
        let mut frame = evidence(vec![part(0.9, 0.1)]);
        frame.anomaly = Some(anomaly(score));
        check(&frame, &Rules::default(), verdict, reasons);
    }
}

#[test]
fn an_empty_still_holds_and_an_empty_stream_frame_may_be_ignored() {
    let rules = Rules { when_empty: EmptyRule::Ignore, ..Rules::default() };
    check(&evidence(vec![]), &rules, Verdict::Hold, &[Reason::NothingFound]);
    let mut stream = evidence(vec![]);
    stream.is_stream = true;
    let matching = matching();
    let criteria = Criteria { rules: &rules, matching: Some(&matching), anomaly: None, has_detector: false };
    assert_eq!(decide(&stream, criteria), Decision::Ignored(Reason::NothingFound));
    stream.quality = Some(quality(vec![Reason::FrameDark]));
    assert!(
        matches!(decide(&stream, criteria), Decision::Decided { verdict: Verdict::Hold, .. }),
        "a dark belt is not an empty one"
    );
}

#[test]
fn a_part_cut_by_the_frame_holds_or_waits_for_the_next_frame() {
    let mut cut = part(0.5, 0.1);
    cut.bbox = BoundingBox::new(0.0, 10.0, 30.0, 40.0);
    let rules = Rules { at_edge: EdgeRule::Ignore, unknown_part: UnknownPartRule::Fail, ..Rules::default() };
    let mut frame = evidence(vec![cut, part(0.95, 0.1)]);
    check(&frame, &rules, Verdict::Hold, &[Reason::ItemCutByFrame, Reason::SimilarityLow]);
    frame.is_stream = true;
    check(&frame, &rules, Verdict::Pass, &[]);
}

#[test]
fn an_undecodable_frame_holds() {
    let mut frame = evidence(vec![]);
    frame.quality = None;
    check(&frame, &Rules::default(), Verdict::Hold, &[Reason::FrameUnreadable, Reason::NothingFound]);
}

#[test]
fn a_recipe_that_judges_nothing_holds() {
    let rules = Rules::default();
    let criteria = Criteria { rules: &rules, matching: None, anomaly: None, has_detector: false };
    let Decision::Decided { verdict, reasons, .. } = decide(&evidence(vec![part(0.9, 0.1)]), criteria) else {
        panic!("decided")
    };
    assert_eq!((verdict, reasons), (Verdict::Hold, vec![Reason::NotInspected]));
}

fn decide_with(item: ItemEvidence, stage: &MatchStage, rules: &Rules) -> (Verdict, Vec<Reason>) {
    let criteria = Criteria { rules, matching: Some(stage), anomaly: None, has_detector: false };
    match decide(&evidence(vec![item]), criteria) {
        Decision::Decided { verdict, reasons, .. } => (verdict, reasons),
        Decision::Ignored(reason) => panic!("ignored: {reason}"),
    }
}

#[test]
fn inside_a_confusion_group_the_larger_margin_applies() {
    let in_group = |margin: f32| {
        let mut item = part(0.95, margin);
        item.matched.as_mut().unwrap().shares_group = true;
        item
    };
    let rules = Rules::default();
    let stage = matching();
    assert_eq!(decide_with(in_group(0.04), &stage, &rules), (Verdict::Hold, vec![Reason::GroupMarginSmall]));
    assert_eq!(decide_with(in_group(0.02), &stage, &rules), (Verdict::Hold, vec![Reason::MarginSmall]));
    assert_eq!(decide_with(in_group(0.06), &stage, &rules), (Verdict::Pass, vec![]));
    assert_eq!(decide_with(part(0.95, 0.04), &stage, &rules), (Verdict::Pass, vec![]));
    let smaller = MatchStage { group_margin: 0.0, ..stage };
    assert_eq!(decide_with(in_group(0.02), &smaller, &rules), (Verdict::Hold, vec![Reason::MarginSmall]));
}

#[test]
fn unknown_is_below_its_own_limit_and_fails_only_where_the_rules_say_so() {
    let stage = MatchStage { unknown_similarity: Some(0.5), ..matching() };
    let hold = Rules::default();
    let fail = Rules { unknown_part: UnknownPartRule::Fail, ..Rules::default() };
    assert_eq!(decide_with(part(0.4, 0.1), &stage, &hold), (Verdict::Hold, vec![Reason::PartUnknown]));
    assert_eq!(decide_with(part(0.4, 0.1), &stage, &fail), (Verdict::Fail, vec![Reason::PartUnknown]));
    // Between the two limits nothing is proved.
    assert_eq!(decide_with(part(0.6, 0.1), &stage, &fail), (Verdict::Hold, vec![Reason::SimilarityLow]));
    assert_eq!(decide_with(part(f32::NAN, 0.1), &stage, &fail), (Verdict::Hold, vec![Reason::SimilarityLow]));
    assert_eq!(decide_with(part(0.4, 0.1), &matching(), &fail), (Verdict::Fail, vec![Reason::SimilarityLow]));
}

#[test]
fn with_a_fit_the_probability_decides_and_its_absence_holds() {
    let fitted = MatchStage { use_fit: true, ..matching() };
    let decided = |probability: Option<f32>, required: Option<f32>| {
        let mut item = part(0.95, 0.1);
        if let Some(matched) = &mut item.matched {
            (matched.probability, matched.required_probability) = (probability, required);
        }
        let rules = Rules::default();
        let criteria = Criteria { rules: &rules, matching: Some(&fitted), anomaly: None, has_detector: false };
        match decide(&evidence(vec![item]), criteria) {
            Decision::Decided { verdict, reasons, .. } => (verdict, reasons),
            Decision::Ignored(reason) => panic!("ignored: {reason}"),
        }
    };
    assert_eq!(decided(Some(0.995), Some(0.99)), (Verdict::Pass, vec![]));
    assert_eq!(decided(Some(0.99), Some(0.99)), (Verdict::Hold, vec![Reason::ProbabilityLow]));
    assert_eq!(decided(Some(f32::NAN), Some(0.99)), (Verdict::Hold, vec![Reason::ProbabilityLow]));
    assert_eq!(decided(None, None), (Verdict::Hold, vec![Reason::NotFitted]));
}

#[test]
fn with_a_fit_a_part_of_no_catalogue_is_unknown_and_a_poor_one_is_not_accepted() {
    let stage = MatchStage { use_fit: true, unknown_probability: Some(0.9), ..matching() };
    let poor = MatchStage { min_quality_level: Some(QualityLevel::Silver), ..stage.clone() };
    let fail = Rules { unknown_part: UnknownPartRule::Fail, ..Rules::default() };
    let decided = |probability: f32, unknown: Option<f32>, stage: &MatchStage| {
        let mut item = part(0.95, 0.1);
        let matched = item.matched.as_mut().expect("a match");
        (matched.probability, matched.required_probability) = (Some(probability), Some(0.99));
        (matched.unknown_probability, matched.quality_level) = (unknown, Some(QualityLevel::Bronze));
        decide_with(item, stage, &fail)
    };
    assert_eq!(decided(0.02, Some(0.95), &stage), (Verdict::Fail, vec![Reason::PartUnknown]));
    assert_eq!(decided(0.02, Some(0.85), &stage), (Verdict::Hold, vec![Reason::ProbabilityLow]));
    assert_eq!(decided(0.02, Some(f32::NAN), &stage), (Verdict::Hold, vec![Reason::ProbabilityLow]));
    assert_eq!(decided(0.0, None, &stage), (Verdict::Hold, vec![Reason::ProbabilityLow]));
    assert_eq!(decided(0.995, Some(0.001), &stage), (Verdict::Pass, vec![]));
    assert_eq!(decided(0.995, Some(0.001), &poor), (Verdict::Hold, vec![Reason::QualityLevelLow]));
}
