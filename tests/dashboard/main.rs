//! The dashboard as a browser meets it: real sockets on loopback, synthetic inspections.

mod bench;
mod preview;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bench::{Bench, LOOPBACK, inspection, state};
use loupe::dashboard::{Dashboard, DashboardError, Feed, PeopleCall, ReviewCall, ReviewRefusal};
use loupe::limits;
use loupe::notify::Progress;
use loupe::shutdown::Shutdown;
use loupe::types::{Reason, Verdict};
use serde_json::Value;

#[test]
fn api_lists_newest_first_with_advice_and_the_contract_of_inspect() {
    let bench = Bench::new();
    bench.feed.publish(Arc::new(inspection(1, Verdict::Pass, &[])));
    bench.feed.publish(Arc::new(inspection(2, Verdict::Hold, &[Reason::MarginSmall])));
    let list = bench.get("/api/v1/inspections?limit=5").json();
    let newest = &list["inspections"][0];
    assert_eq!(list["inspections"].as_array().unwrap().len(), 2);
    assert_eq!(newest["source"], "camera 1#2");
    assert_eq!(newest["verdict"], "hold");
    assert_eq!(newest["reasons"][0], "match.margin_small");
    assert_eq!(newest["advice"]["match.margin_small"], Reason::MarginSmall.advice());
    assert_eq!(newest["items"][0]["bbox"], serde_json::json!([70.0, 120.0, 250.0, 300.0]));
    assert_eq!(newest["items"][2]["part_id"], Value::Null);
    assert!(newest["timings_ms"]["match"].is_number());
    assert_eq!(bench.get("/api/v1/inspections?limit=1").json()["inspections"].as_array().unwrap().len(), 1);
    let of_tray = bench.get("/api/v1/inspections?station=tray").json();
    assert_eq!(of_tray["inspections"].as_array().unwrap().len(), 2);
    let id = newest["inspection_id"].as_str().unwrap();
    assert_eq!(&bench.get(&format!("/api/v1/inspections/{id}")).json(), newest);
}

#[test]
fn the_recent_ring_forgets_its_oldest() {
    let bench = Bench::new();
    let first = inspection(0, Verdict::Pass, &[]);
    bench.feed.publish(Arc::new(first.clone()));
    for number in 1..=u32::try_from(limits::DASHBOARD_RECENT_MAX).unwrap() {
        bench.feed.publish(Arc::new(inspection(number, Verdict::Pass, &[])));
    }
    assert_eq!(bench.feed.recent(usize::MAX, None).len(), limits::DASHBOARD_RECENT_MAX);
    bench.get(&format!("/api/v1/inspections/{}", first.id)).expect_error(404, "unknown_inspection");
}

#[test]
fn an_inspection_older_than_the_ring_comes_from_the_lookup() {
    let bench = Bench::new();
    let old = inspection(1, Verdict::Fail, &[Reason::WrongLabel]);
    let (id, stored) = (old.id.0, old.clone());
    let mut state = state(&bench.folder.path().join("artifacts"), &bench.progress);
    state.lookup = Some(Arc::new(move |asked| (asked == id).then(|| stored.clone())));
    let second = Bench::with(state);
    assert_eq!(second.get(&format!("/api/v1/inspections/{id}")).json()["code"], old.code);
    second.get(&format!("/api/v1/inspections/{}", uuid::Uuid::now_v7())).expect_error(404, "unknown_inspection");
}

#[test]
fn bad_limits_and_unknown_ids_are_named_without_internals() {
    let bench = Bench::new();
    for limit in ["0", "-1", "x", "99999999999999999999999", ""] {
        bench.get(&format!("/api/v1/inspections?limit={limit}")).expect_error(400, "bad_limit");
    }
    for query in ["limit=5&limit=6", "verdict=fail", "limit=5&offset=2"] {
        bench.get(&format!("/api/v1/inspections?{query}")).expect_error(400, "bad_query");
    }
    bench.get("/api/v1/inspections?station=nowhere").expect_error(404, "unknown_station");
    assert_eq!(bench.get("/api/v1/inspections?limit=100000").status, 200);
    bench.get(&format!("/api/v1/inspections/{}", uuid::Uuid::now_v7())).expect_error(404, "unknown_inspection");
    bench.get("/api/v1/inspections/x").expect_error(404, "unknown_inspection");
    bench.get("/api/v1/inspections/%ff").expect_error(404, "unknown_inspection");
    bench.get("/api/v2").expect_error(404, "not_found");
}

