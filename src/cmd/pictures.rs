//! Pictures of catalogue parts for `loupe index …`: read, framed as queries are, and embedded.

use std::path::{Path, PathBuf};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::capture;
use crate::inference::{Crop, FeatureModel, Looks, ModelManifest, ProviderPlan, Runtime};
use crate::matching::catalogue::{self, CatalogueError, QueryRow};
use crate::matching::{Embedded, PartIndex, Seen, Shape};
use crate::measure;
use crate::types::{BoundingBox, Image};

/// Crops embedded in one call.
const EMBED_BATCH: usize = 16;
/// Difference of a template's pixel from its background, in any of the three colours, that makes it part of the object:
/// above JPEG noise, below the faintest edge of a white part on light grey.
const FOREGROUND_STEP: u8 = 10;

/// Pictures whose part is known, embedded as the index they are compared with.
pub(super) struct Known {
    pub index: PartIndex,
    pub rows: Vec<QueryRow>,
    looks: Looks,
    /// What else is known of each row.
    pub seen: Vec<Seen>,
}

impl Known {
    /// Of all rows.
    pub fn embedded(&self) -> Embedded<'_> {
        Embedded { pictures: &self.looks.embeddings, mirrored: &self.looks.mirrored }
    }
}

/// Open the index in `dir` and embed the pictures of the CSV file `queries`, which start from the folder `root`.
pub(super) fn embed_known(
    dir: &Path,
    queries: &Path,
    root: &Path,
    model: &Path,
    onnxruntime: Option<&Path>,
) -> anyhow::Result<Known> {
    let rows = catalogue::read_queries(queries)?;
    let index = PartIndex::open(dir)?;
    if let Some(quarantined) = index.quarantined() {
        eprintln!("the live generation was damaged ({}); {quarantined}; the previous one serves", quarantined.fault);
    }
    let manifest = ModelManifest::load(model)?;
    let runtime = Runtime::load(onnxruntime)?;
    let mut model = FeatureModel::open(&runtime, &manifest, &ProviderPlan::default())?;
    index.require_model(model.embedding_dim(), manifest.sha256(), Some(manifest.input_sha256()))?;
    let embedding = &index.manifest().embedding;
    let sources: Vec<(u64, PathBuf)> = rows.iter().map(|row| (row.line, root.join(&row.file))).collect();
    let mut shapes = Vec::with_capacity(rows.len());
    let area = |at: usize, image: &Image| {
        shapes.push((!index.shapes().is_empty()).then(|| Shape::of(image, &rows[at].bbox, false)));
        grown_within(rows[at].bbox, embedding.crop_margin_ratio, image)
    };
    // What a fit weighs is wanted before there is one, too.
    let and_mirrored = !index.mirrors().is_empty();
    let looks = embed_all(&mut model, &sources, area, (embedding.input_px, and_mirrored), queries)?;
    let margin = 1.0 + 2.0 * embedding.crop_margin_ratio;
    let seen = rows.iter().zip(&looks.foreshortenings).zip(shapes).map(|((row, shown), shape)| Seen {
        size_mm: row.px_per_mm.and_then(|scale| measure::measure_size(&row.bbox, scale)),
        foreshortening: shown.clone().map(|shown| shown.of_inner(margin)),
        shape,
    });
    let seen = seen.collect();
    Ok(Known { index, rows, looks, seen })
}

