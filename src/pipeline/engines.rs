//! The opened models, index and bank of one recipe, as one worker uses them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracing::warn;

use super::provenance::{FIT_CALIBRATION, Provenance};
use crate::anomaly::{AnomalyError, GraphSurface, PatchCore, Surface};
use crate::capture::{self, CaptureError};
use crate::config::{AnomalyStage, LocateStage, Recipe, StageProviders, SurfaceSource};
use crate::inference::{FeatureModel, Host, InferenceError, ModelHealth, ModelManifest};
use crate::locate::{BlobLocator, DetectorLocator, LocateError};
use crate::matching::catalogue::{self, CatalogueError};
use crate::matching::{DeltaCell, Deltas, LiveIndex, MatchError};
use crate::measure::ColourTable;
use crate::quality::Reference;
use crate::types::{BoundingBox, Digest, Image, Provider};

/// The grey picture of the warm-up.
const WARM_UP_SIDE_PX: u32 = 64;
const WARM_UP_BYTES: usize = 64 * 64 * 3;

/// Why a recipe's engines cannot run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{stage} model: {source}")]
    Inference { stage: &'static str, source: Box<InferenceError> },
    #[error("part index: {0}")]
    Match(#[from] MatchError),
    #[error("anomaly: {0}")]
    Anomaly(#[from] AnomalyError),
    #[error("detector: {0}")]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("reference picture: {0}")]
    Reference(#[from] CaptureError),
}

/// One worker's engines for one recipe. The index is shared, and the sessions as the host says.
#[derive(Debug)]
pub struct Engines {
    pub reference: Option<Reference>,
    pub locator: Locator,
    pub matcher: Option<Matcher>,
    pub surface: Option<Box<dyn Surface>>,
    /// By stage, what really runs.
    pub providers: BTreeMap<String, Provider>,
    /// By stage, how its model is doing.
    pub health: BTreeMap<String, ModelHealth>,
    /// A stage runs elsewhere than its first choice and the recipe does not accept that.
    pub is_fallback: bool,
    model_sha256s: BTreeMap<String, Digest>,
    /// What measured or fitted numbers a decision rests on, by name.
    calibration_sha256s: BTreeMap<String, Digest>,
}

/// How items are found.
#[derive(Debug)]
pub enum Locator {
    Whole,
    Regions(Vec<BoundingBox>),
    Blob(BlobLocator),
    Detector(Box<DetectorLocator>),
}

/// Embedder and index.
#[derive(Debug)]
pub struct Matcher {
    pub model: FeatureModel,
    pub index: LiveIndex,
    /// What was learned since the index was built.
    pub delta: DeltaCell,
    /// Colours that items are named by; empty where the recipe names none.
    pub colours: ColourTable,
}

impl Engines {
    /// Open everything `recipe` names in `host` (a worker's place in a pool, or the runtime alone); `index` is the part index
    /// opened once for all workers.
    ///
    /// # Errors
    /// When a model, an index, a bank or the reference picture cannot be used, with what to do.
    pub fn open(
        host: impl Into<Host>,
        recipe: &Recipe,
        index: Option<LiveIndex>,
        deltas: &Deltas,
    ) -> Result<Engines, EngineError> {
        let host = host.into();
        let mut engines = Engines {
            reference: recipe
                .quality
                .reference
                .as_deref()
                .map(capture::read_image)
                .transpose()?
                .map(|i| Reference::new(&i)),
            locator: Locator::Whole,
            matcher: None,
            surface: None,
            providers: BTreeMap::new(),
            health: BTreeMap::new(),
            is_fallback: false,
            model_sha256s: BTreeMap::new(),
            calibration_sha256s: BTreeMap::new(),
        };
        match &recipe.locate {
            LocateStage::Whole => {}
            LocateStage::Regions(regions) => engines.locator = Locator::Regions(regions.clone()),
            LocateStage::Blob(options) => engines.locator = Locator::Blob(BlobLocator::new(options.clone())),
            LocateStage::Detector { model, options, providers } => {
                let manifest = ModelManifest::load(model)
                    .map_err(|source| EngineError::Inference { stage: "locate", source: Box::new(source) })?;
                let locator = DetectorLocator::open(&host, &manifest, &providers.plan, options.clone())?;
                engines.note("locate", manifest.sha256(), locator.provider(), locator.is_fallback(), providers);
                engines.health.insert("locate".to_owned(), locator.health().clone());
                engines.locator = Locator::Detector(Box::new(locator));
            }
        }
        if let (Some(stage), Some(index)) = (&recipe.matching, index) {
            let of_embed = |source| EngineError::Inference { stage: "embed", source: Box::new(source) };
            let manifest = ModelManifest::load(&stage.model).map_err(of_embed)?;
            let model = FeatureModel::open(&host, &manifest, &stage.providers.plan).map_err(of_embed)?;
            let serving = index.current();
            serving.require_model(model.embedding_dim(), manifest.sha256(), Some(manifest.input_sha256()))?;
            let delta = deltas.cell(&stage.index, &serving.manifest().embedding, serving.dim());
            engines.health.insert("embed".to_owned(), model.health().clone());
            engines.note("embed", manifest.sha256(), model.provider(), model.is_fallback(), &stage.providers);
            if let Some(sha256) = serving.fit_sha256() {
                engines.calibration_sha256s.insert(FIT_CALIBRATION.to_owned(), sha256);
            }
            let mut colours = ColourTable::default();
            if let Some(color) = &stage.color {
                let named = catalogue::read_colours(&color.table)?;
                colours = ColourTable::new(&named);
                let sha256 = Digest::of_file(&color.table)
                    .map_err(|source| EngineError::File { path: color.table.clone(), source })?;
                engines.calibration_sha256s.insert("match.colors".to_owned(), sha256);
            }
            engines.matcher = Some(Matcher { model, index, delta, colours });
        }
        if let Some(stage) = &recipe.anomaly {
            let surface = open_surface(stage, &host)?;
            engines.note(
                "anomaly",
                surface.model_sha256(),
                surface.provider(),
                surface.is_fallback(),
                &stage.providers,
            );
            engines.health.insert("anomaly".to_owned(), surface.health().clone());
            engines.surface = Some(surface);
        }
        Ok(engines)
    }

    fn note(
        &mut self,
        stage: &str,
        model_sha256: Digest,
        provider: Provider,
        is_fallback: bool,
        providers: &StageProviders,
    ) {
        self.providers.insert(stage.to_owned(), provider);
        self.model_sha256s.insert(stage.to_owned(), model_sha256);
        self.is_fallback |= is_fallback && !providers.accept_fallback;
    }

    /// Run each model once on a grey picture, at the size it will run at, so that the first frame does not pay for what the
    /// runtime does at a first run (on an accelerator: compiling kernels). What fails is the frames' business.
    pub fn warm_up(&mut self) {
        let Ok(grey) = Image::from_bgr(WARM_UP_SIDE_PX, WARM_UP_SIDE_PX, vec![128; WARM_UP_BYTES]) else { return };
        let mut faults: Vec<String> = Vec::new();
        if let Locator::Detector(locator) = &mut self.locator {
            faults.extend(locator.locate(&grey).err().map(|error| error.to_string()));
        }
        if let Some(matcher) = &mut self.matcher {
            let input_px = matcher.index.current().manifest().embedding.input_px;
            let area = BoundingBox::whole(WARM_UP_SIDE_PX, WARM_UP_SIDE_PX);
            faults.extend(matcher.model.embed(&[(&grey, area)], input_px).err().map(|error| error.to_string()));
        }
        if let Some(surface) = &mut self.surface {
            faults.extend(surface.warm_up().err().map(|error| error.to_string()));
        }
        for fault in faults {
            warn!(error = fault, "a model failed in its warm-up; frames that need it will be held");
        }
    }

    /// What a decision by these engines rests on.
    #[must_use]
    pub fn provenance(&self, recipe: &Recipe, software_sha256: Digest) -> Provenance {
        Provenance {
            bank_sha256: self.surface.as_ref().map(|surface| surface.bank_sha256()),
            calibration_sha256s: self.calibration_sha256s.clone(),
            generation_sha256: self.matcher.as_ref().map(|matcher| matcher.index.current().generation_sha256()),
            model_sha256s: self.model_sha256s.clone(),
            providers: self.providers.clone(),
            recipe_body: recipe.body.clone(),
            recipe_name: recipe.name.clone(),
            recipe_sha256: recipe.sha256,
            software_sha256,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Milliseconds spent inside ONNX Runtime since the engines were opened.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        let locate = if let Locator::Detector(locator) = &self.locator { locator.session_ms() } else { 0.0 };
        let embed = self.matcher.as_ref().map_or(0.0, |matcher| matcher.model.session_ms());
        locate + embed + self.surface.as_ref().map_or(0.0, |surface| surface.session_ms())
    }
}

fn open_surface(stage: &AnomalyStage, host: &Host) -> Result<Box<dyn Surface>, AnomalyError> {
    let plan = &stage.providers.plan;
    match &stage.source {
        SurfaceSource::Bank { bank, models, search } => {
            let mut surface = PatchCore::open(bank, host, models, plan)?.with_scale(stage.px_per_mm);
            if let Some(name) = &stage.group {
                surface = surface.only_group(name)?;
            }
            surface.set_search(*search);
            Ok(Box::new(surface))
        }
        SurfaceSource::Graph { model } => {
            let surface = GraphSurface::open(&ModelManifest::load(model)?, host, plan)?;
            Ok(Box::new(surface.with_scale(stage.px_per_mm)))
        }
    }
}
