//! Who may sign, what people said of inspections and what they did; and orders to add to both.
//!
//! Orders are taken as reviews are: JSON from the page itself or from this machine, on loopback only. So is the list of
//! people: names are for those who may sign, and elsewhere nobody can.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Shared;
use super::api::ApiError;
use super::reviews::{REMOTE, admit};
use super::state::{PeopleCall, ReviewRefusal};
use crate::types::{FeedbackOrder, PersonOrder};

const OFF: ApiError = ApiError::new(StatusCode::NOT_FOUND, "no_feedback", "this dashboard takes no feedback");
const BAD_BODY: ApiError =
    ApiError::new(StatusCode::BAD_REQUEST, "bad_order", "the body is no order; see the manual for its fields");
const BROKEN: ApiError =
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "feedback_failed", "nothing was stored; see the log");

/// `GET /api/v1/people`: those who may sign.
pub(super) async fn list(State(shared): State<Shared>) -> Response {
    if !shared.is_loopback {
        return REMOTE.into_response();
    }
    ask(&shared, PeopleCall::People, StatusCode::OK).await
}

/// `GET /api/v1/feedback`: the last feedback and actions, newest first.
pub(super) async fn feedback(State(shared): State<Shared>) -> Response {
    ask(&shared, PeopleCall::Feedback, StatusCode::OK).await
}

/// `POST /api/v1/people` with a [`PersonOrder`].
pub(super) async fn change(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<PersonOrder>(&body) {
        Ok(order) => ask(&shared, PeopleCall::ChangePerson(order), StatusCode::CREATED).await,
        Err(_) => BAD_BODY.into_response(),
    }
}

/// `POST /api/v1/feedback` with a [`FeedbackOrder`].
pub(super) async fn say(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refused) = admit(&shared, &headers) {
        return refused.into_response();
    }
    match serde_json::from_slice::<FeedbackOrder>(&body) {
        Ok(order) => ask(&shared, PeopleCall::Say(order), StatusCode::CREATED).await,
        Err(_) => BAD_BODY.into_response(),
    }
}

async fn ask(shared: &Shared, call: PeopleCall, done: StatusCode) -> Response {
    let Some(desk) = shared.state.people.clone() else { return OFF.into_response() };
    match tokio::task::spawn_blocking(move || desk(call)).await {
        Ok(Ok(answer)) => (done, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Ok(Err(ReviewRefusal::Order(message))) => {
            let body = json!({ "error": { "code": "order_refused", "message": message } });
            (StatusCode::UNPROCESSABLE_ENTITY, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Ok(Err(ReviewRefusal::Machine(error))) => {
            tracing::error!(error, "an order about people or feedback was not done");
            BROKEN.into_response()
        }
        Err(_) => BROKEN.into_response(),
    }
}
