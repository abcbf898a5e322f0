//! How good an index is on queries whose part is known, and how close to an exhaustive search.

use std::collections::BTreeMap;

use serde::Serialize;

use super::MatchError;
use super::embedded::Embedded;
use super::fuse::Seen;
use super::rank::AcceptRule;
use super::search::PartIndex;
use super::views::seen_together;
use crate::clock::Stopwatch;
use crate::types::{MatchEvidence, RankedPart};

/// Parts of which each in turn is taken out of the index to ask whether it is then known for unknown.
const HOLD_OUT_FOLDS: usize = 10;

/// A picture's embedding with what is known of it.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    pub part_id: &'a str,
    /// The item it is a view of, where several are.
    pub item: Option<&'a str>,
    pub seen: Seen,
}

/// What [`evaluate()`] measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    pub queries: usize,
    /// Share of queries whose best part is the right one, 0 to 1.
    pub top1: f64,
    /// Share of queries whose right part is among the first five, 0 to 1.
    pub top5: f64,
    /// The same with the shape counted in, where it tells a pair apart; `None` without a fit.
    pub top1_fused: Option<f64>,
    pub top5_fused: Option<f64>,
    /// The same with shape and true size counted in; `None` without a fit or without sizes.
    pub top1_sized: Option<f64>,
    pub top5_sized: Option<f64>,
    /// Items that were seen in several views; `None` where there was none.
    pub views: Option<ViewsEvaluation>,
    /// Share of queries whose best part is that of an exhaustive search, 0 to 1.
    pub agreement_with_exact: f64,
    /// The same of the queries that stage 1 answered alone; `None` when there was none.
    pub stage1_agreement: Option<f64>,
    /// Share of queries that L1 did not answer alone, 0 to 1.
    pub stage2_rate: f64,
    /// The same when the parts come with Zipf frequencies, the first of the queries' parts most often.
    pub stage2_rate_zipf: f64,
    /// Share of queries that meet the accept rule, 0 to 1.
    pub accepted_rate: f64,
    /// Of the accepted ones, the share whose best part is the right one; `None` when none was accepted.
    pub accepted_top1: Option<f64>,
    /// Area under the ROC of known against unknown parts, a tenth of the parts held out at a time: by similarity.
    pub unknown_auroc: Option<f64>,
    /// The same by the fit's probability that it is of the catalogue at all.
    pub unknown_auroc_probability: Option<f64>,
    /// Confusion group → queries of its parts, and the share whose right part stands before the group's others.
    pub groups: BTreeMap<String, (usize, f64)>,
    /// Median time of searching one query by itself, µs.
    pub p50_us: f64,
    /// 99th percentile of the same, µs.
    pub p99_us: f64,
}

/// What all views of an item say together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewsEvaluation {
    pub items: usize,
    /// As in [`Evaluation`], of the items.
    pub top1: f64,
    pub top5: f64,
    /// `None` where the fit knows no items of so many views.
    pub top1_fused: Option<f64>,
    pub top1_sized: Option<f64>,
    /// Share of items that the fit accepts, and of these the wrong ones.
    pub accepted_rate: Option<f64>,
    pub accepted_wrong: Option<f64>,
}

