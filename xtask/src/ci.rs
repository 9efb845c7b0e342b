//! `cargo xtask ci`: everything that must hold before a change lands, step by step.
//! In: nothing. Out: each step's output under its name, a summary with times, and the closing line of the tests last.
//! Bound: a failed step does not stop the next one, unless the next one depends on it.

use crate::shell::{self, Outcome};
use crate::tally::Tally;
use crate::{fuzz, links, product, schema, test, tidy};
use std::process::Command;
use std::time::{Duration, Instant};

/// The demo's check takes seconds; a hung one must not use up the CI time of the steps after it.
const DEMO_LIMIT: Duration = Duration::from_secs(180);

/// Arguments that select the one profile in which everything is checked.
const PROFILE: [&str; 2] = ["--profile", "ci"];

struct Step {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`cargo xtask ci` takes no argument, but was given `{unknown}`"));
    }
    let mut tally = None;
    let steps = [
        step("format", || shell::run(&mut shell::cargo(&["fmt", "--all", "--", "--check"]))),
        step("clippy", clippy),
        step("tidy", || tidy::run(&[])),
        step("test", || {
            let (counted, outcome) = test::run_all(&[])?;
            tally = Some(counted);
            outcome
        }),
        step("fuzz", fuzz::for_ci),
        step("demo", demo),
        step("schema", schema::check_if_written),
        step("documentation", documentation),
        step("links", || links::run(&[])),
    ];
    summary(&steps, tally)
}

fn step(name: &'static str, work: impl FnOnce() -> Outcome) -> Step {
    println!("\n=== {name}");
    let start = Instant::now();
    let outcome = work();
    if let Err(message) = &outcome {
        println!("=== {name} failed: {message}");
    }
    Step { name, took: start.elapsed(), outcome }
}

fn clippy() -> Outcome {
    let mut clippy = shell::cargo(&["clippy", "--workspace", "--all-targets"]);
    shell::run(clippy.args(PROFILE).args(["--", "-D", "warnings"]))?;
    let mut faults =
        shell::cargo(&["clippy", "-p", product::NAME, "--bin", product::FAULTS, "--features", "fault-injection"]);
    shell::run(faults.args(PROFILE).args(["--", "-D", "warnings"]))
}

fn demo() -> Outcome {
    let outrigger = product::for_tests()?;
    shell::run_within(Command::new(outrigger).args(["demo", "--check"]).current_dir(shell::root()), DEMO_LIMIT)
}

fn documentation() -> Outcome {
    let mut doc = shell::cargo(&["doc", "--workspace", "--no-deps"]);
    shell::run(doc.args(PROFILE).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The closing line of the tests is printed last, since some readers only see the end of the output.
fn summary(steps: &[Step], tally: Option<Tally>) -> Outcome {
    println!("\n=== summary");
    for Step { name, took, outcome } in steps {
        let result = match outcome {
            Ok(()) => "ok".to_string(),
            Err(message) => format!("FAILED: {message}"),
        };
        println!("{name:<14} {:>7.1} s  {result}", took.as_secs_f64());
    }
    if let Some(tally) = tally {
        print!("{}", tally.names());
        println!("{tally}");
    }
    match steps.iter().any(|step| step.outcome.is_err()) {
        true => Err(String::new()),
        false => Ok(()),
    }
}
