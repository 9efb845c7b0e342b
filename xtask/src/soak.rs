//! `cargo xtask soak [--for TIME]`: all jobs under load while faults occur at random. In: a time. Out: the test's own lines and
//! exit status. Bound: CI runs the same test for 30 seconds; the received lines are held in memory, about 100 MB a minute.

use crate::product;
use crate::shell::{self, Outcome};

const TEST: &str = "soak::random_faults_cost_only_what_is_in_flight";
const SECONDS: u64 = 600;

pub fn run(arguments: &[String]) -> Outcome {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seconds = match words.as_slice() {
        [] => SECONDS,
        ["--for", time] => seconds(time).ok_or(format!("invalid time `{time}`: write 30s or 10m"))?,
        _ => return Err("`cargo xtask soak` takes only `--for TIME`".into()),
    };
    let outrigger = product::for_tests()?;
    product::examples()?;
    let mut test =
        shell::cargo(&["test", "--profile", "ci", "-p", "e2e", "--test", "e2e", "--", "--exact", "--nocapture"]);
    test.arg(TEST).env("OUTRIGGER_BIN", outrigger).env("E2E_SOAK", seconds.to_string());
    shell::run(&mut test)
}

fn seconds(time: &str) -> Option<u64> {
    let (number, unit) = time.split_at(time.len().checked_sub(1)?);
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}
