//! The app as a child: start it, signal it, learn how it ended. In: the plan. Out: its state. An app that cannot be
//! executed ends with 127 (not found) or 126 (not executable), as in a shell (POSIX.1-2024, XCU 2.8.2).

use crate::capture::Stream;
use crate::plan::Plan;
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};
use std::os::fd::{AsFd, OwnedFd};
use sys::process::ChildSetup;
use sys::signal::SavedMask;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// The worker's gates have not passed yet.
    Waiting,
    Running {
        pid: i32,
    },
    Ended {
        code: i32,
        signal: i32,
    },
}

impl App {
    /// Starts the app with the given ends of its pipes, which are closed here afterwards.
    pub fn start(plan: &Plan, mask: &SavedMask, outputs: Option<(OwnedFd, OwnedFd)>, new_session: bool) -> App {
        let Ok((status_read, status_write)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
            return App::Ended { code: 126, signal: 0 };
        };
        let setup = ChildSetup {
            stdout: outputs.as_ref().map(|(stdout, _)| stdout.as_fd()),
            stderr: outputs.as_ref().map(|(_, stderr)| stderr.as_fd()),
            new_session,
            mask,
        };
        let Ok(pid) = sys::process::start(&plan.app, &setup, &status_write) else {
            return App::Ended { code: 126, signal: 0 };
        };
        drop((status_write, outputs));
        match exec_error(&status_read) {
            None => App::Running { pid },
            Some(error) => {
                // The child has written its error and ends by itself; it is reaped here so that nobody reaps it as the app.
                let _ = Pid::from_raw(pid)
                    .map(|pid| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
                let (code, why): (i32, &[u8]) = match error {
                    Errno::NOENT => (127, b": command not found\n"),
                    Errno::ACCESS => (126, b": permission denied\n"),
                    _ => (126, b": cannot be executed\n"),
                };
                for part in [b"outrigger: ", plan.app_name.as_bytes(), why] {
                    let _ = rustix::io::write(rustix::stdio::stderr(), part);
                }
                App::Ended { code, signal: 0 }
            }
        }
    }

    pub fn pid(&self) -> Option<i32> {
        match self {
            App::Running { pid } => Some(*pid),
            _ => None,
        }
    }

    /// Signals the app's whole group, or where it has none of its own, the app.
    pub fn signal(&self, signal: i32, group: bool) {
        let Some(pid) = self.pid() else { return };
        // An app that left its group, or has none, is still the app.
        if !group || sys::process::kill(pid, signal, true).is_err() {
            let _ = sys::process::kill(pid, signal, false);
        }
    }

    pub fn ended(status: WaitStatus) -> App {
        match status.terminating_signal() {
            Some(signal) => App::Ended { code: 128 + signal, signal },
            None => App::Ended { code: status.exit_status().unwrap_or(1), signal: 0 },
        }
    }
}

/// Blocks until exec has happened, which closes the pipe, or failed, which writes its error number.
fn exec_error(status: &OwnedFd) -> Option<Errno> {
    let mut bytes = [0u8; 4];
    loop {
        match rustix::io::read(status, &mut bytes) {
            Ok(4) => return Some(Errno::from_raw_os_error(i32::from_ne_bytes(bytes))),
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
}

/// What both streams of the app have in common.
pub struct Output {
    pub stdout: Stream,
    pub stderr: Stream,
}
