//! Imported anomaly graphs: their scores and maps as they come, and what their manifest says about the scale.
//!
//! anomalib wrote two kinds. Until 1.x a graph gives raw scores (one output: a map, or one number) and `metadata.json`
//! beside it holds the thresholds and the lowest and highest score seen: [`Normalisation::MinMax`]. Since 2.0 the graph
//! itself gives `pred_score` and `anomaly_map` between 0 and 1 with the threshold at 0.5: [`Normalisation::InGraph`].
//! Belongs to one worker; overload: none of its own.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::features::resize_error;
use super::manifest::{ModelKind, ModelManifest, OutputRole, OutputSpec};
use super::outputs::Wanted;
use super::preprocess::{Placement, Preprocessor};
use super::{Host, InferenceError, ModelHealth, ProviderPlan};
use crate::types::{BoundingBox, Image, Provider};

/// Who brings scores to the scale on which 0.5 is the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Loupe, by the numbers of the manifest.
    MinMax,
    /// The graph.
    InGraph,
}

/// Threshold, lowest and highest score of one scale, as anomalib stored them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreScale {
    pub threshold: f32,
    pub min: f32,
    pub max: f32,
}

/// `[anomaly]` of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnomalySpec {
    pub normalisation: Normalisation,
    /// Of the image score.
    pub image: Option<ScoreScale>,
    /// Of the map; that of the image score where it is absent.
    pub pixel: Option<ScoreScale>,
    /// What raw scores are counted from: below 0 for graphs whose scores are (FastFlow, U-Flow).
    #[serde(default)]
    pub lowest: f32,
}

/// 0 to 1 with the threshold in the middle.
const UNIT: ScoreScale = ScoreScale { threshold: 0.5, min: 0.0, max: 1.0 };

impl AnomalySpec {
    /// First contradiction.
    pub(super) fn check(&self) -> Result<(), String> {
        match (self.normalisation, self.image, self.pixel) {
            (Normalisation::InGraph, None, None) => {}
            (Normalisation::InGraph, _, _) => {
                return Err("`anomaly.image` and `anomaly.pixel` are for `normalisation = \"min_max\"` only".to_owned());
            }
            (Normalisation::MinMax, None, _) => {
                return Err(
                    "`anomaly.image` is missing: threshold, min and max stand in anomalib's metadata.json, which \
                            `loupe model probe` reads where it lies beside the graph"
                        .to_owned(),
                );
            }
            (Normalisation::MinMax, Some(_), _) => {}
        }
        if !self.lowest.is_finite() {
            return Err(format!("`anomaly.lowest` is {}", self.lowest));
        }
        for (key, scale) in [("image", self.image), ("pixel", self.pixel)] {
            let Some(ScoreScale { threshold, min, max }) = scale else { continue };
            let is_finite = threshold.is_finite() && min.is_finite() && max.is_finite();
            if !(is_finite && max > min && threshold >= self.lowest) {
                return Err(format!(
                    "`anomaly.{key}` is threshold {threshold}, min {min}, max {max}: they must be finite, max above min and \
                     the threshold not below `lowest` ({})",
                    self.lowest
                ));
            }
        }
        Ok(())
    }

    /// Scale of the image score.
    #[must_use]
    pub fn image_scale(&self) -> ScoreScale {
        self.image.unwrap_or(UNIT)
    }

    /// Scale of the map.
    #[must_use]
    pub fn pixel_scale(&self) -> ScoreScale {
        self.pixel.unwrap_or_else(|| self.image_scale())
    }
}

/// What the graph gave for one picture, on its own scale, nothing checked but the shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct RawAnomaly {
    pub score: Option<f32>,
    pub map: Option<RawMap>,
    /// Whether the graph calls the picture odd.
    pub is_odd: Option<bool>,
}

