//! Reviews: the only routes that change a state.
//!
//! Each POST must be JSON from the page itself: a form or script of another site can't send that without asking first
//! (CORS), which is never answered; an `Origin` that is not this host is refused as well. There are no logins yet, so
//! reviews are taken only where the dashboard listens on loopback.

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use uuid::Uuid;

use super::Shared;
use super::api::ApiError;
use super::desk::{self, Words};
use super::state::ReviewCall;
use crate::types::ReviewOrder;

/// Body of an undo.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Undo {
    reviewer: String,
    #[serde(default)]
    reason: Option<String>,
}

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_reviews", "this dashboard takes no reviews");
pub(super) const REMOTE: ApiError = ApiError::new(
    StatusCode::FORBIDDEN,
    "loopback_only",
    "reviews are taken on loopback only, since there are no logins yet; use an SSH tunnel",
);
const FOREIGN: ApiError = ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", "the request comes from another site");
const NOT_JSON: ApiError =
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", "the body must be JSON and be called so");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_review", "the body is not a review; see the manual for its fields");
const BAD_ID: ApiError = ApiError::new(StatusCode::NOT_FOUND, "unknown_review", "no review has this id");
const BROKEN: ApiError =
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "review_failed", "the review was not stored; see the log");
const WORDS: Words = Words { off: OFF, refused_code: "review_refused", broken: BROKEN };

/// `GET /api/v1/reviews`: newest first.
pub(super) async fn list(State(shared): State<Shared>) -> Response {
    desk::ask(shared.state.reviews.as_ref(), ReviewCall::List, StatusCode::OK, &WORDS).await
}

/// `GET /api/v1/confusions`: pairs of parts, most often first.
pub(super) async fn confusions(State(shared): State<Shared>) -> Response {
    desk::ask(shared.state.reviews.as_ref(), ReviewCall::Confusions, StatusCode::OK, &WORDS).await
}

/// `GET /api/v1/unknowns`: unknown items by the part they look like.
pub(super) async fn unknowns(State(shared): State<Shared>) -> Response {
    desk::ask(shared.state.reviews.as_ref(), ReviewCall::Unknowns, StatusCode::OK, &WORDS).await
}

/// `POST /api/v1/reviews` with a [`ReviewOrder`].
pub(super) async fn add(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<ReviewOrder>(&body) {
        Ok(order) => {
            desk::ask(shared.state.reviews.as_ref(), ReviewCall::Add(order), StatusCode::CREATED, &WORDS).await
        }
        Err(_) => BAD_BODY.into_response(),
    }
}

/// `POST /api/v1/reviews/{id}/undo` with reviewer and reason.
pub(super) async fn undo(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    let Some(id) = id.ok().and_then(|Path(id)| id.parse::<Uuid>().ok()) else { return BAD_ID.into_response() };
    match serde_json::from_slice::<Undo>(&body) {
        Ok(Undo { reviewer, reason }) => {
            desk::ask(
                shared.state.reviews.as_ref(),
                ReviewCall::Undo { id, reviewer, reason },
                StatusCode::CREATED,
                &WORDS,
            )
            .await
        }
        Err(_) => BAD_BODY.into_response(),
    }
}

pub(super) fn admit(shared: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    if !shared.is_loopback {
        return Err(REMOTE);
    }
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    let is_own = match text(ORIGIN) {
        None => !headers.contains_key(ORIGIN),
        Some(origin) => text(HOST).is_some_and(|host| origin.strip_prefix("http://") == Some(host)),
    };
    if !is_own {
        return Err(FOREIGN);
    }
    let media = text(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
    if media.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) { Ok(()) } else { Err(NOT_JSON) }
}
