//! The transport of sinks that post each body to one URL. In: bodies. Out: outcomes by the status of the response.

use crate::batch::{Body, Sending, Transport};
use crate::outcome::Outcome;
use net::{Client, ClientConfig, Request};

/// The maximum size of a receiver's response that is read.
const RESPONSE_MAX: usize = 64 << 10;

pub struct Post {
    client: Client,
    url: String,
    headers: Vec<(&'static str, String)>,
}

impl Post {
    /// `headers`: those of the protocol. Errors contain the path of an unusable certificate file.
    pub fn new(client: ClientConfig, url: String, headers: Vec<(&'static str, String)>) -> Result<Post, String> {
        Ok(Post { client: Client::new(client).map_err(|error| error.to_string())?, url, headers })
    }
}

impl Transport for Post {
    fn send<'a>(&'a self, body: &'a Body) -> Sending<'a> {
        let request = Request {
            method: http::Method::POST,
            url: self.url.clone(),
            headers: self.headers.clone(),
            body: body.bytes.clone(),
            response_max: RESPONSE_MAX,
        };
        Box::pin(async move {
            match self.client.send(&request).await {
                Ok(response) => Outcome::of(&response),
                Err(error) => Outcome::of_error(&error),
            }
        })
    }
}
