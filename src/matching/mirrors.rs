//! `mirrors.csv`: what a mirrored picture of each part shows. Pure.
//!
//! A mirrored picture of a part shows its mirror image: of most parts the part itself, of a left wing the right one. Compared
//! with *that* part, the mirrored picture of an item is a second opinion of the same question, as good as the first and wrong
//! elsewhere, where the embedder tells a picture from its mirror image (docs/adr/0017). Which part is the mirror image of
//! which is read from the catalogue's own pictures, mirrored: nobody needs to say it.
//!
//! A part is its own mirror image where its mirrored pictures are as like it as one of its pictures is to the others. Another part
//! of its confusion group, where what looks nearly the same belongs, is where this is nearly so both ways, and more so than for
//! each by itself. A part of which neither is plain gets no second opinion: taken for its own, a left wing would be found in
//! every right one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::MatchError;
use super::centres::Centres;
use super::embedded::Embedded;
use super::groups::Groups;
use super::likeness::{centre, cosine, direction, likeness};
use super::table::Table;
use super::views::mean;

const TABLE: Table<2> = Table { name: "mirrors.csv", header: ["part_id", "mirror_part_id"] };
/// Pictures of a part below which nothing is read from them: with 4 of the sample catalogue's 18 a part, four of its 26 left and
/// right parts without the other were taken for their own mirror images, with 8 one, with 12 none.
const PICTURES_MIN: usize = 12;
/// How much less like itself than its own pictures are to each other a mirrored part may be, likeness and centre together. On
/// the sample catalogue: parts that are their own mirror image 0.054 at most, left and right ones 0.101 at least.
const SLACK: f32 = 0.06;
/// The same of another part, either way: left and right parts of the sample catalogue 0.103 at most (an embedder sees the two
/// hands a little differently), 0.165 with 12 pictures.
const SLACK_OTHER: f32 = 0.17;
/// How much more two parts must be each other's mirror image than each its own: left and right 0.064 at least, others of one group
/// less than 0.
const GAIN_MIN: f32 = 0.06;

/// Part → the part that a mirrored picture of it shows; none where that is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    of_part: BTreeMap<String, String>,
}

/// A catalogue's pictures and the same mirrored, as embedded.
#[derive(Debug, Clone, Copy)]
pub struct Pictures<'a> {
    /// The part of each.
    pub parts: &'a [String],
    /// `[N, dim]` of length 1, with the mirrored ones.
    pub embedded: Embedded<'a>,
    pub dim: usize,
}

/// A part's pictures.
struct Part<'a> {
    name: &'a str,
    /// `[dim]` each.
    pictures: Vec<&'a [f32]>,
    mirrored: Vec<&'a [f32]>,
    /// Where its pictures gather, as the embedder learned it.
    learned: Option<&'a [f32]>,
}

impl Part<'_> {
    /// How like a picture is to all of this part's but the one at `but`: likeness and centre together.
    fn alike(&self, picture: &[f32], but: Option<usize>) -> f32 {
        let others = || self.pictures.iter().enumerate().filter(|(at, _)| Some(*at) != but).map(|(_, other)| *other);
        let likeness = likeness(others().map(|other| cosine(picture, other)), []);
        let own = self.learned.map(Cow::Borrowed).or_else(|| direction(others()).map(Cow::Owned));
        likeness.zip(centre(picture, own.as_deref(), None)).map_or(f32::NAN, |(likeness, centre)| likeness + centre)
    }

    /// How like the mirrored pictures of this part are to `other`, on average.
    fn towards(&self, other: &Self) -> f32 {
        mean(self.mirrored.iter().map(|mirrored| other.alike(mirrored, None)))
    }

    /// How like each of its pictures is to the others, on average.
    fn own(&self) -> f32 {
        mean(self.pictures.iter().enumerate().map(|(at, picture)| self.alike(picture, Some(at))))
    }
}

