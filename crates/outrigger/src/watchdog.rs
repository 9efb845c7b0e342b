//! Self-check of this worker: its threads make progress, its memory is within the limit, and it has free file descriptors. In:
//! heartbeats of threads, the kernel's accounting of this process. Out: the watchdog timer, re-armed at each check; memory
//! pressure for the components that can use less; a request for a replacement if this worker is unhealthy. None of the checks
//! wakes the supervisor.

use crate::control::Control;
use crate::telemetry::{MEMORY_LIMIT, MEMORY_PRESSURE, MEMORY_PRESSURE_SECONDS, MEMORY_USED};
use base::runtime::scope::BEAT_EVERY;
use base::telemetry::{Counter, Telemetry};
use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use supervisor::message::ToSupervisor;
use supervisor::plan::WATCHDOG;
use supervisor::restarts::RestartReason;

/// Checks without a heartbeat after which a thread counts as hung.
const CHECKS_MAX: u32 = 3;

/// The check at which the start is complete: everything has been read and connected once.
const SETTLED: u32 = 3;

/// Consecutive checks above the memory limit after which this worker is replaced: a burst may end.
const OVER_MAX: u32 = 3;

/// The percentage of the limit above which a check releases the allocator's unused memory, for instance after a burst.
const TRIM_PERCENT: u64 = 50;

#[derive(Clone)]
pub struct SelfCheck {
    watchdog: Rc<OwnedFd>,
}

impl SelfCheck {
    pub fn new(watchdog: OwnedFd) -> SelfCheck {
        SelfCheck { watchdog: Rc::new(watchdog) }
    }

    /// Checks periodically, and immediately when a subsystem raises the alarm.
    pub async fn beat(self, telemetry: Telemetry, control: Rc<Control>, memory_max: u64) {
        let mut threads: HashMap<String, (u64, u32)> = HashMap::new();
        let (mut over, mut checks, mut had_pressure) = (0, 0, false);
        let used = telemetry.gauge(&MEMORY_USED, &[]);
        let pressure = telemetry.gauge(&MEMORY_PRESSURE, &[]);
        let mut pressure_time = PressureTime::new(&telemetry);
        telemetry.gauge(&MEMORY_LIMIT, &[]).set(memory_max);
        loop {
            let broken = broken(&telemetry).or_else(|| hung(&telemetry, &mut threads)).or_else(|| self.exhausted());
            let mut bytes = sys::memory::private_bytes();
            if bytes >= memory_max / 100 * TRIM_PERCENT {
                sys::memory::trim();
                bytes = sys::memory::private_bytes();
            }
            used.set(bytes);
            over = if telemetry.pressure.note(bytes, memory_max) { over + 1 } else { 0 };
            let has_pressure = telemetry.pressure.has_pressure();
            pressure.set(u64::from(has_pressure));
            pressure_time.note(has_pressure);
            if std::mem::replace(&mut had_pressure, has_pressure) != has_pressure {
                let change = match has_pressure {
                    true => "memory pressure: pausing sources and new connections",
                    false => "memory pressure ended",
                };
                tracing::warn!(bytes, limit = memory_max, "{change}");
            }
            let too_large = || {
                let text = format!("memory usage {bytes} exceeds limits.memory ({memory_max} bytes)");
                (over >= OVER_MAX).then_some((RestartReason::MemoryLimit, text))
            };
            // The main thread makes progress if it gets here; the other threads are checked above.
            if let Err(error) = supervisor::worker::arm_watchdog(&self.watchdog, WATCHDOG) {
                tracing::error!(%error, "cannot re-arm the watchdog");
            }
            if let Some((reason, error)) = broken.or_else(too_large).filter(|_| !control.is_handing_over()) {
                tracing::error!(reason = reason.as_str(), error, "worker unhealthy; requesting a replacement");
                control.send(ToSupervisor::Replace { reason });
                // Until then this worker keeps serving.
                tokio::time::sleep(REPLACED_WITHIN).await;
                continue;
            }
            checks += 1;
            if checks == SETTLED {
                sys::memory::release_startup_pages();
            }
            let next = tokio::time::Instant::now() + BEAT_EVERY;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => break,
                    () = telemetry.alarm.notified() => break,
                    // Threads are not checked here, since they had no time for a heartbeat.
                    () = telemetry.pressure.check_requested() => {
                        if telemetry.pressure.has_pressure() {
                            sys::memory::trim();
                        }
                        telemetry.pressure.note(sys::memory::private_bytes(), memory_max);
                    }
                }
            }
        }
    }

    /// Whether not even a few more file descriptors are available: one or two, freed by a closed connection, are not enough.
    fn exhausted(&self) -> Option<(RestartReason, String)> {
        let spare = [(); DESCRIPTORS_SPARE].map(|()| rustix::io::fcntl_dupfd_cloexec(self.watchdog.as_fd(), 3));
        let exhausted = spare.iter().any(|one| matches!(one, Err(rustix::io::Errno::MFILE)));
        exhausted.then(|| (RestartReason::DescriptorLimit, "too many open files (out of file descriptors)".into()))
    }
}

/// The need of a connection and one or two deliveries.
const DESCRIPTORS_SPARE: usize = 8;

/// How long another worker may take before the replacement is requested again. Shorter than the watchdog, which is then re-armed.
const REPLACED_WITHIN: Duration = Duration::from_secs(8);

/// Counts the time under memory pressure in full seconds.
struct PressureTime {
    seconds: Counter,
    since: Option<Instant>,
    rest: Duration,
}

impl PressureTime {
    fn new(telemetry: &Telemetry) -> PressureTime {
        let seconds = telemetry.counter(&MEMORY_PRESSURE_SECONDS, &[]);
        PressureTime { seconds, since: None, rest: Duration::ZERO }
    }

    fn note(&mut self, is_under_pressure: bool) {
        let now = Instant::now();
        let since = std::mem::replace(&mut self.since, is_under_pressure.then_some(now));
        self.rest += since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.seconds.add(self.rest.as_secs());
        self.rest = Duration::from_nanos(self.rest.subsec_nanos().into());
    }
}

/// A subsystem that has panicked.
fn broken(telemetry: &Telemetry) -> Option<(RestartReason, String)> {
    let failed = telemetry.healths().into_iter().find(|health| !health.live())?;
    Some((RestartReason::Panic, failed.current().message))
}

/// A thread without a heartbeat for `CHECKS_MAX` checks.
fn hung(telemetry: &Telemetry, threads: &mut HashMap<String, (u64, u32)>) -> Option<(RestartReason, String)> {
    let mut hung = None;
    for (thread, count) in telemetry.healths().iter().flat_map(|health| health.beats()) {
        let (seen, missed) = threads.entry(thread.clone()).or_insert((u64::MAX, 0));
        *missed = if *seen == count { *missed + 1 } else { 0 };
        *seen = count;
        if *missed >= CHECKS_MAX {
            hung = Some((RestartReason::Hung, format!("thread {thread} is stalled")));
        }
    }
    hung
}
