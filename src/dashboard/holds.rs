//! Legal holds: orders to place and release them, handed over by `loupe storage hold` while the daemon has the ledger.
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
use crate::types::HoldOrder;

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_holds", "this dashboard places no holds");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see docs/storage.md for its fields");
const BROKEN: ApiError = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "hold_failed", "this failed; see the log");
const WORDS: Words = Words { off: OFF, refused_code: "order_refused", broken: BROKEN };

/// `POST /api/v1/holds` with a [`HoldOrder`].
pub(super) async fn order(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    let Ok(order) = serde_json::from_slice::<HoldOrder>(&body) else { return BAD_BODY.into_response() };
    desk::ask(shared.state.holds.as_ref(), order, StatusCode::CREATED, &WORDS).await
}
