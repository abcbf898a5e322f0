//! `ids.bin`: what each template of a generation is, read in place. Row = row of the vector in L2.
//!
//! ```text
//! "LOUPEIDS", u32 version, u32 rows, u32 parts, u32 colours, u32 views, u32 hot, u32 covers, zeros to byte 64;
//! u32 × rows part, u32 × rows colour (4294967295: none), u32 × rows view; u32 × hot row of each template of L1, ascending;
//! u32 × (parts + colours + views + 1): where each name begins in what follows; names, UTF-8
//! ```
//! Invariants: names are stored once, and opening reads the header alone, so a million templates cost no time and no
//! anonymous memory. What a row names is checked when it is read: a number beyond its table names nothing.
//! Thread: any number at once. Overload: none.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use super::MatchError;
use super::delta::LEARNED_VIEW_PREFIX;
use super::map::Map;

const MAGIC: &[u8; 8] = b"LOUPEIDS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const NO_COLOR: u32 = u32::MAX;

/// What one template shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// Catalogue number; not empty.
    pub part_id: String,
    pub color_id: Option<String>,
    /// Name of the viewpoint; may be empty.
    pub view: String,
}

/// A [`Template`] as it stands in an opened index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateRef<'a> {
    pub part_id: &'a str,
    pub color_id: Option<&'a str>,
    pub view: &'a str,
}

impl TemplateRef<'_> {
    /// A copy that outlives the index.
    #[must_use]
    pub fn to_template(self) -> Template {
        Template {
            part_id: self.part_id.to_owned(),
            color_id: self.color_id.map(str::to_owned),
            view: self.view.to_owned(),
        }
    }
}

/// Numbers names in the order they come in.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    fn number_of(&mut self, name: String) -> u32 {
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let names = &mut self.names;
        *self.numbers.entry(name).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        })
    }
}

/// Collects templates and writes them down.
#[derive(Debug, Default)]
pub struct IdsBuilder {
    parts: Names,
    colors: Names,
    views: Names,
    /// Part, colour and view of each template.
    rows: Vec<[u32; 3]>,
}

impl IdsBuilder {
    /// # Errors
    /// When the part has no name.
    pub fn push(&mut self, template: Template) -> Result<(), MatchError> {
        if template.part_id.is_empty() {
            return Err(MatchError::BadTemplate {
                position: self.rows.len(),
                fault: "the part has no number".to_owned(),
            });
        }
        let color = template.color_id.map_or(NO_COLOR, |color| self.colors.number_of(color));
        let row = [self.parts.number_of(template.part_id), color, self.views.number_of(template.view)];
        self.rows.push(row);
        Ok(())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub fn part_count(&self) -> usize {
        self.parts.names.len()
    }

    /// Part number of each template.
    #[must_use]
    pub fn parts(&self) -> Vec<u32> {
        self.rows.iter().map(|row| row[0]).collect()
    }

    /// Every template in order.
    pub fn templates(&self) -> impl Iterator<Item = Template> {
        self.rows.iter().map(|&[part, color, view]| Template {
            part_id: self.parts.names[part as usize].clone(),
            color_id: (color != NO_COLOR).then(|| self.colors.names[color as usize].clone()),
            view: self.views.names[view as usize].clone(),
        })
    }

    /// Put the templates into another order: row `i` becomes what row `order[i]` was.
    pub fn reorder(&mut self, order: &[u32]) {
        self.rows = order.iter().map(|&row| self.rows[row as usize]).collect();
    }

    /// The file's bytes with these rows, ascending, in L1.
    #[must_use]
    pub fn to_bytes(&self, hot: &[u32]) -> Vec<u8> {
        let tables = [&self.parts.names, &self.colors.names, &self.views.names];
        let counts = [self.rows.len(), tables[0].len(), tables[1].len(), tables[2].len(), hot.len()];
        let mut seen = vec![false; self.part_count()];
        hot.iter().for_each(|&row| seen[self.rows[row as usize][0] as usize] = true);
        let covers = u32::from(seen.into_iter().all(|part| part));
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.rows.len() * 12 + hot.len() * 4);
        let mut put = |value: u32| bytes.extend_from_slice(&value.to_le_bytes());
        put(u32::from_le_bytes([MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3]]));
        put(u32::from_le_bytes([MAGIC[4], MAGIC[5], MAGIC[6], MAGIC[7]]));
        put(VERSION);
        // The builder holds at most `limits::TEMPLATES_MAX` templates, and no more names than those.
        counts.iter().for_each(|&count| put(u32::try_from(count).unwrap_or(u32::MAX)));
        put(covers);
        (9..HEADER_BYTES / 4).for_each(|_| put(0));
        for column in 0..3 {
            self.rows.iter().for_each(|row| put(row[column]));
        }
        hot.iter().for_each(|&row| put(row));
        let mut end = 0_u32;
        put(end);
        for name in tables.into_iter().flatten() {
            end = end.saturating_add(u32::try_from(name.len()).unwrap_or(u32::MAX));
            put(end);
        }
        tables.into_iter().flatten().for_each(|name| bytes.extend_from_slice(name.as_bytes()));
        bytes
    }
}

