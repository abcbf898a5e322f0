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
    group.manifest.threshold = Some(rule);
    Ok(())
}

/// The pixel threshold of [`ThresholdRule::BestF1`] is that of the [`ThresholdRule::Headroom`] of good pictures, since a
/// picture's label does not say which of its pixels are bad.
fn apply_to_labelled(group: &mut Group, rule: ThresholdRule, scores: &FitScores) -> Result<(), AnomalyError> {
    let of_pixels = if rule == ThresholdRule::BestF1 { ThresholdRule::Headroom } else { rule };
    group.manifest.image_threshold_raw = rule.of_labelled(&scores.image)?;
    group.manifest.pixel_threshold_raw = of_pixels.of_good(&scores.good_map_max)?;
    group.manifest.threshold = Some(rule);
    Ok(())
}

/// What thresholds are fitted to.
#[derive(Debug, Clone, Copy)]
pub enum FitOn<'s> {
    /// The scores that the bank keeps of its own pictures: this group, or every one.
    Own(Option<&'s str>),
    /// Scores of other pictures, by the name of their group; groups without any stay as they are.
    Others(&'s BTreeMap<String, FitScores>),
}

impl FitOn<'_> {
    /// Whether the group of this name gets new thresholds.
    #[must_use]
    pub fn names(&self, group: &str) -> bool {
        match self {
            Self::Own(named) => named.is_none_or(|named| named == group),
            Self::Others(scores) => scores.contains_key(group),
        }
    }
}

/// Write to `out` a bank with the vectors of `bank` and thresholds by `rule` for the groups that `on` names. All others keep
/// theirs, and the rule they were found by.
///
/// # Errors
/// When there are no scores or too few for the rule, a group is not there, a bank of the first format is to be fitted from
/// its own pictures, or the bank cannot be written.
pub fn refit(bank: Bank, out: &Path, rule: ThresholdRule, on: FitOn<'_>) -> Result<Bank, AnomalyError> {
    let named: Vec<&str> = match on {
        FitOn::Own(group) => group.map_or_else(|| bank.group_names(), |name| vec![name]),
        FitOn::Others(scores) => scores.keys().map(String::as_str).collect(),
    };
    if named.is_empty() {
        return Err(AnomalyError::NothingToFit);
    }
    let fitted: Vec<usize> = named.iter().map(|name| bank.group_number(name)).collect::<Result<_, _>>()?;
    let (mut manifest, parent, thumbnails) = (bank.manifest().clone(), bank.sha256(), bank.thumbnails());
    let mut groups = bank.into_groups();
    for number in fitted {
        let group = &mut groups[number];
        let name = group.manifest.name.clone();
        let applied = match on {
            FitOn::Own(_) => apply_to_good(group, rule),
            FitOn::Others(scores) => scores.get(&name).map_or(Ok(()), |scores| apply_to_labelled(group, rule, scores)),
        };
        applied.map_err(|error| error.of_group(&name))?;
    }
    manifest.parent = Some(parent);
    env!("CARGO_PKG_VERSION").clone_into(&mut manifest.software_version);
    Bank::write(out, manifest, groups, &thumbnails)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::bank::tests::{manifest, write_groups};
    use super::{Bank, FitOn, FitScores, ThresholdRule, refit};

    fn scores(bad: &[f32]) -> FitScores {
        let good = [1.0, 2.0, 3.0].map(|score| (score, false));
        let image = good.into_iter().chain(bad.iter().map(|score| (*score, true))).collect();
        FitScores { image, good_map_max: vec![1.0, 2.0, 3.0] }
    }

    /// Image threshold and rule of each group.
    fn thresholds(bank: &Bank) -> Vec<(f32, ThresholdRule)> {
        let manifest = bank.manifest();
        manifest.groups.iter().map(|group| (group.image_threshold_raw, manifest.rule_of(group))).collect()
    }

    #[test]
    fn only_groups_with_scores_change_and_each_keeps_its_rule() {
        let dir = tempfile::tempdir().unwrap();
        let out = |name: &str| dir.path().join(name);
        let before = || write_groups(&dir.path().join("bank"), manifest(), &["left", "right"]);
        let of_right = BTreeMap::from([("right".to_owned(), scores(&[7.0]))]);
        let fitted = refit(before().unwrap(), &out("a"), ThresholdRule::BestF1, FitOn::Others(&of_right)).unwrap();
        let untouched = (1.0, ThresholdRule::Headroom);
        assert_eq!(thresholds(&fitted), [untouched, (5.0, ThresholdRule::BestF1)]);
        assert_eq!(thresholds(&Bank::open(&out("a")).unwrap()), thresholds(&fitted));

        let own = refit(fitted, &out("b"), ThresholdRule::FalseReject { rate: 0.5 }, FitOn::Own(Some("left"))).unwrap();
        let found = thresholds(&own);
        assert!((found[0].0 - 0.5).abs() < 1e-3 && found[0].1 == ThresholdRule::FalseReject { rate: 0.5 }, "{found:?}");
        assert_eq!(found[1], (5.0, ThresholdRule::BestF1));
        let rate = own.manifest().threshold;
        assert_eq!(rate, ThresholdRule::FalseReject { rate: 0.5 }, "the bank's own rule is that of its first group");
        let every = refit(own, &out("c"), ThresholdRule::Headroom, FitOn::Own(None)).unwrap();
        assert!(thresholds(&every).iter().all(|(_, rule)| *rule == ThresholdRule::Headroom));
    }

    #[test]
    fn what_cannot_be_fitted_names_its_group_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bank = || Bank::open(&dir.path().join("bank")).unwrap();
        write_groups(&dir.path().join("bank"), manifest(), &["left", "right"]).unwrap();
        let out = dir.path().join("out");
        let both = BTreeMap::from([("left".to_owned(), scores(&[])), ("right".to_owned(), scores(&[7.0]))]);
        let error = refit(bank(), &out, ThresholdRule::BestF1, FitOn::Others(&both)).unwrap_err().to_string();
        assert!(error.starts_with("group `left`: objective is f1"), "{error}");
        let error = refit(bank(), &out, ThresholdRule::Headroom, FitOn::Others(&BTreeMap::new())).unwrap_err();
        assert!(error.to_string().contains("no picture was in place"), "{error}");
        assert!(refit(bank(), &out, ThresholdRule::Headroom, FitOn::Own(Some("up"))).is_err() && !out.exists());
    }
}
