//! Delivery to receivers: queue → body → window of bodies in flight → acknowledgement. In: batches of a subsystem. Out: each record
//! delivered, or dropped for a counted reason. It knows no protocol: a sink brings an encoder, and a transport that reads the
//! receiver's response.
//!
//! ```text
//! Queue::push → Engine::fill → Encode::encode → Engine::dispatch → Receiver::deliver → Transport::send
//!     → Engine::settle → Batch::acknowledge
//! ```

pub mod batch;
pub mod engine;
pub mod options;
pub mod outcome;
pub mod post;
pub mod queue;
pub mod receiver;
mod window;
