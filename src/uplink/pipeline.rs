//! One central transaction in one round trip: every statement leaves before the first answer is awaited.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio_postgres::{Client, Error};
use uuid::Uuid;

use super::batch::Batch;
use crate::failpoint;

type Step<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// Send `batch` as the rows of this site and device: BEGIN, one INSERT a table, COMMIT.
///
/// When a statement fails, the server skips those behind it and its answer to COMMIT is a rollback; the error is that of
/// the first. No statement is named and nothing is set beyond the transaction, so that a pooler may stand between.
///
/// # Errors
/// That of the first statement that failed; whether the transaction was committed is open only when the connection broke.
pub(super) async fn transact(client: &Client, site_id: Uuid, device_id: Uuid, batch: &Batch) -> Result<(), Error> {
    // A UUID needs no quoting; one message opens the transaction and says whose it is.
    let begin = format!("BEGIN; SELECT set_config('loupe.site_id', '{site_id}', true)");
    let inserts: Vec<_> = batch.inserts().collect();
    let parameters: Vec<_> = inserts.iter().map(|insert| insert.parameters(&site_id, &device_id)).collect();
    let mut steps: Vec<Step<'_>> = Vec::with_capacity(inserts.len() + 2);
    steps.push(Box::pin(async {
        client.batch_execute(&begin).await?;
        failpoint::hit("uplink.begin.after");
        Ok(())
    }));
    for (insert, parameters) in inserts.iter().zip(&parameters) {
        steps.push(Box::pin(async move {
            client.execute_typed(insert.sql, parameters).await?;
            failpoint::hit("uplink.insert.after");
            Ok(())
        }));
    }
    steps.push(Box::pin(async {
        failpoint::hit("uplink.commit.before");
        client.batch_execute("COMMIT").await?;
        failpoint::hit("uplink.commit.after");
        Ok(())
    }));
    in_order(steps).await
}

/// Run all steps, polled in their order, so that their requests leave in that order; the first error in that order.
async fn in_order(steps: Vec<Step<'_>>) -> Result<(), Error> {
    let mut running: Vec<Option<Step<'_>>> = steps.into_iter().map(Some).collect();
    let mut first_error: Option<(usize, Error)> = None;
    poll_fn(|context| {
        for (index, slot) in running.iter_mut().enumerate() {
            let Some(step) = slot else { continue };
            if let Poll::Ready(outcome) = step.as_mut().poll(context) {
                *slot = None;
                if let Err(error) = outcome
                    && first_error.as_ref().is_none_or(|(earlier, _)| index < *earlier)
                {
                    first_error = Some((index, error));
                }
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    first_error.map_or(Ok(()), |(_, error)| Err(error))
}
