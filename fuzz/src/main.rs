//! The program behind `cargo xtask fuzz`: one target or all, for a time. In: a target's name, `--for`, `--input`, `--seed`. Out: a
//! line per target, each finding with its file, and exit code 1 where there was one. Bound: the time is shared among the targets.

use config::unit::TimeSpan;
use fuzz::targets::{self, Target};
use fuzz::watch::{self, Job};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: cargo xtask fuzz [TARGET] [--for TIME] [--input FILE] [--seed NUMBER] [--all] [--findings DIR] [--corpus DIR]

  --for TIME       such as 30s or 5m, shared among all targets where none is named; 60s where left out
  --input FILE     run this one input, such as a finding
  --seed NUMBER    the seed of the mutations; the same seed makes the same inputs
  --all            go on after a finding and look for others
";

struct Arguments {
    target: Option<&'static Target>,
    time: Duration,
    seed: u64,
    input: Option<PathBuf>,
    go_on: bool,
    corpus: PathBuf,
    findings: PathBuf,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match parse(&words).and_then(|arguments| run(&arguments)) {
        Ok(true) => ExitCode::FAILURE,
        Ok(false) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("fuzz: {message}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut arguments = Arguments {
        target: None,
        time: Duration::from_secs(60),
        seed: 1,
        input: None,
        go_on: false,
        corpus: own.join("corpus"),
        findings: own.join("findings"),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value\n\n{USAGE}"));
        match word.as_str() {
            "--for" => arguments.time = TimeSpan::parse(value()?)?.0,
            "--seed" => arguments.seed = value()?.parse().map_err(|_| "`--seed` takes a whole number")?,
            "--input" => arguments.input = Some(PathBuf::from(value()?)),
            "--corpus" => arguments.corpus = PathBuf::from(value()?),
            "--findings" => arguments.findings = PathBuf::from(value()?),
            "--all" => arguments.go_on = true,
            name => {
                let known = || targets::TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
                let target = targets::named(name).ok_or_else(|| format!("there is no target `{name}`: {}", known()))?;
                arguments.target = Some(target);
            }
        }
    }
    match (&arguments.input, arguments.target) {
        (Some(_), None) => Err("`--input` needs the name of its target".into()),
        _ => Ok(arguments),
    }
}

/// Answers whether anything was found.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let all: Vec<&Target> = arguments.target.map_or(targets::TARGETS.iter().collect(), |one| vec![one]);
    let share = arguments.time / all.len().max(1) as u32;
    let watched = std::env::var_os(watch::WATCHED).map(PathBuf::from);
    let mut found = false;
    for target in all {
        let job = Job {
            target,
            time: share,
            seed: arguments.seed,
            input: arguments.input.clone(),
            go_on: arguments.go_on,
            corpus: arguments.corpus.clone(),
            findings: arguments.findings.clone(),
        };
        found |= match &watched {
            Some(desk) => watch::work(&job, desk).map(|code| code != 0),
            None => watch::watch(&job),
        }
        .map_err(|error| error.to_string())?;
    }
    Ok(found)
}
