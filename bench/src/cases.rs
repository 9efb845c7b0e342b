//! The list of cases, and nothing else: a new case is one file under `cases/` and one entry here.

mod footprint;
mod proxy_http1;

use crate::report::Report;

/// One benchmark. `run` takes the number of pairs; a missing peer is a remark in its report, and only a machine that
/// cannot hold the case at all (no loopback, no scratch folder) is an error.
pub struct Case {
    pub name: &'static str,
    pub measures: &'static str,
    pub run: fn(pairs: usize) -> Result<Report, String>,
}

pub const CASES: &[Case] = &[
    Case {
        name: "footprint",
        measures: "memory, CPU, start, cost per line, outages, size of the binary; beside dumb-init, tini and Envoy",
        run: footprint::run,
    },
    Case {
        name: "proxy-http1",
        measures: "CPU per request of the HTTP/1.1 proxy; beside HAProxy, nginx and Envoy",
        run: proxy_http1::run,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_says_what_it_measures() {
        for (place, case) in CASES.iter().enumerate() {
            assert!(!case.name.is_empty() && !case.measures.is_empty());
            assert!(CASES[..place].iter().all(|other| other.name != case.name), "{} stands twice", case.name);
        }
    }
}
