//! Whether this worker is well: its threads move, its memory is within the limit, and it has descriptors left. In: beats of threads,
//! the kernel's account of this process. Out: the watchdog's timer, wound up again and again; pressure on those who can do with less;
//! a wish for another worker where this one is broken. The supervisor is not woken by any of it.

use crate::control::Control;
use base::scope::BEAT_EVERY;
use base::telemetry::{Name, Telemetry};
use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::message::ToSupervisor;
use supervisor::plan::WATCHDOG;

/// Looks without a beat after which a thread counts as hung.
const LOOKS_MAX: u32 = 3;

/// The look at which the start is over: everything has been read and connected once.
const SETTLED: u32 = 3;

/// Looks in a row over the limit of memory after which this worker is replaced: a burst may end.
const OVER_MAX: u32 = 3;

/// The part of the limit, in percent, from which on a look gives back what the allocator holds and nobody uses: a flood may be over.
const TRIM_PERCENT: u64 = 50;

const OVER: Name =
    Name::counter("outrigger_memory_tight_total", "Looks at which the worker's memory was close to its limit.");
const USED: Name = Name::gauge("outrigger_memory_bytes", "Memory of the worker that it shares with nobody.");

#[derive(Clone)]
pub struct Pulse {
    watchdog: Rc<OwnedFd>,
}

impl Pulse {
    pub fn new(watchdog: OwnedFd) -> Pulse {
        Pulse { watchdog: Rc::new(watchdog) }
    }

    /// Looks again and again, and at once when a subsystem raises the alarm.
    pub async fn beat(self, telemetry: Telemetry, control: Rc<Control>, memory_max: u64) {
        let mut threads: HashMap<String, (u64, u32)> = HashMap::new();
        let (mut over, mut looks, mut was_tight) = (0, 0, false);
        let used = telemetry.count(USED, &[]);
        let tight = telemetry.count(OVER, &[]);
        loop {
            let broken = broken(&telemetry).or_else(|| hung(&telemetry, &mut threads)).or_else(|| self.exhausted());
            let mut bytes = own_memory();
            if bytes >= memory_max / 100 * TRIM_PERCENT {
                sys::memory::trim();
                bytes = own_memory();
            }
            used.set(bytes);
            over = if telemetry.pressure.note(bytes, memory_max) { over + 1 } else { 0 };
            let is_tight = telemetry.pressure.is_tight();
            tight.add(u64::from(is_tight));
            if std::mem::replace(&mut was_tight, is_tight) != is_tight {
                let what =
                    if is_tight { "memory is short: sources and new connections wait" } else { "memory is free again" };
                tracing::warn!(bytes, limit = memory_max, "{what}");
            }
            let too_large = || {
                let text = format!("it uses {} of {memory_max} bytes (limits.memory)", bytes);
                (over >= OVER_MAX).then_some(text)
            };
            // A main thread that comes here moves; the others are looked at above.
            if let Err(error) = supervisor::worker::wind_up(&self.watchdog, WATCHDOG) {
                tracing::error!(%error, "the watchdog cannot be wound up");
            }
            if let Some(why) = broken.or_else(too_large).filter(|_| !control.is_leaving()) {
                tracing::error!(why, "this worker is not well; another one takes over");
                control.send(ToSupervisor::Replace { broken: true });
                // Until then it does what it can.
                tokio::time::sleep(REPLACED_WITHIN).await;
                continue;
            }
            looks += 1;
            if looks == SETTLED {
                sys::memory::give_back();
            }
            let next = tokio::time::Instant::now() + BEAT_EVERY;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => break,
                    () = telemetry.alarm.notified() => break,
                    // No look at the threads, which have had no time to move.
                    () = telemetry.pressure.asked() => {
                        if telemetry.pressure.is_tight() {
                            sys::memory::trim();
                        }
                        telemetry.pressure.note(own_memory(), memory_max);
                    }
                }
            }
        }
    }

    /// Whether not even a few more descriptors can be had: one or two come free whenever a connection ends, and help nobody.
    fn exhausted(&self) -> Option<String> {
        let spare = [(); DESCRIPTORS_SPARE].map(|()| rustix::io::fcntl_dupfd_cloexec(self.watchdog.as_fd(), 3));
        let none = spare.iter().any(|one| matches!(one, Err(rustix::io::Errno::MFILE)));
        none.then(|| "it has no descriptors left".into())
    }
}

/// What a connection and a delivery or two need.
const DESCRIPTORS_SPARE: usize = 8;

/// How long another worker may take before the wish is repeated. Shorter than the watchdog, which is wound up again then.
const REPLACED_WITHIN: Duration = Duration::from_secs(8);

/// A subsystem that has panicked.
fn broken(telemetry: &Telemetry) -> Option<String> {
    let sick = telemetry.healths().into_iter().find(|health| !health.live())?;
    Some(sick.verdict().text)
}

/// A thread that has not moved for `LOOKS_MAX` looks.
fn hung(telemetry: &Telemetry, threads: &mut HashMap<String, (u64, u32)>) -> Option<String> {
    let mut hung = None;
    for (thread, count) in telemetry.healths().iter().flat_map(|health| health.beats()) {
        let (seen, still) = threads.entry(thread.clone()).or_insert((u64::MAX, 0));
        *still = if *seen == count { *still + 1 } else { 0 };
        *seen = count;
        if *still >= LOOKS_MAX {
            hung = Some(format!("its thread {thread} does not move"));
        }
    }
    hung
}

/// Resident memory that is not shared with others: what proc_pid_statm(5) calls resident, without the pages of files.
fn own_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.nth(1).unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}
