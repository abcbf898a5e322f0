//! From metrics to reasons: what of a frame is in doubt.

use serde::{Deserialize, Serialize};

use super::metrics::FrameMetrics;
use super::phash;
use super::ssim::Similarity;
use crate::types::{Digest, FrameQuality, QaStatus, Reason};

/// A value this close to its limit, relative to it, makes the status `warn`.
const WARN_RATIO: f32 = 0.1;

/// Limits of a frame's metrics, all at working resolution (≤ 640 px wide). A key left out has its default; 0 switches a
/// minimum off and `inf` a maximum. The defaults catch a broken picture and let every scene pass that shows something;
/// a station is tightened from its own frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QualityLimits {
    /// Variance of the Laplacian; below it the frame is blurred. Default: 2.
    pub min_sharpness: Option<f32>,
    /// Standard deviation of the noise, grey levels. Default: 12.
    pub max_noise_level: Option<f32>,
    /// Mean grey, 0 to 1; below it the frame is dark. Default: 0.06.
    pub min_brightness_ratio: Option<f32>,
    /// Mean grey, 0 to 1; above it the frame is bright. Default: 0.95.
    pub max_brightness_ratio: Option<f32>,
    /// Standard deviation of grey over 127.5, 0 to 1. Default: 0.02.
    pub min_contrast_ratio: Option<f32>,
    /// Mean HSV saturation, 0 to 1. Default: none, for grey parts on a grey belt are common.
    pub min_saturation_ratio: Option<f32>,
    /// Share of pixels at the ends of the scale, 0 to 1. Default: 0.5.
    pub max_clipped_ratio: Option<f32>,
    /// Mean SSIM against the recipe's reference picture, −1 to 1. Default: none.
    pub min_ssim_score: Option<f32>,
    /// Milliseconds from capture to the gate. Default: none, right for files; cameras are given
    /// [`QualityLimits::LIVE_AGE_MS_MAX`].
    pub max_age_ms: Option<f32>,
    /// Hamming distance of the perceptual hash up to which a frame counts as a duplicate of the one before, 0 to 64.
    /// Default: none, for a calm scene looks alike from frame to frame.
    pub max_duplicate_distance: Option<u32>,
    /// Hold a frame that is identical to the pixel to the one before, as a hung camera delivers it. Default: true.
    /// Drawn or strongly compressed videos repeat frames; switch it off for them.
    pub hold_identical: bool,
    /// Width every frame must have, pixels. Default: any.
    pub width_px: Option<u32>,
    /// Height every frame must have, pixels. Default: any.
    pub height_px: Option<u32>,
}

impl Default for QualityLimits {
    fn default() -> Self {
        Self {
            min_sharpness: Some(2.0),
            max_noise_level: Some(12.0),
            min_brightness_ratio: Some(0.06),
            max_brightness_ratio: Some(0.95),
            min_contrast_ratio: Some(0.02),
            min_saturation_ratio: None,
            max_clipped_ratio: Some(0.5),
            min_ssim_score: None,
            max_age_ms: None,
            max_duplicate_distance: None,
            hold_identical: true,
            width_px: None,
            height_px: None,
        }
    }
}

impl QualityLimits {
    /// Age beyond which a live frame no longer shows what stands before the camera, milliseconds.
    pub const LIVE_AGE_MS_MAX: f32 = 2_000.0;

