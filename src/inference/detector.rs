//! Detector models: raw rows; the room `locate` decodes them.

use std::sync::Arc;

use super::features::resize_error;
use super::manifest::{ModelKind, ModelManifest, OutputRole, OutputSpec};
use super::preprocess::{Letterbox, Placement, Preprocessor};
use super::session::{ModelSession, Selection, values_of};
use super::{InferenceError, NodeCounts, ProviderPlan, Runtime};
use crate::types::{BoundingBox, Image, Provider};

/// What a detector gave for one picture, undecoded.
#[derive(Debug, Clone, PartialEq)]
pub struct RawDetections {
    pub rows: usize,
    pub columns: usize,
    /// `[rows, columns]`.
    pub data: Vec<f32>,
    /// How the picture lies in the model's input.
    pub letterbox: Letterbox,
}

/// A detector with one output of role `detections`.
#[derive(Debug)]
pub struct DetectorModel {
    session: ModelSession,
    preprocessor: Preprocessor,
    input: Vec<f32>,
    output: OutputSpec,
    selection: Selection,
}

impl DetectorModel {
    /// Load the model on the plan's best usable provider.
    ///
    /// # Errors
    /// When the file's digest, an input or an output differs from the manifest, or no allowed provider is usable.
    pub fn open(
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<DetectorModel, InferenceError> {
        let model = manifest.name().to_owned();
        if manifest.kind() != ModelKind::Detector {
            return Err(InferenceError::Kind { model, expected: "detector", found: manifest.kind().as_str() });
        }
        let Some(output) = manifest.outputs_of(OutputRole::Detections).next().cloned() else {
            return Err(InferenceError::OutputMissing { model, role: "detections" });
        };
        let session = ModelSession::open(runtime, manifest, plan)?;
        let selection = session.select([output.name.as_str()].into_iter())?;
        let preprocessor = Preprocessor::new(manifest.input());
        Ok(Self { session, preprocessor, input: Vec::new(), output, selection })
    }

    /// Run on the whole picture at the manifest's size, scaled as a whole to the top left corner (as YOLOX trains).
    ///
    /// # Errors
    /// When the runtime fails.
    pub fn raw(&mut self, image: &Image) -> Result<RawDetections, InferenceError> {
        let model = self.session.manifest().name().to_owned();
        let [width_px, height_px] = self.session.manifest().input().size_px;
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        self.input.resize(3 * width_px as usize * height_px as usize, 0.0);
        let letterbox = self
            .preprocessor
            .fill(image, &area, (width_px, height_px), Placement::TopLeft, &mut self.input)
            .map_err(|message| resize_error(&model, width_px, height_px, message))?;
        let outputs = self.session.run(&self.input, (1, width_px, height_px), &self.selection)?;
        let (shape, values) = values_of(&outputs, &self.output, &model)?;
        Ok(RawDetections { rows: shape[1], columns: shape[2], data: values.to_vec(), letterbox })
    }

    /// Where most of the graph's operators run, as the runtime reports it of the loaded session.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.session.provider()
    }

    /// Operators per provider, as the runtime reports them.
    #[must_use]
    pub fn nodes(&self) -> &NodeCounts {
        self.session.nodes()
    }

    /// Whether [`DetectorModel::provider`] is not the plan's first.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.session.is_fallback()
    }

    /// Summed time inside the runtime since the model was opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.session.session_ms()
    }

    #[must_use]
    pub fn manifest(&self) -> &ModelManifest {
        self.session.manifest()
    }
}
