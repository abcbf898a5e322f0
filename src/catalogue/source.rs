//! What the user named (a file, or a folder of files with known names) → a checked catalogue.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::check::Checker;
use super::rows::{self, Kind, Table};
use super::{CatalogueError, Fault};
use crate::types::Catalogue;

/// Files looked for in a folder.
const FILES: [&str; 10] = [
    "categories.csv",
    "colours.csv",
    "colors.csv",
    "parts.csv",
    "near_identical_pairs.csv",
    "relations.csv",
    "policies.csv",
    "kits.csv",
    "catalog.json",
    "kits.json",
];

/// A checked import.
#[derive(Debug, Clone)]
pub struct Imported {
    pub batch: Catalogue,
    pub files: Vec<PathBuf>,
    pub rows: usize,
    /// `file: columns` that nothing reads.
    pub ignored: Vec<String>,
    /// Rows that were left out, with file, place and reason.
    pub skipped: Vec<String>,
}

/// Read and check `path` against `known`, what the ledger holds.
///
/// # Errors
/// Every fault of every file; then nothing is to be imported.
pub fn read(path: &Path, known: &Catalogue) -> Result<Imported, CatalogueError> {
    let whole = |message: String| CatalogueError {
        faults: vec![Fault { file: path.display().to_string(), place: String::new(), message }],
    };
    let files: Vec<PathBuf> = if path.is_dir() {
        FILES.iter().map(|name| path.join(name)).filter(|file| file.is_file()).collect()
    } else {
        vec![path.to_owned()]
    };
    if files.is_empty() {
        return Err(whole(format!("holds none of {}", FILES.join(", "))));
    }
    let (mut tables, mut faults, mut ignored): (Vec<Table>, Vec<Fault>, Vec<String>) = Default::default();
    for file in &files {
        match rows::read_file(file) {
            Ok(found) => {
                let names: BTreeSet<&String> = found.iter().flat_map(|table| &table.ignored).collect();
                if !names.is_empty() {
                    let names = names.into_iter().cloned().collect::<Vec<_>>().join(", ");
                    ignored.push(format!("{}: {names}", file.display()));
                }
                tables.extend(found);
            }
            Err(found) => faults.extend(found),
        }
    }
    // What a row may name must be read before it.
    tables.sort_by_key(|table| table.kind);
    let rows = tables.iter().map(|table| table.rows.len()).sum();
    let mut checker = Checker::new(known);
    for table in &tables {
        for row in &table.rows {
            match table.kind {
                Kind::Categories => checker.category(row),
                Kind::Colors => checker.color(row),
                Kind::Parts => checker.part(row),
                Kind::Relations => checker.relation(row),
                Kind::Policies => checker.policy(row),
                Kind::Kits => checker.kit_line(row),
            }
        }
    }
    let (batch, found, skipped) = checker.finish();
    faults.extend(found);
    if faults.is_empty() {
        Ok(Imported { batch, files, rows, ignored, skipped })
    } else {
        Err(CatalogueError { faults })
    }
}
