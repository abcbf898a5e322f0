//! Detector models: raw outputs; the room `locate` decodes them.

use std::sync::Arc;

use super::engine::Engine;
use super::features::resize_error;
use super::manifest::{ModelKind, ModelManifest, OutputRole, OutputSpec};
use super::outputs::Wanted;
use super::preprocess::{Letterbox, Placement, Preprocessor};
use super::{Host, InferenceError, ModelHealth, NodeCounts, ProviderPlan};
use crate::types::{BoundingBox, Image, Provider};

/// Areas that go through an accelerator at once: 8 × 3 × 640² f32 are 39 MB.
const ACCELERATOR_BATCH_MAX: usize = 8;

/// One output for one picture, undecoded.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTensor<'o> {
    pub name: &'o str,
    pub role: OutputRole,
    /// Of the grid it belongs to, where its manifest names one.
    pub stride: Option<u32>,
    /// Without the batch.
    pub shape: Vec<usize>,
    pub values: &'o [f32],
}

/// What a detector gave for one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct RawOutputs<'o> {
    /// In the manifest's order.
    pub tensors: Vec<RawTensor<'o>>,
    /// Width and height of the input.
    pub input_px: [u32; 2],
}

impl<'o> RawOutputs<'o> {
    /// The first output of a role.
    #[must_use]
    pub fn get(&self, role: OutputRole) -> Option<&RawTensor<'o>> {
        self.tensors.iter().find(|tensor| tensor.role == role)
    }
}

/// A detector, whatever its layout.
#[derive(Debug)]
pub struct DetectorModel {
    engine: Engine,
    preprocessor: Preprocessor,
    placement: Placement,
    wanted: Wanted,
    batch_max: usize,
}

impl DetectorModel {
    /// Load the model on the plan's best usable provider.
    ///
    /// # Errors
    /// When a file's digest, an input or an output differs from the manifest, or no allowed provider is usable.
    pub fn open(
        host: impl Into<Host>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<DetectorModel, InferenceError> {
        let model = manifest.name().to_owned();
        if manifest.kind() != ModelKind::Detector {
            return Err(InferenceError::Kind { model, expected: "detector", found: manifest.kind().as_str() });
        }
        let engine = host.into().open(manifest, plan)?;
        let facts = engine.facts();
        let specs: Arc<[OutputSpec]> =
            manifest.outputs().iter().filter(|output| output.role.is_of_detector()).cloned().collect();
        let wanted = Wanted::new(specs, &model)?;
        let preprocessor = Preprocessor::new(manifest.input(), facts.element);
        let placement = Placement::of(manifest.input().resize, manifest.letterbox_placement());
        // One picture at a time keeps a CPU's caches warm; accelerators want more.
        let batch_max = match (facts.batch, facts.provider) {
            (Some(batch), _) => batch,
            (None, Provider::Cpu) => engine.shared_pictures_max().unwrap_or(1),
            (None, _) => engine.shared_pictures_max().unwrap_or(ACCELERATOR_BATCH_MAX),
        };
        Ok(Self { engine, preprocessor, placement, wanted, batch_max })
    }

    /// Run on each of `areas` (frame pixels) at the manifest's size; `each` hears the area's index, what the graph gave and
    /// how the area lies in the input. A graph with a fixed batch is filled up with the last area.
    ///
    /// # Errors
    /// When the runtime fails, or an output does not belong to a batch.
    pub fn run(
        &mut self,
        image: &Image,
        areas: &[BoundingBox],
        mut each: impl FnMut(usize, &RawOutputs<'_>, &Letterbox),
    ) -> Result<(), InferenceError> {
        let facts = Arc::clone(self.engine.facts());
        let manifest = &facts.manifest;
        let specs = Arc::clone(self.wanted.specs());
        let [width_px, height_px] = manifest.input().size_px;
        let failed = |message| resize_error(manifest.name(), width_px, height_px, message);
        for (chunk_index, chunk) in areas.chunks(self.batch_max).enumerate() {
            let batch = facts.batch.unwrap_or(chunk.len());
            self.preprocessor.begin(batch, (width_px, height_px)).map_err(failed)?;
            let mut letterboxes = Vec::with_capacity(batch);
            for slot in 0..batch {
                let area = &chunk[slot.min(chunk.len() - 1)];
                letterboxes.push(self.preprocessor.fill(slot, image, area, self.placement).map_err(failed)?);
            }
            self.engine.run(&self.preprocessor, &self.wanted, |outputs| {
                for (slot, letterbox) in letterboxes.iter().enumerate().take(chunk.len()) {
                    let mut tensors = Vec::with_capacity(outputs.len());
                    for (spec, output) in specs.iter().zip(outputs) {
                        let found = of_picture(&output.shape, &output.values, slot, batch);
                        let (shape, values) = found.ok_or_else(|| {
                            let (model, what) =
                                (manifest.name().to_owned(), format!("shape of output `{}`", spec.name));
                            let (expected, found) = (format!("[{batch}, ...]"), format!("{:?}", output.shape));
                            InferenceError::Shape { model, what, expected, found }
                        })?;
                        tensors.push(RawTensor {
                            name: &spec.name,
                            role: spec.role,
                            stride: spec.stride,
                            shape,
                            values,
                        });
                    }
                    let raw = RawOutputs { tensors, input_px: [width_px, height_px] };
                    each(chunk_index * self.batch_max + slot, &raw, letterbox);
                }
                Ok(())
            })?;
        }
        Ok(())
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

    /// Whether [`DetectorModel::provider`] is not the plan's first.
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

/// One picture's part of an output. A graph of batch 1 may have left the batch out.
fn of_picture<'v>(shape: &[usize], values: &'v [f32], slot: usize, batch: usize) -> Option<(Vec<usize>, &'v [f32])> {
    match shape.split_first() {
        Some((first, rest)) if *first == batch => {
            let count: usize = rest.iter().product();
            Some((rest.to_vec(), values.get(slot * count..(slot + 1) * count)?))
        }
        _ if batch == 1 => Some((shape.to_vec(), values)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn a_batch_is_taken_apart_and_a_graph_without_batch_is_read_whole() {
        let values = Cow::Owned(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!(of_picture(&[2, 2], &values, 1, 2), Some((vec![2], &[3.0, 4.0][..])));
        assert_eq!(of_picture(&[1, 4], &values, 0, 1), Some((vec![4], &values[..])));
        assert_eq!(of_picture(&[4], &values, 0, 1), Some((vec![4], &values[..])));
        assert_eq!(of_picture(&[4], &values, 0, 2), None);
        assert_eq!(of_picture(&[2, 3], &values, 1, 2), None);
    }
}
