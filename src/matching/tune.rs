//! How many lists of L2 to visit: the fewest that hold the exact nearest template of disturbed templates.
//!
//! A query is a picture of a part in another light and pose, so its embedding lies well away from any template and partly
//! towards other parts. The probes are made so: a template and another one picked at random in equal parts, and noise.
//! On 1 062 hard queries (6 372 templates × 1 280, recall target 0.99) probes that stay nearer, 0.7 to 0.4, chose 6 of 79
//! lists and gave 95.8 % agreement with an exhaustive search at 160 px; these chose 18 and gave 99.4 % at 224 px, and 14
//! and 98.5 % at 128 px. Who has queries like those to come gives them instead. Deterministic for the same vectors.
//!
//! One exhaustive search of the probes is enough for every number of lists: a query finds its nearest template when the
//! list that holds it is among those visited, so the rank of that list says from where on it is found.
//! Thread: one a core. Overload: the work is bounded by `PRODUCTS_MAX`; larger catalogues get fewer probes.

use super::clusters::Clusters;
use super::kernel;
use super::search::normalise;

/// Probes: 1 000 give a recall of 0.99 a standard error of 0.003.
const PROBES_MAX: usize = 1_000;
/// Least of them, whatever they cost.
const PROBES_MIN: usize = 200;
/// Multiplications of one tuning: 1 000 probes × 1 000 000 × 256, some ten seconds of one core.
const PRODUCTS_MAX: usize = 256_000_000_000;
/// Weights of the template itself, of another template, and of the noise (whose length is 1).
const MIXTURE: (f32, f32, f32) = (0.5, 0.5, 0.5);
/// Any fixed number: builds must not differ from each other.
const SEED: u64 = 0x10_0e;
/// Vectors compared between two looks at the results.
const ROWS_AT_ONCE: usize = 128;

/// The chosen number of lists and the recall measured with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuned {
    pub nprobe: usize,
    pub recall: f32,
    /// Vectors that a query is compared with on average.
    pub visited: f32,
}

/// The least number of lists that reaches `recall_target` on `probes` `[n, dim]`, normalised. `exact`: what
/// [`nearest`] says of them.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to it")]
pub fn nprobe(clusters: &Clusters, dim: usize, probes: &[f32], exact: &[u32], recall_target: f32) -> Tuned {
    let lists = clusters.centroids.len() / dim;
    let mut sizes = vec![0_u32; lists];
    clusters.list_of.iter().for_each(|&list| sizes[list as usize] += 1);
    let mut ranks = Vec::with_capacity(exact.len());
    // How many vectors the probes visit at each number of lists, summed over probes.
    let mut visited_at = vec![0_u64; lists + 1];
    for (probe, &nearest) in probes.chunks_exact(dim).zip(exact) {
        let similarities = kernel::similarities(probe, &clusters.centroids, dim);
        let mut order: Vec<usize> = (0..lists).collect();
        order.sort_unstable_by(|&a, &b| similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b)));
        let holder = clusters.list_of[nearest as usize] as usize;
        ranks.push(order.iter().position(|&list| list == holder).map_or(lists, |rank| rank + 1));
        let mut visited = 0;
        for (rank, &list) in order.iter().enumerate() {
            visited += u64::from(sizes[list]);
            visited_at[rank + 1] += visited;
        }
    }
    ranks.sort_unstable();
    let wanted = (ranks.len() as f32 * recall_target).ceil() as usize;
    let nprobe = ranks.get(wanted.clamp(1, ranks.len().max(1)) - 1).copied().unwrap_or(1).clamp(1, lists);
    let found = ranks.partition_point(|&rank| rank <= nprobe);
    let recall = found as f32 / ranks.len().max(1) as f32;
    Tuned { nprobe, recall, visited: visited_at[nprobe] as f32 / ranks.len().max(1) as f32 }
}

