//! All jobs under load while faults occur at random, one after another, for `E2E_SOAK` seconds: `cargo xtask soak`.
//! In: seconds and a seed. Out: a line for each fault, and the guarantees of `Busy` at the end. Bounded by the time, and by the
//! harness's `PATIENCE` for each fault.

use std::time::{Duration, Instant};

use crate::harness::busy::{BODY, Busy, NO_GIT, descriptors};
use crate::harness::git::published;
use crate::harness::load::Death;
use crate::harness::outrigger::{binary, configuration, upgrade};
use crate::harness::process::{Signal, anonymous_kib, send_signal};
use crate::harness::random::Random;
use crate::harness::{Answer, PATIENCE, SECOND, until};

/// The duration in CI.
const TIME: Duration = Duration::from_secs(30);

/// A worker that served for a second resets the restart backoff, so the next one starts without backoff.
const CALM: Duration = Duration::from_millis(1200);

/// Memory growth of the supervisor from the first worker to the last: the kernel counts some pages late.
const GROWTH_KIB: u64 = 200;

struct Soak {
    busy: Busy,
    binaries: [String; 2],
    random: Random,
    deaths: Vec<Death>,
    /// Replaced workers and lost responses of the receiver: lines in flight may arrive twice after each.
    repeats: usize,
    revision: usize,
    configurations: u64,
}

impl Soak {
    fn start() -> Option<Self> {
        let busy = Busy::start_with(&binary(), 2)?;
        let copy = |name| busy.scene.program(&format!("bin/{name}"), binary()).display().to_string();
        let binaries = [copy("even"), copy("odd")];
        Some(Self {
            busy,
            binaries,
            random: Random::seeded(),
            deaths: Vec::new(),
            repeats: 0,
            revision: 1,
            configurations: 0,
        })
    }

    fn fault(&mut self) -> &'static str {
        match self.random.below(7) {
            0 => {
                self.deaths.push(self.busy.kill_worker());
                self.repeats += 1;
                "the worker is killed"
            }
            1 => {
                let to = &self.binaries[self.random.below(2) as usize];
                let worker = self.busy.outrigger.worker();
                let (code, output) = upgrade(&self.busy.scene, Some(to));
                assert_eq!(code, 0, "{output}");
                self.busy.outrigger.await_other(worker, PATIENCE);
                self.repeats += 1;
                "another binary takes over"
            }
            2 => {
                let worker = self.busy.outrigger.worker();
                // Alternately even and odd, so the file always changes.
                self.configurations += 1;
                let every = format!("interval: {}ms", 500 + 2 * self.random.below(500) + self.configurations % 2);
                let body = BODY.replace("process: { interval: 1s }", &format!("process: {{ {every} }}"));
                self.busy.scene.write("outrigger.yaml", configuration(&self.busy.scene, &body));
                self.busy.outrigger.await_other(worker, PATIENCE);
                self.repeats += 1;
                "the configuration changes"
            }
            3 => self.respond_for_a_while(Answer::Status(503), "the receiver is unavailable"),
            4 => self.respond_for_a_while(Answer::Hang, "the receiver stalls"),
            5 => {
                let worker = self.busy.outrigger.worker();
                send_signal(worker, Signal::STOP);
                self.pause();
                send_signal(worker, Signal::CONT);
                "the worker is suspended"
            }
            _ => {
                self.revision += 1;
                self.busy.git.push(self.revision);
                let to = self.busy.scene.path("out/settings");
                until(PATIENCE, "the revision is published", || published(&to) == Ok(Some(self.revision)));
                "a revision is pushed"
            }
        }
    }

    fn respond_for_a_while(&mut self, answer: Answer, name: &'static str) -> &'static str {
        self.busy.receiver.answer(answer);
        self.pause();
        self.busy.receiver.answer(Answer::Accept);
        self.repeats += 1;
        name
    }

    /// Up to two seconds: the duration of a fault of a receiver.
    fn pause(&mut self) {
        // why: the fault is that nothing happens for a while
        std::thread::sleep(Duration::from_millis(100 + self.random.below(1900)));
    }
}

/// Guarantee: worker-failure-spares-the-app
#[test]
fn random_faults_cost_only_what_is_in_flight() {
    let seconds = std::env::var("E2E_SOAK").ok().and_then(|text| text.parse().ok());
    let until_then = Instant::now() + seconds.map_or(TIME, Duration::from_secs);
    let mut soak = need!(Soak::start(), NO_GIT);
    let supervisor = soak.busy.outrigger.pid();
    let (mut faults, mut before) = (0, (0, 0));
    while Instant::now() < until_then {
        let began = Instant::now();
        let fault = soak.fault();
        soak.busy.await_service(PATIENCE);
        soak.busy.assert_supervisor_is_clean();
        faults += 1;
        eprintln!("{fault}: {:?}, longest time without a response {:?}", began.elapsed(), soak.busy.longest_pause());
        until(PATIENCE + SECOND, "the restart backoff is reset", || began.elapsed() > CALM);
        if faults == 3 {
            before = (anonymous_kib(supervisor), descriptors(supervisor));
        }
    }
    let after = (anonymous_kib(supervisor), descriptors(supervisor));
    eprintln!("{faults} faults; supervisor: {before:?} KiB and file descriptors before, {after:?} after");
    assert!(faults < 4 || after.0 <= before.0 + GROWTH_KIB && after.1 == before.1, "{before:?}, then {after:?}");
    let Soak { busy, deaths, repeats, .. } = soak;
    let (fresh, kept) = busy.finish(repeats);
    fresh.assert_only_inside(&deaths);
    kept.assert_only_inside(&deaths);
}
