//! What is delivered: the traits that a subsystem and a sink implement.

use crate::outcome::Outcome;
use bytes::Bytes;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

/// Records that are acknowledged together.
pub trait Batch {
    /// The number of records.
    fn records(&self) -> usize;

    /// The bytes of memory that it uses.
    fn cost(&self) -> usize;

    /// Its stream: batches of one stream are delivered in order.
    fn stream(&self) -> u64;

    fn origin(&self) -> Origin;

    /// A sink has delivered all of its records, or dropped them for a counted reason.
    fn acknowledge(&self, sink: usize);
}

/// What happens to records that are not delivered when a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They are read again from where they are stored.
    Stored,
    /// The next worker reads them again; at a stop the source persists what a required sink has not acknowledged.
    Captured,
    /// They are only here.
    Memory,
}

/// Builds bodies of a protocol.
pub trait Encode<B> {
    /// Adds these records of the batch until the body has `max` bytes; returns the index of the next record.
    fn encode(&mut self, batch: &B, records: Range<usize>, max: usize) -> usize;

    /// The size of the body so far.
    fn size(&self) -> usize;

    /// Takes the body; the next one is empty. An error drops its records as `rejected`.
    fn finish(&mut self) -> Result<Body, String>;
}

/// A finished body, sent unchanged by every attempt.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub bytes: Bytes,
    /// The bytes that count as sent, if the receiver accepts it.
    pub sent: usize,
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body { sent: bytes.len(), bytes }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Bytes::from(bytes).into()
    }
}

pub type Sending<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// Sends bodies to one receiver.
pub trait Transport {
    /// One attempt.
    fn send<'a>(&'a self, body: &'a Body) -> Sending<'a>;

    /// How many bodies may be in flight, whatever `max_concurrency` allows.
    fn max_in_flight(&self) -> usize {
        usize::MAX
    }
}
