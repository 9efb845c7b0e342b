//! A file that records are appended to, rotated by size. In: records. Out: lines. Writes happen on a thread that may block,
//! since a full or slow disk must not stop the other sinks. Bounds: `max` bytes per file and `keep` old ones.

use super::{Delivery, Failure, Sink};
use crate::batch::Batch;
use crate::encode::Encoder;
use base::registry::Kind;
use base::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Appends records to a file. At `max` bytes the file is renamed to `path.1`, `path.1` to `path.2` and so on, and `keep` of
/// them stay. A disk that is full or a path that cannot be written is tried again; nothing is dropped meanwhile unless the
/// sink is not required.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file; folders on the way are made.
    pub path: PathBuf,
    /// How a record is written.
    #[serde(default)]
    pub format: Format,
    /// The size at which the file is rotated.
    #[serde(default = "max")]
    pub max: ByteSize,
    /// How many rotated files stay.
    #[serde(default = "keep")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep: u16,
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
    const EXAMPLE: &'static str = "file: { path: /archive/orders.log }\n";
}

fn max() -> ByteSize {
    ByteSize::mib(100)
}

fn keep() -> u16 {
    3
}

pub struct FileSink {
    format: Format,
    encoder: Encoder,
    body: Arc<Vec<u8>>,
    target: Arc<Mutex<Target>>,
}

struct Target {
    path: PathBuf,
    max: u64,
    keep: u16,
    open: Option<(File, u64)>,
    /// How much of the present body is in the file already, where a write stopped half way.
    written: usize,
}

impl FileSink {
    pub fn new(config: &Config) -> FileSink {
        let target = Target { path: config.path.clone(), max: config.max.0, keep: config.keep, open: None, written: 0 };
        FileSink {
            format: config.format,
            encoder: Encoder::default(),
            body: Arc::default(),
            target: Arc::new(Mutex::new(target)),
        }
    }
}

impl Sink for FileSink {
    fn encode(&mut self, batch: &Batch, first: usize, max: usize) -> usize {
        encode_lines(self.format, &mut self.encoder, batch, first, max, Arc::make_mut(&mut self.body))
    }

    fn size(&self) -> usize {
        self.body.len()
    }

    fn deliver(&mut self) -> Delivery<'_> {
        let (target, body) = (self.target.clone(), self.body.clone());
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || base::subsystem::lock(&target).append(&body)).await;
            match written {
                Ok(result) => result.map_err(|error| Failure::retry(error.to_string())),
                Err(error) => Err(Failure::retry(error.to_string())),
            }
        })
    }

    fn reset(&mut self) {
        self.body = Arc::default();
    }
}

impl Target {
    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let named =
            |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if self
            .open
            .as_ref()
            .is_some_and(|(_, size)| self.written == 0 && *size > 0 && size + body.len() as u64 > self.max)
        {
            self.open = None;
            self.rotate().map_err(|error| named(&self.path, error))?;
        }
        let (file, size) = match &mut self.open {
            Some(open) => open,
            None => {
                if let Some(folder) = self.path.parent() {
                    std::fs::create_dir_all(folder).map_err(|error| named(&self.path, error))?;
                }
                let file = OpenOptions::new().create(true).append(true).open(&self.path);
                let file = file.map_err(|error| named(&self.path, error))?;
                let size = file.metadata()?.len();
                self.open.insert((file, size))
            }
        };
        while self.written < body.len() {
            match file.write(body.get(self.written..).unwrap_or(&[])) {
                Ok(count) => {
                    self.written += count;
                    *size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(named(&self.path, error)),
            }
        }
        self.written = 0;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u16| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.keep).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

/// Appends records as lines, until the body has `max` bytes.
pub fn encode_lines(
    format: Format,
    encoder: &mut Encoder,
    batch: &Batch,
    first: usize,
    max: usize,
    body: &mut Vec<u8>,
) -> usize {
    for (index, record) in batch.records.iter().enumerate().skip(first) {
        if body.len() >= max {
            return index;
        }
        match format {
            Format::Raw => encoder.raw_line(batch, record, body),
            Format::Json => encoder.json_line(batch, record, body),
        }
    }
    batch.records.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 5
    #[test]
    fn a_file_is_rotated_at_its_bound_and_old_ones_go() {
        let dir = std::env::temp_dir().join(format!("outrigger-filesink-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let path = dir.join("out.log");
        let mut target = Target { path: path.clone(), max: 10, keep: 2, open: None, written: 0 };
        for body in ["one\n", "two\n", "three\n", "four\n", "five is long\n"] {
            target.append(body.as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        assert_eq!(read("out.log").as_deref(), Some("five is long\n"));
        assert_eq!(read("out.log.1").as_deref(), Some("four\n"));
        assert_eq!(read("out.log.2").as_deref(), Some("three\n"));
        assert_eq!(read("out.log.3"), None);
        let mut nowhere = Target { path: dir.join("out.log/below"), max: 10, keep: 1, open: None, written: 0 };
        assert!(nowhere.append(b"x").is_err_and(|error| error.to_string().contains("out.log")));
        std::fs::remove_dir_all(&dir).expect("was there");
    }
}
