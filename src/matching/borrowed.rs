//! A fit of the centre beside a generation: put there in place of the device's own, and given back.
//!
//! ```text
//! DIR/fits/gen-….json      the fit in use
//! DIR/fits/gen-….own.json  the device's own, while one of the centre is in use
//! ```
//! Invariants: only a fit that is whole, and of a generation that lies here, is put in use; at each moment one of the two
//! is whole in its place. Thread: the caller's; the searches take it up as they take up a generation
//! ([`super::LiveIndex`]).

use std::path::{Path, PathBuf};

use super::MatchError;
use super::fit::{self, Fit};
use super::{generation, store};
use crate::failpoint;
use crate::types::Digest;

/// What came of [`place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The index has no such generation.
    NoGeneration,
    /// It is in use from now on.
    Placed,
    /// It was in use already.
    Already,
}

fn own_path(dir: &Path, name: &str) -> PathBuf {
    Fit::path(dir, name).with_extension("own.json")
}

/// Put the fit `body` in use in the index folder `dir`, where the generation that it is for lies there. `ours`: digest of
/// the centre's fit that is in use now; what else is in use is the device's own, and is kept.
///
/// # Errors
/// When the fit is damaged, of another layout, or the folder cannot be written; what was in use stays.
pub fn place(dir: &Path, body: &[u8], ours: Option<Digest>) -> Result<Placed, MatchError> {
    let fit = Fit::parse(body, Path::new("the centre's fit"))?;
    let name = generation::name_of(&fit.generation_sha256);
    let generation = dir.join(&name);
    if !generation.is_dir() {
        return Ok(Placed::NoGeneration);
    }
    let (_, found) = generation::read_manifest(&generation)?;
    let path = Fit::path(dir, &name);
    if found != fit.generation_sha256 {
        let fault = format!("it is for generation {}, the one called {name} here is {found}", fit.generation_sha256);
        return Err(MatchError::Fit { path, fault });
    }
    let in_use = Fit::stored_sha256(dir, &name);
    if in_use == Some(Digest::of(body)) {
        return Ok(Placed::Already);
    }
    if in_use.is_some() && in_use != ours {
        let own = std::fs::read(&path).map_err(MatchError::io("read", &path))?;
        fit::write(&own_path(dir, &name), &own)?;
        failpoint::hit("index.fit.kept");
    }
    fit::write(&path, body)?;
    Ok(Placed::Placed)
}

/// Take the centre's fit `ours` of a generation out of use: the device's own comes back, or, where it had none, the
/// recipe's similarity and margin decide. Whether anything changed.
///
/// # Errors
/// When the folder cannot be written.
pub fn give_back(dir: &Path, generation_sha256: Digest, ours: Digest) -> Result<bool, MatchError> {
    let name = generation::name_of(&generation_sha256);
    if Fit::stored_sha256(dir, &name) != Some(ours) {
        return Ok(false);
    }
    let (path, own) = (Fit::path(dir, &name), own_path(dir, &name));
    let is_sound = matches!(Fit::load(&own, generation_sha256), Ok(Some(_)));
    let done = if is_sound { std::fs::rename(&own, &path) } else { std::fs::remove_file(&path) };
    done.map_err(MatchError::io("change", &path))?;
    store::sync_dir(path.parent().unwrap_or(dir))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Placed, give_back, own_path, place};
    use crate::matching::{BuildOptions, Embedding, Fit, FitRow, IndexBuilder, PartIndex, Scored, Template, fitting};
    use crate::types::Digest;

    fn built(root: &Path, name: &str) -> PartIndex {
        let model_sha256 = Digest::of(b"model");
        let embedding =
            Embedding { model: "test".into(), model_sha256, input_px: 160, crop_margin_ratio: 0.0, input_sha256: None };
        let mut builder = IndexBuilder::new(2, embedding, BuildOptions::default());
        for (part, vector) in [(name, [1.0, 0.0]), ("other", [0.0, 1.0])] {
            builder.push(Template { part_id: part.to_owned(), color_id: None, view: String::new() }, &vector).unwrap();
        }
        builder.build(root).unwrap();
        PartIndex::open(root).unwrap()
    }

    fn fit(index: &PartIndex, target: f32) -> Vec<u8> {
        let scored = |similarity| Scored { similarity, ..Scored::default() };
        let candidates = vec![("one".to_owned(), scored(0.9)), ("other".to_owned(), scored(0.1))];
        let row = FitRow { part_id: "one".to_owned(), candidates };
        let fit = fitting::fit(index.generation_sha256(), &vec![row; 60], 0.1, target).unwrap();
        serde_json::to_vec(&fit).unwrap()
    }

    #[test]
    fn the_centres_fit_takes_the_place_of_the_own_one_which_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let index = built(root.path(), "one");
        let name = index.generation_name();
        let own: Fit = serde_json::from_slice(&fit(&index, 0.2)).unwrap();
        own.store(root.path(), &name).unwrap();
        let (first, second) = (fit(&index, 0.01), fit(&index, 0.02));
        assert_eq!(place(root.path(), &first, None).unwrap(), Placed::Placed);
        assert_eq!(place(root.path(), &first, None).unwrap(), Placed::Already);
        assert_eq!(place(root.path(), &second, Some(Digest::of(&first))).unwrap(), Placed::Placed);
        assert_eq!(PartIndex::open(root.path()).unwrap().fit_sha256(), Some(Digest::of(&second)));
        assert!(!give_back(root.path(), index.generation_sha256(), Digest::of(&first)).unwrap(), "not in use");
        assert!(give_back(root.path(), index.generation_sha256(), Digest::of(&second)).unwrap());
        assert_eq!(PartIndex::open(root.path()).unwrap().fit(), Some(&own));
        assert!(!own_path(root.path(), &name).exists());
    }

    #[test]
    fn a_damaged_fit_or_one_of_another_index_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let index = built(root.path(), "one");
        let good = fit(&index, 0.01);
        place(root.path(), &good, None).unwrap();
        let text = String::from_utf8(good.clone()).unwrap();
        for broken in [text[..text.len() / 2].to_owned(), text.replace("\"format\":2", "\"format\":9")] {
            assert!(place(root.path(), broken.as_bytes(), None).is_err(), "{broken}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let other = fit(&built(elsewhere.path(), "two"), 0.01);
        assert_eq!(place(root.path(), &other, None).unwrap(), Placed::NoGeneration);
        assert_eq!(PartIndex::open(root.path()).unwrap().fit_sha256(), Some(Digest::of(&good)));
        // A folder of the right name whose index is another one.
        let (one, two) = (index.generation_name(), built(elsewhere.path(), "two").generation_name());
        std::fs::rename(elsewhere.path().join(&two), elsewhere.path().join(&one)).unwrap();
        assert!(place(elsewhere.path(), &good, None).unwrap_err().to_string().contains(&one));
        assert!(give_back(root.path(), index.generation_sha256(), Digest::of(&good)).unwrap());
        assert!(PartIndex::open(root.path()).unwrap().fit().is_none(), "there was no own one");
    }
}
