//! `loupe bank evaluate`: how well a bank finds defects, as a whole and by kind of defect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use super::bank::{open_scorer, progress_bar};
use super::bank_bench::SearchName;
use super::bank_ranks::{self, Ranked};
use super::bank_split::{LabelledPicture, Split, check_kinds, read_mask};
use crate::anomaly::metrics::{self, PixelMetrics};
use crate::anomaly::{Bank, PatchCore};
use crate::capture;
use crate::clock::Stopwatch;

#[derive(Debug, clap::Args)]
pub struct EvaluateArgs {
    /// Folder of the bank.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// JSON file whose `test` list names pictures, their label (0 good, 1 bad) and, if there are, the kind of the defect
    /// and its mask.
    #[arg(long, value_name = "FILE")]
    split: PathBuf,
    /// Folder the split's file names are relative to.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Compare with this group of the bank only, not with the one that is most alike.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// How the bank is searched; the image score is the same, the map may differ.
    #[arg(long, value_enum, default_value_t = SearchName::Exact)]
    search: SearchName,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `bank evaluate --json` prints; others script against it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub image_auroc: Option<f64>,
    pub pixel_auroc: Option<f64>,
    pub aupro: Option<f64>,
    pub f1_max: Option<f64>,
    /// The image threshold on the raw scale of the group that was compared with; of several, of the bank's first.
    pub threshold: f32,
    /// Those of all groups that were compared with, by their names; left out where that is one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<String, f32>,
    pub bank_size: usize,
    pub ms_per_image: StageMs,
    pub good_count: usize,
    /// Good pictures from the threshold on.
    pub good_rejected: usize,
    /// One row a kind of defect, each against all good pictures.
    pub kinds: Vec<KindRow>,
    /// Pictures whose part was not where the bank's reference shows it; counted nowhere else.
    pub not_registered: usize,
    /// In the order of the list.
    pub pictures: Vec<Ranked>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindRow {
    pub kind: String,
    pub count: usize,
    /// From the threshold on.
    pub found: usize,
    pub image_auroc: Option<f64>,
    pub pixel_auroc: Option<f64>,
    pub aupro: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StageMs {
    pub backbone: f32,
    pub search: f32,
    pub map: f32,
    pub total: f32,
}

pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let split = Split::read(&args.split)?;
    anyhow::ensure!(!split.test.is_empty(), "`{}` has no `test` pictures", args.split.display());
    check_kinds(&split.test)?;
    let mut scorer = open_scorer(&args.bank, &args.models, args.group.as_deref())?;
    scorer.set_search(args.search.mode());
    let learnt: BTreeSet<&str> = scorer.bank().pictures().into_iter().flatten().map(|one| one.name.as_str()).collect();
    let is_learnt = |picture: &&LabelledPicture| {
        let name = picture.file.file_name().and_then(|name| name.to_str());
        picture.kind().is_none() && name.is_some_and(|name| learnt.contains(name))
    };
    let again = split.test.iter().filter(is_learnt).count();
    if again > 0 {
        eprintln!(
            "{again} good test pictures have the names of learnt ones; if they are the same, the figures flatter: what was learnt scores low"
        );
    }
    let mut tally = Tally::default();
    let progress = progress_bar(split.test.len(), "scoring");
    for picture in &split.test {
        tally.add(&mut scorer, picture, &args.root)?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    let report = tally.report(scorer.bank(), args.group.as_deref());
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// Scores so far.
#[derive(Debug, Default)]
pub struct Tally {
    scores: Vec<Ranked>,
    good_pixels: PixelMetrics,
    /// Of pictures with a mask, by kind.
    bad_pixels: BTreeMap<String, PixelMetrics>,
    summed_ms: StageMs,
    not_registered: usize,
}

impl Tally {
    /// # Errors
    /// When the picture or its mask cannot be read, or the model fails. A part that is not in place is counted.
    pub fn add(&mut self, scorer: &mut PatchCore, picture: &LabelledPicture, root: &Path) -> anyhow::Result<()> {
        let path = root.join(&picture.file);
        let image = capture::read_image(&path)?;
        let watch = Stopwatch::start();
        let result = match scorer.score(&image) {
            Err(error) if error.is_not_in_place() => {
                self.not_registered += 1;
                return Ok(());
            }
            result => result.with_context(|| format!("cannot score `{}`", path.display()))?,
        };
        self.summed_ms.total += watch.ms();
        self.summed_ms.backbone += result.backbone_ms;
        self.summed_ms.search += result.search_ms;
        self.summed_ms.map += result.map_ms;
        let evidence = &result.evidence;
        // Raw scores of groups with thresholds of their own cannot be ranked together.
        let has_groups = scorer.bank().group_names().len() > 1;
        self.scores.push(Ranked {
            file: picture.file.display().to_string(),
            score: if has_groups { evidence.score } else { evidence.score_raw },
            kind: picture.kind(),
            is_rejected: evidence.score >= evidence.threshold,
            wrong_side_of: 0,
        });
        let map = &result.map;
        match (&picture.mask, picture.kind()) {
            (Some(mask), kind) => {
                let mask = read_mask(&root.join(mask), map.width, map.height)?;
                let pixels = match kind {
                    Some(kind) => self.bad_pixels.entry(kind).or_default(),
                    None => &mut self.good_pixels,
                };
                pixels.add(&map.data, Some(&mask), map.width);
            }
            (None, None) => self.good_pixels.add(&map.data, None, map.width),
            // a bad picture without a mask says nothing about its pixels
            (None, Some(_)) => {}
        }
        Ok(())
    }

    /// `group`: the one that was compared with, where that was asked for.
    #[must_use]
    pub fn report(&self, bank: &Bank, group: Option<&str>) -> Report {
        let scores: Vec<(f32, bool)> =
            self.scores.iter().map(|picture| (picture.score, picture.kind.is_some())).collect();
        let mut pictures = self.scores.clone();
        bank_ranks::rank(&mut pictures);
        let mut pixels = self.good_pixels.clone();
        self.bad_pixels.values().for_each(|of_kind| pixels.merge(of_kind));
        let count = self.scores.len().max(1) as f32;
        let good = || self.scores.iter().filter(|picture| picture.kind.is_none());
        let (threshold, thresholds) = thresholds(bank, group);
        Report {
            image_auroc: metrics::auroc(&scores),
            pixel_auroc: pixels.auroc(),
            aupro: pixels.aupro(),
            f1_max: metrics::f1_max(&scores),
            threshold,
            thresholds,
            bank_size: bank.len(),
            ms_per_image: StageMs {
                backbone: self.summed_ms.backbone / count,
                search: self.summed_ms.search / count,
                map: self.summed_ms.map / count,
                total: self.summed_ms.total / count,
            },
            good_count: good().count(),
            good_rejected: good().filter(|picture| picture.is_rejected).count(),
            kinds: self.kinds(),
            not_registered: self.not_registered,
            pictures,
        }
    }

    fn kinds(&self) -> Vec<KindRow> {
        let kinds: BTreeSet<&String> = self.scores.iter().filter_map(|picture| picture.kind.as_ref()).collect();
        let row = |kind: &String| {
            let of_kind = || self.scores.iter().filter(|picture| picture.kind.as_ref() == Some(kind));
            let beside_good = self.scores.iter().filter(|picture| picture.kind.is_none()).chain(of_kind());
            let scores: Vec<(f32, bool)> = beside_good.map(|picture| (picture.score, picture.kind.is_some())).collect();
            let pixels = self.bad_pixels.get(kind).map(|of_kind| {
                let mut pixels = self.good_pixels.clone();
                pixels.merge(of_kind);
                pixels
            });
            KindRow {
                kind: kind.clone(),
                count: of_kind().count(),
                found: of_kind().filter(|picture| picture.is_rejected).count(),
                image_auroc: metrics::auroc(&scores),
                pixel_auroc: pixels.as_ref().and_then(PixelMetrics::auroc),
                aupro: pixels.as_ref().and_then(PixelMetrics::aupro),
            }
        };
        kinds.into_iter().map(row).collect()
    }
}

/// The raw image threshold that a report names, and those of all groups where several were compared with.
fn thresholds(bank: &Bank, group: Option<&str>) -> (f32, BTreeMap<String, f32>) {
    let groups = &bank.manifest().groups;
    let first = bank.manifest().image_threshold_raw;
    if let Some(name) = group {
        let found = groups.iter().find(|group| group.name == name);
        return (found.map_or(first, |group| group.image_threshold_raw), BTreeMap::new());
    }
    let of_all = || groups.iter().map(|group| (group.name.clone(), group.image_threshold_raw)).collect();
    (first, if groups.len() > 1 { of_all() } else { BTreeMap::new() })
}

/// A metric for people.
#[must_use]
pub fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.4}"))
}

fn print(report: &Report) {
    println!("image AUROC  {}", number(report.image_auroc));
    println!("pixel AUROC  {}", number(report.pixel_auroc));
    println!("AUPRO        {}", number(report.aupro));
    println!("best F1      {}", number(report.f1_max));
    if report.thresholds.is_empty() {
        println!("threshold    {:.4} (raw)", report.threshold);
    }
    for (group, threshold) in &report.thresholds {
        println!("threshold    {threshold:.4} (raw), group {group}");
    }
    let (bad, found): (usize, usize) =
        report.kinds.iter().fold((0, 0), |(bad, found), row| (bad + row.count, found + row.found));
    println!("  good       {} of {} below it", report.good_count - report.good_rejected, report.good_count);
    println!("  bad        {found} of {bad} from it on");
    if report.not_registered > 0 {
        println!("not in place {} (held, in no figure)", report.not_registered);
    }
    println!("vectors      {}", report.bank_size);
    let ms = report.ms_per_image;
    println!(
        "ms a picture {:.1} (backbone {:.1}, search {:.1}, map {:.1}), decoding not counted",
        ms.total, ms.backbone, ms.search, ms.map
    );
    if !report.kinds.is_empty() {
        println!(
            "\n{:<24} {:>6} {:>6} {:>12} {:>12} {:>7}",
            "kind", "count", "found", "image AUROC", "pixel AUROC", "AUPRO"
        );
    }
    for row in &report.kinds {
        let [image, pixel, aupro] = [row.image_auroc, row.pixel_auroc, row.aupro].map(number);
        println!("{:<24} {:>6} {:>6} {image:>12} {pixel:>12} {aupro:>7}", row.kind, row.count, row.found);
    }
    bank_ranks::print(&report.pictures);
}

#[cfg(test)]
mod tests {
    use super::{BTreeMap, KindRow, PixelMetrics, Ranked, Report, StageMs, Tally};

