//! The DSN: where the central database is, as whom to log in, and how the way there is protected.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Secret, UplinkError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn parse(dsn: &Secret) -> Result<(Config, bool), UplinkError> {
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

pub(super) fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => ["localhost", "127.0.0.1", "::1"].contains(&name.as_str()),
        Host::Unix(_) => true,
    })
}

pub(super) fn tls(server: &str) -> Result<MakeRustlsConnect, UplinkError> {
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
    use super::{Secret, parse};

    #[test]
    fn a_malformed_dsn_is_refused_without_repeating_it() {
        for dsn in ["hunter2", "postgresql://u:hunter2@h:port/db", "hunter2=x host=h", ""] {
            let error = parse(&Secret::new(dsn)).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("DSN"), "{error}");
        }
    }
}
