//! Sites and their logins: made, given a new secret, revoked.
//!
//! The server gets a SCRAM verifier, so a password can reach neither its log nor its audit. Revoking keeps every row.

use serde::Serialize;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::central::Central;
use super::{Secret, UplinkError};

/// How long a device's transaction may rest: rows that appear late are looked for within an hour only.
const IDLE_TRANSACTION_MAX: &str = "5min";

/// A site's login with its new password, which is shown once.
#[derive(Debug, Clone)]
pub struct ProvisionedSite {
    pub site_id: Uuid,
    pub role_name: String,
    pub password: Secret,
    /// What the site's devices connect with; holds the password.
    pub dsn: Secret,
}

/// A site whose logins may do nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevokedSite {
    pub site_id: Uuid,
    /// Logins revoked now; none: they were before.
    pub role_names: Vec<String>,
    /// Sessions of theirs that were ended.
    pub sessions_ended: i64,
}

impl Central {
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
        check_code(code)?;
        self.check_schema().await?;
        let site_id = site_id.unwrap_or_else(Uuid::now_v7);
        let role_name = format!("loupe_site_{code}");
        let password = random_password()?;
        let verifier = verifier_of(&password);
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let insert_site = "INSERT INTO loupe.sites (id, code, name) VALUES ($1, $2, $3)";
        transaction
            .execute_typed(insert_site, &[(&site_id, Type::UUID), (&code, Type::TEXT), (&name, Type::TEXT)])
            .await
            .map_err(&on_statement)?;
        transaction
            .batch_execute(&format!(
                "CREATE ROLE \"{role_name}\" LOGIN PASSWORD '{verifier}' IN ROLE loupe_device;
                 ALTER ROLE \"{role_name}\" SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_MAX}'"
            ))
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

    /// Give a site's login a new password; the old one opens nothing any more, and a revoked site may deliver again.
    ///
    /// # Errors
    /// When there is no such site, or the login may not alter its role.
    pub async fn rotate_site(&mut self, code: &str) -> Result<ProvisionedSite, UplinkError> {
        check_code(code)?;
        self.check_schema().await?;
        let password = random_password()?;
        let verifier = verifier_of(&password);
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let site_id = site_of(&transaction, code, &on_statement).await?;
        let role_name = format!("loupe_site_{code}");
        let admit = "UPDATE loupe.site_logins SET revoked_at = NULL WHERE site_id = $1 AND role_name = $2";
        let admitted = transaction
            .execute_typed(admit, &[(&site_id, Type::UUID), (&role_name, Type::TEXT)])
            .await
            .map_err(&on_statement)?;
        if admitted == 0 {
            return Err(UplinkError::Provision { detail: format!("site `{code}` has no login `{role_name}`") });
        }
        let activate = "UPDATE loupe.sites SET is_active = true WHERE id = $1 AND NOT is_active";
        transaction.execute_typed(activate, &[(&site_id, Type::UUID)]).await.map_err(&on_statement)?;
        transaction
            .batch_execute(&format!("ALTER ROLE \"{role_name}\" LOGIN PASSWORD '{verifier}'"))
            .await
            .map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        // Who holds the old secret may still be connected.
        self.end_sessions(std::slice::from_ref(&role_name)).await;
        let dsn = self.address.dsn_of(&role_name, &password);
        Ok(ProvisionedSite { site_id, role_name, password: Secret::new(password), dsn })
    }

    /// Take from a site's logins what they may do, at once and until `rotate_site`; its rows stay.
    ///
    /// # Errors
    /// When there is no such site, or the login may not alter its role.
    pub async fn revoke_site(&mut self, code: &str) -> Result<RevokedSite, UplinkError> {
        check_code(code)?;
        self.check_schema().await?;
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let site_id = site_of(&transaction, code, &on_statement).await?;
        let revoke = "UPDATE loupe.site_logins SET revoked_at = clock_timestamp()
            WHERE site_id = $1 AND revoked_at IS NULL RETURNING role_name, quote_ident(role_name)";
        let revoked = transaction.query_typed(revoke, &[(&site_id, Type::UUID)]).await.map_err(&on_statement)?;
        for row in &revoked {
            let quoted: String = row.get(1);
            transaction.batch_execute(&format!("ALTER ROLE {quoted} NOLOGIN")).await.map_err(&on_statement)?;
        }
        let deactivate = "UPDATE loupe.sites SET is_active = false WHERE id = $1 AND is_active";
        transaction.execute_typed(deactivate, &[(&site_id, Type::UUID)]).await.map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        let role_names: Vec<String> = revoked.iter().map(|row| row.get(0)).collect();
        let sessions_ended = self.end_sessions(&role_names).await;
        Ok(RevokedSite { site_id, role_names, sessions_ended })
    }

    /// End the sessions of these logins, as far as this login may: they can touch no row any more anyway.
    async fn end_sessions(&self, role_names: &[String]) -> i64 {
        let sql = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE usename::text = ANY ($1)";
        let rows = self.client.query_typed(sql, &[(&role_names, Type::TEXT_ARRAY)]).await;
        match rows {
            Ok(rows) => rows.first().map_or(0, |row| row.get(0)),
            Err(error) => {
                tracing::debug!(%error, "sessions of a revoked login were not ended");
                0
            }
        }
    }
}

fn check_code(code: &str) -> Result<(), UplinkError> {
    let is_well_formed = (2..=40).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_well_formed {
        return Ok(());
    }
    Err(UplinkError::Provision { detail: format!("the site code `{code}` must be 2 to 40 of a-z, 0-9 and -") })
}

pub(super) async fn site_of(
    transaction: &Transaction<'_>,
    code: &str,
    on_statement: &impl Fn(tokio_postgres::Error) -> UplinkError,
) -> Result<Uuid, UplinkError> {
    let sql = "SELECT id FROM loupe.sites WHERE code = $1";
    let rows = transaction.query_typed(sql, &[(&code, Type::TEXT)]).await.map_err(on_statement)?;
    match rows.first() {
        Some(row) => Ok(row.get(0)),
        None => Err(UplinkError::Provision { detail: format!("there is no site `{code}`") }),
    }
}

fn verifier_of(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
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
