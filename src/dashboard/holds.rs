//! Legal holds: orders to place and release them, handed over by `loupe storage hold` while the daemon has the ledger.
//!
//! Orders are taken as reviews are: JSON from the page itself or from this machine, on loopback only.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Shared;
use super::api::ApiError;
use super::reviews::admit;
use super::state::ReviewRefusal;
use crate::types::HoldOrder;

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_holds", "this dashboard places no holds");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see docs/storage.md for its fields");
const BROKEN: ApiError = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "hold_failed", "this failed; see the log");

/// `POST /api/v1/holds` with a [`HoldOrder`].
pub(super) async fn order(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    let Ok(order) = serde_json::from_slice::<HoldOrder>(&body) else { return BAD_BODY.into_response() };
    let Some(desk) = shared.state.holds.clone() else { return OFF.into_response() };
    match tokio::task::spawn_blocking(move || desk(order)).await {
        Ok(Ok(answer)) => (StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Ok(Err(ReviewRefusal::Order(message))) => {
            let body = json!({ "error": { "code": "order_refused", "message": message } });
            (StatusCode::UNPROCESSABLE_ENTITY, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Ok(Err(ReviewRefusal::Machine(error))) => {
            tracing::error!(error, "a hold order was not done");
            BROKEN.into_response()
        }
        Err(_) => BROKEN.into_response(),
    }
}
