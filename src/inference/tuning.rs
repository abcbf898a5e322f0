//! How many threads a model wants on this machine: measured by `loupe model tune`, kept in `tuning.json` beside the model,
//! read whenever a session is opened whose plan names no number.
//!
//! What was measured on another machine, with another library or another model file is not used.
//! Thread: measuring starts one thread a session; reading none. Overload: none of its own.

use std::path::PathBuf;
use std::sync::{Arc, Barrier};

use serde::{Deserialize, Serialize};

use super::golden::Replayer;
use super::{InferenceError, ModelManifest, ProviderPlan, Runtime};
use crate::clock::Stopwatch;
use crate::types::{Digest, Image};

/// Name of the file in the model's folder.
pub const TUNING_FILE: &str = "tuning.json";
const FORMAT: u32 = 1;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    format: u32,
    pub model_sha256: Digest,
    /// Cores and processor it was measured on.
    pub machine: String,
    /// Build of ONNX Runtime it was measured with.
    pub onnxruntime: String,
    /// Threads within one operator.
    pub intra_threads: usize,
    pub rows: Vec<TuningRow>,
}

/// One setting as measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningRow {
    pub intra_threads: usize,
    /// One session alone: median of one inference.
    pub alone_ms: f64,
    /// As many sessions as cores at once: inferences per second of all of them.
    pub all_cores_per_s: f64,
}

impl Tuning {
    #[must_use]
    pub fn new(manifest: &ModelManifest, runtime: &Runtime, intra_threads: usize, rows: Vec<TuningRow>) -> Self {
        let (machine, onnxruntime) = (machine(), runtime.build_info().to_owned());
        Self { format: FORMAT, model_sha256: manifest.sha256(), machine, onnxruntime, intra_threads, rows }
    }

    /// Write it beside the model; the path.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, manifest: &ModelManifest) -> Result<PathBuf, InferenceError> {
        let path = manifest.folder().join(TUNING_FILE);
        let failed = |source| InferenceError::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        std::fs::write(&path, text + "\n").map_err(failed)?;
        Ok(path)
    }

    /// What was measured for this model on this machine with this library; `None` where nothing was.
    pub(super) fn load(manifest: &ModelManifest, runtime: &Runtime) -> Option<Tuning> {
        let path = manifest.folder().join(TUNING_FILE);
        let text = std::fs::read_to_string(&path).ok()?;
        let tuning: Tuning = match serde_json::from_str(&text) {
            Ok(tuning) => tuning,
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "tuning not used; run `loupe model tune` again");
                return None;
            }
        };
        let fits = tuning.format == FORMAT
            && tuning.model_sha256 == manifest.sha256()
            && tuning.machine == machine()
            && tuning.onnxruntime == runtime.build_info()
            && (1..=256).contains(&tuning.intra_threads);
        if !fits {
            tracing::warn!(path = %path.display(), "tuning is of another machine, library or model and is not used");
        }
        fits.then_some(tuning)
    }
}

/// Cores and processor, as far as the system says.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    format!("{cores} cores, {}", name.unwrap_or("unknown processor"))
}

/// Measure one number of threads: alone, and with a session on each of `cores`.
///
/// # Errors
/// When the model cannot be run.
pub fn measure(
    runtime: &Arc<Runtime>,
    manifest: &ModelManifest,
    image: &Image,
    intra_threads: usize,
    cores: usize,
    runs: usize,
) -> Result<TuningRow, InferenceError> {
    let plan = ProviderPlan { intra_threads: Some(intra_threads), ..ProviderPlan::default() };
    let size_px = manifest.input().size_px;
    let mut alone = Replayer::open(runtime, manifest, &plan)?;
    alone.run(image, size_px)?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        let watch = Stopwatch::start();
        alone.run(image, size_px)?;
        times.push(watch.elapsed().as_secs_f64() * 1_000.0);
    }
    drop(alone);
    times.sort_by(f64::total_cmp);
    let mut sessions = Vec::with_capacity(cores);
    for _ in 0..cores.max(1) {
        let mut session = Replayer::open(runtime, manifest, &plan)?;
        session.run(image, size_px)?;
        sessions.push(session);
    }
    let start = Barrier::new(sessions.len());
    let rates: Vec<Result<f64, InferenceError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                scope.spawn(|| {
                    start.wait();
                    let watch = Stopwatch::start();
                    for _ in 0..runs.max(1) {
                        session.run(image, size_px)?;
                    }
                    Ok(runs.max(1) as f64 / watch.elapsed().as_secs_f64().max(1e-9))
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let all_cores_per_s = rates.into_iter().sum::<Result<f64, InferenceError>>()?;
    Ok(TuningRow { intra_threads, alone_ms: times[times.len() / 2], all_cores_per_s })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_tuning_of_another_machine_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-yolox");
        for file in ["manifest.toml", "model.onnx"] {
            std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
        }
        let (manifest, runtime) = (ModelManifest::load(folder.path()).unwrap(), Runtime::load(None).unwrap());
        assert!(Tuning::load(&manifest, &runtime).is_none());
        let image = Image::from_bgr(32, 32, vec![9; 32 * 32 * 3]).unwrap();
        let row = measure(&runtime, &manifest, &image, 2, 1, 2).unwrap();
        assert!(row.alone_ms > 0.0 && row.all_cores_per_s > 0.0);
        let tuning = Tuning::new(&manifest, &runtime, 2, vec![row]);
        tuning.store(&manifest).unwrap();
        assert_eq!(Tuning::load(&manifest, &runtime).unwrap().intra_threads, 2);
        Tuning { machine: "another".to_owned(), ..tuning.clone() }.store(&manifest).unwrap();
        assert!(Tuning::load(&manifest, &runtime).is_none());
        Tuning { intra_threads: 0, ..tuning }.store(&manifest).unwrap();
        assert!(Tuning::load(&manifest, &runtime).is_none());
        std::fs::write(folder.path().join(TUNING_FILE), "{").unwrap();
        assert!(Tuning::load(&manifest, &runtime).is_none());
    }
}
