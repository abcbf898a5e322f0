//! [`Central`]: a connection to the central PostgreSQL. What `loupe db` does with one is in the files beside this.
//!
//! How the connection is protected is the DSN's to say: `dsn.rs`.

use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, NoTls};
use tracing::{debug, warn};

use super::dsn::{Dsn, TlsMode};
use super::tls::Connector;
use super::{Secret, UplinkError};
use crate::limits;

/// A connection; dropped, it closes.
#[derive(Debug)]
pub struct Central {
    pub(super) client: Client,
    /// `host:port/database`, for messages.
    pub(super) server: String,
    pub(super) address: Address,
    driver: JoinHandle<()>,
}

/// Where a server is, without who logs in.
#[derive(Debug, Clone)]
pub(super) struct Address {
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
    pub(super) fn dsn_of(&self, role: &str, password: &str) -> Secret {
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

/// Where a DSN leads and as whom: what of it is no secret. `None`: it cannot be read.
#[must_use]
pub fn server_of(dsn: &Secret) -> Option<String> {
    let dsn = Dsn::parse(dsn).ok()?;
    let user = dsn.config.get_user().unwrap_or_default();
    Some(format!("{user}@{} sslmode={}", Address::of(&dsn), dsn.tls.as_str()))
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

    /// Refuse a login that does not see the rows of every site: it would leave what it computes incomplete, silently.
    pub(super) async fn must_read_all(&self) -> Result<(), UplinkError> {
        if self.exists("SELECT loupe.reads_all()").await? {
            return Ok(());
        }
        Err(UplinkError::NotJob { server: self.server.clone() })
    }

    pub(super) async fn exists(&self, sql: &str) -> Result<bool, UplinkError> {
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
