//! `loupe db retention`: partitions made ahead, stray rows moved into theirs, expired partitions dropped.
//!
//! First a plan, which only reads; then each step in a transaction of its own, so that a lock that cannot be had fails
//! that step and no other. What a legal hold covers is never deleted: the rest of its partition is. Every deletion is
//! audited. A row in DEFAULT expires only when it has also been here for the time it is kept, since its own time is what
//! put it there.

use std::fmt::Write as _;

use serde::Serialize;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};
use tracing::warn;

use super::UplinkError;
use super::central::Central;
use crate::failpoint;

/// How long a step may wait for a lock that deliveries hold.
const LOCK_TIMEOUT: &str = "10s";
/// How far ahead a row's own time is believed; beyond it the row stays in DEFAULT, and is reported.
const AHEAD_MAX: &str = "366 days";
/// The audit's own log: it may lose its beginning, never rows in between.
const AUDIT_LOG: &str = "audit_log";

/// What is done to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Make a partition ahead.
    Make,
    /// Make a partition of rows that lie in DEFAULT.
    Move,
    /// Drop an expired partition.
    Drop,
    /// Delete from an expired partition what no legal hold covers.
    Purge,
    /// Delete expired rows from DEFAULT.
    Expire,
    /// An expired partition that a legal hold covers whole: nothing is done.
    Hold,
    /// Rows in DEFAULT whose time is not believable or expired: nothing is done yet.
    Stray,
}

impl StepKind {
    /// Whether there is anything to do.
    #[must_use]
    pub fn acts(self) -> bool {
        !matches!(self, Self::Hold | Self::Stray)
    }
}

/// One thing that retention did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionStep {
    pub kind: StepKind,
    pub table: String,
    pub partition: String,
    /// Start of the stretch, RFC 3339.
    pub starts_at: String,
    /// Rows moved, deleted or left; 0 for a partition made ahead.
    pub rows: i64,
    /// Why it failed; such a step changed nothing.
    pub error: Option<String>,
}

/// What a run did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionReport {
    /// `host:port/database`.
    pub server: String,
    pub is_dry_run: bool,
    pub steps: Vec<RetentionStep>,
    /// Partitioned tables without a retention policy: kept for ever.
    pub tables_without_policy: Vec<String>,
}

impl RetentionReport {
    #[must_use]
    pub fn failures(&self) -> usize {
        self.steps.iter().filter(|step| step.error.is_some()).count()
    }
}

/// A partitioned table and what is to be done with it.
struct Table {
    name: String,
    key: String,
    unit: String,
    keep_days: Option<i32>,
    default_partition: String,
    has_ingested_at: bool,
}

impl Table {
    /// SQL: whether a row of alias `t` is on legal hold.
    fn is_held(&self) -> String {
        format!(
            "EXISTS (SELECT FROM loupe.legal_holds h WHERE h.released_at IS NULL
                AND (h.site_id IS NULL OR h.site_id = t.site_id)
                AND t.{key} >= h.starts_at AND t.{key} < h.ends_at)",
            key = self.key
        )
    }

    /// SQL: whether a row of alias `t` in DEFAULT has expired.
    fn has_expired(&self) -> String {
        let Some(days) = self.keep_days.filter(|_| self.name != AUDIT_LOG) else { return "false".to_owned() };
        let time = if self.has_ingested_at {
            format!("greatest(t.{}, t.ingested_at)", self.key)
        } else {
            format!("t.{}", self.key)
        };
        format!("{time} < now() - interval '{days} days'")
    }
}

const TABLES: &str = "SELECT d.table_name, quote_ident(d.key_column), coalesce(p.unit, 'month'), r.keep_days,
        d.partition_name, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = format('loupe.%I', d.table_name)::regclass
            AND a.attname = 'ingested_at'), r.table_name IS NOT NULL
    FROM loupe.partition_bounds() d
    LEFT JOIN loupe.partition_policies p ON p.table_name = d.table_name
    LEFT JOIN loupe.retention_policies r ON r.table_name = d.table_name
    WHERE d.is_default ORDER BY d.table_name";

