//! A loaded model: opened on the best usable provider, checked against its manifest, run for chosen outputs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Tensor, TensorElementType, TensorRef, ValueType};

use super::assignment::{NodeCounts, node_counts};
use super::engine_cache::EngineKey;
use super::input::Axes;
use super::manifest::ModelManifest;
use super::outputs::{Output, Wanted, rank, values_of};
use super::preprocess::{Element, View};
use super::provider::{advice, dispatch};
use super::tuning::Tuning;
use super::{InferenceError, ProviderChoice, ProviderPlan, Runtime};
use crate::clock::Stopwatch;
use crate::failpoint;
use crate::types::{Digest, Provider};

/// What is known of a session once it is open.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub manifest: ModelManifest,
    /// Where most operators run.
    pub provider: Provider,
    pub is_fallback: bool,
    pub nodes: NodeCounts,
    /// What the graph's picture input is made of.
    pub element: Element,
    /// Batch the graph insists on; `None`: any.
    pub batch: Option<usize>,
}

/// One session and what the runtime says about it.
#[derive(Debug)]
pub(super) struct ModelSession {
    session: Session,
    facts: Arc<Facts>,
    /// Time inside the runtime since the model was opened.
    session_ms: f64,
    /// Keeps the library's environment alive.
    _runtime: Arc<Runtime>,
}

impl ModelSession {
    pub(super) fn open(
        runtime: &Arc<Runtime>,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
    ) -> Result<Self, InferenceError> {
        let files = Files::read(manifest)?;
        let model = || manifest.name().to_owned();
        let mut plan = plan.clone();
        if plan.intra_threads.is_none() {
            plan.intra_threads = Tuning::load(manifest, runtime).map(|tuning| tuning.intra_threads);
        }
        let plan = &plan;
        let Some(first) = plan.providers.first() else {
            return Err(InferenceError::ProviderListEmpty { model: model() });
        };
        let mut faults = Vec::new();
        for (index, choice) in plan.providers.iter().enumerate() {
            match try_provider(runtime, &files, plan, index) {
                Ok((session, nodes)) => {
                    let (element, batch) = check_shapes(manifest, &session)?;
                    let provider = nodes.main_provider().unwrap_or(choice.provider);
                    let is_fallback = provider != first.provider;
                    if is_fallback && plan.require {
                        let message = format!("the runtime placed {nodes}");
                        return Err(required(manifest, first.provider, message));
                    }
                    let manifest = manifest.clone();
                    let facts = Arc::new(Facts { manifest, provider, is_fallback, nodes, element, batch });
                    return Ok(Self { session, facts, session_ms: 0.0, _runtime: Arc::clone(runtime) });
                }
                Err(message) if plan.require => return Err(required(manifest, choice.provider, message)),
                Err(message) => {
                    tracing::warn!(model = manifest.name(), provider = %choice.provider, error = message,
                        "execution provider not usable, trying the next");
                    faults.push(format!("{}: {message}", choice.provider));
                }
            }
        }
        Err(InferenceError::NoProvider { model: model(), message: faults.join("; ") })
    }

