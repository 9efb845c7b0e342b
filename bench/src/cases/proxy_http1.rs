//! `proxy-http1`: what one HTTP/1.1 request through the proxy costs in CPU, beside HAProxy, nginx and Envoy.
//!
//! The proxy runs alone on one core, load (wrk) and app (nginx) on another. Each run starts its proxy afresh, warms it
//! up for a second (counting instructions where that works) and then charges user and system time of all its processes
//! to the requests of three seconds. Rate, user share, resident memory and the 99th percentile are reported, not
//! judged: two cores cannot hold them still.

use std::path::PathBuf;
use std::process::Command;

use crate::contenders::{self, ENVOY, HAPROXY, NGINX};
use crate::instructions::Counter;
use crate::load::{Load, Outcome, Shape};
use crate::programs;
use crate::report::{Limit, OURS, Report, RowId};
use crate::running::Running;
use crate::scratch::{Scratch, free_ports, two_cores};
use crate::usage::{self, Cpu};

const PEERS: [&str; 3] = [HAPROXY, NGINX, ENVOY];
const WARM_UP_SECONDS: u64 = 1;
const LOAD_SECONDS: u64 = 3;

const LOADS: [(Shape, u32, &str); 5] = [
    (Shape::Plain, 32, "32 connections"),
    (Shape::Plain, 64, "64 connections"),
    (Shape::Plain, 256, "256 connections"),
    (Shape::ManyHeaders, 64, "64, 20 headers"),
    (Shape::Post, 64, "64, POST 4 KiB"),
];

/// covers: foundation 10, foundation 17
pub fn run(pairs: usize) -> Result<Report, String> {
    let mut report = Report::new("proxy-http1", pairs, &PEERS);
    let scratch = Scratch::new()?;
    let counter = Counter::find(&scratch.fresh("perf")?);
    if let Err(reason) = &counter {
        report.remark(format!("instructions per request are not counted: {reason}"));
    }
    let rows = Rows::new(&mut report, counter.is_ok());
    let mut contenders = Vec::new();
    for name in std::iter::once(OURS).chain(PEERS) {
        match contenders::find(name) {
            Ok(program) => contenders.push((name, program)),
            Err(reason) => report.remark(format!("{name} is missing: {reason}")),
        }
    }
    let track = match Track::lay(&scratch, counter.ok()) {
        Ok(track) => track,
        Err(reason) => {
            report.remark(format!("nothing was measured: {reason}"));
            return Ok(report);
        }
    };
    let [proxy_core, load_core] = [track.proxy_core, track.load.core];
    report.remark(format!(
        "load: wrk -t1 -cN -d{LOAD_SECONDS}s on core {load_core}, the proxy alone on core {proxy_core}"
    ));
    for round in 0..pairs {
        if round > 0 && !contenders.is_empty() {
            // Each round opens with another contender, so that a machine that drifts favours none.
            contenders.rotate_left(1);
        }
        for (load, (shape, connections, title)) in LOADS.into_iter().enumerate() {
            eprintln!("  round {} of {pairs}: {title}", round + 1);
            for (name, program) in &contenders {
                match track.measure(&scratch, name, program, shape, connections) {
                    Ok(lap) => rows.record(&mut report, name, round, load, &lap),
                    Err(reason) => report.remark(format!("{name}, {title}: {reason}")),
                }
            }
        }
    }
    Ok(report)
}

/// What stays the same under every proxy.
struct Track {
    load: Load,
    counter: Option<Counter>,
    proxy_core: usize,
    app_port: u16,
    _app: Running,
}

/// One run of one proxy.
struct Lap {
    cpu: Cpu,
    outcome: Outcome,
    peak_rss: u64,
    instructions: Option<f64>,
}

