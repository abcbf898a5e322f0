//! Anomaly graphs as anomalib exports them: which outputs they have, and what `metadata.json` beside them says.
//!
//! Up to 1.x a graph has an `output` (a map, or one number) on a raw scale; the numbers to normalise it stand beside it:
//! `image_threshold`, `pixel_threshold` and `min`, `max` (0.x, 1.0) or `pred_scores.min` … `anomaly_maps.max` (1.1).
//! Since 2.0 the graph has `pred_score`, `pred_label`, `anomaly_map` and `pred_mask` and has normalised them. Pure but for
//! [`Metadata::beside`].

use std::path::Path;

use serde_json::{Map, Value};

use super::anomaly::ScoreScale;
use super::guess::Seen;

/// A metadata file is a few kB.
const METADATA_BYTES_MAX: u64 = 1 << 20;

/// The outputs of an anomaly graph: name and role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnomalyOutputs {
    pub outputs: Vec<(String, &'static str)>,
    pub is_normalised: bool,
    pub why: String,
}

/// The outputs of an anomaly graph with an input of this width and height; `None` where they look otherwise.
pub(super) fn recognise(outputs: &[Seen], [width, height]: [usize; 2]) -> Option<AnomalyOutputs> {
    let named = |name: &str| outputs.iter().find(|output| output.name == name);
    let take = |output: Option<&Seen>, role: &'static str| output.map(|output| (output.name.clone(), role));
    let (score, map) = (named("pred_score"), named("anomaly_map"));
    if score.is_some() || map.is_some() {
        let is_normalised = named("pred_label").is_some() || named("pred_mask").is_some();
        let why = if is_normalised {
            "outputs as anomalib 2 names them: scores are normalised in the graph unless that was switched off (its label must agree \
             with the score, or the frame holds)"
        } else {
            "outputs as anomalib names them, without labels: scores are raw"
        };
        let label = take(named("pred_label"), "anomaly_label");
        let outputs = [take(score, "anomaly_score"), label, take(map, "anomaly_map")].into_iter().flatten().collect();
        return Some(AnomalyOutputs { outputs, is_normalised, why: why.to_owned() });
    }
    let is_score = |output: &&Seen| !output.sides.is_empty() && output.sides.iter().all(|side| *side == 1);
    let map = outputs.iter().find(|output| output.sides == [1, 1, height, width] && !is_score(output));
    let score = outputs.iter().find(is_score);
    if map.is_none() && (score.is_none() || outputs.len() > 1) {
        return None;
    }
    let why = match map {
        Some(_) => "a map of the picture in one plane, as anomalib exports up to 1.x: scores are raw",
        None => "a single number, as anomalib's classification exports up to 1.x: the score is raw",
    };
    let outputs = [take(score, "anomaly_score"), take(map, "anomaly_map")].into_iter().flatten().collect();
    Some(AnomalyOutputs { outputs, is_normalised: false, why: why.to_owned() })
}

/// What `metadata.json` says of the scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Metadata {
    pub image: ScoreScale,
    pub pixel: Option<ScoreScale>,
    /// Whether pictures are normalised by ImageNet's mean and deviation before the graph, not in it.
    pub is_normalised_before: bool,
}

impl Metadata {
    /// Of `metadata.json` in `folder`; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or lacks numbers, with what is missing.
    pub fn beside(folder: &Path) -> Result<Option<Metadata>, String> {
        let path = folder.join("metadata.json");
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(file) if file.len() > METADATA_BYTES_MAX => return Err("metadata.json is larger than 1 MiB".to_owned()),
            _ => {}
        }
        let text = std::fs::read_to_string(&path).map_err(|error| format!("metadata.json cannot be read: {error}"))?;
        Metadata::parse(&text).map(Some)
    }

    /// # Errors
    /// When the text is no JSON object or lacks numbers, with what is missing.
    pub fn parse(text: &str) -> Result<Metadata, String> {
        let document: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("metadata.json is no JSON object: {error}"))?;
        if document.contains_key("image_mean") {
            return Err("metadata.json holds the means of anomalib's CDF normalisation; train with min-max".to_owned());
        }
        let image = scale(&document, "image_threshold", "pred_scores")?;
        let pixel = match document.get("pixel_threshold") {
            None | Some(Value::Null) => None,
            Some(_) => Some(scale(&document, "pixel_threshold", "anomaly_maps")?),
        };
        let is_normalised_before =
            document.get("transform").is_some_and(|value| value.to_string().contains("Normalize"));
        Ok(Metadata { image, pixel, is_normalised_before })
    }

    /// What scores are counted from: 0, or well below the lowest seen where scores may be negative.
    pub fn lowest(&self) -> f32 {
        let scales = std::iter::once(self.image).chain(self.pixel);
        let below = |scale: ScoreScale| if scale.min < 0.0 { (2.0 * scale.min - scale.max).floor() } else { 0.0 };
        scales.map(below).fold(0.0, f32::min)
    }
}

