//! State of the app: for probes, whether it accepts connections; for signals, whether it handles one. In: its port and process
//! ID. Out: health, and signals through the supervisor.

use crate::control::{AppFacts, Control};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use supervisor::message::ToSupervisor;

/// Ready means that the app accepts connections if its port is known, and otherwise that the app runs.
pub async fn readiness(port: Option<u16>, companion: bool, facts: AppFacts) {
    facts.health.set_started();
    let mut runs = facts.runs.subscribe();
    let mut interval = READY_POLL;
    loop {
        let up = *runs.borrow_and_update();
        let accepting = match port {
            _ if !up => false,
            None => true,
            Some(port) => accepts(port).await,
        };
        facts.health.set_ready(accepting);
        if accepting {
            facts.was_ready.send_replace(true);
        }
        note_crashes(&facts, up);
        facts.health.set_summary(match (up, accepting, port) {
            (false, ..) => "app has not started".to_string(),
            (true, false, Some(port)) => format!("app is not accepting connections on port {port}"),
            (true, true, Some(port)) => format!("app is accepting connections on port {port}"),
            (true, ..) if companion => "external app; set app.port to check whether it accepts connections".to_string(),
            (true, ..) => "app is running".to_string(),
        });
        if accepting {
            // An app that accepts connections is no longer probed: each probe is a connection that it has to serve.
            let _ = runs.changed().await;
            continue;
        }
        let _ = tokio::time::timeout(interval, runs.changed()).await;
        interval = (interval * 2).min(READY_POLL_MAX);
    }
}

/// An app in a crash loop is reported as faulty.
fn note_crashes(facts: &AppFacts, up: bool) {
    const PART: &str = "app exit";
    let (restarts, ended) = (facts.restarts.get(), facts.ended.get());
    match ended.filter(|ended| restarts > 0 && ended.restarts && (!up || !*facts.was_ready.borrow())) {
        Some(ended) => {
            let exit = match ended.signal {
                0 => format!("exited with {}", ended.code),
                signal => format!("was killed by signal {signal}"),
            };
            let of = match facts.restarts_max {
                0 => String::new(),
                max => format!(" of {max}"),
            };
            facts.health.fault(PART, format!("app {exit}, restart {restarts}{of}"));
        }
        None => drop(facts.health.recovered(PART)),
    }
}

const READY_POLL: Duration = Duration::from_millis(50);
const READY_POLL_MAX: Duration = Duration::from_secs(1);

async fn accepts(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connected = tokio::time::timeout(Duration::from_secs(1), tokio::net::TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

/// Signals the app if it handles the signal.
pub fn signaller(control: Rc<Control>, pid: Arc<AtomicI32>) -> Rc<dyn Fn(i32) -> bool> {
    Rc::new(move |signal| {
        let handled = handles(pid.load(Ordering::Relaxed), signal);
        if handled {
            control.send(ToSupervisor::SignalApp { signal });
        }
        handled
    })
}

/// Whether a process catches or ignores a signal (proc_pid_status(5): SigCgt, SigIgn). Yes if that is unknown.
fn handles(pid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let has = |line: &str| {
        let mask = line.split_once(':').and_then(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    };
    status.lines().filter(|line| line.starts_with("SigCgt:") || line.starts_with("SigIgn:")).any(has)
}
