//! What a bank's `manifest.json` says, and what can be wrong with it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::group::{GROUPS_MAX, Group, GroupManifest};
use super::threshold::ThresholdRule;
use super::view::View;
use crate::types::Digest;

pub(super) const VECTORS_FILE: &str = "bank.faiss";
pub(super) const FORMAT: &str = "loupe-bank/3";
/// Without a seal; the first has one group, no list of it and no pictures.
const FORMATS_BEFORE: [&str; 2] = ["loupe-bank/2", "loupe-bank/1"];

/// The model whose features a bank holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankModel {
    pub name: String,
    pub version: String,
    /// Of the model's file.
    pub sha256: Digest,
    /// Of how a picture's pixels become the model's input; `None` in banks of versions that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<Digest>,
}

/// A feature map that went into the descriptors, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub output: String,
    pub stride: u32,
    pub channels: usize,
}

/// What `manifest.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankManifest {
    pub format: String,
    pub software_version: String,
    pub model: BankModel,
    pub layers: Vec<Layer>,
    /// Width and height that whole pictures are stretched to.
    pub input_px: [u32; 2],
    /// Patches across and down.
    pub grid: [usize; 2],
    /// Values of a descriptor.
    pub dim: usize,
    /// Share of the training patches that was asked for, above 0, at most 1.
    pub coreset_ratio: f64,
    /// Vectors in the bank.
    pub coreset_count: usize,
    pub seed: u64,
    pub train_count: usize,
    /// Image score of a picture on the edge of good, on the raw scale.
    pub image_threshold_raw: f32,
    /// Map value on the edge of good, on the raw scale; both thresholds are those of the first group.
    pub pixel_threshold_raw: f32,
    /// How these two were found, and those of groups that say nothing else.
    #[serde(default)]
    pub threshold: ThresholdRule,
    #[serde(default, skip_serializing_if = "View::is_plain")]
    pub view: View,
    /// Empty in banks of the first format, which have one without a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupManifest>,
    /// The bank that this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// Digest of each other file of the folder.
    pub files: BTreeMap<String, Digest>,
}

impl BankManifest {
    /// How the thresholds of one of its groups were found.
    #[must_use]
    pub fn rule_of(&self, group: &GroupManifest) -> ThresholdRule {
        group.threshold.unwrap_or(self.threshold)
    }

    /// What the bank holds, also for the first format.
    pub(super) fn group_list(&self) -> Vec<GroupManifest> {
        let threshold = Some(self.threshold);
        if !self.groups.is_empty() {
            let named =
                |group: &GroupManifest| GroupManifest { threshold: group.threshold.or(threshold), ..group.clone() };
            return self.groups.iter().map(named).collect();
        }
        vec![GroupManifest {
            name: String::new(),
            coreset_count: self.coreset_count,
            train_count: self.train_count,
            image_threshold_raw: self.image_threshold_raw,
            pixel_threshold_raw: self.pixel_threshold_raw,
            threshold,
            reference_px: None,
        }]
    }

    /// Fill in what follows from the groups.
    pub(super) fn describe(&mut self, groups: &[Group]) {
        FORMAT.clone_into(&mut self.format);
        self.groups = groups.iter().map(|group| group.manifest.clone()).collect();
        self.coreset_count = self.groups.iter().map(|group| group.coreset_count).sum();
        self.train_count = self.groups.iter().map(|group| group.train_count).sum();
        if let Some(first) = self.groups.first() {
            self.image_threshold_raw = first.image_threshold_raw;
            self.pixel_threshold_raw = first.pixel_threshold_raw;
            self.threshold = first.threshold.unwrap_or(self.threshold);
        }
    }
}

/// The first fault of a manifest that was read.
pub(super) fn check(manifest: &BankManifest) -> Result<(), String> {
    let format = manifest.format.as_str();
    if format != FORMAT && !FORMATS_BEFORE.contains(&format) {
        let before = FORMATS_BEFORE.join("` and `");
        return Err(format!("its format is `{format}`, this version reads `{FORMAT}`, `{before}`"));
    }
    let is_plain = |name: &str| {
        !name.is_empty()
            && name != ".."
            && name != "."
            && Path::new(name).components().count() == 1
            && !name.contains('/')
    };
    if !manifest.files.contains_key(VECTORS_FILE) || !manifest.files.keys().all(|name| is_plain(name)) {
        return Err(format!("`files` must name {VECTORS_FILE} and plain file names only"));
    }
    if !is_plain(&manifest.model.name) {
        return Err(format!("the model's name `{}` is no folder name", manifest.model.name));
    }
    if manifest.input_px.iter().any(|&side| side == 0 || side > crate::limits::IMAGE_SIDE_PX_MAX) {
        return Err(format!("`input_px` is {:?}", manifest.input_px));
    }
    check_parts(manifest)?;
    // The same two numbers stand twice; a bank of a format without a seal shows damage of them only here.
    let thresholds = [manifest.image_threshold_raw, manifest.pixel_threshold_raw];
    let of_first = manifest.groups.first().map(|group| [group.image_threshold_raw, group.pixel_threshold_raw]);
    match of_first {
        Some(of_first) if of_first != thresholds => {
            Err(format!("it is damaged: its thresholds are {thresholds:?}, those of its first group {of_first:?}"))
        }
        _ => Ok(()),
    }
}

/// What can be wrong before any file is written.
pub(super) fn check_parts(manifest: &BankManifest) -> Result<(), String> {
    manifest.view.check().map_err(|error| error.to_string())?;
    let tiles = manifest.view.tiles.map_or([1, 1], |tiles| [tiles.columns, tiles.rows]);
    let sides = [0, 1].map(|axis| manifest.input_px[axis] as usize * tiles[axis] as usize);
    if manifest.grid.contains(&0) || manifest.grid.iter().zip(sides).any(|(&cells, px)| cells > px) {
        return Err(format!("`grid` is {:?}", manifest.grid));
    }
    check_groups(&manifest.group_list(), manifest.view.registration.is_some())
}

fn check_groups(groups: &[GroupManifest], is_registered: bool) -> Result<(), String> {
    if groups.len() > GROUPS_MAX {
        return Err(format!("it has {} groups, at most {GROUPS_MAX} are allowed", groups.len()));
    }
    let names: std::collections::BTreeSet<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    if names.len() != groups.len() || (groups.len() > 1 && names.contains("")) {
        return Err("its groups need names of their own".to_owned());
    }
    for group in groups {
        let thresholds = [group.image_threshold_raw, group.pixel_threshold_raw];
        if thresholds.iter().any(|threshold| !threshold.is_finite() || *threshold < 0.0) {
            return Err(format!("its thresholds are {thresholds:?}"));
        }
        let side_max = crate::limits::IMAGE_SIDE_PX_MAX;
        if group.reference_px.is_some_and(|sides| sides.iter().any(|side| !(1..=side_max).contains(side))) {
            return Err(format!("its reference picture is {:?}", group.reference_px));
        }
        if is_registered && group.reference_px.is_none() {
            return Err(format!("group `{}` has no picture to register to", group.name));
        }
    }
    Ok(())
}
