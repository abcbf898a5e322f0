//! Builds a bank out of pictures of good parts, and finds its thresholds from the same pictures.

use std::collections::BTreeMap;
use std::path::Path;

use super::align::{Aligner, Motion};
use super::describe::{Describer, layers};
use super::folds::{GoodScores, Training};
use super::grey::Grey;
use super::group::{Group, GroupManifest, Picture, THUMBNAILS_MAX, Thumbnail};
use super::manifest::BankModel;
use super::threshold::ThresholdRule;
use super::view::{AskedOutline, AskedTiles, Registration, View, area_px};
use super::{AnomalyError, Bank, BankManifest};
use crate::inference::FeatureModel;
use crate::limits;
use crate::types::Image;

/// One to learn from and one to try it on.
pub const IMAGES_MIN: usize = 2;
/// All training descriptors are held at once, and once more in each worker: 2 GiB are 5 000 pictures of 784 × 128.
pub const FEATURE_BYTES_MAX: usize = 2 << 30;
/// Least correlation with the reference where nothing else is asked for. Parts that lie as taught reach 0.9 and more, also
/// with defects; another scene stays below 0.6.
pub const DEFAULT_CORRELATION_MIN: f32 = 0.75;

/// How a bank is built.
#[derive(Debug, Clone, PartialEq)]
pub struct BankOptions {
    /// Share of the training patches kept, above 0, at most 1.
    pub coreset_ratio: f64,
    /// Width and height that a picture (or each tile of it) is stretched to; the model's own where `None`.
    pub input_px: Option<(u32, u32)>,
    /// Decides the first choice and the projection.
    pub seed: u64,
    /// Name of the group that the pictures make up; empty for a bank without named groups.
    pub group: String,
    /// Seconds the coreset may take; what was chosen until then is the bank. `None` = as long as it takes.
    pub budget_s: Option<f32>,
    pub threshold: ThresholdRule,
    pub regions: Vec<AskedOutline>,
    pub ignored: Vec<AskedOutline>,
    pub zoom: bool,
    pub tiles: Option<AskedTiles>,
    /// Share of a tile that neighbours have in common, 0 to 0.75.
    pub tile_overlap: f32,
    /// Bring parts to where the first picture shows them.
    pub motion: Option<Motion>,
    pub correlation_min: f32,
}

impl Default for BankOptions {
    /// One patch in ten of whole pictures at the model's input size, seed 0.
    fn default() -> Self {
        Self {
            coreset_ratio: 0.1,
            input_px: None,
            seed: 0,
            group: String::new(),
            budget_s: None,
            threshold: ThresholdRule::Headroom,
            regions: Vec::new(),
            ignored: Vec::new(),
            zoom: false,
            tiles: None,
            tile_overlap: 0.125,
            motion: None,
            correlation_min: DEFAULT_CORRELATION_MIN,
        }
    }
}

impl BankOptions {
    fn check(&self) -> Result<(), AnomalyError> {
        let fault = |option, value: String, allowed| Err(AnomalyError::Option { option, value, allowed });
        if !(self.coreset_ratio > 0.0 && self.coreset_ratio <= 1.0) {
            return fault("coreset ratio", self.coreset_ratio.to_string(), "above 0 and at most 1");
        }
        if !(0.0..=0.75).contains(&self.tile_overlap) {
            return fault("overlap of tiles", self.tile_overlap.to_string(), "0 to 0.75 of a tile");
        }
        if let Some(budget_s) = self.budget_s.filter(|budget_s| !budget_s.is_finite() || *budget_s <= 0.0) {
            return fault("time budget", format!("{budget_s} s"), "above 0");
        }
        if self.group.chars().count() > limits::REVIEW_WORD_CHARS_MAX || self.group.chars().any(char::is_control) {
            return fault("group", format!("{:?}", self.group), "a name of at most 100 characters");
        }
        Ok(())
    }

