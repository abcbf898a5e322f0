//! One frame from its bytes to its decision, on one worker's engines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;
use uuid::Uuid;

use super::artifacts::{self, Material};
use super::decoded::{Decoded, Picture};
use super::engines::{Engines, Locator};
use super::history::History;
use super::identify::{Identifier, fault_of};
use super::program::Program;
use super::provenance::Provenances;
use crate::anomaly::{AnomalyError, ScoreMap};
use crate::capture::CapturedFrame;
use crate::clock::{Clock, Stopwatch};
use crate::config::{ArtifactPolicy, Recipe};
use crate::decide::{Criteria, Decision, Evidence, ItemEvidence, decide};
use crate::ledger::NewArtifact;
use crate::limits::ITEMS_PER_FRAME_MAX;
use crate::locate::{self, LocateError};
use crate::matching::PartIndex;
use crate::notify;
use crate::quality::{self, FrameMetrics, PreviousFrame};
use crate::types::{FolderNote, Image, Inspection, InspectionId, QualityLevel, Reason, Timings};

/// What a station asks of its workers.
#[derive(Debug, Clone)]
pub struct Station {
    pub name: String,
    pub recipe: Arc<Recipe>,
    pub artifacts: ArtifactPolicy,
    pub progress: notify::Progress,
    /// What decisions rest on, by index generation.
    pub provenances: Provenances,
    /// The catalogue's levels as they were at the start; empty where the recipe does not ask.
    pub quality_levels: Arc<BTreeMap<String, QualityLevel>>,
}

/// One frame on its way.
#[derive(Debug)]
pub struct Job {
    pub station_index: usize,
    /// Position in the station's stream, from 0, without gaps.
    pub position: u64,
    pub frame: CapturedFrame,
    /// What it is inspected by.
    pub program: Arc<Program>,
    pub arrived: Stopwatch,
}

/// What became of a frame.
#[derive(Debug)]
pub enum Product {
    Decided { inspection: Box<Inspection>, artifacts: Vec<NewArtifact>, watched: FolderNote },
    Ignored { reason: Reason },
}

/// Evidence in the making.
struct Found {
    evidence: Evidence,
    surface: Surface,
    timings: Timings,
}

/// What pictures of the surface are made of.
#[derive(Default)]
struct Surface {
    map: Option<ScoreMap>,
    /// A small copy of the learnt picture that is most alike.
    nearest: Option<PathBuf>,
}

/// Inspect one frame. Never fails: what goes wrong is a HOLD with its reason.
pub fn inspect(station: &Station, engines: &mut Engines, history: &History, clock: &Clock, job: Job) -> Product {
    let watch = Stopwatch::start();
    let Job { position, frame, arrived, .. } = job;
    let CapturedFrame { source, seq, captured_at, is_stream, payload, watched } = frame;
    let decoded = Decoded::of(&source, payload);
    let mut timings = Timings { decode: watch.ms(), ..Timings::default() };

    let metrics = measure(engines, &decoded, position, history, &mut timings);
    let previous = history.before(position);
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds; f32 is exact enough for an age")]
    let age_ms = clock.now().ms_since(captured_at).max(0.0) as f32;
    let limits = &station.recipe.quality.limits;
    let judged =
        decoded.pictures.iter().zip(&metrics).enumerate().map(|(view, (picture, metrics))| {
            quality::gate(metrics, limits, age_ms, previous.get(view), picture.sha256)
        });
    let quality = quality::of_views(judged.collect());
    let (width_px, height_px) = decoded.image.as_ref().map_or((0, 0), |image| (image.width_px(), image.height_px()));
    let mut found = Found {
        evidence: Evidence {
            width_px,
            height_px,
            views: decoded.views(),
            is_stream,
            quality,
            items: Vec::new(),
            anomaly: None,
            faults: decoded.fault.into_iter().collect(),
            is_provider_fallback: engines.is_fallback,
            elapsed_ms: 0.0,
        },
        surface: Surface::default(),
        timings,
    };
    // One generation for the whole frame: what is recorded is what was searched.
    let index = engines.matcher.as_ref().map(|matcher| matcher.index.current());
    if let Some(image) = &decoded.image {
        examine(station, engines, index.as_deref(), &decoded, image, &source, &mut found);
    }
    found.evidence.elapsed_ms = arrived.ms();

    let watch = Stopwatch::start();
    let (verdict, reasons, items) = match decide(&found.evidence, criteria(&station.recipe)) {
        Decision::Decided { verdict, reasons, items } => (verdict, reasons, items),
        Decision::Ignored(reason) => return Product::Ignored { reason },
    };
    found.timings.decide = watch.ms();
    found.timings.total = arrived.ms();
    let inspection = Inspection {
        id: InspectionId(Uuid::now_v7()),
        code: String::new(),
        source,
        station: station.name.clone(),
        camera: station.name.clone(),
        recipe: station.recipe.name.clone(),
        frame_seq: seq,
        is_stream,
        captured_at,
        decided_at: clock.now().max(captured_at),
        width_px,
        height_px,
        views: decoded.views(),
        frame_sha256: decoded.sha256,
        provenance_sha256: station.provenances.of(index.map(|index| (index.generation_sha256(), index.fit_sha256()))),
        verdict,
        reasons,
        anomaly: found.evidence.anomaly,
        items,
        quality: found.evidence.quality,
        providers: engines.providers.iter().map(|(stage, provider)| (stage.clone(), *provider)).collect(),
        is_provider_fallback: engines.is_fallback,
        faults: found.evidence.faults,
        elapsed_ms: found.evidence.elapsed_ms,
        deadline_ms: station.recipe.rules.deadline_ms,
        timings_ms: found.timings,
        artifacts: Vec::new(),
    };
    let artifacts = pictures(station, &inspection, &decoded, &found.surface);
    Product::Decided { inspection: Box::new(inspection), artifacts, watched }
}

