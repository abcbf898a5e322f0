//! `models/<name>/manifest.toml`: what must be known to run a model, and what its file must look like.
//!
//! Pure but for [`ModelManifest::load`]; belongs to no thread; no overload of its own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::InferenceError;
use super::anomaly::AnomalySpec;
use super::input::{InputSpec, LetterboxPlacement, ResizeMode};
use super::layout::{DetectorLayout, DetectorSpec};
use crate::types::Digest;

/// What a model gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    Features,
    Detector,
    /// An imported graph that judges a surface.
    Anomaly,
}

impl ModelKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ModelKind::Features => "features",
            ModelKind::Detector => "detector",
            ModelKind::Anomaly => "anomaly",
        }
    }
}

/// What an output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputRole {
    /// `[N, channels, H/stride, W/stride]`.
    Features,
    /// `[N, channels]`.
    Embedding,
    /// Logits `[N, channels]` of bins: how much of the part's diagonal the box's longer side is, see
    /// [`crate::types::Foreshortening`].
    Foreshortening,
    /// Everything in one tensor, mostly `[N, rows, columns]`; the layout says how.
    Detections,
    /// Corners, or the distances of a GFL head.
    Boxes,
    /// Confidences.
    Scores,
    /// Class numbers.
    Labels,
    /// How many rows count, `[N]`.
    Count,
    /// Mask prototypes `[N, masks, h, w]`.
    Prototypes,
    /// How odd the picture is, `[N]`.
    AnomalyScore,
    /// How odd each place of the picture is, `[N, 1, h, w]`.
    AnomalyMap,
    /// Whether the graph itself calls the picture odd, `[N]` of 0 and 1 (`pred_label` of anomalib 2): it must agree.
    AnomalyLabel,
}

impl OutputRole {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OutputRole::Features => "features",
            OutputRole::Embedding => "embedding",
            OutputRole::Foreshortening => "foreshortening",
            OutputRole::Detections => "detections",
            OutputRole::Boxes => "boxes",
            OutputRole::Scores => "scores",
            OutputRole::Labels => "labels",
            OutputRole::Count => "count",
            OutputRole::Prototypes => "prototypes",
            OutputRole::AnomalyScore => "anomaly_score",
            OutputRole::AnomalyMap => "anomaly_map",
            OutputRole::AnomalyLabel => "anomaly_label",
        }
    }

    /// Whether it belongs to a detector.
    #[must_use]
    pub fn is_of_detector(self) -> bool {
        !matches!(self, OutputRole::Features | OutputRole::Embedding | OutputRole::Foreshortening)
            && !self.is_of_anomaly()
    }

    /// Whether it belongs to an anomaly graph.
    #[must_use]
    pub fn is_of_anomaly(self) -> bool {
        matches!(self, OutputRole::AnomalyScore | OutputRole::AnomalyMap | OutputRole::AnomalyLabel)
    }
}

/// One output the model must have; others are not computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    pub name: String,
    pub role: OutputRole,
    /// Pixels of the input per cell of the map.
    pub stride: Option<u32>,
    pub channels: Option<u32>,
    /// What the centres of the first and the last bin stand for; of role `foreshortening` only.
    #[serde(default)]
    pub range: Option<[f32; 2]>,
    /// Whether a picture and its mirror image are embedded apart, as by a model trained without flips; of role `embedding`
    /// only. A mirrored picture is then a second opinion, which an index asks for.
    #[serde(default)]
    pub mirror_sensitive: bool,
}

/// A file beside the model's: weights (ONNX external data), or the directions that an embedder learned for parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalFile {
    /// Name in the manifest's folder; of weights, as the model writes it.
    pub file: String,
    pub sha256: Digest,
}

/// How far a replay of the goldens may be from what they hold: `abs + rel × |expected|`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GoldenTolerance {
    pub abs: f32,
    pub rel: f32,
}

