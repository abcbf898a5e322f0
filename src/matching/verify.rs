//! `loupe index verify`: is the live generation whole, and does its search give what an exhaustive one gives?
//!
//! Changes nothing on disk: a damaged generation is reported here and set aside when the daemon opens it.

use std::path::Path;

use serde::Serialize;

use super::generation::{self, Generation};
use super::rank::AcceptRule;
use super::search::PartIndex;
use super::store;

/// Templates that the probe search looks for.
const PROBES_MAX: usize = 64;
/// Two ways of summing the same products differ by rounding, not by more.
const SIMILARITY_TOLERANCE: f32 = 1e-4;

/// What was checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// Name of the live generation; `None` when there is none.
    pub generation: Option<String>,
    pub dim: Option<usize>,
    pub parts: Option<usize>,
    pub templates: Option<usize>,
    /// Templates searched for by both ways.
    pub probes: usize,
    /// One sentence each; empty when everything is in order.
    pub faults: Vec<String>,
}

/// Check the live generation of the index directory `root`.
#[must_use]
pub fn verify(root: &Path) -> Verification {
    let mut report =
        Verification { generation: None, dim: None, parts: None, templates: None, probes: 0, faults: Vec::new() };
    let name = match store::current_name(root) {
        Ok(name) => name,
        Err(error) => {
            report.faults.push(error.to_string());
            return report;
        }
    };
    let dir = root.join(&name);
    report.generation = Some(name);
    report.faults = generation::faults(&dir);
    if !report.faults.is_empty() {
        return report;
    }
    match Generation::open(&dir) {
        Ok(generation) => probe(&PartIndex::of(generation, None), &mut report),
        Err(error) => report.faults.push(error.to_string()),
    }
    report
}

/// Search for templates themselves: two-stage and exhaustive search must agree on the best similarity.
fn probe(index: &PartIndex, report: &mut Verification) {
    report.dim = Some(index.dim());
    report.parts = Some(index.part_count());
    report.templates = Some(index.template_count());
    let vectors = index.vectors();
    let step = (vectors.len() / index.dim() / PROBES_MAX).max(1);
    let queries: Vec<f32> =
        vectors.chunks_exact(index.dim()).step_by(step).take(PROBES_MAX).flatten().copied().collect();
    report.probes = queries.len() / index.dim();
    // A rule that nothing meets sends every query through both stages.
    let rule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: f32::INFINITY };
    match (index.search(&queries, rule), index.search_exact(&queries)) {
        (Ok(found), Ok(exact)) => {
            for (position, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let same = (found.similarity - exact.similarity).abs() <= SIMILARITY_TOLERANCE;
                if !same || exact.similarity < 1.0 - SIMILARITY_TOLERANCE {
                    report.faults.push(format!(
                        "probe {position}: the two-stage search found {} at {}, the exhaustive one {} at {}",
                        found.part_id, found.similarity, exact.part_id, exact.similarity
                    ));
                }
            }
        }
        (Err(error), _) | (_, Err(error)) => report.faults.push(format!("the probe search failed: {error}")),
    }
}
