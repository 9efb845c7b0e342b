//! Side-by-side benchmarks: one case at a time against real peers, in turn, on this machine.
//!
//! In: a case's name (none runs them all), `--pairs N`, `--json FILE`, and from the environment `OUTRIGGER_BIN` (the
//! binary) and `OUTRIGGER_PEERS` (the directory of installed peers). Out: a table on stdout, progress on stderr, the
//! JSON. Bounds: every process has a time limit and is stopped by its PID, all traffic stays on 127.0.0.1, and all files
//! are in one scratch directory that is removed at the end. A result over its limit is shown and does not fail the run:
//! a benchmark on a shared machine informs, it does not gate.

mod app;
mod cases;
mod peers;
mod instructions;
mod load;
mod pace;
mod programs;
mod receiver;
mod report;
mod running;
mod scratch;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use cases::{CASES, Case};

fn main() -> ExitCode {
    if let Some(code) = app::run(std::env::args().skip(1)) {
        return code;
    }
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(fault) => {
            eprintln!("{fault}\n\n{}", usage_text());
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let mut reports = Vec::new();
    for case in &arguments.cases {
        eprintln!("{}: {}", case.name, case.measures);
        let report = (case.run)(arguments.pairs)?;
        println!("{}", report.table());
        reports.push(report.json());
    }
    if let Some(path) = &arguments.json {
        let report = serde_json::json!({ "cases": reports });
        let text = format!("{report:#}\n");
        std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

struct Arguments {
    cases: Vec<&'static Case>,
    pairs: usize,
    json: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self { cases: Vec::new(), pairs: 5, json: None };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--json" => {
                    let path = words.next().ok_or("--json needs a file name")?;
                    arguments.json = Some(PathBuf::from(path));
                }
                "--pairs" => {
                    let count = words.next().ok_or("--pairs needs a number")?;
                    arguments.pairs = match count.parse() {
                        Ok(pairs @ 1..=1000) => pairs,
                        _ => {
                            return Err(format!("--pairs `{count}` is not a number from 1 to 1000"));
                        }
                    };
                }
                name => {
                    let known = CASES.iter().find(|case| case.name == name);
                    arguments.cases.push(known.ok_or_else(|| format!("unknown case or option `{name}`"))?);
                }
            }
        }
        if arguments.cases.is_empty() {
            arguments.cases = CASES.iter().collect();
        }
        Ok(arguments)
    }
}

fn usage_text() -> String {
    let mut text = String::from("usage: bench [case…] [--pairs N] [--json FILE]\n\ncases:\n");
    for case in CASES {
        text.push_str(&format!("  {:14} {}\n", case.name, case.measures));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn no_case_means_every_case_with_five_pairs() {
        let arguments = parse("").expect("an empty command line is valid");
        assert_eq!((arguments.cases.len(), arguments.pairs), (CASES.len(), 5));
    }

    #[test]
    fn invalid_arguments_are_rejected_by_name() {
        for (line, word) in [("footprnt", "footprnt"), ("--pairs 0", "`0`"), ("--pairs x", "`x`"), ("--json", "--json")]
        {
            let fault = parse(line).err().expect("an invalid argument is rejected");
            assert!(fault.contains(word), "{line}: {fault}");
        }
    }
}