    /// What is wrong with the limits themselves, `(key, words)`; empty where nothing is.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let ranges = [
            ("min_sharpness", self.min_sharpness, 0.0, f32::INFINITY),
            ("max_noise_level", self.max_noise_level, 0.0, f32::INFINITY),
            ("min_brightness_ratio", self.min_brightness_ratio, 0.0, 1.0),
            ("max_brightness_ratio", self.max_brightness_ratio, 0.0, f32::INFINITY),
            ("min_contrast_ratio", self.min_contrast_ratio, 0.0, 1.0),
            ("min_saturation_ratio", self.min_saturation_ratio, 0.0, 1.0),
            ("max_clipped_ratio", self.max_clipped_ratio, 0.0, f32::INFINITY),
            ("min_ssim_score", self.min_ssim_score, -1.0, 1.0),
            ("max_age_ms", self.max_age_ms, 0.0, f32::INFINITY),
        ];
        let mut faults: Vec<_> = ranges
            .into_iter()
            .filter(|(_, value, low, high)| value.is_some_and(|value| !(*low..=*high).contains(&value)))
            .map(|(key, _, low, high)| (key, format!("must lie between {low} and {high}")))
            .collect();
        if let (Some(low), Some(high)) = (self.min_brightness_ratio, self.max_brightness_ratio)
            && low > high
        {
            faults.push(("min_brightness_ratio", "lies above max_brightness_ratio".to_owned()));
        }
        if self.max_duplicate_distance.is_some_and(|distance| distance > 64) {
            faults.push(("max_duplicate_distance", "must lie between 0 and 64".to_owned()));
        }
        faults
    }
}

/// The camera's frame before, for the duplicate checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousFrame {
    pub phash: u64,
    pub sha256: Digest,
}

/// Judge a frame. Every issue is a doubt and makes the verdict HOLD; `age_ms` is the time from capture to now.
#[must_use]
pub fn gate(
    metrics: &FrameMetrics,
    limits: &QualityLimits,
    age_ms: f32,
    previous: Option<&PreviousFrame>,
    frame_sha256: Digest,
) -> FrameQuality {
    let duplicate_distance = previous.map(|previous| phash::distance(previous.phash, metrics.phash));
    let is_identical = previous.is_some_and(|previous| previous.sha256 == frame_sha256);
    let is_similar =
        duplicate_distance.zip(limits.max_duplicate_distance).is_some_and(|(distance, limit)| distance <= limit);
    let mut judge = Judge::default();
    judge.levels(metrics, limits);
    judge.size(metrics, limits);
    judge.max(age_ms, limits.max_age_ms, Reason::FrameStale);
    if is_identical && limits.hold_identical {
        judge.issues.push(Reason::FrameFrozen);
    } else if is_similar {
        judge.issues.push(Reason::FrameDuplicate);
    }
    FrameQuality {
        sharpness: metrics.sharpness,
        noise_level: metrics.noise_level,
        contrast_ratio: metrics.contrast_ratio,
        brightness_ratio: metrics.brightness_ratio,
        saturation_ratio: metrics.saturation_ratio,
        clipped_ratio: metrics.clipped_ratio,
        ssim_score: metrics.similarity.ssim(),
        phash: metrics.phash,
        duplicate_distance,
        is_duplicate: is_identical || is_similar,
        age_ms,
        status: judge.status(),
        issues: judge.issues,
        views: Vec::new(),
    }
}

/// The quality of a frame of several views: one in doubt puts the frame in doubt.
#[must_use]
pub fn of_views(views: Vec<FrameQuality>) -> Option<FrameQuality> {
    let worse = |a: &&FrameQuality, b: &&FrameQuality| {
        a.issues.len().cmp(&b.issues.len()).then(b.sharpness.total_cmp(&a.sharpness))
    };
    let worst = views.iter().max_by(worse)?.clone();
    if views.len() == 1 {
        return Some(worst);
    }
    let mut issues = worst.issues.clone();
    for issue in views.iter().flat_map(|view| &view.issues) {
        if !issues.contains(issue) {
            issues.push(*issue);
        }
    }
    Some(FrameQuality { is_duplicate: views.iter().any(|view| view.is_duplicate), issues, views, ..worst })
}

#[derive(Debug, Default)]
struct Judge {
    issues: Vec<Reason>,
    is_near: bool,
    is_unmeasured: bool,
}

