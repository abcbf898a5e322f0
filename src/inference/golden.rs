//! Goldens: `models/<name>/golden/` holds pictures and what the model must make of them, so that every machine can prove
//! that its provider gives the same numbers.
//!
//! An output is kept as its lowest and highest value in at most [`BLOCKS_MAX`] equal runs of values: small outputs (an
//! embedding of 256, a few boxes) exactly, large ones by their extremes, in a few kB. Replayed through the real
//! pre-processing on the provider that the plan leads to.
//!
//! Thread: the caller's; opens a session of its own and closes it. Overload: one case is one inference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::manifest::{GoldenTolerance, ModelManifest};
use super::outputs::Wanted;
use super::preprocess::{Placement, Preprocessor};
use super::session::ModelSession;
use super::{InferenceError, ProviderPlan, Runtime};
use crate::limits::IMAGE_SIDE_PX_MAX;
use crate::types::{BoundingBox, Digest, Image, Provider};

/// The folder beside a manifest.
pub const GOLDEN_FOLDER: &str = "golden";
/// What the folder's file is called.
pub const GOLDEN_FILE: &str = "golden.json";
/// Runs of values that an output is cut into at most: 2 × 256 numbers are about 5 kB of JSON.
const BLOCKS_MAX: usize = 256;
const FORMAT: u32 = 1;
/// Pixels of a case's input at most: 4 096², 200 MB of f32.
const PIXELS_MAX: u64 = 4_096 * 4_096;

/// Recorded cases of one model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenFile {
    format: u32,
    model_sha256: Digest,
    /// Provider and library that gave the numbers.
    recorded_on: String,
    cases: Vec<Case>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// File name in the golden folder.
    image: String,
    image_sha256: Digest,
    /// Width and height of the model's input in this case.
    size_px: [u32; 2],
    outputs: Vec<Expected>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    name: String,
    shape: Vec<usize>,
    low: Vec<f32>,
    /// Left out where every run is a single value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    high: Vec<f32>,
}

/// The goldens of one model.
#[derive(Debug, Clone)]
pub struct Golden {
    file: GoldenFile,
    folder: PathBuf,
}

/// What a replay gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoldenReport {
    pub model: String,
    pub model_sha256: Digest,
    /// Where most of the graph ran.
    pub provider: Provider,
    pub operators: BTreeMap<String, usize>,
    pub tolerance: GoldenTolerance,
    pub recorded_on: String,
    pub outputs: Vec<OutputReport>,
    pub passed: bool,
}

/// The worst value of one output of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputReport {
    pub image: String,
    pub output: String,
    pub expected: f32,
    pub found: f32,
    /// Between the two, and what was allowed there.
    pub difference: f32,
    pub allowed: f32,
    /// Values that are NaN or infinite.
    pub not_finite: usize,
    pub passed: bool,
}

impl GoldenReport {
    /// The outputs beyond the tolerance, in words with their numbers.
    #[must_use]
    pub fn faults(&self) -> String {
        let faults = self.outputs.iter().filter(|output| !output.passed).map(|output| {
            let OutputReport { image, output, expected, found, difference, allowed, not_finite, .. } = output;
            let broken = if *not_finite > 0 { format!(", {not_finite} values are no numbers") } else { String::new() };
            format!(
                "output `{output}` of {image} gave {found} instead of {expected} (off by {difference}, allowed {allowed}){broken}"
            )
        });
        faults.collect::<Vec<_>>().join("; ")
    }
}

impl Golden {
    /// The goldens beside `manifest`; `None` where the model has none.
    ///
    /// # Errors
    /// When the file cannot be read, or belongs to another model file.
    pub fn load(manifest: &ModelManifest) -> Result<Option<Golden>, InferenceError> {
        let folder = manifest.folder().join(GOLDEN_FOLDER);
        let path = folder.join(GOLDEN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(InferenceError::Read { path, source }),
        };
        let fault = |message: String| InferenceError::GoldenFile { path: path.clone(), message };
        let file: GoldenFile = serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        if file.format != FORMAT {
            return Err(fault(format!("its format is {}, this program reads {FORMAT}", file.format)));
        }
        if file.model_sha256 != manifest.sha256() {
            let message =
                format!("it was recorded from model {}, the manifest names {}", file.model_sha256, manifest.sha256());
            return Err(fault(message));
        }
        if file.cases.is_empty() {
            return Err(fault("it holds no case".to_owned()));
        }
        if let Some(case) = file.cases.iter().find(|case| Path::new(&case.image).components().count() != 1) {
            return Err(fault(format!("`{}` must be a file name in the golden folder", case.image)));
        }
        file.cases.iter().try_for_each(|case| check_case(case, manifest)).map_err(fault)?;
        Ok(Some(Golden { file, folder }))
    }