impl Default for GoldenTolerance {
    /// Far above what another CPU rounds otherwise, far below what another model or resize gives.
    fn default() -> Self {
        Self { abs: 1e-3, rel: 1e-3 }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    name: String,
    version: String,
    kind: ModelKind,
    layout: Option<DetectorLayout>,
    #[serde(default)]
    detector: DetectorSpec,
    anomaly: Option<AnomalySpec>,
    #[serde(default)]
    external: Vec<ExternalFile>,
    centres: Option<ExternalFile>,
    #[serde(default)]
    golden: GoldenTolerance,
    #[serde(default)]
    classes: Vec<String>,
    file: String,
    sha256: Digest,
    license: String,
    source: String,
    input: InputSpec,
    outputs: Vec<OutputSpec>,
}

/// A checked manifest and the folder it stands in.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelManifest {
    file: ManifestFile,
    folder: PathBuf,
    text_sha256: Digest,
}

impl ModelManifest {
    /// Read `manifest.toml` in a folder, or the file itself. The model's file is not touched.
    ///
    /// # Errors
    /// When the file cannot be read, has unknown or missing keys, or contradicts itself.
    pub fn load(dir_or_file: &Path) -> Result<Self, InferenceError> {
        let path = if dir_or_file.is_dir() { dir_or_file.join("manifest.toml") } else { dir_or_file.to_owned() };
        let text =
            std::fs::read_to_string(&path).map_err(|source| InferenceError::Read { path: path.clone(), source })?;
        let fault = |message: String| InferenceError::Manifest { path: path.clone(), message };
        let file = parse(&text).map_err(fault)?;
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self { file, folder, text_sha256: Digest::of(text.as_bytes()) })
    }

    /// Why `text` is no manifest; `None` where it is one.
    pub(super) fn fault_of(text: &str) -> Option<String> {
        parse(text).err()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.file.name
    }

    #[must_use]
    pub fn version(&self) -> &str {
        &self.file.version
    }

    #[must_use]
    pub fn kind(&self) -> ModelKind {
        self.file.kind
    }

    /// How a detector's output is laid out; a detector always has one.
    #[must_use]
    pub fn layout(&self) -> Option<DetectorLayout> {
        self.file.layout
    }

    /// What the layout leaves open.
    #[must_use]
    pub fn detector(&self) -> &DetectorSpec {
        &self.file.detector
    }

    /// The scale of an anomaly graph, which always has one.
    #[must_use]
    pub fn anomaly(&self) -> Option<&AnomalySpec> {
        self.file.anomaly.as_ref()
    }

    /// Of the manifest itself.
    #[must_use]
    pub fn text_sha256(&self) -> Digest {
        self.text_sha256
    }

    /// Files beside the model's that hold its weights.
    #[must_use]
    pub fn external(&self) -> &[ExternalFile] {
        &self.file.external
    }

    /// Whether the embedder's learned directions lie beside it ([`Self::read_centres`]).
    #[must_use]
    pub fn has_centres(&self) -> bool {
        self.file.centres.is_some()
    }

    /// The file of the directions that the embedder learned for the parts it was trained on (safetensors, one `[channels]`
    /// f32 tensor a part), compared with its digest; `None` where it has none.
    ///
    /// # Errors
    /// When it cannot be read or is not the one the manifest means.
    pub fn read_centres(&self) -> Result<Option<Vec<u8>>, InferenceError> {
        let centres = self.file.centres.as_ref();
        centres.map(|centres| self.read_verified(&self.folder.join(&centres.file), centres.sha256)).transpose()
    }

    /// The bytes of `path`, which are those of the digest.
    pub(super) fn read_verified(&self, path: &Path, expected: Digest) -> Result<Vec<u8>, InferenceError> {
        let bytes = std::fs::read(path).map_err(|source| InferenceError::Read { path: path.to_owned(), source })?;
        let found = Digest::of(&bytes);
        if found != expected {
            let (model, path) = (self.name().to_owned(), path.to_owned());
            return Err(InferenceError::DigestDiffers { model, path, expected, found });
        }
        Ok(bytes)
    }

    #[must_use]
    pub fn golden_tolerance(&self) -> GoldenTolerance {
        self.file.golden
    }

    /// The folder the manifest stands in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a letterboxed picture lies.
    #[must_use]
    pub fn letterbox_placement(&self) -> LetterboxPlacement {
        let by_layout = match self.file.layout {
            Some(DetectorLayout::Yolox) => LetterboxPlacement::TopLeft,
            _ => LetterboxPlacement::Centre,
        };
        self.file.input.placement.unwrap_or(by_layout)
    }

    /// Names of a detector's classes, in the order of its output.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.file.classes
    }

    /// Of the model's file, as the manifest states it; opening the model verifies it.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        self.file.sha256
    }

    #[must_use]
    pub fn license(&self) -> &str {
        &self.file.license
    }

    #[must_use]
    pub fn source(&self) -> &str {
        &self.file.source
    }

    #[must_use]
    pub fn input(&self) -> &InputSpec {
        &self.file.input
    }

    /// Digest of how pixels become input values: what is compared must have been made alike.
    #[must_use]
    pub fn input_sha256(&self) -> Digest {
        self.file.input.sha256(self.letterbox_placement())
    }

    #[must_use]
    pub fn outputs(&self) -> &[OutputSpec] {
        &self.file.outputs
    }

    /// Outputs of one role, in the manifest's order.
    pub fn outputs_of(&self, role: OutputRole) -> impl Iterator<Item = &OutputSpec> {
        self.file.outputs.iter().filter(move |output| output.role == role)
    }

    /// Whether the embedder tells a picture from its mirror image.
    #[must_use]
    pub fn is_mirror_sensitive(&self) -> bool {
        self.outputs_of(OutputRole::Embedding).any(|output| output.mirror_sensitive)
    }

    /// The model's file.
    #[must_use]
    pub fn model_path(&self) -> PathBuf {
        self.folder.join(&self.file.file)
    }
}

