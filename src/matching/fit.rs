//! The fit of a generation: from a query's candidates to the probability that the best is right, and how much is asked.
//!
//! Of the candidates `c` and the answer "none of them", each has the score
//! `z_c = similarity × cos_c + likeness × like_c + centre × cos(centre_c) + size × ln p(box | part_c) + shape × Δshape_c +
//! pair × Δlike_c + pair_centre × Δcos(centre_c) + group × [c shares the first one's confusion group]`, `z_none = none`,
//! where `like` is the mean over all of a part's templates, the centre what the embedder learned of the part
//! ([`super::likeness`]), and Δ is how much more the picture is like c than like c and its pair on average: looks are
//! weighed apart there, because they tell the two apart badly. The share is `exp(z) / Σ exp(z)` (conditional logit;
//! McFadden 1974). A rising curve makes that share the hit rate that was seen at it. Both are learned by
//! [`super::fitting`] from pictures whose part is known, apart for queries with and without a true size, and apart for items of
//! several views, whose evidence is the mean over the views.
//!
//! Invariants: a fit belongs to one generation, by digest; a probability that cannot be computed is 0, so it holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MatchError;
use super::store;
use crate::failpoint;
use crate::types::Digest;

/// Layout of the file; raised when an older reader would misread it. Of format 1, `pair` weighs Δcos.
const FORMAT: u32 = 2;
const FORMAT_OLDEST: u32 = 1;
const FOLDER: &str = "fits";

/// What one candidate part shows for itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scored {
    /// Cosine, −1 to 1.
    pub similarity: f32,
    /// [`crate::types::RankedPart::likeness`]; where it is missed, the probability is 0.
    pub likeness: Option<f32>,
    /// [`crate::types::RankedPart::centre`]; as the likeness.
    pub centre: Option<f32>,
    /// [`crate::measure::log_likelihood_shown`] of the item's box, or [`crate::measure::log_likelihood`] where the embedder
    /// does not say how much of a part it shows; `None` where the scale or the part's size is not known.
    pub size_log: Option<f32>,
    /// Of a part that is one of a pair; `None` where the shape is not known or only one of the two is a candidate.
    pub apart: Option<Apart>,
    /// It is not the most similar candidate, but of that one's confusion group.
    pub is_rival: bool,
}

/// How much more an item is like a part than like the two of the part's pair on average, −1 to 1 each.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Apart {
    /// By how its edges run.
    pub shape: f32,
    pub likeness: f32,
    pub centre: f32,
}

/// Weights of the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    pub similarity: f32,
    /// 0 in the fits of versions that compared the nearest template alone.
    #[serde(default)]
    pub likeness: f32,
    /// 0 in the fits of versions that knew no centres.
    #[serde(default)]
    pub centre: f32,
    pub size: f32,
    /// 0 in the fits of versions that knew no shapes.
    #[serde(default)]
    pub shape: f32,
    /// 0 in the fits of versions that did not weigh looks apart within a pair.
    #[serde(default)]
    pub pair: f32,
    /// As `centre`.
    #[serde(default)]
    pub pair_centre: f32,
    pub group: f32,
    pub none: f32,
}

/// Weights with the probabilities they ask for and how well they did on pictures they were not learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    pub weights: Weights,
    /// `[share, hit rate]`, both rising from 0 to 1; straight between the points.
    pub curve: Vec<[f32; 2]>,
    /// A match is accepted *above* this, 0 to 1.
    pub threshold: f32,
    /// Parts that were wrongly accepted above it, with the probability they must exceed instead.
    pub part_thresholds: BTreeMap<String, f32>,
    /// Expected calibration error: mean distance of probability and hit rate over bins of equal weight, 0 to 1.
    pub ece: f32,
    /// Share of the pictures that were accepted, 0 to 1.
    pub accepted_ratio: f32,
    /// Share of the accepted ones that were wrong, 0 to 1.
    pub error_ratio: f32,
    /// Its upper 95 % bound (Wilson 1927).
    pub error_ratio_upper: f32,
}

/// The whole of `fits/GENERATION.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    pub format: u32,
    pub generation_sha256: Digest,
    /// Asked share of wrong ones among the accepted, 0 to 1.
    pub target_error: f32,
    /// Pictures it was learned from.
    pub rows: usize,
    /// For items without a true size.
    pub plain: Scorer,
    /// For items whose scale is known; `None` where the pictures or the catalogue had no sizes.
    pub sized: Option<Scorer>,
    /// For items of several views, by their number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub several: BTreeMap<u32, Several>,
}