#[test]
fn status_balances_and_names_the_station() {
    let status = Bench::new().get("/api/v1/status").json();
    let counters = &status["counters"];
    assert_eq!((counters["refused"].as_u64(), counters["in_flight"].as_u64()), (Some(2), Some(1)));
    assert_eq!(counters["is_balanced"], true);
    assert_eq!(status["uplink"]["state"], "retrying");
    assert_eq!(status["stations"][0]["state"], "running");
    assert_eq!(status["providers"][0]["provider"], "cpu");
}

#[test]
fn events_deliver_a_published_inspection_and_end_with_the_daemon() {
    let bench = Bench::new();
    let mut events = bench.events();
    assert_eq!(events.next("status").unwrap()["site"], "Plant 3");
    let published = inspection(7, Verdict::Fail, &[Reason::WrongLabel]);
    bench.feed.publish(Arc::new(published.clone()));
    let event = events.next("inspection").unwrap();
    assert_eq!(event["inspection_id"], published.id.to_string());
    assert_eq!(event["advice"]["locate.wrong_label"], Reason::WrongLabel.advice());
    bench.shutdown.request();
    assert!(events.next("never").is_none(), "an open stream must not hold up the stop");
}

#[test]
fn a_client_that_lags_behind_is_told_to_reload() {
    let bench = Bench::new();
    let mut events = bench.events();
    assert!(events.next("status").is_some());
    let one = Arc::new(inspection(1, Verdict::Pass, &[]));
    // More than the broadcast holds, published faster than anything could read it.
    for _ in 0..50 * limits::DASHBOARD_SSE_LAG_MAX {
        bench.feed.publish(one.clone());
    }
    assert!(events.next("reload").unwrap()["missed"].as_u64().unwrap() > 0);
}

#[test]
fn screens_beyond_the_limit_are_turned_away() {
    let bench = Bench::new();
    let mut screens: Vec<_> = (0..limits::DASHBOARD_SSE_CLIENTS_MAX).map(|_| bench.events()).collect();
    assert!(screens.iter_mut().all(|screen| screen.next("status").is_some()));
    bench.get("/api/v1/events").expect_error(503, "too_many_streams");
    assert_eq!(bench.get("/api/v1/status").status, 200, "streams must not use up the requests");
}

#[test]
fn artifacts_are_served_from_their_folder_only() {
    let bench = Bench::new();
    let picture = bench.get("/artifacts/2026/11/21/a.jpg");
    assert_eq!((picture.status, picture.body.as_str()), (200, "jpeg bytes"));
    assert!(
        picture.head.contains("content-type: image/jpeg") && picture.head.contains("immutable"),
        "{}",
        picture.head
    );
    let download = bench.get("/artifacts/2026/11/21/a.svg");
    assert!(download.head.contains("content-disposition: attachment") && download.head.contains("octet-stream"));
    std::os::unix::fs::symlink("../ledger.sqlite", bench.folder.path().join("artifacts/link.jpg")).unwrap();
    for path in [
        "../ledger.sqlite",
        "..%2fledger.sqlite",
        "2026/../../ledger.sqlite",
        "%2e%2e/ledger.sqlite",
        "2026%5c..%5c..%5cledger.sqlite",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "link.jpg",
        "2026",
        "none.jpg",
        "a%00.jpg",
        "%ff%fe.jpg",
    ] {
        let answer = bench.get(&format!("/artifacts/{path}"));
        answer.expect_error(404, "unknown_artifact");
        assert!(!answer.body.contains("secret"));
    }
}

#[test]
fn a_picture_that_is_gone_is_answered_by_one_that_says_why() {
    let bench = Bench::new();
    let answer = bench.get("/artifacts/2026/11/21/gone.jpg");
    assert_eq!(answer.status, 410);
    assert!(answer.head.contains("image/svg+xml") && answer.head.contains("no-store"), "{}", answer.head);
    assert!(answer.body.starts_with("<svg") && answer.body.contains("&lt;3&gt;"), "{}", answer.body);
    assert!(answer.body.contains("days by policy."), "{}", answer.body);
}

#[test]
fn a_rebound_or_missing_host_is_refused() {
    let bench = Bench::new();
    let port = bench.addr().port();
    for host in ["evil.example", "localhost.evil.example:80", "10.1.2.3"] {
        let request = format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        bench.send(&request).expect_error(421, "unknown_host");
    }
    bench.send("GET /api/v1/status HTTP/1.0\r\n\r\n").expect_error(421, "unknown_host");
    let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    assert_eq!(bench.send(&request).status, 200);
}

