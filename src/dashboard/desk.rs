//! One way to put a question or an order to what keeps the answers: on a file thread, since the ledger's disk and the
//! embedding model take their time.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::api::ApiError;
use super::state::{DeskFn, ReviewRefusal};

/// What a desk says where it does not answer.
#[derive(Debug)]
pub(super) struct Words {
    /// There is no such desk.
    pub off: ApiError,
    /// The order is refused for what it says; the sentence is the desk's.
    pub refused_code: &'static str,
    /// The machine failed.
    pub broken: ApiError,
}

/// The desk's answer with status `done`, never kept by a browser; or why there is none.
pub(super) async fn ask<C: Send + 'static>(
    desk: Option<&DeskFn<C>>,
    call: C,
    done: StatusCode,
    words: &Words,
) -> Response {
    let Some(desk) = desk.cloned() else { return words.off.into_response() };
    match tokio::task::spawn_blocking(move || desk(call)).await {
        Ok(Ok(answer)) => (done, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response(),
        Ok(Err(ReviewRefusal::Order(message))) => {
            let body = json!({ "error": { "code": words.refused_code, "message": message } });
            (StatusCode::UNPROCESSABLE_ENTITY, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Ok(Err(ReviewRefusal::Machine(error))) => {
            tracing::error!(error, refused_code = words.refused_code, "an order of the dashboard was not done");
            words.broken.into_response()
        }
        Err(_) => words.broken.into_response(),
    }
}
