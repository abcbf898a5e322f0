//! What a run is asked for, and what it gave as numbers.
//!
//! Pure; belongs to whoever runs the session; no overload of its own.

use std::borrow::Cow;
use std::sync::Arc;

use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, SessionOutputs};
use ort::value::DynValue;

use super::InferenceError;
use super::manifest::{OutputRole, OutputSpec};

/// The outputs that a run computes and returns; others are not computed.
pub(super) struct Wanted {
    specs: Arc<[OutputSpec]>,
    options: RunOptions<HasSelectedOutputs>,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wanted").field(&self.specs).finish()
    }
}

impl Wanted {
    /// # Errors
    /// When the runtime cannot hold the options.
    pub(super) fn new(specs: Arc<[OutputSpec]>, model: &str) -> Result<Self, InferenceError> {
        let names = specs.iter().map(|spec| spec.name.as_str());
        let selector = names.fold(OutputSelector::no_default(), |selector, name| selector.with(name));
        let options = RunOptions::new().map_err(|error| InferenceError::of_run(model, &error))?.with_outputs(selector);
        Ok(Self { specs, options })
    }

    pub(super) fn specs(&self) -> &Arc<[OutputSpec]> {
        &self.specs
    }

    pub(super) fn options(&self) -> &RunOptions<HasSelectedOutputs> {
        &self.options
    }
}

/// One output as numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output<'o> {
    pub shape: Vec<usize>,
    pub values: Cow<'o, [f32]>,
}

/// Values and shape of an output, checked for its rank.
///
/// # Errors
/// When the output is missing, is not of numbers or has another rank than its role asks for.
pub(super) fn values_of<'o>(
    outputs: &'o SessionOutputs<'_>,
    spec: &OutputSpec,
    model: &str,
) -> Result<Output<'o>, InferenceError> {
    let run_error = |message: String| InferenceError::Run { model: model.to_owned(), message };
    let value = outputs.get(&spec.name).ok_or_else(|| run_error(format!("no output `{}`", spec.name)))?;
    let (shape, values) = numbers(value).map_err(|error| run_error(error.to_string()))?;
    let channels_differ = !spec.role.is_of_detector()
        && spec.channels.is_some_and(|channels| shape.get(1).copied() != Some(channels as usize));
    if rank(spec.role).is_some_and(|rank| rank != shape.len()) || channels_differ {
        return Err(InferenceError::Shape {
            model: model.to_owned(),
            what: format!("shape of output `{}`", spec.name),
            expected: expected_shape(spec),
            found: format!("{shape:?}"),
        });
    }
    Ok(Output { shape, values })
}

/// Any tensor of numbers as f32: class numbers and counts come as integers, half-precision graphs as f16.
fn numbers(value: &DynValue) -> ort::Result<(Vec<usize>, Cow<'_, [f32]>)> {
    let sides = |shape: &[i64]| shape.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect();
    if let Ok((shape, values)) = value.try_extract_tensor::<half::f16>() {
        return Ok((sides(shape), values.iter().map(|value| value.to_f32()).collect()));
    }
    if let Ok((shape, values)) = value.try_extract_tensor::<i64>() {
        return Ok((sides(shape), values.iter().map(|value| *value as f32).collect()));
    }
    if let Ok((shape, values)) = value.try_extract_tensor::<i32>() {
        return Ok((sides(shape), values.iter().map(|value| *value as f32).collect()));
    }
    if let Ok((shape, values)) = value.try_extract_tensor::<bool>() {
        return Ok((sides(shape), values.iter().map(|value| f32::from(u8::from(*value))).collect()));
    }
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok((sides(shape), Cow::Borrowed(values)))
}

/// Axes of an output; a detector's layout decides for its own.
pub(super) fn rank(role: OutputRole) -> Option<usize> {
    match role {
        OutputRole::Features => Some(4),
        OutputRole::Embedding | OutputRole::Foreshortening => Some(2),
        _ => None,
    }
}

fn expected_shape(spec: &OutputSpec) -> String {
    let channels = spec.channels.map_or("C".to_owned(), |channels| channels.to_string());
    match spec.role {
        OutputRole::Features => format!("[N, {channels}, H, W]"),
        OutputRole::Embedding | OutputRole::Foreshortening => format!("[N, {channels}]"),
        _ => "as its layout says".to_owned(),
    }
}
