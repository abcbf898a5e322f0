//! The pages: files written by hand, compiled in, no framework and nothing from elsewhere.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;

/// Asked again each time, so that an update of the daemon shows at the next load.
const CACHE: &str = "no-cache";

pub(super) async fn index() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("assets/index.html"))
}

pub(super) async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("assets/style.css"))
}

pub(super) async fn script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("assets/app.js"))
}

pub(super) async fn review_script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("assets/review.js"))
}

pub(super) async fn feedback_script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("assets/feedback.js"))
}

pub(super) async fn kits() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("assets/kits.html"))
}

pub(super) async fn kits_style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("assets/kits.css"))
}

pub(super) async fn kits_script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("assets/kits.js"))
}

pub(super) async fn icon() -> impl IntoResponse {
    file("image/svg+xml", include_str!("assets/icon.svg"))
}

fn file(content_type: &'static str, body: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, content_type), (CACHE_CONTROL, CACHE)], body)
}
