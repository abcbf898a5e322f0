//! Kits: what is counted now, and orders to begin, correct and end a count.
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
use super::state::{KitCall, ReviewRefusal};
use crate::types::KitOrder;

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_kits", "this dashboard counts no kits");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see docs/kits.md for its fields");
const BROKEN: ApiError = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "kit_failed", "this failed; see the log");

/// `GET /api/v1/kits`: sessions, newest first, each with its count; and what is low in stock.
pub(super) async fn overview(State(shared): State<Shared>) -> Response {
    ask(&shared, KitCall::Overview, StatusCode::OK).await
}

/// `POST /api/v1/kits` with a [`KitOrder`].
pub(super) async fn order(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<KitOrder>(&body) {
        Ok(order) => ask(&shared, KitCall::Order(order), StatusCode::CREATED).await,
        Err(_) => BAD_BODY.into_response(),
    }
}

async fn ask(shared: &Shared, call: KitCall, done: StatusCode) -> Response {
    let Some(desk) = shared.state.kits.clone() else { return OFF.into_response() };
    match tokio::task::spawn_blocking(move || desk(call)).await {
        Ok(Ok(answer)) => (done, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Ok(Err(ReviewRefusal::Order(message))) => {
            let body = json!({ "error": { "code": "order_refused", "message": message } });
            (StatusCode::UNPROCESSABLE_ENTITY, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Ok(Err(ReviewRefusal::Machine(error))) => {
            tracing::error!(error, "a kit order was not done");
            BROKEN.into_response()
        }
        Err(_) => BROKEN.into_response(),
    }
}
