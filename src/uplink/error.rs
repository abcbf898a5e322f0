//! What can go wrong on the way to the central database, classified once.

use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::ledger::LedgerError;

/// Why a delivery or a command on the central database did not succeed. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error(
        "the DSN cannot be read; expected postgresql://user:password@host:port/database?sslmode=require, \
         or key=value pairs"
    )]
    Dsn,
    #[error("cannot connect to PostgreSQL at {server}: {}; check the address, the login and the network", chain(.source))]
    Connect { server: String, source: tokio_postgres::Error },
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
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl UplinkError {
    pub(super) fn statement(server: &str) -> impl Fn(tokio_postgres::Error) -> Self + use<> {
        let server = server.to_owned();
        move |source| Self::Statement { server: server.clone(), source }
    }

    /// Whether somebody must change a setting, a login or a version before trying again can help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Dsn
            | Self::Roots { .. }
            | Self::NotMigrated { .. }
            | Self::MigrationChanged { .. }
            | Self::SchemaNewer { .. }
            | Self::NotJob { .. }
            | Self::NoSite { .. }
            | Self::WrongSite { .. } => true,
            // 28: the login; 3D000: the database's name.
            Self::Connect { source, .. } => source
                .as_db_error()
                .is_some_and(|answer| answer.code().code().starts_with("28") || answer.code().code() == "3D000"),
            _ => false,
        }
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

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
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
