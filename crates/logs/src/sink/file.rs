//! Appends records to a file, rotated by size. In: records. Out: lines. Writes happen on a thread that may block, since a full or
//! slow disk must not block the other sinks. Limits: `rotate.max_bytes` per file and `rotate.max_files` rotated files.

use super::SinkConfig;
use crate::batch::Batch;
use crate::checkpoint::FileId;
use crate::encode::Encoder;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use config::unit::ByteSize;
use delivery::batch::{Body, Encode, Sending, Transport};
use delivery::engine::Sink;
use delivery::outcome::Outcome;
use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// Appends records to a file. At `rotate.max_bytes` the file is renamed to `path.1`, `path.1` to `path.2` and so on, and
/// `rotate.max_files` of them are retained. If the disk is full or the path cannot be written, the write is retried; nothing is
/// dropped in the meantime unless the sink is not required.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; missing directories are created.
    pub path: PathBuf,
    /// `raw`: the line as the app wrote it; `json`: one object with all fields. Default: `raw`.
    #[serde(default)]
    pub format: Format,
    /// When the file is rotated.
    #[serde(default)]
    pub rotate: Rotate,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Before the file would exceed this size it is renamed to `PATH.1`, `PATH.1` to `PATH.2` and so on.
    #[serde(default = "max_bytes")]
    pub max_bytes: ByteSize,
    /// Number of rotated files that are retained.
    #[serde(default = "max_files")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_files: u16,
}

impl Default for Rotate {
    fn default() -> Rotate {
        Rotate { max_bytes: max_bytes(), max_files: max_files() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The line as the app wrote it.
    #[default]
    Raw,
    /// One JSON object with all fields.
    Json,
}

impl Kind for Config {
    fn example() -> &'static str {
        "file: { path: /archive/orders.log }\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let finding = self.unsuitable_path().map(|(text, help)| entry.error(&["path"], text).help(help));
        finding.into_iter().collect()
    }

    fn needs(&self, _id: &str) -> Needs {
        let mut needs = Needs::default();
        needs.write_file(&self.path);
        needs
    }
}

impl SinkConfig for Config {
    fn build(&self) -> Result<Sink<Batch>, String> {
        let target = Target {
            path: self.path.clone(),
            max: self.rotate.max_bytes.0,
            keep: self.rotate.max_files,
            open: None,
            written: 0,
        };
        Ok(Sink {
            encoder: Box::new(FormatLines::new(self.format)),
            transport: Rc::new(Append { target: Arc::new(Mutex::new(target)) }),
        })
    }

    /// The file, and its rotated files.
    fn written_files(&self) -> Vec<PathBuf> {
        let rotated = (1..=self.rotate.max_files).map(|number| numbered(&self.path, number));
        std::iter::once(self.path.clone()).chain(rotated).collect()
    }
}

fn max_bytes() -> ByteSize {
    ByteSize::mib(100)
}

fn max_files() -> u16 {
    3
}

struct Append {
    target: Arc<Mutex<Target>>,
}

struct Target {
    path: PathBuf,
    max: u64,
    keep: u16,
    open: Option<Open>,
    /// Bytes of the present body that are already in the file after a partial write.
    written: usize,
}

struct Open {
    file: File,
    size: u64,
    /// The file at the path, unless it was renamed or removed.
    id: FileId,
}

impl Transport for Append {
    fn send<'a>(&'a self, body: &'a Body) -> Sending<'a> {
        let (target, bytes) = (self.target.clone(), body.bytes.clone());
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || base::sync::lock(&target).append(&bytes)).await {
                Ok(Ok(())) => Outcome::Delivered,
                Ok(Err(error)) => Outcome::retry(error.to_string()),
                Err(error) => Outcome::retry(error.to_string()),
            }
        })
    }

    /// A body that was written partially is completed before the next one.
    fn max_in_flight(&self) -> usize {
        1
    }
}

