//! The central schema: bringing it to this program's version, and how it stands.
//!
//! A run is one transaction with all its migrations and partitions: one that fails or is cut off leaves the database as
//! before. Each migration's checksum is kept; an edited one, one that this program does not know, and a schema newer than
//! this program stop the run. Devices may send to a newer schema, since migrations only add.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};

use super::UplinkError;
use super::central::Central;

mod embedded {
    refinery::embed_migrations!("migrations/central");
}

/// The table of what ran, as refinery keeps it.
const BEGINNING: &str = "CREATE SCHEMA IF NOT EXISTS loupe;
    CREATE TABLE loupe.schema_migrations (
        version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255))";

/// What [`Central::migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationReport {
    /// `host:port/database`.
    pub server: String,
    /// Migrations applied now.
    pub applied: Vec<String>,
    /// Partitions made now.
    pub partitions: Vec<String>,
    /// Version of the schema after it.
    pub version: i32,
}

/// State of the central schema.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SchemaStatus {
    /// `host:port/database`.
    pub server: String,
    pub server_version: String,
    /// Highest migration there; 0: none.
    pub version: i32,
    pub migrations: Vec<MigrationState>,
    /// Last month with a partition of `inspections`, `YYYY_MM`.
    pub last_partition: Option<String>,
    /// Rows in DEFAULT partitions (a device's clock is wrong, or months are missing), at most 1,000 counted a table.
    pub rows_in_default: i64,
}

impl SchemaStatus {
    /// Whether this program can send to it.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.migrations.iter().all(|migration| migration.applied_on.is_some())
    }

    /// Whether it is ahead of this program, which then may only send to it.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        self.version > needed_version()
    }
}

/// One migration that this program carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MigrationState {
    pub version: i32,
    pub name: String,
    /// RFC 3339; `None` while it waits.
    pub applied_on: Option<String>,
}

/// A migration that ran.
#[derive(Debug, Clone)]
struct Applied {
    name: String,
    on: String,
    checksum: String,
}

/// Version of the schema that this program needs.
pub(super) fn needed_version() -> i32 {
    carried().iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Migrations that only what flows down needs: a centre without them is delivered to all the same.
const DOWN_ONLY: [i32; 3] = [10, 11, 12];

/// Version of the schema that delivering needs.
fn delivery_version() -> i32 {
    let needed = |version: &i32| !DOWN_ONLY.contains(version);
    carried().iter().map(|migration| migration.version).filter(needed).max().unwrap_or(0)
}

/// A migration that this program carries.
struct Carried {
    version: i32,
    name: String,
    checksum: String,
    sql: String,
}

fn carried() -> Vec<Carried> {
    let runner = embedded::migrations::runner();
    let mut carried: Vec<Carried> = runner
        .get_migrations()
        .iter()
        .map(|migration| Carried {
            version: migration.version(),
            name: migration.name().to_owned(),
            checksum: migration.checksum().to_string(),
            sql: migration.sql().unwrap_or_default().to_owned(),
        })
        .collect();
    carried.sort_by_key(|migration| migration.version);
    carried
}

impl Central {
    /// Bring the schema to this program's version and make the partitions of this month and those ahead.
    ///
    /// # Errors
    /// When the login may not, a migration fails, or the schema there is not a forerunner of this program's; nothing is
    /// changed then.
    pub async fn migrate(&mut self) -> Result<MigrationReport, UplinkError> {
        self.migrate_to(needed_version()).await
    }

    /// The same up to one version, to rehearse an upgrade from it.
    ///
    /// # Errors
    /// As [`Central::migrate`].
    pub async fn migrate_to(&mut self, version: i32) -> Result<MigrationReport, UplinkError> {
        let server = self.server.clone();
        let on_statement = UplinkError::statement(&server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        // One migration at a time; released with the transaction.
        transaction
            .batch_execute("SELECT pg_advisory_xact_lock(hashtext('loupe.migrate'))")
            .await
            .map_err(&on_statement)?;
        let there = transaction
            .query_typed("SELECT to_regclass('loupe.schema_migrations') IS NOT NULL", &[])
            .await
            .map_err(&on_statement)?;
        if !there.first().is_some_and(|row| row.get(0)) {
            transaction.batch_execute(BEGINNING).await.map_err(&on_statement)?;
        }
        let before = applied(&transaction, &server).await?;
        let waiting = waiting(&server, before, version)?;
        let mut done = Vec::new();
        for migration in &waiting {
            done.push(apply(&transaction, &server, migration).await?);
        }
        // The function that makes partitions comes with the third.
        let made = if version >= 3 {
            transaction.query_typed("SELECT loupe.ensure_partitions()", &[]).await.map_err(&on_statement)?
        } else {
            Vec::new()
        };
        transaction.commit().await.map_err(&on_statement)?;
        Ok(MigrationReport { server, applied: done, partitions: made.iter().map(|row| row.get(0)).collect(), version })
    }

    /// What is applied here, and how the partitions stand.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn status(&self) -> Result<SchemaStatus, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let version_row = self.client.query_typed("SHOW server_version", &[]).await.map_err(&on_statement)?;
        let server_version = version_row.first().map_or_else(String::new, |row| row.get(0));
        let mut applied = self.applied().await?;
        let version = applied.keys().max().copied().unwrap_or(0);
        let migrations = carried()
            .into_iter()
            .map(|Carried { version, name, .. }| MigrationState {
                version,
                name,
                applied_on: applied.remove(&version).map(|applied| applied.on),
            })
            .collect();
        let mut status = SchemaStatus {
            server: self.server.clone(),
            server_version,
            version,
            migrations,
            last_partition: None,
            rows_in_default: 0,
        };
        if status.is_current() {
            let sql = "SELECT to_char(max(ends_at) FILTER (WHERE table_name = 'inspections') - interval '1 second',
                    'YYYY_MM'), sum(default_row_count)::bigint
                FROM loupe.v_partition_health";
            let row = self.client.query_typed(sql, &[]).await.map_err(&on_statement)?;
            if let Some(row) = row.first() {
                status.last_partition = row.get(0);
                status.rows_in_default = row.get(1);
            }
        }
        Ok(status)
    }

    /// Refuse a database whose schema is older than this program needs.
    pub(super) async fn check_schema(&self) -> Result<(), UplinkError> {
        let found = self.applied().await?.keys().max().copied().unwrap_or(0);
        let needed = delivery_version();
        if found < needed {
            return Err(UplinkError::NotMigrated { server: self.server.clone(), found, needed });
        }
        Ok(())
    }

    /// Refuse one that is older or newer: a job of another version might compute something else.
    pub(super) async fn check_same_schema(&self) -> Result<(), UplinkError> {
        self.check_schema().await?;
        let found = self.applied().await?.keys().max().copied().unwrap_or(0);
        let needed = needed_version();
        if found > needed {
            return Err(UplinkError::SchemaNewer { server: self.server.clone(), found, needed });
        }
        Ok(())
    }

    /// What is applied, by version.
    async fn applied(&self) -> Result<BTreeMap<i32, Applied>, UplinkError> {
        if !self.exists("SELECT to_regclass('loupe.schema_migrations') IS NOT NULL").await? {
            return Ok(BTreeMap::new());
        }
        applied(&self.client, &self.server).await
    }
}

