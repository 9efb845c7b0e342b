//! The supervisor replaces itself by another binary and keeps its children: they have the same parent, since the process stays the
//! same. In: a binary whose worker has become ready. Out: the same state in the new program. It happens only at rest: one worker
//! serves, the app runs or is elsewhere, and no byte of its output is on the way. A terminal of the app's own stays with the old
//! program, which then goes on.

use crate::app::{App, State};
use crate::capture::{Step, Stream};
use crate::fdstore::Store;
use crate::message::Ended;
use crate::plan::{PLAN_MAX, Plan};
use crate::reexec_state::ReexecState;
use crate::restarts::Restarts;
use crate::run::Supervisor;
use crate::systemd::Systemd;
use crate::terminal::Terminal;
use crate::worker::{SavedConfig, Worker, sealed};
use crate::workers::{WorkerSlot, Workers};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;
use sys::process::ExecPlan;
use sys::ring::Ring;
use sys::signal::SavedSignals;

/// The environment variable by which a supervisor learns that it goes on.
pub const RESUME: &str = "OUTRIGGER_RESUME";

/// How the app ended before its present run.
const ENDED: [&str; 3] = ["ended code", "ended signal", "ended how"];

/// Whether nothing stands in the way at this moment.
pub(crate) fn is_possible(supervisor: &Supervisor) -> bool {
    let on_the_way = supervisor.streams.iter().flatten().any(|stream| stream.blocked_output().is_some());
    let at_rest = matches!(supervisor.app.state, State::Running { .. } | State::Elsewhere);
    at_rest && !on_the_way && supervisor.stop.is_none() && supervisor.terminal.pty_ref().is_none()
}

/// Returns where this process goes on as it is.
pub(crate) fn become_binary(supervisor: &mut Supervisor, binary: &[u8]) {
    let Some(worker) = supervisor.workers.at(WorkerSlot::Active) else { return };
    let mut handoff = ReexecState::default();
    handoff.number("blocked", supervisor.saved.blocked.cast_signed());
    handoff.number("pipe ignored", supervisor.saved.pipe_ignored.into());
    supervisor.app.numbers(Instant::now()).into_iter().for_each(|(key, number)| handoff.number(key, number));
    if let Some(ended) = supervisor.app.ended {
        ENDED.into_iter().zip(ended.numbers()).for_each(|(key, number)| handoff.number(key, number));
    }
    handoff.number("generation", worker.generation.into());
    handoff.number("worker", worker.pid.into());
    handoff.number("since", supervisor.since);
    supervisor.workers.restarts.hand_over(&mut handoff);
    let Some(control) = &worker.control else { return };
    let Some(Ok(plan)) = supervisor.plan.as_ref().map(|plan| sealed("outrigger-plan", &plan.encode())) else { return };
    if let Some(text) = &worker.text {
        handoff.descriptor("text", text);
    }
    for (key, fd) in [
        ("control", control),
        ("notify", &worker.notify),
        ("watchdog", &worker.watchdog),
        ("wake", &supervisor.wake),
        ("wake read", &supervisor.wake_read),
        ("plan", &plan),
        ("good", &supervisor.kept.last_good),
        ("refused", &supervisor.kept.rejected),
    ] {
        handoff.descriptor(key, fd);
    }
    for (key, ring) in [("stdout ring", &supervisor.rings.0), ("stderr ring", &supervisor.rings.1)] {
        handoff.descriptor(key, ring.file());
    }
    for (key, stream) in ["stdout pipe", "stderr pipe"].into_iter().zip(supervisor.streams.iter().flatten()) {
        if let Some(pipe) = stream.pipe() {
            handoff.descriptor(key, &pipe);
        }
    }
    for (name, fd) in supervisor.store.named() {
        handoff.descriptor(&format!("stored {name}"), fd);
    }
    if let Some(directory) = &supervisor.directory {
        let _ = std::env::set_current_dir(directory);
    }
    handoff.exec(binary, RESUME);
    handoff.withdraw();
    let _ = rustix::process::chdir(c"/");
}

/// The supervisor that another program has left to this one, where it has.
pub(crate) fn resumed(signals: &OwnedFd, now_saved: SavedSignals) -> io::Result<Option<Supervisor>> {
    let Some(mut handoff) = ReexecState::from_environment(RESUME) else { return Ok(None) };
    // The exec named this process after its file, which may be called anything.
    let _ = rustix::thread::set_name(c"outrigger");
    match take_up(&mut handoff, signals, now_saved) {
        Some(supervisor) => Ok(Some(supervisor)),
        // Nobody is left to go back to, and the app must not pay for it.
        None => {
            let text = b"outrigger: cannot decode the state of the previous binary (incompatible version); app keeps running unsupervised\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            std::process::exit(stay_with_app(&mut handoff, signals));
        }
    }
}

