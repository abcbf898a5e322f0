//! `loupe bank sweep`: coreset size and options against accuracy, bank size and time.
//!
//! Of the good pictures every n-th is held out and none of them is learnt; labelled pictures come from a split's
//! `validation` list. The `test` list is left alone unless it is asked for by name.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde::Serialize;

use super::bank::{PictureArgs, learn_each, open_model, open_scorer, progress_bar};
use super::bank_evaluate::{Tally, number};
use super::bank_split::{Label, LabelledPicture, Split, check_kinds};
use super::bank_view::{ViewArgs, motion, view_in_words};
use crate::anomaly::{AskedTiles, BankBuilder, BankOptions};

/// Combinations of one sweep: each learns and scores all pictures.
const COMBINATIONS_MAX: usize = 64;

#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// Shares of the patches to try, separated by commas.
    #[arg(long, value_name = "RATIOS", value_delimiter = ',', default_value = "0.01,0.05,0.1,0.25")]
    coreset: Vec<f64>,
    /// Feature models to try, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "mobilenetv2")]
    model: Vec<String>,
    /// Input sizes to try, WIDTHxHEIGHT or one side, separated by commas; the model's own if not given.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = size)]
    input_px: Vec<(u32, u32)>,
    /// Tilings to try beside none, such as `3x1,auto`.
    #[arg(long, value_name = "TILES", value_delimiter = ',')]
    try_tiles: Vec<AskedTiles>,
    /// Registrations to try beside none, such as `translation,rigid`.
    #[arg(long, value_name = "MOTIONS", value_delimiter = ',', value_parser = motion)]
    try_register: Vec<crate::anomaly::Motion>,
    #[command(flatten)]
    view: ViewArgs,
    /// Share of the good pictures that is held out to measure on, above 0 and at most 0.5.
    #[arg(long, value_name = "RATIO", default_value_t = 0.2)]
    holdout: f64,
    /// JSON file whose `validation` list names pictures with label (0 good, 1 bad), kind and mask; without it there is no AUROC.
    #[arg(long, value_name = "FILE", requires = "labelled_root")]
    labelled: Option<PathBuf>,
    /// Folder the labelled file names are relative to.
    #[arg(long, value_name = "DIR")]
    labelled_root: Option<PathBuf>,
    /// Use the `test` list of --labelled: options chosen by it are chosen by the test, and its figures become too good.
    #[arg(long, requires = "labelled")]
    use_test: bool,
    /// Folder for the banks that are tried, removed afterwards; the system's temporary folder if not given.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Seed of the coresets.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    model: String,
    input_px: [u32; 2],
    view: String,
    coreset: f64,
    vectors: usize,
    bank_bytes: u64,
    image_auroc: Option<f64>,
    pixel_auroc: Option<f64>,
    aupro: Option<f64>,
    f1_max: Option<f64>,
    good_count: usize,
    good_rejected: usize,
    bad_count: usize,
    bad_found: usize,
    not_registered: usize,
    ms_per_image: f32,
    search_ms: f32,
}

/// What is learnt and what is measured on.
#[derive(Debug)]
struct Material {
    learnt: Vec<PathBuf>,
    measured: Vec<LabelledPicture>,
    root: PathBuf,
}

pub fn sweep(args: &SweepArgs) -> anyhow::Result<()> {
    let material = material(args)?;
    let combinations = combinations(args);
    let count = combinations.len() * args.coreset.len();
    anyhow::ensure!(
        count <= COMBINATIONS_MAX,
        "{count} combinations, at most {COMBINATIONS_MAX} are tried; ask for fewer"
    );
    let work = args.work.clone().unwrap_or_else(std::env::temp_dir).join(format!("loupe-sweep-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make `{}`", work.display()))?;
    let steps = combinations.len() * (material.learnt.len() + args.coreset.len() * material.measured.len());
    let progress = progress_bar(steps, "sweeping");
    let rows = combinations
        .iter()
        .enumerate()
        .map(|(number, (model, options))| {
            let folder = work.join(number.to_string());
            try_one(args, &material, model, options, &folder, &progress)
        })
        .collect::<anyhow::Result<Vec<_>>>();
    progress.finish_and_clear();
    let removed = std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove `{}`", work.display()));
    let rows = rows?.concat();
    if args.json {
        let document = serde_json::json!({
            "learnt": material.learnt.len(), "measured": material.measured.len(), "used_test": args.use_test, "rows": rows,
        });
        println!("{document}");
    } else {
        print(&material, &rows, args.use_test);
    }
    removed
}

