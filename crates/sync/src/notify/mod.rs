//! Notifications that a new revision is published. A kind is one file here and one line in the registry.

pub mod signal;
pub mod http;

use config::registry::Kind;
use std::future::Future;
use std::pin::Pin;

config::registry! {
    /// One notification: its kind.
    pub entry NotifyEntry, configs dyn NotifyConfig {
        /// A signal to the app.
        signal => signal::Config,
        /// An HTTP request.
        http => http::Config,
    } shared {}
}

/// The Config of a notification.
pub trait NotifyConfig: Kind {
    /// A short description for status and log.
    fn describe(&self) -> String;

    /// Sends it, with the retries of its kind.
    fn send<'a>(&'a self, notification: Notification<'a>) -> Sending<'a>;
}

pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// What is sent.
pub struct Notification<'a> {
    /// The store's own name of the revision.
    pub revision: &'a str,
    /// An earlier notification of this revision failed: one attempt is made.
    pub again: bool,
    /// Sends a signal to the app, unless that would terminate it: false if the app does not handle it (yet).
    pub signal_app: &'a dyn Fn(i32) -> bool,
}

/// Why a notification failed.
pub struct Failure {
    pub error: String,
    /// Whether it is sent again after the next poll: an app in another container may start to listen at any time.
    pub retry: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<NotifyEntry>(NotifyEntry::KINDS);
    }
}
