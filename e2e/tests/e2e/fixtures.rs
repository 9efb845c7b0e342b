//! Tests of the fixtures themselves, without the product, since the other tests rely on them: the receiver decodes what a
//! hand-written client sends, the apps log, serve and exit as expected, and git's own client can clone from each server.

use std::io::Write;

use prost::Message;

use crate::apps::App;
use crate::harness::git::{Repository, git, published, search_path_with_ssh};
use crate::harness::proto::{Label, LokiEntry, LokiStream, PushRequest, Sample, TimeSeries, Timestamp, WriteRequest};
use crate::harness::raw_app::answer_ok;
use crate::harness::{Answer, Exposition, LogReceiver, RawApp, SECOND, Scene, Wire, request};

/// The receiver accepts JSON lines uncompressed, with gzip and with Zstandard, in order and with duplicates.
#[test]
fn receiver_decodes_json_lines_in_each_encoding() {
    let receiver = LogReceiver::start();
    let plain = b"{\"message\":\"n=000000\",\"stream\":\"stdout\"}\n{\"message\":\"n=000001\"}\n".to_vec();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).expect("writing to memory does not fail");
    let gzip = encoder.finish().expect("writing to memory does not fail");
    let zstd = zstd::encode_all(&*plain, 1).expect("writing to memory does not fail");
    for (encoding, body) in [("identity", &plain), ("gzip", &gzip), ("zstd", &zstd)] {
        let headers = [("Content-Encoding", encoding)];
        let reply = request(&receiver.address(), "POST", "/lines", &headers, body).expect("a response");
        assert_eq!(reply.status, 204, "{encoding}");
    }
    assert_eq!(receiver.numbers("n="), [0, 1, 0, 1, 0, 1]);
    assert_eq!(receiver.records()[0].field("stream"), "stdout");
    receiver.assert_well_formed();
}

/// The receiver accepts the protobuf of Loki and of Prometheus, compressed with snappy.
#[test]
fn receiver_decodes_loki_and_remote_write() {
    let receiver = LogReceiver::start();
    let mut snappy = snap::raw::Encoder::new();
    let entry = LokiEntry { timestamp: Some(Timestamp { seconds: 1, nanos: 5 }), line: "n=000007".to_owned() };
    let stream = LokiStream { labels: "{service=\"orders\"}".to_owned(), entries: vec![entry] };
    let push = PushRequest { streams: vec![stream] }.encode_to_vec();
    let body = snappy.compress_vec(&push).expect("the message is small");
    let reply = request(&receiver.address(), "POST", "/loki/api/v1/push", &[], &body).expect("a response");
    assert_eq!(reply.status, 204);
    let label = Label { name: "__name__".to_owned(), value: "up".to_owned() };
    let series = TimeSeries { labels: vec![label], samples: vec![Sample { value: 1.0, timestamp: 2 }] };
    let body =
        snappy.compress_vec(&WriteRequest { timeseries: vec![series] }.encode_to_vec()).expect("the message is small");
    let reply = request(&receiver.address(), "POST", "/api/v1/write", &[], &body).expect("a response");
    assert_eq!(reply.status, 204);
    assert_eq!(receiver.records()[0].nanos, 1_000_000_005);
    assert_eq!(receiver.batches()[1].series[0].name(), "up");
}

/// A receiver that rejects or hangs does not count the batch, and accepts batches after `Answer::Accept`.
#[test]
fn receiver_rejects_or_hangs_when_configured() {
    let receiver = LogReceiver::answering(Answer::Status(500));
    let send = || request(&receiver.address(), "POST", "/lines", &[], b"{\"message\":\"n=000000\"}\n");
    assert_eq!(send().expect("a response").status, 500);
    receiver.answer(Answer::Hang);
    std::thread::scope(|scope| {
        let hanging = scope.spawn(send);
        receiver.wait_for_refused(2, 5 * SECOND);
        receiver.answer(Answer::Accept);
        assert!(hanging.join().expect("no panic").is_err(), "the receiver closes without a response");
    });
    assert_eq!(receiver.len(), 0);
    assert_eq!(send().expect("a response").status, 204);
    assert_eq!(receiver.len(), 1);
}

