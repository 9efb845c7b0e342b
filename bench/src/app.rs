//! The apps that a benchmark wraps: this binary itself, started with a hidden first argument.
//!
//! In: the arguments that `stamp` or `lines` created. Out: on stdout, the time of the monotonic clock at the first action
//! of `main`; or lines, after the benchmark has opened and closed the pipe at which the app waits. A shell or an
//! interpreter would take longer to start than the measured time.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::time::{ClockId, clock_gettime};

pub const LINE_BYTES: usize = 100;
const HIDDEN: &str = "--as-app";

/// The monotonic clock, which every process on the machine shares.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    // The monotonic clock counts from the machine's start and is never negative.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The command of an app that prints `now` in nanoseconds and exits.
pub fn stamp() -> Result<Vec<String>, String> {
    command(&["stamp"])
}

/// The command of an app that waits at `gate`, then writes `lines` lines of 100 bytes in writes of `bytes`, and then
/// does nothing until it is terminated.
pub fn lines(lines: u64, bytes: usize, gate: &Gate) -> Result<Vec<String>, String> {
    command(&["lines", &lines.to_string(), &bytes.to_string(), &gate.path.to_string_lossy()])
}

fn command(words: &[&str]) -> Result<Vec<String>, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let program = program.to_string_lossy().into_owned();
    Ok([program.as_str(), HIDDEN].iter().chain(words).map(|word| (*word).to_owned()).collect())
}

/// A named pipe: the app waits until it has been opened and closed.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    pub fn new(directory: &Path) -> Result<Self, String> {
        let path = directory.join("gate");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok(Self { path })
    }

    /// Holds the gate once the app waits at it; dropping the file lets the app continue.
    pub fn held(&self) -> Option<File> {
        // With O_NONBLOCK, opening a pipe for writing fails unless a process has it open for reading (fifo(7)).
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
        OpenOptions::new().write(true).custom_flags(flags).open(&self.path).ok()
    }
}

/// Runs the app of the hidden arguments; `None` if the command line is a benchmark's.
pub fn run(mut words: impl Iterator<Item = String>) -> Option<ExitCode> {
    let now = now();
    if words.next()? != HIDDEN {
        return None;
    }
    let result = match words.next().as_deref() {
        Some("stamp") => {
            println!("{}", now.as_nanos());
            Ok(())
        }
        Some("lines") => write_lines(&words.collect::<Vec<_>>()),
        other => Err(format!("unknown app: {other:?}")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench, as an app: {fault}");
            ExitCode::FAILURE
        }
    })
}

fn write_lines(words: &[String]) -> Result<(), String> {
    let [lines, bytes, gate] = words else {
        return Err(format!("expected three arguments, found {words:?}"));
    };
    let lines: usize = lines.parse().map_err(|_| format!("`{lines}` is not a number of lines"))?;
    let bytes: usize = bytes.parse().map_err(|_| format!("`{bytes}` is not a number of bytes"))?;
    let mut gate = File::open(gate).map_err(|e| format!("cannot open {gate}: {e}"))?;
    gate.read_to_end(&mut Vec::new()).map_err(|e| format!("cannot wait: {e}"))?;
    let text = text(bytes);
    let total = lines * LINE_BYTES;
    let mut written = 0;
    while written < total {
        let start = written % LINE_BYTES;
        let size = bytes.min(total - written);
        written += rustix::io::write(rustix::stdio::stdout(), &text[start..start + size]).map_err(|e| e.to_string())?;
    }
    loop {
        std::thread::park();
    }
}

/// Enough lines for a write of `bytes`, at any offset in a line.
fn text(bytes: usize) -> Vec<u8> {
    let line = format!("{:-<width$}\n", "2026-01-01T00:00:00Z INFO an order was paid ", width = LINE_BYTES - 1);
    line.into_bytes().into_iter().cycle().take(bytes + LINE_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_100_bytes_at_every_write_offset() {
        let text = text(4096);
        assert_eq!(text.len(), 4196);
        assert!(
            text.iter().enumerate().all(|(index, byte)| (*byte == b'\n') == (index % LINE_BYTES == LINE_BYTES - 1))
        );
    }

    #[test]
    fn a_case_name_does_not_start_an_app() {
        assert!(run(["footprint".to_owned()].into_iter()).is_none());
    }
}
