//! JSON answers: inspections, status, health, metrics; and errors without internals.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{InspectionView, Shared};
use crate::limits;
use crate::observe::METRICS_CONTENT_TYPE;

/// Inspections listed when `limit` is not given.
const LIST_DEFAULT: usize = 50;

/// What a client is told went wrong: a stable code and a sentence.
#[derive(Debug, Clone, Copy)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
}

impl ApiError {
    pub(super) const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            code: &'static str,
            message: &'static str,
        }
        let body = json!({ "error": Body { code: self.code, message: self.message } });
        (self.status, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    station: Option<String>,
    limit: Option<String>,
}

/// Serialised straight to text: a detour by `serde_json::Value` would print each f32 as an f64, with its rounding noise.
#[derive(Debug, Serialize)]
struct List<'a> {
    inspections: Vec<InspectionView<'a>>,
}

/// `GET /api/v1/inspections?limit=&station=` → `{"inspections": [...]}`, newest first: of the recent ones.
pub(super) async fn inspections(
    State(shared): State<Shared>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    const BAD_QUERY: ApiError =
        ApiError::new(StatusCode::BAD_REQUEST, "bad_query", "what can be asked for is limit and station, each once");
    const BAD_LIMIT: ApiError =
        ApiError::new(StatusCode::BAD_REQUEST, "bad_limit", "limit must be a whole number from 1 to 100");
    const UNKNOWN_STATION: ApiError =
        ApiError::new(StatusCode::NOT_FOUND, "unknown_station", "no station has this name; the status lists them");
    let Query(query) = query.map_err(|_| BAD_QUERY)?;
    let limit = match query.limit {
        None => LIST_DEFAULT,
        Some(text) => text.parse().ok().filter(|&n| n > 0).ok_or(BAD_LIMIT)?,
    };
    if let Some(station) = &query.station
        && !shared.state.stations.iter().any(|info| info.name == *station)
    {
        return Err(UNKNOWN_STATION);
    }
    let recent = shared.feed.recent(limit.min(limits::DASHBOARD_RECENT_MAX), query.station.as_deref());
    let views: Vec<_> = recent.iter().map(|inspection| InspectionView::new(inspection)).collect();
    Ok(fresh(Json(List { inspections: views })))
}

/// `GET /api/v1/inspections/{id}`: one of the recent ones, else what the ledger has.
pub(super) async fn inspection(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    const UNKNOWN: ApiError = ApiError::new(StatusCode::NOT_FOUND, "unknown_inspection", "no inspection has this id");
    let Path(id) = id.map_err(|_| UNKNOWN)?;
    let id: Uuid = id.parse().map_err(|_| UNKNOWN)?;
    if let Some(found) = shared.feed.find(id) {
        return Ok(fresh(Json(InspectionView::new(&found))));
    }
    let Some(lookup) = shared.state.lookup.clone() else { return Err(UNKNOWN) };
    let found = tokio::task::spawn_blocking(move || lookup(id)).await.ok().flatten().ok_or(UNKNOWN)?;
    Ok(fresh(Json(InspectionView::new(&found))))
}

/// `GET /api/v1/status`
pub(super) async fn status(State(shared): State<Shared>) -> Response {
    fresh(Json(shared.state.status()))
}

/// `GET /metrics`
pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    ([(CONTENT_TYPE, METRICS_CONTENT_TYPE), (CACHE_CONTROL, "no-store")], shared.state.metrics.render()).into_response()
}

/// `GET /healthz`: 200 while every station moves or rests by design.
pub(super) async fn healthz(State(shared): State<Shared>) -> Response {
    let stalled = shared.state.stalled();
    let status = if stalled.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if stalled.is_empty() { "ok" } else { "stalled" };
    (status, [(CACHE_CONTROL, "no-store")], Json(json!({ "status": text, "stalled_stations": stalled })))
        .into_response()
}

pub(super) async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address")
}

pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address does not answer to that method")
}

fn fresh<T: IntoResponse>(body: T) -> Response {
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}
