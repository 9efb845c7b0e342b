//! The HTTP/1.1 forwarder: own code on `httparse`, heads as byte ranges over the read buffer, case and order of headers
//! preserved (RFC 9110, RFC 9112). `head` parses and rewrites heads, `body` finds their ends, `forward` serves a connection.

pub mod syntax;
pub mod head;
mod fields;
mod target;
pub mod body;
pub mod forward;
pub mod exchange;
