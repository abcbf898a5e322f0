//! Kits: what is counted now, and orders to begin, correct and end a count.
//!
//! Orders are taken as reviews are: JSON from the page itself or from this machine, on loopback only.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::api::ApiError;
use super::desk::{self, Words};
use super::reviews::admit;
use super::state::KitCall;
use crate::types::KitOrder;

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_kits", "this dashboard counts no kits");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see docs/kits.md for its fields");
const BROKEN: ApiError = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "kit_failed", "this failed; see the log");
const WORDS: Words = Words { off: OFF, refused_code: "order_refused", broken: BROKEN };

/// `GET /api/v1/kits`: sessions, newest first, each with its count; and what is low in stock.
pub(super) async fn overview(State(shared): State<Shared>) -> Response {
    desk::ask(shared.state.kits.as_ref(), KitCall::Overview, StatusCode::OK, &WORDS).await
}

/// `POST /api/v1/kits` with a [`KitOrder`].
pub(super) async fn order(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<KitOrder>(&body) {
        Ok(order) => desk::ask(shared.state.kits.as_ref(), KitCall::Order(order), StatusCode::CREATED, &WORDS).await,
        Err(_) => BAD_BODY.into_response(),
    }
}
