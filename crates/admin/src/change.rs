//! Requests that change something, on the socket only. In: a POST. Out: the requested control call, and its result. Limits: the
//! time that the caller allows for a response that waits.

use crate::controls::Controls;
use base::runtime::scope::Scope;
use config::unit::TimeSpan;
use http::Method;
use net::serve::{Request, Response};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The response to a stop request, followed by the time within which it is complete.
pub const STOPPING: &str = "stopping within";

/// The endpoints. Some sidecars are stopped by `/quitquitquit`, so that scripts for them work with Outrigger.
pub const PATHS: [&str; 5] = ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"];

pub async fn change(request: &Request, controls: &Controls, limit: Duration, scope: &Scope) -> Response {
    let known = PATHS.contains(&request.path.as_str());
    match request.path.as_str() {
        _ if known && request.method != Method::POST => not_allowed("method not allowed: use POST\n", "POST"),
        "/log-level" => match controls.level.set(String::from_utf8_lossy(&request.body).trim()) {
            Ok(()) => line(200, "done"),
            Err(error) => line(400, &error),
        },
        "/reload" => run_detached((controls.reload)(), 400, limit, scope).await,
        "/upgrade" => match binary(&request.body) {
            Ok(binary) => run_detached((controls.upgrade)(binary), 409, limit, scope).await,
            Err(reason) => line(400, reason),
        },
        "/stop" | "/quitquitquit" => match within(&request.body) {
            Ok(within) => {
                let limit = (controls.stop)(within);
                line(200, &format!("{STOPPING} {}", TimeSpan(limit)))
            }
            Err(reason) => line(400, &format!("request body: {reason}, or send an empty body")),
        },
        _ => line(404, &format!("not found; available endpoints: POST {}", PATHS.join(" "))),
    }
}

/// RFC 9110, 15.5.6: a 405 lists the allowed methods.
pub fn not_allowed(text: &'static str, allowed: &'static str) -> Response {
    Response { headers: vec![("allow", allowed)], ..Response::text(405, text) }
}

/// The change continues if the client disconnects or the limit expires, since a half-done change would have no owner. `refused`:
/// the status of a failed change.
async fn run_detached(
    change: impl Future<Output = Result<String, String>> + 'static,
    refused: u16,
    limit: Duration,
    scope: &Scope,
) -> Response {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    scope.spawn("change", async move {
        // The client may no longer wait.
        let _ = sender.send(change.await);
    });
    match tokio::time::timeout(limit, receiver).await {
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
        _ if text.contains(&0) => Err("invalid path in the request body: it contains a NUL byte"),
        _ if !path.is_absolute() => Err("relative path in the request body; use an absolute path"),
        _ => Ok(Some(path.to_path_buf())),
    }
}

fn within(body: &[u8]) -> Result<Option<Duration>, String> {
    let text = String::from_utf8_lossy(body.trim_ascii());
    if text.is_empty() { Ok(None) } else { TimeSpan::parse(&text).map(|span| Some(span.0)) }
}

/// Every text ends with exactly one newline.
fn line(status: u16, text: &str) -> Response {
    Response::text(status, format!("{}\n", text.trim_end()))
}
