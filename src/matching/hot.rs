//! Which templates go into the hot tier: evenly for each part, the views that differ most first. Pure.

use super::kernel;

/// Positions for L1, ascending, at most `count_max`.
///
/// `parts`: part number of each template; `vectors` `[n, dim]`, normalised. Round by round every part gives its next
/// view: first the one most like all its views (it stands for the part), then always the one farthest from those chosen
/// (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance").
#[must_use]
pub fn choose(parts: &[u32], vectors: &[f32], dim: usize, count_max: usize) -> Vec<u32> {
    let part_count = parts.iter().max().map_or(0, |&last| last as usize + 1);
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); part_count];
    for (position, &part) in (0_u32..).zip(parts) {
        members[part as usize].push(position);
    }
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let mut chosen: Vec<u32> = members
        .iter()
        .zip(shares(&sizes, count_max))
        .flat_map(|(members, share)| farthest_first(members, vectors, dim, share))
        .collect();
    chosen.sort_unstable();
    chosen
}

/// Deal `count_max` places out, one a part and round, to parts that still have templates.
fn shares(sizes: &[usize], count_max: usize) -> Vec<usize> {
    let mut shares = vec![0; sizes.len()];
    let mut left = count_max.min(sizes.iter().sum());
    while left > 0 {
        for (share, &size) in shares.iter_mut().zip(sizes) {
            if left > 0 && *share < size {
                *share += 1;
                left -= 1;
            }
        }
    }
    shares
}

/// The first `count_max` of one part's templates in farthest-first order.
fn farthest_first(members: &[u32], vectors: &[f32], dim: usize, count_max: usize) -> Vec<u32> {
    if count_max == 0 {
        return Vec::new();
    }
    let vector = |member: usize| &vectors[members[member] as usize * dim..(members[member] as usize + 1) * dim];
    let own: Vec<f32> = (0..members.len()).flat_map(|member| vector(member).iter().copied()).collect();
    let mut mean = vec![0.0_f32; dim];
    for one in own.chunks_exact(dim) {
        mean.iter_mut().zip(one).for_each(|(sum, value)| *sum += value);
    }
    let to_mean = kernel::similarities(&mean, &own, dim);
    let Some(first) = (0..members.len()).max_by(|&a, &b| to_mean[a].total_cmp(&to_mean[b])) else {
        return Vec::new();
    };
    let mut order = vec![members[first]];
    let mut nearest = kernel::similarities(vector(first), &own, dim);
    let mut taken = vec![false; members.len()];
    taken[first] = true;
    while order.len() < members.len().min(count_max) {
        let free = (0..members.len()).filter(|&member| !taken[member]);
        let Some(next) = free.min_by(|&a, &b| nearest[a].total_cmp(&nearest[b])) else { break };
        taken[next] = true;
        order.push(members[next]);
        let similarities = kernel::similarities(vector(next), &own, dim);
        nearest.iter_mut().zip(similarities).for_each(|(kept, new)| *kept = kept.max(new));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn every_part_gets_its_share_and_twins_wait() {
        // Part 0 has twins at (1,0) and one view at (0,1); part 1 has two views.
        let vectors = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6_f32];
        let parts = [0, 0, 0, 1, 1];
        let chosen = choose(&parts, &vectors, 2, 3);
        assert_eq!(chosen.len(), 3);
        assert!(chosen.contains(&2), "the odd view of part 0 comes before the twin: {chosen:?}");
        assert_eq!(chosen.iter().filter(|&&at| parts[at as usize] == 1).count(), 1);
        assert_eq!(choose(&parts, &vectors, 2, 99), [0, 1, 2, 3, 4]);
        assert_eq!(choose(&parts, &vectors, 2, 0), [0_u32; 0]);
    }
}
