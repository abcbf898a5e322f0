//! Which execution providers a model may run on, and how each is registered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ort::ep::{self, ExecutionProviderDispatch};
use serde::{Deserialize, Serialize};

use crate::types::Provider;

/// One provider and the options handed to it as they are (names as in ONNX Runtime's documentation).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderChoice {
    pub provider: Provider,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// Where a model shall run, best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderPlan {
    pub providers: Vec<ProviderChoice>,
    /// Refuse to open the model unless all of it runs on the first provider (TensorRT may share with CUDA).
    #[serde(default)]
    pub require: bool,
    /// Where TensorRT and OpenVINO keep compiled engines between starts.
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
    /// Threads within one operator; 1 where absent, because the pipeline runs one worker per core.
    #[serde(default)]
    pub intra_threads: Option<usize>,
    /// Whether workers share one session.
    #[serde(default)]
    pub batching: Batching,
}

/// Whether workers share one session, and how their requests are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// A session a worker on the CPU, one session with batches elsewhere.
    #[default]
    Auto,
    /// A session a worker.
    Off,
    /// One session.
    On(BatchLimits),
}

/// How far requests are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchLimits {
    /// Pictures in one run, ≥ 1.
    pub max: usize,
    /// Until when a request is to be answered: it waits for company only while that leaves time for the run.
    pub deadline: Duration,
}

impl Default for BatchLimits {
    /// 8 pictures of 640×480 f32 are 29 MB; an accelerator takes some 2 to 10 ms for them.
    fn default() -> Self {
        Self { max: 8, deadline: Duration::from_millis(20) }
    }
}

impl Default for ProviderPlan {
    /// The CPU, with one thread.
    fn default() -> Self {
        Self {
            providers: vec![ProviderChoice { provider: Provider::Cpu, options: BTreeMap::new() }],
            require: false,
            cache_dir: None,
            intra_threads: None,
            batching: Batching::Auto,
        }
    }
}

/// Options by which a provider computes in less than the precision that the graph was made in.
const REDUCED_PRECISION: &[(&str, &[&str])] = &[
    ("trt_fp16_enable", &["1", "true"]),
    ("trt_bf16_enable", &["1", "true"]),
    ("trt_int8_enable", &["1", "true"]),
    ("precision", &["fp16", "f16", "int8", "bf16"]),
    ("inference_precision_hint", &["f16", "i8", "u8", "bf16"]),
    ("device_type", &["gpu_fp16", "cpu_fp16"]),
    ("use_tf32", &["1", "true"]),
];

impl ProviderPlan {
    /// The first option that asks for less than the graph's own precision; a model with one must have goldens.
    #[must_use]
    pub fn reduced_precision(&self) -> Option<String> {
        let options = self.providers.iter().flat_map(|choice| &choice.options);
        let reduces = |(key, value): &(&String, &String)| {
            let (key, value) = (key.to_lowercase(), value.to_lowercase());
            REDUCED_PRECISION.iter().any(|(name, values)| *name == key && values.contains(&value.as_str()))
        };
        let mut found = options.filter(reduces);
        found.next().map(|(key, value)| format!("{key} = {value}"))
    }

    /// The providers registered together when `self.providers[index]` is tried: TensorRT leaves the operators it
    /// does not know to CUDA when the plan names CUDA after it.
    pub(super) fn companions(&self, index: usize) -> Vec<&ProviderChoice> {
        let Some(choice) = self.providers.get(index) else { return Vec::new() };
        let mut chosen = vec![choice];
        if choice.provider == Provider::Tensorrt {
            chosen.extend(self.providers[index..].iter().find(|other| other.provider == Provider::Cuda));
        }
        chosen
    }
}

/// ONNX Runtime's name of a provider.
pub(super) fn runtime_name(provider: Provider) -> &'static str {
    match provider {
        Provider::Cpu => "CPUExecutionProvider",
        Provider::Cuda => "CUDAExecutionProvider",
        Provider::Tensorrt => "TensorrtExecutionProvider",
        Provider::Openvino => "OpenVINOExecutionProvider",
    }
}

/// The provider behind ONNX Runtime's name.
pub(super) fn from_runtime_name(name: &str) -> Option<Provider> {
    [Provider::Cpu, Provider::Cuda, Provider::Tensorrt, Provider::Openvino]
        .into_iter()
        .find(|provider| runtime_name(*provider) == name)
}