/// What stands in lists of classes for numbers without a name.
const PLACEHOLDERS: [&str; 4] = ["", "N/A", "background", "__background__"];

fn parse(text: &str) -> Result<ManifestFile, String> {
    let file: ManifestFile = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
    check(&file)?;
    Ok(file)
}

/// First contradiction within a manifest.
fn check(file: &ManifestFile) -> Result<(), String> {
    let input = &file.input;
    if file.name.is_empty() {
        return Err("`name` is empty".to_owned());
    }
    let beside = file.external.iter().chain(&file.centres).map(|beside| &beside.file);
    for name in std::iter::once(&file.file).chain(beside) {
        if Path::new(name).components().count() != 1 || name == ".." {
            return Err(format!("`file` is `{name}`: it must be a file name in the manifest's folder"));
        }
    }
    if input.size_px.iter().any(|&side| side == 0 || side > crate::limits::IMAGE_SIDE_PX_MAX) {
        return Err(format!("`input.size_px` is {:?}: both sides must be 1 to 16384", input.size_px));
    }
    let finite = input.mean.iter().chain(&input.std).chain([&input.scale]).all(|value| value.is_finite());
    if !finite || input.std.contains(&0.0) || input.scale == 0.0 {
        return Err("`input.scale`, `mean` and `std` must be finite, `scale` and `std` not 0".to_owned());
    }
    let golden = file.golden;
    if !(golden.abs >= 0.0 && golden.rel >= 0.0 && golden.abs.is_finite() && golden.rel.is_finite()) {
        return Err("`golden.abs` and `golden.rel` must be 0 or more".to_owned());
    }
    if file.outputs.is_empty() {
        return Err("it names no [[outputs]]".to_owned());
    }
    let is_twice = |(at, class): (usize, &String)| {
        (!PLACEHOLDERS.contains(&class.as_str()) && file.classes[..at].contains(class)).then(|| class.clone())
    };
    if let Some(class) = file.classes.iter().enumerate().find_map(is_twice) {
        return Err(format!("`classes` names `{class}` twice: each class of the output needs a name of its own"));
    }
    if file.centres.is_some() && !file.outputs.iter().any(|output| output.role == OutputRole::Embedding) {
        return Err("`centres` needs an output of role `embedding`".to_owned());
    }
    for output in &file.outputs {
        let name = &output.name;
        if output.mirror_sensitive && output.role != OutputRole::Embedding {
            return Err(format!("output `{name}`: `mirror_sensitive` is of outputs of role `embedding`"));
        }
        match output.role {
            OutputRole::Features if output.stride.is_none_or(|stride| stride == 0) => {
                return Err(format!("output `{name}` of role `features` needs a `stride` above 0"));
            }
            OutputRole::Features | OutputRole::Embedding if output.channels.is_none_or(|channels| channels == 0) => {
                return Err(format!("output `{name}` needs `channels` above 0"));
            }
            OutputRole::Foreshortening
                if output.channels.is_none_or(|bins| bins < 2)
                    || output.range.is_none_or(|[from, to]| !(from.is_finite() && to.is_finite() && from < to)) =>
            {
                return Err(format!("output `{name}` needs `channels` of 2 or more and a rising `range = [from, to]`"));
            }
            role if role.is_of_detector() && file.kind != ModelKind::Detector => {
                return Err(format!("output `{name}` of role `{}` needs `kind = \"detector\"`", role.as_str()));
            }
            role if role.is_of_anomaly() != (file.kind == ModelKind::Anomaly) => {
                let kind = file.kind.as_str();
                return Err(format!("output `{name}` of role `{}` does not fit `kind = \"{kind}\"`", role.as_str()));
            }
            _ => {}
        }
    }
    if file.anomaly.is_some() && file.kind != ModelKind::Anomaly {
        return Err("[anomaly] is for `kind = \"anomaly\"` only".to_owned());
    }
    match (file.kind, file.layout) {
        (ModelKind::Features, None) => Ok(()),
        (ModelKind::Anomaly, None) => check_anomaly(file),
        (ModelKind::Features | ModelKind::Anomaly, Some(_)) => {
            Err("`layout` is for `kind = \"detector\"` only".to_owned())
        }
        (ModelKind::Detector, None) => {
            let names = DetectorLayout::ALL.map(DetectorLayout::as_str).join(", ");
            Err(format!("a detector needs `layout`, one of {names}; `loupe model probe` guesses it"))
        }
        (ModelKind::Detector, Some(layout)) => {
            file.detector.check()?;
            layout.check_outputs(&file.outputs)
        }
    }
}

