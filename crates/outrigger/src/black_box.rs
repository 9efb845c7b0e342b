//! The black box: the context of an abnormal exit of the app or a worker. In: the exit, the newest output, the last samples and
//! requests. Out: one JSON file in the state directory. Limits: `FILES_MAX` files, `sys::ring::TAIL_KEPT` bytes of each stream,
//! and the samples and requests that the metrics and the proxy retain anyway.

use base::runtime::health::Health;
use base::runtime::state::StateDir;
use serde::Serialize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;
use supervisor::message::Ended;
use supervisor::worker::Crash;
use sys::ring::Ring;

/// Retained files: the next one replaces the oldest.
const FILES_MAX: u64 = 8;

/// The data sources of a black box file.
#[derive(Clone)]
pub struct BlackBox {
    pub state: StateDir,
    pub rings: Option<(Ring, Ring)>,
    /// The newest samples, in the text format of /metrics.
    pub samples: Rc<dyn Fn() -> String>,
    /// The last requests through the proxy.
    pub requests: Rc<dyn Fn() -> Vec<serde_json::Value>>,
    pub generation: u32,
    pub health: Arc<Health>,
}

/// Its name in health.
pub const PART: &str = "black_box";

#[derive(Serialize)]
struct Content {
    version: &'static str,
    /// Unix time in seconds.
    written_at: u64,
    /// `app` or `worker`.
    process: &'static str,
    code: i32,
    /// Null if no signal killed it.
    signal: Option<i32>,
    core_dumped: bool,
    oom_killed: bool,
    /// Whether it was killed because it was stalled.
    hung: bool,
    worker_generation: u32,
    stdout: Vec<String>,
    stderr: Vec<String>,
    samples: Vec<String>,
    requests: Vec<serde_json::Value>,
}

impl BlackBox {
    pub fn app_exited(&self, ended: Ended) {
        let Ended { code, signal, core_dumped, out_of_memory, .. } = ended;
        let signal = Some(signal).filter(|signal| *signal > 0);
        self.write(Content { code, signal, core_dumped, oom_killed: out_of_memory, ..self.content("app") });
    }

    pub fn worker_crashed(&self, crash: Crash) {
        let signal = Some(crash.code - 128).filter(|signal| *signal > 0);
        let (code, hung, oom_killed) = (crash.code, crash.hung, crash.out_of_memory);
        self.write(Content { code, signal, hung, oom_killed, ..self.content("worker") });
    }

    fn content(&self, process: &'static str) -> Content {
        let tail = |ring: &Ring| lines(&ring.tail().unwrap_or_default());
        let written_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Content {
            version: env!("CARGO_PKG_VERSION"),
            written_at,
            process,
            code: 0,
            signal: None,
            core_dumped: false,
            oom_killed: false,
            hung: false,
            worker_generation: self.generation,
            stdout: self.rings.as_ref().map(|rings| tail(&rings.0)).unwrap_or_default(),
            stderr: self.rings.as_ref().map(|rings| tail(&rings.1)).unwrap_or_default(),
            samples: (self.samples)().lines().filter(|line| !line.starts_with('#')).map(str::to_string).collect(),
            requests: (self.requests)(),
        }
    }

    fn write(&self, content: Content) {
        let Some(name) = self.next_name() else {
            let text = "not written: there is no state directory";
            tracing::warn!(component = PART, process = content.process, "black box file {text}");
            self.health.fault(PART, text);
            return;
        };
        let bytes = serde_json::to_vec_pretty(&content).unwrap_or_default();
        match self.state.write(&name, &bytes) {
            Ok(()) => {
                self.health.recovered(PART);
                tracing::info!(component = PART, file = name, process = content.process, "wrote black box file");
            }
            Err(error) => {
                tracing::warn!(component = PART, %error, "cannot write the black box file");
                self.health.fault(PART, format!("cannot write the black box file: {error}"));
            }
        }
    }

    /// The first unused name, or the name of the oldest file.
    fn next_name(&self) -> Option<String> {
        let name = |number: u64| format!("black_box/{number}.json");
        let written = |number: &u64| {
            let path = self.state.path(&name(*number))?;
            Some(path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH))
        };
        self.state.dir()?;
        (0..FILES_MAX).min_by_key(written).map(name)
    }
}

/// Complete lines, without a first line that is truncated.
fn lines(bytes: &[u8]) -> Vec<String> {
    let cut = bytes.len() as u64 >= sys::ring::TAIL_KEPT;
    String::from_utf8_lossy(bytes).lines().skip(usize::from(cut)).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_lines_are_complete_and_files_rotate() {
        let dir = std::env::temp_dir().join(format!("outrigger-black-box-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let ring = Ring::in_memory("test").and_then(|ring| ring.sized(1 << 20)).expect("memfd");
        for number in 0..10_000 {
            ring.push(format!("line {number}\n").as_bytes(), 1).expect("memory");
        }
        let black_box = BlackBox {
            state: StateDir::open(&dir, 1 << 20),
            rings: Some((ring.clone(), ring)),
            samples: Rc::new(|| "# HELP x y\nx 1\n".into()),
            requests: Rc::new(Vec::new),
            generation: 3,
            health: Health::new("app"),
        };
        for code in 0..FILES_MAX as i32 + 1 {
            black_box.worker_crashed(Crash { code: 128 + code, hung: false, out_of_memory: false });
        }
        assert_eq!(std::fs::read_dir(dir.join("black_box")).expect("the directory exists").count() as u64, FILES_MAX);
        let text = std::fs::read_to_string(dir.join("black_box/0.json")).expect("the file is written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((value["code"].as_i64(), value["samples"][0].as_str()), (Some(128 + FILES_MAX as i64), Some("x 1")));
        let stdout = value["stdout"].as_array().expect("lines");
        assert_eq!(stdout.last().and_then(|line| line.as_str()), Some("line 9999"));
        assert!(
            stdout.iter().all(|line| line.as_str().is_some_and(|line| line.starts_with("line "))),
            "no line is truncated"
        );
        let _ = std::fs::remove_dir_all(&dir);
    }
}