/// What to install so that a provider becomes usable.
pub(super) fn advice(provider: Provider) -> &'static str {
    match provider {
        Provider::Cpu => "the CPU needs nothing; see the message",
        Provider::Cuda => {
            "take libonnxruntime.so and libonnxruntime_providers_cuda.so from the wheel `onnxruntime-gpu`, install \
             CUDA 13 and cuDNN 9 and check the driver with `nvidia-smi`, or set `require = false`"
        }
        Provider::Tensorrt => {
            "take libonnxruntime.so and libonnxruntime_providers_tensorrt.so from the wheel `onnxruntime-gpu`, \
             install TensorRT 10 and CUDA 13, or set `require = false`"
        }
        Provider::Openvino => "install an ONNX Runtime built with OpenVINO, or set `require = false`",
    }
}

/// Registration of one provider that fails instead of falling back.
///
/// # Errors
/// When an option holds a NUL octet, which the C interface cannot carry.
pub(super) fn dispatch(choice: &ProviderChoice, cache_dir: Option<&Path>) -> Result<ExecutionProviderDispatch, String> {
    let mut options = default_options(choice.provider, cache_dir);
    options.extend(choice.options.clone());
    if let Some((key, _)) = options.iter().find(|(key, value)| key.contains('\0') || value.contains('\0')) {
        return Err(format!("option `{}` holds a NUL octet", key.replace('\0', "?")));
    }
    let configured = match choice.provider {
        Provider::Cpu => ep::CPU::default().with_arena_allocator(true).build(),
        Provider::Cuda => with_options(ep::CUDA::default(), options).build(),
        Provider::Tensorrt => with_options(ep::TensorRT::default(), options).build(),
        Provider::Openvino => with_options(ep::OpenVINO::default(), options).build(),
    };
    Ok(configured.error_on_failure())
}

fn with_options<E: ep::ArbitrarilyConfigurableExecutionProvider>(ep: E, options: BTreeMap<String, String>) -> E {
    options.into_iter().fold(ep, |ep, (key, value)| ep.with_arbitrary_config(key, value))
}

/// Options that follow from the cache folder; the user's own come after them.
fn default_options(provider: Provider, cache_dir: Option<&Path>) -> BTreeMap<String, String> {
    let Some(dir) = cache_dir.map(|dir| dir.display().to_string()) else { return BTreeMap::new() };
    let pairs: Vec<(&str, String)> = match provider {
        Provider::Cpu | Provider::Cuda => Vec::new(),
        Provider::Tensorrt => vec![
            ("trt_engine_cache_enable", "1".to_owned()),
            ("trt_engine_cache_path", dir.clone()),
            ("trt_timing_cache_enable", "1".to_owned()),
            ("trt_timing_cache_path", dir),
        ],
        Provider::Openvino => vec![("cache_dir", dir)],
    };
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{Provider, ProviderChoice, ProviderPlan, default_options, dispatch, from_runtime_name, runtime_name};

    fn choice(provider: Provider) -> ProviderChoice {
        ProviderChoice { provider, options: BTreeMap::new() }
    }

    #[test]
    fn tensorrt_takes_cuda_along_only_when_the_plan_names_it_later() {
        let mut plan = ProviderPlan {
            providers: vec![choice(Provider::Tensorrt), choice(Provider::Cpu), choice(Provider::Cuda)],
            ..ProviderPlan::default()
        };
        assert_eq!(plan.companions(0).len(), 2);
        assert_eq!(plan.companions(2).len(), 1);
        plan.providers.rotate_right(1);
        assert_eq!(plan.companions(1).len(), 1);
        assert!(plan.companions(9).is_empty());
    }

    #[test]
    fn names_round_trip_and_the_cache_reaches_tensorrt() {
        for provider in [Provider::Cpu, Provider::Cuda, Provider::Tensorrt, Provider::Openvino] {
            assert_eq!(from_runtime_name(runtime_name(provider)), Some(provider));
        }
        let options = default_options(Provider::Tensorrt, Some(Path::new("/c")));
        assert_eq!(options.get("trt_engine_cache_path").map(String::as_str), Some("/c"));
        assert!(default_options(Provider::Tensorrt, None).is_empty());
    }

    #[test]
    fn options_that_cost_precision_are_known_whatever_their_case() {
        let with = |key: &str, value: &str| {
            let mut choice = choice(Provider::Tensorrt);
            choice.options.insert(key.to_owned(), value.to_owned());
            ProviderPlan { providers: vec![choice], ..ProviderPlan::default() }.reduced_precision()
        };
        assert_eq!(with("trt_fp16_enable", "True").as_deref(), Some("trt_fp16_enable = True"));
        assert_eq!(with("inference_precision_hint", "f16").as_deref(), Some("inference_precision_hint = f16"));
        assert_eq!((with("trt_fp16_enable", "0"), with("device_id", "1")), (None, None));
    }

    #[test]
    fn an_option_with_a_nul_is_an_error_and_no_panic() {
        let mut bad = choice(Provider::Cuda);
        bad.options.insert("device_id".to_owned(), "0\0".to_owned());
        assert!(dispatch(&bad, None).is_err());
    }
}
