//! An inspection as the dashboard's clients read it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::types::{Inspection, Reason};

/// The object that `loupe inspect --json` prints, with `advice` added: each reason code that occurs in it, in words.
#[derive(Debug, Serialize)]
pub struct InspectionView<'a> {
    #[serde(flatten)]
    inspection: &'a Inspection,
    advice: BTreeMap<&'static str, &'static str>,
}

impl<'a> InspectionView<'a> {
    #[must_use]
    pub fn new(inspection: &'a Inspection) -> Self {
        let of_items = inspection.items.iter().flat_map(|item| &item.reasons);
        let of_quality = inspection.quality.iter().flat_map(|quality| &quality.issues);
        let reasons = inspection.reasons.iter().chain(of_items).chain(of_quality);
        let advice = reasons.map(|&reason: &Reason| (reason.code(), reason.advice())).collect();
        Self { inspection, advice }
    }
}
