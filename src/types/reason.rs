//! Why a verdict is not PASS: stable codes, with words for people.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A reason code, `^[a-z][a-z0-9_.]{1,63}$`. The set is closed here and open on the wire: a newer device may send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    FrameUnreadable,
    FrameStale,
    FrameFrozen,
    FrameDuplicate,
    FrameBlurred,
    FrameNoisy,
    FrameDark,
    FrameBright,
    FrameLowContrast,
    FrameLowSaturation,
    FrameClipped,
    FrameUnlikeReference,
    FrameWrongSize,
    SourceEndedEarly,
    ViewMissing,
    NothingFound,
    TooManyItems,
    ItemCutByFrame,
    WrongLabel,
    RegionOutside,
    ViewCount,
    SimilarityLow,
    MarginSmall,
    GroupMarginSmall,
    ProbabilityLow,
    NotFitted,
    PartUnknown,
    QualityLevelLow,
    IndexUnavailable,
    AnomalyAboveThreshold,
    AnomalyNearThreshold,
    AnomalyNotRegistered,
    ModelError,
    ModelUnavailable,
    ProviderFallback,
    DeadlineMissed,
    LedgerUnavailable,
    NotInspected,
}

impl Reason {
    pub const ALL: [Reason; 38] = [
        Reason::FrameUnreadable,
        Reason::FrameStale,
        Reason::FrameFrozen,
        Reason::FrameDuplicate,
        Reason::FrameBlurred,
        Reason::FrameNoisy,
        Reason::FrameDark,
        Reason::FrameBright,
        Reason::FrameLowContrast,
        Reason::FrameLowSaturation,
        Reason::FrameClipped,
        Reason::FrameUnlikeReference,
        Reason::FrameWrongSize,
        Reason::SourceEndedEarly,
        Reason::ViewMissing,
        Reason::NothingFound,
        Reason::TooManyItems,
        Reason::ItemCutByFrame,
        Reason::WrongLabel,
        Reason::RegionOutside,
        Reason::ViewCount,
        Reason::SimilarityLow,
        Reason::MarginSmall,
        Reason::GroupMarginSmall,
        Reason::ProbabilityLow,
        Reason::NotFitted,
        Reason::PartUnknown,
        Reason::QualityLevelLow,
        Reason::IndexUnavailable,
        Reason::AnomalyAboveThreshold,
        Reason::AnomalyNearThreshold,
        Reason::AnomalyNotRegistered,
        Reason::ModelError,
        Reason::ModelUnavailable,
        Reason::ProviderFallback,
        Reason::DeadlineMissed,
        Reason::LedgerUnavailable,
        Reason::NotInspected,
    ];