    fn ranked(score: f32, kind: Option<&str>) -> Ranked {
        let (file, kind) = ("a.png".to_owned(), kind.map(str::to_owned));
        Ranked { file, kind, score, is_rejected: score > 2.5, wrong_side_of: 0 }
    }

    #[test]
    fn the_report_keeps_its_keys_and_says_null_without_masks() {
        let kind = KindRow {
            kind: "pit".to_owned(),
            count: 2,
            found: 1,
            image_auroc: Some(0.5),
            pixel_auroc: None,
            aupro: None,
        };
        let report = Report {
            image_auroc: Some(1.0),
            pixel_auroc: None,
            aupro: None,
            f1_max: Some(0.5),
            threshold: 2.0,
            thresholds: BTreeMap::new(),
            bank_size: 3,
            ms_per_image: StageMs::default(),
            good_count: 4,
            good_rejected: 1,
            kinds: vec![kind],
            not_registered: 0,
            pictures: vec![ranked(1.5, Some("pit"))],
        };
        let expected = r#"{"image_auroc":1.0,"pixel_auroc":null,"aupro":null,"f1_max":0.5,"threshold":2.0,"bank_size":3,"ms_per_image":{"backbone":0.0,"search":0.0,"map":0.0,"total":0.0},"good_count":4,"good_rejected":1,"kinds":[{"kind":"pit","count":2,"found":1,"image_auroc":0.5,"pixel_auroc":null,"aupro":null}],"not_registered":0,"pictures":[{"file":"a.png","kind":"pit","score":1.5,"is_rejected":false,"wrong_side_of":0}]}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
    }

    #[test]
    fn each_kind_is_held_against_all_good_pictures() {
        let mut tally = Tally {
            scores: vec![
                ranked(1.0, None),
                ranked(2.0, None),
                ranked(3.0, Some("dent")),
                ranked(1.5, Some("pit")),
                ranked(9.0, Some("pit")),
            ],
            ..Tally::default()
        };
        tally.good_pixels.add(&[0.0, 1.0], None, 2);
        let mut dent = PixelMetrics::default();
        dent.add(&[0.0, 5.0], Some(&[false, true]), 2);
        tally.bad_pixels.insert("dent".to_owned(), dent);
        let rows = tally.kinds();
        assert_eq!((rows[0].kind.as_str(), rows[0].found, rows[0].image_auroc), ("dent", 1, Some(1.0)));
        assert_eq!((rows[1].kind.as_str(), rows[1].found, rows[1].image_auroc), ("pit", 1, Some(0.75)));
        assert_eq!((rows[0].pixel_auroc, rows[1].pixel_auroc), (Some(1.0), None));
    }
}
