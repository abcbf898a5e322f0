//! [`Batch`]: rows of units, packed as PostgreSQL's binary arrays, one array a column.
//!
//! One INSERT … SELECT FROM unnest($1, $2, …) a table. Of the ways that row-level security allows this is the fastest
//! (docs/uplink.md has the measurements), and it leaves nothing behind in the session: no temporary table, no named
//! statement, so that a pooler may give the next transaction to anybody. Values travel in binary: a real keeps its bits.

use std::sync::LazyLock;

use bytes::BytesMut;
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use crate::ledger::{Cell, Kind, RowSink, SENT_TABLES, SentTable};
use crate::types::Digest;

/// 2000-01-01 00:00:00 UTC, PostgreSQL's zero, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// Position of [`INGEST_BATCHES`] behind the tables of the ledger.
pub(super) const INGEST_BATCHES_AT: usize = SENT_TABLES.len();

/// The batch itself, a row beside its rows.
const INGEST_BATCHES: SentTable = SentTable {
    name: "ingest_batches",
    local_name: "ingest_batches",
    key: &["enqueued_at", "id"],
    columns: &[
        ("enqueued_at", Kind::Time),
        ("id", Kind::Uuid),
        ("epoch", Kind::Int),
        ("first_seq", Kind::Int),
        ("last_seq", Kind::Int),
        ("unit_count", Kind::Int),
        ("row_count", Kind::Int),
        ("committed_total", Kind::Int),
        ("delivered_total", Kind::Int),
        ("dropped_samples", Kind::Int),
        ("sha256", Kind::Digest),
    ],
};

static INSERTS: LazyLock<Vec<String>> =
    LazyLock::new(|| SENT_TABLES.iter().chain([&INGEST_BATCHES]).map(insert_sql).collect());

/// `$1` is the site, `$2` the device, the others are the columns. Rows already there stay as they are.
fn insert_sql(table: &SentTable) -> String {
    let columns: Vec<_> = table.columns().collect();
    let numbers: Vec<_> = (3..3 + columns.len()).map(|number| format!("${number}")).collect();
    let values: Vec<_> = table
        .columns
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Codes => format!("string_to_array(u.{name}, ',')"),
            _ => format!("u.{name}"),
        })
        .collect();
    format!(
        "INSERT INTO loupe.{} (site_id, device_id, {columns})
         SELECT $1, $2, {} FROM unnest({}) AS u ({columns})
         ON CONFLICT (site_id, {}) DO NOTHING",
        table.name,
        values.join(", "),
        numbers.join(", "),
        table.key.join(", "),
        columns = columns.join(", "),
    )
}

/// Type of a column's array, and the number of its elements' type.
fn array_type(kind: Kind) -> (Type, u32) {
    let (array, element) = match kind {
        Kind::Uuid => (Type::UUID_ARRAY, Type::UUID),
        Kind::Digest => (Type::BYTEA_ARRAY, Type::BYTEA),
        Kind::Time => (Type::TIMESTAMPTZ_ARRAY, Type::TIMESTAMPTZ),
        Kind::Real => (Type::FLOAT4_ARRAY, Type::FLOAT4),
        Kind::Int => (Type::INT8_ARRAY, Type::INT8),
        Kind::Bool => (Type::BOOL_ARRAY, Type::BOOL),
        Kind::Text | Kind::Codes => (Type::TEXT_ARRAY, Type::TEXT),
        Kind::Json => (Type::JSONB_ARRAY, Type::JSONB),
    };
    (array, element.oid())
}

/// The elements of one column, each with its length before it.
#[derive(Debug)]
pub(super) struct Column {
    kind: Kind,
    row_count: i32,
    has_nulls: bool,
    bytes: Vec<u8>,
}

impl Column {
    fn new(kind: Kind) -> Self {
        Self { kind, row_count: 0, has_nulls: false, bytes: Vec::new() }
    }

