//! `cargo xtask test`: the peers, the product, the unit tests, the examples in documentation, the end-to-end tests.
//! In: words after `--`, which select tests by name. Out: all output as it arrives, then the names of failures and skips,
//! then one line `N passed, N failed, N skipped`. Bound: nothing is run twice, and no failure stops the runs after it.

use crate::shell::{self, Outcome};
use crate::tally::Tally;
use crate::tidy::Workspace;
use crate::{peers, product};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// The end-to-end tests share two cores with everything that they start.
const END_TO_END: &str = "e2e";
const END_TO_END_THREADS: &str = "--test-threads=2";
/// Skips that CI accepts, one test name a line.
const ALLOWED_SKIPS: &str = "e2e/allowed-skips.txt";

pub fn run(arguments: &[String]) -> Outcome {
    let filters = match arguments.split_first() {
        None => &[],
        Some((dashes, filters)) if dashes == "--" => filters,
        Some((word, _)) => return Err(format!("unknown argument `{word}`. help: cargo xtask test -- {word}")),
    };
    let (tally, outcome) = run_all(filters)?;
    if let Err(message) = outcome {
        eprintln!("xtask: {message}");
        println!("{tally}");
        return Err(String::new());
    }
    println!("{tally}");
    Ok(())
}

/// Runs everything and prints all but the closing line, which the caller prints at the very end.
pub fn run_all(filters: &[String]) -> Outcome<(Tally, Outcome)> {
    peers::run(&[])?;
    let skips = shell::target().join("skipped-tests.txt");
    fs::write(&skips, "").map_err(|error| format!("cannot write {}: {error}", skips.display()))?;

    let mut tally = Tally::default();
    let built = product::for_tests().and_then(|outrigger| {
        product::examples()?;
        Ok((outrigger, product::with_faults()?))
    });
    match built {
        Ok((outrigger, faults)) => {
            for mut command in commands(filters)? {
                command.env("OUTRIGGER_BIN", &outrigger).env("OUTRIGGER_FAULTS_BIN", &faults);
                run_one(command, &skips, &mut tally)?;
            }
        }
        Err(message) => tally.fail(message),
    }
    tally.skips(&fs::read_to_string(&skips).unwrap_or_default());
    print!("{}", tally.names());
    let outcome = tally.outcome().and_then(|()| check_skips(&tally));
    Ok((tally, outcome))
}

/// Each command builds the complete workspace, so that each library is compiled once, with one set of features.
fn commands(filters: &[String]) -> Outcome<Vec<Command>> {
    let everything = ["test", "--workspace", "--profile", "ci", "--no-fail-fast"];
    let mut units = shell::cargo(&everything);
    units.args(["--lib", "--bins"]);
    let members = Workspace::load()?.members;
    for test in members.iter().flat_map(|member| &member.tests).filter(|test| *test != END_TO_END) {
        units.args(["--test", test]);
    }
    let mut examples = shell::cargo(&everything);
    examples.arg("--doc");
    let mut end_to_end = shell::cargo(&everything);
    end_to_end.args(["--test", END_TO_END]);

    let mut commands = vec![units, examples, end_to_end];
    for command in &mut commands {
        command.arg("--").args(filters);
    }
    if let Some(end_to_end) = commands.last_mut() {
        end_to_end.arg(END_TO_END_THREADS);
    }
    Ok(commands)
}

/// Forwards the output line by line and counts the results.
fn run_one(mut command: Command, skips: &Path, tally: &mut Tally) -> Outcome {
    let shown = shell::show(&command);
    println!("\n== {shown}");
    peers::offer(&mut command);
    command.env("OUTRIGGER_SKIPS", skips);
    let failed_before = tally.failed();

    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|error| format!("`{shown}` could not be started: {error}"))?;
    let output = child.stdout.take().ok_or("a piped stdout is missing")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.map_err(|error| format!("cannot read from `{shown}`: {error}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.line(&line);
    }
    let status = child.wait().map_err(|error| format!("cannot wait for `{shown}`: {error}"))?;
    // A failed build or a killed test program counts no test, and is a failure nevertheless.
    if !status.success() && tally.failed() == failed_before {
        tally.fail(format!("`{shown}` exited without a result: {status}"));
    }
    Ok(())
}

/// In CI a missing peer must not go unnoticed.
fn check_skips(tally: &Tally) -> Outcome {
    if std::env::var_os("CI").is_none_or(|value| value != "true") {
        return Ok(());
    }
    let allowed = fs::read_to_string(shell::root().join(ALLOWED_SKIPS)).unwrap_or_default();
    match tally.skips_not_in(&allowed).as_slice() {
        [] => Ok(()),
        names => Err(format!(
            "skipped, but not listed in {ALLOWED_SKIPS}: {}. help: fix the peer, or list the test with its reason",
            names.join(", ")
        )),
    }
}