/// Search every query by itself, as a line with one part a frame does, and compare.
///
/// `queries`: what each of the `embeddings` shows.
///
/// # Errors
/// When the counts differ, there are no queries, or a search fails.
pub fn evaluate(
    index: &PartIndex,
    embeddings: Embedded<'_>,
    queries: &[Query<'_>],
    rule: AcceptRule,
) -> Result<Evaluation, MatchError> {
    if embeddings.pictures.len() != queries.len() * index.dim() || queries.is_empty() {
        return Err(MatchError::Shape { values: embeddings.pictures.len(), dim: index.dim() });
    }
    let exact = index.search_exact(embeddings)?;
    let mut found = Vec::with_capacity(queries.len());
    let mut times_us = Vec::with_capacity(queries.len());
    for at in 0..queries.len() {
        let (pictures, mirrored) = embeddings.picked(&[at], index.dim());
        let watch = Stopwatch::start();
        let answers = index.search(Embedded { pictures: &pictures, mirrored: &mirrored }, rule)?;
        times_us.push(watch.elapsed().as_secs_f64() * 1e6);
        found.extend(answers);
    }
    times_us.sort_unstable_by(f64::total_cmp);

    let share = |count: usize| count as f64 / queries.len() as f64;
    let hits = |answers: &[MatchEvidence], within: usize| {
        let is_hit =
            |(e, q): &(&MatchEvidence, &Query<'_>)| e.top_k.iter().take(within).any(|r| r.part_id == q.part_id);
        share(answers.iter().zip(queries).filter(is_hit).count())
    };
    let is_accepted = |e: &MatchEvidence| e.similarity >= rule.accept_similarity && e.margin >= rule.accept_margin;
    let accepted = found.iter().filter(|e| is_accepted(e)).count();
    let accepted_right = found.iter().zip(queries).filter(|(e, q)| is_accepted(e) && e.part_id == q.part_id).count();
    let agrees = |(a, b): &(&MatchEvidence, &MatchEvidence)| a.part_id == b.part_id;
    let alone = found.iter().filter(|e| !e.entered_stage2).count();
    let alone_agree = found.iter().zip(&exact).filter(|(a, _)| !a.entered_stage2).filter(agrees).count();
    let fused = |with_size: bool| -> Vec<MatchEvidence> {
        let seen = |q: &Query<'_>| Seen { size_mm: q.seen.size_mm.filter(|_| with_size), ..q.seen.clone() };
        exact.iter().zip(queries).map(|(e, q)| index.fuse(e.clone(), &seen(q))).collect()
    };
    let is_sized =
        queries.iter().any(|q| q.seen.size_mm.is_some()) && index.fit().is_some_and(|fit| fit.sized.is_some());
    let sized = is_sized.then(|| fused(true));
    let fused = index.fit().map(|_| fused(false));
    Ok(Evaluation {
        queries: queries.len(),
        top1: hits(&found, 1),
        top5: hits(&found, 5),
        top1_fused: fused.as_ref().map(|fused| hits(fused, 1)),
        top5_fused: fused.as_ref().map(|fused| hits(fused, 5)),
        top1_sized: sized.as_ref().map(|sized| hits(sized, 1)),
        top5_sized: sized.as_ref().map(|sized| hits(sized, 5)),
        views: evaluate_views(index, embeddings, queries)?,
        agreement_with_exact: share(found.iter().zip(&exact).filter(agrees).count()),
        stage1_agreement: (alone > 0).then(|| alone_agree as f64 / alone as f64),
        stage2_rate: share(queries.len() - alone),
        stage2_rate_zipf: zipf_rate(queries, &found),
        accepted_rate: share(accepted),
        accepted_top1: (accepted > 0).then(|| accepted_right as f64 / accepted as f64),
        unknown_auroc: hold_out_auroc(queries, &exact, |first, _| first.similarity),
        unknown_auroc_probability: index.fit().and_then(|_| {
            hold_out_auroc(queries, &exact, |_, rest| {
                let scored = index.scored(rest, &Seen::default());
                1.0 - index.fit().and_then(|fit| fit.plain.unknown_probability(&scored)).unwrap_or(1.0)
            })
        }),
        groups: within_groups(index, queries, fused.as_ref().unwrap_or(&exact)),
        p50_us: percentile(&times_us, 0.50),
        p99_us: percentile(&times_us, 0.99),
    })
}

/// The items of several views, each from all of them, by exhaustive search.
fn evaluate_views(
    index: &PartIndex,
    embeddings: Embedded<'_>,
    queries: &[Query<'_>],
) -> Result<Option<ViewsEvaluation>, MatchError> {
    let items = seen_together(queries.iter().map(|query| query.item));
    if items.is_empty() {
        return Ok(None);
    }
    let mut answers = Vec::with_capacity(items.len());
    for item in &items {
        let (pictures, mirrored) = embeddings.picked(item, index.dim());
        answers.push(index.search_views_exact(Embedded { pictures: &pictures, mirrored: &mirrored })?.evidence);
    }
    let share = |count: usize| count as f64 / items.len() as f64;
    let hits = |answers: &[MatchEvidence], within: usize| {
        let is_hit = |(item, e): &(&Vec<usize>, &MatchEvidence)| {
            e.top_k.iter().take(within).any(|r| r.part_id == queries[item[0]].part_id)
        };
        share(items.iter().zip(answers).filter(is_hit).count())
    };
    let fused = |with_size: bool| -> Vec<MatchEvidence> {
        let seen = |at: &usize| {
            let seen = &queries[*at].seen;
            Seen { size_mm: seen.size_mm.filter(|_| with_size), ..seen.clone() }
        };
        let of = |(item, e): (&Vec<usize>, &MatchEvidence)| {
            index.fuse_views(e.clone(), &item.iter().map(seen).collect::<Vec<_>>())
        };
        items.iter().zip(&answers).map(of).collect()
    };
    let is_known = |fused: &[MatchEvidence]| fused.iter().all(|e| e.probability.is_some());
    let plain = Some(fused(false)).filter(|fused| is_known(fused));
    let is_sized = queries.iter().any(|query| query.seen.size_mm.is_some());
    let sized = Some(fused(true)).filter(|fused| is_sized && is_known(fused));
    let accepted = |of: &[MatchEvidence]| -> (f64, f64) {
        let is_accepted =
            |e: &MatchEvidence| e.probability.zip(e.required_probability).is_some_and(|(p, least)| p > least);
        let accepted: Vec<_> = items.iter().zip(of).filter(|(_, e)| is_accepted(e)).collect();
        let wrong = accepted.iter().filter(|(item, e)| e.part_id != queries[item[0]].part_id).count();
        (share(accepted.len()), wrong as f64 / accepted.len().max(1) as f64)
    };
    let acceptance = sized.as_deref().or(plain.as_deref()).map(accepted);
    Ok(Some(ViewsEvaluation {
        items: items.len(),
        top1: hits(&answers, 1),
        top5: hits(&answers, 5),
        top1_fused: plain.as_ref().map(|fused| hits(fused, 1)),
        top1_sized: sized.as_ref().map(|fused| hits(fused, 1)),
        accepted_rate: acceptance.map(|(rate, _)| rate),
        accepted_wrong: acceptance.map(|(_, wrong)| wrong),
    }))
}

/// Share of stage 2 when the k-th part of the queries is seen in proportion to 1 / k.
fn zipf_rate(queries: &[Query<'_>], found: &[MatchEvidence]) -> f64 {
    let mut rank_of: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count_of: BTreeMap<&str, usize> = BTreeMap::new();
    for query in queries {
        let next = rank_of.len() + 1;
        rank_of.entry(query.part_id).or_insert(next);
        *count_of.entry(query.part_id).or_default() += 1;
    }
    let weight = |query: &Query<'_>| 1.0 / (rank_of[query.part_id] as f64 * count_of[query.part_id] as f64);
    let total: f64 = queries.iter().map(weight).sum();
    queries.iter().zip(found).filter(|(_, e)| e.entered_stage2).map(|(q, _)| weight(q)).sum::<f64>().max(0.0) / total
}

/// Every tenth part in turn is taken out of the candidates; its queries are then unknown, the others known. Mean area
/// over the turns. `score` sees the best remaining candidate and all of them.
fn hold_out_auroc(
    queries: &[Query<'_>],
    exact: &[MatchEvidence],
    score: impl Fn(&RankedPart, &[RankedPart]) -> f32,
) -> Option<f64> {
    let parts: BTreeMap<&str, usize> =
        queries.iter().map(|q| q.part_id).collect::<std::collections::BTreeSet<_>>().into_iter().zip(0..).collect();
    // Neighbours in the order of part numbers are often look-alikes: a stride spreads them over the turns.
    let fold_of = |part: &str| parts.get(part).map(|position| position % HOLD_OUT_FOLDS);
    let areas: Vec<f64> = (0..HOLD_OUT_FOLDS)
        .filter_map(|fold| {
            let (mut known, mut unknown) = (Vec::new(), Vec::new());
            for (query, evidence) in queries.iter().zip(exact) {
                let rest: Vec<RankedPart> =
                    evidence.top_k.iter().filter(|r| fold_of(&r.part_id) != Some(fold)).cloned().collect();
                let score = rest.first().map_or(-1.0, |first| score(first, &rest));
                if fold_of(query.part_id) == Some(fold) { unknown.push(score) } else { known.push(score) }
            }
            auroc(&known, &unknown)
        })
        .collect();
    (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
}

/// Probability that a score of `above` exceeds one of `below`, ties counted half (Mann and Whitney 1947).
fn auroc(above: &[f32], below: &[f32]) -> Option<f64> {
    if above.is_empty() || below.is_empty() {
        return None;
    }
    let mut sorted = below.to_vec();
    sorted.sort_by(f32::total_cmp);
    let wins = |score: &f32| {
        let less = sorted.partition_point(|other| other < score);
        let not_more = sorted.partition_point(|other| other <= score);
        (less + not_more) as f64 / 2.0
    };
    Some(above.iter().map(wins).sum::<f64>() / (above.len() * below.len()) as f64)
}

/// For each confusion group, how often the right part stands before the others of the group.
fn within_groups(index: &PartIndex, queries: &[Query<'_>], found: &[MatchEvidence]) -> BTreeMap<String, (usize, f64)> {
    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (query, evidence) in queries.iter().zip(found) {
        let Some(group) = index.groups().of(query.part_id) else { continue };
        let first = evidence.top_k.iter().find(|r| index.groups().of(&r.part_id) == Some(group));
        let (count, right) = groups.entry(group.to_owned()).or_default();
        *count += 1;
        *right += usize::from(first.is_some_and(|first| first.part_id == query.part_id));
    }
    groups.into_iter().map(|(group, (count, right))| (group, (count, right as f64 / count as f64))).collect()
}

/// The smallest value that at least `share` of the ascending `sorted` do not exceed (nearest rank); 0 when empty.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to it")]
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{auroc, percentile};

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&times, 0.5), percentile(&times, 0.99)), (50.0, 99.0));
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn the_area_counts_ties_half() {
        assert_eq!(auroc(&[0.9, 0.8], &[0.1, 0.2]), Some(1.0));
        assert_eq!(auroc(&[0.1], &[0.9]), Some(0.0));
        assert_eq!(auroc(&[0.5, 0.5], &[0.5]), Some(0.5));
        assert_eq!(auroc(&[], &[0.5]), None);
    }
}
