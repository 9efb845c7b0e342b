//! Scrapes the app's exposition. In: a URL. Out: a snapshot, or that the target is down. Limits: `timeout`,
//! `max_body_bytes`, `max_series`.

use super::{Collected, Collecting, Inputs, Source, SourceConfig, now_ms};
use crate::series::{Interner, Snapshot};
use crate::text;
use base::telemetry::reason::Reason;
use config::registry::Kind;
use config::unit::{ByteSize, TimeSpan, Url};
use net::{Client, ClientConfig, Request};
use std::cell::Cell;
use std::io::Read as _;
use std::rc::Rc;
use std::time::Duration;

net::http_client! {
    default timeout "timeout";
    /// Scrapes a Prometheus /metrics endpoint (text format). Timestamps, types and help are preserved. When a scrape fails, the
    /// series of the target end immediately; invalid lines are skipped, and the status shows the first one. A sample whose own
    /// timestamp is not newer than the previous one, or more than an hour behind or ten minutes ahead, is not pushed, counted
    /// under `out_of_order`.
    pub struct Config {
        /// The URL of the endpoint, such as `http://127.0.0.1:8080/metrics`.
        pub url: Url,
        /// How often it is scraped, at least 100ms. A longer `timeout` is capped at it.
        #[serde(default = "super::interval")]
        pub interval: TimeSpan,
        /// Maximum size of the exposition, after decompression; the scrape of a larger one fails.
        #[serde(default = "max_body_bytes")]
        pub max_body_bytes: ByteSize,
        /// Maximum number of series. Samples of new series above it are dropped under `series_limit`; known ones stay.
        #[serde(default = "max_series")]
        pub max_series: u32,
    }
}

impl Kind for Config {
    fn example() -> &'static str {
        "scrape: { url: \"http://127.0.0.1:8080/metrics\", interval: 15s }\n"
    }

    net::http_kind!();
}

impl SourceConfig for Config {
    fn interval(&self) -> Duration {
        self.interval.0
    }

    fn build(&self, name: &str, _inputs: &Inputs) -> Result<Rc<dyn Source>, String> {
        Ok(Rc::new(Scrape::new(self, name)?))
    }
}

/// As Prometheus: shorter than the interval of most targets.
fn timeout() -> TimeSpan {
    TimeSpan::from_secs(10)
}

fn max_body_bytes() -> ByteSize {
    ByteSize::mib(16)
}

fn max_series() -> u32 {
    50_000
}

struct Scrape {
    client: Client,
    url: String,
    max_body_bytes: usize,
    max_series: usize,
    target: Vec<(Rc<str>, Rc<str>)>,
    interner: Cell<Interner>,
}

impl Scrape {
    fn new(config: &Config, name: &str) -> Result<Scrape, String> {
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

    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let request = Request {
            method: http::Method::GET,
            url: self.url.clone(),
            headers: vec![("accept", ACCEPT.into()), ("accept-encoding", "gzip".into())],
            body: bytes::Bytes::new(),
            response_max: self.max_body_bytes,
        };
        let response = self.client.send(&request).await.map_err(|error| error.to_string())?;
        if !response.is_success() {
            return Err(format!("status {}: {}", response.status, response.excerpt()));
        }
        let kind = response.media_type();
        if UNSUPPORTED.iter().any(|unsupported| kind.eq_ignore_ascii_case(unsupported)) {
            return Err(format!("unsupported Content-Type {kind}, expected text/plain"));
        }
        match response.header("content-encoding").map(str::trim) {
            None | Some("" | "identity") => Ok(response.body.into()),
            Some(gzip) if gzip.eq_ignore_ascii_case("gzip") => inflate(&response.body, self.max_body_bytes),
            Some(other) => Err(format!("unsupported Content-Encoding {other}, expected gzip")),
        }
    }

    fn read(&self, body: &[u8], time_ms: i64, interner: &mut Interner) -> Collected {
        let (snapshot, found) = text::parse(body, time_ms, self.max_series, interner);
        let mut errors = Vec::new();
        if let Some((line, error)) = found.first_bad {
            errors.push(format!("{} parse errors; first at line {line}: {error}", found.bad_lines));
        }
        if found.over_limit > 0 {
            errors.push(format!("{} samples dropped: max_series = {} exceeded", found.over_limit, self.max_series));
        }
        if found.not_newer > 0 {
            errors.push(format!("{} samples dropped: duplicate series or out-of-order timestamp", found.not_newer));
        }
        Collected {
            snapshot: Some(Snapshot { target: self.target.clone(), ..snapshot }),
            dropped: vec![(Reason::ParseError, found.bad_lines), (Reason::SeriesLimit, found.over_limit)],
            error: (!errors.is_empty()).then(|| errors.join("; ")),
            up: true,
        }
    }
}

const ACCEPT: &str = "text/plain;version=0.0.4, */*;q=0.1";
/// Formats other than the text format, such as HTML: parsed as the text format they would give wrong values.
const UNSUPPORTED: [&str; 6] = [
    "application/openmetrics-text",
    "application/vnd.google.protobuf",
    "application/json",
    "application/xml",
    "text/html",
    "text/xml",
];

/// Limit: the same as for an uncompressed body.
fn inflate(body: &[u8], max: usize) -> Result<Vec<u8>, String> {
    let mut inflated = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(body).take(max as u64 + 1).read_to_end(&mut inflated);
    read.map_err(|error| format!("invalid gzip body: {error}"))?;
    if inflated.len() > max {
        return Err(format!("response body exceeds max_body_bytes = {}", ByteSize(max as u64)));
    }
    Ok(inflated)
}

impl Source for Scrape {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async {
            let time_ms = now_ms();
            match self.fetch().await {
                Ok(body) => {
                    let mut interner = self.interner.take();
                    let collected = self.read(&body, time_ms, &mut interner);
                    self.interner.set(interner);
                    collected
                }
                // All series end: an empty round.
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