/// Anomaly of each place.
#[derive(Debug, Clone, PartialEq)]
pub struct RawMap {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`.
    pub data: Vec<f32>,
}

/// A graph of kind `anomaly`.
#[derive(Debug)]
pub struct AnomalyModel {
    engine: Engine,
    preprocessor: Preprocessor,
    placement: Placement,
    wanted: Wanted,
}

impl AnomalyModel {
    /// Load the model on the plan's best usable provider.
    ///
    /// # Errors
    /// When the model is of another kind, a file's digest, an input or an output differs from the manifest, or no allowed
    /// provider is usable.
    pub fn open(
        host: impl Into<Host>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<AnomalyModel, InferenceError> {
        if manifest.kind() != ModelKind::Anomaly {
            let (model, found) = (manifest.name().to_owned(), manifest.kind().as_str());
            return Err(InferenceError::Kind { model, expected: "anomaly", found });
        }
        let engine = host.into().open(manifest, plan)?;
        let specs: Arc<[OutputSpec]> = manifest.outputs().into();
        let wanted = Wanted::new(specs, manifest.name())?;
        let preprocessor = Preprocessor::new(manifest.input(), engine.facts().element);
        let placement = Placement::of(manifest.input().resize, manifest.letterbox_placement());
        Ok(Self { engine, preprocessor, placement, wanted })
    }

    /// What the graph says of a whole picture.
    ///
    /// # Errors
    /// When the runtime fails, or an output has another shape than a score or a map.
    pub fn run(&mut self, image: &Image) -> Result<RawAnomaly, InferenceError> {
        let facts = Arc::clone(self.engine.facts());
        let (manifest, model) = (&facts.manifest, facts.manifest.name());
        let [width_px, height_px] = manifest.input().size_px;
        let failed = |message| resize_error(model, width_px, height_px, message);
        let batch = facts.batch.unwrap_or(1);
        self.preprocessor.begin(batch, (width_px, height_px)).map_err(failed)?;
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        for slot in 0..batch {
            self.preprocessor.fill(slot, image, &area, self.placement).map_err(failed)?;
        }
        self.engine.run(&self.preprocessor, &self.wanted, |outputs| {
            let mut raw = RawAnomaly { score: None, map: None, is_odd: None };
            for (spec, output) in manifest.outputs().iter().zip(outputs) {
                let (shape, values) = (&output.shape, &output.values);
                let differs = |expected: String| InferenceError::Shape {
                    model: model.to_owned(),
                    what: format!("shape of output `{}`", spec.name),
                    expected,
                    found: format!("{shape:?}"),
                };
                if spec.role != OutputRole::AnomalyMap {
                    let is_one_each = values.len() == batch && shape.first().is_none_or(|first| *first == batch);
                    let value = values.first().filter(|_| is_one_each);
                    let value = *value.ok_or_else(|| differs(format!("one number, [{batch}]")))?;
                    match spec.role {
                        OutputRole::AnomalyLabel => raw.is_odd = Some(value != 0.0),
                        _ => raw.score = Some(value),
                    }
                    continue;
                }
                let input = (width_px as usize, height_px as usize);
                let (width, height) = map_sides(shape, batch, input).ok_or_else(|| {
                    differs(format!("a map of the picture, [{batch}, 1, {height_px}, {width_px}] or coarser"))
                })?;
                raw.map = Some(RawMap { width, height, data: values[..width * height].to_vec() });
            }
            Ok(raw)
        })
    }

    /// Where most of the graph's operators run.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.engine.facts().provider
    }

    /// Whether [`AnomalyModel::provider`] is not the plan's first.
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

/// Width and height of a map of one channel that covers an input of this size with equal cells, at most one a pixel.
fn map_sides(shape: &[usize], batch: usize, (width, height): (usize, usize)) -> Option<(usize, usize)> {
    let (rows, columns) = match *shape {
        [found, 1, rows, columns] | [found, rows, columns] if found == batch => (rows, columns),
        [rows, columns] if batch == 1 => (rows, columns),
        _ => return None,
    };
    let is_map = rows > 0 && columns > 0 && rows <= height && columns <= width;
    // The same shape as the input, within one cell.
    let is_alike = (rows * width).abs_diff(columns * height) <= width.max(height);
    (is_map && is_alike).then_some((columns, rows))
}

#[cfg(test)]
mod tests {
    use super::{AnomalySpec, Normalisation, ScoreScale, map_sides};

    #[test]
    fn maps_of_another_shape_than_the_picture_are_refused() {
        let input = (96, 64);
        for good in [vec![1, 1, 64, 96], vec![1, 64, 96], vec![64, 96], vec![1, 1, 8, 12], vec![1, 1, 2, 3]] {
            assert!(map_sides(&good, 1, input).is_some(), "{good:?}");
        }
        for bad in [
            vec![1, 2, 64, 96],
            vec![2, 1, 64, 96],
            vec![1, 1, 96, 64],
            vec![1, 1, 128, 192],
            vec![1, 1, 0, 0],
            vec![96],
        ] {
            assert!(map_sides(&bad, 1, input).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn scales_that_cannot_be_are_named() {
        let scale = |threshold, min, max| Some(ScoreScale { threshold, min, max });
        let spec = |normalisation, image| AnomalySpec { normalisation, image, pixel: None, lowest: 0.0 };
        assert!(spec(Normalisation::MinMax, scale(1.0, 0.0, 2.0)).check().is_ok());
        assert!(spec(Normalisation::InGraph, None).check().is_ok());
        let check = |spec: AnomalySpec, expected: &str| {
            let error = spec.check().unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(spec(Normalisation::MinMax, None), "metadata.json");
        check(spec(Normalisation::InGraph, scale(1.0, 0.0, 2.0)), "min_max");
        check(spec(Normalisation::MinMax, scale(1.0, 2.0, 2.0)), "max above min");
        check(spec(Normalisation::MinMax, scale(f32::NAN, 0.0, 2.0)), "finite");
        check(spec(Normalisation::MinMax, scale(-1.0, -3.0, 2.0)), "lowest");
    }
}