impl Mirrors {
    /// Read from a catalogue's pictures what a mirrored picture of each part shows.
    #[must_use]
    pub fn of_pictures(pictures: Pictures<'_>, groups: &Groups, centres: &Centres) -> Self {
        let parts = parts_of(pictures, centres);
        let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, part) in parts.iter().enumerate() {
            if let Some(group) = groups.of(part.name) {
                members.entry(group).or_default().push(at);
            }
        }
        let own: Vec<f32> = parts.iter().map(Part::own).collect();
        let mirrored: Vec<f32> = parts.iter().map(|part| part.towards(part)).collect();
        // Of each part the other one of its group that is plainly its mirror image, the best of them, with its gain.
        let mut others: Vec<Option<(usize, f32)>> = vec![None; parts.len()];
        for group in members.values() {
            for (at, &a) in group.iter().enumerate() {
                for &b in &group[at + 1..] {
                    let (there, back) = (parts[a].towards(&parts[b]), parts[b].towards(&parts[a]));
                    let gain = there + back - mirrored[a] - mirrored[b];
                    let is_plain = there >= own[b] - SLACK_OTHER && back >= own[a] - SLACK_OTHER && gain >= GAIN_MIN;
                    for (one, other) in [(a, b), (b, a)] {
                        if is_plain && others[one].is_none_or(|(_, best)| gain > best) {
                            others[one] = Some((other, gain));
                        }
                    }
                }
            }
        }
        let mirror = |(at, part): (usize, &Part<'_>)| {
            let other = others[at].map(|(other, _)| other);
            let image = match other {
                Some(other) => others[other].is_some_and(|(back, _)| back == at).then_some(other)?,
                None => (mirrored[at] >= own[at] - SLACK).then_some(at)?,
            };
            Some((part.name.to_owned(), parts[image].name.to_owned()))
        };
        Self { of_part: parts.iter().enumerate().filter_map(mirror).collect() }
    }

    /// What a mirrored picture of the part shows.
    #[must_use]
    pub fn of(&self, part_id: &str) -> Option<&str> {
        self.of_part.get(part_id).map(String::as_str)
    }

    /// Number of parts whose mirror image is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.of_part.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of_part.is_empty()
    }

    /// Number of parts whose mirror image is another part.
    #[must_use]
    pub fn other_count(&self) -> usize {
        self.of_part.iter().filter(|(part, mirror)| part != mirror).count()
    }

    /// # Errors
    /// When writing to memory fails, which it does not.
    pub(super) fn to_csv(&self) -> Result<Vec<u8>, MatchError> {
        TABLE.write(self.of_part.iter().map(|(part, mirror)| [part.clone(), mirror.clone()]))
    }

    /// # Errors
    /// A sentence saying what is wrong: the header, a part that stands twice, or two that are not each other's mirror image.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let of_part = TABLE.by_part(bytes, |record| Ok(record[1].to_owned()))?;
        match of_part.iter().find(|(part, mirror)| of_part.get(*mirror) != Some(*part)) {
            Some((part, mirror)) => {
                Err(format!("mirrors.csv: `{mirror}` is the mirror image of `{part}`, but not the other way round"))
            }
            None => Ok(Self { of_part }),
        }
    }
}

/// The parts that have pictures enough, by name.
fn parts_of<'a>(Pictures { parts, embedded, dim }: Pictures<'a>, centres: &'a Centres) -> Vec<Part<'a>> {
    let vectors = embedded.pictures.chunks_exact(dim).zip(embedded.mirrored.chunks_exact(dim));
    let mut of_name: BTreeMap<&str, Part<'_>> = BTreeMap::new();
    for (name, (picture, mirrored)) in parts.iter().zip(vectors) {
        let empty = || Part { name, pictures: Vec::new(), mirrored: Vec::new(), learned: centres.of(name) };
        let part = of_name.entry(name).or_insert_with(empty);
        part.pictures.push(picture);
        part.mirrored.push(mirrored);
    }
    of_name.into_values().filter(|part| part.pictures.len() >= PICTURES_MIN).collect()
}

#[cfg(test)]
mod tests {
    use super::{Centres, Embedded, Groups, Mirrors, PICTURES_MIN, Pictures};

    const DIM: usize = 12;

    fn unit(vector: &[f32]) -> Vec<f32> {
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter().map(|v| v / norm).collect()
    }

    /// What an embedder makes of a mirrored picture here: the second half of the values turns its sign.
    fn mirrored(vector: &[f32]) -> Vec<f32> {
        vector.iter().enumerate().map(|(at, value)| if at < DIM / 2 { *value } else { -value }).collect()
    }

    fn along(axis: usize, aside: usize, share: f32) -> Vec<f32> {
        let mut vector = vec![0.0; DIM];
        (vector[axis], vector[DIM / 2 + aside]) = (1.0, share);
        vector
    }

