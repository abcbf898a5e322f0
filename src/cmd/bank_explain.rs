//! `loupe bank explain`: where and why a picture differs, beside the learnt picture that is most alike.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::bank::open_scorer;
use crate::anomaly::AnomalyResult;
use crate::limits::{PX_PER_MM_MAX, PX_PER_MM_MIN};
use crate::types::Image;
use crate::{capture, overlay};

/// JPEG quality of the picture, 1 to 100.
const JPEG_QUALITY: u8 = 90;

#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The picture.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Folder of the bank.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// File to write, PNG or JPEG as its name says (.png, .jpg, .jpeg): the picture with its heat map and defects, and beside it the learnt picture that is most alike.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// PNG file (.png) to write the mask to: white where the map is above the pixel threshold.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// The camera's scale, pixels per millimetre, 0.001 to 100000: areas are then given in mm² as well.
    #[arg(long, value_name = "PX_PER_MM")]
    px_per_mm: Option<f32>,
    /// Compare with this group of the bank only.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    if let Some(scale) = args.px_per_mm {
        anyhow::ensure!(
            (PX_PER_MM_MIN..=PX_PER_MM_MAX).contains(&scale),
            "--px-per-mm is {scale}, it must be {PX_PER_MM_MIN} to {PX_PER_MM_MAX}"
        );
    }
    let is_jpeg = args.out.as_ref().is_some_and(|out| ends_in(out, &["jpg", "jpeg"]));
    if let Some(out) = args.out.as_ref().filter(|out| !is_jpeg && !ends_in(out, &["png"])) {
        anyhow::bail!("--out is `{}`; write a name that ends in .png, .jpg or .jpeg", out.display());
    }
    if let Some(out) = args.mask.as_ref().filter(|out| !ends_in(out, &["png"])) {
        anyhow::bail!("--mask is `{}`; write a name that ends in .png", out.display());
    }
    let image = capture::read_image(&args.image)?;
    let mut scorer = open_scorer(&args.bank, &args.models, args.group.as_deref())?.with_scale(args.px_per_mm);
    let result = scorer.score(&image).with_context(|| format!("cannot score `{}`", args.image.display()))?;
    if let Some(out) = &args.out {
        let picture = side_by_side(&image, &result)?;
        let bytes =
            if is_jpeg { capture::encode_jpeg(&picture, JPEG_QUALITY)? } else { capture::encode_png(&picture)? };
        std::fs::write(out, bytes).with_context(|| format!("cannot write `{}`", out.display()))?;
    }
    if let Some(out) = &args.mask {
        let threshold = result.evidence.pixel_threshold_raw;
        let mask = crate::anomaly::mask(&result.map, threshold, image.width_px(), image.height_px());
        let bytes = capture::encode_png(&overlay::draw_mask(&mask, &image))?;
        std::fs::write(out, bytes).with_context(|| format!("cannot write `{}`", out.display()))?;
    }
    if args.json {
        println!("{}", serde_json::json!({ "image": args.image, "evidence": result.evidence }));
    } else {
        print(&result);
    }
    Ok(())
}

fn ends_in(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|end| endings.iter().any(|ending| end.eq_ignore_ascii_case(ending)))
}

fn side_by_side(image: &Image, result: &AnomalyResult) -> anyhow::Result<Image> {
    let (map, evidence) = (&result.map, &result.evidence);
    let high = (2.0 * evidence.pixel_threshold_raw).max(f32::MIN_POSITIVE);
    let heat = overlay::draw_heatmap(image, &map.data, map.width, map.height, 0.0, high);
    let marked = overlay::draw_regions(&heat, &evidence.surface.regions);
    let both = overlay::draw_beside(&marked, image);
    Ok(match result.nearest.as_ref().and_then(|nearest| nearest.path.as_ref()) {
        Some(path) => overlay::draw_beside(&both, &capture::read_image(path)?),
        None => both,
    })
}

fn print(result: &AnomalyResult) {
    let evidence = &result.evidence;
    let surface = &evidence.surface;
    let verdict = if evidence.score >= evidence.threshold { "unlike good parts" } else { "like good parts" };
    println!("score      {:.4} (threshold 0.5): {verdict}", evidence.score);
    println!("raw        {:.4} (threshold {:.4})", evidence.score_raw, evidence.image_threshold_raw);
    if let Some(group) = &surface.group {
        println!("group      {group}");
    }
    if let Some(correlation) = surface.correlation {
        println!("in place   correlation {correlation:.3}");
    }
    if surface.unseen_ratio > 0.0 {
        println!(
            "not seen   {:.0} % of it lies beyond the edge of the picture and is not judged",
            surface.unseen_ratio * 100.0
        );
    }
    if let Some(nearest) = &surface.nearest_picture {
        println!("most alike {nearest}");
    }
    println!("regions    {} above the pixel threshold", surface.region_count);
    for region in &surface.regions {
        let area = region.area_mm2.map_or_else(String::new, |area| format!(", {area:.3} mm2"));
        let b = region.bbox;
        println!(
            "  {:.0},{:.0} to {:.0},{:.0} px: {:.0} px{area}, highest {:.3}",
            b.x1, b.y1, b.x2, b.y2, region.area_px, region.score_raw_max
        );
    }
}
