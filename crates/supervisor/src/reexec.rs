//! The supervisor execs another binary and keeps its children: they have the same parent, since the process stays the same. In: a
//! binary whose worker has become ready. Out: the same state in the new program. It happens only at rest: one worker serves, the
//! app runs or is external, and no byte of its output is pending. A dedicated pseudo-terminal of the app stays with the
//! old program, which then keeps running.

use crate::app::{App, State};
use crate::capture::{Step, Stream};
use crate::fdstore::Store;
use crate::message::Ended;
use crate::plan::{PLAN_MAX, Plan};
use crate::reexec_state::ReexecState;
use crate::restarts::Restarts;
use crate::state::Supervisor;
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

/// The environment variable that carries the state to the new program, which then resumes.
pub const RESUME: &str = "OUTRIGGER_RESUME";

/// How the app exited before its current run.
const ENDED: [&str; 3] = ["ended code", "ended signal", "ended how"];

/// Whether nothing prevents the exec now.
pub(crate) fn is_possible(supervisor: &Supervisor) -> bool {
    let pending = supervisor.streams.iter().flatten().any(|stream| stream.blocked_output().is_some());
    let at_rest = matches!(supervisor.app.state, State::Running { .. } | State::External);
    at_rest && !pending && supervisor.stop.is_none() && supervisor.terminal.pty_ref().is_none()
}

/// Returns only if this process keeps running the old program.
pub(crate) fn become_binary(supervisor: &mut Supervisor, binary: &[u8]) {
    let Some(worker) = supervisor.workers.at(WorkerSlot::Active) else { return };
    let mut reexec_state = ReexecState::default();
    reexec_state.number("blocked", supervisor.saved.blocked.cast_signed());
    reexec_state.number("pipe ignored", supervisor.saved.pipe_ignored.into());
    supervisor.app.numbers(Instant::now()).into_iter().for_each(|(key, number)| reexec_state.number(key, number));
    if let Some(ended) = supervisor.app.ended {
        ENDED.into_iter().zip(ended.numbers()).for_each(|(key, number)| reexec_state.number(key, number));
    }
    reexec_state.number("generation", worker.generation.into());
    reexec_state.number("worker", worker.pid.into());
    reexec_state.number("since", supervisor.since);
    supervisor.workers.restarts.save_to(&mut reexec_state);
    let Some(control) = &worker.control else { return };
    let Some(Ok(plan)) = supervisor.plan.as_ref().map(|plan| sealed("outrigger-plan", &plan.encode())) else { return };
    if let Some(text) = &worker.text {
        reexec_state.descriptor("text", text);
    }
    for (key, fd) in [
        ("control", control),
        ("notify", &worker.notify),
        ("watchdog", &worker.watchdog),
        ("wake", &supervisor.wake),
        ("wake read", &supervisor.wake_read),
        ("plan", &plan),
        ("good", &supervisor.saved_config.last_good),
        ("refused", &supervisor.saved_config.rejected),
    ] {
        reexec_state.descriptor(key, fd);
    }
    for (key, ring) in [("stdout ring", &supervisor.rings.0), ("stderr ring", &supervisor.rings.1)] {
        reexec_state.descriptor(key, ring.file());
    }
    for (key, stream) in ["stdout pipe", "stderr pipe"].into_iter().zip(supervisor.streams.iter().flatten()) {
        if let Some(pipe) = stream.pipe() {
            reexec_state.descriptor(key, &pipe);
        }
    }
    for (name, fd) in supervisor.store.named() {
        reexec_state.descriptor(&format!("stored {name}"), fd);
    }
    if let Some(directory) = &supervisor.directory {
        let _ = std::env::set_current_dir(directory);
    }
    reexec_state.exec(binary, RESUME);
    reexec_state.withdraw();
    let _ = rustix::process::chdir(c"/");
}

/// The supervisor that the previous program passed to this one, if it did.
pub(crate) fn resumed(signals: &OwnedFd, now_saved: SavedSignals) -> io::Result<Option<Supervisor>> {
    let Some(mut reexec_state) = ReexecState::from_environment(RESUME) else { return Ok(None) };
    // The exec named this process after its file, which may have any name.
    let _ = rustix::thread::set_name(c"outrigger");
    match resume(&mut reexec_state, signals, now_saved) {
        Some(supervisor) => Ok(Some(supervisor)),
        // The previous program no longer exists, and the app must not be affected.
        None => {
            let text = b"outrigger: cannot decode the state of the previous binary (incompatible version); app keeps running unsupervised\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            std::process::exit(supervise_only_the_app(&mut reexec_state, signals));
        }
    }
}

