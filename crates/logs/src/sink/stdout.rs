//! Outrigger's stdout. In: records. Out: lines. A reader that stops reading blocks only this sink.

use super::file::{Format, encode_lines};
use super::{Delivery, Failure, Sink, SinkConfig};
use crate::batch::Batch;
use crate::encode::Encoder;
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

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
    fn build(&self) -> Result<Box<dyn Sink>, String> {
        Ok(Box::new(Stdout { format: self.format, encoder: Encoder::default(), body: Arc::default() }))
    }
}

struct Stdout {
    format: Format,
    encoder: Encoder,
    body: Arc<Vec<u8>>,
}

impl Sink for Stdout {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, max: usize) -> usize {
        encode_lines(self.format, &mut self.encoder, batch, records, max, Arc::make_mut(&mut self.body))
    }

    fn size(&self) -> usize {
        self.body.len()
    }

    fn deliver(&mut self) -> Delivery<'_> {
        let body = self.body.clone();
        Box::pin(async move {
            let write = move || {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(&body).and_then(|()| stdout.flush())
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => Ok(()),
                // The reader has closed the pipe permanently.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    Err(Failure::reject(error.to_string()))
                }
                Ok(Err(error)) => Err(Failure::retry(error.to_string())),
                Err(error) => Err(Failure::retry(error.to_string())),
            }
        })
    }

    fn reset(&mut self) {
        self.body = Arc::default();
    }
}
