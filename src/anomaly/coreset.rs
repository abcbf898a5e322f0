//! Greedy k-centre coreset: few descriptors that leave none far away.
//!
//! PatchCore's algorithm 1 (Roth et al. 2022; Sener and Savarese 2018): starting from one descriptor, the one farthest
//! from all chosen is chosen next. Distances are taken after a random Gaussian projection to [`PROJECTED_DIM`] values
//! (Johnson and Lindenstrauss 1984), as in the published code; shorter descriptors are used as they are, because a
//! projection to more values than there are only adds noise. The projected copy is all the memory it needs.

/// Values of a projected descriptor.
pub const PROJECTED_DIM: usize = 128;

/// Choose `count` of the rows of `vectors`, `[n, dim]`, in the order of choice; the same for the same seed.
#[cfg(test)]
#[must_use]
pub fn choose(vectors: &[f32], dim: usize, count: usize, seed: u64) -> Vec<usize> {
    choose_beside(&[], vectors, dim, count, seed, &mut |_| true)
}

/// Choose up to `count` of the rows of `vectors` that lie far from each other and from `base`, `[m, dim]`, which is there
/// already. `go_on` is told how many are chosen and ends the choice early by `false`; at least one is chosen.
#[must_use]
pub fn choose_beside(
    base: &[f32],
    vectors: &[f32],
    dim: usize,
    count: usize,
    seed: u64,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let total = vectors.len() / dim.max(1);
    let count = count.min(total);
    if count == 0 {
        return Vec::new();
    }
    let matrix = projection(dim, &mut random);
    let projected = matrix.as_ref().map(|matrix| project(vectors, dim, matrix));
    let based = matrix.as_ref().map(|matrix| project(base, dim, matrix));
    let (base, points) = (based.as_deref().unwrap_or(base), projected.as_deref().unwrap_or(vectors));
    let dim = if matrix.is_some() { PROJECTED_DIM } else { dim };
    let mut chosen = Vec::with_capacity(count);
    let mut nearest = vec![f32::INFINITY; total];
    let mut next = random.usize(..total);
    for center in base.chunks_exact(dim) {
        next = closer(points, dim, center, &mut nearest);
    }
    loop {
        chosen.push(next);
        if chosen.len() == count || !go_on(chosen.len()) {
            return chosen;
        }
        let center = points[next * dim..(next + 1) * dim].to_vec();
        next = closer(points, dim, &center, &mut nearest);
    }
}

/// Bring `nearest` up to date with a further center; the point that is now farthest from all.
fn closer(points: &[f32], dim: usize, center: &[f32], nearest: &mut [f32]) -> usize {
    let mut farthest = (0, -1.0_f32);
    for (index, (point, least)) in points.chunks_exact(dim).zip(nearest).enumerate() {
        *least = least.min(squared_distance(point, center));
        if *least > farthest.1 {
            farthest = (index, *least);
        }
    }
    farthest.0
}

/// `[dim, PROJECTED_DIM]`; `None` where the descriptors are short enough already.
fn projection(dim: usize, random: &mut fastrand::Rng) -> Option<Vec<f32>> {
    let scale = (PROJECTED_DIM as f32).sqrt().recip();
    (dim > PROJECTED_DIM).then(|| (0..dim * PROJECTED_DIM).map(|_| gaussian(random) * scale).collect())
}

fn project(vectors: &[f32], dim: usize, matrix: &[f32]) -> Vec<f32> {
    let mut projected = vec![0.0_f32; vectors.len() / dim * PROJECTED_DIM];
    for (vector, out) in vectors.chunks_exact(dim).zip(projected.chunks_exact_mut(PROJECTED_DIM)) {
        for (value, row) in vector.iter().zip(matrix.chunks_exact(PROJECTED_DIM)) {
            out.iter_mut().zip(row).for_each(|(sum, weight)| *sum += value * weight);
        }
    }
    projected
}

/// Box and Muller's transform.
fn gaussian(random: &mut fastrand::Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.f32()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.f32()).cos()
}

/// Sixteen running sums, so that the compiler can keep them in vector registers.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            let difference = x[lane] - y[lane];
            sums[lane] += difference * difference;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::{PROJECTED_DIM, choose, choose_beside, squared_distance};

    /// 5 clusters of 40 points, far apart.
    fn clusters(dim: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(3);
        (0..200).flat_map(|index| vec![(index % 5) as f32 * 100.0; dim]).map(|base| base + random.f32()).collect()
    }

    #[test]
    fn every_cluster_is_covered_before_any_is_chosen_twice() {
        for dim in [3, PROJECTED_DIM + 40] {
            let mut found: Vec<_> = choose(&clusters(dim), dim, 5, 7).iter().map(|index| index % 5).collect();
            found.sort_unstable();
            assert_eq!(found, [0, 1, 2, 3, 4], "dim {dim}");
        }
    }

    #[test]
    fn the_seed_decides_and_the_count_is_cut_to_what_is_there() {
        let points = clusters(4);
        assert_eq!(choose(&points, 4, 20, 1), choose(&points, 4, 20, 1));
        assert_ne!(choose(&points, 4, 20, 1), choose(&points, 4, 20, 2));
        assert_eq!(choose(&points[..12], 4, 20, 1).len(), 3);
        assert!(choose(&[], 4, 20, 1).is_empty());
    }

    #[test]
    fn what_a_base_covers_is_chosen_last() {
        for dim in [3, PROJECTED_DIM + 40] {
            let points = clusters(dim);
            // clusters 0, 1 and 2 are there already
            let found = choose_beside(&points[..3 * dim], &points, dim, 2, 7, &mut |_| true);
            let mut clusters: Vec<_> = found.iter().map(|index| index % 5).collect();
            clusters.sort_unstable();
            assert_eq!(clusters, [3, 4], "dim {dim}");
        }
    }

    #[test]
    fn a_budget_that_is_spent_keeps_what_was_chosen_first() {
        let points = clusters(4);
        let cut = choose_beside(&[], &points, 4, 50, 1, &mut |chosen| chosen < 7);
        assert_eq!(cut, choose(&points, 4, 50, 1)[..7]);
        assert_eq!(choose_beside(&[], &points, 4, 50, 1, &mut |_| false).len(), 1);
    }

    #[test]
    fn the_distance_counts_every_value() {
        let a: Vec<f32> = (0..19).map(|index| index as f32).collect();
        assert_eq!(squared_distance(&a, &[0.0; 19]), (0..19).map(|index| (index * index) as f32).sum::<f32>());
    }
}
