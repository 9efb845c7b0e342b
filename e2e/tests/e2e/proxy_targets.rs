//! Request targets, hosts and versions that have to be rewritten, answered locally or rejected before anything reaches the
//! app. In: raw requests. Out: what the app received, or the proxy's local response. Bounded by a table for each case and a
//! target of 200 KiB.

use crate::harness::process::Running;
use crate::harness::raw_app::Seen;
use crate::harness::{Next, PATIENCE, Proxied, RawApp, Scene, fixture, get, until};

/// The outcome of a request: `GET /path HTTP/1.1, Host: app` as the app received it, else the status of the local response.
fn outcome(proxied: &Proxied, app: &RawApp, request: &[u8]) -> String {
    match proxied.pass(app, request) {
        (Some(seen), _) => sent(&seen),
        (None, Ok(reply)) => reply.status.to_string(),
        (None, Err(error)) => format!("no response: {error}"),
    }
}

fn sent(seen: &Seen) -> String {
    let hosts = seen.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    let hosts: String = hosts.map(|(_, value)| format!(", Host: {value}")).collect();
    format!("{}{hosts}", seen.head.start)
}

/// Each request becomes the second text of its pair; `@app@` there is the app's address.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(request, expected)| {
            let became = outcome(&proxied, &app, request.as_bytes());
            let expected = expected.replace("@app@", &app.address());
            let shown = request.get(..72).unwrap_or(request);
            (became != expected).then(|| format!("{shown:?}, {} bytes: {expected}, not {became}", request.len()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(outcome(&proxied, &app, b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"), "GET /after HTTP/1.1, Host: a");
    proxied.finish();
}

/// RFC 9112, 3.2.1 and 3.2.4: a target without a path becomes the root with its query, and `*` for OPTIONS.
#[test]
fn absolute_target_without_path_keeps_its_query() {
    check(&[
        (
            "GET http://shop.example?id=7 HTTP/1.1\r\nHost: shop.example\r\n\r\n",
            "GET /?id=7 HTTP/1.1, Host: shop.example",
        ),
        (
            "GET http://shop.example:81?a=/b?c HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /?a=/b?c HTTP/1.1, Host: shop.example:81",
        ),
        ("GET http://shop.example HTTP/1.1\r\nHost: shop.example\r\n\r\n", "GET / HTTP/1.1, Host: shop.example"),
        ("OPTIONS http://y HTTP/1.1\r\nHost: y\r\n\r\n", "OPTIONS * HTTP/1.1, Host: y"),
        ("OPTIONS http://y:8001 HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1, Host: y:8001"),
        ("OPTIONS http://y/ HTTP/1.1\r\nHost: y\r\n\r\n", "OPTIONS / HTTP/1.1, Host: y"),
        ("OPTIONS http://y?q HTTP/1.1\r\nHost: y\r\n\r\n", "OPTIONS /?q HTTP/1.1, Host: y"),
    ]);
}

/// RFC 9112, 3.2.2: whatever the scheme, the host of an absolute target is the only Host that the app sees.
#[test]
fn absolute_target_overrides_the_host_header() {
    check(&[
        ("GET https://y/g HTTP/1.1\r\nHost: x\r\n\r\n", "GET /g HTTP/1.1, Host: y"),
        ("GET HTTPS://Y:8443/g?q=https://z/ HTTP/1.1\r\nHost: x\r\n\r\n", "GET /g?q=https://z/ HTTP/1.1, Host: Y:8443"),
        ("POST https://y HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "POST / HTTP/1.1, Host: y"),
        ("GET http://y/g HTTP/1.1\r\nHost: x\r\n\r\n", "GET /g HTTP/1.1, Host: y"),
        ("GET https:///g HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        ("GET http://?q HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
    ]);
}

/// RFC 9112, 3.2: a target in none of the four forms, or a Host that is not a valid host, could differ in meaning between peers.
#[test]
fn invalid_targets_and_hosts_are_rejected() {
    check(&[
        ("GET @evil/ HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET evil/ HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET ?id=7 HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET * HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: user@app\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: app:http\r\n\r\n", "400"),
        ("GET http://a b/ HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET https://a%zz\\b/ HTTP/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.1, Host: [::1]:80"),
        ("GET /@evil/*?a@b HTTP/1.1\r\nHost: app\r\n\r\n", "GET /@evil/*?a@b HTTP/1.1, Host: app"),
    ]);
}

/// RFC 9110, 4.2.4: userinfo in a target is treated as an error, and its password is not recorded anywhere.
#[test]
fn userinfo_is_rejected_and_not_recorded() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let targets = [
        "GET https://user:secret@y/g",
        "GET http://user:secret@y/g",
        "POST http://secret@y",
        "OPTIONS https://a@secret@y?q",
        "GET HTTP://:secret@y/",
    ];
    let request = |line: &str| format!("{line} HTTP/1.1\r\nHost: y\r\nContent-Length: 0\r\n\r\n");
    let became = targets.map(|line| (line, outcome(&proxied, &app, request(line).as_bytes())));
    proxied.get("/after");
    proxied.record_of("/after");
    let records = proxied.records_text();
    let leaks: Vec<&str> = records.lines().filter(|line| line.contains("secret")).collect();
    let accepted: Vec<_> = became.iter().filter(|(_, became)| became != "400").collect();
    assert!(accepted.is_empty() && leaks.is_empty(), "accepted: {accepted:#?}, recorded: {leaks:#?}");
    proxied.finish();
}

/// RFC 9112, 3.2: the proxy sends HTTP/1.1, which requires a Host; if the client sends none, it is the endpoint's authority.
#[test]
fn http_1_0_request_without_host_gets_authority() {
    check(&[
        ("GET /health HTTP/1.0\r\n\r\n", "GET /health HTTP/1.1, Host: @app@"),
        ("POST /form HTTP/1.0\r\nContent-Length: 2\r\n\r\nok", "POST /form HTTP/1.1, Host: @app@"),
        ("GET /keep-alive HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /keep-alive HTTP/1.1, Host: @app@"),
        ("GET /named HTTP/1.0\r\nHost: y\r\n\r\n", "GET /named HTTP/1.1, Host: y"),
        ("GET http://y/absolute HTTP/1.0\r\n\r\n", "GET /absolute HTTP/1.1, Host: y"),
    ]);
}

/// nginx accepts the health check of an old load balancer, with and without the proxy in front.
#[test]
fn nginx_accepts_http_1_0_through_the_proxy() {
    let nginx = need_peer!("nginx");
    let scene = Scene::new();
    let address = format!("127.0.0.1:{}", scene.port("port"));
    scene.set("log", scene.text_path("app.log"));
    let template = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture exists");
    let config = scene.write("nginx.conf", scene.fill(&template)).display().to_string();
    let running = Running::start(&[nginx.as_str(), "-e", "stderr", "-c", &config]);
    until(PATIENCE, "nginx serves", || get(&address, "/health").is_ok());
    let proxied = Proxied::to(&address);
    let reply = proxied.exchange("GET /health HTTP/1.0\r\n\r\n", "GET");
    assert_eq!((reply.status, reply.text().as_str()), (200, "well\n"));
    proxied.finish();
    running.stop();
}

/// RFC 9110, 15.6.6: another major version is 505, and a malformed request line stays 400.
#[test]
fn another_major_version_is_505() {
    check(&[
        ("GET / HTTP/2.0\r\nHost: app\r\n\r\n", "505"),
        ("POST / HTTP/3.0\r\nHost: app\r\nContent-Length: 0\r\n\r\n", "505"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
        ("GET / HTTX/1.1\r\nHost: app\r\n\r\n", "400"),
        ("GET / HTTP/1.1 x\r\nHost: app\r\n\r\n", "400"),
    ]);
}

/// RFC 9110, 15.5.15: a head that is too large because of its target is 414; because of its fields it is 431.
#[test]
fn a_target_over_the_limit_is_414() {
    let long = |length: usize| "x".repeat(length);
    let path = format!("GET /{} HTTP/1.1\r\nHost: app\r\n\r\n", long(70 << 10));
    let query = format!("POST /?{} HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n", long(200 << 10));
    let endless = format!("GET http://y/{}", long(80 << 10));
    let fields = format!("GET / HTTP/1.1\r\nHost: app\r\nX-Long: {}\r\n\r\n", long(70 << 10));
    check(&[(&path, "414"), (&query, "414"), (&endless, "414"), (&fields, "431")]);
}

/// RFC 9110, 7.6.2: OPTIONS and TRACE with Max-Forwards of 0 are answered by their recipient; others are forwarded with one hop
/// less.
#[test]
fn last_hop_responds_and_others_decrement() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let cases = [
        ("OPTIONS / HTTP/1.1", "0", None),
        ("OPTIONS * HTTP/1.1", "0", None),
        ("OPTIONS http://y HTTP/1.1", "0", None),
        ("TRACE / HTTP/1.1", "0", None),
        ("OPTIONS / HTTP/1.1", "5", Some("4")),
        ("TRACE / HTTP/1.1", "1", Some("0")),
        ("GET / HTTP/1.1", "0", Some("0")),
    ];
    let mut wrong = Vec::new();
    for (line, hops, expected) in cases {
        let (seen, reply) = proxied.pass(&app, format!("{line}\r\nHost: y\r\nMax-Forwards: {hops}\r\n\r\n").as_bytes());
        let left = seen.map(|seen| seen.head.header("max-forwards").map(str::to_owned));
        if left != expected.map(|hops| Some(hops.to_owned())) {
            wrong.push(format!("{line} with Max-Forwards: {hops}: the app saw {left:?}, not {expected:?}"));
        }
        // A server may reject TRACE, but such a request is not a server fault.
        let status = reply.map_or(0, |reply| reply.status);
        if !matches!(status, 200..=499 | 501) {
            wrong.push(format!("{line} with Max-Forwards: {hops}: the status is {status}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}