const MISSING_AHEAD: &str = "SELECT t.table_name, loupe.partition_name(t.table_name, t.unit, s.starts_at),
        to_char(s.starts_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
    FROM (SELECT d.table_name, coalesce(p.unit, 'month') AS unit, coalesce(p.ahead, 3) AS ahead
        FROM loupe.partition_bounds() d LEFT JOIN loupe.partition_policies p ON p.table_name = d.table_name
        WHERE d.is_default) t
    CROSS JOIN LATERAL generate_series(0, t.ahead) AS n (number)
    CROSS JOIN LATERAL (SELECT date_trunc(t.unit, now()) + n.number * ('1 ' || t.unit)::interval AS starts_at) s
    WHERE NOT EXISTS (SELECT FROM loupe.partition_bounds() b WHERE b.table_name = t.table_name
        AND b.starts_at < s.starts_at + ('1 ' || t.unit)::interval AND b.ends_at > s.starts_at)
    ORDER BY 1, 3";

const EXPIRED: &str = "SELECT b.partition_name, to_char(b.starts_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
    FROM loupe.partition_bounds() b
    WHERE b.table_name = $1 AND b.ends_at <= now() - make_interval(days => $2) ORDER BY b.starts_at";

impl Central {
    /// Make partitions ahead, move rows out of DEFAULT, drop what has expired; with `is_dry_run` only say so.
    ///
    /// # Errors
    /// When the login is not a job's, or the plan cannot be made. A step that fails is in the report.
    pub async fn retention(&mut self, is_dry_run: bool) -> Result<RetentionReport, UplinkError> {
        self.check_same_schema().await?;
        self.must_read_all().await?;
        let (tables, mut steps, tables_without_policy) = self.plan().await?;
        if !is_dry_run {
            for step in steps.iter_mut().filter(|step| step.kind.acts()) {
                let Some(table) = tables.iter().find(|table| table.name == step.table) else { continue };
                if let Err(error) = self.carry_out(table, step).await {
                    warn!(partition = step.partition, %error, "a step of the retention failed");
                    step.error = Some(error.to_string());
                }
            }
        }
        Ok(RetentionReport { server: self.server.clone(), is_dry_run, steps, tables_without_policy })
    }

    async fn plan(&mut self) -> Result<(Vec<Table>, Vec<RetentionStep>, Vec<String>), UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        transaction
            .batch_execute("SET LOCAL timezone = 'UTC'; SET LOCAL ROLE loupe_owner")
            .await
            .map_err(&on_statement)?;
        let rows = transaction.query_typed(TABLES, &[]).await.map_err(&on_statement)?;
        let without = rows.iter().filter(|row| !row.get::<_, bool>(6)).map(|row| row.get(0)).collect();
        let tables: Vec<Table> = rows
            .iter()
            .map(|row| Table {
                name: row.get(0),
                key: row.get(1),
                unit: row.get(2),
                keep_days: row.get(3),
                default_partition: row.get(4),
                has_ingested_at: row.get(5),
            })
            .collect();
        let missing = transaction.query_typed(MISSING_AHEAD, &[]).await.map_err(&on_statement)?;
        let mut steps: Vec<RetentionStep> =
            missing.iter().map(|row| step(StepKind::Make, row.get(0), row.get(1), row.get(2), 0)).collect();
        for table in &tables {
            plan_default(&transaction, table, &mut steps).await.map_err(&on_statement)?;
            plan_expired(&transaction, table, &mut steps).await.map_err(&on_statement)?;
        }
        transaction.rollback().await.map_err(&on_statement)?;
        Ok((tables, steps, without))
    }

    async fn carry_out(&mut self, table: &Table, step: &mut RetentionStep) -> Result<(), UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let begin = format!(
            "SET LOCAL timezone = 'UTC'; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL ROLE loupe_owner;
             LOCK TABLE loupe.legal_holds IN SHARE MODE"
        );
        transaction.batch_execute(&begin).await.map_err(&on_statement)?;
        failpoint::hit("central.retention.begun");
        match step.kind {
            StepKind::Make | StepKind::Move => {
                let sql = "SELECT loupe.make_partition($1, $2::text::timestamptz)";
                transaction
                    .query_typed(sql, &[(&step.table, Type::TEXT), (&step.starts_at, Type::TEXT)])
                    .await
                    .map_err(&on_statement)?;
            }
            StepKind::Drop | StepKind::Purge => {
                drop_or_purge(&transaction, table, step).await.map_err(&on_statement)?
            }
            StepKind::Expire => {
                let sql = format!(
                    "DELETE FROM loupe.{} t WHERE {} AND NOT {}",
                    quoted(&table.default_partition),
                    table.has_expired(),
                    table.is_held()
                );
                step.rows = deleted(transaction.execute_typed(&sql, &[]).await.map_err(&on_statement)?);
                audit(&transaction, step).await.map_err(&on_statement)?;
            }
            StepKind::Hold | StepKind::Stray => {}
        }
        failpoint::hit("central.retention.done");
        transaction.commit().await.map_err(&on_statement)?;
        failpoint::hit("central.retention.committed");
        Ok(())
    }
}

fn step(kind: StepKind, table: String, partition: String, starts_at: String, rows: i64) -> RetentionStep {
    RetentionStep { kind, table, partition, starts_at, rows, error: None }
}

