//! What can go wrong on the way to the central database, classified once.

use std::error::Error;
use std::path::PathBuf;

use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::tls;
use crate::ledger::LedgerError;

/// What the driver says when the server refuses TLS; a test pins it.
const NO_TLS: &str = "server does not support TLS";

/// Why a delivery or a command on the central database did not succeed. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error(
        "the DSN cannot be read; expected postgresql://user:password@host:port/database?sslmode=require, \
         or key=value pairs"
    )]
    Dsn,
    #[error("the DSN's {name} must be {expected}")]
    DsnParameter { name: &'static str, expected: &'static str },
    #[error("cannot connect to PostgreSQL at {server}: {}; {}", chain(.source), advice(.source))]
    Connect { server: String, source: tokio_postgres::Error },
    #[error("no safe connection to PostgreSQL at {server}: {problem}; {advice}")]
    Tls { server: String, problem: String, advice: &'static str },
    #[error("the file {} of sslrootcert cannot be used: {detail}; name a PEM file of the server's authority", path.display())]
    RootFile { path: PathBuf, detail: String },
    #[error("no certificate authority could be loaded to check {server}: {detail}; install ca-certificates")]
    Roots { server: String, detail: String },
    #[error("{server} has no Loupe schema of version {needed} (it has {found}); run `loupe db migrate --dsn …` there")]
    NotMigrated { server: String, found: i32, needed: i32 },
    #[error("migration {migration} fails at {server}, and nothing was changed: {}", chain(.source))]
    Migrate { server: String, migration: String, source: tokio_postgres::Error },
    #[error(
        "migration {migration} at {server} is not the one that this program carries: it was edited, or another program \
         made that schema; use the program that did, or restore the database"
    )]
    MigrationChanged { server: String, migration: String },
    #[error("{server} has a newer schema ({found}) than this program knows ({needed}); install a newer loupe here")]
    SchemaNewer { server: String, found: i32, needed: i32 },
    #[error(
        "the login at {server} does not read every site: use one that is a member of loupe_job (for audit verify: \
         loupe_ops), and leave loupe.site_id unset"
    )]
    NotJob { server: String },
    #[error("{server}: {detail}")]
    Refused { server: String, detail: String },
    #[error("{server} refuses a statement: {}", chain(.source))]
    Statement { server: String, source: tokio_postgres::Error },
    #[error("{server} did not answer within {seconds} s")]
    Timeout { server: String, seconds: u64 },
    #[error(
        "the login at {server} is not bound to a site; make one by `loupe db provision-site`, or name the site's id"
    )]
    NoSite { server: String },
    #[error("the login at {server} may not write site {asked}; use the login of that site")]
    WrongSite { server: String, asked: Uuid },
    #[error("cannot provision: {detail}")]
    Provision { detail: String },
    #[error("nothing was published: {detail}")]
    Publish { detail: String },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl UplinkError {
    /// Why a connection failed: the certificate's fault is told apart, since it needs a person.
    pub(super) fn connection(server: &str, source: tokio_postgres::Error) -> Self {
        let server = server.to_owned();
        if let Some(fault) = tls_error(&source) {
            let (problem, advice) = tls::certificate_fault(fault);
            return Self::Tls { server, problem, advice };
        }
        if chain(&source).contains(NO_TLS) {
            let problem = "it offers no TLS".to_owned();
            let advice = "set ssl=on there; the DSN asks for an encrypted connection";
            return Self::Tls { server, problem, advice };
        }
        Self::Connect { server, source }
    }

    /// Whether a person must change the DSN, a certificate or the central side: trying again cannot help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Dsn
            | Self::DsnParameter { .. }
            | Self::RootFile { .. }
            | Self::Roots { .. }
            | Self::Tls { .. }
            | Self::NotMigrated { .. }
            | Self::MigrationChanged { .. }
            | Self::SchemaNewer { .. }
            | Self::NotJob { .. }
            | Self::NoSite { .. }
            | Self::WrongSite { .. } => true,
            Self::Connect { source, .. } => source.code().is_some_and(|code| {
                [
                    SqlState::INVALID_PASSWORD,
                    SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                    SqlState::INVALID_CATALOG_NAME,
                ]
                .contains(code)
            }),
            _ => false,
        }
    }

    pub(super) fn statement(server: &str) -> impl Fn(tokio_postgres::Error) -> Self + use<> {
        let server = server.to_owned();
        move |source| Self::Statement { server: server.clone(), source }
    }

    /// Whether the rows are at fault, so that sending them again cannot help (SQLSTATE 22xxx, 23xxx, row security).
    #[must_use]
    pub fn is_about_the_rows(&self) -> bool {
        let Self::Statement { source, .. } = self else { return false };
        let Some(answer) = source.as_db_error() else { return false };
        let class = answer.code().code().get(..2);
        let is_row_security =
            *answer.code() == SqlState::INSUFFICIENT_PRIVILEGE && answer.message().contains("row-level security");
        class == Some("22") || class == Some("23") || is_row_security
    }
}

fn advice(error: &tokio_postgres::Error) -> &'static str {
    match error.code() {
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            "check user and password in the DSN; `loupe db provision-site` makes a site's"
        }
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "let this login in from here in the server's pg_hba.conf"
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => "check the database's name in the DSN",
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "raise max_connections there, or put PgBouncer between"
        }
        _ => "check the address, the login and the network",
    }
}

/// The TLS error among the causes; `io::Error` hides the one it holds from `source`.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// An error and its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
