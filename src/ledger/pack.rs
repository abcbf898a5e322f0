//! Reading what waits: outbox entries, oldest first, and the rows of each, cell by cell into a [`RowSink`].
//!
//! Rows are encoded when they are sent, since ledger rows never change. Nothing is allocated a row; statements are
//! prepared once a batch. A unit whose rows are not those that were committed is named and left out, never the batch.

use std::collections::BTreeSet;

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, Row};
use uuid::Uuid;

use super::LedgerError;
use super::reader::LedgerReader;
use super::sent::{
    Cell, FAMILIES, Family, INSPECTIONS_AT, Kind, PROVENANCE_COLUMN, PROVENANCES_AT, RowSink, SENT_TABLES,
};
use crate::types::{Digest, Timestamp};

/// Which part of the outbox to read.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Beyond this position.
    pub after_seq: i64,
    /// Up to this position.
    pub through_seq: i64,
    pub units_max: usize,
    /// As the sink counts; a unit longer than this goes alone.
    pub bytes_max: usize,
}

impl Span {
    /// Up to `units_max` units beyond `after_seq`, however long they are.
    pub(super) fn beyond(after_seq: i64, units_max: usize) -> Self {
        Self { after_seq, through_seq: i64::MAX, units_max, bytes_max: usize::MAX }
    }
}

/// A unit whose rows are in the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedUnit {
    /// Position in the outbox.
    pub seq: i64,
    /// Id of its root.
    pub id: Uuid,
    /// When it was committed.
    pub enqueued_at: Timestamp,
    /// Its rows, provenance aside.
    pub row_count: i64,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Packed {
    pub units: Vec<PackedUnit>,
    /// Positions whose rows cannot be read.
    pub unreadable: Vec<(i64, LedgerError)>,
}

impl Packed {
    /// The last position that was read.
    #[must_use]
    pub fn last_seq(&self) -> Option<i64> {
        self.units.last().map(|unit| unit.seq).max(self.unreadable.last().map(|(seq, _)| *seq))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty() && self.unreadable.is_empty()
    }
}

/// A row of `outbox`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub seq: i64,
    pub key_id: [u8; 16],
    pub row_count: i64,
    pub enqueued_at: Timestamp,
    pub root_table: String,
}

impl LedgerReader {
    /// Read units that wait, oldest first, and the provenances they name, into `sink`. Parked units are not among them.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn pack_units(&self, span: Span, sink: &mut impl RowSink) -> Result<Packed, LedgerError> {
        let mut packed = Packed::default();
        let mut provenances = BTreeSet::new();
        let mut statements = Statements::new(&self.connection);
        for entry in self.entries("state = 'pending' AND", span)? {
            sink.begin_unit();
            match self.pack_entry(&mut statements, &entry, sink) {
                Ok(_) if sink.size_bytes() > span.bytes_max && !packed.units.is_empty() => {
                    sink.drop_unit();
                    break;
                }
                Ok(provenance) => {
                    provenances.extend(provenance);
                    let Entry { seq, key_id, row_count, enqueued_at, .. } = entry;
                    packed.units.push(PackedUnit { seq, id: Uuid::from_bytes(key_id), enqueued_at, row_count });
                }
                Err(error @ LedgerError::Unreadable { .. }) => {
                    sink.drop_unit();
                    packed.unreadable.push((entry.seq, error));
                }
                Err(error) => return Err(error),
            }
        }
        for digest in provenances {
            self.pack_provenance(digest, sink)?;
        }
        Ok(packed)
    }

    /// Outbox entries within `span` that meet `condition` (SQL ending in AND, or nothing).
    pub(super) fn entries(&self, condition: &str, span: Span) -> Result<Vec<Entry>, LedgerError> {
        let sql = format!(
            "SELECT seq, key_id, row_count, enqueued_at, root_table FROM outbox
             WHERE {condition} seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3"
        );
        let read = |row: &Row<'_>| {
            Ok(Entry {
                seq: row.get(0)?,
                key_id: row.get(1)?,
                row_count: row.get(2)?,
                enqueued_at: Timestamp::from_micros(row.get(3)?),
                root_table: row.get(4)?,
            })
        };
        let limit = i64::try_from(span.units_max).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_map([span.after_seq, span.through_seq, limit], read)?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }

    /// Read the rows of one outbox entry into `sink`; returns the provenance that it names.
    pub(super) fn pack_entry(
        &self,
        statements: &mut Statements<'_>,
        entry: &Entry,
        sink: &mut impl RowSink,
    ) -> Result<Option<Digest>, LedgerError> {
        let unreadable = |detail: String| LedgerError::Unreadable { table: "outbox", detail };
        let Some(family) = FAMILIES.iter().position(|family| family.root == entry.root_table) else {
            return Err(unreadable(format!("outbox entry {} names table {}", entry.seq, entry.root_table)));
        };
        let mut row_count = 0;
        let mut provenance = None;
        for (member, (table, _)) in FAMILIES[family].members.iter().enumerate() {
            let visit = |row: &Row<'_>| {
                row_count += 1;
                if *table == INSPECTIONS_AT {
                    provenance = Some(Digest::from_bytes(row.get(PROVENANCE_COLUMN)?));
                }
                Ok(())
            };
            let copied = statements
                .get(family, member)
                .and_then(|statement| copy_rows(statement, *table, &[&entry.key_id], sink, visit));
            copied.map_err(|source| self.unreadable_or_sqlite(*table, source))?;
            if row_count == 0 {
                let root = entry.root_table.as_str();
                return Err(unreadable(format!("the row of {root} that outbox entry {} names is missing", entry.seq)));
            }
        }
        if row_count != entry.row_count {
            let detail = format!("outbox entry {} has {row_count} rows instead of {}", entry.seq, entry.row_count);
            return Err(unreadable(detail));
        }
        Ok(provenance)
    }

    pub(super) fn pack_provenance(&self, digest: Digest, sink: &mut impl RowSink) -> Result<(), LedgerError> {
        self.connection
            .prepare_cached(&SENT_TABLES[PROVENANCES_AT].select("sha256 = ?1"))
            .and_then(|mut statement| copy_rows(&mut statement, PROVENANCES_AT, &[digest.as_bytes()], sink, |_| Ok(())))
            .map_err(|source| self.unreadable_or_sqlite(PROVENANCES_AT, source))
    }

    pub(super) fn unreadable_or_sqlite(&self, table: usize, source: rusqlite::Error) -> LedgerError {
        match source {
            rusqlite::Error::InvalidColumnType(..) => {
                LedgerError::Unreadable { table: SENT_TABLES[table].local_name, detail: source.to_string() }
            }
            source => LedgerError::Sqlite { path: self.path.clone(), source },
        }
    }
}

