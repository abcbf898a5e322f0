//! What may be done with the generations of an index directory besides building: look, switch, go back, tidy up.
//!
//! Invariants: a generation becomes the live one only after every byte of it was compared with its digests; switching is
//! the rename of `CURRENT`, so a reader sees the old or the new one; what `compact` removes is neither live nor previous.
//! Thread: the caller's; changes hold the directory's lock. Overload: none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::MatchError;
use super::fit::Fit;
use super::generation::{self, Generation};
use super::manifest::{ColdTier, Embedding, HotTier};
use super::store;

/// One generation as [`stats`] saw it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationStats {
    pub name: String,
    pub is_current: bool,
    pub is_previous: bool,
    /// Of its files, bytes.
    pub bytes: u64,
    /// Why its manifest cannot be read; the rest is then missing. The other files are not looked at here.
    pub fault: Option<String>,
    pub parts: Option<usize>,
    pub templates: Option<usize>,
    pub dim: Option<usize>,
    pub embedding: Option<Embedding>,
    pub l1: Option<HotTier>,
    pub l2: Option<ColdTier>,
}

/// An index directory.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Stats {
    pub current: Option<String>,
    pub previous: Option<String>,
    pub generations: Vec<GenerationStats>,
    /// Damaged generations set aside, and their size.
    pub quarantined: Vec<String>,
    pub quarantined_bytes: u64,
    /// Templates of each part of the live generation, by catalogue number.
    pub templates_of_part: BTreeMap<String, usize>,
    /// What else the live generation judges a match by; `None` where it cannot be opened.
    pub known: Option<Known>,
    /// The fit of the live generation.
    pub fit: Option<FitStats>,
    /// Why there is a fit that cannot be used.
    pub fit_fault: Option<String>,
}

/// Of how many parts a generation knows more than their templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Known {
    /// True size.
    pub sizes: usize,
    /// How the edges of its views run: parts of mirror pairs.
    pub shapes: usize,
    /// Direction that the embedder learned.
    pub centres: usize,
    /// Parts of which is known what a mirrored picture shows.
    pub mirrors: usize,
}

/// What a fit said of itself when it was learned; ratios 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitStats {
    /// Pictures it was learned from.
    pub rows: usize,
    pub target_error: f32,
    /// Share of the pictures that it accepts without a true size.
    pub accepted_ratio: f32,
    /// The same with one; `None` where the pictures or the catalogue had no sizes.
    pub sized_accepted_ratio: Option<f32>,
    /// Numbers of views for which it was also learned.
    pub several: Vec<u32>,
}

impl From<&Fit> for FitStats {
    fn from(fit: &Fit) -> Self {
        Self {
            rows: fit.rows,
            target_error: fit.target_error,
            accepted_ratio: fit.plain.accepted_ratio,
            sized_accepted_ratio: fit.sized.as_ref().map(|scorer| scorer.accepted_ratio),
            several: fit.several.keys().copied().collect(),
        }
    }
}

/// What [`compact`] removed, or would.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compacted {
    /// Relative to the index directory.
    pub removed: Vec<PathBuf>,
    pub bytes: u64,
}

