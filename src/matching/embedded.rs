//! Embeddings of pictures, and of the same pictures mirrored, where an index asks for them. Pure.

use super::MatchError;
use super::search::normalise;

/// Embeddings of some pictures; a slice alone stands for pictures that were not mirrored.
#[derive(Debug, Clone, Copy)]
pub struct Embedded<'a> {
    /// `[N, dim]`.
    pub pictures: &'a [f32],
    /// `[N, dim]` of the same pictures mirrored left to right; empty where they were not embedded so.
    pub mirrored: &'a [f32],
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for Embedded<'a> {
    fn from(pictures: &'a T) -> Self {
        Self { pictures: pictures.as_ref(), mirrored: &[] }
    }
}

impl Embedded<'_> {
    /// Copies of the pictures at `positions`, and of them mirrored.
    #[must_use]
    pub fn picked(&self, positions: &[usize], dim: usize) -> (Vec<f32>, Vec<f32>) {
        let of = |vectors: &[f32]| -> Vec<f32> {
            let rows = positions.iter().filter_map(|at| vectors.get(at * dim..(at + 1) * dim));
            rows.flatten().copied().collect()
        };
        (of(self.pictures), of(self.mirrored))
    }

    /// The same with every vector of length 1, so that inner products are cosines.
    ///
    /// # Errors
    /// When they are not `[N, dim]` finite vectors that have a direction, or not as many mirrored as others.
    pub(super) fn normalised(&self, dim: usize) -> Result<Queries, MatchError> {
        let of = |vectors: &[f32]| {
            if !vectors.len().is_multiple_of(dim) {
                return Err(MatchError::Shape { values: vectors.len(), dim });
            }
            let mut vectors = vectors.to_vec();
            for (position, vector) in vectors.chunks_exact_mut(dim).enumerate() {
                normalise(vector).map_err(|norm| MatchError::NoDirection { position, norm })?;
            }
            Ok(vectors)
        };
        let (pictures, mirrored) = (of(self.pictures)?, of(self.mirrored)?);
        if !mirrored.is_empty() && mirrored.len() != pictures.len() {
            return Err(MatchError::Mirrored { pictures: pictures.len() / dim, mirrored: mirrored.len() / dim });
        }
        Ok(Queries { pictures, mirrored, dim })
    }
}

/// Embeddings of length 1.
#[derive(Debug)]
pub(super) struct Queries {
    /// `[N, dim]`.
    pub pictures: Vec<f32>,
    /// `[N, dim]` or empty.
    mirrored: Vec<f32>,
    dim: usize,
}

/// One picture's embeddings, of length 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    /// `[dim]`.
    pub picture: &'a [f32],
    /// `[dim]` of the picture mirrored.
    pub mirrored: Option<&'a [f32]>,
}

impl Queries {
    /// # Errors
    /// When mirrored ones are wanted and are not here.
    pub fn require_mirrored(&self, is_wanted: bool) -> Result<(), MatchError> {
        if is_wanted && self.mirrored.is_empty() && !self.pictures.is_empty() {
            return Err(MatchError::Mirrored { pictures: self.pictures.len() / self.dim, mirrored: 0 });
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = Query<'_>> {
        let mut mirrored = self.mirrored.chunks_exact(self.dim);
        self.pictures.chunks_exact(self.dim).map(move |picture| Query { picture, mirrored: mirrored.next() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Embedded, MatchError};

    #[test]
    fn each_picture_comes_with_its_mirror_image_at_length_one() {
        let embedded = Embedded { pictures: &[3.0, 4.0, 0.0, 2.0], mirrored: &[5.0, 0.0, 0.0, -1.0] };
        let queries = embedded.normalised(2).unwrap();
        let got: Vec<_> =
            queries.iter().map(|query| (query.picture.to_vec(), query.mirrored.unwrap().to_vec())).collect();
        assert_eq!(got, vec![(vec![0.6, 0.8], vec![1.0, 0.0]), (vec![0.0, 1.0], vec![0.0, -1.0])]);
        assert_eq!(embedded.picked(&[1], 2), (vec![0.0, 2.0], vec![0.0, -1.0]));
        let alone = Embedded::from(&[3.0, 4.0]);
        assert!(alone.normalised(2).unwrap().iter().all(|query| query.mirrored.is_none()));
        assert_eq!(alone.picked(&[0], 2), (vec![3.0, 4.0], vec![]));
    }

    #[test]
    fn mirror_images_of_other_pictures_and_without_direction_are_refused() {
        let with = |mirrored| Embedded { pictures: &[3.0, 4.0, 0.0, 2.0], mirrored }.normalised(2).unwrap_err();
        assert!(matches!(with(&[1.0, 0.0]), MatchError::Mirrored { pictures: 2, mirrored: 1 }));
        assert!(matches!(with(&[1.0, 0.0, 1.0]), MatchError::Shape { values: 3, dim: 2 }));
        assert!(matches!(with(&[1.0, 0.0, f32::NAN, 1.0]), MatchError::NoDirection { position: 1, .. }));
        assert!(matches!(with(&[0.0, 0.0, 1.0, 1.0]), MatchError::NoDirection { position: 0, .. }));
    }
}