/// The least that an app needs: its output is passed on, signals reach it, and its code is ours. Answers that code.
fn stay_with_app(handoff: &mut ReexecState, signals: &OwnedFd) -> i32 {
    let app = handoff.value("app").and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let outputs = [rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut streams: Vec<Stream> = Vec::new();
    for (key, output) in ["stdout pipe", "stderr pipe"].into_iter().zip(outputs) {
        let mut stream = Stream::new(output, None);
        if handoff.claim(key).is_some_and(|pipe| stream.read_from(pipe).is_ok()) {
            streams.push(stream);
        }
    }
    loop {
        while let Some(arrived) = sys::signal::next(signals) {
            if let Some(app) = app {
                let _ = sys::process::kill(app, arrived.number, true);
            }
        }
        for stream in &mut streams {
            while stream.step() == Step::Moved {}
        }
        let options = rustix::process::WaitOptions::NOHANG;
        while let Ok(Some((pid, status))) = rustix::process::wait(options) {
            if Some(pid.as_raw_nonzero().get()) == app {
                streams.iter_mut().for_each(Stream::finish);
                return status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
            }
        }
        if app.is_none() {
            return 1;
        }
        let mut polled = vec![PollFd::new(signals, PollFlags::IN)];
        for stream in &streams {
            match stream.blocked_output() {
                Some(blocked) => polled.push(PollFd::from_borrowed_fd(blocked, PollFlags::OUT)),
                None => polled.extend(stream.pipe().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN))),
            }
        }
        let _ = poll(&mut polled, None);
    }
}

fn ended(handoff: &ReexecState) -> Option<Ended> {
    let [code, signal, how] = ENDED.map(|key| handoff.value(key));
    Ended::from_numbers([code?, signal?, how?])
}

fn take_up(handoff: &mut ReexecState, signals: &OwnedFd, now_saved: SavedSignals) -> Option<Supervisor> {
    let saved = SavedSignals {
        blocked: handoff.value("blocked").map_or(now_saved.blocked, i64::cast_unsigned),
        pipe_ignored: handoff.value("pipe ignored") == Some(1),
        // Dispositions outlive an exec.
        ignored: sys::signal::ignored(),
    };
    let now = Instant::now();
    let number = |handoff: &ReexecState, key| handoff.value(key).and_then(|value| i32::try_from(value).ok());
    let ring = |handoff: &mut ReexecState, key| handoff.claim(key).and_then(|fd| Ring::over(fd).ok());
    let rings = (ring(handoff, "stdout ring")?, ring(handoff, "stderr ring")?);
    let kept = SavedConfig { last_good: handoff.claim("good")?, rejected: handoff.claim("refused")? };
    let mut text = vec![0u8; PLAN_MAX];
    let read = rustix::io::pread(handoff.claim("plan")?, &mut text[..], 0).ok()?;
    let plan = Plan::decode(text.get(..read)?)?;
    drop(text);
    let worker = Worker::resumed(
        number(handoff, "worker")?,
        handoff.claim("control")?,
        handoff.claim("notify")?,
        handoff.claim("watchdog")?,
        u32::try_from(handoff.value("generation")?).ok()?,
        handoff.claim("text"),
        now,
    );
    let mut app = App::resumed(|key| handoff.value(key), now)?;
    app.ended = ended(handoff);
    let directory = std::env::current_dir().ok();
    let _ = rustix::process::chdir(c"/");
    let mut supervisor = Supervisor {
        exec: plan.app.as_ref().and_then(|app| ExecPlan::new(app).ok()),
        plan: None,
        next_plan: None,
        signals: signals.try_clone().ok()?,
        saved,
        wake: handoff.claim("wake")?,
        wake_read: handoff.claim("wake read")?,
        rings,
        kept,
        streams: None,
        terminal: Terminal::None,
        app,
        workers: Workers::resumed(worker, Restarts::inherited(handoff)),
        store: Store::new(handoff.claim_named("stored ")),
        manager: Systemd::without_descriptors(),
        gate_until: None,
        stop: None,
        exit: None,
        directory,
        since: handoff.value("since").unwrap_or(0),
        settled: false,
        binary: std::os::unix::ffi::OsStringExt::into_vec(std::env::current_exe().ok()?.into_os_string()),
    };
    // Whatever the new plan says, the app writes to what it was given.
    let piped = handoff.value("stdout pipe").is_some() || handoff.value("stderr pipe").is_some();
    supervisor.begin_output(&plan, false, piped);
    for (key, stream) in ["stdout pipe", "stderr pipe"].into_iter().zip(supervisor.streams.iter_mut().flatten()) {
        if let Some(pipe) = handoff.claim(key) {
            stream.read_from(pipe).ok()?;
        }
    }
    supervisor.plan = Some(plan);
    supervisor.notify_systemd_ready();
    Some(supervisor)
}
