//! [`Central`]: a connection to the central PostgreSQL. What `loupe db` does with one is in the files beside this.
//!
//! TLS where the DSN says sslmode=require, verify-ca or verify-full: the certificate is always checked against the
//! system's authorities (or those in SSL_CERT_FILE). Without it the connection is in the clear.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use super::{Secret, UplinkError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

fn parse(dsn: &Secret) -> Result<(Config, bool), UplinkError> {
    // The driver knows no verify-*; rustls always verifies, which is what they ask for.
    let text =
        dsn.expose().replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
    let mut config: Config = text.parse().map_err(|_| UplinkError::Dsn)?;
    if config.get_hosts().is_empty() {
        return Err(UplinkError::Dsn);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("loupe");
    }
    let wants_tls = config.get_ssl_mode() == SslMode::Require;
    Ok((config, wants_tls))
}

fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => ["localhost", "127.0.0.1", "::1"].contains(&name.as_str()),
        Host::Unix(_) => true,
    })
}

fn tls(server: &str) -> Result<MakeRustlsConnect, UplinkError> {
    let failed = |detail: String| UplinkError::Roots { server: server.to_owned(), detail };
    let mut roots = rustls::RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        return Err(failed(loaded.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string)));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
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

    #[test]
    fn a_malformed_dsn_is_refused_without_repeating_it() {
        for dsn in ["hunter2", "postgresql://u:hunter2@h:port/db", "hunter2=x host=h", ""] {
            let error = parse(&Secret::new(dsn)).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("DSN"), "{error}");
        }
    }
}