/// The statements of all families, each prepared at its first use.
pub(super) struct Statements<'c> {
    connection: &'c Connection,
    prepared: Vec<Vec<Option<CachedStatement<'c>>>>,
}

impl<'c> Statements<'c> {
    pub fn new(connection: &'c Connection) -> Self {
        let prepared = FAMILIES.iter().map(|family| family.members.iter().map(|_| None).collect()).collect();
        Self { connection, prepared }
    }

    fn get(&mut self, family: usize, member: usize) -> rusqlite::Result<&mut CachedStatement<'c>> {
        let slot = &mut self.prepared[family][member];
        if slot.is_none() {
            let Family { members, .. } = &FAMILIES[family];
            let (table, condition) = members[member];
            *slot = Some(self.connection.prepare_cached(&SENT_TABLES[table].select(condition))?);
        }
        slot.as_mut().ok_or(rusqlite::Error::InvalidQuery)
    }
}

pub(super) fn copy_rows(
    statement: &mut CachedStatement<'_>,
    table: usize,
    key: &[&dyn rusqlite::ToSql],
    sink: &mut impl RowSink,
    mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let columns = SENT_TABLES[table].columns;
    let mut rows = statement.query(key)?;
    while let Some(row) = rows.next()? {
        visit(row)?;
        sink.begin_row(table);
        for (index, (name, kind)) in columns.iter().enumerate() {
            let value = row.get_ref(index)?;
            let is_taken = cell(*kind, value).is_some_and(|cell| sink.cell(index, cell));
            if !is_taken {
                return Err(rusqlite::Error::InvalidColumnType(index, (*name).to_owned(), value.data_type()));
            }
        }
    }
    Ok(())
}

fn cell(kind: Kind, value: ValueRef<'_>) -> Option<Cell<'_>> {
    Some(match (kind, value) {
        (_, ValueRef::Null) => Cell::Null,
        (Kind::Uuid, ValueRef::Blob(bytes)) => Cell::Uuid(bytes.try_into().ok()?),
        (Kind::Digest, ValueRef::Blob(bytes)) => Cell::Digest(bytes.try_into().ok()?),
        (Kind::Time, ValueRef::Integer(micros)) => Cell::Time(micros),
        (Kind::Real, ValueRef::Real(real)) => {
            #[expect(clippy::cast_possible_truncation, reason = "the column holds an f32, stored exactly")]
            let real = real as f32;
            return real.is_finite().then_some(Cell::Real(real));
        }
        (Kind::Int, ValueRef::Integer(int)) => Cell::Int(int),
        (Kind::Bool, ValueRef::Integer(int)) => Cell::Bool(int != 0),
        (Kind::Text, ValueRef::Text(text)) => Cell::Text(std::str::from_utf8(text).ok()?),
        (Kind::Codes, ValueRef::Text(text)) => Cell::Codes(std::str::from_utf8(text).ok()?),
        (Kind::Json, ValueRef::Text(text)) => Cell::Json(std::str::from_utf8(text).ok()?),
        _ => return None,
    })
}