    /// The view, in fractions of `reference`.
    fn view(&self, reference: &Image, input_px: (u32, u32), stride_px: u32) -> View {
        let (width, height) = (reference.width_px(), reference.height_px());
        let outlines = |asked: &[AskedOutline]| asked.iter().map(|one| one.in_fractions(width, height)).collect();
        let mut view = View {
            regions: outlines(&self.regions),
            ignored: outlines(&self.ignored),
            zoom: self.zoom,
            tiles: None,
            registration: self.motion.map(|motion| Registration { motion, correlation_min: self.correlation_min }),
        };
        let area = area_px(view.area(), [0.0, 0.0, 1.0, 1.0], width, height);
        let sides = [area.width_px(), area.height_px()];
        view.tiles = self.tiles.map(|tiles| tiles.tiles(sides, input_px, self.tile_overlap, stride_px));
        view
    }
}

/// What a bank remembers of a picture beside its patches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureNote {
    /// Its file's name.
    pub name: String,
    /// A small JPEG of it.
    pub thumbnail: Option<Vec<u8>>,
}

/// Collects the descriptors of good pictures, then makes the bank.
#[derive(Debug)]
pub struct BankBuilder {
    describer: Describer,
    options: BankOptions,
    stride_px: u32,
    /// The bank that is added to.
    parent: Option<Bank>,
    /// The first picture, once there is one, or the parent group's.
    reference: Option<([u32; 2], Grey)>,
    aligner: Option<Aligner>,
    is_view_fixed: bool,
    /// Of the patches that count and were seen, picture by picture, `[patches, dim]`.
    descriptors: Vec<f32>,
    /// Of each picture, which of the patches that count were seen; `None` = all.
    seen: Vec<Option<Vec<usize>>>,
    notes: Vec<PictureNote>,
}

