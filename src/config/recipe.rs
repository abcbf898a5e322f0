//! Recipes: the inspection program of one product.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::locate::{LocateStage, RawLocate, check_views, checked_areas};
use super::{ConfigError, Document, Fault};
use crate::anomaly::SearchMode;
use crate::inference::{BatchLimits, Batching, ProviderPlan};
use crate::limits::{self, BATCH_PICTURES_MAX, PX_PER_MM_MAX, PX_PER_MM_MIN, VIEWS_PER_ITEM_MAX};
use crate::quality::QualityLimits;
use crate::types::{BoundingBox, ColourLimits, Digest, QualityLevel};

/// A validated recipe. Named by the digest of its text: an edited recipe is another recipe.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub name: String,
    pub version_label: String,
    /// The file's text, kept in the provenance record.
    pub body: String,
    pub sha256: Digest,
    pub quality: QualityStage,
    pub locate: LocateStage,
    pub matching: Option<MatchStage>,
    pub anomaly: Option<AnomalyStage>,
    pub rules: Rules,
}

/// Limits of the gate and the scene it expects.
#[derive(Debug, Clone)]
pub struct QualityStage {
    pub limits: QualityLimits,
    /// A picture of the scene as it should look, for SSIM.
    pub reference: Option<PathBuf>,
}

/// How an item becomes a catalogue part.
#[derive(Debug, Clone)]
pub struct MatchStage {
    pub index: PathBuf,
    pub model: PathBuf,
    pub providers: StageProviders,
    /// Least cosine to accept, −1 to 1.
    pub accept_similarity: f32,
    /// Least distance to the best other part, 0 to 2.
    pub accept_margin: f32,
    /// Least distance to the best other part where both are of one confusion group, 0 to 2; the larger of the two margins
    /// applies.
    pub group_margin: f32,
    /// Below this cosine a part is *unknown*, −1 to 1, at most `accept_similarity`; `None`: there is no such decision.
    pub unknown_similarity: Option<f32>,
    /// With a fit, from this probability on that no catalogue part fits, the part is *unknown*, 0 to 1; `None`: there is no
    /// such decision.
    pub unknown_probability: Option<f32>,
    /// A part whose catalogue level is below this, or that the catalogue lacks, is a HOLD; `None`: the level does not matter.
    pub min_quality_level: Option<QualityLevel>,
    /// Accept by the probability that the generation's fit (`loupe index fit`) asks for, not by similarity and margin;
    /// those then only say when the hot tier answers alone.
    pub use_fit: bool,
    /// The camera's scale where the parts lie, > 0: sizes then count, as far as the index and its fit know them.
    pub px_per_mm: Option<f32>,
    /// The boxes of a frame are so many views of one item, 2 to [`VIEWS_PER_ITEM_MAX`]; `None`: each box is an item.
    pub views: Option<usize>,
    /// Areas of the frame that are seen in a mirror, px: boxes whose middle lies there are turned back before they are matched.
    pub mirrors: Vec<BoundingBox>,
    pub color: Option<ColorStage>,
}

impl MatchStage {
    /// Whether the box is seen in a mirror.
    #[must_use]
    pub fn is_in_mirror(&self, bbox: &BoundingBox) -> bool {
        self.mirrors.iter().any(|mirror| mirror.holds_centre_of(bbox))
    }
}

/// How an item's colour is named.
#[derive(Debug, Clone)]
pub struct ColorStage {
    /// CSV file with the columns `color_id` and `rgb_hex`.
    pub table: PathBuf,
    /// White balance: factors of the linear red, green and blue light, from a grey card, > 0.
    pub gains: [f32; 3],
    /// When a colour counts as the item's.
    pub limits: ColourLimits,
}

