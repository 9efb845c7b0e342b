//! Load by wrk: one thread, keep-alive, a fixed number of connections and seconds.
//!
//! In: a shape of request, connections, seconds, a port. Out: requests, rate and 99th percentile. A run with a failed
//! request is an error, never a result: a proxy that rejects requests is cheap.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::instructions;
use crate::running::finish;
use crate::scratch::write;

/// The shape of each request; the response is the same small body for all.
#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    Plain,
    /// Twenty headers, cookies among them, as a browser behind a gateway sends them.
    ManyHeaders,
    /// A POST with a body of 4 KiB.
    Post,
}

pub struct Load {
    pub wrk: PathBuf,
    pub taskset: PathBuf,
    pub core: usize,
}

#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub requests: f64,
    pub per_second: f64,
    pub p99_ms: f64,
}

impl Load {
    pub fn run(
        &self,
        port: u16,
        shape: Shape,
        connections: u32,
        seconds: u64,
        directory: &Path,
    ) -> Result<Outcome, String> {
        let command = self.command(port, shape, connections, seconds, directory)?;
        read_outcome(&finish(command, Duration::from_secs(seconds + 15))?)
    }

    /// The same load while `perf` counts the instructions of `pids`; also the instructions for each request.
    pub fn run_counted(
        &self,
        counter: &instructions::Counter,
        pids: &[u32],
        target: (u16, Shape, u32, u64),
        directory: &Path,
    ) -> Result<f64, String> {
        let (port, shape, connections, seconds) = target;
        let load = self.command(port, shape, connections, seconds, directory)?;
        let counts = directory.join("instructions.csv");
        let output = finish(counter.around(&load, pids, &counts), Duration::from_secs(seconds + 15))?;
        let requests = read_outcome(&output)?.requests;
        let text = std::fs::read_to_string(&counts).map_err(|e| format!("cannot read the counts of perf: {e}"))?;
        Ok(instructions::read_count(&text).ok_or("perf counted nothing")? / requests)
    }

    fn command(
        &self,
        port: u16,
        shape: Shape,
        connections: u32,
        seconds: u64,
        directory: &Path,
    ) -> Result<Command, String> {
        let mut command = Command::new(&self.taskset);
        command.arg("-c").arg(self.core.to_string()).arg(&self.wrk);
        command.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s")]);
        if let Some(script) = script(shape) {
            let path = directory.join("shape.lua");
            write(&path, &script)?;
            command.arg("-s").arg(path);
        }
        command.arg(format!("http://127.0.0.1:{port}/orders/7?expand=lines"));
        Ok(command)
    }
}

fn script(shape: Shape) -> Option<String> {
    match shape {
        Shape::Plain => None,
        Shape::Post => Some(
            "wrk.method = 'POST'\nwrk.body = string.rep('x', 4096)\n\
             wrk.headers['Content-Type'] = 'application/octet-stream'\n"
                .to_owned(),
        ),
        Shape::ManyHeaders => {
            let mut lines = String::from(
                "wrk.headers['Cookie'] = 'session=0f3a9c1e77b24d5f8a6b; theme=dark; basket=17; consent=all'\n\
                 wrk.headers['User-Agent'] = 'Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0'\n\
                 wrk.headers['Accept'] = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8'\n\
                 wrk.headers['Accept-Language'] = 'en-GB,en;q=0.7,de;q=0.3'\n\
                 wrk.headers['Accept-Encoding'] = 'gzip, deflate, br, zstd'\n\
                 wrk.headers['Referer'] = 'http://shop.example/orders?page=2'\n\
                 wrk.headers['traceparent'] = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'\n",
            );
            // With Host, twenty in all.
            for number in 1..=12 {
                lines.push_str(&format!("wrk.headers['X-Shop-Detail-{number}'] = 'value-{number}-of-a-gateway'\n"));
            }
            Some(lines)
        }
    }
}

fn read_outcome(text: &str) -> Result<Outcome, String> {
    if let Some(line) = text.lines().find(|line| line.contains("Socket errors") || line.contains("Non-2xx")) {
        return Err(format!("requests failed: {}", line.trim()));
    }
    let first_word = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let requests = text.lines().find(|line| line.contains(" requests in ")).and_then(first_word);
    let per_second = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let p99 = text.lines().find_map(|line| line.trim().strip_prefix("99%")).and_then(milliseconds);
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match (requests.as_deref().and_then(number), per_second.and_then(number), p99) {
        (Some(requests), Some(per_second), Some(p99_ms)) if requests > 0.0 => {
            Ok(Outcome { requests, per_second, p99_ms })
        }
        _ => Err(format!("cannot parse the output of wrk: {}", text.trim().replace('\n', " / "))),
    }
}

fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    match unit {
        "us" => Some(number / 1e3),
        "ms" => Some(number),
        "s" => Some(number * 1e3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "  Latency Distribution\n     50%    1.50ms\n     99%    2.50ms\n\
                          \x20 97000 requests in 3.00s, 27.10MB read\nRequests/sec:  32333.10\n";

    #[test]
    fn all_values_of_the_output_are_parsed() {
        let expect = Outcome { requests: 97000.0, per_second: 32333.1, p99_ms: 2.5 };
        assert_eq!(read_outcome(OUTPUT), Ok(expect));
    }

    #[test]
    fn a_run_with_failed_requests_is_an_error() {
        for line in ["  Non-2xx or 3xx responses: 7\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"] {
            let fault = read_outcome(&format!("{OUTPUT}{line}")).expect_err("requests failed");
            assert!(fault.contains(line.trim()), "{fault}");
        }
    }

    #[test]
    fn every_unit_of_wrk_is_supported() {
        for (text, expect) in [("870.00us", Some(0.87)), ("  1.00s", Some(1000.0)), ("3.00ms", Some(3.0)), ("x", None)]
        {
            assert_eq!(milliseconds(text), expect, "{text}");
        }
    }

    #[test]
    fn the_shape_of_many_headers_has_twenty() {
        let script = script(Shape::ManyHeaders).expect("this shape has a script");
        assert_eq!(script.matches("wrk.headers[").count() + 1, 20, "with Host");
    }
}