/// One scale: `min` and `max` under the name of their tensor (1.1), or alone (0.x, 1.0).
fn scale(document: &Map<String, Value>, threshold: &str, tensor: &str) -> Result<ScoreScale, String> {
    #[expect(clippy::cast_possible_truncation, reason = "thresholds were f32 when they were written")]
    let number =
        |key: &str| document.get(key).and_then(Value::as_f64).map(|value| value as f32).filter(|v| v.is_finite());
    let side = |side: &str| {
        let long = format!("{tensor}.{side}");
        number(&long)
            .or_else(|| number(side))
            .ok_or_else(|| format!("metadata.json has no number `{long}` or `{side}`"))
    };
    let threshold = number(threshold).ok_or_else(|| format!("metadata.json has no number `{threshold}`"))?;
    Ok(ScoreScale { threshold, min: side("min")?, max: side("max")? })
}

#[cfg(test)]
mod tests {
    use super::{Metadata, ScoreScale, Seen, recognise};

    fn roles(outputs: &[(&str, &[usize])]) -> Option<(Vec<&'static str>, bool)> {
        let seen = |(name, sides): &(&str, &[usize])| Seen {
            name: (*name).to_owned(),
            element: "float32".to_owned(),
            sides: sides.to_vec(),
            highest: None,
        };
        let outputs: Vec<Seen> = outputs.iter().map(seen).collect();
        let found = recognise(&outputs, [96, 64])?;
        Some((found.outputs.iter().map(|(_, role)| *role).collect(), found.is_normalised))
    }

    #[test]
    fn exports_of_each_age_are_recognised() {
        let both = vec!["anomaly_score", "anomaly_map"];
        let two: &[(&str, &[usize])] = &[
            ("pred_score", &[1]),
            ("pred_label", &[1]),
            ("anomaly_map", &[1, 1, 64, 96]),
            ("pred_mask", &[1, 1, 64, 96]),
        ];
        assert_eq!(roles(two), Some((vec!["anomaly_score", "anomaly_label", "anomaly_map"], true)));
        assert_eq!(roles(&[("output", &[1, 1, 64, 96])]), Some((vec!["anomaly_map"], false)));
        assert_eq!(roles(&[("output", &[1, 1, 64, 96]), ("77", &[1])]), Some((both, false)));
        assert_eq!(roles(&[("output", &[1])]), Some((vec!["anomaly_score"], false)));
        assert_eq!(roles(&[("stride8", &[1, 32, 8, 12])]), None);
        assert_eq!(roles(&[("output", &[1, 3549, 85])]), None);
    }

    #[test]
    fn the_numbers_of_each_age_are_read() {
        let old =
            r#"{"image_threshold": 2, "pixel_threshold": 3.5, "min": 0.5, "max": 9, "transform": {"x": "Normalize"}}"#;
        let found = Metadata::parse(old).unwrap();
        assert_eq!(found.image, ScoreScale { threshold: 2.0, min: 0.5, max: 9.0 });
        assert_eq!(found.pixel.unwrap().threshold, 3.5);
        assert!(found.is_normalised_before && found.lowest() == 0.0);
        let new = r#"{"image_threshold": -0.4, "pred_scores.min": -1.0, "pred_scores.max": 0.0}"#;
        let found = Metadata::parse(new).unwrap();
        assert_eq!((found.image.min, found.pixel, found.lowest()), (-1.0, None, -2.0));
    }

    #[test]
    fn missing_numbers_are_named() {
        let check = |text: &str, expected: &str| {
            let error = Metadata::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("[]", "no JSON object");
        check("{}", "image_threshold");
        check(r#"{"image_threshold": 1, "pred_scores.min": 0}"#, "pred_scores.max");
        check(r#"{"image_threshold": 1, "min": 0, "max": 1, "pixel_threshold": "x"}"#, "pixel_threshold");
        check(r#"{"image_threshold": 1, "image_mean": 0}"#, "CDF");
    }
}
