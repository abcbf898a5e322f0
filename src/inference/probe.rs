//! Looks at a model file that has no manifest yet: what it says about itself, which providers open it here, what one run
//! on a grey picture gives, and what it probably is.
//!
//! Thread: the caller's. Overload: one session a provider, one run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};
use serde::Serialize;

use super::anomalib::Metadata;
use super::guess::{Guess, Seen, guess, picture_input};
use super::onnx::{self, TensorInfo};
use super::session::{Files, try_provider};
use super::{InferenceError, ModelManifest, NodeCounts, ProviderChoice, ProviderPlan, Runtime};
use crate::clock::Stopwatch;
use crate::limits::IMAGE_SIDE_PX_MAX;
use crate::types::{Digest, Provider};

/// Side taken for an input that leaves it open, unless the caller names one.
pub const OPEN_SIDE_PX: u32 = 640;

/// What was found.
#[derive(Debug, Serialize)]
pub struct ProbeReport {
    pub bytes: u64,
    pub sha256: Digest,
    pub ir_version: u64,
    pub producer: String,
    /// Version by domain; the empty name is ONNX's own.
    pub opsets: BTreeMap<String, u64>,
    pub operator_count: usize,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Files with weights beside the model and their digests.
    pub external: Vec<(String, Digest)>,
    pub providers: Vec<ProviderSupport>,
    /// Sides of the outputs in one run on a grey picture; empty where it could not be run.
    pub shapes_seen: BTreeMap<String, Vec<usize>>,
    /// Why it could not be run.
    pub run_fault: Option<String>,
    pub layout: Option<&'static str>,
    /// Why this layout, or why none.
    pub why: Vec<String>,
    /// A manifest to edit; `None` where nothing fits.
    pub manifest: Option<String>,
}

/// Whether a provider opens the file here.
#[derive(Debug, Serialize)]
pub struct ProviderSupport {
    pub provider: Provider,
    pub usable: bool,
    /// Operators by ONNX Runtime's name of the provider that runs them.
    pub operators: BTreeMap<String, usize>,
    pub message: String,
}

/// Look at `path`; `name` is what its manifest would be called, `open_side_px` stands for sides the graph leaves open (those
/// its metadata name, else [`OPEN_SIDE_PX`], where it is `None`).
///
/// # Errors
/// When the file or a file of its weights is missing, empty or no ONNX model, or no provider opens it.
pub fn probe(
    runtime: &Arc<Runtime>,
    path: &Path,
    name: &str,
    open_side_px: Option<u32>,
) -> Result<ProbeReport, InferenceError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| InferenceError::Read { path: path.to_owned(), source });
    let bytes = read(path)?;
    let fault = |message: String| InferenceError::File { path: path.to_owned(), message };
    let graph = onnx::read(&bytes).map_err(fault)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut external = Vec::new();
    for file in &graph.external_files {
        if Path::new(file).components().count() != 1 {
            return Err(fault(format!("its weights lie in `{file}`, which must be a file in the same folder")));
        }
        let weights = read(&folder.join(file)).map_err(|error| {
            fault(format!("its weights lie in `{file}` ({error}); copy that file too, or save the model as one file"))
        })?;
        external.push((file.clone(), Arc::<[u8]>::from(weights)));
    }
    let digests: Vec<(String, Digest)> =
        external.iter().map(|(file, bytes)| (file.clone(), Digest::of(bytes))).collect();
    let (sha256, byte_count) = (Digest::of(&bytes), bytes.len() as u64);
    let files = Files { model: bytes, external };
    let (providers, session) = try_all(runtime, &files);
    let Some(mut session) = session else {
        let cpu = providers.iter().find(|support| support.provider == Provider::Cpu);
        let said = cpu.map_or(String::new(), |support| support.message.clone());
        let opset = graph.opsets.get("").copied().unwrap_or(0);
        return Err(fault(format!("no provider opens it (opset {opset}): {said}")));
    };
    let open_px = open_side_px.map_or_else(|| image_px(&graph).unwrap_or([OPEN_SIDE_PX; 2]), |side| [side; 2]);
    let inputs: Vec<Seen> = graph.inputs.iter().map(|input| seen(input, open_px)).collect();
    let ran = run_once(&mut session, &inputs);
    let outputs: Vec<Seen> = match &ran {
        Ok(outputs) => outputs.clone(),
        Err(_) => graph.outputs.iter().map(|output| seen(output, [0; 2])).collect(),
    };
    let guessed = guess(&graph, &inputs, &outputs);
    let external: Vec<(String, String)> =
        digests.iter().map(|(file, sha256)| (file.clone(), sha256.to_string())).collect();
    let mut notes = Vec::new();
    let metadata = guessed.as_ref().is_ok_and(Guess::wants_metadata).then(|| metadata(folder, &mut notes)).flatten();
    let digest = sha256.to_string();
    let manifest = |guess: &Guess| guess.manifest(&graph, name, "model.onnx", &digest, &external, metadata.as_ref());
    let manifest = guessed.as_ref().ok().map(manifest);
    if let Some(fault) = manifest.as_deref().and_then(ModelManifest::fault_of) {
        notes.push(format!("the manifest does not load as it stands: {fault}"));
    }
    Ok(ProbeReport {
        bytes: byte_count,
        sha256,
        ir_version: graph.ir_version,
        producer: graph.producer.clone(),
        opsets: graph.opsets.clone(),
        operator_count: graph.node_count,
        inputs: graph.inputs.iter().map(TensorInfo::to_string).collect(),
        outputs: graph.outputs.iter().map(TensorInfo::to_string).collect(),
        external: digests,
        providers,
        run_fault: ran.as_ref().err().cloned(),
        shapes_seen: ran.unwrap_or_default().into_iter().map(|output| (output.name, output.sides)).collect(),
        layout: guessed.as_ref().ok().map(Guess::kind),
        manifest,
        why: guessed.map_or_else(|message| vec![message], |guess| guess.why).into_iter().chain(notes).collect(),
    })
}