/// What was learned of items of so many views.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Several {
    /// Items it was learned from.
    pub rows: usize,
    /// For items without a true size.
    pub plain: Scorer,
    /// For items whose scale is known.
    pub sized: Option<Scorer>,
}

impl Scorer {
    /// Probability of each candidate, in order; all 0 when a score is not a number.
    #[must_use]
    pub fn probabilities(&self, candidates: &[Scored]) -> Vec<f32> {
        self.weights.shares(candidates).into_iter().map(|share| on_curve(&self.curve, share)).collect()
    }

    /// The share of "none of them": the probability that the item is of no catalogue part. `None` when a score is not a
    /// number, which proves nothing.
    #[must_use]
    pub fn unknown_probability(&self, candidates: &[Scored]) -> Option<f32> {
        let is_number = candidates.iter().all(|candidate| self.weights.score(candidate).is_finite());
        is_number.then(|| (1.0 - self.weights.shares(candidates).iter().sum::<f32>()).clamp(0.0, 1.0))
    }

    /// The probability that a match with `part_id` must exceed.
    #[must_use]
    pub fn required(&self, part_id: &str) -> f32 {
        self.part_thresholds.get(part_id).copied().unwrap_or(self.threshold)
    }
}

/// The height of a rising `curve` at `share`; `share` itself where the curve has no points.
pub(super) fn on_curve(curve: &[[f32; 2]], share: f32) -> f32 {
    let after = curve.partition_point(|[x, _]| *x < share);
    match (after.checked_sub(1).and_then(|before| curve.get(before)), curve.get(after)) {
        (Some([x1, y1]), Some([x2, y2])) => y1 + (y2 - y1) * (share - x1) / (x2 - x1),
        (None, Some([_, y])) | (Some([_, y]), None) => *y,
        (None, None) => share,
    }
}

impl Weights {
    /// Share of each candidate in all answers, none of them included; all 0 when a score is not a number.
    pub(super) fn shares(&self, candidates: &[Scored]) -> Vec<f32> {
        let scores: Vec<f32> = candidates.iter().map(|candidate| self.score(candidate)).collect();
        if scores.iter().any(|score| !score.is_finite()) {
            return vec![0.0; candidates.len()];
        }
        let top = scores.iter().copied().fold(self.none, f32::max);
        let exps: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
        let total = exps.iter().sum::<f32>() + (self.none - top).exp();
        exps.iter().map(|exp| exp / total).collect()
    }

    fn score(&self, candidate: &Scored) -> f32 {
        let rival = if candidate.is_rival { self.group } else { 0.0 };
        let apart = candidate.apart.unwrap_or_default();
        // What is weighed and missing makes no number, which proves nothing.
        let of_all =
            |weight: f32, value: Option<f32>| if weight == 0.0 { 0.0 } else { weight * value.unwrap_or(f32::NAN) };
        self.similarity * candidate.similarity
            + of_all(self.likeness, candidate.likeness)
            + of_all(self.centre, candidate.centre)
            + self.size * candidate.size_log.unwrap_or(0.0)
            + self.shape * apart.shape
            + self.pair * apart.likeness
            + self.pair_centre * apart.centre
            + rival
    }
}

impl Fit {
    /// The one to use for an item of so many views: by size only where every candidate has one. `None` where nothing was
    /// learned of items of so many views.
    #[must_use]
    pub fn scorer(&self, candidates: &[Scored], views: usize) -> Option<&Scorer> {
        let (plain, sized) = match views {
            1 => (&self.plain, &self.sized),
            _ => self.several.get(&u32::try_from(views).ok()?).map(|several| (&several.plain, &several.sized))?,
        };
        let is_sized = candidates.iter().all(|candidate| candidate.size_log.is_some());
        Some(sized.as_ref().filter(|_| is_sized).unwrap_or(plain))
    }

    /// All of them, for checks.
    fn scorers(&self) -> impl Iterator<Item = &Scorer> {
        let several = self.several.values().flat_map(|several| std::iter::once(&several.plain).chain(&several.sized));
        std::iter::once(&self.plain).chain(&self.sized).chain(several)
    }

    /// Whether the pair's difference is that of the likeness; before, it was that of the nearest cosine.
    pub(super) fn pairs_by_likeness(&self) -> bool {
        self.format > FORMAT_OLDEST
    }

