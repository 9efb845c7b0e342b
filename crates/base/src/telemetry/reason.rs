//! Why records are dropped, and which errors components count. In: nothing. Out: the words of the ledger, of
//! `outrigger_component_dropped_records_total` and of `outrigger_component_errors_total`, each with a sentence for the docs.
//! Bound: the list is closed; no reason comes from outside.

/// A reason of the ledger and of component metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    BufferFull,
    Shutdown,
    Rejected,
    ParseError,
    SeriesLimit,
    MemoryPressure,
    OutOfOrder,
}

impl Reason {
    /// All of them, for the docs.
    pub const ALL: [Reason; 7] = [
        Reason::BufferFull,
        Reason::Shutdown,
        Reason::Rejected,
        Reason::ParseError,
        Reason::SeriesLimit,
        Reason::MemoryPressure,
        Reason::OutOfOrder,
    ];

    /// The word in JSON and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BufferFull => "buffer_full",
            Reason::Shutdown => "shutdown",
            Reason::Rejected => "rejected",
            Reason::ParseError => "parse_error",
            Reason::SeriesLimit => "series_limit",
            Reason::MemoryPressure => "memory_pressure",
            Reason::OutOfOrder => "out_of_order",
        }
    }

    /// What it means, where it occurs and what to do.
    pub fn about(self) -> &'static str {
        match self {
            Reason::BufferFull => {
                "A bounded buffer was full: the capture ring of `stdio`, the access records of `proxy`, or `buffer.max_bytes` of a sink. \
                 The component says which."
            }
            Reason::Shutdown => "Not delivered when the stop timed out.",
            Reason::Rejected => "The receiver refused the record for good; the log has its answer.",
            Reason::ParseError => {
                "A line of a scraped page is invalid. A `parse` stage counts records that it leaves as they are as errors with this reason."
            }
            Reason::SeriesLimit => "A new series of a target beyond `max_series`.",
            Reason::MemoryPressure => "A scrape was skipped under memory pressure.",
            Reason::OutOfOrder => {
                "A sample whose own timestamp is not newer than the one before it, more than an hour old or ten minutes ahead, or a second \
                 sample of one series on a page."
            }
        }
    }

    /// Whether the configuration asks for the drop. Alert on those that are not.
    pub fn is_intentional(self) -> bool {
        match self {
            Reason::BufferFull
            | Reason::Shutdown
            | Reason::Rejected
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
    fn each_reason_has_one_word_everywhere() {
        for reason in Reason::ALL {
            let json = serde_json::to_string(&reason).expect("a word");
            assert_eq!(json, format!("\"{}\"", reason.as_str()));
            assert!(reason.about().ends_with('.'), "{} is explained", reason.as_str());
        }
    }
}
