//! `cargo xtask <task>`: every task that a developer or CI runs; nothing else implements them.
//! In: the task's name and its arguments. Out: readable lines, and exit code 0 or 1.
//! Bound: it works in the repository it was compiled from and writes nothing outside it but Debian packages.

mod bench;
mod ci;
mod fuzz;
mod image;
mod links;
mod peers;
mod product;
mod schema;
mod shell;
mod soak;
mod tables;
mod tally;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <task>

  peers                          install the real peers of tests and benchmarks that are missing
  tidy [--fix] [--quick]         check the project's rules; --fix applies the unambiguous fixes, --quick builds nothing
  test [-- FILTER…]              all tests, unit and end to end, with the peers they need
  ci                             everything that must hold before a change lands
  bench [CASE] [--json FILE] …   a benchmark compared with its peers, from a release build
  fuzz [TARGET] [--for TIME] …   hostile input for each text and message that comes from outside
  soak [--for TIME]              all four jobs under load with random faults [default: 10m]
  schema [--check]               write docs/outrigger.schema.json, or check that it is current
  image --binary PATH …          the container image, from an existing build of the program
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match arguments.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", [].as_slice()),
    };
    let outcome = match task {
        "peers" => peers::run(rest),
        "tidy" => tidy::run(rest),
        "test" => test::run(rest),
        "ci" => ci::run(rest),
        "bench" => bench::run(rest),
        "fuzz" => fuzz::run(rest),
        "soak" => soak::run(rest),
        "schema" => schema::run(rest),
        "image" => image::run(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        unknown => Err(format!("unknown task `{unknown}`\n\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("xtask: {message}");
            }
            ExitCode::FAILURE
        }
    }
}