    /// Where the fit of the generation `name` lies in the index folder `dir`.
    #[must_use]
    pub fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(FOLDER).join(format!("{name}.json"))
    }

    /// Digest of the fit's file of the generation `name` in the index folder `dir`; `None` where none can be read.
    pub(super) fn stored_sha256(dir: &Path, name: &str) -> Option<Digest> {
        std::fs::read(Self::path(dir, name)).ok().map(|bytes| Digest::of(&bytes))
    }

    /// The fit of a generation and the digest of its file; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is the fit of another generation.
    pub fn load(path: &Path, generation_sha256: Digest) -> Result<Option<(Self, Digest)>, MatchError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MatchError::io("read", path)(error)),
        };
        let fit = Self::parse(&bytes, path)?;
        if fit.generation_sha256 != generation_sha256 {
            let fault = format!("it is the fit of generation {}…", fit.generation_sha256.short());
            return Err(MatchError::Fit { path: path.to_owned(), fault });
        }
        Ok(Some((fit, Digest::of(&bytes))))
    }

    /// The fit in the text of a fit's file, checked; `path` is for the message.
    ///
    /// # Errors
    /// When it is damaged, or of a layout that this version does not read.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, MatchError> {
        let fault = |fault: String| MatchError::Fit { path: path.to_owned(), fault };
        let fit: Self = serde_json::from_slice(bytes).map_err(|error| fault(error.to_string()))?;
        if !(FORMAT_OLDEST..=FORMAT).contains(&fit.format) {
            let known = format!("{FORMAT_OLDEST} to {FORMAT}");
            return Err(fault(format!("it has format {}, this version reads {known}", fit.format)));
        }
        for scorer in fit.scorers() {
            let Weights { similarity, likeness, centre, size, shape, pair, pair_centre, group, none } = scorer.weights;
            let rises = scorer.curve.windows(2).all(|pair| pair[0][0] < pair[1][0] && pair[0][1] <= pair[1][1]);
            if !rises || scorer.curve.iter().flatten().any(|value| !(0.0..=1.0).contains(value)) {
                return Err(fault("its curve does not rise from 0 to 1".to_owned()));
            }
            let thresholds = std::iter::once(&scorer.threshold).chain(scorer.part_thresholds.values());
            if [similarity, likeness, centre, size, shape, pair, pair_centre, group, none]
                .iter()
                .any(|weight| !weight.is_finite())
                || thresholds.into_iter().any(|threshold| !(0.0..=1.0).contains(threshold))
            {
                return Err(fault("a weight is not a number or a threshold is not 0 to 1".to_owned()));
            }
        }
        Ok(fit)
    }

    /// Write the fit where [`Fit::load`] finds it, whole or not at all; its path.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn store(&self, dir: &Path, name: &str) -> Result<PathBuf, MatchError> {
        let path = Self::path(dir, name);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| MatchError::Fit { path: path.clone(), fault: error.to_string() })?;
        bytes.push(b'\n');
        write(&path, &bytes)?;
        Ok(path)
    }

    pub(super) fn new(
        generation_sha256: Digest,
        target_error: f32,
        rows: usize,
        plain: Scorer,
        sized: Option<Scorer>,
    ) -> Self {
        Self { format: FORMAT, generation_sha256, target_error, rows, plain, sized, several: BTreeMap::new() }
    }
}

