//! Imported anomaly graphs (PaDiM, EfficientAD, STFPM, PatchCore … as anomalib exports them) as judges of a surface.
//!
//! Raw scores and maps keep the graph's scale, counted from the manifest's `lowest`; the normalised score is anomalib's
//! (`(raw − threshold) / (max − min) + 0.5`) between 0.05 and 0.95 and bends towards 0 and 1 beyond, where anomalib cuts
//! it off: a cut loses the order of scores. Overload: none of its own.

use super::{AnomalyError, AnomalyResult, ScoreMap, defects};
use crate::clock::Stopwatch;
use crate::inference::{
    AnomalyModel, AnomalySpec, Host, ModelHealth, ModelManifest, Normalisation, ProviderPlan, RawMap, ScoreScale,
};
use crate::types::{AnomalyEvidence, Digest, Image, Provider, SurfaceReading};

/// Distance from 0 and from 1 at which the normalised score begins to bend.
const BEND: f32 = 0.05;
/// How far a graph that normalises may leave 0 to 1 by rounding.
const ROUNDING: f32 = 1e-3;

/// A graph and what its manifest says about its scale.
#[derive(Debug)]
pub struct GraphSurface {
    model: AnomalyModel,
    spec: AnomalySpec,
    /// Of the manifest, which names the graph and its thresholds.
    manifest_sha256: Digest,
    px_per_mm: Option<f32>,
}

impl GraphSurface {
    /// # Errors
    /// When the model is no anomaly graph, its files cannot be used, or no allowed provider is usable.
    pub fn open(
        manifest: &ModelManifest,
        host: impl Into<Host>,
        plan: &ProviderPlan,
    ) -> Result<GraphSurface, AnomalyError> {
        let model = AnomalyModel::open(host, manifest, plan)?;
        let message = "its manifest has no [anomaly] table".to_owned();
        let graph = manifest.name().to_owned();
        let spec = manifest.anomaly().cloned().ok_or(AnomalyError::Graph { model: graph, message })?;
        Ok(Self { model, spec, manifest_sha256: manifest.text_sha256(), px_per_mm: None })
    }

    /// Give areas of defects in mm² as well, at this scale of the camera.
    #[must_use]
    pub fn with_scale(mut self, px_per_mm: Option<f32>) -> Self {
        self.px_per_mm = px_per_mm.filter(|scale| scale.is_finite() && *scale > 0.0);
        self
    }

    /// Where the map is above the threshold; nowhere for the single pixel of a graph without a map.
    fn reading(&self, map: &ScoreMap, threshold: f32, image: &Image) -> SurfaceReading {
        if map.data.len() == 1 {
            return SurfaceReading::default();
        }
        let frame_px = (image.width_px(), image.height_px());
        let (regions, region_count) = defects::find(map, threshold, frame_px, self.px_per_mm);
        SurfaceReading { regions, region_count, ..SurfaceReading::default() }
    }

    fn fault(&self, message: String) -> AnomalyError {
        AnomalyError::Graph { model: self.model.manifest().name().to_owned(), message }
    }

    /// A value counted from the lowest.
    fn counted(&self, value: f32) -> Result<f32, AnomalyError> {
        if !value.is_finite() {
            return Err(AnomalyError::NotFinite { model: self.model.manifest().name().to_owned() });
        }
        let slack = if self.spec.normalisation == Normalisation::InGraph { ROUNDING } else { 0.0 };
        if self.spec.normalisation == Normalisation::InGraph && value > 1.0 + slack {
            let message = format!(
                "it gave {value}, above 1, though its manifest says that it normalises; set `normalisation = \"min_max\"` \
                 with the numbers of its metadata.json"
            );
            return Err(self.fault(message));
        }
        let counted = value - self.spec.lowest;
        if counted < -slack {
            let message = format!(
                "it gave {value}, below `anomaly.lowest` ({}) of its manifest; set that to the least it can give",
                self.spec.lowest
            );
            return Err(self.fault(message));
        }
        Ok(counted.max(0.0))
    }

    fn map_of(&self, raw: RawMap) -> Result<ScoreMap, AnomalyError> {
        let data = raw.data.into_iter().map(|value| self.counted(value)).collect::<Result<Vec<f32>, _>>()?;
        Ok(ScoreMap { width: raw.width, height: raw.height, data })
    }
}

