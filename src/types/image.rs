//! Decoded pictures.

use std::sync::Arc;

use super::BoundingBox;

/// A decoded picture: 8-bit BGR, interleaved, rows top to bottom without padding. Cheap to clone.
#[derive(Clone)]
pub struct Image {
    width_px: u32,
    height_px: u32,
    bgr: Arc<Vec<u8>>,
}

/// Why pixels do not make an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("an image of {width_px}x{height_px} pixels has no content")]
    Empty { width_px: u32, height_px: u32 },
    #[error("an image of {width_px}x{height_px} pixels needs {expected_bytes} bytes of BGR, got {got_bytes}")]
    Size { width_px: u32, height_px: u32, expected_bytes: usize, got_bytes: usize },
}

impl Image {
    /// # Errors
    /// When a side is zero or `bgr` is not `width × height × 3` bytes long.
    pub fn from_bgr(width_px: u32, height_px: u32, bgr: Vec<u8>) -> Result<Self, ImageError> {
        if width_px == 0 || height_px == 0 {
            return Err(ImageError::Empty { width_px, height_px });
        }
        let expected_bytes = width_px as usize * height_px as usize * 3;
        if bgr.len() != expected_bytes {
            return Err(ImageError::Size { width_px, height_px, expected_bytes, got_bytes: bgr.len() });
        }
        Ok(Self { width_px, height_px, bgr: Arc::new(bgr) })
    }

    #[must_use]
    pub fn width_px(&self) -> u32 {
        self.width_px
    }

    #[must_use]
    pub fn height_px(&self) -> u32 {
        self.height_px
    }

    /// `[height, width, 3]` u8, BGR.
    #[must_use]
    pub fn bgr(&self) -> &[u8] {
        &self.bgr
    }

    /// Bytes of row `y`.
    ///
    /// # Panics
    /// When `y` is not below the height.
    #[must_use]
    pub fn row(&self, y: u32) -> &[u8] {
        let stride = self.width_px as usize * 3;
        &self.bgr[y as usize * stride..(y as usize + 1) * stride]
    }

    /// A copy of the pixels inside `area`, cut to the image; at least one pixel.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the image's size first")]
    pub fn crop(&self, area: &BoundingBox) -> Image {
        let area = area.clamped(self.width_px, self.height_px);
        let x1 = (area.x1 as u32).min(self.width_px - 1);
        let y1 = (area.y1 as u32).min(self.height_px - 1);
        let x2 = (area.x2.ceil() as u32).clamp(x1 + 1, self.width_px);
        let y2 = (area.y2.ceil() as u32).clamp(y1 + 1, self.height_px);
        let mut bgr = Vec::with_capacity((x2 - x1) as usize * (y2 - y1) as usize * 3);
        for y in y1..y2 {
            bgr.extend_from_slice(&self.row(y)[x1 as usize * 3..x2 as usize * 3]);
        }
        Image { width_px: x2 - x1, height_px: y2 - y1, bgr: Arc::new(bgr) }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width_px, self.height_px)
    }
}

#[cfg(test)]
mod tests {
    use super::{BoundingBox, Image, ImageError};

    #[test]
    fn pixels_must_match_the_size() {
        assert!(matches!(Image::from_bgr(0, 3, vec![]), Err(ImageError::Empty { .. })));
        assert!(matches!(Image::from_bgr(2, 2, vec![0; 11]), Err(ImageError::Size { expected_bytes: 12, .. })));
    }

    #[test]
    fn a_crop_outside_the_image_is_still_one_pixel() {
        let image = Image::from_bgr(3, 2, (0..18).collect()).unwrap();
        assert_eq!(image.crop(&BoundingBox::new(1.0, 0.0, 3.0, 1.0)).bgr(), &[3, 4, 5, 6, 7, 8]);
        let crop = image.crop(&BoundingBox::new(50.0, 50.0, 60.0, 60.0));
        assert_eq!((crop.width_px(), crop.height_px()), (1, 1));
    }
}
