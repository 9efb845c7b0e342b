//! Counterpart of `tests/sandbox.rs`: a process with one thread that enters the sandbox and makes attempts. In: a scenario, its
//! own directory with `in` (granted) and `out` (not granted), and further arguments of the scenario. Out: a line per attempt,
//! with its name and `ok` or the errno, and the JSON of what is enforced. Limits: it exits; the test sets a timeout.

mod programs;
mod refusals;
mod works;

use sandbox::{Grants, Holds};
use std::io;
use std::path::{Path, PathBuf};

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [scenario, directory, rest @ ..] = given.as_slice() else {
        eprintln!("usage: inside SCENARIO DIRECTORY [ARGUMENTS…]; started by `cargo test -p sandbox`");
        std::process::exit(2);
    };
    let directory = Path::new(directory);
    match scenario.as_str() {
        "refusals" => refusals::run(directory, rest),
        "ports" => refusals::ports(directory, rest),
        "paths" => refusals::paths(directory),
        "twice" => twice(directory),
        "works" => works::run(directory, rest),
        "programs" => programs::run(directory, rest),
        other => panic!("unknown scenario {other}"),
    }
}

/// The base of every scenario: the directory `in`, granted for writing.
fn grants(directory: &Path) -> Grants {
    Grants { write: vec![directory.join("in")], ..Grants::default() }
}

fn enter(grants: &Grants) -> Holds {
    let holds = sandbox::enter(grants);
    println!("holds\t{}", serde_json::to_string(&holds).expect("plain data serializes"));
    holds
}

fn twice(directory: &Path) {
    sandbox::enter(&grants(directory));
    enter(&grants(directory));
    attempt("write afterwards", std::fs::write(directory.join("in/file"), "text"));
}

fn attempt<T, E: Into<io::Error>>(name: &str, outcome: Result<T, E>) {
    match outcome.map_err(Into::into) {
        Ok(_) => println!("{name}\tok"),
        Err(error) => match error.raw_os_error() {
            Some(code) => println!("{name}\t{code}"),
            None => println!("{name}\t{error}"),
        },
    }
}

fn port(text: &str) -> u16 {
    text.parse().expect("a port")
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}
