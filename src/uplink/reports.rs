//! What became of the centre's recipes and fits, told to the centre.
//!
//! Invariants: a report is sent until the centre has it; its key makes the effect exactly once. Runs on the uplink's
//! thread after a pull. Overload: at most [`REPORTS_A_LOOK`] rows a look. A centre without the table is told nothing.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::UplinkError;
use super::central::Central;
use super::downlink::as_site;
use crate::failpoint;
use crate::ledger::{Ledger, LedgerReader, ProvisionNote, ProvisionReport};
use crate::types::Digest;

/// Reports in one transaction; the ledger keeps no more than ten times as many.
const REPORTS_A_LOOK: usize = 100;
/// How long central may take over them.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Send what the centre does not have yet.
///
/// # Errors
/// When the connection or the ledger fails.
pub(super) async fn send(
    central: &mut Central,
    ledger: &Ledger,
    reader: &LedgerReader,
    site_id: Uuid,
) -> Result<(), UplinkError> {
    let reports = reader.provision_reports(REPORTS_A_LOOK)?;
    let Some(number) = reports.last().map(|report| report.number) else { return Ok(()) };
    let rows = Value::Array(reports.iter().map(|report| row(report, site_id, ledger.device_id())).collect());
    let timed_out = UplinkError::Timeout { server: central.server.clone(), seconds: SEND_TIMEOUT.as_secs() };
    let sent = tokio::time::timeout(SEND_TIMEOUT, insert(central, site_id, &rows)).await;
    match sent.map_err(|_| timed_out)? {
        Ok(()) => {}
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(()),
        Err(error) => return Err(UplinkError::statement(&central.server)(error)),
    }
    failpoint::hit("downlink.report.sent");
    ledger.note_provisioning(ProvisionNote::Reported { number })?;
    failpoint::hit("downlink.report.noted");
    Ok(())
}

fn row(report: &ProvisionReport, site_id: Uuid, device_id: Uuid) -> Value {
    let octets = |sha256: Digest| format!("\\x{sha256}");
    json!({
        "site_id": site_id,
        "device_id": device_id,
        "occurred_at": report.occurred_at.to_string(),
        "id": report.id,
        "subject_kind": report.subject_kind,
        "subject": report.subject,
        "sha256": octets(report.sha256),
        "previous_sha256": report.previous_sha256.map(octets),
        "outcome": report.outcome,
        // PostgreSQL's text holds no NUL.
        "detail": report.detail.as_ref().map(|detail| detail.replace('\0', "")),
    })
}

async fn insert(central: &mut Central, site_id: Uuid, rows: &Value) -> Result<(), tokio_postgres::Error> {
    const COLUMNS: &str =
        "site_id, device_id, occurred_at, id, subject_kind, subject, sha256, previous_sha256, outcome, detail";
    let sql = format!(
        "INSERT INTO loupe.provision_reports ({COLUMNS})
         SELECT {COLUMNS} FROM jsonb_populate_recordset(NULL::loupe.provision_reports, $1)
         ON CONFLICT (site_id, occurred_at, id) DO NOTHING"
    );
    let transaction = central.client.transaction().await?;
    as_site(&transaction, site_id).await?;
    transaction.execute_typed(&sql, &[(rows, Type::JSONB)]).await?;
    transaction.commit().await
}