fn check_anomaly(file: &ManifestFile) -> Result<(), String> {
    let Some(spec) = &file.anomaly else {
        return Err(
            "an anomaly graph needs an [anomaly] table with `normalisation`: `in_graph` where the graph gives 0 to 1 \
                    (anomalib 2), else `min_max` and the numbers of metadata.json; `loupe model probe` writes it"
                .to_owned(),
        );
    };
    spec.check()?;
    if file.input.resize != ResizeMode::Stretch {
        return Err(
            "an anomaly graph needs `input.resize = \"stretch\"`: its map must cover the whole picture".to_owned()
        );
    }
    let count = |role| file.outputs.iter().filter(|output| output.role == role).count();
    let roles = [OutputRole::AnomalyScore, OutputRole::AnomalyMap, OutputRole::AnomalyLabel];
    if let Some(role) = roles.into_iter().find(|role| count(*role) > 1) {
        return Err(format!("an anomaly graph has one output of role `{}` at most", role.as_str()));
    }
    if count(OutputRole::AnomalyLabel) == file.outputs.len() {
        return Err("an anomaly graph needs an output of role `anomaly_score` or `anomaly_map`".to_owned());
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::ModelManifest;
    use crate::types::Digest;

    pub const GOOD: &str = r#"
name = "m"
version = "1"
kind = "features"
file = "model.onnx"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
license = "MIT"
source = "a test"
[input]
name = "images"
size_px = [224, 224]
color = "rgb"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
resize = "stretch"
[[outputs]]
name = "stride8"
role = "features"
stride = 8
channels = 32
"#;

    fn load(text: &str) -> Result<ModelManifest, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifest.toml"), text).unwrap();
        ModelManifest::load(dir.path()).map_err(|error| error.to_string())
    }

    fn check_fault(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from), "{from}");
        let error = load(&GOOD.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_manifest_reads_with_its_default_grey() {
        let manifest = load(GOOD).unwrap();
        assert_eq!((manifest.name(), manifest.input().pad_value, manifest.outputs().len()), ("m", 114, 1));
    }

    #[test]
    fn centres_are_read_only_where_they_are_the_ones_the_manifest_means() {
        let dir = tempfile::tempdir().unwrap();
        let embedding = GOOD.replace("role = \"features\"\nstride = 8", "role = \"embedding\"");
        let digest = Digest::of(b"directions");
        let text = format!("{embedding}[centres]\nfile = \"centres.safetensors\"\nsha256 = \"{digest}\"\n");
        std::fs::write(dir.path().join("manifest.toml"), &text).unwrap();
        let manifest = ModelManifest::load(dir.path()).unwrap();
        let missing = manifest.read_centres().unwrap_err().to_string();
        assert!(missing.contains("centres.safetensors"), "{missing}");
        std::fs::write(dir.path().join("centres.safetensors"), b"directions").unwrap();
        assert_eq!(manifest.read_centres().unwrap().as_deref(), Some(&b"directions"[..]));
        std::fs::write(dir.path().join("centres.safetensors"), b"others").unwrap();
        let other = manifest.read_centres().unwrap_err().to_string();
        assert!(other.contains("centres.safetensors") && other.contains(&digest.to_string()), "{other}");
        assert_eq!(load(GOOD).unwrap().read_centres().unwrap(), None);

        let nowhere = load(&text.replace("role = \"embedding\"", "role = \"features\"\nstride = 8")).unwrap_err();
        assert!(nowhere.contains("`centres` needs"), "{nowhere}");
        let outside = load(&text.replace("\"centres.safetensors\"", "\"../centres.safetensors\"")).unwrap_err();
        assert!(outside.contains("`../centres.safetensors`"), "{outside}");
    }

    #[test]
    fn faults_name_the_key() {
        check_fault("version =", "versoin =", "versoin");
        check_fault("stride = 8\n", "", "needs a `stride`");
        check_fault("channels = 32\n", "", "needs `channels`");
        check_fault("\"model.onnx\"", "\"../model.onnx\"", "`file` is `../model.onnx`");
        check_fault("[0.229, 0.224, 0.225]", "[0.229, 0.0, 0.225]", "not 0");
        check_fault("[224, 224]", "[0, 224]", "size_px");
        check_fault("e3b0", "zz", "sha256");
        check_fault("license =", "classes = [\"bolt\", \"nut\", \"bolt\"]\nlicense =", "names `bolt` twice");
        assert!(
            load(&GOOD.replace("license =", "classes = [\"N/A\", \"bolt\", \"N/A\"]\nlicense =")).is_ok(),
            "placeholders"
        );
        check_fault("role = \"features\"", "role = \"detections\"", "kind = \"detector\"");
        let told = "role = \"features\"\nmirror_sensitive = true";
        check_fault("role = \"features\"", told, "of role `embedding`");
        let shown = "role = \"foreshortening\"\nrange =";
        check_fault("role = \"features\"", "role = \"foreshortening\"", "rising `range");
        check_fault("role = \"features\"", &format!("{shown} [0.1, -1.6]"), "rising `range");
        check_fault("role = \"features\"", &format!("{shown} [-inf, 0.1]"), "rising `range");
    }

    #[test]
    fn a_missing_manifest_names_its_path() {
        let error = ModelManifest::load(Path::new("/nowhere/manifest.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/manifest.toml"), "{error}");
    }
}