/// All templates of an opened generation.
#[derive(Debug)]
pub struct TemplateIds {
    map: Map,
    rows: usize,
    /// Parts, colours, views.
    names: [usize; 3],
    hot: usize,
    covers: bool,
    /// Made when first asked for: only searches with a delta need them.
    numbers: OnceLock<HashMap<String, u32>>,
    /// Views of templates that came from reviews.
    learned: OnceLock<HashSet<String>>,
}

impl TemplateIds {
    /// Map the file at `path`.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, String> {
        let map = Map::open(path).map_err(|error| format!("ids.bin cannot be mapped: {error}"))?;
        let short = || "ids.bin is cut short".to_owned();
        if map.values::<u8>(0, MAGIC.len()).ok_or_else(short)? != MAGIC {
            return Err("ids.bin does not begin like a table of templates".to_owned());
        }
        let header = map.values::<u32>(0, HEADER_BYTES / 4).ok_or_else(short)?;
        if header[2] != VERSION || header[3] == 0 {
            return Err(format!("ids.bin has version {} and {} rows", header[2], header[3]));
        }
        let at = |index: usize| header[index] as usize;
        let (rows, names, hot, covers) = (at(3), [at(4), at(5), at(6)], at(7), header[8] != 0);
        let ids = Self { map, rows, names, hot, covers, numbers: OnceLock::new(), learned: OnceLock::new() };
        let hot_rows = ids.map.values::<u32>(ids.hot_at(), hot).ok_or_else(short)?;
        if hot_rows.windows(2).any(|pair| pair[0] >= pair[1]) || hot_rows.last().is_some_and(|&at| at as usize >= rows)
        {
            return Err("the hot rows of ids.bin are not ascending rows".to_owned());
        }
        let ends = ids.ends().ok_or_else(short)?;
        let text_bytes = ends.last().map_or(0, |&end| end as usize);
        ids.map.values::<u8>(ids.text_at(), text_bytes).ok_or_else(short)?;
        Ok(ids)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    #[must_use]
    pub fn part_count(&self) -> usize {
        self.names[0]
    }

    /// The template in `row`, and its part's number.
    #[must_use]
    pub fn get(&self, row: u32) -> Option<(TemplateRef<'_>, u32)> {
        let part = *self.parts().get(row as usize)?;
        let view = *self.column(2).get(row as usize)?;
        let color_id = self.color_id(row);
        Some((TemplateRef { part_id: self.name(0, part)?, color_id, view: self.name(2, view)? }, part))
    }

    /// The colour that the template in `row` shows, where it has one.
    #[must_use]
    pub fn color_id(&self, row: u32) -> Option<&str> {
        let color = *self.column(1).get(row as usize)?;
        if color == NO_COLOR { None } else { self.name(1, color) }
    }

    /// Number of a part; `None` when it has no template here.
    #[must_use]
    pub fn number_of(&self, part_id: &str) -> Option<u32> {
        let numbers = self
            .numbers
            .get_or_init(|| self.names_of(0).zip(0..).map(|(name, number)| (name.to_owned(), number)).collect());
        numbers.get(part_id).copied()
    }

    /// Whether a template that came from a review is here, by its view's name.
    #[must_use]
    pub fn has_learned(&self, view: &str) -> bool {
        let learned = self.learned.get_or_init(|| {
            self.names_of(2).filter(|view| view.starts_with(LEARNED_VIEW_PREFIX)).map(str::to_owned).collect()
        });
        learned.contains(view)
    }

    /// Catalogue number of a part.
    #[must_use]
    pub fn part_name(&self, part: u32) -> Option<&str> {
        self.name(0, part)
    }

    /// Part number of each template.
    #[must_use]
    pub fn parts(&self) -> &[u32] {
        self.column(0)
    }

    /// Rows of the templates in L1, ascending; row `i` of `l1.vectors` is `hot()[i]`.
    #[must_use]
    pub fn hot(&self) -> &[u32] {
        self.map.values(self.hot_at(), self.hot).unwrap_or(&[])
    }

    #[must_use]
    pub fn is_hot(&self, row: u32) -> bool {
        self.hot().binary_search(&row).is_ok()
    }

    /// Whether L1 shows every part, so that its margin is one to the best *other part* at all.
    #[must_use]
    pub fn hot_covers_all_parts(&self) -> bool {
        self.covers
    }

