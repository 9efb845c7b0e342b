//! Git over HTTP as proxies, hosting services and moved repositories serve it: headers in another spelling, credentials, rate
//! limits, redirects. A relay of the test forwards to `git http-backend` or responds itself. Out: the published revisions, the
//! requests and the reported errors. Bounded by a handful of requests each.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::harness::git::relay::{UploadRequest, answer_head, lines_of, listing_without_deepening, relay_http};
use crate::harness::git::{Repository, await_generation, await_refusal, published, published_commit};
use crate::harness::process::run_to_end;
use crate::harness::raw_app::{Next, Seen};
use crate::harness::{Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, until, within};

const NO_GIT: &str = "git is not installed";
const NO_HTTP: &str = "git-http-backend or python3 is not installed";

const SETTINGS: &str = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: main, path: orders/, interval: 200ms } }, publish: { symlink: { path: "@dir@/out/settings" } } }
"#;

/// Changes the spelling of a media type.
type Spelling = fn(&str) -> String;

/// Media types are compared without regard to case, and may have parameters (RFC 9110, 8.3.1), in both responses of the protocol.
/// A response with another media type is rejected with that type in the error.
#[test]
fn any_spelling_of_a_content_type_is_accepted() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, _) = need!(repository.http(&scene), NO_HTTP);
    let own = format!("127.0.0.1:{}", scene.value("git_http"));
    let spelling: Arc<Mutex<Spelling>> = Arc::new(Mutex::new(str::to_owned));
    let app = RawApp::start({
        let spelling = spelling.clone();
        move |seen, wire| {
            let spelling = *spelling.lock().expect("no holder panics");
            relay_http(&own, seen, wire, |answer| answer.kind = spelling(&answer.kind))
        }
    });
    scene.set("url", format!("http://{}/config.git", app.address()));
    let spell = |with: Spelling| *spelling.lock().expect("no holder panics") = with;
    let outrigger = Outrigger::start(&scene, SETTINGS, &[]);
    let spellings: [Spelling; 4] = [
        |kind| format!("{kind}; charset=utf-8"),
        |kind| format!("{kind} ;charset=\"utf-8\";x=y"),
        |kind| kind.to_uppercase(),
        |kind| kind.replace("application/x-git", "Application/X-Git"),
    ];
    let mut wrong = Vec::new();
    for (number, with) in spellings.into_iter().enumerate() {
        spell(with);
        repository.push(2 + number);
        let at = || published(&scene.path("out/settings")) == Ok(Some(2 + number));
        wrong.extend((!within(5 * SECOND, at)).then(|| with("application/x-git-upload-pack-result")));
    }
    assert_eq!(wrong, Vec::<String>::new(), "media types that were rejected");
    spell(|_| "text/html; charset=utf-8".to_owned());
    await_refusal(&outrigger, PATIENCE, &["text/html"]);
    outrigger.finish();
}

/// User and password of the URL are decoded (RFC 3986, 2.1), sent (RFC 7617), and never shown.
#[test]
fn url_credentials_are_sent_and_not_shown() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, _) = need!(repository.http(&scene), NO_HTTP);
    let own = format!("127.0.0.1:{}", scene.value("git_http"));
    let app = RawApp::start(move |seen, wire| match expected(seen.head.target()) {
        Some(expected) if seen.head.header("authorization") == Some(expected) => {
            relay_http(&own, &without_first_segment(seen), wire, |_| {})
        }
        _ => answer_head(wire, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"git\"\r\n"),
    });
    scene.set("server", app.address());
    let outrigger = Outrigger::start_and(&scene, WITH_USERS, &[], Wait::Nothing);
    let commit = repository.id_of("main");
    let targets = ["plain", "escaped", "token"];
    let at = |name: &&str| published_commit(&scene.path(&format!("out/{name}"))).as_ref() == Some(&commit);
    within(5 * SECOND, || targets.iter().all(at));
    let wrong: Vec<&&str> = targets.iter().filter(|name| !at(name)).collect();
    assert_eq!(wrong, Vec::<&&str>::new(), "users that were rejected: {}", outrigger.stderr.text());
    await_refusal(&outrigger, PATIENCE, &["401"]);
    let shown = [outrigger.get("/status").text(), outrigger.get("/config").text(), outrigger.stderr.text()].concat();
    let secrets = ["s3cret", "p%3Aa%2Fss%25", "p:a/ss%", "tok3n", "wr0ng"];
    let leaked: Vec<&&str> = secrets.iter().filter(|secret| shown.contains(**secret)).collect();
    assert_eq!(leaked, Vec::<&&str>::new(), "{shown}");
    outrigger.finish();
}

