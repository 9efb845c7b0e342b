//! Outrigger's stdout. In: records. Out: lines. A reader that stops reading blocks only this sink.

use super::SinkConfig;
use super::file::{Format, FormatLines};
use crate::batch::Batch;
use config::registry::Kind;
use delivery::batch::{Body, Sending, Transport};
use delivery::engine::Sink;
use delivery::outcome::Outcome;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io::Write as _;
use std::rc::Rc;

/// Writes records to Outrigger's stdout, for example for a companion container whose log is collected by the platform. In wrap
/// mode stdout has the app's output already: this sink would repeat it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `raw`: the line as the app wrote it; `json`: one object with all fields. Default: `raw`.
    #[serde(default)]
    pub format: Format,
}

impl Kind for Config {
    fn example() -> &'static str {
        "stdout: { format: json }\n"
    }
}

impl SinkConfig for Config {
    fn build(&self) -> Result<Sink<Batch>, String> {
        Ok(Sink { encoder: Box::new(FormatLines::new(self.format)), transport: Rc::new(Stdout {}) })
    }
}

struct Stdout {}

impl Transport for Stdout {
    fn send<'a>(&'a self, body: &'a Body) -> Sending<'a> {
        let bytes = body.bytes.clone();
        Box::pin(async move {
            let write = move || {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(&bytes).and_then(|()| stdout.flush())
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => Outcome::Delivered,
                // The reader has closed the pipe permanently.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    Outcome::rejected(error.to_string())
                }
                Ok(Err(error)) => Outcome::retry(error.to_string()),
                Err(error) => Outcome::retry(error.to_string()),
            }
        })
    }

    fn max_in_flight(&self) -> usize {
        1
    }
}
