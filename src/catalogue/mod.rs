//! Catalogue files: CSV and JSON as people have them → a checked [`Catalogue`](crate::types::Catalogue), or every fault with its line.
//!
//! Invariants: nothing is imported from a file with a fault; what a file says is the same whatever the order of its rows.
//! Thread: the caller's. Overload: files are bounded by `limits::CATALOGUE_FILE_BYTES_MAX`, fields by
//! `limits::CATALOGUE_FIELD_CHARS_MAX`.

mod check;
mod diff;
mod rows;
mod source;

pub use diff::{Change, Summary, diff};
pub use source::{Imported, read};

/// Faults listed in one message; the rest are counted.
const FAULTS_SHOWN_MAX: usize = 100;

/// One thing wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    pub file: String,
    /// `line 5` of CSV, `parts[3]` of JSON; empty for the file as a whole.
    pub place: String,
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.file)?;
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything wrong with what was to be imported; nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} fault(s), nothing was imported:\n{}", faults.len(), shown(faults))]
pub struct CatalogueError {
    pub faults: Vec<Fault>,
}

fn shown(faults: &[Fault]) -> String {
    let mut lines: Vec<String> = faults.iter().take(FAULTS_SHOWN_MAX).map(|fault| format!("  {fault}")).collect();
    if faults.len() > FAULTS_SHOWN_MAX {
        lines.push(format!("  … and {} more", faults.len() - FAULTS_SHOWN_MAX));
    }
    lines.join("\n")
}
