//! What is shown, put together from telemetry: the answers of probes, the status as JSON, and the same for a terminal.

use base::family::{Gather as _, write_text};
use base::revisions::{Revision, Revisions};
use base::state::StateDir;
use base::subsystem::{ComponentHealth, State, Verdict};
use base::telemetry::Telemetry;
use serde::Serialize;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Instant;

/// Everything that is shown.
pub struct View {
    pub telemetry: Telemetry,
    pub revisions: Revisions,
    pub state: StateDir,
    /// The configuration as JSON, secrets and credentials hidden.
    pub config: serde_json::Value,
    pub started_at: Instant,
    /// How often the worker has been replaced.
    pub generation: u32,
    /// How the app is, asked at each look: `pid`, null while it does not run; `runs`; how many `restarts` it had; and how it
    /// `ended` last, null or `code`, `signal` (0 where it exited), `core_dumped` and `oom_killed`.
    pub app: Rc<dyn Fn() -> serde_json::Value>,
    /// What the worker's sandbox holds, and sentences of what is `missing` in it; null where it is off.
    pub sandbox: serde_json::Value,
}

/// One of the three questions of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Started,
    Ready,
    Live,
}

#[derive(Serialize)]
pub struct Status {
    pub version: &'static str,
    /// ok, starting, degraded or failed: the worst of all subsystems.
    pub verdict: State,
    pub uptime_s: u64,
    pub worker_generation: u32,
    pub app: serde_json::Value,
    pub sandbox: serde_json::Value,
    pub subsystems: Vec<Verdict>,
    pub components: Vec<ComponentHealth>,
    pub revisions: Vec<Revision>,
    /// Why progress is not kept over a restart, where that is so.
    pub state: Option<String>,
    pub ledger: Vec<base::ledger::Snapshot>,
}

impl View {
    /// The status of the answer and a line per subsystem that says no.
    pub fn probe(&self, probe: Probe) -> (u16, String) {
        let healths = self.telemetry.healths();
        let says_no: Vec<Verdict> = healths
            .iter()
            .filter(|health| match probe {
                Probe::Started => !health.started(),
                Probe::Ready => !health.ready(),
                Probe::Live => !health.live(),
            })
            .map(|health| health.verdict())
            .collect();
        if says_no.is_empty() && !healths.is_empty() {
            return (200, "yes\n".into());
        }
        let lines: String =
            says_no.iter().map(|verdict| format!("no: {}: {}\n", verdict.subsystem, verdict.text)).collect();
        (503, if lines.is_empty() { "no: nothing is started yet\n".into() } else { lines })
    }

