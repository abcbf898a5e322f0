//! What the ledger still holds of what was delivered: for the comparison with the centre.

use rusqlite::Row;

use super::LedgerError;
use super::pack::Entry;
use super::reader::LedgerReader;
use super::repair::ROOTS;
use super::unit::Unit;
use crate::types::Timestamp;

impl LedgerReader {
    /// Visit every delivered unit that is still stored, `units_max` at a time; those whose rows cannot be read come as
    /// errors, alone.
    ///
    /// # Errors
    /// When the ledger cannot be read, or those of `visit`.
    pub fn for_each_delivered<E: From<LedgerError>>(
        &self,
        units_max: usize,
        mut visit: impl FnMut(Result<Vec<Unit>, LedgerError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        let sets = "u.id NOT IN (SELECT key_id FROM outbox) AND u.id NOT IN (SELECT key_id FROM outbox_quarantine)";
        for root in &ROOTS {
            let sql = root.select.replace("{also}", sets);
            let mut statement = self.connection.prepare(&sql).map_err(&on_sqlite)?;
            let mut rows = statement.query([]).map_err(&on_sqlite)?;
            let mut units = Vec::with_capacity(units_max);
            while let Some(row) = rows.next().map_err(&on_sqlite)? {
                let entry = entry(row, root.table).map_err(&on_sqlite)?;
                match self.unit(&entry) {
                    Ok(unit) => units.push(unit),
                    Err(error @ LedgerError::Unreadable { .. }) => visit(Err(error))?,
                    Err(error) => return Err(error.into()),
                }
                if units.len() >= units_max {
                    visit(Ok(std::mem::take(&mut units)))?;
                }
            }
            if !units.is_empty() {
                visit(Ok(units))?;
            }
        }
        Ok(())
    }
}

/// As the outbox would name it: delivered, it has no position any more.
fn entry(row: &Row<'_>, root_table: &str) -> rusqlite::Result<Entry> {
    Ok(Entry {
        seq: 0,
        key_id: row.get(1)?,
        row_count: row.get(2)?,
        enqueued_at: Timestamp::from_micros(row.get(0)?),
        root_table: root_table.to_owned(),
    })
}