impl Target {
    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let with_path =
            |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if self.open.as_ref().is_some_and(|open| !open.is_at(&self.path)) {
            // A partially written line is in the other file; it is written completely here.
            (self.open, self.written) = (None, 0);
        }
        let is_full = |open: &Open| open.size > 0 && open.size + body.len() as u64 > self.max;
        if self.written == 0 && self.open.as_ref().is_some_and(is_full) {
            self.open = None;
            self.rotate().map_err(|error| with_path(&self.path, error))?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::at(&self.path).map_err(|error| with_path(&self.path, error))?),
        };
        while self.written < body.len() {
            match open.file.write(body.get(self.written..).unwrap_or(&[])) {
                Ok(count) => {
                    self.written += count;
                    open.size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(with_path(&self.path, error)),
            }
        }
        self.written = 0;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u16| numbered(&self.path, number);
        for number in (1..self.keep).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        let mut file =
            base::system::file::open_regular(path, options.create(true).append(true).read(true), OFlags::empty())?;
        let meta = file.metadata()?;
        let mut size = meta.len();
        let mut last = [0u8];
        // A crash or a full disk may have left an incomplete line: the next line starts after it.
        if size > 0 && file.read_at(&mut last, size - 1)? == 1 && last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
        Ok(Open { file, size, id: FileId::of(&meta) })
    }

    fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|meta| FileId::of(&meta) == self.id)
    }
}

impl Config {
    /// A path that cannot be appended to: the error, and the help.
    fn unsuitable_path(&self) -> Option<(String, &'static str)> {
        let path = self.path.display();
        if self.path.file_name().is_none() {
            let text = format!("`path` must be the path of a file, found `{path}`");
            return Some((text, "use the complete path, such as /archive/orders.log"));
        }
        let help = match self.path.to_str() {
            Some("/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1") => "use the sink `stdout`",
            Some("/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2") => {
                "use the sink `stdout`; stderr is the Outrigger log"
            }
            Some("/dev/null") => "use the sink `blackhole`",
            _ if self.path.starts_with("/dev") || self.path.starts_with("/proc") || self.path.starts_with("/sys") => {
                "use a file on a volume"
            }
            _ => return None,
        };
        Some((format!("`{path}` is not a file that can be appended to and rotated"), help))
    }
}

fn numbered(path: &Path, number: u16) -> PathBuf {
    let mut name = path.to_path_buf().into_os_string();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Encodes records as lines of a format.
pub struct FormatLines {
    format: Format,
    encoder: Encoder,
    body: Vec<u8>,
}

impl FormatLines {
    pub fn new(format: Format) -> FormatLines {
        FormatLines { format, encoder: Encoder::default(), body: Vec::new() }
    }
}

impl Encode<Batch> for FormatLines {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, max: usize) -> usize {
        for (index, record) in batch.records.iter().enumerate().take(records.end).skip(records.start) {
            if self.body.len() >= max {
                return index;
            }
            match self.format {
                Format::Raw => self.encoder.raw_line(batch, record, &mut self.body),
                Format::Json => self.encoder.json_line(batch, record, &mut self.body),
            }
        }
        records.end
    }

    fn size(&self) -> usize {
        self.body.len()
    }

    fn finish(&mut self) -> Result<Body, String> {
        Ok(std::mem::take(&mut self.body).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_rotated_at_max_bytes_old_ones_removed() {
        let dir = std::env::temp_dir().join(format!("outrigger-filesink-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("created");
        let path = dir.join("out.log");
        let mut target = Target { path: path.clone(), max: 16, keep: 2, open: None, written: 0 };
        for body in ["one is long\n", "two is long\n", "three is long\n", "four is long\n", "five is long\n"] {
            target.append(body.as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        assert_eq!(read("out.log").as_deref(), Some("five is long\n"));
        assert_eq!(read("out.log.1").as_deref(), Some("four is long\n"));
        assert_eq!(read("out.log.2").as_deref(), Some("three is long\n"));
        assert_eq!(read("out.log.3"), None);
        std::fs::remove_file(&path).expect("removed");
        target.append(b"six\n").expect("written to a new file");
        assert_eq!(read("out.log").as_deref(), Some("six\n"), "a removed file is recreated");
        std::fs::write(&path, "half a li").expect("written");
        target.open = None;
        target.append(b"seven\n").expect("written");
        assert_eq!(read("out.log").as_deref(), Some("half a li\nseven\n"));
        let mut nowhere = Target { path: dir.join("out.log/below"), max: 10, keep: 1, open: None, written: 0 };
        assert!(nowhere.append(b"x").is_err_and(|error| error.to_string().contains("out.log")));
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
