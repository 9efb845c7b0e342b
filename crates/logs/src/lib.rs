//! The app's logs: read → process → buffer → ship. In: the capture ring, files, access records. Out: batches at receivers, each
//! record delivered, pending, or dropped for a counted reason. It opens no listening socket, and no sink blocks another
//! before its own buffer is full.

pub mod config;
pub mod plan;
pub mod run;
mod pipeline;
pub mod telemetry;
mod stop;
pub mod batch;
mod framer;
mod ack;
mod checkpoint;
pub mod source;
pub mod stage;
pub mod sink;
mod encode;
mod time;
#[doc(hidden)]
pub mod fuzzing;
