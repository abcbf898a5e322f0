//! `[locate]` of a recipe: where a frame's items are looked for.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Document;
use super::recipe::{MatchStage, RawProviders, Recipe, StageProviders, path_or_fault, validate_providers};
use crate::limits::ITEMS_PER_FRAME_MAX;
use crate::locate::{BlobOptions, DetectorOptions};
use crate::types::BoundingBox;

/// How items are found in a frame.
#[derive(Debug, Clone)]
pub enum LocateStage {
    /// The frame is the item.
    Whole,
    /// Where the recipe says: mirrors, nests, several cameras in one picture. px of the frame.
    Regions(Vec<BoundingBox>),
    /// Whatever differs from the background.
    Blob(BlobOptions),
    /// A detector; its manifest says how it is read.
    Detector { model: PathBuf, options: DetectorOptions, providers: StageProviders },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLocate {
    kind: LocateKind,
    model: Option<PathBuf>,
    regions: Vec<[f32; 4]>,
    blob: BlobOptions,
    /// `yolox` is what it was called before other layouts were read.
    #[serde(alias = "yolox")]
    detector: DetectorOptions,
    providers: Option<RawProviders>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LocateKind {
    #[default]
    Whole,
    Regions,
    Blob,
    #[serde(alias = "yolox")]
    Detector,
}

impl RawLocate {
    pub fn validate(self, document: &mut Document, folder: &Path) -> LocateStage {
        for (key, message) in self.blob.faults() {
            document.fault(&format!("locate.blob.{key}"), message);
        }
        for (key, message) in self.detector.faults() {
            document.fault(&format!("locate.detector.{key}"), message);
        }
        let regions = checked_regions(&self.regions, self.kind, document);
        match self.kind {
            LocateKind::Whole => LocateStage::Whole,
            LocateKind::Regions => LocateStage::Regions(regions),
            LocateKind::Blob => LocateStage::Blob(self.blob),
            LocateKind::Detector => LocateStage::Detector {
                model: path_or_fault(self.model, "locate.model", "the detector's model folder", document, folder),
                options: self.detector,
                providers: validate_providers(self.providers, "locate.providers", document, folder),
            },
        }
    }
}

/// The regions as boxes.
fn checked_regions(regions: &[[f32; 4]], kind: LocateKind, document: &mut Document) -> Vec<BoundingBox> {
    match (kind, regions.len()) {
        (LocateKind::Regions, 0) => document.fault("locate.regions", "is missing: list [x1, y1, x2, y2] in pixels"),
        (LocateKind::Regions, 1..=ITEMS_PER_FRAME_MAX) | (_, 0) => {}
        (LocateKind::Regions, count) => {
            document.fault("locate.regions", format!("lists {count} regions, must be at most {ITEMS_PER_FRAME_MAX}"));
        }
        _ => document.fault("locate.regions", "counts with `kind = \"regions\"` only"),
    }
    checked_areas("locate.regions", regions, document)
}

/// The areas that `key` lists, as boxes; each must have a size.
pub(super) fn checked_areas(key: &str, areas: &[[f32; 4]], document: &mut Document) -> Vec<BoundingBox> {
    for area in areas {
        let [x1, y1, x2, y2] = *area;
        let is_box = area.iter().all(|value| value.is_finite()) && x1 >= 0.0 && y1 >= 0.0 && x2 > x1 && y2 > y1;
        if !is_box {
            document.fault(key, format!("has {area:?}, which is no [x1, y1, x2, y2] in pixels"));
        }
    }
    areas.iter().map(|&[x1, y1, x2, y2]| BoundingBox::new(x1, y1, x2, y2)).collect()
}

/// Several views need as many boxes.
pub(super) fn check_views(matching: Option<&MatchStage>, locate: &LocateStage, document: &mut Document) {
    if let (Some(views), LocateStage::Regions(regions)) = (matching.and_then(|stage| stage.views), locate)
        && regions.len() != views
    {
        document.fault("match.views", format!("is {views}, but `[locate]` has {} regions", regions.len()));
    }
}

impl Recipe {
    /// Why frames that a source puts together of so many pictures cannot be inspected by this recipe, in words. `None`: each
    /// picture is a frame.
    #[must_use]
    pub fn fault_of_source_views(&self, pictures: Option<usize>) -> Option<String> {
        if pictures.is_some() && self.anomaly.is_some() {
            return Some("[anomaly] judges one picture, and the source puts several together (views)".to_owned());
        }
        let views = self.matching.as_ref().and_then(|stage| stage.views)?;
        (matches!(self.locate, LocateStage::Whole) && pictures != Some(views)).then(|| {
            format!(
                "match.views is {views}, and the picture is the item: let the source put {views} pictures together \
                 (views = {views}), or give [locate] a kind that finds {views} boxes"
            )
        })
    }
}
