//! The receiver of a sink: accepts JSON lines (plain, gzip, zstd), Loki pushes and Prometheus remote writes, and stores
//! everything it accepted, in order and with duplicates. It can be set to reject requests or to hang. In: requests. Out:
//! batches for the test. Limits: what one test sends.

use std::io::Read;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use serde_json::{Map, Value};

use super::proto::{PushRequest, TimeSeries, WriteRequest};
use super::server::Server;
use super::wire::{Head, Wire};
use super::{number_after, until};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    Accept,
    /// Reads the request and responds with this status; the batch does not count as received.
    Status(u16),
    /// Responds with 400 to a request with a record that contains this text, and accepts any other.
    Reject(&'static str),
    /// Reads the request and sends nothing until the answer changes, then closes the connection without a response.
    Hang,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub message: String,
    /// The JSON object of the line; for Loki, empty.
    pub fields: Map<String, Value>,
    /// Loki's stream labels; empty for JSON lines.
    pub labels: String,
    /// Unix time in nanoseconds from Loki; 0 for JSON lines, which have the time as a field.
    pub nanos: i128,
}

impl Record {
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or("")
    }
}

#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub head: Head,
    pub records: Vec<Record>,
    pub series: Vec<TimeSeries>,
}

pub struct LogReceiver {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    answer: Answer,
    accepted: Vec<Batch>,
    rejected: usize,
    malformed: Vec<String>,
}

impl LogReceiver {
    pub fn start() -> Self {
        Self::start_on(super::free_port(), Answer::Accept)
    }

    pub fn answering(answer: Answer) -> Self {
        Self::start_on(super::free_port(), answer)
    }

    pub fn start_on(port: u16, answer: Answer) -> Self {
        Self::start_at(format!("127.0.0.1:{port}"), answer)
    }

