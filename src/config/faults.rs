//! Reading TOML so that every fault is reported at once, each with its key path and line.
//!
//! Serde stops at the first fault. This reader notes it, takes the offending key out of the document and tries again,
//! until the rest reads cleanly. Raw structures therefore have defaults for every field; what is missing is found by
//! validation, which adds its own faults to the same list.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// Faults reported in one go; a file with more is not a configuration.
const FAULTS_MAX: usize = 64;

/// One thing wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `stations[0].source.kind`; empty for the file as a whole.
    pub key_path: String,
    /// From 1, where the file says it.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key_path.is_empty() {
            write!(f, "{}: ", self.key_path)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub path: String,
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "{} has {count} {}:", self.path, if count == 1 { "fault" } else { "faults" })?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// A document being validated: what it says, where it says it and what is wrong so far.
#[derive(Debug)]
pub struct Document {
    path: String,
    lines: BTreeMap<String, usize>,
    faults: Vec<Fault>,
}

impl Document {
    /// Read `text` as a `T`; what could not be read stands in the document's faults and is left at its default.
    pub fn read<T: DeserializeOwned + Default>(path: &Path, text: &str) -> (T, Document) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Document { path: path.display().to_string(), lines: BTreeMap::new(), faults: Vec::new() };
        document.note_lines(text, "", table.get_ref());
        for error in errors.into_iter().take(FAULTS_MAX) {
            let line = error.span().map(|span| line_of(text, span.start));
            document.faults.push(Fault { key_path: String::new(), line, message: first_line(error.message()) });
        }
        let mut table = table;
        while document.faults.len() < FAULTS_MAX {
            let error = match T::deserialize(Deserializer::from(table.clone())) {
                Ok(value) => return (value, document),
                Err(error) => error,
            };
            let key_path = error.span().and_then(|span| take_out(table.get_mut(), &span)).unwrap_or_default();
            let line = error.span().map(|span| line_of(text, span.start));
            let stuck = key_path.is_empty();
            document.faults.push(Fault { key_path, line, message: first_line(error.message()) });
            if stuck {
                break;
            }
        }
        (T::default(), document)
    }

    /// Note a fault found by validation.
    pub fn fault(&mut self, key_path: &str, message: impl Into<String>) {
        let message = message.into();
        // A key whose value did not read is at its default; its consequences are not news.
        if self.faults.iter().any(|fault| !fault.key_path.is_empty() && fault.key_path == key_path) {
            return;
        }
        let line = self.line_of_key(key_path);
        self.faults.push(Fault { key_path: key_path.to_owned(), line, message });
    }

    /// The value, or every fault in the order of the file.
    ///
    /// # Errors
    /// When anything was at fault.
    pub fn finish<T>(mut self, value: T) -> Result<T, ConfigError> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        Err(ConfigError { path: self.path, faults: self.faults })
    }

    /// Line of the key, or of the nearest table around it.
    fn line_of_key(&self, key_path: &str) -> Option<usize> {
        let mut path = key_path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    fn note_lines(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            self.lines.insert(path.clone(), line_of(text, key.span().start));
            self.note_value(text, &path, value);
        }
    }

    fn note_value(&mut self, text: &str, path: &str, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.note_lines(text, path, table),
            DeValue::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.lines.insert(path.clone(), line_of(text, value.span().start));
                    self.note_value(text, &path, value);
                }
            }
            _ => {}
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// Remove the innermost key whose name or value holds `span`; its path, or `None` where there is none.
///
/// A table's own span may be no more than its header, so every branch is searched, innermost first.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let name = key.get_ref();
        if holds(key.span()) {
            found = Some(key.clone());
            break;
        }
        if let Some(inner) = take_out_of_value(value.get_mut(), span) {
            let dot = if inner.starts_with('[') { "" } else { "." };
            return Some(format!("{name}{dot}{inner}"));
        }
        if holds(value.span()) {
            found = Some(key.clone());
            break;
        }
    }
    let key = found?;
    table.remove(&key);
    Some(key.get_ref().to_string())
}

fn take_out_of_value(value: &mut DeValue<'_>, span: &Range<usize>) -> Option<String> {
    match value {
        DeValue::Table(table) => take_out(table, span),
        DeValue::Array(values) => values.iter_mut().enumerate().find_map(|(index, value)| {
            let inner = take_out_of_value(value.get_mut(), span)?;
            let dot = if inner.starts_with('[') { "" } else { "." };
            Some(format!("[{index}]{dot}{inner}"))
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::{ConfigError, Document};

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        name: String,
        rate_hz: f32,
        stations: Vec<Station>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Station {
        name: String,
        limit: u8,
    }

    fn check(text: &str, expected: &[&str]) {
        let (_, document) = Document::read::<Raw>(Path::new("x.toml"), text);
        let faults = match document.finish(()) {
            Ok(()) => vec![],
            Err(ConfigError { faults, .. }) => faults.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(faults, expected);
    }

    #[test]
    fn five_faults_are_all_reported_with_paths_and_lines() {
        check(
            "name = 3\nrate_hz = \"fast\"\nspeed = 1\n[[stations]]\nname = \"a\"\n[[stations]]\nlimit = 300\ncolour = 1\n",
            &[
                "line 1: name: invalid type: integer `3`, expected a string",
                "line 2: rate_hz: invalid type: string \"fast\", expected f32",
                "line 3: speed: unknown field `speed`, expected one of `name`, `rate_hz`, `stations`",
                "line 7: stations[1].limit: invalid value: integer `300`, expected u8",
                "line 8: stations[1].colour: unknown field `colour`, expected `name` or `limit`",
            ],
        );
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let (_, document) = Document::read::<Raw>(Path::new("x.toml"), "name = \"a\"\nrate_hz = = 2\n");
        let error = document.finish(()).unwrap_err();
        assert_eq!(error.faults[0].line, Some(2), "{error}");
    }

    #[test]
    fn a_value_that_did_not_read_is_not_also_called_missing() {
        let (_, mut document) = Document::read::<Raw>(Path::new("x.toml"), "name = 3\n");
        document.fault("name", "must not be empty");
        document.fault("stations", "needs one");
        assert_eq!(document.finish(()).unwrap_err().faults.len(), 2);
    }
}
