//! The list of cases: a new case is one file under `cases/` and one entry here.

mod footprint;
mod proxy_http1;

use crate::report::Report;

/// One benchmark. `run` takes the number of pairs; a missing peer is a remark in its report; only a machine that
/// cannot run the case at all (no loopback, no scratch directory) is an error.
pub struct Case {
    pub name: &'static str,
    pub measures: &'static str,
    pub run: fn(pairs: usize) -> Result<Report, String>,
}

pub const CASES: &[Case] = &[
    Case {
        name: "footprint",
        measures: "memory, CPU, start, cost per line, outages, size of the binary; compared with dumb-init, tini and Envoy",
        run: footprint::run,
    },
    Case {
        name: "proxy-http1",
        measures: "CPU per request of the HTTP/1.1 proxy; compared with HAProxy, nginx and Envoy",
        run: proxy_http1::run,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_unique_name_and_description() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(!case.name.is_empty() && !case.measures.is_empty());
            assert!(CASES[..index].iter().all(|other| other.name != case.name), "duplicate case {}", case.name);
        }
    }
}
