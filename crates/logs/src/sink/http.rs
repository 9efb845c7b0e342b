//! JSON lines by HTTP POST. In: records. Out: one object a line (`application/x-ndjson`), compressed as configured. Any 2xx is an
//! acknowledgement.

use super::SinkConfig;
use crate::batch::Batch;
use crate::encode::Encoder;
use config::registry::Kind;
use config::unit::Url;
use delivery::batch::{Body, Encode};
use delivery::engine::Sink;
use delivery::post::Post;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io::Write as _;
use std::ops::Range;
use std::rc::Rc;

net::http_client! {
    /// Posts records as JSON lines: one object per record with `message`, `timestamp`, `stream`, `source`, `file` and every field
    /// that a stage set. A 2xx response acknowledges; 408, 425, 429 and 5xx are retried with backoff; any other response drops
    /// the batch with reason `rejected`, and the response is logged.
    pub struct Config {
        /// The URL to post to.
        pub url: Url,
        /// Compression of bodies: `gzip` (RFC 1952) and `zstd` (RFC 8878) at level 1, or `none`. Default: `gzip`.
        #[serde(default)]
        pub compression: Compression,
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// RFC 1952, level 1: most of the gain for a fraction of the cost.
    #[default]
    Gzip,
    /// RFC 8878, level 1.
    Zstd,
    /// Uncompressed.
    None,
}

impl Kind for Config {
    fn example() -> &'static str {
        "http: { url: \"http://127.0.0.1:8686/lines\", compression: gzip }\n"
    }

    net::http_kind!();
}

impl SinkConfig for Config {
    fn build(&self) -> Result<Sink<Batch>, String> {
        let mut headers = vec![("content-type", "application/x-ndjson".to_string())];
        match self.compression {
            Compression::Gzip => headers.push(("content-encoding", "gzip".into())),
            Compression::Zstd => headers.push(("content-encoding", "zstd".into())),
            Compression::None => {}
        }
        let (encoder, body) = (Encoder::default(), Vec::new());
        Ok(Sink {
            encoder: Box::new(Lines { compression: self.compression, encoder, body }),
            transport: Rc::new(Post::new(self.client(), self.url.as_str().to_string(), headers)?),
        })
    }
}

struct Lines {
    compression: Compression,
    encoder: Encoder,
    body: Vec<u8>,
}

impl Encode<Batch> for Lines {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, max: usize) -> usize {
        for (index, record) in batch.records.iter().enumerate().take(records.end).skip(records.start) {
            if self.body.len() >= max {
                return index;
            }
            self.encoder.json_line(batch, record, &mut self.body);
        }
        records.end
    }

    fn size(&self) -> usize {
        self.body.len()
    }

    fn finish(&mut self) -> Result<Body, String> {
        let body = std::mem::take(&mut self.body);
        compress(body, self.compression).map(Body::from).map_err(|error| error.to_string())
    }
}

fn compress(body: Vec<u8>, compression: Compression) -> std::io::Result<Vec<u8>> {
    Ok(match compression {
        Compression::None => body,
        Compression::Zstd => zstd::bulk::compress(&body, 1)?,
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::new(1));
            encoder.write_all(&body)?;
            encoder.finish()?
        }
    })
}