const WITH_USERS: &str = r#"
sync:
  plain: { store: { git: { url: "http://user:s3cret@@server@/plain/config.git", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/plain" } } }
  escaped: { store: { git: { url: "http://us%40er:p%3Aa%2Fss%25@@server@/escaped/config.git", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/escaped" } } }
  token: { store: { git: { url: "http://tok3n@@server@/token/config.git", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/token" } } }
  wrong: { store: { git: { url: "http://user:wr0ng@@server@/plain/config.git", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/wrong" } } }
"#;

/// The credentials that the server accepts, by the first segment of the path.
fn expected(target: &str) -> Option<&'static str> {
    match target.split('/').nth(1)? {
        "plain" => Some("Basic dXNlcjpzM2NyZXQ="),
        "escaped" => Some("Basic dXNAZXI6cDphL3NzJQ=="),
        "token" => Some("Basic dG9rM246"),
        _ => None,
    }
}

fn without_first_segment(seen: &Seen) -> Seen {
    let mut seen = seen.clone();
    let target = seen.head.target().to_owned();
    let rest = target.splitn(3, '/').nth(2).unwrap_or_default().to_owned();
    seen.head.start = seen.head.start.replace(&target, &format!("/{rest}"));
    seen
}

/// A request is not repeated before the time in `Retry-After` (RFC 9110, 10.2.3): in seconds and as a date, with 429 and with
/// 503, in response to the ref advertisement and to the fetch.
/// Guarantee: retry-after-honoured
#[test]
fn retry_after_is_honoured() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, _) = need!(repository.http(&scene), NO_HTTP);
    let own = format!("127.0.0.1:{}", scene.value("git_http"));
    let (_, in_an_hour, _) =
        run_to_end(&["env", "LC_ALL=C", "date", "-u", "-d", "+1 hour", "+%a, %d %b %Y %H:%M:%S GMT"], PATIENCE);
    let requests: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let app = RawApp::start({
        let requests = requests.clone();
        move |seen, wire| {
            let entry = seen.head.target().split('/').nth(1).unwrap_or_default().to_owned();
            let is_fetch = String::from_utf8_lossy(&seen.body.bytes).contains("command=fetch");
            if entry == "fetch" && !is_fetch {
                return relay_http(&own, &without_first_segment(seen), wire, |_| {});
            }
            requests.lock().expect("no holder panics").push((entry.clone(), Instant::now()));
            let (status, after) = match entry.as_str() {
                "date" => ("503 Service Unavailable", in_an_hour.trim().to_owned()),
                "hour" | "fetch" => ("429 Too Many Requests", "3600".to_owned()),
                "down" => ("503 Service Unavailable", "3600".to_owned()),
                "soon" => ("429 Too Many Requests", "2".to_owned()),
                _ => ("429 Too Many Requests", String::new()),
            };
            let header = if after.is_empty() { after } else { format!("Retry-After: {after}\r\n") };
            answer_head(wire, status, &header)
        }
    });
    scene.set("server", app.address());
    let entries = ["hour", "date", "down", "fetch", "soon", "silent"];
    let entry = |name: &str| {
        format!(
            "  {name}: {{ store: {{ git: {{ url: \"http://@server@/{name}/config.git\", interval: 100ms }} }}, publish: {{ symlink: {{ path: \"@dir@/out/{name}\" }} }} }}\n"
        )
    };
    let body = format!("sync:\n{}", entries.map(entry).concat());
    let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Nothing);
    let times = |name: &str| -> Vec<Instant> {
        let requests = requests.lock().expect("no holder panics");
        requests.iter().filter(|(entry, _)| entry == name).map(|(_, at)| *at).collect()
    };
    until(PATIENCE, "`silent` and `soon` are requested again", || {
        times("silent").len() >= 5 && times("soon").len() >= 2
    });
    let too_often: Vec<(&str, usize)> = ["hour", "date", "down", "fetch"]
        .map(|name| (name, times(name).len()))
        .into_iter()
        .filter(|(_, count)| *count != 1)
        .collect();
    assert_eq!(too_often, Vec::<(&str, usize)>::new(), "requested again within the hour");
    let soon = times("soon");
    let pause = soon[1] - soon[0];
    assert!(pause >= 2 * SECOND && pause < 8 * SECOND, "requested again after {pause:?}, expected 2 s");
    outrigger.finish();
}

/// A repository that has moved: the message contains the new location, and nothing of the body that the server sent with it.
#[test]
fn a_redirect_is_reported_with_its_location() {
    let scene = Scene::new();
    let other = format!("http://127.0.0.1:{}/moved/config.git", scene.port("other"));
    let moved = other.clone();
    let app = RawApp::start(move |seen, wire| {
        let status = seen.head.target().split('/').nth(1).unwrap_or_default().to_owned();
        let location = match status.as_str() {
            "303" => "Location: /moved/config.git/info/refs?service=git-upload-pack\r\n".to_owned(),
            "308" => format!("Location: {}/info/refs\r\n", moved.replace("http://", "http://me:s3cret@")),
            "300" => String::new(),
            _ => format!("Location: {moved}/info/refs?service=git-upload-pack\r\n"),
        };
        let page = "<html><head><title>Moved</title></head><body><h1>Moved</h1></body></html>";
        let head = format!(
            "HTTP/1.1 {status} Moved\r\n{location}Content-Type: text/html\r\nContent-Length: {}\r\n\r\n",
            page.len()
        );
        wire.send(head + page).map_or(Next::Close, |()| Next::Keep)
    });
    scene.set("server", app.address());
    let entries = ["300", "301", "302", "303", "307", "308"];
    let entry = |name: &str| {
        format!(
            "  e{name}: {{ store: {{ git: {{ url: \"http://@server@/{name}/config.git\", interval: 200ms }} }}, publish: {{ symlink: {{ path: \"@dir@/out/{name}\" }} }} }}\n"
        )
    };
    let outrigger =
        Outrigger::start_and(&scene, &format!("sync:\n{}", entries.map(entry).concat()), &[], Wait::Nothing);
    let fault = |name: &str| {
        let own = format!("\"component\":\"sync.e{name}\"");
        outrigger.stderr.lines().into_iter().find(|line| line.contains("WARN") && line.contains(&own))
    };
    until(PATIENCE, "each entry has reported an error", || entries.iter().all(|name| fault(name).is_some()));
    let location = other.split_once("://").map_or("", |(_, location)| location);
    let mut wrong = Vec::new();
    for name in entries {
        let text = fault(name).expect("just seen");
        let has_location = match name {
            "300" => true,
            "303" => text.contains("/moved/config.git"),
            _ => text.contains(location),
        };
        let fine = has_location && text.contains(name) && !text.contains("<h") && !text.contains("s3cret");
        wrong.extend((!fine).then_some(text));
    }
    assert_eq!(wrong, Vec::<String>::new());
    outrigger.finish();
}

/// A server of protocol 0 over HTTP that accepts a request in the order of gitprotocol-pack only: each request is stateless.
#[test]
fn protocol_0_over_http_serves_every_fetch() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, _) = need!(repository.http(&scene), NO_HTTP);
    let own = format!("127.0.0.1:{}", scene.value("git_http"));
    let app = RawApp::start(move |seen, wire| {
        let mut seen = seen.clone();
        seen.head.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("git-protocol"));
        let mut request = UploadRequest::default();
        match lines_of(&seen.body.bytes).iter().try_for_each(|line| request.take(line)) {
            Ok(()) => relay_http(&own, &seen, wire, |answer| {
                if answer.kind.ends_with("-advertisement") {
                    answer.body = listing_without_deepening(&answer.body);
                }
            }),
            Err(error) => answer_head(wire, "400 Bad Request", &format!("X-Reason: {error}\r\n")),
        }
    });
    scene.set("url", format!("http://{}/config.git", app.address()));
    // A commit with a parent: then a fetch of one commit has to record its shallow boundary.
    repository.push(2);
    let outrigger = Outrigger::start(&scene, SETTINGS, &[]);
    for generation in 3..6 {
        repository.push(generation);
        await_generation(&scene, generation, "from a strict server");
    }
    outrigger.finish();
}