    /// The mirrors of `count` noisy pictures a part.
    fn found(parts: &[(&str, Vec<f32>)], groups: &[(&str, &str)], count: usize) -> Mirrors {
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut names, mut pictures, mut flipped) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            for (name, centre) in parts {
                let noisy: Vec<f32> = centre.iter().map(|v| v + 0.4 * (rng.f32() - 0.5)).collect();
                flipped.extend(unit(&mirrored(&noisy)));
                pictures.extend(unit(&noisy));
                names.push((*name).to_owned());
            }
        }
        let groups = Groups::new(groups.iter().map(|(part, group)| ((*part).into(), (*group).into())).collect());
        let embedded = Embedded { pictures: &pictures, mirrored: &flipped };
        Mirrors::of_pictures(Pictures { parts: &names, embedded, dim: DIM }, &groups, &Centres::default())
    }

    #[test]
    fn what_a_mirrored_picture_shows_is_read_from_the_catalogue() {
        let mut thin = along(3, 0, 0.0);
        thin[4] = 0.5;
        let parts = [
            ("brick", along(0, 0, 0.0)),
            ("left", along(1, 1, 0.8)),
            ("right", along(1, 1, -0.8)),
            ("only left", along(2, 2, 0.8)),
            ("thick", along(3, 0, 0.0)),
            ("thin", thin),
        ];
        let groups = [("left", "wing"), ("right", "wing"), ("thick", "clip"), ("thin", "clip"), ("only left", "alone")];
        let mirrors = found(&parts, &groups, 18);
        assert_eq!((mirrors.of("left"), mirrors.of("right")), (Some("right"), Some("left")));
        for own in ["brick", "thick", "thin"] {
            assert_eq!(mirrors.of(own), Some(own));
        }
        assert_eq!((mirrors.of("only left"), mirrors.of("x")), (None, None), "no other part is its mirror image");
        assert_eq!((mirrors.len(), mirrors.other_count()), (5, 2));
        assert_eq!(Mirrors::parse(&mirrors.to_csv().unwrap()).unwrap(), mirrors);
        let apart = found(&parts, &[("left", "one"), ("right", "other")], 18);
        assert_eq!((apart.of("left"), apart.of("right")), (None, None), "they are of one confusion group or not found");
        assert!(found(&parts, &groups, PICTURES_MIN - 1).is_empty(), "too few pictures say nothing");
    }

    #[test]
    fn another_part_of_the_group_is_no_mirror_image_for_want_of_a_better_one() {
        let (left, right) = (along(1, 1, 0.8), along(1, 1, -0.8));
        let (plate, other_right) = (along(1, 1, 0.0), along(2, 1, -0.8));
        let of = |parts: &[(&str, &Vec<f32>)]| {
            let parts: Vec<(&str, Vec<f32>)> = parts.iter().map(|(name, centre)| (*name, (*centre).clone())).collect();
            let groups: Vec<(&str, &str)> = parts.iter().map(|(name, _)| (*name, "wings")).collect();
            let mirrors = found(&parts, &groups, 18);
            parts.iter().map(|(name, _)| mirrors.of(name).map(str::to_owned)).collect::<Vec<_>>()
        };
        let known = |names: &[&str]| names.iter().map(|name| Some((*name).to_owned())).collect::<Vec<_>>();
        assert_eq!(of(&[("left", &left), ("plate", &plate)]), [vec![None], known(&["plate"])].concat());
        assert_eq!(of(&[("left", &left), ("other right", &other_right)]), [None, None]);
        assert_eq!(of(&[("left", &left), ("left too", &along(1, 1, 0.5))]), [None, None]);
        let three = [("left", &left), ("right", &right), ("plate", &plate)];
        assert_eq!(of(&three), known(&["right", "left", "plate"]));
        let alike = [("plate", &plate), ("plate too", &plate)];
        assert_eq!(of(&alike), known(&["plate", "plate too"]), "the same part twice");
    }

    #[test]
    fn a_file_that_contradicts_itself_is_named() {
        for (text, word) in [
            ("part,mirror\n", "header"),
            ("part_id,mirror_part_id\na,a\na,a\n", "twice"),
            ("part_id,mirror_part_id\na,b\n", "the other way round"),
            ("part_id,mirror_part_id\na,b\nb,b\n", "the other way round"),
            ("part_id,mirror_part_id\na\n", "mirrors.csv"),
        ] {
            let fault = Mirrors::parse(text.as_bytes()).unwrap_err();
            assert!(fault.contains(word), "{fault}");
        }
        assert!(Mirrors::parse(b"part_id,mirror_part_id\n").unwrap().is_empty());
    }
}
