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

/// Positions for L1 by what the templates did, ascending, at most `count_max`.
///
/// As [`choose`]; `worth`: of each template, 0 to 1. First every part gets its worthiest template (the most used parts
/// first, where the places do not reach), then the worthiest templates of all, then those that [`choose`] would take.
#[must_use]
pub fn choose_by_worth(parts: &[u32], vectors: &[f32], dim: usize, count_max: usize, worth: &[f64]) -> Vec<u32> {
    let spread = choose(parts, vectors, dim, count_max);
    if worth.iter().all(|&worth| worth <= 0.0) {
        return spread;
    }
    let part_count = parts.iter().max().map_or(0, |&last| last as usize + 1);
    let mut worth_of_part = vec![0.0; part_count];
    let mut best: Vec<Option<u32>> = vec![None; part_count];
    for (position, (&part, &worth_here)) in (0_u32..).zip(parts.iter().zip(worth)) {
        worth_of_part[part as usize] += worth_here;
        let kept = &mut best[part as usize];
        if worth_here > 0.0 && kept.is_none_or(|kept| worth_here > worth[kept as usize]) {
            *kept = Some(position);
        }
    }
    // A part that never answered is shown by the template that stands for it.
    let standing = choose(parts, vectors, dim, part_count.min(parts.len()));
    for position in standing {
        best[parts[position as usize] as usize].get_or_insert(position);
    }
    let mut order: Vec<(usize, u32)> =
        best.into_iter().enumerate().filter_map(|(part, at)| Some((part, at?))).collect();
    order.sort_by(|a, b| worth_of_part[b.0].total_cmp(&worth_of_part[a.0]).then(a.0.cmp(&b.0)));
    let mut worthy: Vec<u32> = (0_u32..).zip(worth).filter(|(_, worth)| **worth > 0.0).map(|(at, _)| at).collect();
    worthy.sort_by(|&a, &b| worth[b as usize].total_cmp(&worth[a as usize]).then(a.cmp(&b)));

    let mut is_taken = vec![false; parts.len()];
    let mut chosen = Vec::with_capacity(count_max.min(parts.len()));
    let wanted = order.into_iter().map(|(_, at)| at).chain(worthy).chain(dealt(&spread, parts));
    for at in wanted {
        if chosen.len() == count_max {
            break;
        }
        if !std::mem::replace(&mut is_taken[at as usize], true) {
            chosen.push(at);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// `positions` round by round, one a part.
fn dealt(positions: &[u32], parts: &[u32]) -> Vec<u32> {
    let mut seen = std::collections::BTreeMap::new();
    let mut rounds: Vec<(usize, u32)> = Vec::with_capacity(positions.len());
    for &at in positions {
        let round = seen.entry(parts[at as usize]).or_insert(0_usize);
        rounds.push((*round, at));
        *round += 1;
    }
    rounds.sort_unstable();
    rounds.into_iter().map(|(_, at)| at).collect()
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
    use proptest::prelude::*;

    use super::{choose, choose_by_worth};

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

    #[test]
    fn what_answers_moves_in_and_what_does_not_moves_out() {
        let vectors = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6_f32];
        let parts = [0, 0, 0, 1, 1];
        assert_eq!(choose_by_worth(&parts, &vectors, 2, 3, &[0.0; 5]), choose(&parts, &vectors, 2, 3));
        // Template 1 answers most, then 4; one place is left for what spreads.
        let worth = [0.0, 0.5, 0.0, 0.0, 0.2];
        assert_eq!(choose_by_worth(&parts, &vectors, 2, 2, &worth), [1, 4]);
        assert_eq!(choose_by_worth(&parts, &vectors, 2, 1, &worth), [1]);
        assert_eq!(choose_by_worth(&parts, &vectors, 2, 99, &worth), [0, 1, 2, 3, 4]);
    }

    fn catalogue() -> impl Strategy<Value = (Vec<u32>, Vec<f32>, Vec<f64>)> {
        (1_usize..30, 1_u32..8).prop_flat_map(|(count, parts)| {
            let parts = proptest::collection::vec(0..parts, count).prop_map(numbered);
            let vectors = proptest::collection::vec(-1.0_f32..1.0, count * 3);
            let worth = proptest::collection::vec(prop_oneof![Just(0.0), 0.001_f64..1.0], count);
            (parts, vectors, worth)
        })
    }

    /// Parts are numbered in order of appearance, without gaps.
    fn numbered(parts: Vec<u32>) -> Vec<u32> {
        let mut seen: Vec<u32> = Vec::new();
        let number = |part| match seen.iter().position(|&known| known == part) {
            Some(at) => u32::try_from(at).unwrap(),
            None => {
                seen.push(part);
                u32::try_from(seen.len() - 1).unwrap()
            }
        };
        parts.into_iter().map(number).collect()
    }

    proptest! {
        /// The budget is filled and never exceeded, every part is shown when it can be, and no template left out is
        /// worth more than one taken beyond the part it stands for.
        #[test]
        fn tier_moves_keep_the_budget_and_cover_every_part((parts, vectors, worth) in catalogue(), count_max in 0_usize..35) {
            let chosen = choose_by_worth(&parts, &vectors, 3, count_max, &worth);
            prop_assert_eq!(chosen.len(), count_max.min(parts.len()));
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]), "ascending, each once");
            let part_count = parts.iter().max().map_or(0, |&last| last as usize + 1);
            let shown: std::collections::BTreeSet<u32> = chosen.iter().map(|&at| parts[at as usize]).collect();
            prop_assert_eq!(shown.len(), part_count.min(count_max), "one template a part comes first");
            let is_only_one = |at: u32| chosen.iter().filter(|&&other| parts[other as usize] == parts[at as usize]).count() == 1;
            let least = chosen.iter().filter(|&&at| !is_only_one(at)).map(|&at| worth[at as usize]).fold(1.0, f64::min);
            if count_max >= part_count && worth.iter().any(|&worth| worth > 0.0) {
                for at in (0_u32..).take(parts.len()).filter(|at| chosen.binary_search(at).is_err()) {
                    prop_assert!(worth[at as usize] <= least, "{at} is worth more than what was taken");
                }
            }
        }

        /// The order in which the templates of a catalogue come does not decide where they go.
        #[test]
        fn tier_moves_do_not_depend_on_the_order((parts, vectors, _) in catalogue(), count_max in 1_usize..35, seed in 0_u64..99) {
            // No two sums of worths are equal: between equals the earlier one goes first, by definition.
            let worth: Vec<f64> = (0..parts.len()).map(|at| 2.0_f64.powf(at as f64 - 32.0)).collect();
            let mut order: Vec<usize> = (0..parts.len()).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
            let shuffled_parts = numbered(order.iter().map(|&at| parts[at]).collect());
            let shuffled_vectors: Vec<f32> = order.iter().flat_map(|&at| &vectors[at * 3..at * 3 + 3]).copied().collect();
            let shuffled_worth: Vec<f64> = order.iter().map(|&at| worth[at]).collect();
            let mut again: Vec<usize> = choose_by_worth(&shuffled_parts, &shuffled_vectors, 3, count_max, &shuffled_worth)
                .into_iter().map(|at| order[at as usize]).collect();
            again.sort_unstable();
            let chosen: Vec<usize> =
                choose_by_worth(&parts, &vectors, 3, count_max, &worth).into_iter().map(|at| at as usize).collect();
            prop_assert_eq!(chosen, again);
        }
    }
}