    pub fn status(&self) -> Status {
        let subsystems: Vec<Verdict> = self.telemetry.healths().iter().map(|health| health.verdict()).collect();
        let verdict = [State::Failed, State::Starting, State::Degraded]
            .into_iter()
            .find(|state| subsystems.iter().any(|verdict| verdict.state == *state))
            .unwrap_or(State::Ok);
        Status {
            version: env!("CARGO_PKG_VERSION"),
            verdict,
            uptime_s: self.started_at.elapsed().as_secs(),
            worker_generation: self.generation,
            app: (self.app)(),
            sandbox: self.sandbox.clone(),
            subsystems,
            components: self.telemetry.healths().iter().flat_map(|health| health.components()).collect(),
            revisions: self.revisions.list(),
            state: self.state.trouble().map(str::to_string),
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

/// These are trees of ours, so that JSON cannot refuse them.
pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".into())
}

/// The status as `outrigger status` prints it, from the JSON of the socket.
pub fn terminal(status: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_string();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let replaced = match number(&status["worker_generation"]) {
        0 => String::new(),
        count => format!(", worker replaced {}", times(count)),
    };
    let _ = writeln!(
        out,
        "outrigger {}: {}, up {} s{replaced}",
        text(&status["version"]),
        text(&status["verdict"]),
        status["uptime_s"]
    );
    let _ = writeln!(out, "app: {}", app_line(&status["app"]));
    let _ = writeln!(out, "sandbox: {}", sandbox_line(&status["sandbox"]));
    if let Some(trouble) = status["state"].as_str() {
        let _ = writeln!(out, "state: {trouble}");
    }
    for verdict in status["subsystems"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "  {:<8} {:<9} {}",
            text(&verdict["subsystem"]),
            text(&verdict["state"]),
            text(&verdict["text"])
        );
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
        let name = revision["revision"].as_str().unwrap_or("nothing yet");
        let _ = writeln!(out, "  {} at {} from {}", text(&revision["to"]), name, text(&revision["store"]));
    }
    let _ = writeln!(out, "\n  {:<7} {:<32} {:>12} {:>12} {:>9}  dropped", "", "", "received", "delivered", "pending");
    for row in status["ledger"].as_array().into_iter().flatten() {
        let dropped: Vec<String> =
            row["dropped"].as_object().into_iter().flatten().map(|(reason, n)| format!("{n} {reason}")).collect();
        let _ = writeln!(
            out,
            "  {:<7} {:<32} {:>12} {:>12} {:>9}  {}",
            text(&row["kind"]),
            text(&row["name"]),
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
        Some(pid) => format!("runs, pid {pid}"),
        None if app["runs"] == true => "runs".into(),
        None => "does not run".into(),
    };
    if let Some(count) = app["restarts"].as_u64().filter(|count| *count > 0) {
        let _ = write!(line, ", restarted {}", times(count));
    }
    if !app["ended"].is_null() {
        let _ = write!(line, ", last ended: {}", ended(&app["ended"]));
    }
    line
}

/// The page says it in the same words.
fn ended(ended: &serde_json::Value) -> String {
    let mut text = match ended["signal"].as_i64() {
        Some(signal @ 1..) => format!("killed by signal {signal}"),
        _ => format!("exited with {}", ended["code"]),
    };
    for (key, words) in [("core_dumped", ", core dumped"), ("oom_killed", ", out of memory")] {
        if ended[key] == true {
            text.push_str(words);
        }
    }
    text
}

/// `holds (files, tcp)`, and what is missing where something is.
fn sandbox_line(sandbox: &serde_json::Value) -> String {
    if sandbox.is_null() {
        return "off".into();
    }
    let parts: Vec<&str> = SANDBOXED.iter().filter(|(key, _)| sandbox[*key] == true).map(|(_, name)| *name).collect();
    let mut line = if parts.is_empty() { "holds nothing".into() } else { format!("holds ({})", parts.join(", ")) };
    for (key, before, between) in [("missing", "missing", "; "), ("absent", "granted and absent", ", ")] {
        let words = sandbox[key].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let words: Vec<&str> = words.collect();
        if !words.is_empty() {
            let _ = write!(line, "; {before}: {}", words.join(between));
        }
    }
    line
}

/// The parts of a sandbox, by their keys in the status, as people call them. The page has the same list.
const SANDBOXED: [(&str, &str); 4] =
    [("filesystem", "files"), ("tcp", "tcp"), ("signals_scoped", "signals"), ("seccomp", "system calls")];

fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

#[cfg(test)]
impl View {
    /// A view of nothing yet.
    pub fn sample() -> View {
        View {
            telemetry: Telemetry::default(),
            revisions: Revisions::default(),
            state: StateDir::without("no disk".into()),
            config: serde_json::Value::Null,
            started_at: Instant::now(),
            generation: 0,
            app: Rc::new(|| serde_json::json!({ "pid": 7, "runs": true, "restarts": 0, "ended": null })),
            sandbox: serde_json::Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// covers: foundation 6
    #[test]
    fn probes_answer_each_question_and_name_who_says_no() {
        let view = View::sample();
        assert_eq!(view.probe(Probe::Started).0, 503, "nothing is started");
        let (logs, proxy) = (view.telemetry.health("logs"), view.telemetry.health("proxy"));
        logs.set_ready(true);
        proxy.set_started();
        assert_eq!(view.probe(Probe::Started).0, 200);
        assert_eq!(view.probe(Probe::Live).0, 200);
        let (status, text) = view.probe(Probe::Ready);
        assert!(status == 503 && text.starts_with("no: proxy"), "{text}");
        proxy.panicked("boom");
        assert_eq!(view.probe(Probe::Live), (503, "no: proxy: boom\n".into()));
    }

    /// covers: foundation 6
    #[test]
    fn the_status_is_the_worst_verdict_and_prints_for_people() {
        let view = View::sample();
        view.telemetry.health("logs").set_ready(true);
        assert_eq!(view.status().verdict, State::Ok);
        view.telemetry.health("sync").fault("settings", "refused");
        view.telemetry.ledger.row("sink", "logs/main").drop_unseen("rejected", 3);
        let status = view.status();
        assert_eq!(status.verdict, State::Degraded);
        let shown = terminal(&serde_json::to_value(status).expect("JSON"));
        for part in ["degraded", "settings: refused", "3 rejected", "state: no disk"] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }

    /// covers: attachment 6
    #[test]
    fn the_sandbox_says_what_it_holds_and_what_is_missing() {
        let check = |sandbox: serde_json::Value, expect: &str| {
            let shown = terminal(&json!({ "sandbox": sandbox }));
            assert!(shown.contains(&format!("\nsandbox: {expect}\n")), "{shown}");
        };
        check(json!(null), "off");
        let all = json!({ "filesystem": true, "tcp": true, "signals_scoped": true, "seccomp": true, "landlock": 7 });
        check(all.clone(), "holds (files, tcp, signals, system calls)");
        let mut gap = all.clone();
        gap["tcp"] = json!(false);
        gap["missing"] = json!(["the kernel filters no ports", "and this"]);
        check(gap, "holds (files, signals, system calls); missing: the kernel filters no ports; and this");
        let mut absent = all;
        absent["absent"] = json!(["/a", "/b"]);
        check(absent, "holds (files, tcp, signals, system calls); granted and absent: /a, /b");
        let nothing = json!({ "filesystem": false, "missing": ["no Landlock"] });
        check(nothing, "holds nothing; missing: no Landlock");
        let page = include_str!("page.html");
        for (key, name) in SANDBOXED {
            assert!(page.contains(key) && page.contains(name), "{key} on the page");
        }
    }

    /// covers: attachment 1
    /// covers: attachment 4
    #[test]
    fn the_app_s_life_is_told_in_a_line() {
        let check = |app: serde_json::Value, expect: &str| {
            let shown = terminal(&json!({ "app": app, "worker_generation": 2, "uptime_s": 1 }));
            assert!(shown.contains(&format!("\napp: {expect}\n")), "{shown}");
            assert!(shown.contains("up 1 s, worker replaced 2 times\n"), "{shown}");
        };
        check(json!({ "pid": 42, "runs": true, "restarts": 0, "ended": null }), "runs, pid 42");
        check(json!({ "pid": null, "runs": true, "restarts": 0, "ended": null }), "runs");
        let ended = |code: i32, signal: i32, dumped: bool, oom: bool| json!({ "code": code, "signal": signal, "core_dumped": dumped, "oom_killed": oom });
        check(
            json!({ "pid": 43, "runs": true, "restarts": 1, "ended": ended(139, 11, true, false) }),
            "runs, pid 43, restarted once, last ended: killed by signal 11, core dumped",
        );
        check(
            json!({ "pid": 43, "runs": true, "restarts": 0, "ended": ended(137, 9, false, true) }),
            "runs, pid 43, last ended: killed by signal 9, out of memory",
        );
        check(
            json!({ "pid": null, "runs": false, "restarts": 3, "ended": ended(3, 0, false, false) }),
            "does not run, restarted 3 times, last ended: exited with 3",
        );
        check(json!(null), "does not run");
    }
}
