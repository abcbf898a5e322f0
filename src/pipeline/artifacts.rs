//! Which pictures an inspection keeps, and their making.

use std::path::Path;

use tracing::warn;

use crate::anomaly::{self, ScoreMap};
use crate::capture::{self, CaptureError};
use crate::config::ArtifactPolicy;
use crate::ledger::NewArtifact;
use crate::overlay;
use crate::types::{ArtifactKind, Image, Inspection, Verdict};

/// JPEG quality of pictures made for people, 1 to 100.
const PICTURE_QUALITY: u8 = 88;
/// JPEG quality of a stored video frame.
const FRAME_QUALITY: u8 = 95;
/// Widest thumbnail, pixels.
const THUMBNAIL_WIDTH_PX: u32 = 256;

/// Widest half of a comparison, pixels.
const COMPARISON_WIDTH_PX: u32 = 640;

/// What the pictures are made of.
#[derive(Debug, Clone, Copy)]
pub struct Material<'a> {
    pub image: &'a Image,
    /// The file's own bytes, where the frame came as a file.
    pub encoded: Option<&'a [u8]>,
    pub map: Option<&'a ScoreMap>,
    /// A small copy of the learnt picture that is most alike.
    pub nearest: Option<&'a Path>,
}

/// Make the pictures that `policy` keeps of `inspection`.
///
/// # Errors
/// When a picture cannot be encoded.
pub fn make(
    policy: ArtifactPolicy,
    inspection: &Inspection,
    material: Material<'_>,
) -> Result<Vec<NewArtifact>, CaptureError> {
    let is_exception = inspection.verdict != Verdict::Pass;
    let mut artifacts = Vec::new();
    if policy == ArtifactPolicy::None {
        return Ok(artifacts);
    }
    let thumbnail = capture::resize_to_width(material.image, THUMBNAIL_WIDTH_PX)?;
    artifacts.push(jpeg(ArtifactKind::Thumbnail, &thumbnail, PICTURE_QUALITY)?);
    if is_exception || policy == ArtifactPolicy::All {
        artifacts.push(jpeg(
            ArtifactKind::Overlay,
            &overlay::draw_inspection(material.image, inspection),
            PICTURE_QUALITY,
        )?);
        if let (Some(map), Some(anomaly)) = (material.map, &inspection.anomaly) {
            let high = (2.0 * anomaly.pixel_threshold_raw).max(f32::MIN_POSITIVE);
            let heat = overlay::draw_heatmap(material.image, &map.data, map.width, map.height, 0.0, high);
            artifacts.push(jpeg(ArtifactKind::Heatmap, &heat, PICTURE_QUALITY)?);
            if anomaly.surface.region_count > 0 {
                artifacts.push(mask(material.image, map, anomaly.pixel_threshold_raw)?);
                artifacts.extend(comparison(inspection, material)?);
            }
        }
    }
    if is_exception {
        artifacts.push(frame(inspection, material)?);
    }
    Ok(artifacts)
}

/// White where the map is above the pixel threshold, of the frame's size.
fn mask(image: &Image, map: &ScoreMap, threshold: f32) -> Result<NewArtifact, CaptureError> {
    let mask = overlay::draw_mask(&anomaly::mask(map, threshold, image.width_px(), image.height_px()), image);
    Ok(NewArtifact {
        kind: ArtifactKind::Mask,
        content_type: "image/png".to_owned(),
        extension: "png".to_owned(),
        bytes: capture::encode_png(&mask)?,
        width_px: mask.width_px(),
        height_px: mask.height_px(),
    })
}

/// The frame with its defects beside the learnt picture that is most alike; `None` where that cannot be read.
fn comparison(inspection: &Inspection, material: Material<'_>) -> Result<Option<NewArtifact>, CaptureError> {
    let Some(path) = material.nearest else { return Ok(None) };
    let nearest = match capture::read_image(path) {
        Ok(nearest) => nearest,
        Err(error) => {
            warn!(source = inspection.source, error = %error, "no comparison: the bank's picture cannot be read");
            return Ok(None);
        }
    };
    let regions = inspection.anomaly.as_ref().map_or(&[][..], |anomaly| &anomaly.surface.regions);
    let marked = overlay::draw_regions(material.image, regions);
    let marked = capture::resize_to_width(&marked, COMPARISON_WIDTH_PX)?;
    jpeg(ArtifactKind::Comparison, &overlay::draw_beside(&marked, &nearest), PICTURE_QUALITY).map(Some)
}

fn jpeg(kind: ArtifactKind, image: &Image, quality: u8) -> Result<NewArtifact, CaptureError> {
    Ok(NewArtifact {
        kind,
        content_type: "image/jpeg".to_owned(),
        extension: "jpg".to_owned(),
        bytes: capture::encode_jpeg(image, quality)?,
        width_px: image.width_px(),
        height_px: image.height_px(),
    })
}

/// The frame as it came: a file keeps its own bytes, whose digest the inspection carries.
fn frame(inspection: &Inspection, material: Material<'_>) -> Result<NewArtifact, CaptureError> {
    match material.encoded {
        Some(bytes) => Ok(frame_bytes(inspection, bytes)),
        None => jpeg(ArtifactKind::Frame, material.image, FRAME_QUALITY),
    }
}

/// A file's bytes as the frame artifact, whatever they are.
pub fn frame_bytes(inspection: &Inspection, bytes: &[u8]) -> NewArtifact {
    let format = capture::sniff(bytes);
    NewArtifact {
        kind: ArtifactKind::Frame,
        content_type: format.map_or("application/octet-stream", |format| format.content_type()).to_owned(),
        extension: format.map_or("bin", |format| format.extension()).to_owned(),
        bytes: bytes.to_vec(),
        width_px: inspection.width_px,
        height_px: inspection.height_px,
    }
}