    fn element(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&length(bytes.len()).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// `false` where the cell cannot be read.
    fn push(&mut self, cell: Cell<'_>) -> bool {
        self.row_count += 1;
        match cell {
            Cell::Null => {
                self.has_nulls = true;
                self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
            }
            Cell::Uuid(bytes) => self.element(bytes),
            Cell::Digest(bytes) => self.element(bytes),
            Cell::Time(micros) => self.element(&micros.saturating_sub(POSTGRES_EPOCH_US).to_be_bytes()),
            Cell::Real(real) => self.element(&real.to_be_bytes()),
            Cell::Int(int) => self.element(&int.to_be_bytes()),
            Cell::Bool(is_set) => self.element(&[u8::from(is_set)]),
            Cell::Text(text) => self.element(text.as_bytes()),
            Cell::Codes("[]") => self.element(&[]),
            Cell::Codes(list) => {
                let Ok(codes) = serde_json::from_str::<Vec<String>>(list) else { return false };
                // The comma separates them on the way.
                if codes.iter().any(|code| code.contains(',') || code.is_empty()) {
                    return false;
                }
                self.element(codes.join(",").as_bytes());
            }
            Cell::Json(text) => {
                self.bytes.extend_from_slice(&length(text.len() + 1).to_be_bytes());
                // Version of the format.
                self.bytes.push(1);
                self.bytes.extend_from_slice(text.as_bytes());
            }
        }
        true
    }
}

/// A cell is shorter than a row of the ledger, which SQLite limits to 1 GB.
fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

impl ToSql for Column {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let (_, element) = array_type(self.kind);
        out.reserve(self.bytes.len() + 20);
        let dimensions = 1_i32;
        let lower_bound = 1_i32;
        out.extend_from_slice(&dimensions.to_be_bytes());
        out.extend_from_slice(&i32::from(self.has_nulls).to_be_bytes());
        out.extend_from_slice(&element.to_be_bytes());
        out.extend_from_slice(&self.row_count.to_be_bytes());
        out.extend_from_slice(&lower_bound.to_be_bytes());
        out.extend_from_slice(&self.bytes);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), tokio_postgres::types::Kind::Array(_))
    }

    to_sql_checked!();
}

/// Where a column was when the unit began.
#[derive(Debug, Clone, Copy)]
struct Mark {
    table: usize,
    column: usize,
    row_count: i32,
    length: usize,
}

/// Rows by table and column. Its buffers are used again after [`Batch::clear`].
#[derive(Debug)]
pub(super) struct Batch {
    tables: Vec<Vec<Column>>,
    current: usize,
    size_bytes: usize,
    /// Since [`RowSink::begin_unit`]: the tables touched and how they were.
    marks: Vec<Mark>,
    size_bytes_before: usize,
}

/// A statement with its parameters.
#[derive(Debug)]
pub(super) struct Insert<'a> {
    pub sql: &'static str,
    pub columns: &'a [Column],
}

impl Insert<'_> {
    pub fn parameters<'a>(&'a self, site_id: &'a Uuid, device_id: &'a Uuid) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
        let ids: [(&(dyn ToSql + Sync), Type); 2] = [(site_id, Type::UUID), (device_id, Type::UUID)];
        let arrays = self.columns.iter().map(|column| (column as &(dyn ToSql + Sync), array_type(column.kind).0));
        ids.into_iter().chain(arrays).collect()
    }
}

impl Batch {
    pub fn new() -> Self {
        let tables = SENT_TABLES
            .iter()
            .chain([&INGEST_BATCHES])
            .map(|table| table.columns.iter().map(|(_, kind)| Column::new(*kind)).collect())
            .collect();
        Self { tables, current: 0, size_bytes: 0, marks: Vec::new(), size_bytes_before: 0 }
    }

    pub fn clear(&mut self) {
        for column in self.tables.iter_mut().flatten() {
            column.row_count = 0;
            column.has_nulls = false;
            column.bytes.clear();
        }
        self.marks.clear();
        self.size_bytes = 0;
    }

    /// Of every row in it, in the order of sending.
    pub fn sha256(&self) -> Digest {
        let mut hasher = Sha256::new();
        for column in self.tables.iter().flatten().filter(|column| column.row_count > 0) {
            hasher.update(column.row_count.to_be_bytes());
            hasher.update(&column.bytes);
        }
        Digest::from_bytes(hasher.finalize().into())
    }

    /// One statement a table that has rows, in the order of sending.
    pub fn inserts(&self) -> impl Iterator<Item = Insert<'_>> {
        self.tables
            .iter()
            .zip(INSERTS.iter())
            .filter(|(columns, _)| columns.first().is_some_and(|column| column.row_count > 0))
            .map(|(columns, sql)| Insert { sql, columns })
    }
}

impl RowSink for Batch {
    fn begin_unit(&mut self) {
        self.marks.clear();
        self.size_bytes_before = self.size_bytes;
    }

    fn drop_unit(&mut self) {
        for mark in self.marks.drain(..) {
            let column = &mut self.tables[mark.table][mark.column];
            column.row_count = mark.row_count;
            column.bytes.truncate(mark.length);
        }
        self.size_bytes = self.size_bytes_before;
    }

