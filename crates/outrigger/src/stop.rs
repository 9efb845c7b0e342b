//! The worker's end of the conversation with the supervisor, and the order of a stop. In: messages, or signals beside a
//! container. Out: phases for the subsystems, messages back. One deadline holds for all of it.

use crate::config::Stop;
use crate::wire::AppFacts;
use base::subsystem::{Conductor, Phase};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervisor::message::{BYTES, ToSupervisor, ToWorker};
use supervisor::run::EXIT_RELOAD;
use tokio::net::UnixDatagram;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify};

/// Who tells us to stop.
pub struct Control {
    voice: Voice,
}

enum Voice {
    /// A packet socket. tokio's datagram socket speaks to it, since both keep packets whole.
    Supervisor(UnixDatagram),
    Signals(Mutex<(Signal, Signal)>),
}

/// What we were told.
enum Told {
    Message(ToWorker),
    /// The supervisor is gone, or a signal came: stop, in the time that the configuration gives.
    StopNow,
}

impl Control {
    pub fn supervisor(socket: OwnedFd) -> io::Result<Control> {
        let socket = StdDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Control { voice: Voice::Supervisor(UnixDatagram::from_std(socket)?) })
    }

    pub fn signals() -> io::Result<Control> {
        let pair = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Control { voice: Voice::Signals(Mutex::new(pair)) })
    }

    pub fn start_app(&self) {
        self.send(ToSupervisor::StartApp);
    }

    pub fn signal_app(&self, signal: i32) {
        self.send(ToSupervisor::SignalApp { signal });
    }

    fn send(&self, message: ToSupervisor) {
        if let Voice::Supervisor(socket) = &self.voice
            // Not tokio's `try_send`, which refuses until its driver has seen the socket once.
            && let Err(error) = supervisor::message::send(socket, &message.encode())
        {
            tracing::warn!(%error, what = ?message, "the supervisor did not take a message");
        }
    }

    async fn hear(&self) -> Told {
        match &self.voice {
            Voice::Signals(signals) => {
                let mut signals = signals.lock().await;
                let (terminate, interrupt) = &mut *signals;
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                Told::StopNow
            }
            Voice::Supervisor(socket) => loop {
                let mut packet = [0u8; BYTES];
                match socket.recv(&mut packet).await {
                    Ok(0) | Err(_) => return Told::StopNow,
                    Ok(count) => {
                        if let Some(message) = packet.get(..count).and_then(ToWorker::decode) {
                            return Told::Message(message);
                        }
                    }
                }
            },
        }
    }

    fn is_companion(&self) -> bool {
        matches!(self.voice, Voice::Signals(_))
    }
}

/// What delivering and keeping get even where the deadline has passed; the supervisor allows for it.
const KEEP_AT_LEAST: Duration = Duration::from_millis(250);

/// Kept back from the deadline for closing what is open.
const CLOSE_RESERVE: Duration = Duration::from_millis(300);

/// How long requests under way, and bodies at receivers, may take when a worker makes room for the next. New connections
/// wait in the sockets meanwhile.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Serves until told to stop, then leads the subsystems through the phases. Answers the exit code.
pub async fn lead(
    control: &Control,
    conductor: &mut Conductor,
    facts: &AppFacts,
    times: &Stop,
    reload: &Notify,
) -> i32 {
    let until = loop {
        let told = tokio::select! {
            told = control.hear() => told,
            () = reload.notified() => {
                conductor.advance(Phase::Yield, HAND_OVER).await;
                return EXIT_RELOAD;
            }
        };
        match told {
            Told::Message(ToWorker::AppStarted { pid }) => {
                facts.pid.store(pid, Ordering::Relaxed);
                facts.runs.send_replace(true);
                tracing::info!(pid, "the app runs");
            }
            Told::Message(ToWorker::Stop { left_ms }) => break Instant::now() + Duration::from_millis(left_ms),
            Told::Message(ToWorker::AppEnded { .. }) => break Instant::now() + times.deadline.0,
            Told::StopNow => break Instant::now() + times.deadline.0,
        }
    };
    facts.runs.send_replace(false);
    tracing::info!(within = ?until.saturating_duration_since(Instant::now()), "stopping");
    let left = |reserve: Duration| until.saturating_duration_since(Instant::now()).saturating_sub(reserve);
    let late = conductor.advance(Phase::Drain, times.drain.0.min(left(CLOSE_RESERVE))).await;
    report_late(&late, "drained");
    control.send(ToSupervisor::Drained);
    if !control.is_companion() {
        // The app's own end is the supervisor's to bring about, within the same deadline.
        while let Ok(told) = tokio::time::timeout(left(CLOSE_RESERVE), control.hear()).await {
            match told {
                Told::Message(ToWorker::AppEnded { code, signal }) => {
                    tracing::info!(code, signal, "the app has ended");
                    break;
                }
                Told::StopNow => break,
                Told::Message(_) => {}
            }
        }
    }
    facts.pid.store(0, Ordering::Relaxed);
    // An app that used up all the time has the most interesting last lines: they are kept in any case.
    let late = conductor.advance(Phase::Finish, left(CLOSE_RESERVE).max(KEEP_AT_LEAST)).await;
    report_late(&late, "delivered everything");
    conductor.advance(Phase::Close, left(Duration::ZERO)).await;
    0
}

fn report_late(late: &[&str], what: &str) {
    if !late.is_empty() {
        tracing::warn!(subsystems = late.join(", "), "not {what} when the time was over");
    }
}
