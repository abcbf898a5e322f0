//! Thresholds of a bank that is there already: a new bank with the same vectors, named by its own digest.

use std::collections::BTreeMap;
use std::path::Path;

use super::group::Group;
use super::threshold::ThresholdRule;
use super::{AnomalyError, Bank};

/// Scores of pictures that a group has not learnt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FitScores {
    /// Raw image score and whether the picture is bad.
    pub image: Vec<(f32, bool)>,
    /// Largest map value of each good picture.
    pub good_map_max: Vec<f32>,
}

/// The thresholds of `group` by `rule` from the scores of its own pictures.
pub(super) fn apply_to_good(group: &mut Group, rule: ThresholdRule) -> Result<(), AnomalyError> {
    let (image, map_max) = group.good_scores();
    group.manifest.image_threshold_raw = rule.of_good(&image)?;
    group.manifest.pixel_threshold_raw = rule.of_good(&map_max)?;
    Ok(())
}

/// Write to `out` a bank with the vectors of `bank` and thresholds by `rule`: of the groups in `scores` (by name) from these,
/// of the others from the scores of their own pictures. The pixel threshold of [`ThresholdRule::BestF1`] is that of the
/// [`ThresholdRule::Headroom`] of good pictures, since a picture's label does not say which of its pixels are bad.
///
/// # Errors
/// When there are too few pictures for the rule, a group is not there, a bank of the first format is to be fitted from its
/// own pictures, or the bank cannot be written.
pub fn refit(
    bank: Bank,
    out: &Path,
    rule: ThresholdRule,
    scores: &BTreeMap<String, FitScores>,
) -> Result<Bank, AnomalyError> {
    for name in scores.keys() {
        bank.group_number(name)?;
    }
    let (mut manifest, parent, thumbnails) = (bank.manifest().clone(), bank.sha256(), bank.thumbnails());
    let mut groups = bank.into_groups();
    for group in &mut groups {
        match scores.get(&group.manifest.name) {
            Some(scores) => {
                let of_pixels = if rule == ThresholdRule::BestF1 { ThresholdRule::Headroom } else { rule };
                group.manifest.image_threshold_raw = rule.of_labelled(&scores.image)?;
                group.manifest.pixel_threshold_raw = of_pixels.of_good(&scores.good_map_max)?;
            }
            None => apply_to_good(group, rule)?,
        }
    }
    manifest.threshold = rule;
    manifest.parent = Some(parent);
    env!("CARGO_PKG_VERSION").clone_into(&mut manifest.software_version);
    Bank::write(out, manifest, groups, &thumbnails)
}