/// Row of the vector nearest to each of `probes`, by comparing with every one of `vectors`. `progress(done, of)` counts
/// vectors.
#[must_use]
pub fn nearest(vectors: &[f32], dim: usize, probes: &[f32], progress: impl Fn(usize, usize) + Sync) -> Vec<u32> {
    let count = vectors.len() / dim;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = count.div_ceil(threads).max(1);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let parts: Vec<Vec<(f32, u32)>> = std::thread::scope(|scope| {
        let (done, progress) = (&done, &progress);
        let work: Vec<_> = vectors
            .chunks(share * dim)
            .enumerate()
            .map(|(part, vectors)| {
                scope.spawn(move || {
                    nearest_of(vectors, dim, probes, part * share, |rows| {
                        progress(done.fetch_add(rows, std::sync::atomic::Ordering::Relaxed) + rows, count);
                    })
                })
            })
            .collect();
        // A thread that panicked found nothing; the others' answers then stand, and the recall shows it.
        work.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut best = vec![(f32::NEG_INFINITY, 0_u32); probes.len() / dim];
    for part in parts {
        for (best, found) in best.iter_mut().zip(part) {
            if found.0 > best.0 {
                *best = found;
            }
        }
    }
    best.into_iter().map(|(_, row)| row).collect()
}

fn nearest_of(
    vectors: &[f32],
    dim: usize,
    probes: &[f32],
    first: usize,
    mut progress: impl FnMut(usize),
) -> Vec<(f32, u32)> {
    let mut best = vec![(f32::NEG_INFINITY, 0_u32); probes.len() / dim];
    let mut out = vec![0.0_f32; best.len() * ROWS_AT_ONCE];
    for (block, rows) in vectors.chunks(ROWS_AT_ONCE * dim).enumerate() {
        let count = rows.len() / dim;
        let out = &mut out[..best.len() * count];
        kernel::similarities_into(probes, rows, dim, out);
        for (best, similarities) in best.iter_mut().zip(out.chunks_exact(count)) {
            for (offset, &similarity) in similarities.iter().enumerate() {
                if similarity > best.0 {
                    *best = (similarity, u32::try_from(first + block * ROWS_AT_ONCE + offset).unwrap_or(u32::MAX));
                }
            }
        }
        progress(count);
    }
    best
}

/// Disturbed templates, `[n, dim]`, normalised.
#[must_use]
pub fn probes(vectors: &[f32], dim: usize) -> Vec<f32> {
    let count = vectors.len() / dim;
    let affordable = (PRODUCTS_MAX / vectors.len().max(1)).max(PROBES_MIN);
    let wanted = count.min(PROBES_MAX).min(affordable);
    let mut rng = fastrand::Rng::with_seed(SEED);
    let (own, other, noise) = MIXTURE;
    // Uniform noise of variance 1/12 a value, so a vector of it has about the length √(dim/12).
    let noise = noise / (dim as f32 / 12.0).sqrt();
    let mut probes = Vec::with_capacity(wanted * dim);
    for _ in 0..wanted {
        let (a, b) = (rng.usize(..count), rng.usize(..count));
        let pair = vectors[a * dim..(a + 1) * dim].iter().zip(&vectors[b * dim..(b + 1) * dim]);
        let mut probe: Vec<f32> = pair.map(|(a, b)| own * a + other * b + noise * (rng.f32() - 0.5)).collect();
        // Two opposite templates could cancel out; such a probe is left out.
        if normalise(&mut probe).is_ok() {
            probes.extend(probe);
        }
    }
    probes
}

#[cfg(test)]
mod tests {
    use super::{nearest, nprobe};
    use crate::matching::clusters::Clusters;

    #[test]
    fn the_rank_of_the_right_list_is_the_number_of_lists_needed() {
        // Two lists at right angles; the nearest vector of the second probe lies in its second list.
        let clusters = Clusters { centroids: vec![1.0, 0.0, 0.0, 1.0], list_of: vec![0, 1, 1] };
        let vectors = [1.0, 0.0, 0.0, 1.0, 0.8, 0.6];
        let probes = [0.1, 0.9, 0.8, 0.5];
        let exact = nearest(&vectors, 2, &probes, |_, _| {});
        assert_eq!(exact, [1, 2]);
        let half = nprobe(&clusters, 2, &probes, &exact, 0.5);
        assert_eq!((half.nprobe, half.recall), (1, 0.5));
        assert_eq!(half.visited, 1.5, "two vectors for the first probe, one for the second");
        let all = nprobe(&clusters, 2, &probes, &exact, 1.0);
        assert_eq!((all.nprobe, all.recall, all.visited), (2, 1.0, 3.0));
    }
}
