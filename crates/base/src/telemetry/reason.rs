//! The reasons of dropped records and of counted errors. In: nothing. Out: the values of the ledger, of
//! `outrigger_component_dropped_records_total` and of `outrigger_component_errors_total`, each with a sentence for the docs.
//! Limits: the list is closed; no reason is taken from external data.

/// A reason of the ledger and of component metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    BufferFull,
    Shutdown,
    Rejected,
    Expired,
    ParseError,
    SeriesLimit,
    MemoryPressure,
    OutOfOrder,
}

impl Reason {
    /// All reasons, for the docs.
    pub const ALL: [Reason; 8] = [
        Reason::BufferFull,
        Reason::Shutdown,
        Reason::Rejected,
        Reason::Expired,
        Reason::ParseError,
        Reason::SeriesLimit,
        Reason::MemoryPressure,
        Reason::OutOfOrder,
    ];

    /// Its value in JSON and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BufferFull => "buffer_full",
            Reason::Shutdown => "shutdown",
            Reason::Rejected => "rejected",
            Reason::Expired => "expired",
            Reason::ParseError => "parse_error",
            Reason::SeriesLimit => "series_limit",
            Reason::MemoryPressure => "memory_pressure",
            Reason::OutOfOrder => "out_of_order",
        }
    }

    /// Its meaning, its components and the next step.
    pub fn about(self) -> &'static str {
        match self {
            Reason::BufferFull => {
                "A bounded buffer was full: the capture ring of `stdio`, the access records of `proxy`, or `buffer.max_bytes` of a sink. \
                 The component identifies the buffer."
            }
            Reason::Shutdown => "Not delivered when the stop timed out.",
            Reason::Rejected => "The receiver rejected the record permanently; the Outrigger log has the response.",
            Reason::Expired => "Not delivered within `retry.max_retries` or `retry.max_age` of a sink.",
            Reason::ParseError => {
                "A line of a scraped exposition is invalid. A `parse` stage counts records that it passes on unchanged as errors with this reason."
            }
            Reason::SeriesLimit => "A new series of a target beyond `max_series`.",
            Reason::MemoryPressure => "A scrape was skipped under memory pressure.",
            Reason::OutOfOrder => {
                "A sample whose own timestamp is not newer than the previous one, more than an hour old or ten minutes ahead, or a second \
                 sample of one series in one scrape."
            }
        }
    }

    /// Whether the configuration requests the drop. Alert on unintentional drops.
    pub fn is_intentional(self) -> bool {
        match self {
            Reason::BufferFull
            | Reason::Shutdown
            | Reason::Rejected
            | Reason::Expired
            | Reason::ParseError
            | Reason::SeriesLimit
            | Reason::MemoryPressure
            | Reason::OutOfOrder => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_has_the_same_value_in_json_and_labels() {
        for reason in Reason::ALL {
            let json = serde_json::to_string(&reason).expect("valid JSON");
            assert_eq!(json, format!("\"{}\"", reason.as_str()));
            assert!(reason.about().ends_with('.'), "{} has a sentence", reason.as_str());
        }
    }
}
