//! Who may sign, what people said of inspections and what they did; and orders to add to both.
//!
//! Orders are taken as reviews are: JSON from the page itself or from this machine, on loopback only. So is the list of
//! people: names are for those who may sign, and elsewhere nobody can.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::api::ApiError;
use super::desk::{self, Words};
use super::reviews::{REMOTE, admit};
use super::state::PeopleCall;
use crate::types::{FeedbackOrder, PersonOrder};

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_feedback", "this dashboard takes no feedback");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see the manual for its fields");
const BROKEN: ApiError =
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "feedback_failed", "nothing was stored; see the log");
const WORDS: Words = Words { off: OFF, refused_code: "order_refused", broken: BROKEN };

/// `GET /api/v1/people`: those who may sign.
pub(super) async fn list(State(shared): State<Shared>) -> Response {
    if !shared.is_loopback {
        return REMOTE.into_response();
    }
    desk::ask(shared.state.people.as_ref(), PeopleCall::People, StatusCode::OK, &WORDS).await
}

/// `GET /api/v1/feedback`: the last feedback and actions, newest first.
pub(super) async fn feedback(State(shared): State<Shared>) -> Response {
    desk::ask(shared.state.people.as_ref(), PeopleCall::Feedback, StatusCode::OK, &WORDS).await
}

/// `POST /api/v1/people` with a [`PersonOrder`].
pub(super) async fn change(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<PersonOrder>(&body) {
        Ok(order) => {
            desk::ask(shared.state.people.as_ref(), PeopleCall::ChangePerson(order), StatusCode::CREATED, &WORDS).await
        }
        Err(_) => BAD_BODY.into_response(),
    }
}

/// `POST /api/v1/feedback` with a [`FeedbackOrder`].
pub(super) async fn say(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<FeedbackOrder>(&body) {
        Ok(order) => desk::ask(shared.state.people.as_ref(), PeopleCall::Say(order), StatusCode::CREATED, &WORDS).await,
        Err(_) => BAD_BODY.into_response(),
    }
}