async fn applied(client: &impl GenericClient, server: &str) -> Result<BTreeMap<i32, Applied>, UplinkError> {
    let sql = "SELECT version, name, applied_on, checksum FROM loupe.schema_migrations";
    let rows = client.query_typed(sql, &[]).await.map_err(UplinkError::statement(server))?;
    let read = |row: &tokio_postgres::Row| Applied { name: row.get(1), on: row.get(2), checksum: row.get(3) };
    Ok(rows.iter().map(|row| (row.get(0), read(row))).collect())
}

/// The migrations up to `version` that `applied` lacks; all of `applied` must be this program's.
fn waiting(server: &str, applied: BTreeMap<i32, Applied>, version: i32) -> Result<Vec<Carried>, UplinkError> {
    let carried = carried();
    let needed = needed_version();
    if let Some((&found, _)) = applied.iter().next_back().filter(|(found, _)| **found > needed) {
        return Err(UplinkError::SchemaNewer { server: server.to_owned(), found, needed });
    }
    for (found, there) in &applied {
        let ours = carried.iter().find(|migration| migration.version == *found);
        if !ours.is_some_and(|ours| ours.name == there.name && ours.checksum == there.checksum) {
            let migration = format!("V{found}__{}", there.name);
            return Err(UplinkError::MigrationChanged { server: server.to_owned(), migration });
        }
    }
    let waits = |migration: &Carried| migration.version <= version && !applied.contains_key(&migration.version);
    Ok(carried.into_iter().filter(waits).collect())
}

async fn apply(transaction: &Transaction<'_>, server: &str, migration: &Carried) -> Result<String, UplinkError> {
    let Carried { version, name, checksum, sql } = migration;
    let shown = format!("V{version}__{name}");
    let failed = |source| UplinkError::Migrate { server: server.to_owned(), migration: shown.clone(), source };
    transaction.batch_execute(sql).await.map_err(failed)?;
    let insert = "INSERT INTO loupe.schema_migrations (version, name, applied_on, checksum)
        VALUES ($1, $2, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), $3)";
    transaction
        .execute_typed(insert, &[(version, Type::INT4), (name, Type::TEXT), (checksum, Type::TEXT)])
        .await
        .map_err(failed)?;
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Applied, carried, needed_version, waiting};

    fn as_applied(up_to: i32) -> BTreeMap<i32, Applied> {
        carried()
            .into_iter()
            .filter(|migration| migration.version <= up_to)
            .map(|m| (m.version, Applied { name: m.name, on: String::new(), checksum: m.checksum }))
            .collect()
    }

    #[test]
    fn only_the_missing_ones_wait_in_order() {
        let versions: Vec<i32> = waiting("db", as_applied(3), 5).unwrap().iter().map(|m| m.version).collect();
        assert_eq!(versions, [4, 5]);
        assert!(waiting("db", as_applied(needed_version()), needed_version()).unwrap().is_empty());
    }

    #[test]
    fn an_edited_unknown_or_newer_migration_stops_the_run() {
        let fail = |applied| waiting("db", applied, needed_version()).err().unwrap().to_string();
        let mut edited = as_applied(5);
        edited.get_mut(&4).unwrap().checksum = "1".to_owned();
        assert!(fail(edited).contains("V4__reviews"));
        let stray = Applied { name: "stray".to_owned(), on: String::new(), checksum: "1".to_owned() };
        let mut newer = as_applied(needed_version());
        newer.insert(needed_version() + 1, stray.clone());
        assert!(fail(newer).contains("newer"));
        let mut unknown = as_applied(5);
        unknown.insert(0, stray);
        assert!(fail(unknown).contains("V0__stray"));
    }
}