/// Learn once, then choose and measure each coreset.
fn try_one(
    args: &SweepArgs,
    material: &Material,
    model: &str,
    options: &BankOptions,
    folder: &Path,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Row>> {
    let mut builder = BankBuilder::new(open_model(&args.models, model)?, options.clone())?;
    learn_each(&mut builder, &material.learnt, progress)?;
    let mut rows = Vec::new();
    for (number, &coreset) in args.coreset.iter().enumerate() {
        let out = folder.join(number.to_string());
        builder.finish_trial(&out, coreset)?;
        let mut scorer = open_scorer(&out, &args.models, None)?;
        let mut tally = Tally::default();
        for picture in &material.measured {
            tally.add(&mut scorer, picture, &material.root)?;
            progress.inc(1);
        }
        let bank = scorer.bank();
        let report = tally.report(bank, None);
        let vectors = out.join("bank.faiss");
        let bank_bytes =
            std::fs::metadata(&vectors).with_context(|| format!("cannot read `{}`", vectors.display()))?.len();
        rows.push(Row {
            model: model.to_owned(),
            input_px: bank.manifest().input_px,
            view: view_in_words(&bank.manifest().view),
            coreset,
            vectors: bank.len(),
            bank_bytes,
            image_auroc: report.image_auroc,
            pixel_auroc: report.pixel_auroc,
            aupro: report.aupro,
            f1_max: report.f1_max,
            good_count: report.good_count,
            good_rejected: report.good_rejected,
            bad_count: report.kinds.iter().map(|kind| kind.count).sum(),
            bad_found: report.kinds.iter().map(|kind| kind.found).sum(),
            not_registered: report.not_registered,
            ms_per_image: report.ms_per_image.total,
            search_ms: report.ms_per_image.search,
        });
    }
    Ok(rows)
}

fn material(args: &SweepArgs) -> anyhow::Result<Material> {
    anyhow::ensure!(
        args.holdout > 0.0 && args.holdout <= 0.5,
        "--holdout is {}, it must be above 0 and at most 0.5",
        args.holdout
    );
    let (learnt, held_out) = held_out(args.pictures.paths()?, args.holdout);
    let good = |file| LabelledPicture { file, label: Label::Good, mask: None, kind: None };
    let mut measured: Vec<LabelledPicture> = held_out.into_iter().map(good).collect();
    let mut root = PathBuf::new();
    if let (Some(labelled), Some(labelled_root)) = (&args.labelled, &args.labelled_root) {
        let split = Split::read(labelled)?;
        let list = if args.use_test { split.test } else { split.validation };
        let name = if args.use_test { "test" } else { "validation" };
        anyhow::ensure!(!list.is_empty(), "`{}` has no `{name}` pictures", labelled.display());
        // Held-out pictures have their own paths: those must not be taken from the labelled root.
        root = std::path::absolute(labelled_root)?;
        for picture in &mut measured {
            picture.file = std::path::absolute(&picture.file)?;
        }
        measured.extend(list);
        check_kinds(&measured)?;
    }
    Ok(Material { learnt, measured, root })
}

/// Every n-th picture is held out, so that a series that drifts is measured over all of it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 and more")]
fn held_out(pictures: Vec<PathBuf>, share: f64) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let every = (1.0 / share).round() as usize;
    let numbered = pictures.into_iter().enumerate();
    let (held_out, learnt): (Vec<_>, Vec<_>) = numbered.partition(|(index, _)| index % every == every - 1);
    let without_number = |list: Vec<(usize, PathBuf)>| list.into_iter().map(|(_, path)| path).collect();
    (without_number(learnt), without_number(held_out))
}

fn combinations(args: &SweepArgs) -> Vec<(String, BankOptions)> {
    let mut base = BankOptions { seed: args.seed, ..BankOptions::default() };
    args.view.apply(&mut base);
    let sizes: Vec<Option<(u32, u32)>> =
        if args.input_px.is_empty() { vec![None] } else { args.input_px.iter().map(|size| Some(*size)).collect() };
    let mut found = Vec::new();
    for model in &args.model {
        for input_px in &sizes {
            for tiles in std::iter::once(base.tiles).chain(args.try_tiles.iter().map(|tiles| Some(*tiles))) {
                for motion in std::iter::once(base.motion).chain(args.try_register.iter().map(|motion| Some(*motion))) {
                    found.push((model.clone(), BankOptions { input_px: *input_px, tiles, motion, ..base.clone() }));
                }
            }
        }
    }
    found
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is no size; write 224 or 448x224"));
    match text.split_once('x') {
        Some((width, height)) => Ok((side(width)?, side(height)?)),
        None => side(text).map(|side| (side, side)),
    }
}

fn print(material: &Material, rows: &[Row], used_test: bool) {
    let of_test = if used_test { ", the test list among them: these figures are no test any more" } else { "" };
    println!("learnt {} pictures, measured on {}{of_test}", material.learnt.len(), material.measured.len());
    println!(
        "{:<14} {:>9} {:>7} {:>8} {:>9} {:>11} {:>11} {:>7} {:>10} {:>10} {:>8} {:>9}  view",
        "model",
        "input",
        "coreset",
        "vectors",
        "kB",
        "image AUROC",
        "pixel AUROC",
        "AUPRO",
        "good lost",
        "bad found",
        "ms",
        "search ms"
    );
    for row in rows {
        let [image, pixel, aupro] = [row.image_auroc, row.pixel_auroc, row.aupro].map(number);
        println!(
            "{:<14} {:>9} {:>7} {:>8} {:>9} {image:>11} {pixel:>11} {aupro:>7} {:>10} {:>10} {:>8.1} {:>9.1}  {}",
            row.model,
            format!("{}x{}", row.input_px[0], row.input_px[1]),
            row.coreset,
            row.vectors,
            row.bank_bytes / 1_000,
            format!("{}/{}", row.good_rejected, row.good_count),
            format!("{}/{}", row.bad_found, row.bad_count),
            row.ms_per_image,
            row.search_ms,
            row.view
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{held_out, size};

    #[test]
    fn held_out_pictures_are_spread_over_the_series_and_not_learnt() {
        let pictures: Vec<PathBuf> = (0..10).map(|number| PathBuf::from(number.to_string())).collect();
        let (learnt, held) = held_out(pictures, 0.2);
        assert_eq!(held, [PathBuf::from("4"), PathBuf::from("9")]);
        assert!(learnt.len() == 8 && learnt.iter().all(|path| !held.contains(path)));
    }

    #[test]
    fn sizes_are_one_side_or_two() {
        assert_eq!((size("224"), size("448x224")), (Ok((224, 224)), Ok((448, 224))));
        assert!(size("big").is_err() && size("1x2x3").is_err());
    }
}