    /// Every row as CSV with the columns `part_id,color_id,view,hot`, for people.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_csv(&self, out: impl std::io::Write) -> std::io::Result<()> {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(["part_id", "color_id", "view", "hot"])?;
        for row in 0..u32::try_from(self.rows).unwrap_or(u32::MAX) {
            let Some((template, _)) = self.get(row) else { continue };
            let hot = if self.is_hot(row) { "1" } else { "0" };
            writer.write_record([template.part_id, template.color_id.unwrap_or(""), template.view, hot])?;
        }
        writer.flush()
    }

    fn column(&self, column: usize) -> &[u32] {
        self.map.values(HEADER_BYTES + column * self.rows * 4, self.rows).unwrap_or(&[])
    }

    fn hot_at(&self) -> usize {
        HEADER_BYTES + self.rows * 12
    }

    fn ends_at(&self) -> usize {
        self.hot_at() + self.hot * 4
    }

    fn ends(&self) -> Option<&[u32]> {
        self.map.values(self.ends_at(), self.names.iter().sum::<usize>() + 1)
    }

    fn text_at(&self) -> usize {
        self.ends_at() + (self.names.iter().sum::<usize>() + 1) * 4
    }

    /// Names of a table in order; one that cannot be read is empty.
    fn names_of(&self, table: usize) -> impl Iterator<Item = &str> {
        let count = u32::try_from(self.names[table]).unwrap_or(u32::MAX);
        (0..count).map(move |number| self.name(table, number).unwrap_or(""))
    }

    fn name(&self, table: usize, number: u32) -> Option<&str> {
        if number as usize >= self.names[table] {
            return None;
        }
        let at = self.names[..table].iter().sum::<usize>() + number as usize;
        let ends = self.ends()?;
        let (start, end) = (*ends.get(at)? as usize, *ends.get(at + 1)? as usize);
        std::str::from_utf8(self.map.values(self.text_at() + start, end.checked_sub(start)?)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{IdsBuilder, Template, TemplateIds, TemplateRef};

    fn template(part: &str, color: Option<&str>) -> Template {
        Template { part_id: part.to_owned(), color_id: color.map(str::to_owned), view: "앞".to_owned() }
    }

    fn opened(bytes: &[u8]) -> Result<TemplateIds, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        TemplateIds::open(file.path())
    }

    fn sample() -> IdsBuilder {
        let mut builder = IdsBuilder::default();
        for template in [template("a,\"b", Some("71")), template("c", None), template("a,\"b", None)] {
            builder.push(template).unwrap();
        }
        builder
    }

    #[test]
    fn every_row_comes_back_with_its_colour_or_none() {
        let ids = opened(&sample().to_bytes(&[0, 2])).unwrap();
        assert_eq!((ids.len(), ids.part_count(), ids.parts(), ids.hot()), (3, 2, &[0, 1, 0][..], &[0, 2][..]));
        assert!(!ids.hot_covers_all_parts(), "part c is not hot");
        assert!(ids.is_hot(2) && !ids.is_hot(1));
        assert_eq!(ids.get(0).unwrap(), (TemplateRef { part_id: "a,\"b", color_id: Some("71"), view: "앞" }, 0));
        assert_eq!(ids.get(1).unwrap(), (TemplateRef { part_id: "c", color_id: None, view: "앞" }, 1));
        assert_eq!(ids.get(3), None);
        assert_eq!((ids.number_of("c"), ids.number_of("d")), (Some(1), None));
        assert!(!ids.has_learned("앞"));
        let mut csv = Vec::new();
        ids.write_csv(&mut csv).unwrap();
        let text = String::from_utf8(csv).unwrap();
        assert_eq!(text.lines().nth(1), Some("\"a,\"\"b\",71,앞,1"), "{text}");
    }

    #[test]
    fn another_order_moves_the_rows() {
        let mut builder = sample();
        builder.reorder(&[1, 2, 0]);
        let ids = opened(&builder.to_bytes(&[0, 1])).unwrap();
        assert_eq!(ids.get(0).unwrap().0.part_id, "c");
        assert_eq!(ids.get(2).unwrap().0.color_id, Some("71"));
        assert!(ids.hot_covers_all_parts());
    }

    #[test]
    fn unnamed_parts_and_files_cut_short_are_refused() {
        assert!(sample().push(template("", None)).is_err());
        let bytes = sample().to_bytes(&[0, 2]);
        for length in 0..bytes.len() {
            assert!(opened(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn flipped_bits_never_lead_out_of_the_file() {
        let bytes = sample().to_bytes(&[0, 2]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(ids) = opened(&flipped) {
                for row in 0..4 {
                    std::hint::black_box((ids.get(row), ids.is_hot(row)));
                }
            }
        }
    }
}
