//! Views of the telemetry: responses of probes, the status as JSON, and the status as text for a terminal.

use base::feeds::revisions::{Revision, Revisions};
use base::runtime::health::{ComponentHealth, State, SubsystemHealth};
use base::runtime::state::StateDir;
use base::telemetry::Telemetry;
use base::telemetry::family::{Gather as _, write_text};
use serde::Serialize;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The data behind all endpoints.
pub struct View {
    pub telemetry: Telemetry,
    pub revisions: Revisions,
    pub state: StateDir,
    /// The configuration as JSON, secrets and credentials hidden.
    pub config: serde_json::Value,
    /// When the supervisor started, as Unix time in seconds.
    pub since: i64,
    /// How often the worker was replaced, attempts that failed not included.
    pub restarts: u64,
    /// How many workers there were before this one, attempts that failed included.
    pub generation: u32,
    /// The app: `pid`, null while it does not run; `running`, null if it is external; `restarts`; and `last_exit`, null or `code`, `signal` (null if it
    /// exited), `core_dumped` and `oom_killed`.
    pub app: Rc<dyn Fn() -> serde_json::Value>,
    /// What the sandbox enforces, and what is `missing`; null if it is off.
    pub sandbox: serde_json::Value,
    /// The worker's memory at the time of the request.
    pub memory: Rc<dyn Fn() -> Memory>,
}

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Started,
    Ready,
    Live,
}

#[derive(Serialize)]
pub struct Status {
    pub version: &'static str,
    /// The worst health of all subsystems.
    pub health: State,
    pub uptime_seconds: u64,
    pub worker_restarts: u64,
    pub worker_generation: u32,
    pub app: serde_json::Value,
    pub sandbox: serde_json::Value,
    pub memory: Memory,
    pub subsystems: Vec<SubsystemHealth>,
    pub components: Vec<ComponentHealth>,
    pub revisions: Vec<Revision>,
    pub state: StateStatus,
    pub ledger: Vec<base::telemetry::ledger::Snapshot>,
}

/// The worker's memory.
#[derive(Serialize)]
pub struct Memory {
    pub used_bytes: u64,
    pub limit_bytes: u64,
}

/// The state directory.
#[derive(Serialize)]
pub struct StateStatus {
    /// Null if progress does not survive a restart.
    pub dir: Option<String>,
    pub writable: bool,
    /// Why it is not writable; empty if it is.
    pub message: String,
    pub max_bytes: u64,
}

impl View {
    /// The HTTP status, and a line for each subsystem that fails the probe.
    pub fn probe(&self, probe: Probe) -> (u16, String) {
        let healths = self.telemetry.healths();
        let failing: Vec<SubsystemHealth> = healths
            .iter()
            .filter(|health| match probe {
                Probe::Started => !health.started(),
                Probe::Ready => !health.ready(),
                Probe::Live => !health.live(),
            })
            .map(|health| health.current())
            .collect();
        if failing.is_empty() && !healths.is_empty() {
            return (200, "ok\n".into());
        }
        let prefix = match probe {
            Probe::Started => "not started",
            Probe::Ready => "not ready",
            Probe::Live => "not live",
        };
        let lines: String =
            failing.iter().map(|subsystem| format!("{prefix}: {}: {}\n", subsystem.name, subsystem.message)).collect();
        (503, if lines.is_empty() { format!("{prefix}: no subsystem has started\n") } else { lines })
    }

    pub fn status(&self) -> Status {
        let subsystems: Vec<SubsystemHealth> = self.telemetry.healths().iter().map(|health| health.current()).collect();
        let health = State::worst(subsystems.iter().map(|subsystem| subsystem.health));
        Status {
            version: env!("CARGO_PKG_VERSION"),
            health,
            uptime_seconds: seconds_since(self.since),
            worker_restarts: self.restarts,
            worker_generation: self.generation,
            app: (self.app)(),
            sandbox: self.sandbox.clone(),
            memory: (self.memory)(),
            subsystems,
            components: self.telemetry.healths().iter().flat_map(|health| health.components()).collect(),
            revisions: self.revisions.list(),
            state: StateStatus {
                dir: self.state.dir().map(|dir| dir.display().to_string()),
                writable: self.state.error().is_none(),
                message: self.state.error().unwrap_or_default().to_string(),
                max_bytes: self.state.max(),
            },
            ledger: self.telemetry.ledger.snapshot(),
        }
    }

    pub fn ledger_json(&self) -> String {
        to_json(&serde_json::json!({ "rows": self.telemetry.ledger.snapshot() }))
    }

    pub fn metrics_text(&self) -> String {
        let mut families = Vec::new();
        self.telemetry.gather(&mut families);
        let mut text = String::new();
        write_text(&families, &mut text);
        text
    }
}

