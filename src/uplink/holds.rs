//! Legal holds: stretches of time whose rows retention must not delete.

use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::UplinkError;
use super::central::Central;
use super::provision::site_of;
use crate::types::Timestamp;

/// Rows of one site, or of all, with a key time from `starts_at` to before `ends_at`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegalHold {
    pub id: Uuid,
    /// Code of the site; `None`: every site.
    pub site: Option<String>,
    /// RFC 3339, UTC.
    pub starts_at: String,
    pub ends_at: String,
    pub reason: String,
    /// `None` while it holds.
    pub released_at: Option<String>,
    /// Login that placed it.
    pub created_by: String,
}

const HOLDS: &str = "SELECT h.id, s.code,
        to_char(h.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
        to_char(h.ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), h.reason,
        to_char(h.released_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), h.created_by
    FROM loupe.legal_holds h LEFT JOIN loupe.sites s ON s.id = h.site_id";

fn read(row: &tokio_postgres::Row) -> LegalHold {
    LegalHold {
        id: row.get(0),
        site: row.get(1),
        starts_at: row.get(2),
        ends_at: row.get(3),
        reason: row.get(4),
        released_at: row.get(5),
        created_by: row.get(6),
    }
}

impl Central {
    /// Keep the rows of `site` (its code; `None`: every site) from `starts_at` to before `ends_at`.
    ///
    /// # Errors
    /// When there is no such site, the times are the wrong way round, or the login is not an admin's.
    pub async fn place_hold(
        &mut self,
        site: Option<&str>,
        starts_at: Timestamp,
        ends_at: Timestamp,
        reason: &str,
    ) -> Result<LegalHold, UplinkError> {
        self.check_schema().await?;
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let site_id = match site {
            Some(code) => Some(site_of(&transaction, code, &on_statement).await?),
            None => None,
        };
        let sql = "INSERT INTO loupe.legal_holds (site_id, starts_at, ends_at, reason)
            VALUES ($1, $2::text::timestamptz, $3::text::timestamptz, $4) RETURNING id";
        let (starts_at, ends_at) = (starts_at.to_string(), ends_at.to_string());
        let placed = transaction
            .query_typed(
                sql,
                &[(&site_id, Type::UUID), (&starts_at, Type::TEXT), (&ends_at, Type::TEXT), (&reason, Type::TEXT)],
            )
            .await
            .map_err(&on_statement)?;
        let id: Option<Uuid> = placed.first().map(|row| row.get(0));
        let holds = transaction
            .query_typed(&format!("{HOLDS} WHERE h.id = $1"), &[(&id, Type::UUID)])
            .await
            .map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        holds.first().map(read).ok_or_else(|| self.no_hold())
    }

    /// End a hold: its rows expire as others do.
    ///
    /// # Errors
    /// When there is no such hold, or the login is not an admin's.
    pub async fn release_hold(&mut self, id: Uuid) -> Result<LegalHold, UplinkError> {
        self.check_schema().await?;
        let on_statement = UplinkError::statement(&self.server);
        let sql = "UPDATE loupe.legal_holds SET released_at = clock_timestamp() WHERE id = $1 AND released_at IS NULL";
        self.client.execute_typed(sql, &[(&id, Type::UUID)]).await.map_err(&on_statement)?;
        let sql = format!("{HOLDS} WHERE h.id = $1");
        let holds = self.client.query_typed(&sql, &[(&id, Type::UUID)]).await.map_err(&on_statement)?;
        holds.first().map(read).ok_or_else(|| self.no_hold())
    }

    /// Every hold, the newest first.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn holds(&self) -> Result<Vec<LegalHold>, UplinkError> {
        self.check_schema().await?;
        let sql = format!("{HOLDS} ORDER BY h.created_at DESC");
        let holds = self.client.query_typed(&sql, &[]).await.map_err(UplinkError::statement(&self.server))?;
        Ok(holds.iter().map(read).collect())
    }

    fn no_hold(&self) -> UplinkError {
        UplinkError::Refused { server: self.server.clone(), detail: "there is no such hold".to_owned() }
    }
}
