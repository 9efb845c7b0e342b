//! An HTTP request on which the app reloads its configuration.

use super::{Failure, Notification, NotifyConfig, Sending};
use base::runtime::backoff::Backoff;
use bytes::Bytes;
use config::needs::Needs;
use config::registry::Kind;
use config::unit::Url;
use net::{Client, Request};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

net::http_client! {
    /// Sends a request after each publication, such as a POST to the app's reload path; the header `X-Outrigger-Revision` has the
    /// revision. Any 2xx is success; anything else is retried a few times with a growing backoff, then shown in the status, and
    /// retried once after each poll of the store.
    pub struct Config {
        /// The URL to call.
        pub url: Url,
        /// The HTTP method. Default: `POST`.
        #[serde(default)]
        pub method: Method,
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub enum Method {
    #[default]
    #[serde(rename = "POST")]
    Post,
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "GET")]
    Get,
}

impl Kind for Config {
    fn example() -> &'static str {
        "http: { url: \"http://127.0.0.1:8080/-/reload\" }\n"
    }

    fn needs(&self, _id: &str) -> Needs {
        net::needs(self.url.as_str(), &self.client())
    }
}

/// Attempts in a row, and the backoff between them.
const ATTEMPTS_MAX: u32 = 6;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

impl NotifyConfig for Config {
    fn describe(&self) -> String {
        format!("http {:?}", self.url)
    }

    fn send<'a>(&'a self, notification: Notification<'a>) -> Sending<'a> {
        Box::pin(async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            while let Err(error) = attempt(self, notification.revision).await {
                if notification.again || backoff.attempts() + 1 >= ATTEMPTS_MAX {
                    return Err(Failure { error, retry: true });
                }
                tokio::time::sleep(backoff.pause()).await;
            }
            Ok(())
        })
    }
}

async fn attempt(config: &Config, revision: &str) -> Result<(), String> {
    let client = Client::new(config.client()).map_err(|error| error.to_string())?;
    let request = Request {
        method: match config.method {
            Method::Post => ::http::Method::POST,
            Method::Put => ::http::Method::PUT,
            Method::Get => ::http::Method::GET,
        },
        url: config.url.as_str().to_string(),
        headers: vec![("x-outrigger-revision", revision.to_string())],
        body: Bytes::new(),
        response_max: 64 << 10,
    };
    let response = client.send(&request).await.map_err(|error| error.to_string())?;
    if response.is_success() { Ok(()) } else { Err(format!("status {}: {}", response.status, response.excerpt())) }
}
