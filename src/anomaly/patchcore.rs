//! Scores pictures against a bank.

use std::path::{Path, PathBuf};

use super::align::Aligner;
use super::cells::{SurfaceDrawer, WayBack};
use super::defects;
use super::describe::{Described, Describer, layers};
use super::map::ScoreMap;
use super::memory::{PatchDistances, SearchMode};
use super::score::normalise;
use super::{AnomalyError, Bank};
use crate::clock::Stopwatch;
use crate::inference::{FeatureModel, Host, ModelHealth, ModelManifest, ProviderPlan};
use crate::matching::faiss;
use crate::types::{AnomalyEvidence, Digest, Image, Provider, SurfaceReading};

/// What a picture's surface looks like to the bank.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyResult {
    pub evidence: AnomalyEvidence,
    /// Of the whole picture, stretched to the bank's canvas (the model's input, or all tiles of it).
    pub map: ScoreMap,
    /// The learnt picture that is most alike.
    pub nearest: Option<NearestPicture>,
    /// Registration, scaling, the model and the descriptors.
    pub backbone_ms: f32,
    pub search_ms: f32,
    pub map_ms: f32,
}

/// A learnt picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearestPicture {
    pub name: String,
    /// A small JPEG of it; the bank keeps those of its first pictures only.
    pub path: Option<PathBuf>,
}

/// A bank and the model it was built with.
#[derive(Debug)]
pub struct PatchCore {
    bank: Bank,
    describer: Describer,
    drawer: SurfaceDrawer,
    /// Groups that are compared with, and each one's reference where the bank registers.
    candidates: Vec<usize>,
    aligners: Vec<Aligner>,
    px_per_mm: Option<f32>,
    search_threads: usize,
}