/// The numbers of a raw anomaly graph; what stands in the way is noted.
fn metadata(folder: &Path, notes: &mut Vec<String>) -> Option<Metadata> {
    match Metadata::beside(folder) {
        Ok(Some(found)) => {
            notes.push("thresholds and scale are those of metadata.json beside it".to_owned());
            Some(found)
        }
        Ok(None) => {
            notes.push("no metadata.json lies beside it: fill in [anomaly] by hand".to_owned());
            None
        }
        Err(message) => {
            notes.push(format!("{message}: fill in [anomaly] by hand"));
            None
        }
    }
}

/// Each provider in turn, and the CPU's session.
fn try_all(runtime: &Runtime, files: &Files) -> (Vec<ProviderSupport>, Option<Session>) {
    let mut cpu = None;
    let all = [Provider::Cpu, Provider::Cuda, Provider::Tensorrt, Provider::Openvino];
    let support = all.into_iter().map(|provider| {
        let choice = ProviderChoice { provider, options: BTreeMap::new() };
        let plan = ProviderPlan { providers: vec![choice], ..ProviderPlan::default() };
        match try_provider(runtime, files, &plan, 0) {
            Ok((session, nodes)) => {
                let NodeCounts { by_name } = nodes.clone();
                if provider == Provider::Cpu {
                    cpu = Some(session);
                }
                ProviderSupport { provider, usable: true, operators: by_name, message: nodes.to_string() }
            }
            Err(message) => ProviderSupport { provider, usable: false, operators: BTreeMap::new(), message },
        }
    });
    (support.collect(), cpu)
}

/// Height and width that Ultralytics notes (`imgsz`: `[480, 640]`).
fn image_px(graph: &onnx::Graph) -> Option<[u32; 2]> {
    let sides: Vec<u32> = graph
        .metadata
        .get("imgsz")?
        .trim_matches(['[', ']'])
        .split(',')
        .map_while(|side| side.trim().parse().ok())
        .collect();
    <[u32; 2]>::try_from(sides).ok().filter(|sides| sides.iter().all(|side| (1..=IMAGE_SIDE_PX_MAX).contains(side)))
}

/// Batch 1, three colours and `open_px` (height, width) for what the graph leaves open.
fn seen(tensor: &TensorInfo, open_px: [u32; 2]) -> Seen {
    let sides: Vec<Option<usize>> =
        tensor.sides.iter().map(|side| side.fixed().and_then(|side| usize::try_from(side).ok())).collect();
    let is_nhwc = sides.len() == 4 && sides[3] == Some(3) && sides[1] != Some(3);
    let colour_axis = if is_nhwc { 3 } else { 1 };
    let open = |axis: usize| match axis {
        0 => 1,
        _ if sides.len() == 4 && axis == colour_axis && open_px[0] > 0 => 3,
        _ if sides.len() == 4 && axis == colour_axis % 3 + 2 => open_px[1] as usize,
        _ => open_px[0] as usize,
    };
    let sides = sides.iter().enumerate().map(|(axis, side)| side.unwrap_or_else(|| open(axis))).collect();
    Seen { name: tensor.name.clone(), element: tensor.element.to_owned(), sides, highest: None }
}

/// What the graph gives for a grey picture.
fn run_once(session: &mut Session, inputs: &[Seen]) -> Result<Vec<Seen>, String> {
    let said = |error: ort::Error| error.to_string();
    let picture = picture_input(inputs).map(|(input, is_nhwc)| {
        let (width, height) = if is_nhwc { (input.sides[2], input.sides[1]) } else { (input.sides[3], input.sides[2]) };
        (input.name.clone(), [width, height])
    });
    let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
    for input in inputs {
        let count: usize = input.sides.iter().product();
        if count > 1 << 28 {
            return Err(format!("input `{}` would hold {count} values", input.name));
        }
        let shape = input.sides.clone();
        let value: SessionInputValue<'_> = match input.element.as_str() {
            "float32" => Tensor::from_array((shape, vec![0.5_f32; count])).map_err(said)?.into(),
            "float16" => Tensor::from_array((shape, vec![half::f16::from_f32(0.5); count])).map_err(said)?.into(),
            "uint8" => Tensor::from_array((shape, vec![127_u8; count])).map_err(said)?.into(),
            "int64" => {
                let sides =
                    picture.as_ref().map_or([1, 1], |(_, sides)| *sides).map(|side| i64::try_from(side).unwrap_or(1));
                let numbers = sides.iter().copied().cycle().take(count).collect::<Vec<i64>>();
                Tensor::from_array((shape, numbers)).map_err(said)?.into()
            }
            other => return Err(format!("input `{}` is of {other}, which Loupe does not fill", input.name)),
        };
        values.push((Cow::Owned(input.name.clone()), value));
    }
    let watch = Stopwatch::start();
    let outputs = session.run(values).map_err(said)?;
    tracing::debug!(elapsed_ms = watch.ms(), "probed by one run");
    Ok(outputs
        .iter()
        .filter_map(|(name, value)| match value.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                let element = match ty {
                    TensorElementType::Int64 => "int64".to_owned(),
                    other => other.to_string(),
                };
                let sides = shape.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect();
                let highest = value.try_extract_tensor::<f32>().ok();
                let highest = highest.map(|(_, values)| values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                Some(Seen { name: name.to_owned(), element, sides, highest })
            }
            _ => None,
        })
        .collect())
}