impl Track {
    fn lay(scratch: &Scratch, counter: Option<Counter>) -> Result<Self, String> {
        let [proxy_core, core] = two_cores()?;
        let load = Load { wrk: programs::system("wrk")?, taskset: programs::system("taskset")?, core };
        let nginx = programs::system(NGINX)?;
        let [app_port] = free_ports()?;
        let folder = scratch.fresh("app")?;
        let command = pinned(&load.taskset, core, &contenders::app(&nginx, &folder, app_port)?);
        let mut app = Running::start(command, &folder)?;
        app.ready(app_port, "/")?;
        Ok(Self { load, counter, proxy_core, app_port, _app: app })
    }

    fn measure(
        &self,
        scratch: &Scratch,
        name: &str,
        program: &std::path::Path,
        shape: Shape,
        connections: u32,
    ) -> Result<Lap, String> {
        let folder = scratch.fresh(name)?;
        let [port] = free_ports()?;
        let command = contenders::proxy(name, program, &folder, port, self.app_port)?;
        let mut proxy = Running::start(pinned(&self.load.taskset, self.proxy_core, &command), &folder)?;
        proxy.ready(port, "/")?;
        let instructions = match &self.counter {
            None => self.load.run(port, shape, connections, WARM_UP_SECONDS, &folder).map(|_| None)?,
            Some(counter) => {
                let target = (port, shape, connections, WARM_UP_SECONDS);
                Some(self.load.run_counted(counter, &proxy.processes(&[]), target, &folder)?)
            }
        };
        let before = usage::cpu(&proxy.processes(&[]));
        let outcome = self.load.run(port, shape, connections, LOAD_SECONDS, &folder)?;
        let pids = proxy.processes(&[]);
        let cpu = usage::cpu(&pids).since(before);
        Ok(Lap { cpu, outcome, peak_rss: usage::peak_rss(&pids)?, instructions })
    }
}

/// The rows of each measure, one for each load.
struct Rows {
    cpu: Vec<RowId>,
    instructions: Vec<RowId>,
    rate: Vec<RowId>,
    user: Vec<RowId>,
    memory: Vec<RowId>,
    p99: Vec<RowId>,
}

impl Rows {
    fn new(report: &mut Report, counted: bool) -> Self {
        let cpu = LOADS.map(|(shape, connections, title)| {
            let limits = match (shape, connections) {
                (Shape::Plain, 64) => vec![Limit::Ratio(HAPROXY, 1.0), Limit::Ratio(ENVOY, 0.3)],
                _ => Vec::new(),
            };
            report.limited_row(format!("CPU per request, {title}"), "µs", 1, limits)
        });
        let mut each = |measure: &str, unit, decimals| -> Vec<RowId> {
            LOADS.iter().map(|load| report.row(format!("{measure}, {}", load.2), unit, decimals)).collect()
        };
        Self {
            cpu: cpu.to_vec(),
            instructions: if counted { each("instructions per request", "", 0) } else { Vec::new() },
            rate: each("requests", "1/s", 0),
            user: each("user share of CPU", "%", 0),
            memory: each("peak RSS", "MB", 1),
            p99: each("99th percentile", "ms", 2),
        }
    }

    fn record(&self, report: &mut Report, name: &'static str, round: usize, load: usize, lap: &Lap) {
        let total = lap.cpu.total().as_secs_f64();
        let figures = [
            (&self.cpu, Some(total * 1e6 / lap.outcome.requests)),
            (&self.instructions, lap.instructions),
            (&self.rate, Some(lap.outcome.per_second)),
            (&self.user, (total > 0.0).then(|| lap.cpu.user.as_secs_f64() / total * 100.0)),
            (&self.memory, Some(lap.peak_rss as f64 / 1e6)),
            (&self.p99, Some(lap.outcome.p99_ms)),
        ];
        for (rows, figure) in figures {
            if let (Some(row), Some(figure)) = (rows.get(load), figure) {
                report.record(*row, name, round, figure);
            }
        }
    }
}

/// The same command on one core; `taskset` becomes it by exec, so the pid is the program's.
fn pinned(taskset: &PathBuf, core: usize, command: &Command) -> Command {
    let mut on_core = Command::new(taskset);
    on_core.arg("-c").arg(core.to_string()).arg(command.get_program()).args(command.get_args());
    on_core
}
