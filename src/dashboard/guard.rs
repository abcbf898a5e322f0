//! What every request passes: size, host, load, time; and the headers every answer carries.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::api::ApiError;
use crate::limits;

const URI_TOO_LONG: ApiError = ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", "the address is too long");
const BODY: ApiError =
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_refused", "requests carry no body here, or a short one");
const BAD_HOST: ApiError = ApiError::new(
    StatusCode::MISDIRECTED_REQUEST,
    "unknown_host",
    "the dashboard does not answer to this host name; use its IP address or add the name to `allowed_hosts`",
);
const BUSY: ApiError = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many requests at once; try again");
const TIMEOUT: ApiError = ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the answer took too long");

/// No script, style, picture or connection from elsewhere; no frame around the page.
const CSP: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

const SECURITY_HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", CSP),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
];

pub(super) async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let mut response = match admit(&shared, &request) {
        Err(refused) => refused.into_response(),
        Ok(()) => answer(&shared, request, next).await,
    };
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

async fn answer(shared: &Shared, request: Request, next: Next) -> Response {
    let Ok(_permit) = shared.requests.clone().try_acquire_owned() else { return BUSY.into_response() };
    // A stream's answer begins at once; its events follow outside this limit.
    match tokio::time::timeout(limits::DASHBOARD_REQUEST_TIME_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => TIMEOUT.into_response(),
    }
}

fn admit(shared: &Shared, request: &Request) -> Result<(), ApiError> {
    let uri_bytes = request.uri().path_and_query().map_or(0, |both| both.as_str().len());
    if uri_bytes > limits::DASHBOARD_URI_BYTES_MAX {
        return Err(URI_TOO_LONG);
    }
    let headers = request.headers();
    // Only a POST carries a body, of a known and small length.
    let bytes_max = if request.method() == Method::POST { limits::DASHBOARD_BODY_BYTES_MAX } else { 0 };
    let is_too_long = headers.get(CONTENT_LENGTH).is_some_and(|length| {
        let length = length.to_str().ok().and_then(|length| length.parse::<usize>().ok());
        length.is_none_or(|length| length > bytes_max)
    });
    if is_too_long || headers.contains_key(TRANSFER_ENCODING) {
        return Err(BODY);
    }
    let host = one_host(headers).ok_or(BAD_HOST)?;
    if is_known_host(host, shared.is_loopback, &shared.state.allowed_hosts) { Ok(()) } else { Err(BAD_HOST) }
}

fn one_host(headers: &HeaderMap) -> Option<&str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    hosts.next().is_none().then_some(host)
}

/// Whether a browser may have meant this device by `host`. DNS rebinding works through a name that an attacker owns, so
/// names are allowed one by one; an IP address is what the browser really connected to, and on loopback only a loopback
/// address can be.
fn is_known_host(host: &str, is_loopback: bool, allowed: &[String]) -> bool {
    let Some(name) = host_name(host) else { return false };
    if let Ok(ip) = name.parse::<IpAddr>() {
        return ip.is_loopback() || !is_loopback;
    }
    name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The name or address in `name`, `name:port`, `[v6]` or `[v6]:port`.
fn host_name(host: &str) -> Option<&str> {
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let (name, after) = rest.split_once(']')?;
        return (after.is_empty() || after.strip_prefix(':').is_some_and(is_port)).then_some(name);
    }
    match host.split_once(':') {
        None => Some(host),
        Some((name, port)) => is_port(port).then_some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::is_known_host;

    fn check(host: &str, is_loopback: bool, expected: bool) {
        let allowed = vec!["line3.plant.example".to_owned()];
        assert_eq!(is_known_host(host, is_loopback, &allowed), expected, "{host:?}, loopback: {is_loopback}");
    }

    #[test]
    fn a_rebound_name_is_refused_and_real_addresses_are_not() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "line3.plant.example:80"] {
            check(host, true, true);
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "10.0.0.5", "", "[::1", "[::1]x"]
        {
            check(host, true, false);
        }
        check("10.0.0.5:8080", false, true);
        check("evil.example:8080", false, false);
        check("localhost:80@evil.example", false, false);
    }
}
