//! Notifications that a new revision is published. A kind is one file here and one line in the registry.

pub mod signal;
pub mod http;

config::registry! {
    /// One notification: its kind.
    pub entry NotifyEntry, kind NotifyKind {
        /// A signal to the app.
        signal => Signal(signal::Config),
        /// An HTTP request.
        http => Http(http::Config),
    } shared {}
}

impl NotifyKind {
    /// A short description for status and log.
    pub fn describe(&self) -> String {
        match self {
            NotifyKind::Signal(config) => format!("signal {}", config.name()),
            NotifyKind::Http(config) => format!("http {:?}", config.url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<NotifyEntry>(NotifyEntry::KINDS);
    }
}
