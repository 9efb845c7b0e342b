//! The app's exposition page. In: a URL. Out: a snapshot, or that the target is down. Bounds: `timeout`, `body_max`,
//! `series_max`.

use super::{Collected, Collecting, Source, now_ms};
use crate::series::{Interner, Snapshot};
use crate::text;
use base::registry::Kind;
use base::unit::{ByteSize, Span, Url};
use net::{Client, ClientConfig, Request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::cell::Cell;
use std::io::Read as _;
use std::rc::Rc;

/// Reads the app's metrics page in the Prometheus text format. Timestamps, types and help are kept. When the page does not
/// answer its series end at once; bad lines are skipped and the first one is named in the status. A sample whose own time is not
/// newer than the one before it, or more than an hour behind or ten minutes ahead, is not pushed, counted under `not_newer`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The page, such as http://127.0.0.1:8080/metrics.
    pub url: Url,
    /// How often it is read.
    #[serde(default = "super::every")]
    pub every: Span,
    /// The largest page that is read, after decompression.
    #[serde(default = "body_max")]
    pub body_max: ByteSize,
    /// Series of this target; samples of new ones beyond it are dropped under `series_limit`.
    #[serde(default = "series_max")]
    pub series_max: u32,
    /// Time-outs, headers, authentication and certificates.
    #[serde(default)]
    pub client: ClientConfig,
}

impl Kind for Config {
    const EXAMPLE: &'static str = "scrape: { url: \"http://127.0.0.1:8080/metrics\", every: 15s }\n";
}

fn body_max() -> ByteSize {
    ByteSize::mib(16)
}

fn series_max() -> u32 {
    50_000
}

pub struct Scrape {
    client: Client,
    url: String,
    body_max: usize,
    series_max: usize,
    target: Vec<(Rc<str>, Rc<str>)>,
    interner: Cell<Interner>,
}

impl Scrape {
    pub fn new(config: &Config, name: &str) -> Result<Scrape, String> {
        let rest = config.url.as_str().split_once("://").map_or("", |(_, rest)| rest);
        let instance = rest.split(['/', '?']).next().unwrap_or(rest).rsplit('@').next().unwrap_or(rest);
        let client =
            ClientConfig { timeout: Span(config.client.timeout.0.min(config.every.0)), ..config.client.clone() };
        Ok(Scrape {
            client: Client::new(client).map_err(|error| error.to_string())?,
            url: config.url.as_str().to_string(),
            body_max: config.body_max.as_usize(),
            series_max: config.series_max as usize,
            target: vec![("instance".into(), instance.into()), ("job".into(), name.into())],
            interner: Cell::default(),
        })
    }

    async fn page(&self) -> Result<Vec<u8>, String> {
        let request = Request {
            method: http::Method::GET,
            url: self.url.clone(),
            headers: vec![("accept", ACCEPT.into()), ("accept-encoding", "gzip".into())],
            body: bytes::Bytes::new(),
            answer_max: self.body_max,
        };
        let response = self.client.send(&request).await.map_err(|error| error.to_string())?;
        if !response.is_success() {
            return Err(format!("status {}: {}", response.status, response.excerpt()));
        }
        let kind = response.media_type();
        if UNREAD.iter().any(|unread| kind.eq_ignore_ascii_case(unread)) {
            return Err(format!("the page is {kind} though text/plain was asked for, and only that is read"));
        }
        match response.header("content-encoding").map(str::trim) {
            None | Some("" | "identity") => Ok(response.body.into()),
            Some(gzip) if gzip.eq_ignore_ascii_case("gzip") => inflate(&response.body, self.body_max),
            Some(other) => Err(format!("the page is compressed by {other} though gzip was asked for")),
        }
    }

    fn read(&self, body: &[u8], time_ms: i64, interner: &mut Interner) -> Collected {
        let (snapshot, faults) = text::parse(body, time_ms, self.series_max, interner);
        let mut troubles = Vec::new();
        if let Some((line, trouble)) = faults.first_bad {
            troubles.push(format!("{} bad lines; line {line} has {trouble}", faults.bad_lines));
        }
        if faults.over_limit > 0 {
            troubles.push(format!("{} samples over series_max = {}", faults.over_limit, self.series_max));
        }
        if faults.not_newer > 0 {
            troubles.push(format!(
                "{} samples that are not newer: their series stands twice, or their own times are old or far from now",
                faults.not_newer
            ));
        }
        Collected {
            snapshot: Some(Snapshot { target: self.target.clone(), ..snapshot }),
            dropped: vec![("bad_line", faults.bad_lines), ("series_limit", faults.over_limit)],
            trouble: (!troubles.is_empty()).then(|| troubles.join("; ")),
            up: true,
        }
    }
}

const ACCEPT: &str = "text/plain;version=0.0.4, */*;q=0.1";
/// Formats whose text or bytes mean something else than ours, as of a page for people: reading them as ours would tell wrong numbers.
const UNREAD: [&str; 6] = [
    "application/openmetrics-text",
    "application/vnd.google.protobuf",
    "application/json",
    "application/xml",
    "text/html",
    "text/xml",
];

/// Bound: the same as for a page that is not compressed.
fn inflate(body: &[u8], max: usize) -> Result<Vec<u8>, String> {
    let mut page = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(body).take(max as u64 + 1).read_to_end(&mut page);
    read.map_err(|error| format!("the page is no gzip: {error}"))?;
    if page.len() > max {
        return Err(format!("the page has more than body_max = {}", ByteSize(max as u64)));
    }
    Ok(page)
}

impl Source for Scrape {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async {
            let time_ms = now_ms();
            match self.page().await {
                Ok(page) => {
                    let mut interner = self.interner.take();
                    let collected = self.read(&page, time_ms, &mut interner);
                    self.interner.set(interner);
                    collected
                }
                // All series end: an empty round tells them.
                Err(trouble) => {
                    Collected { snapshot: Some(self.end()), dropped: Vec::new(), trouble: Some(trouble), up: false }
                }
            }
        })
    }

    fn end(&self) -> Snapshot {
        Snapshot { target: self.target.clone(), ..super::ended(&self.interner) }
    }

    fn is_local(&self) -> bool {
        false
    }
}
