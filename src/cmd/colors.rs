//! `loupe index colors`: how well colours are named under a camera's light, and what a recipe should ask of them.

use std::path::PathBuf;

use anyhow::{anyhow, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Failure;
use crate::capture;
use crate::matching::catalogue::{self, CatalogueError};
use crate::measure::{ColourTable, measure_colour};
use crate::types::{ColourEvidence, ColourLimits};

/// Margins in the table, CIEDE2000.
const MARGINS: [f32; 8] = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// CSV file of the colours; needs the columns color_id and rgb_hex.
    #[arg(long)]
    colors: PathBuf,
    /// CSV file of pictures whose colour is known; needs the columns file, part_num, color_id, x1, y1, x2 and y2.
    #[arg(long)]
    queries: PathBuf,
    /// Folder that the file column starts from.
    #[arg(long)]
    root: PathBuf,
    /// White balance as in the recipe: factors of linear red, green and blue, from a grey card.
    #[arg(long, num_args = 3, value_names = ["R", "G", "B"], default_values_t = [1.0, 1.0, 1.0])]
    gains: Vec<f32>,
    /// CIEDE2000 to the named colour at most.
    #[arg(long, default_value_t = ColourLimits::default().max_delta_e)]
    max_delta_e: f32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What asking for a margin does.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct AtMargin {
    /// CIEDE2000.
    min_margin: f32,
    /// Share of the pictures whose colour is then clear, 0 to 1.
    clear_rate: f64,
    /// Of these, the share whose colour is named right; `None` where none is clear.
    clear_right: Option<f64>,
}

/// Run the command.
///
/// # Errors
/// When a file cannot be used, or no picture has a known colour.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let &[red, green, blue] = args.gains.as_slice() else { return Err(anyhow!("--gains takes three factors")) };
    if [red, green, blue].iter().any(|gain| !gain.is_finite() || *gain <= 0.0) {
        return Err(Failure::usage(anyhow!("--gains is {:?}; each factor must be above 0", args.gains)).into());
    }
    let table = ColourTable::new(&catalogue::read_colours(&args.colors)?);
    let rows = catalogue::read_queries(&args.queries)?;
    let bar = ProgressBar::with_draw_target(Some(rows.len() as u64), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("looking {bar:40} {pos}/{len} {eta}")?);
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for row in &rows {
        bar.inc(1);
        let Some(color_id) = &row.color_id else { continue };
        match capture::read_image(&args.root.join(&row.file)) {
            Ok(image) => seen.push((color_id, measure_colour(&image, &row.bbox, [red, green, blue], &table))),
            Err(error) => faults.push(format!("line {}: {error}", row.line)),
        }
    }
    bar.finish_and_clear();
    if !faults.is_empty() {
        return Err(CatalogueError { path: args.queries.clone(), faults }.into());
    }
    ensure!(!seen.is_empty(), "{} has no color_id in any row", args.queries.display());
    let seen: Vec<(bool, Option<ColourEvidence>)> = seen
        .into_iter()
        .map(|(known, seen)| (seen.as_ref().is_some_and(|seen| seen.color_id == *known), seen))
        .collect();
    let table = MARGINS.map(|min_margin| at_margin(&seen, ColourLimits { max_delta_e: args.max_delta_e, min_margin }));
    let right = seen.iter().filter(|(is_right, _)| *is_right).count() as f64 / seen.len() as f64;
    if args.json {
        println!("{}", serde_json::json!({ "pictures": seen.len(), "right": right, "margins": table }));
        return Ok(());
    }
    println!("pictures     {}, colour named right {:.1} %", seen.len(), right * 100.0);
    println!("min_margin   clear     of these right   (max_delta_e {})", args.max_delta_e);
    for row in &table {
        let right = row.clear_right.map_or_else(|| "-".to_owned(), |right| format!("{:.1} %", right * 100.0));
        println!("{:<12} {:>5.1} %   {right}", row.min_margin, row.clear_rate * 100.0);
    }
    println!("a recipe asks for it with `min_margin` and `max_delta_e` under [match.color]");
    Ok(())
}

fn at_margin(seen: &[(bool, Option<ColourEvidence>)], limits: ColourLimits) -> AtMargin {
    let is_clear = |seen: &Option<ColourEvidence>| seen.clone().is_some_and(|seen| seen.judged(limits).is_clear);
    let clear: Vec<bool> = seen.iter().filter(|(_, seen)| is_clear(seen)).map(|(is_right, _)| *is_right).collect();
    let right = clear.iter().filter(|is_right| **is_right).count();
    AtMargin {
        min_margin: limits.min_margin,
        clear_rate: clear.len() as f64 / seen.len().max(1) as f64,
        clear_right: (!clear.is_empty()).then(|| right as f64 / clear.len() as f64),
    }
}
