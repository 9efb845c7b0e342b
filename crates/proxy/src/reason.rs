//! Why Outrigger responded itself or ended an exchange: error types of RFC 9209, 2.3, and additional names. They are in access records, in `outrigger_proxy_local_responses_total`, and in the header `Proxy-Status`.

/// One reason, by its name everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    ConnectionRefused,
    ConnectionTimeout,
    ConnectionTerminated,
    ConnectionWriteTimeout,
    DestinationUnavailable,
    HttpRequestError,
    HttpResponseTimeout,
    HttpResponseHeaderSectionSize,
    HttpResponseIncomplete,
    HttpProtocolError,
    ProxyLoopDetected,
    DirectResponse,
    RequestTimeout,
    ClientDisconnected,
    MemoryPressure,
}

impl Reason {
    pub const ALL: [Reason; 15] = [
        Reason::ConnectionRefused,
        Reason::ConnectionTimeout,
        Reason::ConnectionTerminated,
        Reason::ConnectionWriteTimeout,
        Reason::DestinationUnavailable,
        Reason::HttpRequestError,
        Reason::HttpResponseTimeout,
        Reason::HttpResponseHeaderSectionSize,
        Reason::HttpResponseIncomplete,
        Reason::HttpProtocolError,
        Reason::ProxyLoopDetected,
        Reason::DirectResponse,
        Reason::RequestTimeout,
        Reason::ClientDisconnected,
        Reason::MemoryPressure,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::ConnectionRefused => "connection_refused",
            Reason::ConnectionTimeout => "connection_timeout",
            Reason::ConnectionTerminated => "connection_terminated",
            Reason::ConnectionWriteTimeout => "connection_write_timeout",
            Reason::DestinationUnavailable => "destination_unavailable",
            Reason::HttpRequestError => "http_request_error",
            Reason::HttpResponseTimeout => "http_response_timeout",
            Reason::HttpResponseHeaderSectionSize => "http_response_header_section_size",
            Reason::HttpResponseIncomplete => "http_response_incomplete",
            Reason::HttpProtocolError => "http_protocol_error",
            Reason::ProxyLoopDetected => "proxy_loop_detected",
            Reason::DirectResponse => "direct_response",
            Reason::RequestTimeout => "request_timeout",
            Reason::ClientDisconnected => "client_disconnected",
            Reason::MemoryPressure => "memory_pressure",
        }
    }

    /// The reason of a rejected request, by the status of its response.
    pub fn of_status(status: u16) -> Reason {
        match status {
            408 => Reason::RequestTimeout,
            503 => Reason::MemoryPressure,
            508 => Reason::ProxyLoopDetected,
            _ => Reason::HttpRequestError,
        }
    }

    /// The reason of a failed connection attempt.
    pub fn of_connect(kind: std::io::ErrorKind) -> Reason {
        match kind {
            std::io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
            std::io::ErrorKind::TimedOut => Reason::ConnectionTimeout,
            _ => Reason::DestinationUnavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_reason_has_its_own_name_and_place() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.as_str());
        }
    }
}
