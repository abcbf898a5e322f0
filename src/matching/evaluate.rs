//! How good an index is on queries whose part is known, and how close to an exhaustive search.

use serde::Serialize;

use super::MatchError;
use super::rank::AcceptRule;
use super::search::PartIndex;
use crate::clock::Stopwatch;
use crate::types::MatchEvidence;

/// What [`evaluate()`] measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    pub queries: usize,
    /// Share of queries whose best part is the right one, 0 to 1.
    pub top1: f64,
    /// Share of queries whose right part is among the first five, 0 to 1.
    pub top5: f64,
    /// Share of queries whose best part is that of an exhaustive search, 0 to 1.
    pub agreement_with_exact: f64,
    /// Share of queries that L1 did not answer alone, 0 to 1.
    pub stage2_rate: f64,
    /// Share of queries that meet the accept rule, 0 to 1.
    pub accepted_rate: f64,
    /// Of the accepted ones, the share whose best part is the right one; `None` when none was accepted.
    pub accepted_top1: Option<f64>,
    /// Median time of searching one query by itself, µs.
    pub p50_us: f64,
    /// 99th percentile of the same, µs.
    pub p99_us: f64,
}

/// Search every query by itself, as a line with one part a frame does, and compare.
///
/// `embeddings` `[N, dim]`; `part_ids`: the right part of each.
///
/// # Errors
/// When the counts differ, there are no queries, or a search fails.
pub fn evaluate(
    index: &PartIndex,
    embeddings: &[f32],
    part_ids: &[&str],
    rule: AcceptRule,
) -> Result<Evaluation, MatchError> {
    if embeddings.len() != part_ids.len() * index.dim() || part_ids.is_empty() {
        return Err(MatchError::Shape { values: embeddings.len(), dim: index.dim() });
    }
    let exact = index.search_exact(embeddings)?;
    let mut found = Vec::with_capacity(part_ids.len());
    let mut times_us = Vec::with_capacity(part_ids.len());
    for embedding in embeddings.chunks_exact(index.dim()) {
        let watch = Stopwatch::start();
        let answers = index.search(embedding, rule)?;
        times_us.push(watch.elapsed().as_secs_f64() * 1e6);
        found.extend(answers);
    }
    times_us.sort_unstable_by(f64::total_cmp);
    let share = |count: usize| count as f64 / part_ids.len() as f64;
    let pairs = || found.iter().zip(part_ids);
    let is_accepted = |e: &MatchEvidence| e.similarity >= rule.accept_similarity && e.margin >= rule.accept_margin;
    let accepted = found.iter().filter(|e| is_accepted(e)).count();
    let accepted_right = pairs().filter(|(e, part)| is_accepted(e) && e.part_id == **part).count();
    Ok(Evaluation {
        queries: part_ids.len(),
        top1: share(pairs().filter(|(e, part)| e.part_id == **part).count()),
        top5: share(pairs().filter(|(e, part)| e.top_k.iter().any(|ranked| ranked.part_id == **part)).count()),
        agreement_with_exact: share(found.iter().zip(&exact).filter(|(a, b)| a.part_id == b.part_id).count()),
        stage2_rate: share(found.iter().filter(|e| e.entered_stage2).count()),
        accepted_rate: share(accepted),
        accepted_top1: (accepted > 0).then(|| accepted_right as f64 / accepted as f64),
        p50_us: percentile(&times_us, 0.50),
        p99_us: percentile(&times_us, 0.99),
    })
}

/// The smallest value that at least `share` of the ascending `sorted` do not exceed (nearest rank); 0 when empty.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to it")]
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&times, 0.5), percentile(&times, 0.99)), (50.0, 99.0));
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }
}