#[test]
fn huge_queries_bodies_and_other_methods_are_refused() {
    let bench = Bench::new();
    bench.get(&format!("/api/v1/inspections?limit={}", "9".repeat(5_000))).expect_error(414, "uri_too_long");
    let host = bench.addr();
    let body = format!("GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    bench.send(&body).expect_error(413, "body_refused");
    let post = format!("POST /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    bench.send(&post).expect_error(405, "method_not_allowed");
}

#[test]
fn every_answer_carries_the_security_headers() {
    let bench = Bench::new();
    for path in ["/", "/assets/app.js", "/api/v1/status", "/none", "/artifacts/none", "/metrics"] {
        let head = bench.get(path).head;
        for header in ["content-security-policy: default-src 'self'", "frame-ancestors 'none'", "nosniff"] {
            assert!(head.contains(header), "{path} lacks {header}: {head}");
        }
    }
}

#[test]
fn the_page_asks_nothing_of_other_machines() {
    let bench = Bench::new();
    for path in
        ["/", "/assets/app.js", "/assets/review.js", "/assets/feedback.js", "/assets/style.css", "/assets/icon.svg"]
    {
        let answer = bench.get(path);
        assert_eq!(answer.status, 200, "{path}");
        let namespaces = answer.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!namespaces.contains("://"), "{path} names another machine");
        assert!(!answer.body.contains("innerHTML"), "{path} would put data in as markup");
    }
    assert!(!bench.get("/").body.contains("style=\""), "the content security policy refuses inline styles");
}

#[test]
fn metrics_are_openmetrics_and_health_follows_the_pipeline() {
    let bench = Bench::new();
    let metrics = bench.get("/metrics");
    assert!(metrics.head.contains("application/openmetrics-text"), "{}", metrics.head);
    assert!(metrics.body.contains("loupe_inspections_committed_total 9\n") && metrics.body.ends_with("# EOF\n"));
    assert_eq!(bench.get("/healthz").status, 200);
    bench.progress.set_idle(true);
    assert_eq!(bench.get("/healthz").json()["status"], "ok");
}

#[test]
fn an_address_others_can_reach_and_a_taken_port_are_refused_with_advice() {
    let bench = Bench::new();
    let artifacts = bench.folder.path().join("artifacts");
    let spawn = |listen: SocketAddr, artifacts: &Path| {
        Dashboard::spawn(listen, Feed::new(), state(artifacts, &bench.progress), Shutdown::new()).map(|h| h.addr)
    };
    let remote = spawn(SocketAddr::from(([0, 0, 0, 0], 0)), &artifacts).unwrap_err();
    assert!(remote.to_string().contains("allow_remote = true"), "{remote}");
    let taken = spawn(bench.addr(), &artifacts).unwrap_err();
    assert!(matches!(taken, DashboardError::Bind { .. }) && taken.to_string().contains("choose another"), "{taken}");
    let missing = spawn(LOOPBACK, &artifacts.join("none")).unwrap_err();
    assert!(matches!(missing, DashboardError::Artifacts { .. }), "{missing}");
}

/// A dashboard whose review desk repeats what it is told.
fn with_desk() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let mut state = state(folder.path(), &Progress::new("tray"));
    state.reviews = Some(std::sync::Arc::new(|call| match call {
        ReviewCall::Add(order) if order.subject == "bad" => Err(ReviewRefusal::Order("no such item".to_owned())),
        ReviewCall::Add(order) if order.subject == "disk" => Err(ReviewRefusal::Machine("/secret is full".to_owned())),
        ReviewCall::Add(order) => Ok(serde_json::json!(order)),
        ReviewCall::Undo { id, reviewer, .. } => Ok(serde_json::json!({ "id": id, "reviewer": reviewer })),
        other => Ok(serde_json::json!({ "asked": format!("{other:?}") })),
    }));
    Bench::with(state)
}

fn post(bench: &Bench, path: &str, headers: &str, body: &str) -> bench::Answer {
    let (host, length) = (bench.addr(), body.len());
    bench.send(&format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}"
    ))
}