/// Whether `model` is the one `bank` was built with.
pub(super) fn require_model(bank: &Bank, model: &FeatureModel) -> Result<(), AnomalyError> {
    let manifest = bank.manifest();
    let found = model.manifest().sha256();
    if found != manifest.model.sha256 {
        return Err(AnomalyError::OtherModel {
            bank: bank.folder().to_owned(),
            model: manifest.model.name.clone(),
            expected: manifest.model.sha256,
            found,
        });
    }
    let used = model.manifest().input_sha256();
    if manifest.model.input_sha256.is_some_and(|built| built != used) {
        return Err(AnomalyError::Preprocessing { bank: bank.folder().to_owned(), model: manifest.model.name.clone() });
    }
    let model_layers = layers(model);
    if model_layers != manifest.layers {
        return Err(AnomalyError::Shape {
            bank: bank.folder().to_owned(),
            what: "feature maps of the model",
            expected: format!("{:?}", manifest.layers),
            found: format!("{model_layers:?}"),
        });
    }
    Ok(())
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
        bank.set_search(SearchMode::Exact, plan.intra_threads.unwrap_or(1));
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
        require_model(&bank, &model)?;
        let mut describer = Describer::new(model, (manifest.input_px[0], manifest.input_px[1]), manifest.view.clone());
        let shape = describer.probe()?;
        let expected = (manifest.grid[0], manifest.grid[1], manifest.dim);
        let found = (shape.grid.0, shape.grid.1, shape.dim);
        if found != expected {
            return Err(AnomalyError::Shape {
                bank: dir.to_owned(),
                what: "grid and descriptor of the model's features",
                expected: format!("{expected:?}"),
                found: format!("{found:?}"),
            });
        }
        let drawer = SurfaceDrawer::new(shape.cells, shape.canvas_px);
        let aligners = bank.groups().iter().filter_map(|group| group.aligner(&manifest.view)).collect();
        let candidates = (0..bank.groups().len()).collect();
        let search_threads = plan.intra_threads.unwrap_or(1);
        Ok(Self { bank, describer, drawer, candidates, aligners, px_per_mm: None, search_threads })
    }

    /// From now on search the bank so.
    pub fn set_search(&mut self, mode: SearchMode) {
        self.bank.set_search(mode, self.search_threads);
    }

    /// Compare with this group alone instead of the one that is most alike.
    ///
    /// # Errors
    /// When the bank has no such group.
    pub fn only_group(mut self, name: &str) -> Result<Self, AnomalyError> {
        let number = self.bank.group_number(name)?;
        self.candidates = vec![number];
        self.aligners = self.bank.groups()[number].aligner(&self.bank.manifest().view).into_iter().collect();
        Ok(self)
    }

    /// Give areas in mm² as well, at this scale of the camera.
    #[must_use]
    pub fn with_scale(mut self, px_per_mm: Option<f32>) -> Self {
        self.px_per_mm = px_per_mm.filter(|scale| scale.is_finite() && *scale > 0.0);
        self
    }

    /// Score a whole picture.
    ///
    /// # Errors
    /// When the part is not where the bank's reference shows it ([`AnomalyError::is_not_in_place`]), the model fails, or its
    /// features do not fit the bank.
    pub fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError> {
        let watch = Stopwatch::start();
        let described = self.describer.describe(image, &self.aligners.iter().collect::<Vec<_>>())?;
        let backbone_ms = watch.ms();
        let watch = Stopwatch::start();
        faiss::set_threads(self.search_threads);
        let (number, found) = self.nearest_group(&described)?;
        let group = &self.bank.groups()[number];
        let score_raw = group.memory.image_score(&described.patches, &found)?;
        let nearest = group.nearest_picture(found.ids()).map(|picture| NearestPicture {
            name: picture.name.clone(),
            path: picture.thumbnail.as_ref().map(|name| self.bank.folder().join(name)),
        });
        let search_ms = watch.ms();
        let watch = Stopwatch::start();
        let map = self.map_of_frame(&found, &described, number, image);
        let mut evidence = self.evidence(score_raw, number, &map);
        let frame_px = (image.width_px(), image.height_px());
        let (regions, region_count) = defects::find(&map, evidence.pixel_threshold_raw, frame_px, self.px_per_mm);
        let counted = self.drawer.len();
        let unseen_ratio = described.seen.as_ref().map_or(0.0, |seen| 1.0 - seen.len() as f32 / counted as f32);
        evidence.surface = SurfaceReading {
            group: Some(self.bank.groups()[number].manifest.name.clone()).filter(|name| !name.is_empty()),
            correlation: described.correlation,
            unseen_ratio,
            nearest_picture: nearest.as_ref().map(|picture| picture.name.clone()),
            regions,
            region_count,
        };
        Ok(AnomalyResult { evidence, map, nearest, backbone_ms, search_ms, map_ms: watch.ms() })
    }

    /// The group to compare with, and the patches' distances to it: the one whose reference fits best where there is
    /// registration, else the one with the least median distance. A defect moves few patches, so it does not move the
    /// median to another pose.
    fn nearest_group(&self, described: &Described) -> Result<(usize, PatchDistances), AnomalyError> {
        let groups = self.bank.groups();
        if let Some(index) = described.aligner_index {
            let number = self.candidates[index];
            return Ok((number, groups[number].memory.search(&described.patches)?));
        }
        let mut best: Option<(f32, usize, PatchDistances)> = None;
        for &number in &self.candidates {
            let found = groups[number].memory.search(&described.patches)?;
            let median = median(&found.distances);
            if best.as_ref().is_none_or(|(least, ..)| median < *least) {
                best = Some((median, number, found));
            }
        }
        let name = || AnomalyError::NoGroup { name: String::new(), known: "it has none".to_owned() };
        best.map(|(_, number, found)| (number, found)).ok_or_else(name)
    }

    fn map_of_frame(
        &mut self,
        found: &PatchDistances,
        described: &Described,
        number: usize,
        image: &Image,
    ) -> ScoreMap {
        let map = self.drawer.draw(&found.distances, described.seen.as_deref());
        let frame_px = (image.width_px(), image.height_px());
        let area = self.describer.view.area();
        let reference = self.bank.groups()[number].manifest.reference_px;
        match (described.warp, reference) {
            (Some(warp), Some([width, height])) => {
                WayBack { warp, reference_px: (width, height), frame_px, area }.map_of_frame(&map)
            }
            _ if self.describer.view.zoom => {
                let warp = super::align::Warp::IDENTITY;
                WayBack { warp, reference_px: frame_px, frame_px, area }.map_of_frame(&map)
            }
            _ => map,
        }
    }

    fn evidence(&self, score_raw: f32, number: usize, map: &ScoreMap) -> AnomalyEvidence {
        let group = &self.bank.groups()[number].manifest;
        let above = map.data.iter().filter(|value| **value > group.pixel_threshold_raw).count();
        AnomalyEvidence {
            score_raw,
            score: normalise(score_raw, group.image_threshold_raw),
            threshold: 0.5,
            image_threshold_raw: group.image_threshold_raw,
            pixel_threshold_raw: group.pixel_threshold_raw,
            map_min: map.data.iter().copied().fold(f32::INFINITY, f32::min),
            map_max: map.data.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            area_above_ratio: above as f32 / map.data.len().max(1) as f32,
            bank_sha256: self.bank.sha256(),
            surface: SurfaceReading::default(),
        }
    }

    #[must_use]
    pub fn bank(&self) -> &Bank {
        &self.bank
    }
}

