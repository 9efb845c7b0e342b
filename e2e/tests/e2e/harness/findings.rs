//! What a test found wrong, collected, so that one start of the program answers for many inputs. Checks come in, one
//! failure with all findings comes out at the end. A list that is dropped with findings in it fails the test, unless
//! it fails already. Beside it: what the program itself finds wrong.

use super::{Outrigger, get};

#[derive(Default)]
pub struct Findings {
    found: Vec<String>,
}

impl Findings {
    /// Notes what is wrong unless it is right.
    pub fn check(&mut self, right: bool, wrong: impl FnOnce() -> String) {
        if !right {
            let wrong = wrong();
            eprintln!("finding: {wrong}");
            self.found.push(wrong);
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

/// What the subsystems say of themselves, each part that is not well by its name.
pub fn outcomes(outrigger: &Outrigger) -> String {
    let reply = get(&outrigger.admin, "/status");
    reply.map_or_else(|error| error.to_string(), |reply| reply.json()["subsystems"].to_string())
}
