//! Lists of pictures for `loupe bank`: folders, and splits with labels, kinds and masks.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::capture;

/// Kinds of defects told apart in one report; each may hold pixel counts of 24 MiB.
const KINDS_MAX: usize = 32;

/// Lists of pictures; other keys of the file are not for us.
#[derive(Debug, Deserialize)]
pub struct Split {
    #[serde(default)]
    pub train: Vec<PathBuf>,
    /// Looked at while options are chosen.
    #[serde(default)]
    pub validation: Vec<LabelledPicture>,
    /// Looked at when everything is chosen.
    #[serde(default)]
    pub test: Vec<LabelledPicture>,
}

/// A picture whose state is known.
#[derive(Debug, Clone, Deserialize)]
pub struct LabelledPicture {
    pub file: PathBuf,
    pub label: Label,
    /// Not black where the part is bad; of any size, stretched over the picture.
    pub mask: Option<PathBuf>,
    /// What is wrong with it, such as `scratch`; the name of the file's folder where not given.
    pub kind: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub enum Label {
    Good,
    Bad,
}

impl TryFrom<u8> for Label {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, String> {
        match value {
            0 => Ok(Label::Good),
            1 => Ok(Label::Bad),
            other => Err(format!("label {other}: it must be 0 (good) or 1 (bad)")),
        }
    }
}

impl Split {
    /// # Errors
    /// When the file cannot be read or is no split.
    pub fn read(path: &Path) -> anyhow::Result<Split> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the split `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("the split `{}` is not as expected", path.display()))
    }
}

impl LabelledPicture {
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.label == Label::Bad
    }

    /// What is wrong with it; `None` for a good one.
    #[must_use]
    pub fn kind(&self) -> Option<String> {
        let folder = || Some(self.file.parent()?.file_name()?.to_string_lossy().into_owned());
        self.is_bad().then(|| self.kind.clone().or_else(folder).unwrap_or_else(|| "bad".to_owned()))
    }
}

/// Refuse a list with more kinds of defects than are told apart.
///
/// # Errors
/// With what to do.
pub fn check_kinds(pictures: &[LabelledPicture]) -> anyhow::Result<()> {
    let kinds: std::collections::BTreeSet<String> = pictures.iter().filter_map(LabelledPicture::kind).collect();
    let count = kinds.len();
    anyhow::ensure!(count <= KINDS_MAX, "{count} kinds of defects, at most {KINDS_MAX} are told apart; merge some");
    Ok(())
}

/// `[height, width]`, true where the mask is not black, sampled at pixel centres.
///
/// # Errors
/// When the mask cannot be read.
pub fn read_mask(path: &Path, width: usize, height: usize) -> anyhow::Result<Vec<bool>> {
    let mask = capture::read_image(path)?;
    let (mask_width, mask_height) = (mask.width_px() as usize, mask.height_px() as usize);
    let is_bad = |index: usize| {
        let (x, y) = (index % width, index / width);
        let (mask_x, mask_y) = ((2 * x + 1) * mask_width / (2 * width), (2 * y + 1) * mask_height / (2 * height));
        mask.bgr()[(mask_y * mask_width + mask_x) * 3..][..3].iter().any(|value| *value > 0)
    };
    Ok((0..width * height).map(is_bad).collect())
}

/// Pictures of a folder, by name.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn pictures_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
    let mut pictures = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        if extension.is_some_and(|extension| capture::PICTURE_EXTENSIONS.contains(&extension.as_str())) {
            pictures.push(path);
        }
    }
    anyhow::ensure!(!pictures.is_empty(), "`{}` holds no pictures", folder.display());
    pictures.sort();
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Label, Split, pictures_in, read_mask};

    #[test]
    fn a_split_may_say_more_than_we_read_but_not_another_label() {
        let text = r#"{"train": ["a.jpg"], "test": [{"file": "b.jpg", "label": 1, "mask": "m.png", "place": "left"}]}"#;
        let split: Split = serde_json::from_str(text).unwrap();
        assert_eq!((split.train.len(), split.test[0].label), (1, Label::Bad));
        let error = serde_json::from_str::<Split>(&text.replace(": 1", ": 2")).unwrap_err().to_string();
        assert!(error.contains("label 2"), "{error}");
    }

    #[test]
    fn a_kind_is_named_or_the_folder_and_good_pictures_have_none() {
        let text = r#"{"test": [{"file": "dent/b.jpg", "label": 1}, {"file": "dent/c.jpg", "label": 1, "kind": "pit"},
            {"file": "c.jpg", "label": 1}, {"file": "good/d.jpg", "label": 0}]}"#;
        let split: Split = serde_json::from_str(text).unwrap();
        let kinds: Vec<_> = split.test.iter().map(super::LabelledPicture::kind).collect();
        assert_eq!(kinds, [Some("dent".to_owned()), Some("pit".to_owned()), Some("bad".to_owned()), None]);
    }

    #[test]
    fn a_mask_is_sampled_at_pixel_centres() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let bgr = [0, 255, 0, 0].into_iter().flat_map(|value: u8| [value; 3]).collect();
        let mask = crate::types::Image::from_bgr(4, 1, bgr).unwrap();
        std::fs::write(&path, crate::capture::encode_png(&mask).unwrap()).unwrap();
        assert_eq!(read_mask(&path, 4, 1).unwrap(), [false, true, false, false]);
        assert_eq!(read_mask(&path, 2, 1).unwrap(), [true, false]);
    }

    #[test]
    fn folders_without_pictures_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no picture").unwrap();
        let error = pictures_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(pictures_in(Path::new("/nowhere")).is_err());
    }
}
