//! A connection to the central PostgreSQL, and what `loupe db` does with one.
//!
//! How the connection is protected is the DSN's to say: `dsn.rs`.

use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls};
use tracing::{debug, warn};
use uuid::Uuid;

use super::dsn::{Dsn, TlsMode};
use super::tls::Connector;
use super::{Secret, UplinkError};
use crate::limits;

mod embedded {
    refinery::embed_migrations!("migrations/central");
}

const HISTORY_TABLE: &str = "loupe.schema_migrations";

/// A connection; dropped, it closes.
#[derive(Debug)]
pub struct Central {
    pub(super) client: Client,
    /// `host:port/database`, for messages.
    pub(super) server: String,
    address: Address,
    driver: JoinHandle<()>,
}

/// Where a server is, without who logs in.
#[derive(Debug, Clone)]
struct Address {
    host: String,
    port: u16,
    database: String,
    tls: TlsMode,
}

impl Address {
    fn of(dsn: &Dsn) -> Self {
        let config = &dsn.config;
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres").to_owned();
        Self { host, port, database, tls: dsn.tls }
    }

    /// `role` and `password` need no escaping: this program made them.
    fn dsn_of(&self, role: &str, password: &str) -> Secret {
        let Self { host, port, database, tls } = self;
        let sslmode = tls.as_str();
        Secret::new(format!(
            "host='{host}' port={port} dbname='{database}' user='{role}' password='{password}' sslmode={sslmode}"
        ))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

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
}

/// One migration that this program carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MigrationState {
    pub version: i32,
    pub name: String,
    /// RFC 3339; `None` while it waits.
    pub applied_on: Option<String>,
}

/// A site's new login; its password is shown once.
#[derive(Debug, Clone)]
pub struct ProvisionedSite {
    pub site_id: Uuid,
    pub role_name: String,
    pub password: Secret,
    /// What the site's devices connect with; holds the password.
    pub dsn: Secret,
}

/// Version of the schema that this program needs.
pub(super) fn needed_version() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(|m| m.version()).max().unwrap_or(0)
}

/// Migrations that only what flows down needs: a centre without them is delivered to all the same.
const DOWN_ONLY: [i32; 2] = [10, 11];

/// Version of the schema that delivering needs.
fn delivery_version() -> i32 {
    let needed = |version: &i32| !DOWN_ONLY.contains(version);
    embedded::migrations::runner().get_migrations().iter().map(|m| m.version()).filter(needed).max().unwrap_or(0)
}

impl Drop for Central {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Central {
    /// Connect, within 10 s unless the DSN says otherwise. Needs a running Tokio runtime.
    ///
    /// # Errors
    /// When the DSN cannot be read or the server refuses.
    pub async fn connect(dsn: &Secret) -> Result<Self, UplinkError> {
        let dsn = Dsn::parse(dsn)?;
        let address = Address::of(&dsn);
        let server = address.to_string();
        // The driver limits the time of the TCP connection only; a server that accepts and then says nothing is one too.
        let limit = dsn.config.get_connect_timeout().copied().unwrap_or(limits::UPLINK_CONNECT_TIME_MAX);
        let silent = UplinkError::Timeout { server: server.clone(), seconds: limit.as_secs() };
        let (client, driver) = tokio::time::timeout(limit, open(&dsn, &server)).await.map_err(|_| silent)??;
        Ok(Self { client, server, address, driver })
    }

    /// `host:port/database`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether the server still listens, as far as is known here.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Bring the schema to this program's version and make the partitions of this month and the next three.
    ///
    /// # Errors
    /// When the login may not, or a migration fails; each is one transaction.
    pub async fn migrate(&mut self) -> Result<MigrationReport, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        // One migration at a time; released with the session.
        self.client.batch_execute("SELECT pg_advisory_lock(hashtext('loupe.migrate'))").await.map_err(&on_statement)?;
        if self.exists("SELECT to_regnamespace('loupe') IS NOT NULL").await? {
            debug!(server = %self.server, "the schema is there");
        } else {
            self.client.batch_execute("CREATE SCHEMA loupe").await.map_err(&on_statement)?;
        }
        let mut runner = embedded::migrations::runner();
        runner.set_migration_table_name(HISTORY_TABLE);
        let server = self.server.clone();
        let report = runner
            .run_async(&mut self.client)
            .await
            .map_err(|source| UplinkError::Migrate { server, source: Box::new(source) })?;
        let made = self
            .client
            .query_typed("SELECT loupe.ensure_partitions()", &[])
            .await
            .map_err(UplinkError::statement(&self.server))?;
        self.client
            .batch_execute("SELECT pg_advisory_unlock(hashtext('loupe.migrate'))")
            .await
            .map_err(UplinkError::statement(&self.server))?;
        Ok(MigrationReport {
            server: self.server.clone(),
            applied: report.applied_migrations().iter().map(ToString::to_string).collect(),
            partitions: made.iter().map(|row| row.get(0)).collect(),
            version: needed_version(),
        })
    }