    /// The pictures of its cases.
    pub fn pictures(&self) -> impl Iterator<Item = PathBuf> {
        self.file.cases.iter().map(|case| self.folder.join(&case.image))
    }

    /// Run each case on the provider that `plan` leads to; `decode` turns a picture file into pixels.
    ///
    /// # Errors
    /// When the model or a picture cannot be used. A difference is no error but part of the report.
    pub fn verify(
        &self,
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
        decode: impl Fn(&Path) -> Result<Image, String>,
    ) -> Result<GoldenReport, InferenceError> {
        self.replay(&mut Replayer::open(runtime, manifest, plan)?, &decode)
    }

    /// Run each case on a session that is open already.
    ///
    /// # Errors
    /// As [`Golden::verify`].
    pub(super) fn replay(
        &self,
        replayer: &mut Replayer,
        decode: &dyn Fn(&Path) -> Result<Image, String>,
    ) -> Result<GoldenReport, InferenceError> {
        let facts = Arc::clone(replayer.session.facts());
        let manifest = &facts.manifest;
        let tolerance = manifest.golden_tolerance();
        let mut outputs = Vec::new();
        for case in &self.file.cases {
            let path = self.folder.join(&case.image);
            let fault = |message: String| InferenceError::GoldenFile { path: path.clone(), message };
            let found = Digest::of_file(&path).map_err(|source| InferenceError::Read { path: path.clone(), source })?;
            if found != case.image_sha256 {
                return Err(fault(format!(
                    "its sha256 is {found}, the golden was recorded from {}",
                    case.image_sha256
                )));
            }
            let image = decode(&path).map_err(fault)?;
            for (expected, found) in case.outputs.iter().zip(replayer.run(&image, case.size_px)?) {
                outputs.push(compare(&case.image, expected, &found, tolerance).map_err(fault)?);
            }
        }
        Ok(GoldenReport {
            model: manifest.name().to_owned(),
            model_sha256: manifest.sha256(),
            provider: facts.provider,
            operators: facts.nodes.by_name.clone(),
            tolerance,
            recorded_on: self.file.recorded_on.clone(),
            passed: outputs.iter().all(|output| output.passed),
            outputs,
        })
    }

    /// Record what the model makes of the pictures `(file name in the golden folder, digest of the file, pixels)` and write
    /// the golden file; the pictures are the caller's to store. The path that was written.
    ///
    /// # Errors
    /// When the model cannot be run, gives a value that is no number, or the file cannot be written.
    pub fn record(
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
        pictures: &[(String, Digest, Image)],
        size_px: [u32; 2],
    ) -> Result<PathBuf, InferenceError> {
        let folder = manifest.folder().join(GOLDEN_FOLDER);
        let path = folder.join(GOLDEN_FILE);
        let failed = |source| InferenceError::Write { path: path.clone(), source };
        check_size(size_px).map_err(|message| InferenceError::GoldenFile { path: path.clone(), message })?;
        let mut replayer = Replayer::open(runtime, manifest, plan)?;
        let mut cases = Vec::new();
        for (name, sha256, image) in pictures {
            let outputs = replayer.run(image, size_px)?;
            if let Some(broken) = outputs.iter().find(|output| output.not_finite > 0) {
                let message =
                    format!("output `{}` holds {} values that are no numbers", broken.name, broken.not_finite);
                return Err(InferenceError::Run { model: manifest.name().to_owned(), message });
            }
            let outputs = outputs.into_iter().map(Found::into_expected).collect();
            cases.push(Case { image: name.clone(), image_sha256: *sha256, size_px, outputs });
        }
        let version = runtime.build_info().split(['(', ',']).next().unwrap_or_default().trim();
        let recorded_on = format!("{} {version}", replayer.session.facts().provider).trim().to_owned();
        let file = GoldenFile { format: FORMAT, model_sha256: manifest.sha256(), recorded_on, cases };
        let mut text = serde_json::to_string(&file).map_err(|error| failed(error.into()))?;
        text.push('\n');
        std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)).map_err(failed)?;
        Ok(path)
    }
}