/// How a frame's surface is compared with good ones.
#[derive(Debug, Clone)]
pub struct AnomalyStage {
    pub source: SurfaceSource,
    pub providers: StageProviders,
    /// Normalised score from which a frame fails, 0 to 1; 0.5 = the bank's own threshold.
    pub threshold: f32,
    /// Scores this close below the threshold hold.
    pub hold_band: f32,
    /// Group of the bank that a frame is compared with; `None`: the one that is most alike.
    pub group: Option<String>,
    /// The camera's scale where the surface lies, > 0: defects then have areas in mm².
    pub px_per_mm: Option<f32>,
}

/// What knows good surfaces.
#[derive(Debug, Clone)]
pub enum SurfaceSource {
    Bank {
        bank: PathBuf,
        /// Folder that holds the model folders; the bank names its own.
        models: PathBuf,
        search: SearchMode,
    },
    /// The folder of a model of kind `anomaly`.
    Graph { model: PathBuf },
}

/// Where a stage's model may run.
#[derive(Debug, Clone, Default)]
pub struct StageProviders {
    pub plan: ProviderPlan,
    /// Whether a verdict may rest on a provider that was not the first choice.
    pub accept_fallback: bool,
}

/// What the evidence must look like.
#[derive(Debug, Clone)]
pub struct Rules {
    pub items_min: usize,
    pub items_max: usize,
    pub when_empty: EmptyRule,
    pub at_edge: EdgeRule,
    pub unknown_part: UnknownPartRule,
    /// Detector classes that may be present; empty = any.
    pub allowed_labels: Vec<String>,
    pub deadline_ms: Option<f32>,
}

/// A frame without any item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyRule {
    #[default]
    Hold,
    /// In a stream: not an inspection, counted as refused. A still picture holds all the same.
    Ignore,
}

/// An item that reaches out of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeRule {
    #[default]
    Hold,
    /// Not judged in this frame: a stream shows it whole in another.
    Ignore,
}