impl Judge {
    fn levels(&mut self, metrics: &FrameMetrics, limits: &QualityLimits) {
        self.min(metrics.sharpness, limits.min_sharpness, Reason::FrameBlurred);
        self.max(metrics.noise_level, limits.max_noise_level, Reason::FrameNoisy);
        self.min(metrics.brightness_ratio, limits.min_brightness_ratio, Reason::FrameDark);
        self.max(metrics.brightness_ratio, limits.max_brightness_ratio, Reason::FrameBright);
        self.min(metrics.contrast_ratio, limits.min_contrast_ratio, Reason::FrameLowContrast);
        self.min(metrics.saturation_ratio, limits.min_saturation_ratio, Reason::FrameLowSaturation);
        self.max(metrics.clipped_ratio, limits.max_clipped_ratio, Reason::FrameClipped);
        if let Similarity::Ssim(score) = metrics.similarity {
            self.min(score, limits.min_ssim_score, Reason::FrameUnlikeReference);
        }
    }

    fn size(&mut self, metrics: &FrameMetrics, limits: &QualityLimits) {
        let is_other = limits.width_px.is_some_and(|width_px| width_px != metrics.width_px)
            || limits.height_px.is_some_and(|height_px| height_px != metrics.height_px);
        if is_other || metrics.similarity == Similarity::OtherSize {
            self.issues.push(Reason::FrameWrongSize);
        }
    }

    fn min(&mut self, value: f32, limit: Option<f32>, reason: Reason) {
        let Some(limit) = limit else { return };
        if value < limit {
            self.issues.push(reason);
        }
        self.is_near |= value < limit + limit.abs() * WARN_RATIO;
        self.unmeasured(value, reason);
    }

    fn max(&mut self, value: f32, limit: Option<f32>, reason: Reason) {
        let Some(limit) = limit else { return };
        if value > limit {
            self.issues.push(reason);
        }
        self.is_near |= value > limit - limit.abs() * WARN_RATIO;
        self.unmeasured(value, reason);
    }

    /// What is no number cannot be judged, and is held for it.
    fn unmeasured(&mut self, value: f32, reason: Reason) {
        if value.is_nan() {
            self.is_unmeasured = true;
            self.issues.push(reason);
        }
    }