/// What `recipe` asks of the evidence.
#[must_use]
pub fn criteria(recipe: &Recipe) -> Criteria<'_> {
    Criteria {
        rules: &recipe.rules,
        matching: recipe.matching.as_ref(),
        anomaly: recipe.anomaly.as_ref(),
        has_detector: matches!(recipe.locate, crate::config::LocateStage::Detector { .. }),
    }
}

/// Measure the frame's pictures and tell the station's other workers what they were, before waiting for the frame before
/// it.
fn measure(
    engines: &Engines,
    decoded: &Decoded,
    position: u64,
    history: &History,
    timings: &mut Timings,
) -> Vec<FrameMetrics> {
    let watch = Stopwatch::start();
    let measured = |picture: &Picture| quality::measure(&picture.image, engines.reference.as_ref());
    let metrics: Vec<FrameMetrics> = decoded.pictures.iter().map(measured).collect();
    let print =
        |(picture, metrics): (&Picture, &FrameMetrics)| PreviousFrame { sha256: picture.sha256, phash: metrics.phash };
    history.publish(position, decoded.pictures.iter().zip(&metrics).map(print).collect());
    timings.quality = watch.ms();
    metrics
}

/// Locate, match and score; each stage's failure is a fault in the evidence.
fn examine(
    station: &Station,
    engines: &mut Engines,
    index: Option<&PartIndex>,
    decoded: &Decoded,
    image: &Image,
    source: &str,
    found: &mut Found,
) {
    let watch = Stopwatch::start();
    let located = match &mut engines.locator {
        Locator::Whole => decoded.locate(|picture| Ok(locate::whole(picture))),
        Locator::Regions(regions) => locate::regions(image, regions),
        Locator::Blob(locator) => decoded.locate(|picture| Ok(locator.locate(picture))),
        Locator::Detector(locator) => decoded.locate(|picture| locator.locate(picture)),
    };
    found.timings.locate = watch.ms();
    let mut detections = located.unwrap_or_else(|error| {
        warn!(station = station.name, source, error = %error, "frame held: locating failed");
        let fault = match &error {
            LocateError::Inference(error) => fault_of(error),
            LocateError::Region { .. } => Reason::RegionOutside,
            _ => Reason::ModelError,
        };
        found.evidence.faults.push(fault);
        Vec::new()
    });
    if detections.len() > ITEMS_PER_FRAME_MAX {
        detections.truncate(ITEMS_PER_FRAME_MAX);
        found.evidence.faults.push(Reason::TooManyItems);
    }
    found.evidence.items = detections
        .into_iter()
        .map(|d| ItemEvidence {
            bbox: d.bbox,
            views: Vec::new(),
            label: d.label,
            confidence: d.confidence,
            matched: None,
            size_mm: None,
            colour: None,
        })
        .collect();
    if let (Some(index), Some(matcher), Some(stage)) = (index, &mut engines.matcher, &station.recipe.matching) {
        let (station, quality_levels) = (station.name.as_str(), &*station.quality_levels);
        let pictures = &found.evidence.views;
        let identifier = Identifier { station, quality_levels, stage, matcher, index, pictures };
        let faults = identifier.identify(image, source, &mut found.evidence.items, &mut found.timings);
        found.evidence.faults.extend(faults);
    }
    // What judges a surface knows one picture of it; of several it says nothing, and the frame is held for it.
    if decoded.pictures.len() == 1 {
        score(station, engines, image, source, found);
    }
}

fn score(station: &Station, engines: &mut Engines, image: &Image, source: &str, found: &mut Found) {
    let (Some(surface), Some(stage)) = (&mut engines.surface, &station.recipe.anomaly) else { return };
    let watch = Stopwatch::start();
    match surface.score(image) {
        Ok(result) => {
            let mut evidence = result.evidence;
            evidence.threshold = stage.threshold;
            found.evidence.anomaly = Some(evidence);
            found.surface.map = Some(result.map);
            found.surface.nearest = result.nearest.and_then(|picture| picture.path);
        }
        Err(error) => {
            warn!(station = station.name, source, error = %error, "frame held: anomaly scoring failed");
            let fault = match &error {
                AnomalyError::Inference(error) => fault_of(error),
                error if error.is_not_in_place() => Reason::AnomalyNotRegistered,
                _ => Reason::ModelError,
            };
            found.evidence.faults.push(fault);
        }
    }
    found.timings.anomaly = watch.ms();
}

/// A picture that cannot be made is worth a warning, never the verdict.
fn pictures(station: &Station, inspection: &Inspection, decoded: &Decoded, surface: &Surface) -> Vec<NewArtifact> {
    let Some(image) = &decoded.image else {
        // What cannot be decoded is kept as it came, so that a person can look into it.
        return decoded
            .encoded
            .as_deref()
            .map_or_else(Vec::new, |bytes| vec![artifacts::frame_bytes(inspection, bytes)]);
    };
    let material = Material {
        image,
        encoded: decoded.encoded.as_deref(),
        map: surface.map.as_ref(),
        nearest: surface.nearest.as_deref(),
    };
    artifacts::make(station.artifacts, inspection, material).unwrap_or_else(|error| {
        warn!(station = station.name, source = inspection.source, error = %error, "pictures of this inspection are missing");
        Vec::new()
    })
}