fn check_size([width_px, height_px]: [u32; 2]) -> Result<(), String> {
    let is_side = |side: &u32| (1..=IMAGE_SIDE_PX_MAX).contains(side);
    let is_right =
        is_side(&width_px) && is_side(&height_px) && u64::from(width_px) * u64::from(height_px) <= PIXELS_MAX;
    let fault = || format!("a golden is run at 1 to {PIXELS_MAX} pixels, not at {width_px}x{height_px}");
    is_right.then_some(()).ok_or_else(fault)
}

/// Whether a case proves what the manifest names, at a size that can be run.
fn check_case(case: &Case, manifest: &ModelManifest) -> Result<(), String> {
    let Case { image, size_px, outputs, .. } = case;
    check_size(*size_px).map_err(|fault| format!("`{image}`: {fault}"))?;
    let expected: Vec<&str> = manifest.outputs().iter().map(|output| output.name.as_str()).collect();
    let found: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
    if expected != found {
        return Err(format!(
            "`{image}` has the outputs `{}`, the manifest names `{}`; record the goldens again with `loupe model golden`",
            found.join("`, `"),
            expected.join("`, `")
        ));
    }
    Ok(())
}

/// Runs a model of any kind and gives all that its manifest names.
pub(super) struct Replayer {
    session: ModelSession,
    preprocessor: Preprocessor,
    placement: Placement,
}

/// One output in runs.
pub(super) struct Found {
    name: String,
    shape: Vec<usize>,
    low: Vec<f32>,
    high: Vec<f32>,
    not_finite: usize,
}

impl Found {
    fn new(name: &str, shape: Vec<usize>, values: &[f32]) -> Self {
        let run = values.len().div_ceil(BLOCKS_MAX).max(1);
        let extreme = |pick: fn(f32, f32) -> f32| -> Vec<f32> {
            values.chunks(run).map(|chunk| chunk.iter().copied().reduce(pick).unwrap_or(0.0)).collect()
        };
        let not_finite = values.iter().filter(|value| !value.is_finite()).count();
        Self { name: name.to_owned(), shape, low: extreme(f32::min), high: extreme(f32::max), not_finite }
    }

    fn into_expected(self) -> Expected {
        let high = if self.low == self.high { Vec::new() } else { self.high };
        Expected { name: self.name, shape: self.shape, low: self.low, high }
    }
}