/// Write a fit's text whole or not at all; its folder is made where there is none.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), MatchError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    store::make_durably(folder)?;
    let temporary = path.with_extension("json.part");
    store::write_synced(&temporary, bytes)?;
    failpoint::hit("index.fit.written");
    std::fs::rename(&temporary, path).map_err(MatchError::io("rename", path))?;
    failpoint::hit("index.fit.renamed");
    store::sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Fit, Scored, Scorer, Weights};
    use crate::types::Digest;

    fn scored(similarity: f32, size_log: Option<f32>) -> Scored {
        let alike = Some(similarity);
        Scored { similarity, likeness: alike, centre: alike, size_log, apart: None, is_rival: false }
    }

    fn scorer() -> Scorer {
        let weights = Weights {
            similarity: 12.0,
            likeness: 4.0,
            centre: 4.0,
            size: 1.0,
            shape: 30.0,
            pair: -10.0,
            pair_centre: 0.0,
            group: 1.0,
            none: 10.0,
        };
        Scorer {
            weights,
            curve: vec![[0.0, 0.0], [1.0, 1.0]],
            threshold: 0.9,
            part_thresholds: BTreeMap::from([("3023".to_owned(), 0.97)]),
            ece: 0.01,
            accepted_ratio: 0.8,
            error_ratio: 0.0,
            error_ratio_upper: 0.01,
        }
    }

    fn fit() -> Fit {
        Fit::new(Digest::of(b"generation"), 0.001, 100, scorer(), Some(scorer()))
    }

    #[test]
    fn probabilities_leave_room_for_none_and_fall_to_a_rival() {
        let clear = scorer().probabilities(&[scored(0.9, None), scored(0.5, None)]);
        assert!(clear[0] > 0.99 && clear.iter().sum::<f32>() < 1.0);
        let far = scorer().probabilities(&[scored(0.2, None), scored(0.1, None)]);
        assert!(far[0] < 0.01, "unlike everything: {far:?}");
        let rival =
            |is_rival| scorer().probabilities(&[scored(0.9, None), Scored { is_rival, ..scored(0.85, None) }])[0];
        assert!(rival(true) < rival(false));
        assert!(scorer().unknown_probability(&[scored(0.2, None)]).unwrap() > 0.99);
        let broken = [scored(f32::NAN, None), scored(0.9, None)];
        assert_eq!((scorer().probabilities(&broken), scorer().unknown_probability(&broken)), (vec![0.0, 0.0], None));
        for missed in [Scored { likeness: None, ..scored(0.9, None) }, Scored { centre: None, ..scored(0.9, None) }] {
            assert_eq!(scorer().probabilities(&[missed]), [0.0], "the weights ask for what nobody took");
        }
    }

    #[test]
    fn size_decides_between_look_alikes_and_counts_only_where_all_have_one() {
        let p = scorer().probabilities(&[scored(0.80, Some(-9.0)), scored(0.79, Some(1.0))]);
        assert!(p[1] > 0.9, "{p:?}");
        let fit = fit();
        assert!(std::ptr::eq(
            fit.scorer(&[scored(0.8, Some(1.0)), scored(0.7, None)], 1).unwrap(),
            &raw const fit.plain
        ));
        assert!(!std::ptr::eq(fit.scorer(&[scored(0.8, Some(1.0))], 1).unwrap(), &raw const fit.plain));
        assert_eq!(fit.scorer(&[scored(0.8, None)], 3), None, "nothing was learned of items of three views");
    }

    #[test]
    fn a_fit_comes_back_and_one_of_another_generation_or_a_broken_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = fit().store(dir.path(), "gen-0123456789ab").unwrap();
        assert_eq!(path, Fit::path(dir.path(), "gen-0123456789ab"));
        let (again, _) = Fit::load(&path, Digest::of(b"generation")).unwrap().unwrap();
        assert_eq!(again, fit());
        assert!(Fit::load(&path, Digest::of(b"other")).unwrap_err().to_string().contains("generation"));
        assert_eq!(Fit::load(&dir.path().join("none.json"), Digest::of(b"generation")).unwrap(), None);
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [text[..text.len() / 2].to_owned(), text.replace("0.9,", "1.9,"), text.replace("12.0", "1e99")] {
            std::fs::write(&path, broken).unwrap();
            let error = Fit::load(&path, Digest::of(b"generation")).unwrap_err().to_string();
            assert!(error.contains("gen-0123456789ab.json"), "{error}");
        }
    }

    #[test]
    fn a_fit_of_before_weighs_as_it_did() {
        let dir = tempfile::tempdir().unwrap();
        let path = fit().store(dir.path(), "gen-0123456789ab").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let before = text.replace("\"format\": 2", "\"format\": 1");
        let before = before.replace("\"likeness\": 4.0,", "").replace("\"centre\": 4.0,", "");
        let before = before.replace("\"pair_centre\": 0.0,", "");
        assert!(!before.contains("likeness") && !before.contains("centre"), "{before}");
        let old = Fit::parse(before.as_bytes(), &path).unwrap();
        assert!(!old.pairs_by_likeness() && fit().pairs_by_likeness());
        let without = [Scored { likeness: None, centre: None, ..scored(0.9, None) }];
        assert_eq!(old.plain.probabilities(&without), old.plain.probabilities(&[scored(0.9, None)]));
        assert!(old.plain.probabilities(&without)[0] > 0.6, "12 × 0.9 against 10");
        let next = text.replace("\"format\": 2", "\"format\": 3");
        assert!(Fit::parse(next.as_bytes(), &path).unwrap_err().to_string().contains("1 to 2"));
    }
}