#[test]
fn a_review_of_another_site_or_of_no_json_is_refused() {
    let bench = with_desk();
    let order = r#"{"subject":"INS-20261121-0001/0","action":{"kind":"confirm"},"reviewer":"Kim"}"#;
    let json = "Content-Type: application/json; charset=utf-8\r\n";
    let path = "/api/v1/reviews";
    for origin in ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"] {
        let headers = format!("{json}Origin: {origin}\r\n");
        post(&bench, path, &headers, order).expect_error(403, "foreign_origin");
    }
    post(&bench, path, "Content-Type: application/x-www-form-urlencoded\r\n", order).expect_error(415, "not_json");
    post(&bench, path, "", order).expect_error(415, "not_json");
    post(&bench, path, json, &order.replace("reviewer", "by")).expect_error(400, "bad_review");
    let long = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\n{json}Content-Length: 9000\r\nConnection: close\r\n\r\n",
        bench.addr()
    );
    bench.send(&long).expect_error(413, "body_refused");
    post(&bench, path, json, &order.replace("INS-20261121-0001/0", "bad")).expect_error(422, "review_refused");
    // What is wrong with the machine is for its log.
    post(&bench, path, json, &order.replace("INS-20261121-0001/0", "disk")).expect_error(500, "review_failed");
    let own = format!("{json}Origin: http://{}\r\n", bench.addr());
    let stored = post(&bench, path, &own, order);
    assert_eq!((stored.status, stored.json()["teach"].as_bool()), (201, Some(true)));
    post(&bench, "/api/v1/reviews/x/undo", &own, r#"{"reviewer":"Kim"}"#).expect_error(404, "unknown_review");
    let id = "00000000-0000-0000-0000-000000000001";
    let undone = post(&bench, &format!("/api/v1/reviews/{id}/undo"), &own, r#"{"reviewer":"Kim"}"#);
    assert_eq!((undone.status, undone.json()["id"].as_str()), (201, Some(id)));
    assert_eq!(bench.get("/api/v1/unknowns").json()["asked"], "Unknowns");
    Bench::new().get(path).expect_error(404, "no_reviews");
}

#[test]
fn feedback_and_people_are_taken_as_reviews_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = state(folder.path(), &Progress::new("tray"));
    state.people = Some(std::sync::Arc::new(|call| match call {
        PeopleCall::ChangePerson(_) => Err(ReviewRefusal::Order("`kim` is registered already".to_owned())),
        PeopleCall::Say(_) => Err(ReviewRefusal::Machine("/secret is full".to_owned())),
        other => Ok(serde_json::json!({ "asked": format!("{other:?}") })),
    }));
    let bench = Bench::with(state);
    let json = "Content-Type: application/json\r\n";
    let add = r#"{"do":"add","username":"kim","full_name":null,"role":"viewer","by":"lee"}"#;
    let say = r#"{"do":"say","subject":"INS-20261121-0001","feedback_type":"accurate","rating":5,"expected_severity":null,"notes":null,"by":"kim"}"#;
    let act = r#"{"do":"act","inspection":"INS-20261121-0001","action_taken":"x","action_result":"done","notes":null,"by":"kim"}"#;
    for (path, order) in [("/api/v1/people", add), ("/api/v1/feedback", say)] {
        post(&bench, path, &format!("{json}Origin: http://evil.example\r\n"), order)
            .expect_error(403, "foreign_origin");
        post(&bench, path, "Content-Type: text/plain\r\n", order).expect_error(415, "not_json");
        post(&bench, path, json, &order.replace("\"by\"", "\"author\"")).expect_error(400, "bad_order");
        Bench::new().get(path).expect_error(404, "no_feedback");
    }
    for unknown in
        [act, &say.replace("accurate", "guide_quality"), &say.replace("5", "256"), &add.replace("viewer", "worker")]
    {
        post(&bench, "/api/v1/feedback", json, unknown).expect_error(400, "bad_order");
    }
    post(&bench, "/api/v1/people", json, add).expect_error(422, "order_refused");
    // What is wrong with the machine is for its log.
    let answer = post(&bench, "/api/v1/feedback", json, say);
    assert!(!answer.body.contains("secret"), "{}", answer.body);
    answer.expect_error(500, "feedback_failed");
    assert_eq!(bench.get("/api/v1/people").json()["asked"], "People");
    assert_eq!(bench.get("/api/v1/feedback").json()["asked"], "Feedback");
}

#[test]
fn without_logins_reviews_are_taken_on_loopback_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = state(folder.path(), &Progress::new("tray"));
    state.reviews = Some(std::sync::Arc::new(|_| Ok(serde_json::json!({}))));
    state.people = Some(std::sync::Arc::new(|_| Ok(serde_json::json!({}))));
    state.allow_remote = true;
    let shutdown = Shutdown::new();
    let handle = Dashboard::spawn(SocketAddr::from(([0, 0, 0, 0], 0)), Feed::new(), state, shutdown.clone()).unwrap();
    let port = handle.addr.port();
    let asks = ["POST /api/v1/reviews", "POST /api/v1/feedback", "POST /api/v1/people", "GET /api/v1/people"];
    for ask in asks {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let body = if ask.starts_with("POST") { "{}" } else { "" };
        let request = format!(
            "{ask} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("loopback_only"), "{ask}: {answer}");
    }
    shutdown.request();
    handle.join();
}
