//! `loupe index fit`: how probable a match is, and how probable it must be, learned from pictures whose part is known.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Failure;
use super::pictures::{Known, embed_known};
use crate::matching::{Embedded, FitRow, MatchError, Scorer, Seen, fitting, seen_together};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the index; the fit belongs to its live generation.
    #[arg(long)]
    index: PathBuf,
    /// CSV file of pictures whose part is known; needs the columns file, part_num, x1, y1, x2 and y2 (box in pixels),
    /// and px_per_mm where true sizes are to count. They must not be the templates, nor the pictures you judge it by.
    /// Rows with the same value in a column `item` are views of one item: a fit for items seen in so many views is learned
    /// as well.
    #[arg(long)]
    queries: PathBuf,
    /// Folder that the file column starts from.
    #[arg(long)]
    root: PathBuf,
    /// Folder of the embedding model; it must be the one the index was built with.
    #[arg(long, default_value = "models/mobilenetv2")]
    model: PathBuf,
    /// Share of wrong names among the accepted that you put up with, 0 to 1.
    #[arg(long, default_value_t = 0.001)]
    target_error: f32,
    /// Share of items that will be of no catalogue part, 0 to 1.
    #[arg(long, default_value_t = 0.05)]
    unknown_ratio: f32,
    /// ONNX Runtime's library; default: ORT_DYLIB_PATH, else /usr/lib/loupe/libonnxruntime.so.
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When a file, the model or the index cannot be used, or there are too few pictures.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (name, value) in [("target-error", args.target_error), ("unknown-ratio", args.unknown_ratio)] {
        if !(0.0..1.0).contains(&value) {
            return Err(Failure::usage(anyhow::anyhow!("--{name} is {value}; it must be 0 or more and below 1")).into());
        }
    }
    let known = embed_known(&args.index, &args.queries, &args.root, &args.model, args.onnxruntime.as_deref())?;
    let answers = known.index.search_exact(known.embedded())?;
    let Known { index, rows, seen, .. } = &known;
    let fit_rows: Vec<FitRow> = rows
        .iter()
        .zip(seen)
        .zip(&answers)
        .map(|((row, seen), answer)| {
            let scored = index.scored(&answer.top_k, seen);
            let names = answer.top_k.iter().map(|ranked| ranked.part_id.clone());
            FitRow { part_id: row.part_num.clone(), candidates: names.zip(scored).collect() }
        })
        .collect();
    let mut fit = fitting::fit(index.generation_sha256(), &fit_rows, args.unknown_ratio, args.target_error)?;
    let mut too_few = Vec::new();
    for (views, items) in items_by_views(&known)? {
        match fitting::several(&items, args.unknown_ratio, args.target_error) {
            Ok(several) => drop(fit.several.insert(views, several)),
            Err(MatchError::TooFewRows { rows, needed }) => too_few.push((views, rows, needed)),
            Err(error) => return Err(error.into()),
        }
    }
    let replaced = index.fit_sha256();
    let path = fit.store(&args.index, &index.generation_name())?;
    if args.json {
        println!("{}", serde_json::to_string(&fit)?);
        return Ok(());
    }
    println!("fitted       {} from {} pictures", path.display(), fit.rows);
    if let Some(sha256) = replaced {
        println!("replaced     the fit {} of this generation", sha256.short());
    }
    print_scorer("without size", &fit.plain);
    if let Some(sized) = &fit.sized {
        print_scorer("with size", sized);
    }
    for (views, several) in &fit.several {
        println!("of {views} views   {} items", several.rows);
        print_scorer("without size", &several.plain);
        if let Some(sized) = &several.sized {
            print_scorer("with size", sized);
        }
    }
    for (views, items, needed) in too_few {
        eprintln!("items of {views} views are not fitted: {items} are too few, {needed} are needed");
    }
    if fit.plain.error_ratio_upper > args.target_error {
        eprintln!(
            "with this many pictures an error of {:.4} cannot be shown: the upper 95 % bound is {:.4}; give more pictures",
            args.target_error, fit.plain.error_ratio_upper
        );
    }
    if fit.plain.accepted_ratio == 0.0 {
        println!(
            "it accepts NOTHING without a size: with `use_fit = true` every match would be HOLD; give more pictures, \
             or a --target-error above {}",
            args.target_error
        );
    } else {
        println!("a recipe uses it with `use_fit = true` under [match]");
    }
    Ok(())
}

/// What the search offered for each item of several views, by their number.
fn items_by_views(known: &Known) -> anyhow::Result<BTreeMap<u32, Vec<FitRow>>> {
    let Known { index, rows, seen, .. } = known;
    let mut items: BTreeMap<u32, Vec<FitRow>> = BTreeMap::new();
    for views in seen_together(rows.iter().map(|row| row.item.as_deref())) {
        let (pictures, mirrored) = known.embedded().picked(&views, index.dim());
        let answer = index.search_views_exact(Embedded { pictures: &pictures, mirrored: &mirrored })?.evidence;
        let seen: Vec<Seen> = views.iter().map(|&at| seen[at].clone()).collect();
        let names = answer.top_k.iter().map(|ranked| ranked.part_id.clone());
        let candidates = names.zip(index.scored_views(&answer.top_k, &seen)).collect();
        let row = FitRow { part_id: rows[views[0]].part_num.clone(), candidates };
        items.entry(u32::try_from(views.len())?).or_default().push(row);
    }
    Ok(items)
}

fn print_scorer(name: &str, scorer: &Scorer) {
    println!(
        "{name:12} accepts above {:.4}: {:.1} % of the pictures, {:.2} % of them wrong (at most {:.2} %); calibration error {:.3}",
        scorer.threshold,
        scorer.accepted_ratio * 100.0,
        scorer.error_ratio * 100.0,
        scorer.error_ratio_upper * 100.0,
        scorer.ece
    );
    if !scorer.part_thresholds.is_empty() {
        println!("{:12} {} part(s) must be surer, having been mistaken", "", scorer.part_thresholds.len());
    }
}
