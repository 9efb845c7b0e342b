//! A file source with its receiver, as most tests of log files need it, and what `/status` reports about the logs. In:
//! directories, patterns and further keys. Out: a scene for log files, and the program that sends them to a `LogReceiver`
//! as JSON lines. Limits: one source and one required sink; a test may add sections of its own.

use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::outrigger::binary;
use super::process::Signal;
use super::{LogReceiver, Outrigger, PATIENCE, Scene, Wait, ledger_row, until, within};

pub struct LogFiles {
    pub scene: Scene,
    pub receiver: LogReceiver,
    body: String,
}

const BODY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { files: { file: { include: [@include@], @keys@ } } }
  stages: [@stages@]
  sinks:
    main: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 64KiB, max_age: 50ms } }
"#;

impl LogFiles {
    /// Creates the directories; patterns are relative to the scene; `keys` are the source's keys in addition to `include`.
    pub fn new(directories: &[&str], include: &[&str], keys: &str) -> Self {
        let (scene, receiver) = (Scene::new(), LogReceiver::start());
        for directory in directories {
            std::fs::create_dir_all(scene.path(directory)).expect("the scene is writable");
        }
        let patterns: Vec<String> = include.iter().map(|pattern| format!("{:?}", scene.text_path(pattern))).collect();
        scene.set("include", patterns.join(", "));
        scene.set("keys", keys);
        scene.set("stages", "");
        scene.set("receiver", receiver.address());
        Self { scene, receiver, body: BODY.to_owned() }
    }

    /// The same with each line parsed as JSON.
    pub fn parsed(directories: &[&str], include: &[&str], keys: &str) -> Self {
        let files = Self::new(directories, include, keys);
        files.scene.set("stages", "{ parse: { json: {} } }");
        files
    }

    /// Lines that follow the last sink: more sinks, indented as the first one, and further sections.
    pub fn and(mut self, lines: &str) -> Self {
        self.body.push_str(lines);
        self
    }

    #[track_caller]
    pub fn start(&self) -> Outrigger {
        Outrigger::start(&self.scene, &self.body, &[])
    }

    /// The same with the configuration in a separate directory: the sandbox grants that directory, and nothing else of the
    /// scene.
    #[track_caller]
    pub fn start_apart(&self) -> Outrigger {
        let file = "config/outrigger.yaml";
        Outrigger::start_binary(&binary(), &self.scene, file, &self.body, &[], Wait::Ready, |_| {})
    }

    /// The text of the configuration, for a test that starts the program itself.
    pub fn body(&self) -> &str {
        &self.body
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    /// Appends to a log file as an app does, in one write.
    pub fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        append(&self.path(name), text);
    }

    /// Waits for a message, and so for everything that was read before it.
    #[track_caller]
    pub fn await_message(&self, message: &str) {
        until(PATIENCE, &format!("the message {message:?}"), || self.has(message));
    }

    pub fn has(&self, message: &str) -> bool {
        self.receiver.messages().iter().any(|have| have == message)
    }

    /// The numbers after `n=` of all messages, sorted, with duplicates.
    pub fn sorted(&self) -> Vec<usize> {
        self.receiver.sorted("n=")
    }
}

pub fn append(path: &Path, text: impl AsRef<[u8]>) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the log file opens");
    file.write_all(text.as_ref()).expect("the log file is writable");
}

/// `n=000007` and so on, one a line.
pub fn numbered(numbers: Range<usize>) -> String {
    numbers.map(|number| format!("n={number:06}\n")).collect()
}

/// How many of `numbers` are missing from those received, and how many were received more than once.
pub fn missing_and_repeated(received: &[usize], numbers: Range<usize>) -> (usize, usize) {
    let times = |number: usize| received.iter().filter(|have| **have == number).count();
    let counts: Vec<usize> = numbers.map(times).collect();
    (counts.iter().filter(|count| **count == 0).count(), counts.iter().filter(|count| **count > 1).count())
}

/// Waits until a sink has delivered all records, so that the checkpoints are at the end.
#[track_caller]
pub fn settle(outrigger: &Outrigger, sink: &str) {
    until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, sink)["pending"] == 0);
}

/// Kills the worker (SIGKILL) and waits until another one is ready.
#[track_caller]
pub fn replace_worker(outrigger: &Outrigger) {
    let before = outrigger.worker();
    super::process::send_signal(before, Signal::KILL);
    outrigger.await_other(before, PATIENCE);
}

/// The entry of the logs in `/status`: its health, and the complete entry as text.
#[track_caller]
pub fn outcome(outrigger: &Outrigger) -> (String, String) {
    logs_of(&outrigger.get("/status").json())
}

/// The same for a given status.
#[track_caller]
pub fn logs_of(status: &Value) -> (String, String) {
    let entries = status["subsystems"].as_array().cloned().unwrap_or_default();
    let found = entries.into_iter().find(|entry| entry["name"] == "logs");
    let entry = found.unwrap_or_else(|| panic!("/status has the logs: {status}"));
    (entry["health"].as_str().unwrap_or("").to_owned(), entry.to_string())
}

/// Waits until the logs are `degraded` and report each of the parts.
#[track_caller]
pub fn await_degraded(outrigger: &Outrigger, parts: &[&str]) {
    let matches =
        |(state, text): &(String, String)| state == "degraded" && parts.iter().all(|part| text.contains(part));
    let degraded = within(PATIENCE, || matches(&outcome(outrigger)));
    assert!(degraded, "the logs are degraded and report {parts:?}: {:?}", outcome(outrigger));
}

/// What the program logged at `WARN` or `ERROR`, one value per line.
pub fn warnings(outrigger: &Outrigger) -> Vec<Value> {
    let lines = outrigger.stderr.lines();
    let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect()
}
