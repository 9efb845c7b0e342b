//! What changes something, on the socket alone. In: a POST. Out: the control that was asked for, and what became of it. Bound:
//! the time that the caller gives to an answer that waits.

use crate::run::Controls;
use base::scope::Scope;
use base::unit::Span;
use http::Method;
use net::serve::{Answer, Asked};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is known here. Some sidecars are stopped by `/quitquitquit`, so that scripts for them work with us.
pub const PATHS: [&str; 5] = ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"];

pub async fn change(asked: &Asked, controls: &Controls, limit: Duration, scope: &Scope) -> Answer {
    let known = PATHS.contains(&asked.path.as_str());
    match asked.path.as_str() {
        _ if known && asked.method != Method::POST => not_allowed("this is a change, which takes POST\n", "POST"),
        "/log-level" => match controls.level.set(String::from_utf8_lossy(&asked.body).trim()) {
            Ok(()) => line(200, "done"),
            Err(error) => line(400, &error),
        },
        "/reload" => match (controls.reload)() {
            Ok(done) => line(200, &done),
            Err(report) => line(400, &report),
        },
        "/upgrade" => match binary(&asked.body) {
            Ok(binary) => upgrade(binary, controls, limit, scope).await,
            Err(reason) => line(400, reason),
        },
        "/stop" | "/quitquitquit" => match within(&asked.body) {
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
pub fn not_allowed(text: &'static str, allowed: &'static str) -> Answer {
    Answer { headers: vec![("allow", allowed)], ..Answer::text(405, text) }
}

/// The upgrade goes on where the client goes away or the time is over: half of one would be nobody's.
async fn upgrade(binary: Option<PathBuf>, controls: &Controls, limit: Duration, scope: &Scope) -> Answer {
    let (done, waits) = tokio::sync::oneshot::channel();
    let upgrade = (controls.upgrade)(binary);
    scope.spawn("upgrade", async move {
        // Nobody may be waiting any more.
        let _ = done.send(upgrade.await);
    });
    match tokio::time::timeout(limit, waits).await {
        Ok(Ok(Ok(done))) => line(200, &done),
        Ok(Ok(Err(reason))) => line(409, &reason),
        Ok(Err(_)) => line(500, "the upgrade was lost to a mistake of ours, which is in our log"),
        Err(_) => {
            let limit = Span(limit);
            line(
                504,
                &format!("no new worker was ready within {limit}; the status says which one serves, our log says why"),
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
        _ if !path.is_absolute() => Err("the body is a path from somewhere: give the whole one, beginning with /"),
        _ => Ok(Some(path.to_path_buf())),
    }
}

fn within(body: &[u8]) -> Result<Option<Duration>, String> {
    let text = String::from_utf8_lossy(body.trim_ascii());
    if text.is_empty() { Ok(None) } else { Span::parse(&text).map(|span| Some(span.0)) }
}

/// Whoever answers, the text ends with one newline.
fn line(status: u16, text: &str) -> Answer {
    Answer::text(status, format!("{}\n", text.trim_end()))
}
