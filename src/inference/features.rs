//! Feature models: one embedding per crop, or maps of a whole area.

use super::engine::Engine;
use super::manifest::{ModelKind, ModelManifest, OutputRole, OutputSpec};
use super::outputs::Wanted;
use super::preprocess::{Placement, Preprocessor};
use super::{Host, InferenceError, ModelHealth, NodeCounts, ProviderPlan};
use crate::types::{BoundingBox, Foreshortening, Image, Provider};

/// Crops that go through an accelerator at once: 32 × 3 × 224² f32 are 19 MB.
const ACCELERATOR_BATCH_MAX: usize = 32;

/// One output map of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMap {
    /// Pixels of the input per cell.
    pub stride: u32,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// `[channels, height, width]`.
    pub data: Vec<f32>,
}

/// The maps of one picture, in the manifest's order.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMaps {
    pub maps: Vec<FeatureMap>,
}

/// A part of a picture to look at.
#[derive(Debug, Clone, Copy)]
pub struct Crop<'a> {
    pub image: &'a Image,
    pub area: BoundingBox,
    /// Seen in a mirror: it is turned back before it is looked at.
    pub is_mirrored: bool,
}

/// What an embedder says of some crops.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Looks {
    /// `[N, embedding_dim]` of length 1.
    pub embeddings: Vec<f32>,
    /// Of each crop; `None` where the model does not say or said no numbers.
    pub foreshortenings: Vec<Option<Foreshortening>>,
    /// As `embeddings`, of the same crops mirrored left to right; empty where that was not asked.
    pub mirrored: Vec<f32>,
}

/// A backbone with feature maps and, where its manifest names one, an embedding.
#[derive(Debug)]
pub struct FeatureModel {
    engine: Engine,
    /// Holds the input, kept between calls.
    preprocessor: Preprocessor,
    /// The embedding and, where the model has one, the foreshortening.
    embedding: Option<Wanted>,
    maps: Option<Wanted>,
}

