//! A signal arrived: it is forwarded to the app, rewritten, or starts a stop, a reload or an upgrade.

use crate::app::State;
use crate::plan::Rewrite;
use crate::signals::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR2, SIGWINCH,
};
use crate::state::Supervisor;
use std::time::Instant;
use sys::signal::Arrived;

impl Supervisor {
    pub(crate) fn apply_signal(&mut self, arrived: Arrived) {
        let Arrived { number, from_kernel, sender } = arrived;
        let from_self = sender == rustix::process::getpid().as_raw_nonzero().get().unsigned_abs() && !from_kernel;
        // A key at a terminal signals the app in its foreground directly. A hangup signals only Outrigger.
        let key = matches!(number, SIGINT | SIGQUIT | SIGTSTP | SIGTTIN | SIGTTOU | SIGWINCH);
        // If it signals Outrigger, Outrigger's own group has the foreground: an app with its own group has not received it.
        let also_sent_to_app =
            self.terminal.is_shared() && self.app.pid().is_some() && self.plan.as_ref().is_some_and(|plan| !plan.group);
        if number == SIGCHLD || from_self || (key && from_kernel && also_sent_to_app) {
            return;
        }
        let now = Instant::now();
        let companion = self.app.state == State::External;
        // A parent that had it ignored, as `nohup` or a shell's `&` does, did so for the app; a configured rewrite still applies.
        let configured = self.plan.as_ref().is_some_and(|plan| plan.rewrites.has(number));
        if number != SIGTERM && self.saved.ignores(number) && !configured {
            return;
        }
        let rewrite = self.plan.as_ref().map_or(Rewrite::To(number), |plan| plan.rewrites.of(number));
        match (number, rewrite) {
            (_, Rewrite::Drop) => {}
            (_, Rewrite::Upgrade) => drop(self.workers.request_upgrade(self.binary.clone(), now)),
            (SIGUSR2, _) if companion => drop(self.workers.request_upgrade(self.binary.clone(), now)),
            (SIGHUP, _) if companion => self.workers.request_reload(now),
            (SIGTERM | SIGINT, Rewrite::To(signal)) => self.stop_signalled(signal, now),
            (SIGTSTP | SIGTTIN | SIGTTOU, Rewrite::To(signal)) => {
                // A group without a terminal ignores these three (POSIX.1-2024, 2.4.3), so the app gets SIGSTOP instead. A
                // process that waits for Outrigger, such as a shell, sees it stopped in any case.
                self.signal_app(if signal == number { SIGSTOP } else { signal });
                crate::terminal::stop_ourselves();
            }
            (_, Rewrite::To(signal)) => {
                if let (SIGWINCH, Some(pty)) = (number, self.terminal.pty_ref()) {
                    return pty.copy_size();
                }
                if let (SIGCONT, Some(app)) = (number, self.app.pid()) {
                    self.terminal.give_foreground(app);
                }
                self.signal_app(signal);
            }
        }
    }
}
