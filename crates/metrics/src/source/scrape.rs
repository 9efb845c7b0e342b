//! The app's exposition page. In: a URL. Out: a snapshot, or that the target is down. Bounds: `timeout`, `max_body_bytes`,
//! `max_series`.

use super::{Collected, Collecting, Source, now_ms};
use crate::series::{Interner, Snapshot};
use crate::text;
use base::telemetry::reason::Reason;
use config::registry::Kind;
use config::unit::{ByteSize, TimeSpan, Url};
use net::{Client, ClientConfig, Request};
use std::cell::Cell;
use std::io::Read as _;
use std::rc::Rc;

net::http_client! {
    /// Reads the app's metrics page in the Prometheus text format. Timestamps, types and help are kept. When the page does not
    /// answer its series end at once; bad lines are skipped and the first one is named in the status. A sample whose own time is not
    /// newer than the one before it, or more than an hour behind or ten minutes ahead, is not pushed, counted under `not_newer`.
    pub struct Config {
        /// The page, such as `http://127.0.0.1:8080/metrics`.
        pub url: Url,
        /// How often it is read, at least 100ms. A longer `timeout` is cut to it.
        #[serde(default = "super::interval")]
        pub interval: TimeSpan,
        /// The largest page, after decompression; the scrape of a larger one fails.
        #[serde(default = "max_body_bytes")]
        pub max_body_bytes: ByteSize,
        /// Series of this target. Samples of new series beyond it are dropped under `series_limit`; known ones stay.
        #[serde(default = "max_series")]
        pub max_series: u32,
    }
}

impl Kind for Config {
    const EXAMPLE: &'static str = "scrape: { url: \"http://127.0.0.1:8080/metrics\", interval: 15s }\n";
}

fn max_body_bytes() -> ByteSize {
    ByteSize::mib(16)
}

fn max_series() -> u32 {
    50_000
}

pub struct Scrape {
    client: Client,
    url: String,
    max_body_bytes: usize,
    max_series: usize,
    target: Vec<(Rc<str>, Rc<str>)>,
    interner: Cell<Interner>,
}

impl Scrape {
    pub fn new(config: &Config, name: &str) -> Result<Scrape, String> {
        let rest = config.url.as_str().split_once("://").map_or("", |(_, rest)| rest);
        let instance = rest.split(['/', '?']).next().unwrap_or(rest).rsplit('@').next().unwrap_or(rest);
        let client = ClientConfig { timeout: TimeSpan(config.timeout.0.min(config.interval.0)), ..config.client() };
        Ok(Scrape {
            client: Client::new(client).map_err(|error| error.to_string())?,
            url: config.url.as_str().to_string(),
            max_body_bytes: config.max_body_bytes.as_usize(),
            max_series: config.max_series as usize,
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
            answer_max: self.max_body_bytes,
        };
        let response = self.client.send(&request).await.map_err(|error| error.to_string())?;
        if !response.is_success() {
            return Err(format!("status {}: {}", response.status, response.excerpt()));
        }
        let kind = response.media_type();
        if UNREAD.iter().any(|unread| kind.eq_ignore_ascii_case(unread)) {
            return Err(format!("unsupported Content-Type {kind}, expected text/plain"));
        }
        match response.header("content-encoding").map(str::trim) {
            None | Some("" | "identity") => Ok(response.body.into()),
            Some(gzip) if gzip.eq_ignore_ascii_case("gzip") => inflate(&response.body, self.max_body_bytes),
            Some(other) => Err(format!("unsupported Content-Encoding {other}, expected gzip")),
        }
    }

    fn read(&self, body: &[u8], time_ms: i64, interner: &mut Interner) -> Collected {
        let (snapshot, faults) = text::parse(body, time_ms, self.max_series, interner);
        let mut troubles = Vec::new();
        if let Some((line, error)) = faults.first_bad {
            troubles.push(format!("{} parse errors; first at line {line}: {error}", faults.bad_lines));
        }
        if faults.over_limit > 0 {
            troubles.push(format!("{} samples dropped: max_series = {} exceeded", faults.over_limit, self.max_series));
        }
        if faults.not_newer > 0 {
            troubles.push(format!("{} samples dropped: duplicate series or out-of-order timestamp", faults.not_newer));
        }
        Collected {
            snapshot: Some(Snapshot { target: self.target.clone(), ..snapshot }),
            dropped: vec![(Reason::ParseError, faults.bad_lines), (Reason::SeriesLimit, faults.over_limit)],
            error: (!troubles.is_empty()).then(|| troubles.join("; ")),
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
    read.map_err(|error| format!("invalid gzip body: {error}"))?;
    if page.len() > max {
        return Err(format!("response body exceeds max_body_bytes = {}", ByteSize(max as u64)));
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
                Err(error) => {
                    Collected { snapshot: Some(self.end()), dropped: Vec::new(), error: Some(error), up: false }
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