/// Seconds since a Unix time; 0 if that is in the future.
fn seconds_since(time: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(u64::try_from(time).unwrap_or(0))
}

/// Serialization of these types cannot fail.
pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".into())
}

/// The status as `outrigger status` prints it, from the JSON response of the socket.
pub fn terminal(status: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_string();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let replaced = match number(&status["worker_restarts"]) {
        0 => String::new(),
        count => format!(", worker replaced {}", times(count)),
    };
    let _ = writeln!(
        out,
        "outrigger {}: {}, up {} s{replaced}",
        text(&status["version"]),
        text(&status["health"]),
        status["uptime_seconds"]
    );
    let _ = writeln!(out, "app: {}", app_line(&status["app"]));
    let _ = writeln!(out, "sandbox: {}", sandbox_line(&status["sandbox"]));
    if status["state"]["writable"] == false {
        let _ = writeln!(out, "state: {}", text(&status["state"]["message"]));
    }
    for subsystem in status["subsystems"].as_array().into_iter().flatten() {
        let [name, health, message] = ["name", "health", "message"].map(|key| text(&subsystem[key]));
        let _ = writeln!(out, "  {name:<8} {health:<9} {message}");
    }
    for component in status["components"].as_array().into_iter().flatten() {
        let message = match text(&component["message"]) {
            message if message.is_empty() => message,
            message => format!("{message} (since {})", text(&component["since"])),
        };
        let (id, kind) = (text(&component["id"]), text(&component["type"]));
        let _ = writeln!(out, "    {id:<32} {kind:<12} {:<9} {message}", text(&component["health"]));
    }
    for revision in status["revisions"].as_array().into_iter().flatten() {
        let name = revision["revision"].as_str().unwrap_or("no revision yet");
        let _ = writeln!(out, "  {} at {} from {}", text(&revision["path"]), name, text(&revision["store"]));
    }
    let _ = writeln!(out, "\n  {:<7} {:<32} {:>12} {:>12} {:>9}  dropped", "", "", "received", "delivered", "pending");
    for row in status["ledger"].as_array().into_iter().flatten() {
        let dropped: Vec<String> =
            row["dropped"].as_object().into_iter().flatten().map(|(reason, n)| format!("{n} {reason}")).collect();
        let _ = writeln!(
            out,
            "  {:<7} {:<32} {:>12} {:>12} {:>9}  {}",
            text(&row["kind"]),
            text(&row["id"]),
            number(&row["received"]),
            number(&row["delivered"]),
            number(&row["pending"]),
            if dropped.is_empty() { "0".to_string() } else { dropped.join(", ") }
        );
    }
    out
}

fn app_line(app: &serde_json::Value) -> String {
    let mut line = match app["pid"].as_i64() {
        Some(pid) => format!("running, pid {pid}"),
        None if app.get("running").is_some_and(serde_json::Value::is_null) => "external".into(),
        None => "not running".into(),
    };
    if let Some(count) = app["restarts"].as_u64().filter(|count| *count > 0) {
        let _ = write!(line, ", restarted {}", times(count));
    }
    if !app["last_exit"].is_null() {
        let _ = write!(line, ", last exit: {}", last_exit(&app["last_exit"]));
    }
    line
}

/// The page uses the same words.
fn last_exit(exit: &serde_json::Value) -> String {
    let mut text = match exit["signal"].as_i64() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("code {}", exit["code"]),
    };
    for (key, words) in [("core_dumped", ", core dumped"), ("oom_killed", ", OOM-killed")] {
        if exit[key] == true {
            text.push_str(words);
        }
    }
    text
}

/// `enforced (files, tcp)`, and what is missing.
fn sandbox_line(sandbox: &serde_json::Value) -> String {
    if sandbox.is_null() {
        return "off".into();
    }
    let parts: Vec<&str> = SANDBOXED.iter().filter(|(key, _)| sandbox[*key] == true).map(|(_, name)| *name).collect();
    let mut line = if parts.is_empty() { "not enforced".into() } else { format!("enforced ({})", parts.join(", ")) };
    for (key, before, between) in [("missing", "missing", "; "), ("absent_paths", "granted, but absent", ", ")] {
        let words = sandbox[key].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let words: Vec<&str> = words.collect();
        if !words.is_empty() {
            let _ = write!(line, "; {before}: {}", words.join(between));
        }
    }
    line
}

/// The parts of a sandbox: their keys in the status, and their names for operators. The page has the same list.
const SANDBOXED: [(&str, &str); 4] =
    [("filesystem", "files"), ("tcp", "tcp"), ("signals", "signals"), ("seccomp", "system calls")];

fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

