//! A small CSV file of a generation: `groups.csv`, `sizes.csv`, … Pure.

use std::collections::BTreeMap;

use csv::StringRecord;

use super::MatchError;

/// Name and columns of a file; the first columns say what a row is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<const COLUMNS: usize> {
    pub name: &'static str,
    pub header: [&'static str; COLUMNS],
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// # Errors
    /// When writing to memory fails, which it does not.
    pub fn write(&self, rows: impl IntoIterator<Item = [String; COLUMNS]>) -> Result<Vec<u8>, MatchError> {
        let io = |source: csv::Error| MatchError::Io {
            action: "write",
            path: self.name.into(),
            source: std::io::Error::other(source),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(self.header).map_err(io)?;
        for row in rows {
            writer.write_record(row).map_err(io)?;
        }
        writer.into_inner().map_err(|error| io(error.into_error().into()))
    }

    /// What `row` makes of each row, in the file's order.
    ///
    /// # Errors
    /// A sentence naming the file: another header, a row that is no CSV or has other columns, what `row` refuses.
    pub fn rows<R>(
        &self,
        bytes: &[u8],
        mut row: impl FnMut(&StringRecord) -> Result<R, String>,
    ) -> Result<Vec<R>, String> {
        let named = |fault: &dyn std::fmt::Display| format!("{}: {fault}", self.name);
        let mut reader = csv::Reader::from_reader(bytes);
        let header = reader.headers().map_err(|error| named(&error))?;
        if *header != self.header[..] {
            return Err(named(&format_args!("the header is not `{}`", self.header.join(","))));
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| named(&error))?;
            rows.push(row(&record).map_err(|fault| named(&fault))?);
        }
        Ok(rows)
    }

    /// As [`Table::rows`], of a file with one row a part: part → what `value` makes of its row.
    ///
    /// # Errors
    /// As [`Table::rows`], and when a part stands twice.
    pub fn by_part<V>(
        &self,
        bytes: &[u8],
        mut value: impl FnMut(&StringRecord) -> Result<V, String>,
    ) -> Result<BTreeMap<String, V>, String> {
        let mut of_part = BTreeMap::new();
        self.rows(bytes, |record| match of_part.insert(record[0].to_owned(), value(record)?) {
            Some(_) => Err(format!("part `{}` stands twice", &record[0])),
            None => Ok(()),
        })?;
        Ok(of_part)
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    const TABLE: Table<2> = Table { name: "colours.csv", header: ["part_id", "colour"] };

    #[test]
    fn what_is_written_comes_back_and_what_is_wrong_names_the_file() {
        let bytes = TABLE.write([["b, \"c\"", "red"], ["a", "öl"]].map(|row| row.map(str::to_owned))).unwrap();
        let rows = TABLE.rows(&bytes, |row| Ok(row[1].to_owned())).unwrap();
        assert_eq!(rows, ["red", "öl"], "in the file's order");
        let of_part = TABLE.by_part(&bytes, |row| Ok(row[1].to_owned())).unwrap();
        assert_eq!(of_part.get("b, \"c\"").map(String::as_str), Some("red"));
        for (text, word) in [
            ("", "header is not `part_id,colour`"),
            ("part_id\na\n", "header"),
            ("part_id,colour,more\n", "header"),
            ("part_id,colour\na\n", "line: 2"),
            ("part_id,colour\na,red\na,red\n", "part `a` stands twice"),
            ("part_id,colour\na,black\n", "no black"),
        ] {
            let colour = |row: &csv::StringRecord| match &row[1] {
                "black" => Err("no black".to_owned()),
                colour => Ok(colour.to_owned()),
            };
            let fault = TABLE.by_part(text.as_bytes(), colour).unwrap_err();
            assert!(fault.starts_with("colours.csv: ") && fault.contains(word), "{text:?}: {fault}");
        }
    }
}