/// Read and embed pictures, `area` of each, in a square of so many pixels, and mirrored too. Every unreadable one is reported
/// with its line of `csv`.
pub(super) fn embed_all(
    model: &mut FeatureModel,
    sources: &[(u64, PathBuf)],
    mut area: impl FnMut(usize, &Image) -> BoundingBox,
    (input_px, and_mirrored): (u32, bool),
    csv: &Path,
) -> anyhow::Result<Looks> {
    // A wrong folder is one fault, not one a row.
    if let Some((line, first)) = sources.first().filter(|_| sources.iter().all(|(_, path)| !path.exists())) {
        let fault = format!(
            "none of its {} pictures is there (line {line}: `{}`); --root names the folder that its paths start from",
            sources.len(),
            first.display()
        );
        return Err(CatalogueError { path: csv.to_owned(), faults: vec![fault] }.into());
    }
    let progress = ProgressBar::with_draw_target(Some(sources.len() as u64), ProgressDrawTarget::stderr());
    progress.set_style(ProgressStyle::with_template("embedding {bar:40} {pos}/{len} {eta}")?);
    let [width_px, height_px] = model.manifest().input().size_px;
    let mut looks = Looks::default();
    let mut faults = Vec::new();
    for (batch_index, batch) in sources.chunks(EMBED_BATCH).enumerate() {
        let mut images = Vec::with_capacity(batch.len());
        for (offset, (line, path)) in batch.iter().enumerate() {
            match capture::read_image(path) {
                Ok(image) => {
                    let area = area(batch_index * EMBED_BATCH + offset, &image);
                    images.push((image, area));
                }
                Err(error) => faults.push(format!("line {line}: {error}")),
            }
        }
        // After the first fault the rest is only read, to report all at once.
        if faults.is_empty() {
            let crops = images.iter().map(|(image, area)| Crop { image, area: *area, is_mirrored: false });
            let crops: Vec<Crop<'_>> = crops.collect();
            let more = model.look(&crops, input_px, and_mirrored).with_context(|| {
                format!(
                    "could not embed the pictures at {input_px} px (the model's own size is {width_px}×{height_px} px; \
                     `index build --input-px` sets it)"
                )
            })?;
            looks.embeddings.extend(more.embeddings);
            looks.foreshortenings.extend(more.foreshortenings);
            looks.mirrored.extend(more.mirrored);
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish_and_clear();
    if faults.is_empty() { Ok(looks) } else { Err(CatalogueError { path: csv.to_owned(), faults }.into()) }
}

pub(super) fn grown_within(bbox: BoundingBox, margin: f32, image: &Image) -> BoundingBox {
    bbox.grown(margin).clamped(image.width_px(), image.height_px())
}

/// The box of what differs from the background, which is the colour of the top left pixel; the whole image when nothing
/// does. Templates show one part on one colour; boxes of located parts are tight too, so both are framed alike.
pub(super) fn foreground(image: &Image) -> BoundingBox {
    let background = &image.bgr()[..3];
    let (mut left, mut top, mut right, mut bottom) = (u32::MAX, u32::MAX, 0, 0);
    for y in 0..image.height_px() {
        for (x, pixel) in (0..).zip(image.row(y).chunks_exact(3)) {
            if pixel.iter().zip(background).any(|(a, b)| a.abs_diff(*b) > FOREGROUND_STEP) {
                (left, right) = (left.min(x), right.max(x + 1));
                (top, bottom) = (top.min(y), bottom.max(y + 1));
            }
        }
    }
    if right <= left {
        return BoundingBox::whole(image.width_px(), image.height_px());
    }
    BoundingBox::new(left as f32, top as f32, right as f32, bottom as f32)
}

#[cfg(test)]
mod tests {
    use super::foreground;
    use crate::types::{BoundingBox, Image};

    #[test]
    fn the_foreground_is_boxed_tightly_and_an_empty_picture_is_kept_whole() {
        let mut bgr = vec![200_u8; 10 * 8 * 3];
        for (x, y) in [(3, 2), (6, 5)] {
            bgr[(y * 10 + x) * 3 + 1] = 100;
        }
        let image = Image::from_bgr(10, 8, bgr).unwrap();
        assert_eq!(foreground(&image), BoundingBox::new(3.0, 2.0, 7.0, 6.0));
        let empty = Image::from_bgr(10, 8, vec![200; 240]).unwrap();
        assert_eq!(foreground(&empty), BoundingBox::whole(10, 8));
    }
}
