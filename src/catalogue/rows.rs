//! Rows with named fields, out of CSV or JSON, with the place each stands at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::Fault;
use crate::limits::{CATALOGUE_FIELD_CHARS_MAX, CATALOGUE_FILE_BYTES_MAX};
use crate::types::{csv_separator, csv_text};

/// What a set of rows describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Categories,
    Colors,
    Parts,
    Relations,
    Policies,
    Kits,
}

/// Other names of a column.
const ALIASES: &[(&str, &str)] = &[
    ("part_num", "part_number"),
    ("part_id", "part_number"),
    ("part", "part_number"),
    ("name", "name_en"),
    ("category", "category_code"),
    ("parent", "parent_code"),
    ("size_x_ldu", "length_ldu"),
    ("size_y_ldu", "height_ldu"),
    ("size_z_ldu", "width_ldu"),
    ("size_x_mm", "length_mm"),
    ("size_y_mm", "height_mm"),
    ("size_z_mm", "width_mm"),
    ("ldraw_code", "color_id"),
    ("colour_id", "color_id"),
    ("rgb_hex", "rgb"),
    ("part_a", "part_number"),
    ("part_b", "related_part_number"),
    ("mean_cosine_same_view", "similarity"),
    ("kit", "kit_code"),
    ("kit_name", "name_en"),
    ("qty", "quantity"),
    ("spare", "is_spare"),
    ("alternate", "alternate_group"),
    ("subject_id", "subject"),
];

/// One row; fields by the names that this program uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub file: String,
    /// `line 5` or `parts[3]`.
    pub place: String,
    pub fields: BTreeMap<String, String>,
}

/// Rows of one kind.
#[derive(Debug, Clone)]
pub struct Table {
    pub kind: Kind,
    pub rows: Vec<Row>,
    /// Columns that nothing here reads.
    pub ignored: BTreeSet<String>,
}

/// Columns that each kind needs, and those that it may have.
fn columns(kind: Kind) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        Kind::Categories => (&["code", "name_en"], &["name_ko", "parent_code"]),
        Kind::Colors => (&["color_id", "name_en", "rgb"], &["name_ko", "is_transparent"]),
        Kind::Parts => (
            &["part_number", "name_en"],
            &[
                "name_ko",
                "category_code",
                "confusion_group",
                "length_ldu",
                "width_ldu",
                "height_ldu",
                "length_mm",
                "width_mm",
                "height_mm",
                "weight_g",
            ],
        ),
        Kind::Relations => (&["part_number", "related_part_number", "similarity"], &[]),
        Kind::Policies => (&["subject_kind", "subject", "security_level"], &["allowed_groups"]),
        Kind::Kits => {
            (&["kit_code", "part_number", "quantity"], &["name_en", "color_id", "is_spare", "alternate_group"])
        }
    }
}

fn kind_of(names: &BTreeSet<String>) -> Option<Kind> {
    let has = |name: &str| names.contains(name);
    Some(match () {
        () if has("kit_code") => Kind::Kits,
        () if has("related_part_number") => Kind::Relations,
        () if has("subject_kind") => Kind::Policies,
        () if has("part_number") => Kind::Parts,
        () if has("color_id") || has("rgb") => Kind::Colors,
        () if has("code") => Kind::Categories,
        () => return None,
    })
}

fn canonical(header: &str) -> String {
    let name = header.trim_start_matches('\u{feff}').trim().to_ascii_lowercase();
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| (*own).to_owned())
}

/// Read a `.csv` or `.json` file.
///
/// # Errors
/// Every fault of its form.
pub fn read_file(path: &Path) -> Result<Vec<Table>, Vec<Fault>> {
    let file = path.display().to_string();
    let fault = |place: &str, message: String| vec![Fault { file: file.clone(), place: place.to_owned(), message }];
    let size = std::fs::metadata(path).map_err(|error| fault("", format!("cannot be read: {error}")))?.len();
    if size > CATALOGUE_FILE_BYTES_MAX {
        return Err(fault("", format!("has {size} bytes, more than {CATALOGUE_FILE_BYTES_MAX}; split it")));
    }
    let bytes = std::fs::read(path).map_err(|error| fault("", format!("cannot be read: {error}")))?;
    let text = csv_text(&bytes).map_err(|error| fault(&format!("line {}", error.line), error.to_string()))?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        read_json(&file, text)
    } else {
        read_csv(&file, text).map(|table| vec![table])
    }
}

