//! The program behind `cargo xtask fuzz`: one target or all, for a time. In: a target's name, `--for`, `--input`, `--seed`. Out:
//! a line per target, each finding with its file, and exit code 1 if there was one. Bound: the time is shared among the targets.

use config::unit::TimeSpan;
use fuzz::targets::{self, Target};
use fuzz::watch::{self, Job};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: cargo xtask fuzz [TARGET] [--for TIME] [--input FILE] [--seed NUMBER] [--all] [--findings DIR] [--corpus DIR]

  --for TIME       such as 30s or 5m, shared among all targets if no target is given [default: 60s]
  --input FILE     run this one input, such as a finding
  --seed NUMBER    the seed of the mutations; the same seed produces the same inputs
  --all            continue after a finding and find others
";

struct Arguments {
    target: Option<&'static Target>,
    time: Duration,
    seed: u64,
    input: Option<PathBuf>,
    find_all: bool,
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
        find_all: false,
        corpus: own.join("corpus"),
        findings: own.join("findings"),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value\n\n{USAGE}"));
        match word.as_str() {
            "--for" => arguments.time = TimeSpan::parse(value()?)?.0,
            "--seed" => arguments.seed = value()?.parse().map_err(|_| "`--seed` takes an integer")?,
            "--input" => arguments.input = Some(PathBuf::from(value()?)),
            "--corpus" => arguments.corpus = PathBuf::from(value()?),
            "--findings" => arguments.findings = PathBuf::from(value()?),
            "--all" => arguments.find_all = true,
            name => {
                let known = || targets::TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
                let target =
                    targets::named(name).ok_or_else(|| format!("unknown target `{name}`; targets: {}", known()))?;
                arguments.target = Some(target);
            }
        }
    }
    match (&arguments.input, arguments.target) {
        (Some(_), None) => Err("`--input` needs a target".into()),
        _ => Ok(arguments),
    }
}

/// Returns whether anything was found.
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
            find_all: arguments.find_all,
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
