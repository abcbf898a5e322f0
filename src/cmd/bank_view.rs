//! Command-line options of `loupe bank` that say how a picture is looked at, shared by its subcommands.

use anyhow::Context as _;

use crate::anomaly::{AskedOutline, AskedTiles, BankOptions, DEFAULT_CORRELATION_MIN, Motion, ThresholdRule, View};

#[derive(Debug, Clone, clap::Args)]
pub struct ViewArgs {
    /// Look only here: a rectangle `x1,y1,x2,y2` or a polygon `"x,y x,y x,y"`, in fractions of the picture (0 to 1) or, if any
    /// number is above 1, in pixels of the first picture. May be given up to 16 times.
    #[arg(long, value_name = "OUTLINE")]
    pub region: Vec<AskedOutline>,
    /// Never look here; written as --region. May be given several times.
    #[arg(long, value_name = "OUTLINE")]
    pub ignore: Vec<AskedOutline>,
    /// Stretch the box round the regions, not the whole picture, to the model's input: small regions are seen larger.
    #[arg(long, requires = "region")]
    pub zoom: bool,
    /// Cut the picture into COLUMNSxROWS tiles of the model's input, such as `5x2`, or `auto` for the picture's own pixels;
    /// for large or elongated pictures. Each tile is a run of the model.
    #[arg(long, value_name = "TILES")]
    pub tiles: Option<AskedTiles>,
    /// Share of a tile that neighbours have in common, 0 to 0.75.
    #[arg(long, value_name = "RATIO", default_value_t = BankOptions::default().tile_overlap)]
    pub tile_overlap: f32,
    /// Bring each part to where the first picture shows it before it is compared: `translation` (it is shifted), `rigid` (and
    /// turned) or `affine` (and scaled). A part that does not fit the first picture is held.
    #[arg(long, value_name = "MOTION", value_parser = motion)]
    pub register: Option<Motion>,
    /// Least correlation with the first picture after registration, 0 to 1.
    #[arg(long, value_name = "RATIO", default_value_t = DEFAULT_CORRELATION_MIN)]
    pub correlation_min: f32,
}

impl ViewArgs {
    /// Put what was asked for into `options`.
    pub fn apply(&self, options: &mut BankOptions) {
        options.regions.clone_from(&self.region);
        options.ignored.clone_from(&self.ignore);
        options.zoom = self.zoom;
        options.tiles = self.tiles;
        options.tile_overlap = self.tile_overlap;
        options.motion = self.register;
        options.correlation_min = self.correlation_min;
    }
}

/// A motion as it is written on the command line.
///
/// # Errors
/// With the words that are allowed.
pub fn motion(text: &str) -> Result<Motion, String> {
    match text {
        "translation" => Ok(Motion::Translation),
        "rigid" => Ok(Motion::Rigid),
        "affine" => Ok(Motion::Affine),
        _ => Err("write translation, rigid or affine".to_owned()),
    }
}

/// A threshold rule as it is written on the command line: `headroom`, `f1` or `false-reject=RATE`.
///
/// # Errors
/// When the objective is none of these, or a confidence is given without a rate.
pub fn threshold_rule(objective: &str, confidence: Option<f64>) -> anyhow::Result<ThresholdRule> {
    if let Some(rate) = objective.strip_prefix("false-reject=") {
        let rate: f64 = rate.parse().with_context(|| format!("`{rate}` is no rate, such as 0.01"))?;
        return Ok(match confidence {
            None => ThresholdRule::FalseReject { rate },
            Some(confidence) => ThresholdRule::FalseRejectSure { rate, confidence },
        });
    }
    anyhow::ensure!(confidence.is_none(), "--confidence goes with the objective false-reject=RATE only");
    match objective {
        "headroom" => Ok(ThresholdRule::Headroom),
        "f1" => Ok(ThresholdRule::BestF1),
        _ => {
            anyhow::bail!("objective `{objective}`: write headroom, f1 or false-reject=RATE, such as false-reject=0.01")
        }
    }
}

/// A rule in words.
#[must_use]
pub fn rule_in_words(rule: ThresholdRule) -> String {
    match rule {
        ThresholdRule::Headroom => "above all good pictures with headroom".to_owned(),
        ThresholdRule::FalseReject { rate } => {
            format!("at most {} of good pictures rejected, in the mean", percent(rate))
        }
        ThresholdRule::FalseRejectSure { rate, confidence } => {
            format!("at most {} of good pictures rejected, {} sure", percent(rate), percent(confidence))
        }
        ThresholdRule::BestF1 => "largest F1 on labelled pictures".to_owned(),
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.3} %", ratio * 100.0)
}

/// A view in words.
#[must_use]
pub fn view_in_words(view: &View) -> String {
    let mut words = Vec::new();
    if !view.regions.is_empty() || !view.ignored.is_empty() {
        let zoom = if view.zoom { ", zoomed" } else { "" };
        words.push(format!("{} regions, {} ignored{zoom}", view.regions.len(), view.ignored.len()));
    }
    if let Some(tiles) = view.tiles {
        let [across, down] = tiles.overlap_px;
        words.push(format!("{}x{} tiles, overlap {across}x{down} px", tiles.columns, tiles.rows));
    }
    if let Some(registration) = view.registration {
        let motion = match registration.motion {
            Motion::Translation => "translation",
            Motion::Rigid => "rigid",
            Motion::Affine => "affine",
        };
        words.push(format!("registered ({motion}, correlation from {})", registration.correlation_min));
    }
    if words.is_empty() { "whole picture".to_owned() } else { words.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::{ThresholdRule, View, motion, threshold_rule, view_in_words};

    #[test]
    fn objectives_are_read_and_others_named() {
        assert_eq!(threshold_rule("f1", None).unwrap(), ThresholdRule::BestF1);
        let rule = threshold_rule("false-reject=0.01", Some(0.9)).unwrap();
        assert_eq!(rule, ThresholdRule::FalseRejectSure { rate: 0.01, confidence: 0.9 });
        for (objective, confidence) in [("f2", None), ("false-reject=x", None), ("f1", Some(0.9))] {
            assert!(threshold_rule(objective, confidence).is_err(), "{objective}");
        }
        assert!(motion("sideways").is_err());
    }

    #[test]
    fn a_plain_view_is_the_whole_picture() {
        assert_eq!(view_in_words(&View::default()), "whole picture");
    }
}