fn read_csv(file: &str, text: &str) -> Result<Table, Vec<Fault>> {
    let fault = |line: u64, message: String| Fault { file: file.to_owned(), place: format!("line {line}"), message };
    let separator = csv_separator(text.lines().next().unwrap_or(""));
    let mut reader = csv::ReaderBuilder::new().flexible(true).delimiter(separator).from_reader(text.as_bytes());
    let headers: Vec<String> = match reader.headers() {
        Ok(headers) => headers.iter().map(canonical).collect(),
        Err(error) => return Err(vec![fault(1, error.to_string())]),
    };
    let mut faults = Vec::new();
    let mut names = BTreeSet::new();
    for name in &headers {
        if !names.insert(name.clone()) {
            faults.push(fault(1, format!("column `{name}` stands twice (some names mean the same)")));
        }
    }
    let kind = check_columns(&names).unwrap_or_else(|message| {
        faults.push(fault(1, message));
        Kind::Parts
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                faults.push(fault(error.position().map_or(0, csv::Position::line), error.to_string()));
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        if record.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        if record.len() != headers.len() {
            let message =
                format!("has {} fields, the header {}; is a comma or a quote missing?", record.len(), headers.len());
            faults.push(fault(line, message));
            continue;
        }
        if let Some(at) = record.iter().position(|field| field.chars().count() > CATALOGUE_FIELD_CHARS_MAX) {
            let message =
                format!("`{}` has over {CATALOGUE_FIELD_CHARS_MAX} characters; is a quote missing?", headers[at]);
            faults.push(fault(line, message));
            continue;
        }
        let fields = headers.iter().cloned().zip(record.iter().map(|field| field.trim().to_owned())).collect();
        rows.push(Row { file: file.to_owned(), place: format!("line {line}"), fields });
    }
    if rows.is_empty() && faults.is_empty() {
        faults.push(fault(1, "there are no rows below the header".to_owned()));
    }
    if faults.is_empty() { Ok(Table { kind, rows, ignored: ignored(kind, &names) }) } else { Err(faults) }
}

/// The kind that the columns mean, when none it needs is missing.
fn check_columns(names: &BTreeSet<String>) -> Result<Kind, String> {
    let listed = names.iter().cloned().collect::<Vec<_>>().join(", ");
    let kind = kind_of(names).ok_or_else(|| {
        format!("the columns ({listed}) are of no catalogue file; parts need part_number and name_en")
    })?;
    let missing: Vec<&str> = columns(kind).0.iter().filter(|name| !names.contains(**name)).copied().collect();
    if missing.is_empty() {
        return Ok(kind);
    }
    Err(format!("column {} is missing; found {listed}", missing.join(", ")))
}

fn ignored(kind: Kind, names: &BTreeSet<String>) -> BTreeSet<String> {
    let (needed, optional) = columns(kind);
    names
        .iter()
        .filter(|name| !needed.contains(&name.as_str()) && !optional.contains(&name.as_str()))
        .cloned()
        .collect()
}

/// A list of objects, or an object of such lists.
fn read_json(file: &str, text: &str) -> Result<Vec<Table>, Vec<Fault>> {
    let fault = |place: &str, message: String| Fault { file: file.to_owned(), place: place.to_owned(), message };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| vec![fault(&format!("line {}", error.line()), format!("is no JSON: {error}"))])?;
    let lists: Vec<(String, Vec<Value>)> = match value {
        Value::Array(list) => vec![(String::new(), list)],
        Value::Object(members) => {
            let mut lists = Vec::new();
            for (name, member) in members {
                match member {
                    Value::Array(list) => lists.push((name, list)),
                    _ => return Err(vec![fault(&name, "is no list".to_owned())]),
                }
            }
            lists
        }
        _ => return Err(vec![fault("", "is neither a list nor an object of lists".to_owned())]),
    };
    let (mut tables, mut faults) = (Vec::new(), Vec::new());
    for (name, list) in lists {
        let mut rows = Vec::new();
        for (index, entry) in list.into_iter().enumerate() {
            let place = format!("{name}[{index}]");
            match json_row(entry) {
                Ok(fields) => rows.push(Row { file: file.to_owned(), place, fields }),
                Err(message) => faults.push(fault(&place, message)),
            }
        }
        let names: BTreeSet<String> = rows.iter().flat_map(|row| row.fields.keys().cloned()).collect();
        if rows.is_empty() {
            continue;
        }
        match check_columns(&names) {
            Ok(kind) => tables.push(Table { kind, rows, ignored: ignored(kind, &names) }),
            Err(message) => faults.push(fault(&name, message)),
        }
    }
    if tables.is_empty() && faults.is_empty() {
        faults.push(fault("", "there are no rows".to_owned()));
    }
    if faults.is_empty() { Ok(tables) } else { Err(faults) }
}

fn json_row(entry: Value) -> Result<BTreeMap<String, String>, String> {
    let Value::Object(members) = entry else { return Err("is no object".to_owned()) };
    let mut fields = BTreeMap::new();
    for (name, value) in members {
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Array(list) if list.iter().all(Value::is_string) => {
                list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(";")
            }
            _ => return Err(format!("`{name}` is neither text, number, flag nor a list of texts")),
        };
        if text.chars().count() > CATALOGUE_FIELD_CHARS_MAX {
            return Err(format!("`{name}` has over {CATALOGUE_FIELD_CHARS_MAX} characters"));
        }
        fields.insert(canonical(&name), text);
    }
    Ok(fields)
}