#[cfg(test)]
impl View {
    /// A view without subsystems.
    pub fn sample() -> View {
        View {
            telemetry: Telemetry::default(),
            revisions: Revisions::default(),
            state: StateDir::without("no disk".into()),
            config: serde_json::Value::Null,
            since: 0,
            restarts: 0,
            generation: 0,
            app: Rc::new(|| serde_json::json!({ "pid": 7, "running": true, "restarts": 0, "last_exit": null })),
            sandbox: serde_json::Value::Null,
            memory: Rc::new(|| Memory { used_bytes: 1 << 20, limit_bytes: 64 << 20 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::telemetry::component::Component;
    use base::telemetry::reason::Reason;
    use serde_json::json;

    #[test]
    fn a_failing_probe_lists_the_failing_subsystems() {
        let view = View::sample();
        assert_eq!(view.probe(Probe::Started).0, 503, "no subsystem is started");
        let (logs, proxy) = (view.telemetry.health("logs"), view.telemetry.health("proxy"));
        logs.set_ready(true);
        proxy.set_started();
        assert_eq!(view.probe(Probe::Started).0, 200);
        assert_eq!(view.probe(Probe::Live).0, 200);
        let (status, text) = view.probe(Probe::Ready);
        assert!(status == 503 && text.starts_with("not ready: proxy"), "{text}");
        proxy.panicked("boom");
        assert_eq!(view.probe(Probe::Live), (503, "not live: proxy: boom\n".into()));
    }

    #[test]
    fn status_has_the_worst_health_of_all_subsystems() {
        let view = View::sample();
        view.telemetry.health("logs").set_ready(true);
        assert_eq!(view.status().health, State::Ok);
        view.telemetry.health("sync").fault("settings", "rejected");
        let main = Component::sink("logs.sinks.main".into(), "loki");
        view.telemetry.ledger.row(&main).drop_unseen(Reason::Rejected, 3);
        let status = view.status();
        assert_eq!(status.health, State::Degraded);
        let shown = terminal(&serde_json::to_value(status).expect("JSON"));
        for part in ["degraded", "settings: rejected", "3 rejected", "state: no disk"] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }

    #[test]
    fn sandbox_line_lists_enforced_and_missing_parts() {
        let check = |sandbox: serde_json::Value, expect: &str| {
            let shown = terminal(&json!({ "sandbox": sandbox }));
            assert!(shown.contains(&format!("\nsandbox: {expect}\n")), "{shown}");
        };
        check(json!(null), "off");
        let all = json!({ "filesystem": true, "tcp": true, "signals": true, "seccomp": true, "landlock_abi": 7 });
        check(all.clone(), "enforced (files, tcp, signals, system calls)");
        let mut gap = all.clone();
        gap["tcp"] = json!(false);
        gap["missing"] = json!(["the kernel filters no ports", "and this"]);
        check(gap, "enforced (files, signals, system calls); missing: the kernel filters no ports; and this");
        let mut absent = all;
        absent["absent_paths"] = json!(["/a", "/b"]);
        check(absent, "enforced (files, tcp, signals, system calls); granted, but absent: /a, /b");
        let nothing = json!({ "filesystem": false, "missing": ["no Landlock"] });
        check(nothing, "not enforced; missing: no Landlock");
        let page = include_str!("page.html");
        for (key, name) in SANDBOXED {
            assert!(page.contains(key) && page.contains(name), "{key} is on the page");
        }
    }

    #[test]
    fn app_line_has_state_restarts_and_last_exit() {
        let check = |app: serde_json::Value, expect: &str| {
            let shown = terminal(&json!({ "app": app, "worker_restarts": 2, "uptime_seconds": 1 }));
            assert!(shown.contains(&format!("\napp: {expect}\n")), "{shown}");
            assert!(shown.contains("up 1 s, worker replaced 2 times\n"), "{shown}");
        };
        check(json!({ "pid": 42, "running": true, "restarts": 0, "last_exit": null }), "running, pid 42");
        check(json!({ "pid": null, "running": null, "restarts": 0, "last_exit": null }), "external");
        let exit = |code: i32, signal: Option<i32>, dumped: bool, oom: bool| json!({ "code": code, "signal": signal, "core_dumped": dumped, "oom_killed": oom });
        check(
            json!({ "pid": 43, "running": true, "restarts": 1, "last_exit": exit(139, Some(11), true, false) }),
            "running, pid 43, restarted once, last exit: killed by signal 11, core dumped",
        );
        check(
            json!({ "pid": 43, "running": true, "restarts": 0, "last_exit": exit(137, Some(9), false, true) }),
            "running, pid 43, last exit: killed by signal 9, OOM-killed",
        );
        check(
            json!({ "pid": null, "running": false, "restarts": 3, "last_exit": exit(3, None, false, false) }),
            "not running, restarted 3 times, last exit: code 3",
        );
        check(json!(null), "not running");
    }
}
