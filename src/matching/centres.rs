//! `centres.safetensors`: the directions that an embedder learned for the parts it was trained on. Pure.
//!
//! An embedder trained as a classifier with a cosine margin (Wang et al., CosFace, 2018) holds one direction for each part:
//! where the embeddings of all of its training pictures gather. The file is safetensors' own layout with one tensor a
//! part, `[dim]` f32, named by the part's number, so that any training script can write it.
//! A part that is not in it has no learned direction; [`super::likeness`] then takes that of the sum of its views.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::MatchError;
use super::generation::CENTRES_FILE;
use super::search::normalise;

/// Part → the direction that was learned for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Centres {
    /// `[dim]` each, of length 1.
    of_part: BTreeMap<String, Vec<f32>>,
}

impl Centres {
    /// # Errors
    /// A sentence naming what is wrong: no safetensors file, or the part whose tensor is not `[dim]` f32 with a direction.
    pub fn parse(bytes: &[u8], dim: usize) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| format!("it is no safetensors file: {error}"))?;
        let mut of_part = BTreeMap::new();
        for (part, tensor) in file.iter() {
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [dim] {
                let (dtype, shape) = (tensor.dtype(), tensor.shape());
                return Err(format!("part `{part}` has a tensor {shape:?} of {dtype:?}, not [{dim}] of F32"));
            }
            let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let mut vector: Vec<f32> = values.collect();
            normalise(&mut vector).map_err(|norm| format!("part `{part}` has no direction (norm {norm})"))?;
            of_part.insert(part.to_owned(), vector);
        }
        Ok(Self { of_part })
    }

    /// Those of `parts` only.
    #[must_use]
    pub fn of_parts(mut self, parts: &BTreeSet<String>) -> Self {
        self.of_part.retain(|part, _| parts.contains(part));
        self
    }

    #[must_use]
    pub fn of(&self, part_id: &str) -> Option<&[f32]> {
        self.of_part.get(part_id).map(Vec::as_slice)
    }

    /// Number of parts with a learned direction.
    #[must_use]
    pub fn len(&self) -> usize {
        self.of_part.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of_part.is_empty()
    }

    /// Content of the file.
    ///
    /// # Errors
    /// When it cannot be laid out so, which it can.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, MatchError> {
        let bytes_of = |vector: &[f32]| vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let tensors: Vec<(&str, usize, Vec<u8>)> =
            self.of_part.iter().map(|(part, vector)| (part.as_str(), vector.len(), bytes_of(vector))).collect();
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(part, dim, bytes)| Ok((*part, TensorView::new(Dtype::F32, vec![*dim], bytes)?)))
            .collect();
        views.and_then(|views| safetensors::serialize(views, None)).map_err(|error: SafeTensorError| MatchError::Io {
            action: "write",
            path: CENTRES_FILE.into(),
            source: std::io::Error::other(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use safetensors::tensor::{Dtype, TensorView};

    use super::Centres;

    fn file(part: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
        safetensors::serialize([(part, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())], None).unwrap()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn centres_come_back_from_their_file_at_length_one_and_only_of_the_parts_asked_for() {
        let read = Centres::parse(&file("3005", Dtype::F32, &[2], &f32s(&[3.0, 4.0])), 2).unwrap();
        assert_eq!((read.of("3005"), read.of("3004"), read.len()), (Some(&[0.6, 0.8][..]), None, 1));
        let both = Centres { of_part: BTreeMap::from([("a".into(), vec![1.0, 0.0]), ("b".into(), vec![0.0, 1.0])]) };
        let again = Centres::parse(&both.to_bytes().unwrap(), 2).unwrap();
        assert_eq!(again, both);
        let one = again.of_parts(&BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!((one.len(), one.of("b")), (1, Some(&[0.0, 1.0][..])));
        assert_eq!(both.to_bytes().unwrap(), both.to_bytes().unwrap(), "the same bytes each time");
    }

    #[test]
    fn what_is_no_direction_is_named() {
        let short = file("3005", Dtype::F32, &[2], &f32s(&[3.0, 4.0]));
        for (bytes, word) in [
            (Vec::new(), "safetensors"),
            (b"part_id\n3005\n".to_vec(), "safetensors"),
            (short[..short.len() - 1].to_vec(), "safetensors"),
            (file("3005", Dtype::F32, &[1, 2], &f32s(&[3.0, 4.0])), "`3005`"),
            (file("3005", Dtype::F32, &[3], &f32s(&[3.0, 4.0, 5.0])), "`3005`"),
            (file("3005", Dtype::F16, &[2], &[0; 4]), "`3005`"),
            (file("3005", Dtype::F32, &[2], &f32s(&[0.0, 0.0])), "no direction"),
            (file("3005", Dtype::F32, &[2], &f32s(&[f32::NAN, 0.0])), "no direction"),
        ] {
            let fault = Centres::parse(&bytes, 2).unwrap_err();
            assert!(fault.contains(word), "{fault}");
        }
    }
}
