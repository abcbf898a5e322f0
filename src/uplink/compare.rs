//! Comparison: what the ledger still holds of delivered units against the centre, row by row and column by column.
//!
//! The server compares: the ledger's rows go there as they were sent, and come back only where the centre's differ. So a
//! value is the same when it would be stored the same. Needs a login that may read (loupe_ops or the owner).

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::central::Central;
use super::{Secret, UplinkError};
use crate::ledger::{LedgerReader, SENT_TABLES, SentTable, Unit};
use crate::limits;
use crate::types::Digest;

/// Faults listed; more are only counted.
const FAULTS_MAX: usize = 100;

/// What expires here before its inspection does, all at once.
const DETAIL: [&str; 3] = ["items", "anomaly_maps", "frame_qa_logs"];

/// What was compared, and what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    pub units: u64,
    pub rows: u64,
    /// The first hundred, in words.
    pub faults: Vec<String>,
    pub fault_count: u64,
}

impl Comparison {
    #[must_use]
    pub fn holds(&self) -> bool {
        self.fault_count == 0
    }

    fn add(&mut self, fault: String) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        }
    }
}

/// Compare the delivered units of the ledger below `state_dir` with the centre; `progress` hears units done.
///
/// # Errors
/// When the ledger cannot be read or the server refuses.
pub fn compare(state_dir: &Path, dsn: &Secret, mut progress: impl FnMut(u64)) -> Result<Comparison, UplinkError> {
    let reader = LedgerReader::open(state_dir)?;
    let meta = reader.meta()?;
    // A ledger that never reported has delivered nothing.
    let Some(site_id) = meta.site_id else { return Ok(Comparison::default()) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| UplinkError::Provision { detail: format!("no runtime: {error}") })?;
    let central = runtime.block_on(async {
        let central = Central::connect(dsn).await?;
        central.check_schema().await?;
        Ok::<_, UplinkError>(central)
    })?;
    let mut work = Work {
        runtime,
        central,
        ids: [("site_id", site_id), ("device_id", meta.device_id)],
        seen: BTreeSet::new(),
        found: Comparison::default(),
    };
    reader.for_each_delivered(limits::UPLINK_UNITS_MAX, |units| -> Result<(), UplinkError> {
        match units {
            Ok(units) => work.compare_units(&reader, &units)?,
            Err(error) => work.found.add(error.to_string()),
        }
        progress(work.found.units);
        Ok(())
    })?;
    Ok(work.found)
}

