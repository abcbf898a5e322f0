//! Which templates lie together: the directions that the cold tier's lists gather, and the list of each vector.
//!
//! FAISS's k-means trains (spherical: centroids have length 1), on a sample, because more than some dozens of vectors a
//! list do not move the centroids any more. Deterministic for the same vectors.
//! Thread: training runs on the caller's and FAISS's, assigning on every core. Overload: none.

use super::MatchError;
use super::faiss::{Index, Metric};

/// Vectors per list below which k-means is not trusted.
const VECTORS_PER_LIST_MIN: usize = 39;
/// Vectors per list that k-means sees.
const VECTORS_PER_LIST_TRAINED: usize = 64;
/// Catalogues from this size on get four times the square root of lists: visiting a list then costs less, and the time to
/// choose among them is still small.
const LARGE_COUNT: usize = 100_000;
/// Vectors assigned between two reports of progress.
const ASSIGNED_AT_ONCE: usize = 16_384;
/// Any fixed number: builds must not differ from each other.
const SEED: u64 = 0x10_0e;

/// Lists and who is in them.
#[derive(Debug)]
pub struct Clusters {
    /// `[lists, dim]`
    pub centroids: Vec<f32>,
    /// List of each vector.
    pub list_of: Vec<u32>,
}

/// Lists for `count` vectors: a multiple of the square root of their number, as long as each list gets enough of them.
#[must_use]
pub fn list_count(count: usize) -> usize {
    let lists = if count < LARGE_COUNT { count.isqrt() } else { 4 * count.isqrt() };
    lists.min(count / VECTORS_PER_LIST_MIN).max(1)
}

/// Gather `vectors` `[n, dim]` in `lists` lists. `progress(done, of)` counts assigned vectors.
///
/// # Errors
/// When FAISS fails.
pub fn gather(
    vectors: &[f32],
    dim: usize,
    lists: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Clusters, MatchError> {
    let count = vectors.len() / dim;
    let mut index = Index::factory(dim, &format!("IVF{lists},Flat"), Metric::InnerProduct)?;
    match sample(vectors, dim, lists * VECTORS_PER_LIST_TRAINED) {
        Some(sample) => index.train(&sample)?,
        None => index.train(vectors)?,
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut list_of = Vec::with_capacity(count);
    for batch in vectors.chunks(ASSIGNED_AT_ONCE * threads * dim) {
        let index = &index;
        let parts: Vec<Result<Vec<u32>, MatchError>> = std::thread::scope(|scope| {
            let work = batch.chunks(ASSIGNED_AT_ONCE * dim).map(|part| scope.spawn(|| Ok(index.nearest_list(part)?)));
            let work: Vec<_> = work.collect();
            let panicked = || {
                Err(MatchError::Io {
                    action: "assign vectors for",
                    path: "l2.lists".into(),
                    source: std::io::Error::other("a thread panicked"),
                })
            };
            work.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        });
        for part in parts {
            list_of.extend(part?);
        }
        progress(list_of.len(), count);
    }
    Ok(Clusters { centroids: index.centroids()?, list_of })
}

impl Clusters {
    /// The rows in the order of their lists (and within a list as they came), and the first row of each list.
    #[must_use]
    pub fn in_order(&self, lists: usize) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0_u32; lists + 1];
        self.list_of.iter().for_each(|&list| starts[list as usize + 1] += 1);
        for list in 0..lists {
            starts[list + 1] += starts[list];
        }
        let mut next = starts.clone();
        let mut order = vec![0_u32; self.list_of.len()];
        for (row, &list) in (0_u32..).zip(&self.list_of) {
            order[next[list as usize] as usize] = row;
            next[list as usize] += 1;
        }
        (order, starts)
    }
}

/// `count` of the vectors, picked at random; `None` when there are no more than that.
fn sample(vectors: &[f32], dim: usize, count: usize) -> Option<Vec<f32>> {
    let total = vectors.len() / dim;
    if total <= count {
        return None;
    }
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut picked = rng.choose_multiple(0..total, count);
    picked.sort_unstable();
    Some(picked.iter().flat_map(|&row| &vectors[row * dim..(row + 1) * dim]).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::{Clusters, list_count, sample};

    #[test]
    fn rows_come_list_by_list_and_empty_lists_stay() {
        let clusters = Clusters { centroids: vec![], list_of: vec![2, 0, 2, 0, 3] };
        let (order, starts) = clusters.in_order(4);
        assert_eq!(order, [1, 3, 0, 2, 4]);
        assert_eq!(starts, [0, 2, 2, 4, 5]);
    }

    #[test]
    fn lists_grow_with_the_catalogue_and_a_sample_repeats() {
        assert_eq!([0, 1, 77, 6_372, 1_000_000].map(list_count), [1, 1, 1, 79, 4000]);
        let vectors: Vec<f32> = (0_u8..20).map(f32::from).collect();
        assert_eq!(sample(&vectors, 2, 10), None);
        let picked = sample(&vectors, 2, 4).unwrap();
        assert_eq!((picked.len(), sample(&vectors, 2, 4).unwrap()), (8, picked));
    }
}