/// A line that is not a JSON object is reported, not ignored.
#[test]
fn receiver_reports_malformed_lines() {
    let receiver = LogReceiver::start();
    let reply = request(&receiver.address(), "POST", "/lines", &[], b"not json\n").expect("a response");
    assert_eq!(reply.status, 400);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| receiver.assert_well_formed())).is_err());
}

/// Client, raw app and wire agree on chunks, trailers and truncated bodies.
#[test]
fn wire_preserves_trailers_and_sees_truncation() {
    let app = RawApp::start(|seen, wire| match seen.head.target() {
        "/cut" => {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").expect("the client reads");
            crate::harness::Next::Close
        }
        _ => answer_ok(wire, &seen.body.bytes),
    });
    let mut wire = Wire::connect(&app.address()).expect("the app listens");
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n";
    wire.send(chunked).expect("the app reads");
    assert_eq!(wire.reply("POST").expect("a response").text(), "abcde");
    assert_eq!(app.seen()[0].body.trailers, [("X-Sum".to_owned(), "5".to_owned())]);
    wire.send("GET /cut HTTP/1.1\r\n\r\n").expect("the app reads");
    assert!(!wire.reply("GET").expect("a response").body.whole);
    assert_eq!(app.connections(), 1);
}

/// The parser of the exposition accepts labels with escapes and rejects what is not a sample.
#[test]
fn exposition_parser_is_strict() {
    let page = Exposition::parse("# TYPE a counter\na{b=\"c\\\"d\",e=\"f\"} 2\na{b=\"x\"} 3 1700000000\n");
    assert_eq!(page.sum(|series| series.name == "a"), Some(5.0));
    assert_eq!(page.series[0].labels["b"], "c\"d");
    assert_eq!(page.value("other"), None);
    assert!(std::panic::catch_unwind(|| Exposition::parse("2a 3\n")).is_err());
}

/// The Python app without Outrigger logs, serves and exits with 5.
#[test]
fn python_app_works_without_outrigger() {
    need!(App::python(), "python3 is not installed").alone().assert_complete(2000, 5);
}

/// The Node server without Outrigger logs, serves and exits with 6.
#[test]
fn node_app_works_without_outrigger() {
    need!(App::node(), "node is not installed").alone().assert_complete(2000, 6);
}

/// The Java server without Outrigger logs, serves and exits with 143.
#[test]
fn java_app_works_without_outrigger() {
    need!(App::java(), "java is not installed").alone().assert_complete(2000, 143);
}

/// nginx without Outrigger logs its requests, which are its only numbered lines, and exits with 0.
#[test]
fn nginx_app_works_without_outrigger() {
    need!(App::nginx(), "nginx is not installed").alone().assert_complete(0, 0);
}

/// git's own client clones from the path, the daemon and the CGI server, and gets a new commit.
#[test]
fn git_clones_from_path_daemon_and_http() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let (_daemon, daemon) = need!(repository.daemon(&scene), "git-daemon is not installed");
    let (_http, http) = need!(repository.http(&scene), "git-http-backend or python3 is not installed");
    repository.push(2);
    for (name, url) in [("path", repository.file_url()), ("daemon", daemon), ("http", http)] {
        git(&scene.path("."), &["clone", "--quiet", &url, name]);
        assert_eq!(published(&scene.path(name).join("orders")), Ok(Some(2)), "{url}");
    }
}

/// git's own client clones from sshd with the keys of the test.
#[test]
fn git_clones_over_ssh() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let (_sshd, url) = need!(repository.sshd(&scene), "sshd is not installed");
    let mut clone = std::process::Command::new("git");
    clone.current_dir(scene.path(".")).args(["clone", "--quiet", &url, "copy"]);
    let cloned = clone.env("PATH", search_path_with_ssh(&scene)).output().expect("git runs");
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    assert_eq!(published(&scene.path("copy/orders")), Ok(Some(1)));
}

/// The reader of published directories detects a revision that was not published atomically.
#[test]
fn reader_detects_a_partly_published_revision() {
    let scene = Scene::new();
    assert_eq!(published(&scene.path("to")), Ok(None));
    scene.write("to/a.conf", "generation=000001\n");
    assert!(published(&scene.path("to")).is_err(), "one file is missing");
    scene.write("to/b.conf", "generation=000002\n");
    assert!(published(&scene.path("to")).is_err(), "the files differ");
    scene.write("to/b.conf", "generation=000001\n");
    assert_eq!(published(&scene.path("to")), Ok(Some(1)));
}