impl Replayer {
    pub(super) fn open(
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<Self, InferenceError> {
        Ok(Self::of(ModelSession::open(runtime, manifest, plan)?))
    }

    pub(super) fn of(session: ModelSession) -> Self {
        let facts = session.facts();
        let input = facts.manifest.input();
        let preprocessor = Preprocessor::new(input, facts.element);
        let placement = Placement::of(input.resize, facts.manifest.letterbox_placement());
        Self { session, preprocessor, placement }
    }

    pub(super) fn into_session(self) -> ModelSession {
        self.session
    }

    /// One run on a grey picture of the manifest's size.
    pub(super) fn warm_up(&mut self) -> Result<(), InferenceError> {
        let size_px = self.session.facts().manifest.input().size_px;
        let failed = |error: crate::types::ImageError| error.to_string();
        let grey = Image::from_bgr(8, 8, vec![128; 8 * 8 * 3]).map_err(failed);
        let grey = grey.map_err(|message| InferenceError::Run { model: self.name(), message })?;
        self.run(&grey, size_px).map(drop)
    }

    fn name(&self) -> String {
        self.session.facts().manifest.name().to_owned()
    }

    pub(super) fn run(&mut self, image: &Image, [width_px, height_px]: [u32; 2]) -> Result<Vec<Found>, InferenceError> {
        let facts = Arc::clone(self.session.facts());
        let manifest = &facts.manifest;
        let failed = |message| super::features::resize_error(manifest.name(), width_px, height_px, message);
        let wanted = Wanted::new(manifest.outputs().into(), manifest.name())?;
        let batch = facts.batch.unwrap_or(1);
        self.preprocessor.begin(batch, (width_px, height_px)).map_err(failed)?;
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        for slot in 0..batch {
            self.preprocessor.fill(slot, image, &area, self.placement).map_err(failed)?;
        }
        let (view, shape) = self.preprocessor.input();
        self.session.run(view, shape, &wanted, |outputs| {
            let named = manifest.outputs().iter().zip(outputs);
            Ok(named.map(|(spec, output)| Found::new(&spec.name, output.shape.clone(), &output.values)).collect())
        })
    }
}

/// The value furthest beyond what is allowed.
fn compare(
    image: &str,
    expected: &Expected,
    found: &Found,
    tolerance: GoldenTolerance,
) -> Result<OutputReport, String> {
    let high = if expected.high.is_empty() { &expected.low } else { &expected.high };
    let is_same_form = expected.name == found.name
        && expected.shape == found.shape
        && expected.low.len() == found.low.len()
        && high.len() == found.high.len();
    if !is_same_form {
        return Err(format!(
            "output `{}` {:?} was recorded, the model gives `{}` {:?}; record the goldens again with `loupe model golden`",
            expected.name, expected.shape, found.name, found.shape
        ));
    }
    let mut report = OutputReport {
        image: image.to_owned(),
        output: expected.name.clone(),
        expected: 0.0,
        found: 0.0,
        difference: 0.0,
        allowed: tolerance.abs,
        not_finite: found.not_finite,
        passed: found.not_finite == 0,
    };
    let mut worst = f32::NEG_INFINITY;
    let pairs = expected.low.iter().zip(&found.low).chain(high.iter().zip(&found.high));
    for (expected, found) in pairs {
        let (difference, allowed) = ((found - expected).abs(), tolerance.abs + tolerance.rel * expected.abs());
        // What is no number is the worst of all.
        let excess = if difference.is_nan() { f32::INFINITY } else { difference - allowed };
        if excess > worst {
            worst = excess;
            (report.expected, report.found) = (*expected, *found);
            (report.difference, report.allowed) = (difference, allowed);
        }
    }
    report.passed &= worst <= 0.0 || (expected.low.is_empty() && worst == f32::NEG_INFINITY);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(values: &[f32]) -> Found {
        Found::new("o", vec![values.len()], values)
    }

    fn compared(expected: &[f32], given: &[f32]) -> OutputReport {
        let tolerance = GoldenTolerance { abs: 0.01, rel: 0.1 };
        compare("a.png", &found(expected).into_expected(), &found(given), tolerance).unwrap()
    }

    #[test]
    fn a_small_output_is_kept_exactly_and_a_large_one_by_its_extremes() {
        let small = found(&[1.0, 2.0]).into_expected();
        assert_eq!((small.low, small.high.is_empty()), (vec![1.0, 2.0], true));
        let values: Vec<f32> = (0..1_000).map(|index| (index % 4) as f32).collect();
        let large = found(&values).into_expected();
        assert_eq!((large.low.len(), large.high.len()), (250, 250));
        assert!(large.low.iter().all(|low| *low == 0.0) && large.high.iter().all(|high| *high == 3.0));
    }

    #[test]
    fn differences_are_judged_by_their_own_tolerance_and_the_worst_is_named() {
        assert!(compared(&[0.0, 100.0], &[0.009, 109.0]).passed);
        let report = compared(&[0.0, 100.0, 5.0], &[0.02, 104.0, 6.0]);
        assert!(!report.passed);
        assert_eq!((report.expected, report.found), (5.0, 6.0));
        assert!((report.allowed - 0.51).abs() < 1e-6);
    }

    #[test]
    fn a_value_that_is_no_number_fails_wherever_it_hides() {
        let expected: Vec<f32> = vec![1.0; 2_000];
        let mut given = expected.clone();
        given[1_003] = f32::NAN;
        let report = compared(&expected, &given);
        assert!(!report.passed && report.not_finite == 1);
    }

    #[test]
    fn one_changed_extreme_among_thousands_is_seen() {
        let expected: Vec<f32> = (0..5_000).map(|index| (index % 7) as f32).collect();
        let mut given = expected.clone();
        given[2_345] = 9.0;
        assert!(!compared(&expected, &given).passed);
    }

    #[test]
    fn another_shape_asks_for_a_new_recording() {
        let error = compare("a", &found(&[1.0]).into_expected(), &found(&[1.0, 2.0]), GoldenTolerance::default());
        assert!(error.unwrap_err().contains("loupe model golden"));
    }
}