/// Look at the index directory `root`. Changes nothing.
///
/// # Errors
/// When there is no index, or the directory cannot be listed. Damaged generations are reported, not errors.
pub fn stats(root: &Path) -> Result<Stats, MatchError> {
    let current = store::current_name(root)?;
    let previous = store::previous_name(root);
    let mut generations = Vec::new();
    for name in names(root)?.into_iter().filter(|name| generation::is_name(name)) {
        let dir = root.join(&name);
        let (manifest, fault) = match generation::read_manifest(&dir) {
            Ok((manifest, _)) => (Some(manifest), None),
            Err(error) => (None, Some(error.to_string())),
        };
        generations.push(GenerationStats {
            is_current: name == current,
            is_previous: previous.as_ref() == Some(&name),
            bytes: bytes_below(&dir),
            fault,
            parts: manifest.as_ref().map(|manifest| manifest.part_count),
            templates: manifest.as_ref().map(|manifest| manifest.template_count),
            dim: manifest.as_ref().map(|manifest| manifest.dim),
            embedding: manifest.as_ref().map(|manifest| manifest.embedding.clone()),
            l1: manifest.as_ref().map(|manifest| manifest.l1.clone()),
            l2: manifest.map(|manifest| manifest.l2),
            name,
        });
    }
    let quarantine = root.join(store::QUARANTINE_DIR);
    let quarantined: Vec<String> = if quarantine.is_dir() {
        names(&quarantine)?.into_iter().filter(|name| !name.ends_with(".txt")).collect()
    } else {
        vec![]
    };
    let quarantined_bytes = bytes_below(&quarantine);
    let mut stats = Stats {
        current: Some(current.clone()),
        previous,
        generations,
        quarantined,
        quarantined_bytes,
        ..Stats::default()
    };
    // A damaged live generation has no counts; the fault stands with it.
    if let Ok(live) = Generation::open(&root.join(&current)) {
        for &part in live.ids.parts() {
            *stats.templates_of_part.entry(live.ids.part_name(part).unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
        stats.known = Some(Known {
            sizes: live.sizes.len(),
            shapes: live.shapes.len(),
            centres: live.centres.len(),
            mirrors: live.mirrors.len(),
        });
        match Fit::load(&Fit::path(root, &current), live.sha256) {
            Ok(fit) => stats.fit = fit.map(|(fit, _)| FitStats::from(&fit)),
            Err(error) => stats.fit_fault = Some(error.to_string()),
        }
    }
    Ok(stats)
}

/// Make the generation `name` the live one, after comparing every byte of it. The one before becomes the previous.
///
/// # Errors
/// When there is no such generation, it is damaged, another process changes the directory, or a file cannot be written;
/// the live generation is then unchanged.
pub fn switch(root: &Path, name: &str) -> Result<(), MatchError> {
    let _lock = store::lock(root)?;
    switch_locked(root, name)
}

/// Make the previous generation the live one, as [`switch`]; its name. Doing it twice leads back.
///
/// # Errors
/// As [`switch`]; also when there is no previous generation.
pub fn rollback(root: &Path) -> Result<String, MatchError> {
    let _lock = store::lock(root)?;
    let current = store::current_name(root)?;
    let previous = store::previous_name(root).filter(|name| *name != current && root.join(name).is_dir());
    let previous = previous.ok_or_else(|| MatchError::NoPrevious { dir: root.to_owned() })?;
    switch_locked(root, &previous)?;
    Ok(previous)
}

fn switch_locked(root: &Path, name: &str) -> Result<(), MatchError> {
    let dir = root.join(name);
    if !generation::is_name(name) || !dir.is_dir() {
        return Err(MatchError::NoGeneration { dir: root.to_owned(), name: name.chars().take(40).collect() });
    }
    let (_, proof) = Generation::open_reading_all(&dir)?;
    proof.save(&dir);
    store::point_to(root, name)
}

/// Remove generations that are neither live nor previous and what killed builds left; damaged ones set aside only
/// `with_quarantine`. With `dry_run` nothing is removed, only counted.
///
/// # Errors
/// When there is no index, another process changes the directory, or something cannot be removed.
pub fn compact(root: &Path, with_quarantine: bool, dry_run: bool) -> Result<Compacted, MatchError> {
    let _lock = store::lock(root)?;
    let current = store::current_name(root)?;
    let previous = store::previous_name(root);
    let mut compacted = Compacted { removed: Vec::new(), bytes: 0 };
    for name in names(root)? {
        let is_old = generation::is_name(&name) && name != current && previous.as_ref() != Some(&name);
        // Nobody else builds while the lock is held.
        let is_left = name.starts_with(store::STAGED_PREFIX);
        let is_quarantine = with_quarantine && name == store::QUARANTINE_DIR;
        if is_old || is_left || is_quarantine {
            compacted.bytes += bytes_below(&root.join(&name));
            if !dry_run {
                store::remove(&root.join(&name))?;
            }
            compacted.removed.push(PathBuf::from(name));
        }
    }
    Ok(compacted)
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>, MatchError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(MatchError::io("list", dir))? {
        names.push(entry.map_err(MatchError::io("list", dir))?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Bytes of the files in `dir` and in the directories right below it; what cannot be read counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().collect::<Vec<_>>();
    let size = |entry: &fs::DirEntry| {
        entry.metadata().map_or(0, |metadata| if metadata.is_file() { metadata.len() } else { 0 })
    };
    entries(dir)
        .iter()
        .map(|entry| {
            size(entry) + if entry.path().is_dir() { entries(&entry.path()).iter().map(size).sum() } else { 0 }
        })
        .sum()
}
