//! Scores pictures against a bank.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build::layers;
use super::map::{MapDrawer, ScoreMap};
use super::patches::PatchGrid;
use super::score::normalise;
use super::{AnomalyError, Bank};
use crate::clock::Stopwatch;
use crate::inference::{FeatureModel, ModelManifest, ProviderPlan, Runtime};
use crate::matching::faiss;
use crate::types::{AnomalyEvidence, BoundingBox, Digest, Image, Provider};

/// What a picture's surface looks like to the bank.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyResult {
    pub evidence: AnomalyEvidence,
    /// Of the model's input size; the picture is stretched to it.
    pub map: ScoreMap,
    /// Scaling, the model and the descriptors.
    pub backbone_ms: f32,
    pub search_ms: f32,
    pub map_ms: f32,
}

/// A bank and the model it was built with.
#[derive(Debug)]
pub struct PatchCore {
    bank: Bank,
    model: FeatureModel,
    drawer: MapDrawer,
    folder: PathBuf,
    search_threads: usize,
}

impl PatchCore {
    /// Open the bank in `dir` and its model, `models/<name>`.
    ///
    /// # Errors
    /// When the bank is damaged, its model is missing or another one than it was built with, or the model cannot run.
    pub fn open(
        dir: &Path,
        runtime: &Arc<Runtime>,
        models: &Path,
        plan: &ProviderPlan,
    ) -> Result<PatchCore, AnomalyError> {
        let bank = Bank::open(dir)?;
        let manifest = bank.manifest();
        let model_manifest = ModelManifest::load(&models.join(&manifest.model.name))?;
        if model_manifest.sha256() != manifest.model.sha256 {
            return Err(AnomalyError::OtherModel {
                bank: dir.to_owned(),
                model: manifest.model.name.clone(),
                expected: manifest.model.sha256,
                found: model_manifest.sha256(),
            });
        }
        let model = FeatureModel::open(runtime, &model_manifest, plan)?;
        let model_layers = layers(&model);
        if model_layers != manifest.layers {
            return Err(AnomalyError::Shape {
                bank: dir.to_owned(),
                what: "feature maps of the model",
                expected: format!("{:?}", manifest.layers),
                found: format!("{model_layers:?}"),
            });
        }
        let [width, height] = manifest.input_px.map(|side| side as usize);
        let drawer = MapDrawer::new((manifest.grid[0], manifest.grid[1]), (width, height));
        let search_threads = plan.intra_threads.unwrap_or(1);
        Ok(Self { bank, model, drawer, folder: dir.to_owned(), search_threads })
    }

    /// Score a whole picture.
    ///
    /// # Errors
    /// When the model fails, or its features do not fit the bank.
    pub fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError> {
        let watch = Stopwatch::start();
        let manifest = self.bank.manifest();
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        let maps = self.model.features(image, area, (manifest.input_px[0], manifest.input_px[1]))?;
        let patches = PatchGrid::from_maps(&maps)
            .map_err(|message| AnomalyError::Features { model: manifest.model.name.clone(), message })?;
        let expected = (manifest.grid[0], manifest.grid[1], manifest.dim);
        let found = (patches.width, patches.height, patches.dim);
        if found != expected {
            return Err(AnomalyError::Shape {
                bank: self.folder.clone(),
                what: "grid and descriptor of the model's features",
                expected: format!("{expected:?}"),
                found: format!("{found:?}"),
            });
        }
        let backbone_ms = watch.ms();
        let watch = Stopwatch::start();
        faiss::set_threads(self.search_threads);
        let memory = self.bank.memory();
        let distances = memory.search(&patches.data)?;
        let score_raw = memory.image_score(&patches.data, &distances)?;
        let search_ms = watch.ms();
        let watch = Stopwatch::start();
        let map = self.drawer.draw(&distances.distances);
        let evidence = self.evidence(score_raw, &map);
        Ok(AnomalyResult { evidence, map, backbone_ms, search_ms, map_ms: watch.ms() })
    }

    fn evidence(&self, score_raw: f32, map: &ScoreMap) -> AnomalyEvidence {
        let manifest = self.bank.manifest();
        let above = map.data.iter().filter(|value| **value > manifest.pixel_threshold_raw).count();
        AnomalyEvidence {
            score_raw,
            score: normalise(score_raw, manifest.image_threshold_raw),
            threshold: 0.5,
            image_threshold_raw: manifest.image_threshold_raw,
            pixel_threshold_raw: manifest.pixel_threshold_raw,
            map_min: map.data.iter().copied().fold(f32::INFINITY, f32::min),
            map_max: map.data.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            area_above_ratio: above as f32 / map.data.len().max(1) as f32,
            bank_sha256: self.bank.sha256(),
        }
    }

    #[must_use]
    pub fn bank(&self) -> &Bank {
        &self.bank
    }

    #[must_use]
    pub fn bank_sha256(&self) -> Digest {
        self.bank.sha256()
    }

    #[must_use]
    pub fn model_sha256(&self) -> Digest {
        self.model.manifest().sha256()
    }

    /// Where the model really runs.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.model.provider()
    }

    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.model.is_fallback()
    }

    /// Summed time inside ONNX Runtime since the bank was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.model.session_ms()
    }
}