    /// What is applied here, and how the partitions stand.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn status(&self) -> Result<SchemaStatus, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let version_row = self.client.query_typed("SHOW server_version", &[]).await.map_err(&on_statement)?;
        let server_version = version_row.first().map_or_else(String::new, |row| row.get(0));
        let applied = self.applied().await?;
        let migrations = embedded::migrations::runner()
            .get_migrations()
            .iter()
            .map(|migration| MigrationState {
                version: migration.version(),
                name: migration.name().to_owned(),
                applied_on: applied
                    .iter()
                    .find(|(version, _)| *version == migration.version())
                    .map(|(_, on)| on.clone()),
            })
            .collect();
        let mut status = SchemaStatus {
            server: self.server.clone(),
            server_version,
            migrations,
            last_partition: None,
            rows_in_default: 0,
        };
        if status.is_current() {
            let row = self
                .client
                .query_typed(
                    "SELECT (SELECT max(right(c.relname, 7)) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                             WHERE i.inhparent = 'loupe.inspections'::regclass AND c.relname <> 'inspections_default'),
                        (SELECT count(*) FROM (SELECT FROM loupe.inspections_default LIMIT 1000) x)
                        + (SELECT count(*) FROM (SELECT FROM loupe.items_default LIMIT 1000) x)",
                    &[],
                )
                .await
                .map_err(&on_statement)?;
            if let Some(row) = row.first() {
                status.last_partition = row.get(0);
                status.rows_in_default = row.get(1);
            }
        }
        Ok(status)
    }

    /// Make a site and its login role, which may do nothing but deliver that site's rows.
    ///
    /// # Errors
    /// When the code is malformed or taken, or the login may not create roles.
    pub async fn provision_site(
        &mut self,
        code: &str,
        name: &str,
        site_id: Option<Uuid>,
    ) -> Result<ProvisionedSite, UplinkError> {
        let is_well_formed = (2..=40).contains(&code.len())
            && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_well_formed {
            let detail = format!("the site code `{code}` must be 2 to 40 of a-z, 0-9 and -");
            return Err(UplinkError::Provision { detail });
        }
        self.check_schema().await?;
        let site_id = site_id.unwrap_or_else(Uuid::now_v7);
        let role_name = format!("loupe_site_{code}");
        let password = random_password()?;
        // The server gets the verifier, so that the password cannot reach its log.
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let insert_site = "INSERT INTO loupe.sites (id, code, name) VALUES ($1, $2, $3)";
        transaction
            .execute_typed(insert_site, &[(&site_id, Type::UUID), (&code, Type::TEXT), (&name, Type::TEXT)])
            .await
            .map_err(&on_statement)?;
        transaction
            .batch_execute(&format!("CREATE ROLE \"{role_name}\" LOGIN PASSWORD '{verifier}' IN ROLE loupe_device"))
            .await
            .map_err(&on_statement)?;
        let insert_login = "INSERT INTO loupe.site_logins (role_name, site_id) VALUES ($1, $2)";
        transaction
            .execute_typed(insert_login, &[(&role_name, Type::TEXT), (&site_id, Type::UUID)])
            .await
            .map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        let dsn = self.address.dsn_of(&role_name, &password);
        Ok(ProvisionedSite { site_id, role_name, password: Secret::new(password), dsn })
    }

    /// Refuse a database whose schema is older than delivering needs.
    pub(super) async fn check_schema(&self) -> Result<(), UplinkError> {
        let found = self.applied().await?.iter().map(|(version, _)| *version).max().unwrap_or(0);
        let needed = delivery_version();
        if found < needed {
            return Err(UplinkError::NotMigrated { server: self.server.clone(), found, needed });
        }
        Ok(())
    }

    /// Versions applied, with their times.
    async fn applied(&self) -> Result<Vec<(i32, String)>, UplinkError> {
        if !self.exists("SELECT to_regclass('loupe.schema_migrations') IS NOT NULL").await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT version, applied_on FROM loupe.schema_migrations ORDER BY version";
        let rows = self.client.query_typed(sql, &[]).await.map_err(UplinkError::statement(&self.server))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn exists(&self, sql: &str) -> Result<bool, UplinkError> {
        let rows = self.client.query_typed(sql, &[]).await.map_err(UplinkError::statement(&self.server))?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }
}

async fn open(dsn: &Dsn, server: &str) -> Result<(Client, JoinHandle<()>), UplinkError> {
    let failed = |source| UplinkError::connection(server, source);
    let is_plain = dsn.tls == TlsMode::Disable || (dsn.tls == TlsMode::Prefer && dsn.is_local());
    if is_plain {
        if !dsn.is_local() {
            warn!(%server, "the connection is not encrypted; say sslmode=verify-full in the DSN");
        }
        let (client, connection) = dsn.config.connect(NoTls).await.map_err(failed)?;
        return Ok((client, tokio::spawn(drive(connection))));
    }
    let connector = Connector::new(server, dsn.tls, dsn.root_cert())?;
    let (client, connection) = dsn.config.connect(connector.clone()).await.map_err(failed)?;
    if !connector.was_used() {
        warn!(%server, "the server offers no TLS: the connection is not encrypted; say sslmode=verify-full in the DSN");
    } else if dsn.tls == TlsMode::Prefer {
        warn!(%server, "the server is not checked to be the right one; say sslmode=verify-full in the DSN");
    }
    Ok((client, tokio::spawn(drive(connection))))
}

async fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = connection.await {
        debug!(%error, "the connection to the central database ended");
    }
}

/// 192 bits of the kernel's randomness, in hexadecimal.
fn random_password() -> Result<String, UplinkError> {
    use std::io::Read as _;
    let mut bytes = [0_u8; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| UplinkError::Provision { detail: format!("no randomness from /dev/urandom: {error}") })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::{Address, Dsn, Secret};

    #[test]
    fn a_server_is_named_without_its_password() {
        let dsn = Dsn::parse(&Secret::new("postgresql://dev:hunter2@db.plant:6432/loupe?sslmode=verify-full")).unwrap();
        let address = Address::of(&dsn);
        assert_eq!(address.to_string(), "db.plant:6432/loupe");
        let again = Dsn::parse(&address.dsn_of("loupe_site_x", "sesame")).unwrap();
        assert_eq!(Address::of(&again).to_string(), address.to_string());
        assert_eq!(again.tls, dsn.tls);
    }
}
