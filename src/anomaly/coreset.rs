//! Greedy k-centre coreset: few descriptors that leave none far away.
//!
//! PatchCore's algorithm 1 (Roth et al. 2022; Sener and Savarese 2018): starting from one descriptor, the one farthest
//! from all chosen is chosen next. Distances are taken after a random Gaussian projection to [`PROJECTED_DIM`] values
//! (Johnson and Lindenstrauss 1984), as in the published code; shorter descriptors are used as they are, because a
//! projection to more values than there are only adds noise. The projected copy is all the memory it needs.

/// Values of a projected descriptor.
pub const PROJECTED_DIM: usize = 128;

/// Choose `count` of the rows of `vectors`, `[n, dim]`, in the order of choice; the same for the same seed.
#[must_use]
pub fn choose(vectors: &[f32], dim: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let total = vectors.len() / dim.max(1);
    let count = count.min(total);
    if count == 0 {
        return Vec::new();
    }
    let projected = project(vectors, dim, &mut random);
    let (points, dim) = projected.as_ref().map_or((vectors, dim), |points| (points.as_slice(), PROJECTED_DIM));
    let mut chosen = Vec::with_capacity(count);
    let mut nearest = vec![f32::INFINITY; total];
    let mut next = random.usize(..total);
    loop {
        chosen.push(next);
        if chosen.len() == count {
            return chosen;
        }
        let center = points[next * dim..(next + 1) * dim].to_vec();
        let mut farthest = (0, -1.0_f32);
        for (index, (point, least)) in points.chunks_exact(dim).zip(&mut nearest).enumerate() {
            *least = least.min(squared_distance(point, &center));
            if *least > farthest.1 {
                farthest = (index, *least);
            }
        }
        next = farthest.0;
    }
}

/// `None` where the descriptors are short enough already.
fn project(vectors: &[f32], dim: usize, random: &mut fastrand::Rng) -> Option<Vec<f32>> {
    if dim <= PROJECTED_DIM {
        return None;
    }
    let scale = (PROJECTED_DIM as f32).sqrt().recip();
    let matrix: Vec<f32> = (0..dim * PROJECTED_DIM).map(|_| gaussian(random) * scale).collect();
    let mut projected = vec![0.0_f32; vectors.len() / dim * PROJECTED_DIM];
    for (vector, out) in vectors.chunks_exact(dim).zip(projected.chunks_exact_mut(PROJECTED_DIM)) {
        for (value, row) in vector.iter().zip(matrix.chunks_exact(PROJECTED_DIM)) {
            out.iter_mut().zip(row).for_each(|(sum, weight)| *sum += value * weight);
        }
    }
    Some(projected)
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
    use super::{PROJECTED_DIM, choose, squared_distance};

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
    fn the_distance_counts_every_value() {
        let a: Vec<f32> = (0..19).map(|index| index as f32).collect();
        assert_eq!(squared_distance(&a, &[0.0; 19]), (0..19).map(|index| (index * index) as f32).sum::<f32>());
    }
}
