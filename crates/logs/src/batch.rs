//! A batch: one shared byte buffer and a compact table of records, with a sparse overlay for the fields that stages set.
//! In: chunks of lines. Out: the same batch to every sink, without a copy. The raw path allocates nothing per record.

use crate::ack::AckHandle;
use bytes::Bytes;
use delivery::batch::Origin;
use std::rc::Rc;

/// Which of the app's streams a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    None,
    Stdout,
    Stderr,
}

/// One record: its line in the batch's bytes, and the range of its fields.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub start: u32,
    pub end: u32,
    /// Nanoseconds since the epoch.
    pub time_ns: i64,
    /// The app set the time.
    pub own_time: bool,
    /// Its fields are `batch.fields[fields_start..fields_end]`; none if both are equal.
    pub fields_start: u32,
    pub fields_end: u32,
    /// The line was parsed as JSON: its fields represent it, and it has a message only if one of them is the message.
    pub parsed: bool,
    /// The line exceeded the limit and lost its tail.
    pub truncated: bool,
}

#[derive(Clone, Debug)]
pub enum Key {
    /// The content of a JSON string, in the batch's bytes.
    Range(u32, u32),
    Name(Rc<str>),
}

impl Key {
    /// `bytes`: those of the batch.
    pub fn text<'t>(&'t self, bytes: &'t [u8]) -> &'t [u8] {
        match self {
            Key::Range(start, end) => bytes.get(*start as usize..*end as usize).unwrap_or(&[]),
            Key::Name(name) => name.as_bytes(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum FieldValue {
    /// A JSON value in the batch's bytes.
    Json(u32, u32),
    Text(Rc<str>),
}

#[derive(Clone, Debug)]
pub struct Field {
    pub key: Key,
    pub value: FieldValue,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub bytes: Bytes,
    /// The offset in its source of the first of `bytes`.
    pub base: u64,
    pub records: Vec<Record>,
    pub fields: Vec<Field>,
    /// Fields that `set` adds to all records. They replace fields of the same name.
    pub common: Vec<(Rc<str>, Rc<str>)>,
    pub source: Rc<str>,
    pub file: Option<Rc<str>>,
    pub stream: Stream,
    /// Equal for batches whose order matters: those of one source, file and stream.
    pub stream_id: u64,
    /// Receives the acknowledgements of the sinks.
    pub ack: Option<AckHandle>,
}

impl Batch {
    /// The memory of the batch, including its tables: those of many short lines exceed the text.
    pub fn cost(&self) -> usize {
        self.bytes.len() + self.records.capacity() * size_of::<Record>() + self.fields.capacity() * size_of::<Field>()
    }

    pub fn line(&self, record: &Record) -> &[u8] {
        self.slice(record.start, record.end)
    }

    pub fn slice(&self, start: u32, end: u32) -> &[u8] {
        self.bytes.get(start as usize..end as usize).unwrap_or(&[])
    }

    pub fn fields_of(&self, record: &Record) -> &[Field] {
        self.fields.get(record.fields_start as usize..record.fields_end as usize).unwrap_or(&[])
    }

    pub fn key<'a>(&'a self, field: &'a Field) -> &'a [u8] {
        field.key.text(&self.bytes)
    }
}

impl delivery::batch::Batch for Batch {
    fn records(&self) -> usize {
        self.records.len()
    }

    fn cost(&self) -> usize {
        Batch::cost(self)
    }

    fn stream(&self) -> u64 {
        self.stream_id
    }

    fn origin(&self) -> Origin {
        match (&self.ack, &self.file) {
            (None, _) => Origin::Memory,
            (Some(_), None) => Origin::Captured,
            (Some(_), Some(_)) => Origin::Stored,
        }
    }

    fn acknowledge(&self, sink: usize) {
        if let Some(ack) = &self.ack {
            ack.done(sink);
        }
    }
}

impl Stream {
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Stream::None => None,
            Stream::Stdout => Some("stdout"),
            Stream::Stderr => Some("stderr"),
        }
    }
}
