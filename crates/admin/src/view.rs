//! What is shown, put together from telemetry: the answers of probes, the status as JSON, and the same for a terminal.

use base::family::{Gather as _, write_text};
use base::revisions::{Revision, Revisions};
use base::state::StateDir;
use base::subsystem::{State, Verdict};
use base::telemetry::Telemetry;
use serde::Serialize;
use std::fmt::Write as _;
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
    pub subsystems: Vec<Verdict>,
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
            subsystems,
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
    let _ = writeln!(
        out,
        "outrigger {}: {}, up {} s",
        text(&status["version"]),
        text(&status["verdict"]),
        status["uptime_s"]
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            telemetry: Telemetry::default(),
            revisions: Revisions::default(),
            state: StateDir::without("no disk".into()),
            config: serde_json::Value::Null,
            started_at: Instant::now(),
            generation: 0,
        }
    }

    /// covers: foundation 6
    #[test]
    fn probes_answer_each_question_and_name_who_says_no() {
        let view = view();
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
        let view = view();
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
}
