//! `[input]` of a model's manifest: how a picture's pixels become the model's numbers. Pure.

use serde::{Deserialize, Serialize};

use crate::types::Digest;

/// Order of the colour planes of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColorOrder {
    Rgb,
    Bgr,
}

/// How a picture of another shape is brought to the input's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Both sides scaled on their own.
    Stretch,
    /// Scaled as a whole, the rest filled with `pad_value`.
    Letterbox,
}

/// Where the scaled picture lies in a letterboxed input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterboxPlacement {
    /// At the top left corner, as YOLOX does.
    TopLeft,
    /// In the middle, as the other YOLOs do.
    Centre,
}

/// How a picture is made smaller or larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Pillow's BILINEAR: the filter grows with the reduction, so no pixel is skipped.
    #[default]
    Triangle,
    /// OpenCV's INTER_LINEAR, bit for bit: two taps a side whatever the reduction.
    Linear,
}

impl Resample {
    /// Raised when the same pixels become others than by the version before.
    fn version(self) -> u32 {
        match self {
            Self::Triangle => 2, // 1 was near Pillow's BILINEAR, not equal to it
            Self::Linear => 1,
        }
    }
}

/// Order of the input's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axes {
    /// `[N, 3, H, W]`.
    #[default]
    Nchw,
    /// `[N, H, W, 3]`.
    Nhwc,
}

/// The model's picture input: f32, f16 or u8 as the graph says, `(value × scale − mean) / std` per plane of 0..255.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    pub name: String,
    /// Width and height the model runs at unless the caller says otherwise.
    pub size_px: [u32; 2],
    pub color: ColorOrder,
    pub scale: f32,
    /// In the order of `color`.
    pub mean: [f32; 3],
    /// In the order of `color`; none is 0.
    pub std: [f32; 3],
    pub resize: ResizeMode,
    /// Grey of the border, 0 to 255; the usual 114 where it is absent.
    #[serde(default = "pad_value_default")]
    pub pad_value: u8,
    /// Where a letterboxed picture lies; by the layout where it is absent: `yolox` top left, others in the middle.
    #[serde(default)]
    pub placement: Option<LetterboxPlacement>,
    #[serde(default)]
    pub resample: Resample,
    #[serde(default)]
    pub axes: Axes,
    /// A second input that wants the picture's width and height, `[N, 2]` i64 (`orig_target_sizes`).
    #[serde(default)]
    pub sizes: Option<String>,
}

impl InputSpec {
    /// Digest of how pixels become input values, whatever the input's name and size, where a letterboxed picture lies so.
    pub(super) fn sha256(&self, placement: LetterboxPlacement) -> Digest {
        let Self { color, scale, mean, std, resize, pad_value, resample, .. } = self;
        let form = (color, scale, mean, std, resize, pad_value, placement, resample);
        // A tuple of numbers and names always serialises. The first version stands for itself, as it was noted at the time.
        let bytes = match resample.version() {
            1 => serde_json::to_vec(&form),
            version => serde_json::to_vec(&(form, version)),
        };
        Digest::of(&bytes.unwrap_or_default())
    }
}

fn pad_value_default() -> u8 {
    114
}
