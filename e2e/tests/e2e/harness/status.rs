//! What an operator reads from a running product and sends to it: the health of each component in `/status`, the product's
//! own log as JSON lines, and a POST on the admin socket. In: a running product, or its stderr. Out: components, log lines,
//! responses. Limits: one request each, with `PATIENCE` as the timeout.

use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::wire::{Reply, Wire};
use super::{Outrigger, PATIENCE, Scene, within};

/// A row of `components` in `/status`: `{ id, type, health, message, since }`.
#[derive(Clone, Debug)]
pub struct Component {
    /// The component's path in the configuration, such as `logs.sinks.main`.
    pub id: String,
    pub kind: String,
    pub health: String,
    pub message: String,
    /// When the current health began, as Unix time in seconds.
    pub since: u64,
}

impl Component {
    /// Fails if a key is missing in the row, or has another type.
    #[track_caller]
    fn read(row: &Value) -> Self {
        let text = |key: &str| {
            let text = row[key].as_str();
            text.unwrap_or_else(|| panic!("a component has the text `{key}`: {row}")).to_owned()
        };
        let since = seconds(&row["since"]).unwrap_or_else(|| panic!("a component has the time `since`: {row}"));
        let (id, kind, health) = (text("id"), text("type"), text("health"));
        Self { id, kind, health, message: text("message"), since }
    }

    /// The current health began at or after this time, and not in the future. Rounding may account for one second.
    #[track_caller]
    pub fn assert_began_since(&self, time: SystemTime) {
        let began = UNIX_EPOCH + Duration::from_secs(self.since + 1);
        assert!(began >= time, "{self:?} began before {time:?}");
        assert!(UNIX_EPOCH + Duration::from_secs(self.since) <= SystemTime::now(), "{self:?} begins in the future");
    }
}

/// All components; fails if the status has no `components`.
#[track_caller]
pub fn components(outrigger: &Outrigger) -> Vec<Component> {
    let status = outrigger.get("/status").json();
    let rows = status["components"].as_array();
    rows.unwrap_or_else(|| panic!("the status has `components`: {status}")).iter().map(Component::read).collect()
}

/// The component with this id; an id that ends in `*` matches the first component with this prefix.
#[track_caller]
pub fn component(outrigger: &Outrigger, id: &str) -> Component {
    let all = components(outrigger);
    let found = all.iter().find(|component| matches(&component.id, id)).cloned();
    found.unwrap_or_else(|| panic!("no component {id} in {all:?}"))
}

/// Waits until the component has this health and its message contains the text.
#[track_caller]
pub fn await_health(outrigger: &Outrigger, id: &str, health: &str, part: &str) -> Component {
    let mut last = component(outrigger, id);
    let reached = within(PATIENCE, || {
        last = component(outrigger, id);
        last.health == health && last.message.contains(part)
    });
    assert!(reached, "{id} becomes {health} with `{part}` within {PATIENCE:?}: {last:?}");
    last
}

/// Whether a component with this id is degraded and its message contains the text; false if there is no response.
pub fn is_degraded(outrigger: &Outrigger, id: &str, part: &str) -> bool {
    let status: Value = serde_json::from_str(&outrigger.get_quietly("/status")).unwrap_or_default();
    let mut rows = status["components"].as_array().into_iter().flatten();
    rows.any(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        matches(text("id"), id) && text("health") == "degraded" && text("message").contains(part)
    })
}

/// The health of all components, without volatile values: to compare before and after an action that must not change it.
#[track_caller]
pub fn health_of_all(outrigger: &Outrigger) -> Vec<(String, String, String, u64)> {
    let all = components(outrigger).into_iter();
    all.map(|component| (component.id, component.health, component.message, component.since)).collect()
}

fn matches(id: &str, wanted: &str) -> bool {
    wanted.strip_suffix('*').map_or(id == wanted, |start| id.starts_with(start))
}

/// Unix time in seconds, from a number or from RFC 3339 in UTC.
fn seconds(value: &Value) -> Option<u64> {
    if let Some(number) = value.as_f64() {
        return Duration::try_from_secs_f64(number).ok().map(|since| since.as_secs());
    }
    let text = value.as_str()?.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let date: Vec<i64> = date.split('-').map_while(|part| part.parse().ok()).collect();
    let time: Vec<i64> = time.split('.').next()?.split(':').map_while(|part| part.parse().ok()).collect();
    let (&[year, month, day], &[hour, minute, second]) = (&date[..], &time[..]) else { return None };
    // Years start in March, so that the leap day is the last day; there are 719,468 days between the year 0 and 1970.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()
}

/// The product's own log: the JSON lines on its stderr.
pub fn own_log(stderr: &str) -> Vec<Value> {
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["level"].is_string()).collect()
}

/// A warning or an error of the own log that contains the text.
pub fn warns_of(stderr: &str, part: &str) -> bool {
    let is_warning = |line: &Value| line["level"] == "WARN" || line["level"] == "ERROR";
    own_log(stderr).iter().any(|line| is_warning(line) && line.to_string().contains(part))
}

/// A POST on the admin socket of a scene; without a body there is no `Content-Length` either.
#[track_caller]
pub fn post(scene: &Scene, path: &str, body: Option<&str>) -> Reply {
    let stream = UnixStream::connect(scene.path("run/admin.sock")).expect("the socket accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    let mut wire = Wire::new(stream);
    let length = body.map_or_else(String::new, |body| format!("Content-Length: {}\r\n", body.len()));
    let head = format!("POST {path} HTTP/1.1\r\nHost: outrigger\r\nConnection: close\r\n{length}\r\n");
    wire.send(head + body.unwrap_or_default()).expect("the socket accepts the request");
    wire.reply("POST").expect("the socket responds")
}
