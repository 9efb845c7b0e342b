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
        let ourselves = sender == rustix::process::getpid().as_raw_nonzero().get().unsigned_abs() && !from_kernel;
        // A key at a terminal reaches the app in its foreground without us. That the line is lost reaches us alone.
        let key = matches!(number, SIGINT | SIGQUIT | SIGTSTP | SIGTTIN | SIGTTOU | SIGWINCH);
        // Where it reaches us, our own group has the foreground: an app with a group of its own has not heard of it.
        let told = self.terminal.has_reported()
            && self.app.pid().is_some()
            && self.plan.as_ref().is_some_and(|plan| !plan.group);
        if number == SIGCHLD || ourselves || (key && from_kernel && told) {
            return;
        }
        let now = Instant::now();
        let companion = self.app.state == State::Elsewhere;
        // Whoever had us ignore it, as `nohup` or a shell's `&`, did so for the app; what is configured for it holds all the same.
        let configured = self.plan.as_ref().is_some_and(|plan| plan.rewrites.has(number));
        if number != SIGTERM && self.saved.ignores(number) && !configured {
            return;
        }
        let rewrite = self.plan.as_ref().map_or(Rewrite::To(number), |plan| plan.rewrites.of(number));
        match (number, rewrite) {
            (_, Rewrite::Drop) => {}
            (_, Rewrite::Upgrade) => drop(self.workers.want_upgrade(self.binary.clone(), now)),
            (SIGUSR2, _) if companion => drop(self.workers.want_upgrade(self.binary.clone(), now)),
            (SIGHUP, _) if companion => self.workers.want_reload(now),
            (SIGTERM | SIGINT, Rewrite::To(signal)) => self.stop_signalled(signal, now),
            (SIGTSTP | SIGTTIN | SIGTTOU, Rewrite::To(signal)) => {
                // A group without a terminal ignores these three (POSIX.1-2024, 2.4.3), so that we do what they ask for. Whoever
                // waits for us, as a shell does, sees us stopped in any case.
                self.signal_app(if signal == number { SIGSTOP } else { signal });
                crate::terminal::stop_ourselves();
            }
            (_, Rewrite::To(signal)) => {
                if let (SIGWINCH, Some(pty)) = (number, self.terminal.pty_ref()) {
                    return pty.copy_size();
                }
                if let (SIGCONT, Some(app)) = (number, self.app.pid()) {
                    self.terminal.hand_over(app);
                }
                self.signal_app(signal);
            }
        }
    }
}
