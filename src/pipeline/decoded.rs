//! A frame's pixels: of one picture, or of several views put side by side.

use tracing::warn;

use crate::capture::{self, CaptureError, Payload};
use crate::locate::Detection;
use crate::types::{BoundingBox, Digest, Image, Reason};

/// A decoded frame, or why there is none.
#[derive(Debug)]
pub struct Decoded {
    pub image: Option<Image>,
    /// What the image is made of; empty where there is none.
    pub pictures: Vec<Picture>,
    /// The file's bytes where the frame is one file; of several the one that cannot be decoded.
    pub encoded: Option<Vec<u8>>,
    pub sha256: Digest,
    pub fault: Option<Reason>,
}

/// One picture of a frame.
#[derive(Debug)]
pub struct Picture {
    pub image: Image,
    /// Where it lies in the frame, px.
    pub place: BoundingBox,
    pub sha256: Digest,
}

impl Decoded {
    /// Never fails: what goes wrong is the frame's fault.
    #[must_use]
    pub fn of(source: &str, payload: Payload) -> Self {
        match payload {
            Payload::Pixels(image) => {
                let sha256 = Digest::of(image.bgr());
                Self::one(image, None, sha256)
            }
            Payload::Encoded(bytes) => {
                let sha256 = Digest::of(&bytes);
                match capture::decode_image(&bytes, source) {
                    Ok(image) => Self::one(image, Some(bytes), sha256),
                    Err(error) => Self::unreadable(source, &error, Some(bytes), sha256),
                }
            }
            Payload::Views(views) => Self::several(source, views),
            Payload::Fault { reason, message, bytes_digest } => {
                warn!(source, reason = %reason, message, "frame held: the source has a fault");
                let pictures = Vec::new();
                Self { image: None, pictures, encoded: None, sha256: bytes_digest, fault: Some(reason) }
            }
        }
    }

    /// Where the views lie; empty where the frame is one picture.
    #[must_use]
    pub fn views(&self) -> Vec<BoundingBox> {
        if self.pictures.len() < 2 { Vec::new() } else { self.pictures.iter().map(|picture| picture.place).collect() }
    }

    /// What `locate` finds in each of the pictures, where it lies in the frame.
    ///
    /// # Errors
    /// The first of `locate`.
    pub fn locate<E>(&self, mut locate: impl FnMut(&Image) -> Result<Vec<Detection>, E>) -> Result<Vec<Detection>, E> {
        let mut found = Vec::new();
        for Picture { image, place, .. } in &self.pictures {
            let moved = |d: Detection| Detection { bbox: d.bbox.moved(place.x1, place.y1), ..d };
            found.extend(locate(image)?.into_iter().map(moved));
        }
        Ok(found)
    }

    fn one(image: Image, encoded: Option<Vec<u8>>, sha256: Digest) -> Self {
        let place = BoundingBox::whole(image.width_px(), image.height_px());
        let pictures = vec![Picture { image: image.clone(), place, sha256 }];
        Self { image: Some(image), pictures, encoded, sha256, fault: None }
    }

    fn several(source: &str, views: Vec<(String, Vec<u8>)>) -> Self {
        let sha256 = Digest::of(&views.iter().map(|(_, bytes)| bytes.as_slice()).collect::<Vec<_>>().concat());
        let (mut images, mut sha256s) = (Vec::with_capacity(views.len()), Vec::with_capacity(views.len()));
        for (name, bytes) in views {
            match capture::decode_image(&bytes, &name) {
                Ok(image) => images.push(image),
                Err(error) => return Self::unreadable(source, &error, Some(bytes), sha256),
            }
            sha256s.push(Digest::of(&bytes));
        }
        let (image, places) = match capture::side_by_side(source, &images) {
            Ok(together) => together,
            Err(error) => return Self::unreadable(source, &error, None, sha256),
        };
        let picture = |((image, place), sha256)| Picture { image, place, sha256 };
        let pictures = images.into_iter().zip(places).zip(sha256s).map(picture).collect();
        Self { image: Some(image), pictures, encoded: None, sha256, fault: None }
    }

    fn unreadable(source: &str, error: &CaptureError, encoded: Option<Vec<u8>>, sha256: Digest) -> Self {
        warn!(source, error = %error, "frame held: it cannot be decoded");
        Self { image: None, pictures: Vec::new(), encoded, sha256, fault: Some(Reason::FrameUnreadable) }
    }
}

#[cfg(test)]
mod tests {
    use super::Decoded;
    use crate::capture::{Payload, encode_png};
    use crate::locate;
    use crate::types::{BoundingBox, Digest, Image, Reason};

    fn png(width: u32, grey: u8) -> Vec<u8> {
        encode_png(&Image::from_bgr(width, 4, vec![grey; width as usize * 12]).unwrap()).unwrap()
    }

    #[test]
    fn several_pictures_are_one_frame_and_boxes_lie_where_their_picture_does() {
        let (left, right) = (png(6, 10), png(3, 200));
        let both = [left.clone(), right.clone()].concat();
        let decoded = Decoded::of("u*", Payload::Views(vec![("a".to_owned(), left), ("b".to_owned(), right.clone())]));
        assert_eq!(decoded.sha256, Digest::of(&both));
        assert_eq!(decoded.pictures[1].sha256, Digest::of(&right));
        let boxes = [BoundingBox::new(0.0, 0.0, 6.0, 4.0), BoundingBox::new(6.0, 0.0, 9.0, 4.0)];
        assert_eq!(decoded.views(), boxes);
        let found = decoded.locate(|image| Ok::<_, ()>(locate::whole(image))).unwrap();
        assert_eq!(found.iter().map(|d| d.bbox).collect::<Vec<_>>(), boxes);
    }

    #[test]
    fn one_view_that_cannot_be_decoded_holds_the_frame_and_is_kept() {
        let views = vec![("a".to_owned(), png(2, 1)), ("b".to_owned(), b"no picture".to_vec())];
        let decoded = Decoded::of("u*", Payload::Views(views));
        assert_eq!((decoded.fault, decoded.pictures.len()), (Some(Reason::FrameUnreadable), 0));
        assert_eq!(decoded.encoded.as_deref(), Some(&b"no picture"[..]));
        assert!(decoded.image.is_none() && decoded.views().is_empty());
        let plain = Decoded::of("p", Payload::Encoded(png(2, 1)));
        assert!(plain.views().is_empty() && plain.pictures.len() == 1, "one picture is no view of several");
    }
}