impl FeatureModel {
    /// Load the model on the plan's best usable provider, one session with its own threads.
    ///
    /// # Errors
    /// When the file's digest, an input or an output differs from the manifest, or no allowed provider is usable.
    pub fn open(
        host: impl Into<Host>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<FeatureModel, InferenceError> {
        if manifest.kind() != ModelKind::Features {
            let (model, found) = (manifest.name().to_owned(), manifest.kind().as_str());
            return Err(InferenceError::Kind { model, expected: "features", found });
        }
        let engine = host.into().open(manifest, plan)?;
        let name = manifest.name();
        let first = |role| manifest.outputs_of(role).next().cloned();
        let embedding: Option<OutputSpec> = first(OutputRole::Embedding);
        let looks = |spec| std::iter::once(spec).chain(first(OutputRole::Foreshortening)).collect();
        let embedding = embedding.map(|spec| Wanted::new(looks(spec), name)).transpose()?;
        let maps: Vec<OutputSpec> = manifest.outputs_of(OutputRole::Features).cloned().collect();
        let maps = if maps.is_empty() { None } else { Some(Wanted::new(maps.into(), name)?) };
        let preprocessor = Preprocessor::new(manifest.input(), engine.facts().element);
        Ok(Self { engine, preprocessor, embedding, maps })
    }

    /// Embeddings `[N, embedding_dim]` f32 of length 1, one per crop: [`FeatureModel::look`] without what else it says.
    ///
    /// # Errors
    /// When the model has no embedding or the runtime fails.
    pub fn embed(&mut self, crops: &[(&Image, BoundingBox)], input_px: u32) -> Result<Vec<f32>, InferenceError> {
        let crops = crops.iter().map(|&(image, area)| Crop { image, area, is_mirrored: false });
        Ok(self.look(&crops.collect::<Vec<_>>(), input_px, false)?.embeddings)
    }

    /// What the model says of each crop, letterboxed into a square of `input_px`; `and_mirrored`: looking at each twice.
    ///
    /// The CPU runs one crop at a time, accelerators up to 32 at once. With one CPU thread a batch gains nothing: at 160 px
    /// 3.35 ms a crop alone and 3.20 in sevens, at 224 px 5.7 alone and 6.2 to 6.6 in batches.
    ///
    /// # Errors
    /// When the model has no embedding or the runtime fails.
    pub fn look(&mut self, crops: &[Crop<'_>], input_px: u32, and_mirrored: bool) -> Result<Looks, InferenceError> {
        let own_max = if self.provider() == Provider::Cpu { 1 } else { ACCELERATOR_BATCH_MAX };
        let batch_max = self.engine.shared_pictures_max().unwrap_or(own_max);
        // Mirrored ones come last, and in batches with the others.
        let plain = crops.iter().map(|crop| (crop, false));
        let mirrored = crops.iter().filter(|_| and_mirrored).map(|crop| (crop, true));
        self.look_batched(&plain.chain(mirrored).collect::<Vec<_>>(), input_px, batch_max)
    }

    /// Each crop, and whether it is the look at it mirrored.
    fn look_batched(
        &mut self,
        crops: &[(&Crop<'_>, bool)],
        input_px: u32,
        batch_max: usize,
    ) -> Result<Looks, InferenceError> {
        let model = self.manifest().name().to_owned();
        let dim = self.embedding_dim();
        let Some(wanted) = &self.embedding else {
            return Err(InferenceError::OutputMissing { model, role: "embedding" });
        };
        let failed = |message| resize_error(&model, input_px, input_px, message);
        let mut looks = Looks {
            embeddings: Vec::with_capacity(crops.len() * dim),
            foreshortenings: Vec::with_capacity(crops.len()),
            mirrored: Vec::new(),
        };
        let range = wanted.specs().get(1).and_then(|spec| spec.range);
        for batch in crops.chunks(batch_max) {
            self.preprocessor.begin(batch.len(), (input_px, input_px)).map_err(failed)?;
            for (slot, (crop, is_second)) in batch.iter().enumerate() {
                self.preprocessor.fill(slot, crop.image, &crop.area, Placement::Centre).map_err(failed)?;
                // The second look at what was seen in a mirror is at what the camera saw.
                if crop.is_mirrored != *is_second {
                    self.preprocessor.mirror(slot);
                }
            }
            self.engine.run(&self.preprocessor, wanted, |outputs| {
                let values = outputs.first().map_or(&[][..], |output| &output.values);
                if values.len() != batch.len() * dim {
                    let message = format!("{} embedding values for {} crops of {dim}", values.len(), batch.len());
                    return Err(InferenceError::Run { model: model.clone(), message });
                }
                for (row, (_, is_second)) in values.chunks_exact(dim).zip(batch) {
                    push_normalised(if *is_second { &mut looks.mirrored } else { &mut looks.embeddings }, row);
                }
                let logits = outputs.get(1).map_or(&[][..], |output| &output.values);
                let bins = (logits.len() / batch.len()).max(1);
                let mut rows = logits.chunks_exact(bins);
                let next = |_| Foreshortening::of_logits(range?, rows.next()?);
                let shown = batch.iter().filter(|(_, is_second)| !is_second).count();
                looks.foreshortenings.extend((0..shown).map(next));
                Ok(())
            })?;
        }
        Ok(looks)
    }

    /// Feature maps of `area`, stretched to `input_px` (width, height).
    ///
    /// # Errors
    /// When the model has no feature maps or the runtime fails.
    pub fn features(
        &mut self,
        image: &Image,
        area: BoundingBox,
        input_px: (u32, u32),
    ) -> Result<FeatureMaps, InferenceError> {
        let model = self.manifest().name().to_owned();
        let Some(wanted) = &self.maps else {
            return Err(InferenceError::OutputMissing { model, role: "features" });
        };
        let (width_px, height_px) = input_px;
        let failed = |message| resize_error(&model, width_px, height_px, message);
        self.preprocessor.begin(1, input_px).map_err(failed)?;
        self.preprocessor.fill(0, image, &area, Placement::Stretch).map_err(failed)?;
        self.engine.run(&self.preprocessor, wanted, |outputs| {
            let maps = wanted.specs().iter().zip(outputs).map(|(spec, output)| FeatureMap {
                stride: spec.stride.unwrap_or(1),
                channels: output.shape[1],
                height: output.shape[2],
                width: output.shape[3],
                data: output.values.to_vec(),
            });
            Ok(FeatureMaps { maps: maps.collect() })
        })
    }

    /// Length of an embedding; 0 where the model has none.
    #[must_use]
    pub fn embedding_dim(&self) -> usize {
        let spec = self.embedding.as_ref().and_then(|wanted| wanted.specs().first());
        spec.map_or(0, |spec| spec.channels.unwrap_or(0) as usize)
    }

    /// Where most of the graph's operators run, as the runtime reports it of the loaded session.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.engine.facts().provider
    }

    /// Operators per provider, as the runtime reports them.
    #[must_use]
    pub fn nodes(&self) -> &NodeCounts {
        &self.engine.facts().nodes
    }

    /// Whether [`FeatureModel::provider`] is not the plan's first.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.engine.facts().is_fallback
    }

    /// Summed time inside the runtime since the model was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.engine.session_ms()
    }

    /// How the model is doing, where stations share it.
    #[must_use]
    pub fn health(&self) -> &ModelHealth {
        self.engine.health()
    }

    #[must_use]
    pub fn manifest(&self) -> &ModelManifest {
        &self.engine.facts().manifest
    }
}

pub(super) fn resize_error(model: &str, width_px: u32, height_px: u32, message: String) -> InferenceError {
    InferenceError::Resize { model: model.to_owned(), width_px, height_px, message }
}

/// Append `row` scaled to length 1; a row of zeros stays.
fn push_normalised(embeddings: &mut Vec<f32>, row: &[f32]) {
    let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    let factor = if length > 0.0 { length.recip() } else { 0.0 };
    embeddings.extend(row.iter().map(|value| value * factor));
}