    fn begin_row(&mut self, table: usize) {
        self.current = table;
        // The rows of a table follow each other.
        if self.marks.last().is_some_and(|mark| mark.table == table) {
            return;
        }
        for (index, column) in self.tables[table].iter().enumerate() {
            let (row_count, length) = (column.row_count, column.bytes.len());
            self.marks.push(Mark { table, column: index, row_count, length });
        }
    }

    fn cell(&mut self, column: usize, cell: Cell<'_>) -> bool {
        let column = &mut self.tables[self.current][column];
        let before = column.bytes.len();
        let is_read = column.push(cell);
        self.size_bytes += column.bytes.len() - before;
        is_read
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio_postgres::types::{FromSql as _, ToSql as _, Type};

    use super::{Batch, Column, INGEST_BATCHES_AT, INSERTS, POSTGRES_EPOCH_US};
    use crate::ledger::{Cell, Kind, RowSink as _, SENT_TABLES};

    fn column(kind: Kind, cells: &[Cell<'_>]) -> BytesMut {
        let mut column = Column::new(kind);
        assert!(cells.iter().all(|cell| column.push(*cell)));
        let mut out = BytesMut::new();
        column.to_sql(&Type::INT8_ARRAY, &mut out).unwrap();
        out
    }

    #[test]
    fn the_drivers_own_reader_understands_the_arrays() {
        let ints = column(Kind::Int, &[Cell::Int(-7), Cell::Null, Cell::Int(i64::MAX)]);
        assert_eq!(Vec::<Option<i64>>::from_sql(&Type::INT8_ARRAY, &ints).unwrap(), [Some(-7), None, Some(i64::MAX)]);
        let texts = column(Kind::Text, &[Cell::Text("나사"), Cell::Text("")]);
        assert_eq!(Vec::<String>::from_sql(&Type::TEXT_ARRAY, &texts).unwrap(), ["나사", ""]);
        let reals = column(Kind::Real, &[Cell::Real(0.1), Cell::Real(-0.0), Cell::Real(f32::MIN_POSITIVE / 2.0)]);
        let bits: Vec<u32> =
            Vec::<f32>::from_sql(&Type::FLOAT4_ARRAY, &reals).unwrap().iter().map(|r| r.to_bits()).collect();
        assert_eq!(bits, [0.1_f32.to_bits(), 0x8000_0000, (f32::MIN_POSITIVE / 2.0).to_bits()]);
        let times = column(Kind::Time, &[Cell::Time(POSTGRES_EPOCH_US), Cell::Time(0), Cell::Time(i64::MIN)]);
        assert_eq!(Vec::<std::time::SystemTime>::from_sql(&Type::TIMESTAMPTZ_ARRAY, &times).unwrap().len(), 3);
        let lists = column(Kind::Codes, &[Cell::Codes("[]"), Cell::Codes(r#"["a.b","c"]"#)]);
        assert_eq!(Vec::<String>::from_sql(&Type::TEXT_ARRAY, &lists).unwrap(), ["", "a.b,c"]);
    }

    #[test]
    fn a_list_that_would_change_on_the_way_is_not_taken() {
        for list in ["", "{}", r#"["a,b"]"#, r#"[""]"#, "[1]", "null"] {
            assert!(!Column::new(Kind::Codes).push(Cell::Codes(list)), "{list}");
        }
    }

    #[test]
    fn a_dropped_unit_leaves_the_batch_as_it_was() {
        let mut batch = Batch::new();
        let fill = |batch: &mut Batch, table: usize, number: i64| {
            batch.begin_row(table);
            for (index, _) in SENT_TABLES[table].columns.iter().enumerate() {
                assert!(batch.cell(index, if index % 2 == 0 { Cell::Int(number) } else { Cell::Null }));
            }
        };
        batch.begin_unit();
        fill(&mut batch, 2, 1);
        let (before, size_bytes) = (batch.sha256(), batch.size_bytes());
        batch.begin_unit();
        fill(&mut batch, 2, 2);
        fill(&mut batch, 2, 3);
        fill(&mut batch, 4, 4);
        assert_ne!(batch.sha256(), before);
        batch.drop_unit();
        assert_eq!((batch.sha256(), batch.size_bytes(), batch.inserts().count()), (before, size_bytes, 1));
        batch.clear();
        assert_eq!((batch.inserts().count(), batch.size_bytes()), (0, 0));
    }

    #[test]
    fn rows_already_there_are_left_alone_in_every_table() {
        assert_eq!(INSERTS.len(), INGEST_BATCHES_AT + 1);
        for sql in INSERTS.iter() {
            assert!(sql.contains("ON CONFLICT (site_id, ") && sql.ends_with("DO NOTHING"), "{sql}");
        }
    }
}
