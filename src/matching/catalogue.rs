//! The CSV files a catalogue comes in: `parts.csv`, `templates.csv`, `queries.csv`.
//!
//! Columns are found by name; others are ignored. Every bad row is reported with its line, all at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::limits::VIEWS_PER_ITEM_MAX;
use crate::measure::NamedColour;
use crate::types::{BoundingBox, csv_separator, csv_text};

/// Bad rows listed in one message; the rest are counted.
const FAULTS_SHOWN_MAX: usize = 50;

/// What is wrong with a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} has {} fault(s):\n{}", path.display(), faults.len(), shown(faults))]
pub struct CatalogueError {
    pub path: PathBuf,
    /// One sentence each, most with a line number.
    pub faults: Vec<String>,
}

/// One row of `templates.csv`.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateRow {
    pub line: u64,
    /// Relative to the root folder.
    pub file: PathBuf,
    pub part_num: String,
    pub color_id: Option<String>,
    pub view: String,
}

/// One row of `queries.csv`.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryRow {
    pub line: u64,
    /// Relative to the root folder.
    pub file: PathBuf,
    pub part_num: String,
    /// The part's box, px.
    pub bbox: BoundingBox,
    /// The camera's scale; `None` where the file does not say.
    pub px_per_mm: Option<f32>,
    /// Rows of one item are views of it; `None` where the file does not say.
    pub item: Option<String>,
    pub color_id: Option<String>,
}

/// Part numbers of `parts.csv`, each once.
///
/// # Errors
/// Every fault of the file.
pub fn read_parts(path: &Path) -> Result<HashSet<String>, CatalogueError> {
    let mut seen = HashSet::new();
    read(path, &["part_num"], |row| {
        let part = row.text("part_num")?;
        if seen.insert(part.clone()) { Ok(()) } else { Err(format!("part `{part}` stands twice")) }
    })?;
    Ok(seen)
}

/// Confusion group of each part of `parts.csv` that is in one; none where the file has no column `confusion_group`.
///
/// # Errors
/// Every fault of the file.
pub fn read_groups(path: &Path) -> Result<BTreeMap<String, String>, CatalogueError> {
    let rows = read(path, &["part_num"], |row| Ok((row.text("part_num")?, row.field("confusion_group").to_owned())))?;
    Ok(rows.into_iter().filter(|(_, group)| !group.is_empty()).collect())
}

/// True sides of each part of `parts.csv`, mm, from the columns `size_x_mm`, `size_y_mm` and `size_z_mm`, or `_ldu`
/// (0.4 mm); y is upright. Parts without a size are left out.
///
/// # Errors
/// Every fault of the file.
pub fn read_sizes(path: &Path) -> Result<BTreeMap<String, [f32; 3]>, CatalogueError> {
    const MM_PER_LDU: f32 = 0.4;
    let rows = read(path, &["part_num"], |row| {
        let side = |axis: &str| match row.positive(&format!("size_{axis}_mm"))? {
            Some(mm) => Ok(Some(mm)),
            None => Ok::<_, String>(row.positive(&format!("size_{axis}_ldu"))?.map(|ldu| ldu * MM_PER_LDU)),
        };
        let sides = (side("x")?, side("y")?, side("z")?);
        let sides = if let (Some(x), Some(y), Some(z)) = sides { Some([x, y, z]) } else { None };
        Ok((row.text("part_num")?, sides))
    })?;
    Ok(rows.into_iter().filter_map(|(part, sides)| Some((part, sides?))).collect())
}

/// Rows of `templates.csv`, whose parts must all be in `parts`.
///
/// # Errors
/// Every fault of the file.
pub fn read_templates(path: &Path, parts: &HashSet<String>) -> Result<Vec<TemplateRow>, CatalogueError> {
    let mut seen = HashSet::new();
    read(path, &["file", "part_num", "color_id", "view"], |row| {
        let part_num = row.text("part_num")?;
        if !parts.contains(&part_num) {
            return Err(format!("part `{part_num}` is not in parts.csv"));
        }
        let color_id = Some(row.field("color_id")).filter(|color| !color.is_empty()).map(str::to_owned);
        let file = row.file()?;
        if !seen.insert(file.clone()) {
            return Err(format!("`{}` stands twice", file.display()));
        }
        Ok(TemplateRow { line: row.line, file, part_num, color_id, view: row.field("view").to_owned() })
    })
}

/// The colours of a CSV file: the column `color_id` (or `ldraw_code`), and `rgb_hex` as six hexadecimal digits.
///
/// # Errors
/// Every fault of the file.
pub fn read_colours(path: &Path) -> Result<Vec<NamedColour>, CatalogueError> {
    let mut seen = HashSet::new();
    read(path, &["rgb_hex"], |row| {
        let id = row.text("color_id").or_else(|_| row.text("ldraw_code"));
        let id = id.map_err(|_| "`color_id` is empty or missing".to_owned())?;
        let text = row.text("rgb_hex")?;
        let rgb = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == 6);
        let [_, red, green, blue] =
            rgb.ok_or_else(|| format!("`rgb_hex` is `{text}`, not six hexadecimal digits"))?.to_be_bytes();
        if !seen.insert(id.clone()) {
            return Err(format!("colour `{id}` stands twice"));
        }
        Ok(NamedColour { id, rgb: [red, green, blue] })
    })
}