impl super::Surface for GraphSurface {
    /// The score is the graph's, or the highest of its map where it gives none; a graph without a map has one of a single
    /// pixel.
    fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError> {
        let watch = Stopwatch::start();
        let raw = self.model.run(image)?;
        let backbone_ms = watch.ms();
        let watch = Stopwatch::start();
        let map = raw.map.map(|map| self.map_of(map)).transpose()?;
        let score = raw.score.map(|score| self.counted(score)).transpose()?;
        let highest = |map: &ScoreMap| map.data.iter().copied().fold(0.0, f32::max);
        let Some(score_raw) = score.or_else(|| map.as_ref().map(highest)) else {
            return Err(self.fault("it gives neither a score nor a map".to_owned()));
        };
        let (image_scale, pixel_scale) = (self.spec.image_scale(), self.spec.pixel_scale());
        let (map, pixel_scale) = match map {
            Some(map) => (map, pixel_scale),
            None => (ScoreMap { width: 1, height: 1, data: vec![score_raw] }, image_scale),
        };
        let pixel_threshold_raw = pixel_scale.threshold - self.spec.lowest;
        let above = map.data.iter().filter(|value| **value > pixel_threshold_raw).count();
        let score = match self.spec.normalisation {
            Normalisation::InGraph => score_raw.min(1.0),
            Normalisation::MinMax => normalised(score_raw + self.spec.lowest, image_scale),
        };
        if let Some(is_odd) = raw.is_odd.filter(|is_odd| raw.score.is_some() && contradicts(*is_odd, score)) {
            let word = if is_odd { "anomalous" } else { "normal" };
            let message = format!(
                "it calls the picture {word} and gives it a score of {score}, where 0.5 is the threshold; export it with its \
                 normalisation and an `image_sensitivity` of 0.5, or set `normalisation = \"min_max\"` with the numbers of \
                 its training"
            );
            return Err(self.fault(message));
        }
        let evidence = AnomalyEvidence {
            score_raw,
            score,
            threshold: 0.5,
            image_threshold_raw: image_scale.threshold - self.spec.lowest,
            pixel_threshold_raw,
            map_min: map.data.iter().copied().fold(f32::INFINITY, f32::min),
            map_max: map.data.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            area_above_ratio: above as f32 / map.data.len().max(1) as f32,
            bank_sha256: self.manifest_sha256,
            surface: self.reading(&map, pixel_threshold_raw, image),
        };
        Ok(AnomalyResult { evidence, map, nearest: None, backbone_ms, search_ms: 0.0, map_ms: watch.ms() })
    }

    fn warm_up(&mut self) -> Result<(), AnomalyError> {
        let [width_px, height_px] = self.model.manifest().input().size_px;
        let bytes = vec![128; width_px as usize * height_px as usize * 3];
        let grey = Image::from_bgr(width_px, height_px, bytes).map_err(|error| self.fault(error.to_string()))?;
        self.model.run(&grey)?;
        Ok(())
    }

    fn bank_sha256(&self) -> Digest {
        self.manifest_sha256
    }

    fn model_sha256(&self) -> Digest {
        self.model.manifest().sha256()
    }

    fn provider(&self) -> Provider {
        self.model.provider()
    }

    fn is_fallback(&self) -> bool {
        self.model.is_fallback()
    }

    fn session_ms(&self) -> f64 {
        self.model.session_ms()
    }

    fn health(&self) -> &ModelHealth {
        self.model.health()
    }
}

/// Whether a graph's own label says other than a normalised score, beyond rounding.
fn contradicts(is_odd: bool, score: f32) -> bool {
    if is_odd { score < 0.5 - ROUNDING } else { score > 0.5 + ROUNDING }
}

/// 0 to 1, 0.5 at the threshold, never falling; the slope does not jump where it bends.
fn normalised(raw: f32, scale: ScoreScale) -> f32 {
    let linear = (raw - scale.threshold) / (scale.max - scale.min) + 0.5;
    if linear > 1.0 - BEND {
        1.0 - BEND * ((1.0 - BEND - linear) / BEND).exp()
    } else if linear < BEND {
        BEND * ((linear - BEND) / BEND).exp()
    } else {
        linear
    }
}

#[cfg(test)]
mod tests {
    use super::{ScoreScale, contradicts, normalised};

    #[test]
    fn a_label_and_a_score_on_different_sides_of_the_threshold_contradict_each_other() {
        assert!(contradicts(true, 0.3) && contradicts(false, 0.7));
        assert!(!contradicts(true, 0.7) && !contradicts(false, 0.3) && !contradicts(true, 1.0));
        assert!(!contradicts(true, 0.4999) && !contradicts(false, 0.5001) && !contradicts(false, 0.5), "rounding");
    }

    #[test]
    fn the_score_is_anomalibs_in_the_middle_and_keeps_its_order_at_the_ends() {
        let scale = ScoreScale { threshold: 3.0, min: 1.0, max: 5.0 };
        assert_eq!(normalised(3.0, scale), 0.5);
        assert!((normalised(4.0, scale) - 0.75).abs() < 1e-6 && (normalised(2.0, scale) - 0.25).abs() < 1e-6);
        let scores: Vec<f32> = [0.0, 0.5, 1.0, 1.5, 3.0, 4.7, 4.9, 5.0, 5.5].map(|raw| normalised(raw, scale)).to_vec();
        assert!(scores.windows(2).all(|pair| pair[0] < pair[1]), "{scores:?}");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        assert!((0.0..=1.0).contains(&normalised(f32::MAX, scale)) && (0.0..=1.0).contains(&normalised(0.0, scale)));
    }
}
