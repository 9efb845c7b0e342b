//! The other half of `tests/sandbox.rs`: a process with one thread that enters the sandbox and tries things. In: a scenario, a folder
//! of its own with `in` (granted) and `out` (not granted), and what the scenario needs besides. Out: a line for each attempt, its
//! name and `ok` or the number of the error, and the JSON of what holds. Bound: it ends; the test that started it sets a limit.

mod programs;
mod refusals;
mod works;

use sandbox::{Grants, Holds};
use std::io;
use std::path::{Path, PathBuf};

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [scenario, folder, rest @ ..] = given.as_slice() else {
        eprintln!("usage: inside SCENARIO FOLDER [MORE…]; `cargo test -p sandbox` starts it");
        std::process::exit(2);
    };
    let folder = Path::new(folder);
    match scenario.as_str() {
        "refusals" => refusals::run(folder, rest),
        "ports" => refusals::ports(folder, rest),
        "paths" => refusals::paths(folder),
        "twice" => twice(folder),
        "works" => works::run(folder, rest),
        "programs" => programs::run(folder, rest),
        other => panic!("no scenario {other}"),
    }
}

/// What every scenario begins with: the folder `in`, granted for writing.
fn grants(folder: &Path) -> Grants {
    Grants { write: vec![folder.join("in")], ..Grants::default() }
}

fn enter(grants: &Grants) -> Holds {
    let holds = sandbox::enter(grants);
    println!("holds\t{}", serde_json::to_string(&holds).expect("it is plain data"));
    holds
}

fn twice(folder: &Path) {
    sandbox::enter(&grants(folder));
    enter(&grants(folder));
    attempt("goes on", std::fs::write(folder.join("in/file"), "text"));
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
