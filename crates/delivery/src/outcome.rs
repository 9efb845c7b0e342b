//! The outcome of one attempt. The state of a receiver is waited for; a fault of the body itself is final.

use std::time::Duration;

#[derive(Debug)]
pub enum Outcome {
    /// The receiver acknowledged every record.
    Delivered,
    /// The receiver cannot accept anything now: the body is sent again.
    Retry {
        error: String,
        /// The delay that the receiver requested.
        after: Option<Duration>,
    },
    /// The body is sent again in two halves.
    TooLarge { error: String },
    /// The receiver rejects the content: another attempt would have the same outcome.
    Rejected { error: String },
}

impl Outcome {
    pub fn retry(error: impl Into<String>) -> Outcome {
        Outcome::Retry { error: error.into(), after: None }
    }

    pub fn rejected(error: impl Into<String>) -> Outcome {
        Outcome::Rejected { error: error.into() }
    }

    /// By the status of an HTTP response (RFC 9110, 15). No status blames the body but 400, 413, 422 and those that a request of
    /// the same form would get again: wrong credentials, a wrong path and a redirect are repaired at the receiver or by a reload.
    pub fn of(response: &net::Response) -> Outcome {
        let error = format!("status {}: {}", response.status, response.excerpt());
        match response.status {
            200..=299 => Outcome::Delivered,
            413 => Outcome::TooLarge { error },
            300..=399 | 401 | 403 | 404 | 407 | 408 | 421 | 425 | 429 | 500..=599 => {
                Outcome::Retry { error, after: response.retry_after() }
            }
            _ => Outcome::Rejected { error },
        }
    }

    /// Of a call without a response.
    pub fn of_error(error: &net::Error) -> Outcome {
        if error.retry { Outcome::retry(error.to_string()) } else { Outcome::rejected(error.to_string()) }
    }
}