/// A partition's name as SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn deleted(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// What lies in DEFAULT: rows of months that can be made, rows that have expired, and rows nobody can place.
async fn plan_default(
    client: &impl GenericClient,
    table: &Table,
    steps: &mut Vec<RetentionStep>,
) -> Result<(), tokio_postgres::Error> {
    let from = table.keep_days.map_or_else(
        || "true".to_owned(),
        |days| format!("s.starts_at >= date_trunc('{}', now() - interval '{days} days')", table.unit),
    );
    let sql = format!(
        "SELECT to_char(s.starts_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), loupe.partition_name($1, '{unit}', s.starts_at),
            s.rows, s.expired, {from} AND s.starts_at <= now() + interval '{AHEAD_MAX}'
                AND NOT EXISTS (SELECT FROM loupe.partition_bounds() b WHERE b.table_name = $1
                    AND b.starts_at < s.starts_at + interval '1 {unit}' AND b.ends_at > s.starts_at)
         FROM (SELECT date_trunc('{unit}', t.{key}) AS starts_at, count(*) AS rows,
                count(*) FILTER (WHERE {expired} AND NOT {held}) AS expired
             FROM loupe.{default} t GROUP BY 1) s
         ORDER BY s.starts_at",
        unit = table.unit,
        key = table.key,
        expired = table.has_expired(),
        held = table.is_held(),
        default = quoted(&table.default_partition),
    );
    let mut expired_total = 0;
    for row in client.query_typed(&sql, &[(&table.name, Type::TEXT)]).await? {
        let (starts_at, partition): (String, String) = (row.get(0), row.get(1));
        let (rows, expired): (i64, i64) = (row.get(2), row.get(3));
        if row.get(4) {
            // One of the months ahead takes its rows along when it is made.
            let ahead = |made: &&mut RetentionStep| made.table == table.name && made.partition == partition;
            if let Some(made) = steps.iter_mut().find(ahead) {
                made.kind = StepKind::Move;
                made.rows = rows;
            } else {
                steps.push(step(StepKind::Move, table.name.clone(), partition, starts_at, rows));
            }
            continue;
        }
        expired_total += expired;
        if rows > expired {
            let stays = table.default_partition.clone();
            steps.push(step(StepKind::Stray, table.name.clone(), stays, starts_at, rows - expired));
        }
    }
    if expired_total > 0 {
        let from = table.default_partition.clone();
        steps.push(step(StepKind::Expire, table.name.clone(), from, String::new(), expired_total));
    }
    Ok(())
}

/// Partitions that end before the time their rows are kept.
async fn plan_expired(
    client: &impl GenericClient,
    table: &Table,
    steps: &mut Vec<RetentionStep>,
) -> Result<(), tokio_postgres::Error> {
    let Some(days) = table.keep_days else { return Ok(()) };
    for row in client.query_typed(EXPIRED, &[(&table.name, Type::TEXT), (&days, Type::INT4)]).await? {
        let (partition, starts_at): (String, String) = (row.get(0), row.get(1));
        let (rows, held) = count(client, table, &partition).await?;
        let kind = kind_of(table, rows, held);
        let rows = if kind == StepKind::Hold { held } else { rows - held };
        steps.push(step(kind, table.name.clone(), partition, starts_at, rows));
    }
    Ok(())
}

fn kind_of(table: &Table, rows: i64, held: i64) -> StepKind {
    if held == 0 {
        StepKind::Drop
    } else if held == rows || table.name == AUDIT_LOG {
        StepKind::Hold
    } else {
        StepKind::Purge
    }
}

/// Rows of a partition, and those on hold.
async fn count(
    client: &impl GenericClient,
    table: &Table,
    partition: &str,
) -> Result<(i64, i64), tokio_postgres::Error> {
    let sql =
        format!("SELECT count(*), count(*) FILTER (WHERE {}) FROM loupe.{} t", table.is_held(), quoted(partition));
    let rows = client.query_typed(&sql, &[]).await?;
    Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
}

/// Holds may have been placed since the plan: look again, now that none can be.
async fn drop_or_purge(
    transaction: &Transaction<'_>,
    table: &Table,
    step: &mut RetentionStep,
) -> Result<(), tokio_postgres::Error> {
    let (rows, held) = count(transaction, table, &step.partition).await?;
    step.kind = kind_of(table, rows, held);
    step.rows = rows - held;
    let partition = quoted(&step.partition);
    let mut sql = String::new();
    match step.kind {
        StepKind::Drop => {
            if table.name == AUDIT_LOG {
                write_anchors(transaction, &partition).await?;
            }
            let _infallible = write!(sql, "DROP TABLE loupe.{partition}");
        }
        StepKind::Purge => {
            let _infallible = write!(sql, "DELETE FROM loupe.{partition} t WHERE NOT {}", table.is_held());
        }
        _ => {
            step.rows = held;
            return Ok(());
        }
    }
    transaction.batch_execute(&sql).await?;
    audit(transaction, step).await
}

/// Remember where each chain goes on.
async fn write_anchors(transaction: &Transaction<'_>, partition: &str) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "INSERT INTO loupe.audit_anchors (chain, last_seq, last_sha256, dropped_to)
         SELECT DISTINCT ON (chain) chain, chain_seq, row_sha256, occurred_at + interval '1 microsecond'
         FROM loupe.{partition} ORDER BY chain, chain_seq DESC
         ON CONFLICT (chain, last_seq) DO NOTHING"
    );
    transaction.batch_execute(&sql).await
}

async fn audit(transaction: &Transaction<'_>, step: &RetentionStep) -> Result<(), tokio_postgres::Error> {
    let details = serde_json::json!({ "table": step.table, "kind": step.kind, "rows": step.rows }).to_string();
    let sql = "SELECT loupe.audit('delete', 'partition', $1, NULL, NULL, $2::text::jsonb)";
    transaction.query_typed(sql, &[(&step.partition, Type::TEXT), (&details, Type::TEXT)]).await.map(|_| ())
}