    /// On a given address of this machine, such as one that containers can reach.
    pub fn start_at(address: String, answer: Answer) -> Self {
        let state = State { answer, accepted: Vec::new(), rejected: 0, malformed: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let server = Server::start_at(address, {
            let shared = shared.clone();
            move |stream| serve(stream, &shared)
        });
        Self { server, shared }
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Sets the answer to requests from now on; releases those that hang.
    pub fn answer(&self, answer: Answer) {
        self.state().answer = answer;
        self.shared.changed.notify_all();
    }

    pub fn batches(&self) -> Vec<Batch> {
        self.state().accepted.clone()
    }

    /// Batches accepted so far.
    pub fn count(&self) -> usize {
        self.state().accepted.len()
    }

    /// Requests read but not accepted so far, those that hang included.
    pub fn refused(&self) -> usize {
        self.state().rejected
    }

    pub fn records(&self) -> Vec<Record> {
        self.state().accepted.iter().flat_map(|batch| batch.records.iter().cloned()).collect()
    }

    pub fn messages(&self) -> Vec<String> {
        self.state().accepted.iter().flat_map(|batch| batch.records.iter().map(|r| r.message.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.state().accepted.iter().map(|batch| batch.records.len()).sum()
    }

    /// The numbers after `mark` of all messages that have one, in order, with duplicates.
    pub fn numbers(&self, mark: &str) -> Vec<usize> {
        let state = self.state();
        let records = state.accepted.iter().flat_map(|batch| &batch.records);
        records.filter_map(|record| number_after(&record.message, mark)).collect()
    }

    /// The same, sorted.
    pub fn sorted(&self, mark: &str) -> Vec<usize> {
        let mut numbers = self.numbers(mark);
        numbers.sort_unstable();
        numbers
    }

    /// The highest number after `mark` in the newest batch that has one.
    pub fn newest(&self, mark: &str) -> Option<usize> {
        let state = self.state();
        let of = |batch: &Batch| batch.records.iter().filter_map(|record| number_after(&record.message, mark)).max();
        state.accepted.iter().rev().find_map(of)
    }

    #[track_caller]
    pub fn wait_for(&self, records: usize, limit: Duration) {
        let enough = super::within(limit, || self.len() >= records);
        assert!(enough, "{} of {records} records arrived within {limit:?}", self.len());
    }

    /// Fails if this receiver could not decode a request.
    #[track_caller]
    pub fn assert_well_formed(&self) {
        let malformed = self.state().malformed.clone();
        assert!(malformed.is_empty(), "the receiver could not decode: {malformed:?}");
    }

    /// Waits until the receiver has rejected, or lets hang, this number of requests.
    #[track_caller]
    pub fn wait_for_refused(&self, requests: usize, limit: Duration) {
        until(limit, "requests that the receiver does not accept", || self.refused() >= requests);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("the receiver does not panic")
    }
}

impl Drop for LogReceiver {
    fn drop(&mut self) {
        self.answer(Answer::Status(503));
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut wire = Wire::new(stream);
    while let Ok(Some(head)) = wire.head() {
        let expects = head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        if expects && wire.send("HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return;
        }
        let Ok(body) = wire.request_body(&head) else { return };
        if !body.whole {
            return;
        }
        let Some(status) = accept(shared, &head, &body.bytes) else { return };
        let answer = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        let rest = if status == 204 { "\r\n" } else { "Content-Length: 0\r\n\r\n" };
        if wire.send(answer + rest).is_err() {
            return;
        }
    }
}

/// The status of the response, or `None` if the connection is to be closed without a response.
fn accept(shared: &Shared, head: &Head, body: &[u8]) -> Option<u16> {
    let mut state = shared.state.lock().expect("the receiver does not panic");
    match state.answer {
        Answer::Accept | Answer::Reject(_) => {}
        Answer::Status(status) => {
            state.rejected += 1;
            return Some(status);
        }
        Answer::Hang => {
            state.rejected += 1;
            while state.answer == Answer::Hang {
                state = shared.changed.wait(state).expect("the receiver does not panic");
            }
            return None;
        }
    }
    match (decode(head, body), state.answer) {
        (Ok((records, _)), Answer::Reject(text)) if records.iter().any(|record| record.message.contains(text)) => {
            state.rejected += 1;
            Some(400)
        }
        (Ok((records, series)), _) => {
            state.accepted.push(Batch { head: head.clone(), records, series });
            Some(204)
        }
        (Err(why), _) => {
            state.malformed.push(format!("{} {}: {why}", head.method(), head.target()));
            Some(400)
        }
    }
}

fn decode(head: &Head, body: &[u8]) -> Result<(Vec<Record>, Vec<TimeSeries>), String> {
    match head.target() {
        "/loki/api/v1/push" => Ok((decode_loki(body)?, Vec::new())),
        "/api/v1/write" => {
            let request = WriteRequest::decode(&*unsnap(body)?).map_err(|error| error.to_string())?;
            Ok((Vec::new(), request.timeseries))
        }
        _ => Ok((decode_lines(head, body)?, Vec::new())),
    }
}

fn decode_lines(head: &Head, body: &[u8]) -> Result<Vec<Record>, String> {
    let mut text = Vec::new();
    match head.header("content-encoding").unwrap_or("identity") {
        "identity" => text.extend_from_slice(body),
        "gzip" => {
            let mut decoder = flate2::read::MultiGzDecoder::new(body);
            decoder.read_to_end(&mut text).map_err(|error| error.to_string())?;
        }
        "zstd" => text = zstd::decode_all(body).map_err(|error| error.to_string())?,
        other => return Err(format!("content encoding {other}")),
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        return Err("the last line has no newline".to_owned());
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(decode_line).collect()
}

fn decode_line(line: &[u8]) -> Result<Record, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("{error} in a line"))?;
    let Value::Object(fields) = value else { return Err("a line that is not a JSON object".to_owned()) };
    let message = fields.get("message").and_then(Value::as_str).unwrap_or("").to_owned();
    Ok(Record { message, fields, labels: String::new(), nanos: 0 })
}

fn decode_loki(body: &[u8]) -> Result<Vec<Record>, String> {
    let push = PushRequest::decode(&*unsnap(body)?).map_err(|error| error.to_string())?;
    let mut records = Vec::new();
    for stream in push.streams {
        for entry in stream.entries {
            let time = entry.timestamp.ok_or("an entry without a time")?;
            let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
            let labels = stream.labels.clone();
            records.push(Record { message: entry.line, fields: Map::new(), labels, nanos });
        }
    }
    Ok(records)
}

fn unsnap(body: &[u8]) -> Result<Vec<u8>, String> {
    snap::raw::Decoder::new().decompress_vec(body).map_err(|error| error.to_string())
}
fn reason(status: u16) -> &'static str {
    match status {
        204 => "No Content",
        400 => "Bad Request",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        _ => "Answer",
    }
}