impl BankBuilder {
    /// # Errors
    /// When an option is out of bounds.
    pub fn new(model: FeatureModel, options: BankOptions) -> Result<Self, AnomalyError> {
        options.check()?;
        let [width, height] = model.manifest().input().size_px;
        let input_px = options.input_px.unwrap_or((width, height));
        if [input_px.0, input_px.1].iter().any(|side| !(32..=limits::IMAGE_SIDE_PX_MAX).contains(side)) {
            let value = format!("{}x{}", input_px.0, input_px.1);
            return Err(AnomalyError::Option { option: "input size", value, allowed: "32 to 16384 pixels a side" });
        }
        let stride_px = layers(&model).iter().map(|layer| layer.stride).max().unwrap_or(1);
        Ok(Self {
            describer: Describer::new(model, input_px, View::default()),
            options,
            stride_px,
            parent: None,
            reference: None,
            aligner: None,
            is_view_fixed: false,
            descriptors: Vec::new(),
            seen: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Learn further pictures beside those of `parent`: into its group `options.group`, or as a new group of that name.
    /// View, input and seed are the parent's; of `options` the coreset's share, group and budget count.
    ///
    /// # Errors
    /// When the model is not the parent's, an option is out of bounds, or a group without a name would get a neighbour.
    pub fn extending(parent: Bank, model: FeatureModel, options: BankOptions) -> Result<Self, AnomalyError> {
        let manifest = parent.manifest();
        super::patchcore::require_model(&parent, &model)?;
        let options = BankOptions {
            input_px: Some((manifest.input_px[0], manifest.input_px[1])),
            seed: manifest.seed,
            ..options
        };
        let mut builder = Self::new(model, options)?;
        builder.describer.view = manifest.view.clone();
        builder.is_view_fixed = true;
        let group = parent.groups().iter().find(|group| group.manifest.name == builder.options.group);
        if parent.groups().iter().any(|group| group.origins.is_empty()) {
            let value = parent.folder().display().to_string();
            let allowed = "one that remembers its pictures: build it again with this version";
            return Err(AnomalyError::Option { option: "bank", value, allowed });
        }
        if group.is_none() && builder.options.group.is_empty() {
            let (option, value) = ("group", "not given".to_owned());
            let allowed = "named (--group), an old or a new one: the bank's own pictures have group names";
            return Err(AnomalyError::Option { option, value, allowed });
        }
        if group.is_none() && parent.group_names().contains(&"") {
            let (option, value) = ("group", builder.options.group.clone());
            let allowed = "left out: the bank's own pictures have no group name (build it with --group)";
            return Err(AnomalyError::Option { option, value, allowed });
        }
        builder.aligner = group.and_then(|group| group.aligner(&manifest.view));
        builder.reference = group.and_then(|group| group.manifest.reference_px.zip(group.reference.clone()));
        builder.parent = Some(parent);
        Ok(builder)
    }

    /// Learn one picture of a good part.
    ///
    /// # Errors
    /// When the part is not where the first picture shows it ([`AnomalyError::is_not_in_place`]), the model fails or the
    /// descriptors grow beyond the limit.
    pub fn add(&mut self, image: &Image) -> Result<(), AnomalyError> {
        self.add_noted(image, PictureNote::default())
    }

    /// Learn one picture of a good part and remember what it was.
    ///
    /// # Errors
    /// As [`BankBuilder::add`].
    pub fn add_noted(&mut self, image: &Image, note: PictureNote) -> Result<(), AnomalyError> {
        self.take_reference(image)?;
        let described = self.describer.describe(image, &self.aligner.iter().collect::<Vec<_>>())?;
        let bytes = (self.descriptors.len() + described.patches.len()) * size_of::<f32>();
        if bytes > FEATURE_BYTES_MAX {
            return Err(AnomalyError::TooLarge { images: self.notes.len() + 1, bytes });
        }
        self.descriptors.extend_from_slice(&described.patches);
        self.seen.push(described.seen);
        self.notes.push(note);
        Ok(())
    }

    /// The first picture fixes the view and is what others are registered to.
    fn take_reference(&mut self, image: &Image) -> Result<(), AnomalyError> {
        if !self.is_view_fixed {
            let view = self.options.view(image, self.describer.input_px, self.stride_px);
            view.check()?;
            self.describer.view = view;
            self.is_view_fixed = true;
        }
        if let (None, Some(registration)) = (&self.aligner, self.describer.view.registration) {
            let size = (image.width_px(), image.height_px());
            let grey = Aligner::reduce(image);
            self.aligner = Some(Aligner::new(grey.clone(), size, registration.motion));
            self.reference = Some(([size.0, size.1], grey));
        }
        Ok(())
    }

    /// Choose the coreset, find the thresholds and write the bank to `out`, which must not exist.
    ///
    /// # Errors
    /// When there are too few pictures, a search fails or the bank cannot be written.
    pub fn finish(self, out: &Path) -> Result<Bank, AnomalyError> {
        self.finish_with(out, &|_, _| {})
    }

    /// As [`BankBuilder::finish`]; `progress` is told how many vectors of how many are chosen.
    ///
    /// The thresholds come from up to five folds: the pictures of each are scored by a bank of the others, built the
    /// same way, so that no picture is judged by its own patches (see `score::threshold`).
    ///
    /// # Errors
    /// As [`BankBuilder::finish`].
    pub fn finish_with(mut self, out: &Path, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Bank, AnomalyError> {
        let parent = self.parent.take();
        self.write(out, parent, self.options.coreset_ratio, progress)
    }

    /// As [`BankBuilder::finish`] with another share of the patches; the builder can go on. For a builder that extends no
    /// bank.
    ///
    /// # Errors
    /// As [`BankBuilder::finish`].
    pub fn finish_trial(&self, out: &Path, coreset_ratio: f64) -> Result<Bank, AnomalyError> {
        self.write(out, None, coreset_ratio, &|_, _| {})
    }

    fn write(
        &self,
        out: &Path,
        parent: Option<Bank>,
        coreset_ratio: f64,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Bank, AnomalyError> {
        let own = parent.as_ref().and_then(|parent| parent.group_number(&self.options.group).ok());
        let least = if own.is_some() { 1 } else { IMAGES_MIN };
        let Some(shape) = self.describer.shape().filter(|_| self.notes.len() >= least) else {
            return Err(AnomalyError::TooFewImages { got: self.notes.len() });
        };
        if out.exists() {
            return Err(AnomalyError::Exists { path: out.to_owned() });
        }
        let base = parent.as_ref().zip(own).map_or(&[][..], |(parent, own)| parent.groups()[own].memory.vectors());
        let training = Training {
            descriptors: &self.descriptors,
            seen: &self.seen,
            shape: &shape,
            base,
            coreset_ratio,
            seed: self.options.seed,
            budget_s: self.options.budget_s,
            progress,
        };
        let (learned, good) = training.learn()?;
        let mut manifest = self.manifest(parent.as_ref(), [shape.grid.0, shape.grid.1], shape.dim);
        if parent.is_none() {
            manifest.coreset_ratio = coreset_ratio;
        }
        manifest.parent = parent.as_ref().map(Bank::sha256);
        let mut thumbnails = parent.as_ref().map_or_else(Vec::new, Bank::thumbnails);
        let rule = match (&parent, own) {
            (None, _) => self.options.threshold,
            (Some(parent), None) => goes_on(parent.manifest().threshold),
            (Some(parent), Some(own)) => goes_on(parent.rule_of(own)),
        };
        let mut groups = parent.map_or_else(Vec::new, Bank::into_groups);
        let number = own.unwrap_or(groups.len());
        let before = own.map(|own| groups.remove(own));
        let (learnt_before, mut pictures, mut origins) =
            before.map_or_else(Default::default, |group| (group.manifest.train_count, group.pictures, group.origins));
        let offset = u32::try_from(pictures.len()).unwrap_or(u32::MAX);
        origins.extend(learned.origins.iter().map(|origin| origin.saturating_add(offset)));
        self.add_pictures(number, &good, &mut pictures, &mut thumbnails);
        let mut group = Group {
            manifest: GroupManifest {
                name: self.options.group.clone(),
                coreset_count: learned.memory.len(),
                train_count: self.notes.len() + learnt_before,
                image_threshold_raw: 0.0,
                pixel_threshold_raw: 0.0,
                threshold: None,
                reference_px: self.reference.as_ref().map(|(size, _)| *size),
            },
            memory: learned.memory,
            origins,
            pictures,
            reference: self.reference.as_ref().map(|(_, grey)| grey.clone()),
        };
        super::fit::apply_to_good(&mut group, rule)?;
        groups.insert(number, group);
        Bank::write(out, manifest, groups, &thumbnails)
    }

    fn manifest(&self, parent: Option<&Bank>, grid: [usize; 2], dim: usize) -> BankManifest {
        let model = self.describer.model.manifest();
        BankManifest {
            format: String::new(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            model: BankModel {
                name: model.name().to_owned(),
                version: model.version().to_owned(),
                sha256: model.sha256(),
                input_sha256: Some(model.input_sha256()),
            },
            layers: layers(&self.describer.model),
            input_px: [self.describer.input_px.0, self.describer.input_px.1],
            grid,
            dim,
            coreset_ratio: parent.map_or(self.options.coreset_ratio, |parent| parent.manifest().coreset_ratio),
            coreset_count: 0,
            seed: self.options.seed,
            train_count: 0,
            image_threshold_raw: 0.0,
            pixel_threshold_raw: 0.0,
            threshold: self.options.threshold,
            view: self.describer.view.clone(),
            groups: Vec::new(),
            parent: None,
            files: BTreeMap::new(),
        }
    }

    /// The new pictures, with their scores, after those of `pictures`; their thumbnails too, up to the group's limit.
    fn add_pictures(
        &self,
        group: usize,
        good: &GoodScores,
        pictures: &mut Vec<Picture>,
        thumbnails: &mut Vec<(String, Thumbnail)>,
    ) {
        let mut kept = pictures.iter().filter(|picture| picture.thumbnail.is_some()).count();
        for (note, (image_score, map_max)) in self.notes.iter().zip(good.image.iter().zip(&good.map_max)) {
            let mut thumbnail = None;
            if let Some(bytes) = note.thumbnail.as_ref().filter(|_| kept < THUMBNAILS_MAX) {
                let name = format!("picture-{group}-{:05}.jpg", pictures.len());
                thumbnails.push((name.clone(), Thumbnail::Bytes(bytes.clone())));
                thumbnail = Some(name);
                kept += 1;
            }
            let (name, image_score, map_max) = (note.name.clone(), *image_score, *map_max);
            pictures.push(Picture { name, thumbnail, image_score, map_max });
        }
    }
}

/// The rule for pictures that join those fitted by `rule`.
fn goes_on(rule: ThresholdRule) -> ThresholdRule {
    match rule {
        // Labels of the older pictures are not at hand.
        ThresholdRule::BestF1 => ThresholdRule::Headroom,
        rule => rule,
    }
}
