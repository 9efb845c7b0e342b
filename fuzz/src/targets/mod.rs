//! The table of targets: one for each text and message that comes from outside. A target is one file here, one line in `TARGETS`
//! and one directory of seeds in `corpus/`. In: bytes. Out: nothing, or a panic with the property that does not hold.

pub mod configuration;
pub mod exposition;
pub mod http1_request;
pub mod http1_response;
pub mod http1_body;
pub mod log_lines;
pub mod checkpoints;
pub mod git_tree;
pub mod end_files;
pub mod messages;
mod head_lines;
mod itself;

pub struct Target {
    /// Its name, its file and its directory of seeds.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inserted by the mutator in addition to bytes and numbers.
    pub words: &'static [&'static str],
    pub input_max: usize,
}

pub const TARGETS: [Target; 10] = [
    Target { name: "configuration", run: configuration::run, words: configuration::WORDS, input_max: 16 << 10 },
    Target { name: "exposition", run: exposition::run, words: exposition::WORDS, input_max: 8 << 10 },
    Target { name: "http1_request", run: http1_request::run, words: http1_request::WORDS, input_max: 4 << 10 },
    Target { name: "http1_response", run: http1_response::run, words: http1_response::WORDS, input_max: 4 << 10 },
    Target { name: "http1_body", run: http1_body::run, words: http1_body::WORDS, input_max: 16 << 10 },
    Target { name: "log_lines", run: log_lines::run, words: log_lines::WORDS, input_max: 2 << 10 },
    Target { name: "checkpoints", run: checkpoints::run, words: checkpoints::WORDS, input_max: 8 << 10 },
    Target { name: "git_tree", run: git_tree::run, words: git_tree::WORDS, input_max: 4 << 10 },
    Target { name: "end_files", run: end_files::run, words: end_files::WORDS, input_max: 512 },
    Target { name: "messages", run: messages::run, words: messages::WORDS, input_max: 8 << 10 },
];

/// Fails on purpose, for the test of the loop and the watch.
const ITSELF: Target = Target { name: "itself", run: itself::run, words: &[], input_max: 64 };

/// Compares bytes, and shows them escaped if they differ.
#[track_caller]
fn same(left: &[u8], right: &[u8], what: &str) {
    assert!(left == right, "{what}:\n   left: {}\n  right: {}", left.escape_ascii(), right.escape_ascii());
}

pub fn named(name: &str) -> Option<&'static Target> {
    static SELF_TEST: Target = ITSELF;
    static ALL: [Target; 10] = TARGETS;
    ALL.iter().chain([&SELF_TEST]).find(|target| target.name == name)
}