    fn status(&self) -> QaStatus {
        match (self.is_unmeasured, self.issues.is_empty(), self.is_near) {
            (true, _, _) => QaStatus::Uncertain,
            (false, false, _) => QaStatus::Fail,
            (false, true, true) => QaStatus::Warn,
            (false, true, false) => QaStatus::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quality::testing::{adjusted, blurred, noise, pattern};
    use crate::quality::{Reference, measure};
    use crate::types::Image;

    fn judged(image: &Image, limits: &QualityLimits) -> FrameQuality {
        gate(&measure(image, None), limits, 0.0, None, Digest::of(image.bgr()))
    }

    fn check(image: &Image, expected: &[Reason]) {
        assert_eq!(judged(image, &QualityLimits::default()).issues, expected);
    }

    #[test]
    fn each_fault_crosses_its_own_limit() {
        let scene = pattern(640, 480);
        check(&scene, &[]);
        check(&blurred(&scene, 12), &[Reason::FrameBlurred]);
        check(&noise(&scene, 20.0), &[Reason::FrameNoisy]);
        check(&adjusted(&scene, 0.11, 0.0), &[Reason::FrameDark]);
        check(&adjusted(&scene, 0.1, 225.0), &[]);
        check(&adjusted(&scene, 0.5, 215.0), &[Reason::FrameBright, Reason::FrameClipped]);
        check(&adjusted(&scene, 4.0, -250.0), &[Reason::FrameClipped]);
        check(&adjusted(&scene, 0.02, 100.0), &[Reason::FrameBlurred, Reason::FrameLowContrast]);
    }

    #[test]
    fn colour_and_reference_limits_apply_where_set() {
        let scene = pattern(320, 240);
        let grey = Image::from_bgr(2, 2, vec![90; 12]).unwrap();
        let limits = QualityLimits { min_saturation_ratio: Some(0.02), ..QualityLimits::default() };
        assert!(judged(&grey, &limits).issues.contains(&Reason::FrameLowSaturation));
        let limits = QualityLimits { min_ssim_score: Some(0.9), ..QualityLimits::default() };
        let reference = Reference::new(&scene);
        let against =
            |image: &Image| gate(&measure(image, Some(&reference)), &limits, 0.0, None, Digest::of(image.bgr())).issues;
        assert_eq!(against(&scene), []);
        assert_eq!(against(&noise(&scene, 11.0)), [Reason::FrameUnlikeReference]);
        assert_eq!(against(&pattern(300, 240)), [Reason::FrameWrongSize]);
    }

    #[test]
    fn identical_is_frozen_alike_is_duplicate_and_old_is_stale() {
        let scene = pattern(320, 240);
        let metrics = measure(&scene, None);
        let sha256 = Digest::of(scene.bgr());
        let previous = PreviousFrame { phash: metrics.phash, sha256 };
        let mut limits = QualityLimits::default();
        let quality = gate(&metrics, &limits, 0.0, Some(&previous), sha256);
        assert_eq!((quality.issues, quality.is_duplicate), (vec![Reason::FrameFrozen], true));
        let other = Digest::of(b"other pixels");
        assert_eq!(gate(&metrics, &limits, 0.0, Some(&previous), other).issues, []);
        limits.max_duplicate_distance = Some(0);
        let quality = gate(&metrics, &limits, 0.0, Some(&previous), other);
        assert_eq!((quality.issues, quality.duplicate_distance), (vec![Reason::FrameDuplicate], Some(0)));
        limits = QualityLimits { max_age_ms: Some(QualityLimits::LIVE_AGE_MS_MAX), ..QualityLimits::default() };
        assert_eq!(gate(&metrics, &limits, 2_000.5, None, sha256).issues, [Reason::FrameStale]);
        assert_eq!(gate(&metrics, &limits, 1_000.0, None, sha256).issues, []);
    }

    #[test]
    fn nan_is_uncertain_and_near_is_a_warning() {
        let metrics = FrameMetrics { sharpness: f32::NAN, ..measure(&pattern(64, 64), None) };
        let quality = gate(&metrics, &QualityLimits::default(), 0.0, None, Digest::of(b""));
        assert_eq!((quality.status, quality.issues), (QaStatus::Uncertain, vec![Reason::FrameBlurred]));
        let metrics = FrameMetrics { sharpness: 2.1, ..metrics };
        let quality = gate(&metrics, &QualityLimits::default(), 0.0, None, Digest::of(b""));
        assert_eq!((quality.status, quality.issues), (QaStatus::Warn, vec![]));
    }

    #[test]
    fn limits_read_from_toml_with_defaults_and_name_their_faults() {
        let limits: QualityLimits = toml::from_str("min_sharpness = 0\nmax_noise_level = inf").unwrap();
        assert_eq!((limits.min_sharpness, limits.max_clipped_ratio), (Some(0.0), Some(0.5)));
        assert!(limits.faults().is_empty());
        assert!(toml::from_str::<QualityLimits>("min_sharpnes = 1").is_err());
        let limits: QualityLimits =
            toml::from_str("min_ssim_score = 2\nmin_sharpness = nan\nmin_brightness_ratio = 0.99").unwrap();
        let keys: Vec<_> = limits.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["min_sharpness", "min_ssim_score", "min_brightness_ratio"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn worse_is_never_judged_better(radius in 1_u32..6, sigma in 1.0_f32..15.0, gain in 0.1_f32..0.9) {
            let scene = pattern(160, 120);
            let metrics = measure(&scene, None);
            prop_assert!(measure(&blurred(&scene, radius), None).sharpness < metrics.sharpness);
            prop_assert!(measure(&noise(&scene, sigma), None).noise_level > metrics.noise_level);
            let dimmed = measure(&adjusted(&scene, gain, 0.0), None);
            prop_assert!(dimmed.brightness_ratio < metrics.brightness_ratio);
            prop_assert!(dimmed.contrast_ratio < metrics.contrast_ratio);
        }
    }
}
