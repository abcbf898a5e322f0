//! `shapes.csv` and `shapes.bin`: the turned views of the parts whose shape decides, those in a confusion group of two.
//!
//! The CSV lists part and number of views; the binary file holds, in that order, for each view its 24 turns, each as one
//! f32 (the sum of the edges' lengths) and 1 296 bytes (the edges in 255ths): 31 kB a view, memory-mapped.
//! Why groups of two: mirror pairs are such, and nothing else tells them apart; in larger groups on the sample catalogue
//! the shape moved no more than one query in a thousand (docs/matching.md).
//! Thread: any. Overload: none.

use std::collections::BTreeMap;

use super::MatchError;
use super::map::Map;
use super::shape::{Shape, TURNS, TurnedView, VALUES};
use super::table::Table;

const TABLE: Table<2> = Table { name: "shapes.csv", header: ["part_id", "views"] };
const TURN_BYTES: usize = size_of::<f32>() + VALUES;
const VIEW_BYTES: usize = TURNS * TURN_BYTES;

/// Collects views, then gives both files.
#[derive(Debug, Default)]
pub struct ShapesBuilder {
    views_of: BTreeMap<String, Vec<Vec<TurnedView>>>,
}

impl ShapesBuilder {
    /// Add one view of `part_id`, as [`super::turned_views`] gives it; a view of nothing is left out.
    pub fn push(&mut self, part_id: &str, turns: Vec<TurnedView>) {
        if turns.len() == TURNS {
            self.views_of.entry(part_id.to_owned()).or_default().push(turns);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.views_of.is_empty()
    }

    /// Content of the CSV file and of the binary one.
    ///
    /// # Errors
    /// When writing to memory fails, which it does not.
    pub(super) fn to_files(&self) -> Result<(Vec<u8>, Vec<u8>), MatchError> {
        let mut bytes = Vec::new();
        for views in self.views_of.values() {
            for turn in views.iter().flatten() {
                bytes.extend_from_slice(&turn.total.to_le_bytes());
                bytes.extend_from_slice(&turn.edges);
            }
        }
        let list = TABLE.write(self.views_of.iter().map(|(part, views)| [part.clone(), views.len().to_string()]))?;
        Ok((list, bytes))
    }
}

/// Part → its first view and their number, as `shapes.csv` says.
#[derive(Debug, Default)]
pub(super) struct ShapeList(BTreeMap<String, (usize, usize)>);

impl ShapeList {
    /// # Errors
    /// A sentence saying what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut first = 0_usize;
        let list = TABLE.by_part(bytes, |record| {
            let count = record[1].parse::<u32>().ok().filter(|&count| count > 0);
            let count = count.ok_or_else(|| format!("`{}` is no number of views", &record[1]))? as usize;
            first += count;
            Ok((first - count, count))
        })?;
        Ok(Self(list))
    }
}

/// The shapes of a generation.
#[derive(Debug, Default)]
pub struct Shapes {
    list: ShapeList,
    views: Option<Map>,
}

impl Shapes {
    /// # Errors
    /// A sentence, where the two files do not belong together.
    pub(super) fn new(list: ShapeList, views: Map) -> Result<Self, String> {
        let count: usize = list.0.values().map(|(_, count)| count).sum();
        if count.checked_mul(VIEW_BYTES) != Some(views.byte_count()) {
            return Err(format!("shapes.bin has {} bytes, not those of {count} views", views.byte_count()));
        }
        Ok(Self { list, views: Some(views) })
    }

    /// Number of parts whose shape is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.0.is_empty()
    }

    #[must_use]
    pub fn knows(&self, part_id: &str) -> bool {
        self.list.0.contains_key(part_id)
    }

    /// How like `shape` is to the part: its best turn of its best view, 0 to 1; `None` where the part has no shape.
    #[must_use]
    pub fn likeness(&self, shape: &Shape, part_id: &str) -> Option<f32> {
        let &(first, count) = self.list.0.get(part_id)?;
        let views = self.views.as_ref()?;
        let turns = (first * TURNS..(first + count) * TURNS).filter_map(|turn| {
            let at = turn * TURN_BYTES;
            let total = *views.values::<f32>(at, 1)?.first()?;
            Some(shape.likeness(total, views.values::<u8>(at + size_of::<f32>(), VALUES)?))
        });
        turns.reduce(f32::max)
    }
}

#[cfg(test)]
mod tests {
    use super::{Map, ShapeList, Shapes, ShapesBuilder};
    use crate::matching::shape::{Shape, turned_views};
    use crate::types::{BoundingBox, Image};

    fn picture(is_mirrored: bool) -> Image {
        let level = |x: u32, y: u32| {
            let x = if is_mirrored { 39 - x } else { x };
            if (5..35).contains(&y) && (8..9 + y * 2 / 3).contains(&x) { 200 } else { 30 }
        };
        Image::from_bgr(40, 40, (0..1600).flat_map(|at| [level(at % 40, at / 40); 3]).collect()).unwrap()
    }

    #[test]
    fn shapes_come_back_from_their_files_and_know_their_part() {
        let mut builder = ShapesBuilder::default();
        builder.push("left", turned_views(&picture(false)));
        builder.push("right", turned_views(&picture(true)));
        builder.push("none", Vec::new());
        let (list, bytes) = builder.to_files().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let shapes = Shapes::new(ShapeList::parse(&list).unwrap(), Map::open(file.path()).unwrap()).unwrap();
        assert_eq!((shapes.len(), shapes.knows("left"), shapes.knows("none")), (2, true, false));
        let item = Shape::of(&picture(true), &BoundingBox::new(11.0, 5.0, 31.0, 35.0), false);
        assert!(shapes.likeness(&item, "right") > shapes.likeness(&item, "left"));
        assert_eq!(shapes.likeness(&item, "none"), None);

        std::fs::write(file.path(), &bytes[..bytes.len() - 1]).unwrap();
        let fault = Shapes::new(ShapeList::parse(&list).unwrap(), Map::open(file.path()).unwrap()).unwrap_err();
        assert!(fault.contains("2 views"), "{fault}");
    }

    #[test]
    fn a_damaged_list_is_named() {
        for (text, word) in [
            ("part,views\n", "header"),
            ("part_id,views\na,0\n", "`0`"),
            ("part_id,views\na,-3\n", "`-3`"),
            ("part_id,views\na,1\na,2\n", "twice"),
            ("part_id,views\na\n", "shapes.csv"),
        ] {
            let fault = ShapeList::parse(text.as_bytes()).unwrap_err();
            assert!(fault.contains(word), "{text:?}: {fault}");
        }
    }
}
