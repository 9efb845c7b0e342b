//! `proxy-http1`: the CPU cost of one HTTP/1.1 request through the proxy, compared with HAProxy, nginx and Envoy.
//!
//! The proxy has one core for itself, load (wrk) and app (nginx) share another. Each run starts its proxy afresh, warms
//! it up for a second (counting instructions if supported) and then divides user and system time of all its processes by
//! the requests of three seconds. Rate, user share, resident memory and the 99th percentile are reported without limits:
//! they vary too much on two cores.

use std::path::PathBuf;
use std::process::Command;

use crate::instructions::Counter;
use crate::load::{Load, Outcome, Shape};
use crate::peers::{self, ENVOY, HAPROXY, NGINX};
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

pub fn run(pairs: usize) -> Result<Report, String> {
    let mut report = Report::new("proxy-http1", pairs, &PEERS);
    let scratch = Scratch::new()?;
    let counter = Counter::find(&scratch.fresh("perf")?);
    if let Err(reason) = &counter {
        report.remark(format!("instructions per request are not counted: {reason}"));
    }
    let rows = Rows::new(&mut report, counter.is_ok());
    let mut peers = Vec::new();
    for name in std::iter::once(OURS).chain(PEERS) {
        match peers::find(name) {
            Ok(program) => peers.push((name, program)),
            Err(reason) => report.remark(format!("{name} is missing: {reason}")),
        }
    }
    let setup = match Setup::create(&scratch, counter.ok()) {
        Ok(setup) => setup,
        Err(reason) => {
            report.remark(format!("nothing was measured: {reason}"));
            return Ok(report);
        }
    };
    let [proxy_core, load_core] = [setup.proxy_core, setup.load.core];
    report.remark(format!(
        "load: wrk -t1 -cN -d{LOAD_SECONDS}s on core {load_core}, the proxy alone on core {proxy_core}"
    ));
    for round in 0..pairs {
        if round > 0 && !peers.is_empty() {
            // Each round starts with another peer, so that drift of the machine favours none.
            peers.rotate_left(1);
        }
        for (load, (shape, connections, title)) in LOADS.into_iter().enumerate() {
            eprintln!("  round {} of {pairs}: {title}", round + 1);
            for (name, program) in &peers {
                match setup.measure(&scratch, name, program, shape, connections) {
                    Ok(run) => rows.record(&mut report, name, round, load, &run),
                    Err(reason) => report.remark(format!("{name}, {title}: {reason}")),
                }
            }
        }
    }
    Ok(report)
}

/// The environment that is the same for every proxy.
struct Setup {
    load: Load,
    counter: Option<Counter>,
    proxy_core: usize,
    app_port: u16,
    _app: Running,
}

/// One run of one proxy.
struct Run {
    cpu: Cpu,
    outcome: Outcome,
    peak_rss: u64,
    instructions: Option<f64>,
}

impl Setup {
    fn create(scratch: &Scratch, counter: Option<Counter>) -> Result<Self, String> {
        let [proxy_core, core] = two_cores()?;
        let load = Load { wrk: programs::system("wrk")?, taskset: programs::system("taskset")?, core };
        let nginx = programs::system(NGINX)?;
        let [app_port] = free_ports()?;
        let directory = scratch.fresh("app")?;
        let command = pinned(&load.taskset, core, &peers::app(&nginx, &directory, app_port)?);
        let mut app = Running::start(command, &directory)?;
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
    ) -> Result<Run, String> {
        let directory = scratch.fresh(name)?;
        let [port] = free_ports()?;
        let command = peers::proxy(name, program, &directory, port, self.app_port)?;
        let mut proxy = Running::start(pinned(&self.load.taskset, self.proxy_core, &command), &directory)?;
        proxy.ready(port, "/")?;
        let instructions = match &self.counter {
            None => self.load.run(port, shape, connections, WARM_UP_SECONDS, &directory).map(|_| None)?,
            Some(counter) => {
                let target = (port, shape, connections, WARM_UP_SECONDS);
                Some(self.load.run_counted(counter, &proxy.processes(&[]), target, &directory)?)
            }
        };
        let before = usage::cpu(&proxy.processes(&[]));
        let outcome = self.load.run(port, shape, connections, LOAD_SECONDS, &directory)?;
        let pids = proxy.processes(&[]);
        let cpu = usage::cpu(&pids).since(before);
        Ok(Run { cpu, outcome, peak_rss: usage::peak_rss(&pids)?, instructions })
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

    fn record(&self, report: &mut Report, name: &'static str, round: usize, load: usize, run: &Run) {
        let total = run.cpu.total().as_secs_f64();
        let values = [
            (&self.cpu, Some(total * 1e6 / run.outcome.requests)),
            (&self.instructions, run.instructions),
            (&self.rate, Some(run.outcome.per_second)),
            (&self.user, (total > 0.0).then(|| run.cpu.user.as_secs_f64() / total * 100.0)),
            (&self.memory, Some(run.peak_rss as f64 / 1e6)),
            (&self.p99, Some(run.outcome.p99_ms)),
        ];
        for (rows, value) in values {
            if let (Some(row), Some(value)) = (rows.get(load), value) {
                report.record(*row, name, round, value);
            }
        }
    }
}

/// The same command on one core; `taskset` executes it by exec, so the PID is the program's.
fn pinned(taskset: &PathBuf, core: usize, command: &Command) -> Command {
    let mut on_core = Command::new(taskset);
    on_core.arg("-c").arg(core.to_string()).arg(command.get_program()).args(command.get_args());
    on_core
}