/// Rows of `queries.csv`. A column `item`, where there is one, says which rows are views of one item.
///
/// # Errors
/// Every fault of the file.
pub fn read_queries(path: &Path) -> Result<Vec<QueryRow>, CatalogueError> {
    let mut items: HashMap<String, (String, usize)> = HashMap::new();
    read(path, &["file", "part_num", "x1", "y1", "x2", "y2"], |row| {
        let (x1, y1, x2, y2) = (row.number("x1")?, row.number("y1")?, row.number("x2")?, row.number("y2")?);
        if x1 < 0.0 || y1 < 0.0 || x2 <= x1 || y2 <= y1 {
            return Err(format!("the box {x1},{y1},{x2},{y2} is empty or begins outside the picture"));
        }
        let bbox = BoundingBox::new(x1, y1, x2, y2);
        let (px_per_mm, part_num) = (row.positive("px_per_mm")?, row.text("part_num")?);
        let item = row.text("item").ok();
        if let Some(item) = &item {
            let (part, views) = items.entry(item.clone()).or_insert_with(|| (part_num.clone(), 0));
            *views += 1;
            if *part != part_num {
                return Err(format!("item `{item}` is part `{part}` in another row; an item is of one part"));
            }
            if *views > VIEWS_PER_ITEM_MAX {
                return Err(format!("item `{item}` has more than {VIEWS_PER_ITEM_MAX} views"));
            }
        }
        let color_id = row.text("color_id").ok();
        Ok(QueryRow { line: row.line, file: row.file()?, part_num, bbox, px_per_mm, item, color_id })
    })
}

/// One record, its fields by column name.
struct Row<'a> {
    line: u64,
    record: &'a csv::StringRecord,
    columns: &'a BTreeMap<String, usize>,
}

impl Row<'_> {
    fn field(&self, column: &str) -> &str {
        self.columns.get(column).and_then(|&index| self.record.get(index)).unwrap_or("").trim()
    }

    fn text(&self, column: &str) -> Result<String, String> {
        Some(self.field(column).to_owned())
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("`{column}` is empty"))
    }

    /// A number above 0 of a column that may be missing or empty.
    fn positive(&self, column: &str) -> Result<Option<f32>, String> {
        if self.field(column).is_empty() {
            return Ok(None);
        }
        let number = self.number(column)?;
        if number > 0.0 { Ok(Some(number)) } else { Err(format!("`{column}` is {number}, it must be above 0")) }
    }

    fn number(&self, column: &str) -> Result<f32, String> {
        let text = self.field(column);
        let number = text.parse::<f32>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| format!("`{column}` is `{text}`, not a number"))
    }

    /// A path that stays below the root folder.
    fn file(&self) -> Result<PathBuf, String> {
        let path = PathBuf::from(self.text("file")?);
        let is_inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if is_inside { Ok(path) } else { Err(format!("`file` is `{}`, not a path below the root", path.display())) }
    }
}

fn read<T>(
    path: &Path,
    wanted: &[&'static str],
    mut parse: impl FnMut(&Row<'_>) -> Result<T, String>,
) -> Result<Vec<T>, CatalogueError> {
    let fail = |faults: Vec<String>| CatalogueError { path: path.to_owned(), faults };
    let bytes = std::fs::read(path).map_err(|error| fail(vec![error.to_string()]))?;
    let text = csv_text(&bytes).map_err(|error| fail(vec![format!("line {}: {error}", error.line)]))?;
    let separator = csv_separator(text.lines().next().unwrap_or(""));
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| fail(vec![error.to_string()]))?.clone();
    let mut columns = BTreeMap::new();
    for (index, header) in headers.iter().enumerate() {
        let name = header.trim();
        // As the catalogue's files call it (`loupe catalog import`).
        let name = if name == "part_number" { "part_num" } else { name };
        columns.entry(name.to_owned()).or_insert(index);
    }
    let mut faults = Vec::new();
    for &column in wanted {
        if !columns.contains_key(column) {
            faults.push(format!("line 1: column `{column}` is missing"));
        }
    }
    if !faults.is_empty() {
        return Err(fail(faults));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                match parse(&Row { line, record: &record, columns: &columns }) {
                    Ok(row) => rows.push(row),
                    Err(fault) => faults.push(format!("line {line}: {fault}")),
                }
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                faults.push(format!("line {line}: {error}"));
                // A broken file never ends: what could not be read once is not tried again.
                if matches!(error.kind(), csv::ErrorKind::Io(_)) {
                    break;
                }
            }
        }
    }
    if rows.is_empty() && faults.is_empty() {
        faults.push("there are no rows".to_owned());
    }
    if faults.is_empty() { Ok(rows) } else { Err(fail(faults)) }
}