    /// Run on `input` without copying it and hand `wanted`, in its order, to `then`.
    ///
    /// # Errors
    /// When the runtime fails ([`InferenceError::Device`] where that is not the input's fault), an output is not what its role
    /// asks for, or `then` says so.
    pub(super) fn run<R>(
        &mut self,
        input: View<'_>,
        shape: [usize; 4],
        wanted: &Wanted,
        then: impl FnOnce(&[Output<'_>]) -> Result<R, InferenceError>,
    ) -> Result<R, InferenceError> {
        let facts = Arc::clone(&self.facts);
        let name = facts.manifest.name();
        if let Err(error) = failpoint::io("model.run") {
            return Err(InferenceError::of_message(
                name,
                format!("CUDA failure 719: unspecified launch failure ({error})"),
            ));
        }
        let spec = facts.manifest.input();
        let failed = |error: ort::Error| InferenceError::of_run(name, &error);
        let watch = Stopwatch::start();
        let mut inputs = match input {
            View::F32(values) => {
                ort::inputs![spec.name.as_str() => TensorRef::from_array_view((shape, values)).map_err(failed)?]
            }
            View::F16(values) => {
                ort::inputs![spec.name.as_str() => TensorRef::from_array_view((shape, values)).map_err(failed)?]
            }
            View::U8(values) => {
                ort::inputs![spec.name.as_str() => TensorRef::from_array_view((shape, values)).map_err(failed)?]
            }
        };
        if let Some(sizes) = &spec.sizes {
            let (width, height) = match spec.axes {
                Axes::Nchw => (shape[3], shape[2]),
                Axes::Nhwc => (shape[2], shape[1]),
            };
            let sides = [width, height].map(|side| i64::try_from(side).unwrap_or(i64::MAX));
            let tensor = Tensor::from_array(([shape[0], 2], sides.repeat(shape[0]))).map_err(failed)?;
            inputs.push((Cow::Borrowed(sizes.as_str()), tensor.into()));
        }
        let outputs = self.session.run_with_options(inputs, wanted.options()).map_err(failed)?;
        self.session_ms += watch.elapsed().as_secs_f64() * 1_000.0;
        let found: Vec<Output<'_>> =
            wanted.specs().iter().map(|spec| values_of(&outputs, spec, name)).collect::<Result<_, _>>()?;
        then(&found)
    }

    pub(super) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    pub(super) fn session_ms(&self) -> f64 {
        self.session_ms
    }
}

fn required(manifest: &ModelManifest, provider: Provider, message: String) -> InferenceError {
    InferenceError::ProviderRequired { model: manifest.name().to_owned(), provider, message, advice: advice(provider) }
}

/// The model's files, read once so that what is checked is what is loaded.
pub(super) struct Files {
    pub model: Vec<u8>,
    /// By the name the model gives them.
    pub external: Vec<(String, Arc<[u8]>)>,
}

impl Files {
    fn read(manifest: &ModelManifest) -> Result<Self, InferenceError> {
        let model = manifest.read_verified(&manifest.model_path(), manifest.sha256())?;
        let external = manifest.external().iter().map(|external| {
            let bytes = manifest.read_verified(&manifest.folder().join(&external.file), external.sha256)?;
            Ok((external.file.clone(), Arc::from(bytes)))
        });
        let external: Vec<(String, Arc<[u8]>)> = external.collect::<Result<_, InferenceError>>()?;
        // The runtime's own words for a missing weights file name neither the model nor the remedy.
        let named: Vec<&str> = external.iter().map(|(name, _)| name.as_str()).collect();
        check_graph_file(manifest, &model, &named)?;
        Ok(Self { model, external })
    }
}

/// An empty file, one that is no ONNX, or one whose weights lie in files that the manifest does not list.
fn check_graph_file(manifest: &ModelManifest, model: &[u8], external: &[&str]) -> Result<(), InferenceError> {
    let path = manifest.model_path();
    let graph = super::onnx::read(model).map_err(|message| InferenceError::File { path: path.clone(), message })?;
    let Some(missing) = graph.external_files.iter().find(|file| !external.contains(&file.as_str())) else {
        return Ok(());
    };
    let message = format!(
        "its weights lie in `{missing}`, which the manifest does not list; add [[external]] with `file` and `sha256`, or \
         save the model as one file"
    );
    Err(InferenceError::File { path, message })
}

/// Load on the plan's provider `index`; the text says why it cannot be used.
pub(super) fn try_provider(
    runtime: &Runtime,
    files: &Files,
    plan: &ProviderPlan,
    index: usize,
) -> Result<(Session, NodeCounts), String> {
    let choices = plan.companions(index);
    let wants_cpu = choices.iter().any(|choice| choice.provider == Provider::Cpu);
    let cache_dir = match &plan.cache_dir {
        Some(dir) => Some(engine_folder(runtime, files, &choices, dir)?),
        None => None,
    };
    let dispatches: Vec<_> =
        choices.into_iter().map(|choice| dispatch(choice, cache_dir.as_deref())).collect::<Result<_, String>>()?;
    let mut builder = options(runtime, plan, plan.require && !wants_cpu)
        .map_err(|error| error.to_string())?
        .with_execution_providers(dispatches)
        .map_err(|error| error.to_string())?;
    for (name, bytes) in &files.external {
        builder = builder
            .with_external_initializer_file_in_memory(name, Arc::clone(bytes))
            .map_err(|error| error.to_string())?;
    }
    let session = builder.commit_from_memory(&files.model).map_err(|error| readable(&error.to_string()))?;
    let nodes = node_counts(&session).map_err(|error| error.to_string())?;
    Ok((session, nodes))
}

/// What ONNX Runtime says of a file it cannot load, without its own source lines, and what to do.
fn readable(message: &str) -> String {
    let mut text = message.trim().to_owned();
    if let Some(start) = text.find("/onnxruntime_src/") {
        // `/path/file.h:46 void name(arguments) words`
        let end = text[start..].find(") ").map_or(start, |at| start + at + 2);
        text.replace_range(start..end, " ");
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let advice = if text.contains("IR version") {
        "; save it with that IR version or an older one (`onnx.helper.make_model(…, ir_version=…)`)"
    } else if text.contains("opset") {
        "; export it with an opset that is supported (`torch.onnx.export(…, opset_version=17)`)"
    } else if text.contains("is not a registered function/op") || text.contains("No Op registered") {
        "; export it with operators of ONNX alone, custom ones are not loaded"
    } else {
        ""
    };
    format!("{text}{advice}")
}

/// Where compiled engines of these files lie for this machine, made if it is not there.
fn engine_folder(
    runtime: &Runtime,
    files: &Files,
    choices: &[&ProviderChoice],
    cache_dir: &Path,
) -> Result<PathBuf, String> {
    let weights = files.external.iter().map(|(_, bytes)| Digest::of(bytes));
    let digests: Vec<Digest> = std::iter::once(Digest::of(&files.model)).chain(weights).collect();
    let folder = EngineKey::here(&digests, runtime.build_info(), choices).folder(cache_dir);
    let said = |error: std::io::Error| format!("engine cache {}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(said)?;
    Ok(folder)
}

fn options(runtime: &Runtime, plan: &ProviderPlan, refuse_cpu: bool) -> Result<SessionBuilder, ort::Error> {
    let mut builder = Session::builder(runtime.environment())?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(plan.intra_threads.unwrap_or(1))?
        .with_inter_threads(1)?
        // spinning threads take the cores from whatever runs between two inferences (docs: facts)
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")?;
    if refuse_cpu {
        builder = builder.with_disable_cpu_fallback()?;
    }
    Ok(builder)
}

/// Compare the manifest with the loaded graph; dynamic sides (−1) agree with anything. What the picture input is made of,
/// and the batch it insists on.
fn check_shapes(manifest: &ModelManifest, session: &Session) -> Result<(Element, Option<usize>), InferenceError> {
    let model = || manifest.name().to_owned();
    let missing = |what: &str, expected: &str, found: Vec<&str>| InferenceError::Shape {
        model: model(),
        what: what.to_owned(),
        expected: format!("`{expected}`"),
        found: format!("`{}`", found.join("`, `")),
    };
    let spec = manifest.input();
    let wanted: Vec<&str> = std::iter::once(&spec.name).chain(&spec.sizes).map(String::as_str).collect();
    let input_names: Vec<&str> = session.inputs().iter().map(ort::value::Outlet::name).collect();
    let find = |name: &str| session.inputs().iter().find(|input| input.name() == name);
    let Some(input) = find(&spec.name).filter(|_| input_names.iter().all(|name| wanted.contains(name))) else {
        let what = if wanted.len() == 1 { "its only input" } else { "its inputs" };
        return Err(missing(what, &wanted.join("`, `"), input_names));
    };
    if let Some(sizes) = &spec.sizes {
        let Some(input) = find(sizes) else { return Err(missing("an input", sizes, input_names)) };
        check_tensor(manifest, &format!("input `{sizes}`"), input.dtype(), &[TensorElementType::Int64], &[-1, 2])?;
    }
    let [width, height] = spec.size_px.map(i64::from);
    let expected = match spec.axes {
        Axes::Nchw => [-1, 3, height, width],
        Axes::Nhwc => [-1, height, width, 3],
    };
    let types = [TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Uint8];
    let (element, sides) = check_tensor(manifest, &format!("input `{}`", spec.name), input.dtype(), &types, &expected)?;
    let output_names: Vec<&str> = session.outputs().iter().map(ort::value::Outlet::name).collect();
    for output in manifest.outputs() {
        let Some(outlet) = session.outputs().iter().find(|outlet| outlet.name() == output.name) else {
            return Err(missing("an output", &output.name, output_names));
        };
        let Some(rank) = rank(output.role) else { continue };
        let mut expected = vec![-1; rank];
        expected[1] = output.channels.map_or(-1, i64::from);
        let types = [TensorElementType::Float32, TensorElementType::Float16];
        check_tensor(manifest, &format!("output `{}`", output.name), outlet.dtype(), &types, &expected)?;
    }
    // Octets that differ by 1 at the input and not by half a value after scaling are lost to the graph.
    let step = spec.std.iter().map(|std| (spec.scale / std).abs()).fold(f32::INFINITY, f32::min);
    if element == TensorElementType::Uint8 && step < 0.5 {
        let what = format!("`scale` / `std` of input `{}`, which takes octets", spec.name);
        let expected = "1.0 (such a graph scales them itself)".to_owned();
        return Err(InferenceError::Shape { model: model(), what, expected, found: step.to_string() });
    }
    let element = match element {
        TensorElementType::Float16 => Element::F16,
        TensorElementType::Uint8 => Element::U8,
        _ => Element::F32,
    };
    Ok((element, sides.first().and_then(|side| usize::try_from(*side).ok()).filter(|side| *side > 0)))
}

/// Element type and sides of a tensor that agrees with `expected` (−1 = any).
fn check_tensor(
    manifest: &ModelManifest,
    what: &str,
    found: &ValueType,
    types: &[TensorElementType],
    expected: &[i64],
) -> Result<(TensorElementType, Vec<i64>), InferenceError> {
    if let ValueType::Tensor { ty, shape, .. } = found {
        let agrees = types.contains(ty)
            && shape.len() == expected.len()
            && shape.iter().zip(expected).all(|(found, expected)| *found < 0 || *expected < 0 || found == expected);
        if agrees {
            return Ok((*ty, shape.to_vec()));
        }
    }
    let types: Vec<String> = types.iter().map(ToString::to_string).collect();
    Err(InferenceError::Shape {
        model: manifest.name().to_owned(),
        what: what.to_owned(),
        expected: format!("{} {expected:?} (-1 = any)", types.join(" or ")),
        found: match found {
            ValueType::Tensor { ty, shape, .. } => format!("{ty} {:?}", &shape[..]),
            other => format!("{other:?}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use super::{ModelManifest, Provider, ProviderPlan, Runtime};
    use crate::inference::{Crop, DetectorModel, FeatureModel, InferenceError, ProviderChoice};
    use crate::types::{BoundingBox, Image};

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
    }

    fn runtime() -> Arc<Runtime> {
        Runtime::load(None).unwrap()
    }

    fn plan(providers: &[Provider], require: bool) -> ProviderPlan {
        let providers = providers.iter().map(|&provider| ProviderChoice { provider, options: BTreeMap::new() });
        ProviderPlan { providers: providers.collect(), require, ..ProviderPlan::default() }
    }

    /// Open the bundled detector with one change to its manifest and, if given, to its file.
    fn open_changed(from: &str, to: &str, extra_bytes: &[u8]) -> Result<DetectorModel, InferenceError> {
        let dir = tempfile::tempdir().unwrap();
        let source = models().join("tiny-yolox");
        let text = std::fs::read_to_string(source.join("manifest.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(dir.path().join("manifest.toml"), text.replacen(from, to, 1)).unwrap();
        let mut bytes = std::fs::read(source.join("model.onnx")).unwrap();
        bytes.extend_from_slice(extra_bytes);
        std::fs::write(dir.path().join("model.onnx"), bytes).unwrap();
        DetectorModel::open(&runtime(), &ModelManifest::load(dir.path())?, &ProviderPlan::default())
    }

    fn check_fault(from: &str, to: &str, expected: &[&str]) {
        let error = open_changed(from, to, &[]).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn a_file_with_another_digest_is_refused_naming_both() {
        let error = open_changed("tiny-yolox", "tiny-yolox", &[0]).unwrap_err();
        let InferenceError::DigestDiffers { expected, found, .. } = &error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()) && text.contains(&found.to_string()), "{text}");
    }

    #[test]
    fn inputs_and_outputs_that_differ_name_expected_and_found() {
        check_fault("name = \"images\"", "name = \"pixels\"", &["its only input", "`pixels`", "`images`"]);
        check_fault("name = \"output\"", "name = \"boxes\"", &["an output", "`boxes`", "`output`"]);
        check_fault("size_px = [416, 416]", "size_px = [64, 64]", &["input `images`", "64", "416"]);
        let feature_role = "role = \"features\"\nstride = 8\nchannels = 7";
        check_fault("role = \"detections\"", feature_role, &["layout `yolox` needs one output of role `detections`"]);
    }

    #[test]
    fn a_detector_is_no_feature_model() {
        let manifest = ModelManifest::load(&models().join("tiny-yolox")).unwrap();
        let error = FeatureModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap_err();
        assert!(matches!(error, InferenceError::Kind { expected: "features", found: "detector", .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_model_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(models().join("tiny-yolox/manifest.toml")).unwrap();
        let good = ModelManifest::load(&models().join("tiny-yolox")).unwrap().sha256().to_string();
        let bad = crate::types::Digest::of(b"no model").to_string();
        std::fs::write(dir.path().join("manifest.toml"), text.replace(&good, &bad)).unwrap();
        std::fs::write(dir.path().join("model.onnx"), b"no model").unwrap();
        let manifest = ModelManifest::load(dir.path()).unwrap();
        let error = DetectorModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap_err();
        assert!(matches!(error, InferenceError::File { .. }), "{error}");
    }

    #[test]
    fn the_runtime_itself_says_that_the_cpu_runs_the_graph() {
        let manifest = ModelManifest::load(&models().join("tiny-yolox")).unwrap();
        let model = DetectorModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap();
        assert_eq!((model.provider(), model.is_fallback()), (Provider::Cpu, false));
        assert!(model.nodes().by_name["CPUExecutionProvider"] > 0, "{}", model.nodes());
    }

    #[test]
    fn an_unusable_provider_falls_back_and_says_so_or_refuses_where_required() {
        let manifest = ModelManifest::load(&models().join("tiny-yolox")).unwrap();
        let open = |plan: ProviderPlan| DetectorModel::open(&runtime(), &manifest, &plan);
        let model = match open(plan(&[Provider::Cuda, Provider::Cpu], false)) {
            Ok(model) if model.provider() == Provider::Cuda => {
                eprintln!("skipped: this runtime has CUDA, so nothing falls back");
                return;
            }
            other => other.unwrap(),
        };
        assert_eq!((model.provider(), model.is_fallback()), (Provider::Cpu, true));
        let error = open(plan(&[Provider::Cuda, Provider::Cpu], true)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, InferenceError::ProviderRequired { provider: Provider::Cuda, .. }), "{text}");
        assert!(text.contains("onnxruntime-gpu") && text.contains("`cuda`"), "{text}");
        assert!(matches!(open(plan(&[Provider::Tensorrt], false)), Err(InferenceError::NoProvider { .. })));
        assert!(matches!(open(plan(&[], false)), Err(InferenceError::ProviderListEmpty { .. })));
    }

    fn gradient(width: u32, height: u32) -> Image {
        let levels = (0..width * height * 3).map(|index| u8::try_from(index * 7 % 251).unwrap());
        Image::from_bgr(width, height, levels.collect()).unwrap()
    }

    #[test]
    fn an_embedder_that_says_how_much_it_sees_says_it_of_each_crop() {
        let manifest = ModelManifest::load(&models().join("partnet")).unwrap();
        let mut model = FeatureModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap();
        let image = gradient(200, 120);
        let boxes = [[0.0, 0.0, 90.0, 60.0], [50.0, 10.0, 200.0, 120.0]].map(BoundingBox::from);
        let crops = boxes.map(|area| Crop { image: &image, area, is_mirrored: false });
        let both = model.look(&crops, 64, false).unwrap();
        let second = model.look(&crops[1..], 64, false).unwrap();
        assert_eq!((both.foreshortenings.len(), both.embeddings.len()), (2, 2 * model.embedding_dim()));
        assert!(second.foreshortenings[0].is_some() && second.foreshortenings[0] == both.foreshortenings[1]);
        assert_ne!(both.foreshortenings[0], both.foreshortenings[1]);
    }

    #[test]
    fn what_the_runtime_says_of_a_file_ends_in_advice_and_has_no_source_lines() {
        let opset = "Load model from memory failed:/onnxruntime_src/onnxruntime/core/graph/model_load_utils.h:46 void \
                     onnxruntime::Validate(const std::map<a, b>&, int) ONNX Runtime only *guarantees* support up to \n opset 26.";
        let said = super::readable(opset);
        assert!(
            said.starts_with("Load model from memory failed: ONNX Runtime only") && !said.contains("_src"),
            "{said}"
        );
        assert!(said.contains("opset_version=17"), "{said}");
        assert!(super::readable("Unsupported model IR version: 99, max 13").contains("ir_version"));
        assert!(super::readable("X(1) is not a registered function/op").contains("custom"));
        assert_eq!(super::readable("out of memory"), "out of memory");
    }

    #[test]
    fn an_embedder_looks_at_mirrored_crops_too_when_asked() {
        let manifest = ModelManifest::load(&models().join("partnet")).unwrap();
        let mut model = FeatureModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap();
        let image = gradient(64, 64);
        let rows = (0..64).flat_map(|y| image.row(y).chunks_exact(3).rev().flatten().copied().collect::<Vec<u8>>());
        let mirror = Image::from_bgr(64, 64, rows.collect()).unwrap();
        let crop = |image, is_mirrored| Crop { image, area: BoundingBox::whole(64, 64), is_mirrored };
        let crops = [crop(&image, false), crop(&mirror, false)];
        let dim = model.embedding_dim();
        let looks = model.look(&crops, 64, true).unwrap();
        assert_eq!((looks.embeddings.len(), looks.mirrored.len(), looks.foreshortenings.len()), (2 * dim, 2 * dim, 2));
        assert_eq!(
            (&looks.mirrored[..dim], &looks.mirrored[dim..]),
            (&looks.embeddings[dim..], &looks.embeddings[..dim])
        );
        assert_ne!(looks.embeddings[..dim], looks.embeddings[dim..], "it tells them apart");
        let plain = model.look(&crops, 64, false).unwrap();
        assert!(plain.mirrored.is_empty() && plain.embeddings == looks.embeddings);
        assert_eq!(plain.foreshortenings, looks.foreshortenings);
        let in_a_mirror = model.look(&[crop(&mirror, true)], 64, true).unwrap();
        assert_eq!(
            (&in_a_mirror.embeddings[..], &in_a_mirror.mirrored[..]),
            looks.embeddings.split_at(dim),
            "turned back"
        );
        assert!(manifest.is_mirror_sensitive());
    }

    #[test]
    fn embeddings_have_length_one_and_do_not_depend_on_their_batch() {
        let manifest = ModelManifest::load(&models().join("mobilenetv2")).unwrap();
        let mut model = FeatureModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap();
        let image = gradient(200, 120);
        let boxes = [[0.0, 0.0, 90.0, 60.0], [50.0, 10.0, 200.0, 120.0]].map(BoundingBox::from);
        let crops = boxes.map(|area| (&image, area));
        let crop = |area| Crop { image: &image, area, is_mirrored: false };
        let looks = model.look(&boxes.map(crop), 160, false).unwrap();
        let both = model.embed(&crops, 160).unwrap();
        assert_eq!((both.len(), looks.foreshortenings), (2 * model.embedding_dim(), vec![None, None]));
        assert_eq!(looks.embeddings, both);
        let second = model.embed(&crops[1..], 160).unwrap();
        assert_eq!(second, both[model.embedding_dim()..]);
        let length: f32 = second.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
        assert!(model.session_ms() > 0.0);
    }

    #[test]
    fn feature_maps_have_the_sizes_of_their_strides() {
        let manifest = ModelManifest::load(&models().join("mobilenetv2")).unwrap();
        let mut model = FeatureModel::open(&runtime(), &manifest, &ProviderPlan::default()).unwrap();
        let maps = model.features(&gradient(200, 120), BoundingBox::whole(200, 120), (256, 128)).unwrap().maps;
        let sizes: Vec<_> = maps.iter().map(|map| (map.stride, map.channels, map.height, map.width)).collect();
        assert_eq!(sizes, [(8, 32, 16, 32), (16, 96, 8, 16)]);
        assert!(maps.iter().all(|map| map.data.len() == map.channels * map.height * map.width));
    }
}