/// The minimum for an app: its output is passed through, it gets signals, and Outrigger exits with its code. Returns that code.
fn supervise_only_the_app(reexec_state: &mut ReexecState, signals: &OwnedFd) -> i32 {
    let app = reexec_state.value("app").and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let outputs = [rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut streams: Vec<Stream> = Vec::new();
    for (key, output) in ["stdout pipe", "stderr pipe"].into_iter().zip(outputs) {
        let mut stream = Stream::new(output, None);
        if reexec_state.claim(key).is_some_and(|pipe| stream.read_from(pipe).is_ok()) {
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

fn last_exit(reexec_state: &ReexecState) -> Option<Ended> {
    let [code, signal, how] = ENDED.map(|key| reexec_state.value(key));
    Ended::from_numbers([code?, signal?, how?])
}

fn resume(reexec_state: &mut ReexecState, signals: &OwnedFd, now_saved: SavedSignals) -> Option<Supervisor> {
    let saved = SavedSignals {
        blocked: reexec_state.value("blocked").map_or(now_saved.blocked, i64::cast_unsigned),
        pipe_ignored: reexec_state.value("pipe ignored") == Some(1),
        // Ignored signals stay ignored across an exec (execve(2)).
        ignored: sys::signal::ignored(),
    };
    let now = Instant::now();
    let number = |reexec_state: &ReexecState, key| reexec_state.value(key).and_then(|value| i32::try_from(value).ok());
    let ring = |reexec_state: &mut ReexecState, key| reexec_state.claim(key).and_then(|fd| Ring::over(fd).ok());
    let rings = (ring(reexec_state, "stdout ring")?, ring(reexec_state, "stderr ring")?);
    let saved_config = SavedConfig { last_good: reexec_state.claim("good")?, rejected: reexec_state.claim("refused")? };
    let mut text = vec![0u8; PLAN_MAX];
    let read = rustix::io::pread(reexec_state.claim("plan")?, &mut text[..], 0).ok()?;
    let plan = Plan::decode(text.get(..read)?)?;
    drop(text);
    let worker = Worker::resumed(
        number(reexec_state, "worker")?,
        reexec_state.claim("control")?,
        reexec_state.claim("notify")?,
        reexec_state.claim("watchdog")?,
        u32::try_from(reexec_state.value("generation")?).ok()?,
        reexec_state.claim("text"),
        now,
    );
    let mut app = App::resumed(|key| reexec_state.value(key), now)?;
    app.ended = last_exit(reexec_state);
    let directory = std::env::current_dir().ok();
    let _ = rustix::process::chdir(c"/");
    let mut supervisor = Supervisor {
        exec: plan.app.as_ref().and_then(|app| ExecPlan::new(app).ok()),
        plan: None,
        next_plan: None,
        signals: signals.try_clone().ok()?,
        saved,
        wake: reexec_state.claim("wake")?,
        wake_read: reexec_state.claim("wake read")?,
        rings,
        saved_config,
        streams: None,
        terminal: Terminal::None,
        app,
        workers: Workers::resumed(worker, Restarts::inherited(reexec_state)),
        store: Store::new(reexec_state.claim_named("stored ")),
        systemd: Systemd::without_descriptors(),
        gate_until: None,
        stop: None,
        exit: None,
        directory,
        since: reexec_state.value("since").unwrap_or(0),
        settled: false,
        binary: std::os::unix::ffi::OsStringExt::into_vec(std::env::current_exe().ok()?.into_os_string()),
    };
    // The app still writes to the outputs that it was started with, even if the new plan has others.
    let piped = reexec_state.value("stdout pipe").is_some() || reexec_state.value("stderr pipe").is_some();
    supervisor.begin_output(&plan, false, piped);
    for (key, stream) in ["stdout pipe", "stderr pipe"].into_iter().zip(supervisor.streams.iter_mut().flatten()) {
        if let Some(pipe) = reexec_state.claim(key) {
            stream.read_from(pipe).ok()?;
        }
    }
    supervisor.plan = Some(plan);
    supervisor.notify_systemd_ready();
    Some(supervisor)
}
