//! Builds a bank out of pictures of good parts, and finds its thresholds from the same pictures.

use std::collections::BTreeMap;
use std::path::Path;

use super::bank::{BankModel, Layer, format_name};
use super::folds::Training;
use super::patches::PatchGrid;
use super::score;
use super::{AnomalyError, Bank, BankManifest};
use crate::inference::{FeatureModel, OutputRole};
use crate::limits;
use crate::types::{BoundingBox, Image};

/// One to learn from and one to try it on.
pub const IMAGES_MIN: usize = 2;
/// All training descriptors are held at once, and once more in each worker: 2 GiB are 5 000 pictures of 784 × 128.
pub const FEATURE_BYTES_MAX: usize = 2 << 30;

/// How a bank is built.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BankOptions {
    /// Share of the training patches kept, above 0, at most 1.
    pub coreset_ratio: f64,
    /// Width and height whole pictures are stretched to; the model's own where `None`.
    pub input_px: Option<(u32, u32)>,
    /// Decides the first choice and the projection.
    pub seed: u64,
}

impl Default for BankOptions {
    /// One patch in ten, the model's input size, seed 0.
    fn default() -> Self {
        Self { coreset_ratio: 0.1, input_px: None, seed: 0 }
    }
}

/// Collects the descriptors of good pictures, then makes the bank.
#[derive(Debug)]
pub struct BankBuilder {
    model: FeatureModel,
    options: BankOptions,
    input_px: (u32, u32),
    /// Width, height and descriptor length, the same for every picture.
    grid: Option<(usize, usize, usize)>,
    /// `[images × patches, dim]`.
    descriptors: Vec<f32>,
    image_count: usize,
}

impl BankBuilder {
    /// # Errors
    /// When an option is out of bounds.
    pub fn new(model: FeatureModel, options: BankOptions) -> Result<Self, AnomalyError> {
        if !(options.coreset_ratio > 0.0 && options.coreset_ratio <= 1.0) {
            let value = options.coreset_ratio.to_string();
            return Err(AnomalyError::Option { option: "coreset ratio", value, allowed: "above 0 and at most 1" });
        }
        let [width, height] = model.manifest().input().size_px;
        let input_px = options.input_px.unwrap_or((width, height));
        if [input_px.0, input_px.1].iter().any(|side| !(32..=limits::IMAGE_SIDE_PX_MAX).contains(side)) {
            let value = format!("{}x{}", input_px.0, input_px.1);
            return Err(AnomalyError::Option { option: "input size", value, allowed: "32 to 16384 pixels a side" });
        }
        Ok(Self { model, options, input_px, grid: None, descriptors: Vec::new(), image_count: 0 })
    }

    /// Learn one picture of a good part.
    ///
    /// # Errors
    /// When the model fails on it or the descriptors grow beyond the limit.
    pub fn add(&mut self, image: &Image) -> Result<(), AnomalyError> {
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        let maps = self.model.features(image, area, self.input_px)?;
        let model = || self.model.manifest().name().to_owned();
        let grid = PatchGrid::from_maps(&maps).map_err(|message| AnomalyError::Features { model: model(), message })?;
        if !grid.data.iter().all(|value| value.is_finite()) {
            return Err(AnomalyError::NotFinite { model: model() });
        }
        let size = (grid.width, grid.height, grid.dim);
        if *self.grid.get_or_insert(size) != size {
            let message = format!("{:?} after {size:?}", self.grid);
            return Err(AnomalyError::Features { model: model(), message });
        }
        let bytes = (self.descriptors.len() + grid.data.len()) * size_of::<f32>();
        if bytes > FEATURE_BYTES_MAX {
            return Err(AnomalyError::TooLarge { images: self.image_count + 1, bytes });
        }
        self.descriptors.extend_from_slice(&grid.data);
        self.image_count += 1;
        Ok(())
    }

    /// Choose the coreset, find the thresholds and write the bank to `out`, which must not exist.
    ///
    /// The thresholds come from up to five folds: the pictures of each are scored by a bank of the others, built the
    /// same way, so that no picture is judged by its own patches (see `score::threshold`).
    ///
    /// # Errors
    /// When there are too few pictures, a search fails or the bank cannot be written.
    pub fn finish(self, out: &Path) -> Result<Bank, AnomalyError> {
        let (Some((width, height, dim)), IMAGES_MIN..) = (self.grid, self.image_count) else {
            return Err(AnomalyError::TooFewImages { got: self.image_count });
        };
        if out.exists() {
            return Err(AnomalyError::Exists { path: out.to_owned() });
        }
        let training = Training {
            descriptors: &self.descriptors,
            image_count: self.image_count,
            grid: (width, height),
            dim,
            map_px: (self.input_px.0 as usize, self.input_px.1 as usize),
            coreset_ratio: self.options.coreset_ratio,
            seed: self.options.seed,
        };
        let (memory, good) = training.learn()?;
        let threshold =
            |scores: &[f32]| score::threshold(scores).ok_or(AnomalyError::TooFewImages { got: self.image_count });
        let manifest = BankManifest {
            format: format_name(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            model: BankModel {
                name: self.model.manifest().name().to_owned(),
                version: self.model.manifest().version().to_owned(),
                sha256: self.model.manifest().sha256(),
            },
            layers: layers(&self.model),
            input_px: [self.input_px.0, self.input_px.1],
            grid: [width, height],
            dim,
            coreset_ratio: self.options.coreset_ratio,
            coreset_count: memory.len(),
            seed: self.options.seed,
            train_count: self.image_count,
            image_threshold_raw: threshold(&good.image)?,
            pixel_threshold_raw: threshold(&good.map_max)?,
            files: BTreeMap::new(),
        };
        Bank::write(out, manifest, memory)
    }
}

/// The feature maps of a model, as descriptors hold them.
pub(super) fn layers(model: &FeatureModel) -> Vec<Layer> {
    let outputs = model.manifest().outputs_of(OutputRole::Features);
    let layer = |spec: &crate::inference::OutputSpec| Layer {
        output: spec.name.clone(),
        stride: spec.stride.unwrap_or(1),
        channels: spec.channels.unwrap_or(0) as usize,
    };
    outputs.map(layer).collect()
}