impl super::Surface for PatchCore {
    fn score(&mut self, image: &Image) -> Result<AnomalyResult, AnomalyError> {
        PatchCore::score(self, image)
    }

    /// Opening it ran the model, to learn its grid.
    fn warm_up(&mut self) -> Result<(), AnomalyError> {
        Ok(())
    }

    fn bank_sha256(&self) -> Digest {
        self.bank.sha256()
    }

    fn model_sha256(&self) -> Digest {
        self.describer.model.manifest().sha256()
    }

    fn provider(&self) -> Provider {
        self.describer.model.provider()
    }

    fn is_fallback(&self) -> bool {
        self.describer.model.is_fallback()
    }

    fn session_ms(&self) -> f64 {
        self.describer.model.session_ms()
    }

    fn health(&self) -> &ModelHealth {
        self.describer.model.health()
    }
}

fn median(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    let middle = sorted.len() / 2;
    if sorted.is_empty() { f32::INFINITY } else { *sorted.select_nth_unstable_by(middle, f32::total_cmp).1 }
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
        // Of four alike, a fifth scores above them all one time in five.
        (0..12).for_each(|seed| builder.add(&picture(seed, false)).unwrap());
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

    /// A bank in `dir`, the folder of a model of the same name, and the text of its manifest, to be changed.
    fn bank_and_models(dir: &Path) -> (PathBuf, PathBuf, String) {
        let (bank, folder) = (dir.join("bank"), dir.join("models/mobilenetv2"));
        build(&bank);
        std::fs::create_dir_all(&folder).unwrap();
        (bank, folder, std::fs::read_to_string(models().join("mobilenetv2/manifest.toml")).unwrap())
    }

    #[test]
    fn a_bank_of_another_model_names_both_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (bank, folder, text) = bank_and_models(dir.path());
        let expected = ModelManifest::load(&models().join("mobilenetv2")).unwrap().sha256().to_string();
        let other = "0".repeat(64);
        std::fs::write(folder.join("manifest.toml"), text.replace(&expected, &other)).unwrap();
        let error = open(&bank, &dir.path().join("models")).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, AnomalyError::OtherModel { .. }), "{said}");
        assert!(said.contains(&expected) && said.contains(&other), "{said}");
    }

    #[test]
    fn a_bank_of_pictures_in_another_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (bank, folder, text) = bank_and_models(dir.path());
        std::fs::copy(models().join("mobilenetv2/model.onnx"), folder.join("model.onnx")).unwrap();
        std::fs::write(folder.join("manifest.toml"), &text).unwrap();
        assert!(open(&bank, &dir.path().join("models")).is_ok());
        std::fs::write(folder.join("manifest.toml"), text.replace("\"rgb\"", "\"bgr\"")).unwrap();
        let error = open(&bank, &dir.path().join("models")).unwrap_err();
        assert!(matches!(error, AnomalyError::Preprocessing { .. }), "{error}");
        assert!(error.to_string().contains("mobilenetv2"), "{error}");
    }
}
