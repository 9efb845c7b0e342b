//! The cost of a line of the app: CPU of the supervisor, which forwards it, and of both processes, when it is a record too.
//!
//! The app writes a million lines of 100 bytes to its stdout, and the benchmark reads them from Outrigger's. The clock
//! runs from the moment at which the app may write until the last byte has been read and the ledger shows that every
//! line went to a blackhole sink. dumb-init and tini pass the file descriptor itself to the app: their cost is shown for
//! comparison.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::INITS;
use super::parts::Part;
use super::scene::{App, AtWork, Scene, await_until};
use crate::app::{self, Gate, LINE_BYTES};
use crate::report::{OURS, Report, RowId};
use crate::running::json;
use crate::usage;

const LINES: u64 = 1_000_000;
const TIME_LIMIT: Duration = Duration::from_secs(60);
const WRITES: [(&str, usize); 2] = [("a write each", LINE_BYTES), ("writes of 4 KiB", 4096)];

pub struct Rows {
    supervisor: Vec<RowId>,
    both: Vec<RowId>,
}

impl Rows {
    pub fn new(report: &mut Report) -> Self {
        let mut rows = |process: &str, peers: &[&'static str]| -> Vec<RowId> {
            let row = |(writes, _): (&str, usize)| {
                let row = report.row(format!("CPU per line, {writes}, {process}"), "ns", 0);
                report.about(row, peers)
            };
            WRITES.map(row).to_vec()
        };
        Self { supervisor: rows("supervisor", &INITS), both: rows("supervisor and worker", &[]) }
    }

    pub fn measure(&self, scene: &Scene, report: &mut Report, round: usize) {
        for (place, (title, bytes)) in WRITES.into_iter().enumerate() {
            for (name, _) in scene.present(&[&[OURS], &INITS[..]].concat()) {
                eprintln!("    {name}, {LINES} lines, {title}");
                let outcome = run(scene, name, bytes);
                match outcome {
                    Err(reason) => report.remark(format!("{name}, lines: {reason}")),
                    Ok(cost) => {
                        report.record(self.supervisor[place], name, round, per_line(cost.supervisor));
                        if let Some(both) = cost.both {
                            report.record(self.both[place], name, round, per_line(both));
                        }
                        if cost.dropped > 0 {
                            report.remark(format!(
                                "{name}, {title}: {} of {LINES} lines found the ring full",
                                cost.dropped
                            ));
                        }
                    }
                }
            }
        }
    }
}

struct Cost {
    /// Of the process that started the app.
    supervisor: Duration,
    /// With the worker, if there is one.
    both: Option<Duration>,
    dropped: u64,
}

fn per_line(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9 / LINES as f64
}

fn run(scene: &Scene, name: &str, bytes: usize) -> Result<Cost, String> {
    let program = scene.program(name).ok_or("it is missing")?;
    let gate = Gate::new(&scene.scratch.fresh("gate")?)?;
    let app = App::of(app::lines(LINES, bytes, &gate)?);
    let (it, stdout) = match name {
        OURS => scene.wrap_piped(program, &[Part::Capture], app)?,
        init => scene.init_piped(init, program, app)?,
    };
    let drain = Drain::start(stdout);
    let cost = run_through(&it, &gate, &drain).map_err(|fault| it.explain(fault));
    // Its exit closes the pipe, and that ends the thread.
    drop(it);
    drain.thread.join().map_err(|_| "the reader has panicked".to_owned())?;
    cost
}

fn run_through(it: &AtWork, gate: &Gate, drain: &Drain) -> Result<Cost, String> {
    let mut held = None;
    await_until("the app at its gate", || {
        held = gate.held();
        held.is_some()
    })?;
    let (supervisor, both) = ([it.running.pid()], it.processes());
    let before = (usage::threads(&supervisor), usage::threads(&both));
    drop(held);
    drain.all_read.recv_timeout(TIME_LIMIT).map_err(|_| format!("{LINES} lines took more than {TIME_LIMIT:?}"))?;
    let has_worker = both.len() > 1;
    let mut dropped = 0;
    if has_worker {
        await_until("the end of the last line in the ledger", || match settled(it.ports.admin) {
            Some((settled, lost)) => {
                dropped = lost;
                settled >= LINES
            }
            None => false,
        })?;
    }
    let spent = usage::threads(&supervisor).since(&before.0).on_core;
    let spent_by_both = usage::threads(&both).since(&before.1).on_core;
    Ok(Cost { supervisor: spent, both: has_worker.then_some(spent_by_both), dropped })
}

/// Lines that the sink has accepted or that are counted as dropped; and the dropped ones.
fn settled(admin: u16) -> Option<(u64, u64)> {
    let ledger = json(admin, "/ledger")?;
    let rows = ledger.get("rows")?.as_array()?;
    let mut delivered = 0;
    let mut dropped = 0;
    for row in rows {
        if row.get("kind")? == "sink" {
            delivered += row.get("delivered")?.as_u64()?;
        }
        let reasons = row.get("dropped")?.as_object()?;
        dropped += reasons.values().filter_map(serde_json::Value::as_u64).sum::<u64>();
    }
    Some((delivered + dropped, dropped))
}

/// The reader of Outrigger's stdout.
struct Drain {
    /// Receives one message when the last byte has been read.
    all_read: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Drain {
    fn start(mut stdout: ChildStdout) -> Self {
        let (done, all_read) = channel();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            let mut missing = LINES as usize * LINE_BYTES;
            while let Ok(size @ 1..) = stdout.read(&mut buffer) {
                missing = missing.saturating_sub(size);
                if missing == 0 {
                    // The receiver is dropped once the time limit has expired.
                    done.send(()).ok();
                }
            }
        });
        Self { all_read, thread }
    }
}