    /// The code stored, published and filtered by.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Reason::FrameUnreadable => "frame.unreadable",
            Reason::FrameStale => "frame.stale",
            Reason::FrameFrozen => "frame.frozen",
            Reason::FrameDuplicate => "frame.duplicate",
            Reason::FrameBlurred => "frame.blurred",
            Reason::FrameNoisy => "frame.noisy",
            Reason::FrameDark => "frame.dark",
            Reason::FrameBright => "frame.bright",
            Reason::FrameLowContrast => "frame.low_contrast",
            Reason::FrameLowSaturation => "frame.low_saturation",
            Reason::FrameClipped => "frame.clipped",
            Reason::FrameUnlikeReference => "frame.unlike_reference",
            Reason::FrameWrongSize => "frame.wrong_size",
            Reason::SourceEndedEarly => "source.ended_early",
            Reason::ViewMissing => "source.view_missing",
            Reason::NothingFound => "locate.nothing_found",
            Reason::TooManyItems => "locate.too_many_items",
            Reason::ItemCutByFrame => "locate.item_cut_by_frame",
            Reason::WrongLabel => "locate.wrong_label",
            Reason::RegionOutside => "locate.region_outside",
            Reason::ViewCount => "locate.view_count",
            Reason::SimilarityLow => "match.similarity_low",
            Reason::MarginSmall => "match.margin_small",
            Reason::GroupMarginSmall => "match.group_margin_small",
            Reason::ProbabilityLow => "match.probability_low",
            Reason::NotFitted => "match.not_fitted",
            Reason::PartUnknown => "match.unknown",
            Reason::QualityLevelLow => "match.quality_level_low",
            Reason::IndexUnavailable => "match.index_unavailable",
            Reason::AnomalyAboveThreshold => "anomaly.above_threshold",
            Reason::AnomalyNearThreshold => "anomaly.near_threshold",
            Reason::AnomalyNotRegistered => "anomaly.not_registered",
            Reason::ModelError => "model.error",
            Reason::ModelUnavailable => "model.unavailable",
            Reason::ProviderFallback => "model.provider_fallback",
            Reason::DeadlineMissed => "decide.deadline_missed",
            Reason::LedgerUnavailable => "ledger.unavailable",
            Reason::NotInspected => "decide.not_inspected",
        }
    }

    /// One sentence for an operator: what happened and what to do.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Reason::FrameUnreadable => "the picture could not be decoded; check the camera link or the file",
            Reason::FrameStale => "the picture is older than allowed; check the camera and the load of the machine",
            Reason::FrameFrozen => "the camera delivered the same picture twice; restart the camera",
            Reason::FrameDuplicate => "the picture hardly differs from the one before; check that the part moved",
            Reason::FrameBlurred => "the picture is out of focus or moved; clean and focus the lens, shorten exposure",
            Reason::FrameNoisy => "the picture is noisy; add light or lower the gain",
            Reason::FrameDark => "the picture is too dark; check the lamp and the exposure",
            Reason::FrameBright => "the picture is too bright; check the lamp and the exposure",
            Reason::FrameLowContrast => "the picture has little contrast; check for fog, glare or a covered lens",
            Reason::FrameLowSaturation => "the picture has hardly any colour; check the camera's mode and the lamp",
            Reason::FrameClipped => "much of the picture is over- or under-exposed; adjust exposure or lighting",
            Reason::FrameUnlikeReference => "the scene differs from the reference picture; check the camera's position",
            Reason::FrameWrongSize => "the picture has another size than the recipe expects; check the camera's mode",
            Reason::SourceEndedEarly => "the video ended before its announced length; the rest was not inspected",
            Reason::ViewMissing => "not all views of the item came; check the cameras and how they name their files",
            Reason::NothingFound => "no part was found; check that one is in view",
            Reason::TooManyItems => "more parts were found than the recipe allows; thin them out",
            Reason::ItemCutByFrame => "a part reaches out of the picture; move it into view",
            Reason::WrongLabel => "the detector named a class that the recipe does not allow",
            Reason::RegionOutside => "a region of the recipe lies outside the picture; check the camera's mode",
            Reason::ViewCount => {
                "the item is not seen in as many views as the recipe asks for; check cameras and mirrors"
            }
            Reason::SimilarityLow => "the part looks like nothing in the catalogue; it may be unknown",
            Reason::MarginSmall => "two catalogue parts look about equally alike; a person must choose",
            Reason::ProbabilityLow => "the best part is not probable enough; a person must choose",
            Reason::NotFitted => "the index has no fit, or none for so many views; run `loupe index fit`",
            Reason::GroupMarginSmall => {
                "two parts that are known to be confused look about equally alike; a person must choose"
            }
            Reason::PartUnknown => "the part is not in the catalogue; add it, or see `loupe review unknowns`",
            Reason::QualityLevelLow => {
                "the catalogue is not sure enough of this part for the recipe; see `loupe catalog promote`"
            }
            Reason::IndexUnavailable => "the part index could not be searched; run `loupe index verify`",
            Reason::AnomalyAboveThreshold => "the surface differs from good parts; look at the heat map",
            Reason::AnomalyNearThreshold => "the surface score is too close to the threshold to be sure",
            Reason::AnomalyNotRegistered => {
                "the part does not lie as in the bank's reference picture; lay it straight and clear the view"
            }
            Reason::ModelError => "a model failed on this picture; see the log",
            Reason::ModelUnavailable => {
                "the model's device failed and the model is being opened again; if that lasts, restart the service"
            }
            Reason::ProviderFallback => "the model does not run where the recipe requires; check the accelerator",
            Reason::DeadlineMissed => "the answer came too late for the line; check the load of the machine",
            Reason::LedgerUnavailable => "the result could not be stored; check the disk",
            Reason::NotInspected => "nothing judged this part; check the recipe",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// unknown reason code
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason code `{0}`")]
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(code: &str) -> Result<Self, UnknownReason> {
        Reason::ALL.into_iter().find(|reason| reason.code() == code).ok_or_else(|| UnknownReason(code.to_owned()))
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn codes_are_unique_well_formed_and_read_back() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let code = reason.code();
            assert!(code.len() <= 64 && code.starts_with(|c: char| c.is_ascii_lowercase()), "{code}");
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.".contains(&b)), "{code}");
            assert_eq!(code.parse(), Ok(reason));
        }
    }
}
