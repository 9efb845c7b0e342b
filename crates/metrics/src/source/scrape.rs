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
use std::rc::Rc;

/// Reads the app's metrics page in the Prometheus text format. Timestamps, types and help are kept. When the page does not
/// answer its series end at once; bad lines are skipped and the first one is named in the status.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The page, such as http://127.0.0.1:8080/metrics.
    pub url: Url,
    /// How often it is read.
    #[serde(default = "super::every")]
    pub every: Span,
    /// The largest page that is read.
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

    async fn page(&self) -> Result<net::Response, String> {
        let request = Request {
            method: http::Method::GET,
            url: self.url.clone(),
            headers: vec![("accept", "text/plain;version=0.0.4, */*;q=0.1".into())],
            body: bytes::Bytes::new(),
            answer_max: self.body_max,
        };
        let response = self.client.send(&request).await.map_err(|error| error.to_string())?;
        if !response.is_success() {
            return Err(format!("status {}: {}", response.status, response.excerpt()));
        }
        Ok(response)
    }
}

impl Source for Scrape {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async {
            let time_ms = now_ms();
            let page = self.page().await;
            let mut interner = self.interner.take();
            let collected = match page {
                Ok(page) => {
                    let (snapshot, faults) = text::parse(&page.body, time_ms, self.series_max, &mut interner);
                    let trouble = match faults.first_bad {
                        Some((line, trouble)) => {
                            Some(format!("{} bad lines; line {line} has {trouble}", faults.bad_lines))
                        }
                        None if faults.over_limit > 0 => Some(format!("{} samples over series_max", faults.over_limit)),
                        None => None,
                    };
                    let snapshot = Snapshot { target: self.target.clone(), ..snapshot };
                    let dropped = vec![("bad_line", faults.bad_lines), ("series_limit", faults.over_limit)];
                    Collected { snapshot: Some(snapshot), dropped, trouble }
                }
                Err(trouble) => {
                    // All series end: an empty round tells them.
                    interner.begin();
                    let gone = interner.end();
                    let ended = Snapshot { time_ms, gone, target: self.target.clone(), ..Snapshot::default() };
                    Collected { snapshot: Some(ended), dropped: Vec::new(), trouble: Some(trouble) }
                }
            };
            self.interner.set(interner);
            collected
        })
    }

    fn is_local(&self) -> bool {
        false
    }
}
