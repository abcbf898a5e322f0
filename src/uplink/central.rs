//! [`Central`]: a connection to the central PostgreSQL. What `loupe db` does with one is in the files beside this.
//!
//! TLS where the DSN says sslmode=require, verify-ca or verify-full: the certificate is always checked against the
//! system's authorities (or those in SSL_CERT_FILE). Without it the connection is in the clear.

use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};
use tracing::{debug, warn};

use super::dsn::{is_local, parse, tls};
use super::{Secret, UplinkError};

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
    wants_tls: bool,
}

impl Address {
    fn of(config: &Config, wants_tls: bool) -> Self {
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres").to_owned();
        Self { host, port, database, wants_tls }
    }

    /// `role` and `password` need no escaping: this program made them.
    pub(super) fn dsn_of(&self, role: &str, password: &str) -> Secret {
        let Self { host, port, database, wants_tls } = self;
        let sslmode = if *wants_tls { "require" } else { "prefer" };
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
        let (config, wants_tls) = parse(dsn)?;
        let address = Address::of(&config, wants_tls);
        let server = address.to_string();
        let failed = |source| UplinkError::Connect { server: server.clone(), source };
        let (client, driver) = if wants_tls {
            let (client, connection) = config.connect(tls(&server)?).await.map_err(failed)?;
            (client, tokio::spawn(drive(connection)))
        } else {
            if !is_local(&config) {
                warn!(%server, "the connection is not encrypted; add sslmode=require to the DSN");
            }
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            (client, tokio::spawn(drive(connection)))
        };
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
    use super::{Address, Secret, parse};

    #[test]
    fn a_server_is_named_without_its_password() {
        let (config, wants_tls) =
            parse(&Secret::new("postgresql://dev:hunter2@db.plant:6432/loupe?sslmode=verify-full")).unwrap();
        let address = Address::of(&config, wants_tls);
        assert_eq!(address.to_string(), "db.plant:6432/loupe");
        let (again, tls) = parse(&address.dsn_of("loupe_site_x", "sesame")).unwrap();
        assert_eq!((Address::of(&again, tls).to_string(), tls), (address.to_string(), true));
        assert!(wants_tls);
    }
}