/// An item that is like nothing in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownPartRule {
    #[default]
    Hold,
    Fail,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            items_min: 0,
            items_max: crate::limits::ITEMS_PER_FRAME_MAX,
            when_empty: EmptyRule::Hold,
            at_edge: EdgeRule::Hold,
            unknown_part: UnknownPartRule::Hold,
            allowed_labels: Vec::new(),
            deadline_ms: None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRecipe {
    name: String,
    version_label: String,
    quality: Option<RawQuality>,
    locate: Option<RawLocate>,
    r#match: Option<RawMatch>,
    anomaly: Option<RawAnomaly>,
    rules: Option<RawRules>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawQuality {
    reference: Option<PathBuf>,
    limits: QualityLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMatch {
    index: Option<PathBuf>,
    model: Option<PathBuf>,
    accept_similarity: Option<f32>,
    accept_margin: Option<f32>,
    group_margin: Option<f32>,
    unknown_similarity: Option<f32>,
    unknown_probability: Option<f32>,
    use_fit: bool,
    px_per_mm: Option<f32>,
    views: Option<usize>,
    mirrors: Vec<[f32; 4]>,
    color: Option<RawColor>,
    min_quality_level: Option<QualityLevel>,
    providers: Option<RawProviders>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawColor {
    table: Option<PathBuf>,
    gains: Option<[f32; 3]>,
    max_delta_e: Option<f32>,
    min_margin: Option<f32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAnomaly {
    bank: Option<PathBuf>,
    models: Option<PathBuf>,
    search: Option<SearchMode>,
    graph: Option<PathBuf>,
    threshold: Option<f32>,
    hold_band: Option<f32>,
    group: Option<String>,
    px_per_mm: Option<f32>,
    providers: Option<RawProviders>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProviders {
    order: Vec<crate::inference::ProviderChoice>,
    require: bool,
    accept_fallback: bool,
    engine_cache: Option<PathBuf>,
    intra_threads: Option<usize>,
    batch_max: Option<usize>,
    batch_deadline_ms: Option<f32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRules {
    items_min: Option<usize>,
    items_max: Option<usize>,
    when_empty: EmptyRule,
    at_edge: EdgeRule,
    unknown_part: UnknownPartRule,
    allowed_labels: Vec<String>,
    deadline_ms: Option<f32>,
}

/// Least cosine accepted where a recipe is silent.
const DEFAULT_ACCEPT_SIMILARITY: f32 = 0.80;
/// Least margin accepted where a recipe is silent.
const DEFAULT_ACCEPT_MARGIN: f32 = 0.03;
/// Least margin inside a confusion group where a recipe is silent: what tells such parts apart is small, so more of it
/// must be seen.
const DEFAULT_GROUP_MARGIN: f32 = 0.05;
/// Band below the anomaly threshold that holds where a recipe is silent.
const DEFAULT_HOLD_BAND: f32 = 0.02;

impl Recipe {
    /// Read and validate the recipe at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, or with every fault in it.
    pub fn load(path: &Path) -> Result<Recipe, ConfigError> {
        let body = read_text(path)?;
        Recipe::parse(path, body)
    }

    /// Validate the recipe `body`, whose relative paths are relative to the folder of `path`.
    ///
    /// # Errors
    /// With every fault in it.
    pub fn parse(path: &Path, body: String) -> Result<Recipe, ConfigError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let (raw, mut document) = Document::read::<RawRecipe>(path, &body);
        let recipe = raw.validate(&mut document, folder, body);
        document.finish(recipe)
    }
}

/// The text of a configuration file, or a fault that says why there is none.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError {
        path: path.display().to_string(),
        faults: vec![Fault { key_path: String::new(), line: None, message: format!("cannot be read: {error}") }],
    })
}

impl RawRecipe {
    fn validate(self, document: &mut Document, folder: &Path, body: String) -> Recipe {
        if self.name.trim().is_empty() {
            document.fault("name", "is missing: give the recipe a name");
        }
        let quality = self.quality.unwrap_or_default();
        for (key, message) in quality.limits.faults() {
            document.fault(&format!("quality.limits.{key}"), message);
        }
        if self.r#match.is_none() && self.anomaly.is_none() && self.locate.is_none() {
            document.fault("", "judges nothing: add [match], [anomaly] or [locate]");
        }
        let locate = self.locate.unwrap_or_default().validate(document, folder);
        let matching = self.r#match.map(|raw| raw.validate(document, folder));
        check_views(matching.as_ref(), &locate, document);
        Recipe {
            name: self.name,
            version_label: if self.version_label.is_empty() { "1".to_owned() } else { self.version_label },
            sha256: Digest::of(body.as_bytes()),
            body,
            quality: QualityStage {
                reference: quality.reference.map(|path| folder.join(path)),
                limits: quality.limits,
            },
            locate,
            matching,
            anomaly: self.anomaly.map(|raw| raw.validate(document, folder)),
            rules: self.rules.unwrap_or_default().validate(document),
        }
    }
}

impl RawMatch {
    fn validate(self, document: &mut Document, folder: &Path) -> MatchStage {
        let accept_similarity = self.accept_similarity.unwrap_or(DEFAULT_ACCEPT_SIMILARITY);
        check_range(document, "match.accept_similarity", accept_similarity, -1.0, 1.0);
        let accept_margin = self.accept_margin.unwrap_or(DEFAULT_ACCEPT_MARGIN);
        check_range(document, "match.accept_margin", accept_margin, 0.0, 2.0);
        let group_margin = self.group_margin.unwrap_or(DEFAULT_GROUP_MARGIN);
        check_range(document, "match.group_margin", group_margin, 0.0, 2.0);
        if let Some(limit) = self.unknown_similarity {
            check_range(document, "match.unknown_similarity", limit, -1.0, 1.0);
            if limit > accept_similarity {
                let message = format!("is {limit}, above accept_similarity ({accept_similarity})");
                document.fault("match.unknown_similarity", message);
            }
        }
        if let Some(limit) = self.unknown_probability {
            check_range(document, "match.unknown_probability", limit, 0.0, 1.0);
            if !self.use_fit {
                let message = "counts with `use_fit = true` only; without a fit, give `unknown_similarity`";
                document.fault("match.unknown_probability", message.to_owned());
            }
        }
        if let Some(scale) = self.px_per_mm {
            check_range(document, "match.px_per_mm", scale, PX_PER_MM_MIN, PX_PER_MM_MAX);
        }
        if let Some(views) = self.views.filter(|views| !(2..=VIEWS_PER_ITEM_MAX).contains(views)) {
            document.fault(
                "match.views",
                format!("is {views}, must be 2 to {VIEWS_PER_ITEM_MAX}; leave it out where each box is an item"),
            );
        }
        let mirrors = checked_areas("match.mirrors", &self.mirrors, document);
        MatchStage {
            index: path_or_fault(self.index, "match.index", "the folder `loupe index build` wrote", document, folder),
            model: path_or_fault(self.model, "match.model", "the embedding model's folder", document, folder),
            providers: validate_providers(self.providers, "match.providers", document, folder),
            accept_similarity,
            accept_margin,
            group_margin,
            unknown_similarity: self.unknown_similarity,
            unknown_probability: self.unknown_probability,
            use_fit: self.use_fit,
            px_per_mm: self.px_per_mm,
            views: self.views,
            mirrors,
            color: self.color.map(|raw| raw.validate(document, folder)),
            min_quality_level: self.min_quality_level,
        }
    }
}

impl RawColor {
    fn validate(self, document: &mut Document, folder: &Path) -> ColorStage {
        let gains = self.gains.unwrap_or([1.0; 3]);
        if gains.iter().any(|gain| !gain.is_finite() || *gain <= 0.0) {
            document.fault("match.color.gains", format!("is {gains:?}; each factor must be above 0"));
        }
        let what = "a CSV file with the columns color_id and rgb_hex";
        let defaults = ColourLimits::default();
        let limits = ColourLimits {
            max_delta_e: self.max_delta_e.unwrap_or(defaults.max_delta_e),
            min_margin: self.min_margin.unwrap_or(defaults.min_margin),
        };
        check_range(document, "match.color.max_delta_e", limits.max_delta_e, 0.0, 100.0);
        check_range(document, "match.color.min_margin", limits.min_margin, 0.0, 100.0);
        ColorStage { table: path_or_fault(self.table, "match.color.table", what, document, folder), gains, limits }
    }
}

impl RawAnomaly {
    fn validate(self, document: &mut Document, folder: &Path) -> AnomalyStage {
        let threshold = self.threshold.unwrap_or(0.5);
        check_range(document, "anomaly.threshold", threshold, 0.0, 1.0);
        let hold_band = self.hold_band.unwrap_or(DEFAULT_HOLD_BAND);
        check_range(document, "anomaly.hold_band", hold_band, 0.0, 1.0);
        let source = match self.graph {
            Some(model) => {
                if self.bank.is_some() || self.models.is_some() || self.search.is_some() || self.group.is_some() {
                    let message = "and `bank`, `models`, `search`, `group` exclude each other: a bank or a graph judges a surface";
                    document.fault("anomaly.graph", message);
                }
                SurfaceSource::Graph { model: folder.join(model) }
            }
            None => SurfaceSource::Bank {
                bank: path_or_fault(self.bank, "anomaly.bank", "the folder `loupe bank build` wrote", document, folder),
                models: path_or_fault(self.models, "anomaly.models", "the folder of model folders", document, folder),
                search: self.search.unwrap_or_default(),
            },
        };
        if let Some(scale) = self.px_per_mm {
            check_range(document, "anomaly.px_per_mm", scale, PX_PER_MM_MIN, PX_PER_MM_MAX);
        }
        AnomalyStage {
            source,
            providers: validate_providers(self.providers, "anomaly.providers", document, folder),
            threshold,
            hold_band,
            group: self.group,
            px_per_mm: self.px_per_mm,
        }
    }
}

impl RawRules {
    fn validate(self, document: &mut Document) -> Rules {
        let defaults = Rules::default();
        let items_max = self.items_max.unwrap_or(defaults.items_max);
        let items_min = self.items_min.unwrap_or(defaults.items_min);
        if items_max > defaults.items_max {
            document.fault("rules.items_max", format!("is {items_max}, must be at most {}", defaults.items_max));
        }
        if items_min > items_max {
            document.fault("rules.items_min", format!("is {items_min}, above items_max ({items_max})"));
        }
        if let Some(deadline_ms) = self.deadline_ms {
            check_range(document, "rules.deadline_ms", deadline_ms, 1.0, 600_000.0);
        }
        Rules {
            items_min,
            items_max,
            when_empty: self.when_empty,
            at_edge: self.at_edge,
            unknown_part: self.unknown_part,
            allowed_labels: self.allowed_labels,
            deadline_ms: self.deadline_ms,
        }
    }
}

impl RawProviders {
    /// 0 = a session a worker; 1 and more = one session; nothing = as the provider likes it.
    fn batching(&self, key_path: &str, document: &mut Document) -> Batching {
        let defaults = BatchLimits::default();
        if let Some(max) = self.batch_max.filter(|max| *max > BATCH_PICTURES_MAX) {
            document.fault(&format!("{key_path}.batch_max"), format!("is {max}, must be 0 to {BATCH_PICTURES_MAX}"));
        }
        if let Some(deadline_ms) = self.batch_deadline_ms {
            check_range(document, &format!("{key_path}.batch_deadline_ms"), deadline_ms, 0.0, 10_000.0);
        }
        let checked_ms = self.batch_deadline_ms.filter(|ms| (0.0..=10_000.0).contains(ms));
        let deadline = checked_ms.map_or(defaults.deadline, |ms| Duration::from_secs_f32(ms / 1_000.0));
        match (self.batch_max, self.batch_deadline_ms) {
            (None, None) => Batching::Auto,
            (Some(0), _) => Batching::Off,
            (max, _) => Batching::On(BatchLimits { max: max.unwrap_or(defaults.max), deadline }),
        }
    }
}

pub(super) fn validate_providers(
    raw: Option<RawProviders>,
    key_path: &str,
    document: &mut Document,
    folder: &Path,
) -> StageProviders {
    let Some(raw) = raw else { return StageProviders::default() };
    if raw.order.is_empty() {
        document.fault(&format!("{key_path}.order"), "is missing: list at least one of tensorrt, cuda, openvino, cpu");
    }
    if raw.intra_threads.is_some_and(|threads| !(1..=limits::MODEL_THREADS_MAX).contains(&threads)) {
        let words = format!("must be 1 to {}", limits::MODEL_THREADS_MAX);
        document.fault(&format!("{key_path}.intra_threads"), words);
    }
    let batching = raw.batching(key_path, document);
    StageProviders {
        plan: ProviderPlan {
            providers: raw.order,
            require: raw.require,
            cache_dir: raw.engine_cache.map(|path| folder.join(path)),
            intra_threads: raw.intra_threads,
            batching,
        },
        accept_fallback: raw.accept_fallback,
    }
}

pub(super) fn path_or_fault(
    path: Option<PathBuf>,
    key_path: &str,
    what: &str,
    document: &mut Document,
    folder: &Path,
) -> PathBuf {
    match path {
        Some(path) => folder.join(path),
        None => {
            document.fault(key_path, format!("is missing: name {what}"));
            PathBuf::new()
        }
    }
}

fn check_range(document: &mut Document, key_path: &str, value: f32, low: f32, high: f32) {
    if !(low..=high).contains(&value) {
        document.fault(key_path, format!("is {value}, must be {low} to {high}"));
    }
}
