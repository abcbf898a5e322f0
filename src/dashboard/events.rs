//! Server-sent events: `inspection`, `status` once a second, `reload` to a client that missed some.
//!
//! One task a client renders events into a bounded queue. A slow socket fills the queue, then the task falls behind the
//! feed's broadcast, and the client gets one `reload` in place of what it missed: it asks for the list again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::api::ApiError;
use super::{InspectionView, Shared};
use crate::limits;
use crate::types::Inspection;

/// Time between two `status` events.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// What the browser waits before it connects again.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);

type Sender = mpsc::Sender<Result<Event, Infallible>>;

/// `GET /api/v1/events`
pub(super) async fn events(State(shared): State<Shared>) -> Result<Response, ApiError> {
    const FULL: ApiError =
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", "too many screens watch this device");
    let permit = shared.streams.clone().try_acquire_owned().map_err(|_| FULL)?;
    let (sender, receiver) = mpsc::channel(limits::DASHBOARD_SSE_QUEUE_EVENTS);
    // Subscribed before the answer goes out: a client that lists inspections once it is connected misses none.
    let feed = shared.feed.subscribe();
    tokio::spawn(stream(shared, feed, sender, permit));
    let headers = [(CACHE_CONTROL, "no-store")];
    Ok((headers, Sse::new(ReceiverStream::new(receiver))).into_response())
}

async fn stream(
    shared: Shared,
    mut feed: broadcast::Receiver<Arc<Inspection>>,
    sender: Sender,
    _permit: OwnedSemaphorePermit,
) {
    let mut stop = shared.stop.clone();
    let mut tick = tokio::time::interval(STATUS_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let event = tokio::select! {
            _ = stop.wait_for(|is_stopping| *is_stopping) => return,
            () = sender.closed() => return,
            received = feed.recv() => match received {
                Ok(inspection) => json_event("inspection", &InspectionView::new(&inspection)),
                Err(RecvError::Lagged(missed)) => json_event("reload", &serde_json::json!({ "missed": missed })),
                Err(RecvError::Closed) => return,
            },
            _ = tick.tick() => json_event("status", &shared.state.status()),
        };
        let sent = tokio::select! {
            _ = stop.wait_for(|is_stopping| *is_stopping) => return,
            sent = sender.send(Ok(event)) => sent,
        };
        if sent.is_err() {
            return;
        }
    }
}

fn json_event<T: Serialize>(name: &'static str, body: &T) -> Event {
    let event = Event::default().event(name).retry(RECONNECT_DELAY);
    match event.json_data(body) {
        Ok(event) => event,
        Err(error) => {
            tracing::error!(error = %error, event = name, "could not render an event");
            Event::default().event("reload").data("{}")
        }
    }
}
