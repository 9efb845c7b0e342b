//! What changes something, on the socket alone. In: a POST. Out: the control that was asked for, and what became of it. Bound:
//! the time that the caller gives to an answer that waits.

use crate::controls::Controls;
use base::runtime::scope::Scope;
use config::unit::TimeSpan;
use http::Method;
use net::serve::{Request, Response};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is known here. Some sidecars are stopped by `/quitquitquit`, so that scripts for them work with us.
pub const PATHS: [&str; 5] = ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"];

pub async fn change(request: &Request, controls: &Controls, limit: Duration, scope: &Scope) -> Response {
    let known = PATHS.contains(&request.path.as_str());
    match request.path.as_str() {
        _ if known && request.method != Method::POST => not_allowed("method not allowed: use POST\n", "POST"),
        "/log-level" => match controls.level.set(String::from_utf8_lossy(&request.body).trim()) {
            Ok(()) => line(200, "done"),
            Err(error) => line(400, &error),
        },
        "/reload" => taken_over((controls.reload)(), 400, limit, scope).await,
        "/upgrade" => match binary(&request.body) {
            Ok(binary) => taken_over((controls.upgrade)(binary), 409, limit, scope).await,
            Err(reason) => line(400, reason),
        },
        "/stop" | "/quitquitquit" => match within(&request.body) {
            Ok(within) => {
                (controls.stop)(within);
                line(200, "stopping")
            }
            Err(reason) => line(400, &format!("the body {reason}, or nothing")),
        },
        _ => line(404, &format!("known here: POST {}", PATHS.join(" "))),
    }
}

/// RFC 9110, 15.5.6: with what is allowed instead.
pub fn not_allowed(text: &'static str, allowed: &'static str) -> Response {
    Response { headers: vec![("allow", allowed)], ..Response::text(405, text) }
}

/// What was asked for goes on where the client goes away or the time is over: half of it would be nobody's. `refused`: the status
/// of what was not done.
async fn taken_over(
    change: impl Future<Output = Result<String, String>> + 'static,
    refused: u16,
    limit: Duration,
    scope: &Scope,
) -> Response {
    let (done, waits) = tokio::sync::oneshot::channel();
    scope.spawn("change", async move {
        // Nobody may be waiting any more.
        let _ = done.send(change.await);
    });
    match tokio::time::timeout(limit, waits).await {
        Ok(Ok(Ok(done))) => line(200, &done),
        Ok(Ok(Err(reason))) => line(refused, &reason),
        Ok(Err(_)) => line(500, "internal error; see the Outrigger log"),
        Err(_) => {
            let limit = TimeSpan(limit);
            line(
                504,
                &format!(
                    "timed out after {limit} waiting for the new worker to become ready; see `outrigger status` and the log"
                ),
            )
        }
    }
}

/// A path as a body: the newline that `echo` adds is not part of it.
fn binary(body: &[u8]) -> Result<Option<PathBuf>, &'static str> {
    let text = body.trim_ascii();
    let path = Path::new(OsStr::from_bytes(text));
    match text {
        b"" => Ok(None),
        _ if text.contains(&0) => Err("the body is no path: it has a zero byte"),
        _ if !path.is_absolute() => Err("relative path in the request body; use an absolute path"),
        _ => Ok(Some(path.to_path_buf())),
    }
}

fn within(body: &[u8]) -> Result<Option<Duration>, String> {
    let text = String::from_utf8_lossy(body.trim_ascii());
    if text.is_empty() { Ok(None) } else { TimeSpan::parse(&text).map(|span| Some(span.0)) }
}

/// Whoever answers, the text ends with one newline.
fn line(status: u16, text: &str) -> Response {
    Response::text(status, format!("{}\n", text.trim_end()))
}
