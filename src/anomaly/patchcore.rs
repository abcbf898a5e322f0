//! Scores pictures against a bank.

use std::path::{Path, PathBuf};

use super::build::layers;
use super::map::{MapDrawer, ScoreMap};
use super::memory::SearchMode;
use super::patches::PatchGrid;
use super::score::normalise;
use super::{AnomalyError, Bank};
use crate::clock::Stopwatch;
use crate::inference::{FeatureModel, Host, ModelHealth, ModelManifest, ProviderPlan};
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
        host: impl Into<Host>,
        models: &Path,
        plan: &ProviderPlan,
    ) -> Result<PatchCore, AnomalyError> {
        let mut bank = Bank::open(dir)?;
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
        let model = FeatureModel::open(host, &model_manifest, plan)?;
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
        bank.memory_mut().set_search(SearchMode::Exact, search_threads);
        Ok(Self { bank, model, drawer, folder: dir.to_owned(), search_threads })
    }

    /// From now on search the bank so.
    pub fn set_search(&mut self, mode: SearchMode) {
        self.bank.memory_mut().set_search(mode, self.search_threads);
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

    /// How the model is doing, where stations share it.
    #[must_use]
    pub fn health(&self) -> &ModelHealth {
        self.model.health()
    }

    /// Summed time inside ONNX Runtime since the bank was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.model.session_ms()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{AnomalyError, FeatureModel, Image, ModelManifest, PatchCore, ProviderPlan};
    use crate::anomaly::{BankBuilder, BankOptions};
    use crate::inference::Runtime;

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
    }

    /// Grey noise; with a white square where `has_defect`.
    fn picture(seed: u64, has_defect: bool) -> Image {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bgr: Vec<u8> = (0..160 * 160 * 3).map(|_| random.u8(100..130)).collect();
        if has_defect {
            for y in 40..80 {
                bgr[(y * 160 + 100) * 3..(y * 160 + 140) * 3].fill(255);
            }
        }
        Image::from_bgr(160, 160, bgr).unwrap()
    }

    fn build(out: &Path) {
        let manifest = ModelManifest::load(&models().join("mobilenetv2")).unwrap();
        let model = FeatureModel::open(&Runtime::load(None).unwrap(), &manifest, &ProviderPlan::default()).unwrap();
        let options = BankOptions { input_px: Some((128, 128)), ..BankOptions::default() };
        let mut builder = BankBuilder::new(model, options).unwrap();
        (0..4).for_each(|seed| builder.add(&picture(seed, false)).unwrap());
        builder.finish(out).unwrap();
    }

    fn open(bank: &Path, models: &Path) -> Result<PatchCore, AnomalyError> {
        PatchCore::open(bank, &Runtime::load(None).unwrap(), models, &ProviderPlan::default())
    }

    #[test]
    fn a_defect_scores_above_the_threshold_and_the_map_peaks_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let bank = dir.path().join("bank");
        build(&bank);
        let mut scorer = open(&bank, &models()).unwrap();
        let good = scorer.score(&picture(99, false)).unwrap();
        let bad = scorer.score(&picture(99, true)).unwrap();
        assert!(good.evidence.score < 0.5 && bad.evidence.score > 0.5, "{:?} {:?}", good.evidence, bad.evidence);
        assert_eq!((bad.map.width, bad.map.height), (128, 128));
        let peak = bad.map.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        // the square lies at x 80..112 and y 32..64 of the map
        let (x, y) = (peak % 128, peak / 128);
        assert!((72..120).contains(&x) && (24..72).contains(&y), "peak at {x},{y}");
        assert!(good.evidence.area_above_ratio < bad.evidence.area_above_ratio);
    }

    #[test]
    fn a_bank_of_another_model_names_both_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (bank, folder) = (dir.path().join("bank"), dir.path().join("models/mobilenetv2"));
        build(&bank);
        std::fs::create_dir_all(&folder).unwrap();
        let text = std::fs::read_to_string(models().join("mobilenetv2/manifest.toml")).unwrap();
        let expected = ModelManifest::load(&models().join("mobilenetv2")).unwrap().sha256().to_string();
        let other = "0".repeat(64);
        std::fs::write(folder.join("manifest.toml"), text.replace(&expected, &other)).unwrap();
        let error = open(&bank, &dir.path().join("models")).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, AnomalyError::OtherModel { .. }), "{said}");
        assert!(said.contains(&expected) && said.contains(&other), "{said}");
    }
}
