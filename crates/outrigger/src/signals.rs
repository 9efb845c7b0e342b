//! Signals to the worker. In: SIGTERM, SIGINT, SIGHUP, SIGUSR2. Out: messages to the supervisor, a reload.

use crate::control::Control;
use crate::reload::Reloader;
use std::rc::Rc;
use supervisor::message::{StopCause, ToSupervisor};
use tokio::signal::unix::{SignalKind, signal};

/// Signals to this process itself. A stop of a complete control group sends SIGTERM to each process in it; the supervisor
/// controls the shutdown, so the worker forwards the signal to it. SIGHUP reloads the configuration if there is no wrapped app to
/// receive it.
pub async fn signals(control: Rc<Control>, reloader: Rc<Reloader>, companion: bool) {
    let listen = |kind| signal(kind).ok();
    let (Some(mut terminate), Some(mut interrupt), Some(mut hangup), Some(mut upgrade)) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
        listen(SignalKind::user_defined2()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => control.send(stop(SignalKind::terminate())),
            _ = interrupt.recv() => control.send(stop(SignalKind::interrupt())),
            _ = upgrade.recv() => control.upgrade_signalled(),
            // The reloader logs the result.
            _ = hangup.recv(), if companion => drop(reloader.reload(&control).await),
        }
    }
}

fn stop(kind: SignalKind) -> ToSupervisor<'static> {
    ToSupervisor::Stop { within_ms: 0, cause: StopCause::Signal(kind.as_raw_value()) }
}