struct Work {
    runtime: Runtime,
    central: Central,
    /// What the uplink adds to every row.
    ids: [(&'static str, Uuid); 2],
    /// Provenances compared already.
    seen: BTreeSet<Digest>,
    found: Comparison,
}

impl Work {
    fn compare_units(&mut self, reader: &LedgerReader, units: &[Unit]) -> Result<(), UplinkError> {
        self.found.units += units.len() as u64;
        let fresh: Vec<Digest> = units.iter().filter_map(|unit| unit.provenance_sha256).collect();
        let fresh: BTreeSet<Digest> = fresh.into_iter().filter(|digest| self.seen.insert(*digest)).collect();
        for table in SENT_TABLES {
            let rows: Vec<&Map<String, Value>> =
                units.iter().filter_map(|unit| unit.rows.get(table.name)).flatten().collect();
            if !rows.is_empty() {
                let columns: Vec<&str> = table.columns().chain(["device_id"]).collect();
                self.compare_rows(table, &rows, &columns)?;
            }
            let is_child =
                table.key == ["captured_at", "id"] && table.columns().any(|column| column == "inspection_id");
            if is_child {
                self.find_strangers(table, units, &rows)?;
            }
        }
        let provenances = reader.provenances(fresh)?;
        if let (Some(table), false) = (table_named("provenances"), provenances.is_empty()) {
            // Shared by the devices of a site: the first to come wrote the rest of the row.
            self.compare_rows(table, &provenances.iter().collect::<Vec<_>>(), &["sha256", "record"])?;
        }
        Ok(())
    }

    /// Rows that are missing at the centre, or have another value there.
    fn compare_rows(
        &mut self,
        table: &SentTable,
        rows: &[&Map<String, Value>],
        columns: &[&str],
    ) -> Result<(), UplinkError> {
        self.found.rows += rows.len() as u64;
        let on = table.key.iter().map(|key| format!("c.{key} = l.{key}")).collect::<Vec<_>>().join(" AND ");
        let list =
            |alias: &str| columns.iter().map(|column| format!("{alias}.{column}")).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT to_jsonb(l), CASE WHEN c.site_id IS NULL THEN NULL ELSE to_jsonb(c) END
             FROM jsonb_populate_recordset(NULL::loupe.{name}, $1::jsonb) l
             LEFT JOIN loupe.{name} c ON c.site_id = l.site_id AND {on}
             WHERE c.site_id IS NULL OR ({}) IS DISTINCT FROM ({})",
            list("l"),
            list("c"),
            name = table.name,
        );
        for row in self.query(&sql, &[self.sign(rows)])? {
            let (here, there): (Value, Option<Value>) = (row.get(0), row.get(1));
            let name = format!("{} {}", table.name, name_of(&here, table));
            let Some(there) = there else {
                self.found.add(format!("{name} was delivered and is missing at the centre"));
                continue;
            };
            for column in columns {
                if here.get(column) != there.get(column) {
                    let of = |row: &Value| row.get(column).map_or_else(String::new, ToString::to_string);
                    let fault = format!("{name}: {column} is {} here and {} at the centre", of(&here), of(&there));
                    self.found.add(fault);
                }
            }
        }
        Ok(())
    }

    /// Rows at the centre that belong to these inspections and that the ledger does not know.
    fn find_strangers(
        &mut self,
        table: &SentTable,
        units: &[Unit],
        rows: &[&Map<String, Value>],
    ) -> Result<(), UplinkError> {
        // Where the detail of an inspection has expired here, the centre rightly has more.
        let whole: Vec<&Map<String, Value>> = units
            .iter()
            .filter(|unit| DETAIL.iter().any(|table| unit.rows.contains_key(table)))
            .filter_map(|unit| unit.rows.get("inspections"))
            .flatten()
            .collect();
        if whole.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT c.id::text, c.inspection_id::text
             FROM jsonb_populate_recordset(NULL::loupe.inspections, $1::jsonb) i
             JOIN loupe.{name} c ON c.site_id = i.site_id AND c.captured_at = i.captured_at AND c.inspection_id = i.id
             WHERE c.id NOT IN (SELECT l.id FROM jsonb_populate_recordset(NULL::loupe.{name}, $2::jsonb) l)",
            name = table.name,
        );
        for row in self.query(&sql, &[self.sign(&whole), self.sign(rows)])? {
            let (id, inspection): (String, String) = (row.get(0), row.get(1));
            let name = table.name;
            self.found.add(format!("{name} {id} of inspection {inspection} is at the centre and was never sent"));
        }
        Ok(())
    }

    fn sign(&self, rows: &[&Map<String, Value>]) -> String {
        let signed = rows.iter().map(|row| {
            let mut row = (*row).clone();
            for (name, id) in self.ids {
                row.insert(name.to_owned(), id.to_string().into());
            }
            Value::Object(row)
        });
        Value::Array(signed.collect()).to_string()
    }

    fn query(&self, sql: &str, lists: &[String]) -> Result<Vec<tokio_postgres::Row>, UplinkError> {
        let parameters: Vec<(&(dyn tokio_postgres::types::ToSql + Sync), Type)> =
            lists.iter().map(|list| (list as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT)).collect();
        let work = self.central.client.query_typed(sql, &parameters);
        self.runtime.block_on(work).map_err(UplinkError::statement(&self.central.server))
    }
}

fn table_named(name: &str) -> Option<&'static SentTable> {
    SENT_TABLES.iter().find(|table| table.name == name)
}

/// Its code, or its key.
fn name_of(row: &Value, table: &SentTable) -> String {
    let text = |column: &str| row.get(column).and_then(Value::as_str).map(str::to_owned);
    let key = table.key.last().and_then(|key| text(key)).unwrap_or_default();
    match text("code") {
        Some(code) => format!("{code} ({key})"),
        None => key,
    }
}