fn shown(faults: &[String]) -> String {
    let mut lines: Vec<String> = faults.iter().take(FAULTS_SHOWN_MAX).map(|fault| format!("  {fault}")).collect();
    if faults.len() > FAULTS_SHOWN_MAX {
        lines.push(format!("  … and {} more", faults.len() - FAULTS_SHOWN_MAX));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{read_groups, read_parts, read_queries, read_sizes, read_templates};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn every_bad_row_is_named_with_its_line() {
        let csv = file(
            "file,part_num,x1,y1,x2,y2\nq.jpg,3005,1,2,3,4\n,3005,1,2,3,4\nq.jpg,3005,a,2,3,4\n\
                        q.jpg,3005,5,2,3,4\n../q.jpg,3005,1,2,3,4\nq.jpg,3005,1\nq.jpg,,1,2,3,NaN\n",
        );
        let error = read_queries(csv.path()).unwrap_err();
        let lines: Vec<&str> = error.faults.iter().map(|fault| fault.split(':').next().unwrap()).collect();
        assert_eq!(lines, ["line 3", "line 4", "line 5", "line 6", "line 7", "line 8"], "{error}");
        assert!(error.to_string().contains("`x1` is `a`"), "{error}");
    }

    #[test]
    fn views_of_one_item_are_of_one_part_and_not_too_many() {
        let head = "file,part_num,x1,y1,x2,y2,item\n";
        let rows = read_queries(file(&format!("{head}a.jpg,3005,1,2,3,4,x\nb.jpg,3005,1,2,3,4,\n")).path()).unwrap();
        assert_eq!(rows.into_iter().map(|row| row.item).collect::<Vec<_>>(), [Some("x".to_owned()), None]);
        let mixed = format!("{head}a.jpg,3005,1,2,3,4,x\nb.jpg,3004,1,2,3,4,x\n");
        let error = read_queries(file(&mixed).path()).unwrap_err();
        assert_eq!(error.faults, ["line 3: item `x` is part `3005` in another row; an item is of one part"]);
        let many = format!("{head}{}", "a.jpg,3005,1,2,3,4,x\n".repeat(17));
        assert!(read_queries(file(&many).path()).unwrap_err().faults[0].contains("more than 16 views"));
    }

    #[test]
    fn unknown_parts_missing_columns_and_empty_files_are_refused() {
        let parts = HashSet::from(["3005".to_owned()]);
        let csv = file("file,part_num,color_id,view\na.png,3005,,0\nb.png,9999,71,0\na.png,3005,,1\n");
        let error = read_templates(csv.path(), &parts).unwrap_err();
        assert_eq!(error.faults, ["line 3: part `9999` is not in parts.csv", "line 4: `a.png` stands twice"]);
        let error = read_templates(file("file,view\na,0\n").path(), &parts).unwrap_err();
        assert_eq!(error.faults.len(), 2, "{error}");
        assert!(read_parts(file("part_num\n3005\n3005\n").path()).unwrap_err().faults[0].contains("twice"));
        assert_eq!(read_parts(file("part_num\n").path()).unwrap_err().faults, ["there are no rows"]);
        let grouped = file("part_num,confusion_group\n3005,left\n3004,\n3003,left\n");
        let groups: Vec<_> = read_groups(grouped.path()).unwrap().into_iter().collect();
        assert_eq!(groups, [("3003".to_owned(), "left".to_owned()), ("3005".to_owned(), "left".to_owned())]);
        assert!(read_groups(file("part_num\n3005\n").path()).unwrap().is_empty());
        assert!(read_parts(std::path::Path::new("missing.csv")).is_err());
    }

    #[test]
    fn files_as_spreadsheets_write_them_are_read_and_what_is_no_utf8_says_where() {
        let csv = file("\u{feff}part_number;size_x_mm;size_y_mm;size_z_mm\r\n3005;8;9.6;8\r\n");
        assert_eq!(read_parts(csv.path()).unwrap().into_iter().collect::<Vec<_>>(), ["3005"]);
        assert_eq!(read_sizes(csv.path()).unwrap()["3005"], [8.0, 9.6, 8.0]);
        let decimal = file("part_num;size_x_mm\n3005;9,6\n");
        assert!(read_sizes(decimal.path()).unwrap_err().faults[0].contains("`size_x_mm` is `9,6`"));
        let latin = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(latin.path(), b"part_num,name\n3005,Br\xFCcke\n").unwrap();
        let error = read_parts(latin.path()).unwrap_err();
        assert!(error.faults[0].starts_with("line 2: is not UTF-8"), "{error}");
    }
}
