//! Hits and successes of an index's templates, read from a ledger: what `loupe index build --evidence` goes by.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context as _;

use crate::ledger::LedgerReader;
use crate::matching::{Outline, Template, TierEvidence, learned_view};
use crate::types::{Digest, Inspection, InspectionId, Item, Review, ReviewStatus};

/// Inspections read at a time.
const INSPECTIONS_PER_READ: usize = 500;

/// The evidence stored with the generation that `outline` shows, and what the ledger in `state_dir` has seen of it since.
///
/// # Errors
/// When the ledger cannot be read.
pub fn gather(state_dir: &Path, outline: &Outline) -> anyhow::Result<TierEvidence> {
    let reader = LedgerReader::open(state_dir)?;
    let mut evidence = outline.evidence.clone();
    let reviews = reader.reviews(usize::MAX)?;
    let standing: BTreeMap<(InspectionId, u32), &Review> = reviews
        .iter()
        .filter(|review| review.is_last)
        .filter_map(|review| Some(((review.inspection_id, review.ordinal?), review)))
        .collect();
    let mut of_generation: HashMap<Digest, bool> = HashMap::new();
    let mut row = 0;
    loop {
        let batch = reader.inspections_from(row, INSPECTIONS_PER_READ)?;
        let Some((last, _)) = batch.last() else { return Ok(evidence) };
        row = *last;
        for (_, inspection) in &batch {
            let provenance = inspection.provenance_sha256;
            let is_ours = match of_generation.get(&provenance) {
                Some(is_ours) => *is_ours,
                None => {
                    let is_ours = names_generation(&reader, provenance, outline.sha256)?;
                    of_generation.insert(provenance, is_ours);
                    is_ours
                }
            };
            if is_ours {
                count(&reader, inspection, outline, &standing, &mut evidence)?;
            }
        }
    }
}

fn names_generation(reader: &LedgerReader, provenance: Digest, generation: Digest) -> anyhow::Result<bool> {
    let Some(record) = reader.provenance(provenance)? else { return Ok(false) };
    let record: serde_json::Value = serde_json::from_str(&record).context("a provenance record is no JSON")?;
    Ok(record["generation_sha256"].as_str() == Some(generation.to_string().as_str()))
}

fn count(
    reader: &LedgerReader,
    inspection: &Inspection,
    outline: &Outline,
    standing: &BTreeMap<(InspectionId, u32), &Review>,
    evidence: &mut TierEvidence,
) -> anyhow::Result<()> {
    for item in &inspection.items {
        let Some(matched) = &item.matched else { continue };
        let is_success = is_success(item, standing.get(&(inspection.id, item.ordinal)).copied());
        if let Some(template) = outline.template(matched.template) {
            evidence.count(&template, is_success);
        } else if let Some(id) = matched.template.checked_sub(outline.manifest.template_count as u64)
            && let Some(review_id) = reader.review_of_template(id)?
        {
            let (part_id, color_id) = (matched.part_id.clone(), matched.color_id.clone());
            evidence.count(&Template { part_id, color_id, view: learned_view(review_id) }, is_success);
        }
    }
    Ok(())
}

/// A person's word counts before the decision.
fn is_success(item: &Item, review: Option<&Review>) -> bool {
    let shown = item.matched.as_ref().map(|matched| &matched.part_id);
    match review.map(|review| (review.status, &review.corrected_part_id)) {
        Some((ReviewStatus::Confirmed, _)) => true,
        Some((ReviewStatus::Rejected, corrected)) => corrected.as_ref() == shown && shown.is_some(),
        Some((ReviewStatus::Pending, _)) | None => item.part_id.is_some(),
    }
}
