//! Collects what a test finds wrong, so that one start of the program covers many inputs. In: checks. Out: one failure with
//! all findings at the end. Dropping a list with findings fails the test, unless it is panicking already. Also: the health
//! that the program itself reports.

use super::{Outrigger, get};

#[derive(Default)]
pub struct Findings {
    found: Vec<String>,
}

impl Findings {
    /// Records a finding unless the check holds.
    pub fn check(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            let finding = finding();
            eprintln!("finding: {finding}");
            self.found.push(finding);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        if !self.is_empty() && !std::thread::panicking() {
            panic!("{} findings:\n- {}", self.found.len(), self.found.join("\n- "));
        }
    }
}

/// What the subsystems report, with the name of each unhealthy part.
pub fn outcomes(outrigger: &Outrigger) -> String {
    let reply = get(&outrigger.admin, "/status");
    reply.map_or_else(|error| error.to_string(), |reply| reply.json()["subsystems"].to_string())
}
