//! One sink's task: takes batches from its queue, builds bodies, keeps several of them in flight, and acknowledges its batches. In:
//! a queue. Out: bodies to the transport, the sink's row. Limits: the batch options of the sink; `max_concurrency` bodies in
//! flight, of which no two have records of one stream, so that the order of a stream is kept; `SPLITS_MAX` halvings of a body.

use crate::batch::{Batch, Body, Encode, Transport};
use crate::options::{BatchLimits, RetryConfig};
use crate::queue::Queue;
use crate::receiver::{Receiver, Settled};
use crate::window::Window;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::telemetry::Telemetry;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use tokio::time::Instant;

/// How often a body and its parts are halved: 14 times find one record among 10,000.
const SPLITS_MAX: u32 = 64;
/// The same for bodies that are too large, once halving one in vain has shown that the receiver rejects every size.
const SPLITS_MAX_IN_VAIN: u32 = 4;

/// What a sink brings.
pub struct Sink<B> {
    pub encoder: Box<dyn Encode<B>>,
    pub transport: Rc<dyn Transport>,
}

/// The options of one sink.
#[derive(Clone, Debug)]
pub struct Options {
    pub limits: BatchLimits,
    pub retry: RetryConfig,
    pub max_concurrency: usize,
}

/// One sink's task.
pub struct Engine<B> {
    /// The component's id.
    id: String,
    encoder: Box<dyn Encode<B>>,
    transport: Rc<dyn Transport>,
    receiver: Rc<Receiver>,
    queue: Rc<Queue<B>>,
    row: Arc<Row>,
    limits: BatchLimits,
    max_in_flight: usize,
    health: Arc<Health>,
    phase: PhaseWatch,
    /// The body that is being built, and when it is sent at the latest.
    open: Vec<Piece<B>>,
    open_records: usize,
    until: Option<Instant>,
    /// Whether nothing is added to the open body.
    is_full: bool,
    /// Batches of which only the first records are in a body.
    rest: VecDeque<Piece<B>>,
    /// Halves of bodies that were too large or rejected, each a body of its own.
    halves: VecDeque<Half<B>>,
    /// The body of which the open one is a part, if it is one.
    whole: Option<Rc<Whole>>,
    /// Whether rejected bodies are split: not after one of which every part was rejected, until the receiver accepts a body.
    isolates: bool,
    in_flight: Window<Sent<B>>,
    /// The streams of the bodies in flight.
    busy: Vec<u64>,
}

/// Records of one batch in one body.
struct Piece<B> {
    pending: Rc<Pending<B>>,
    records: Range<usize>,
}

/// A batch, and how many of its records are not settled.
struct Pending<B> {
    batch: Rc<B>,
    left: Cell<usize>,
}

struct Half<B> {
    pieces: Vec<Piece<B>>,
    whole: Rc<Whole>,
}

/// A body that is sent in parts.
struct Whole {
    splits: Cell<u32>,
    /// Parts that are not settled.
    parts: Cell<u32>,
    /// Whether the receiver has accepted one of them.
    accepted: Cell<bool>,
}

struct Sent<B> {
    pieces: Vec<Piece<B>>,
    whole: Option<Rc<Whole>>,
    settled: Settled,
}

impl<B: Batch + 'static> Engine<B> {
    pub fn new(
        component: &Component,
        sink: Sink<B>,
        queue: Rc<Queue<B>>,
        options: Options,
        telemetry: &Telemetry,
        health: Arc<Health>,
        phase: PhaseWatch,
    ) -> Engine<B> {
        let Options { limits, retry, max_concurrency } = options;
        Engine {
            id: component.id.clone(),
            receiver: Rc::new(Receiver::new(component, retry, telemetry, health.clone(), phase.clone())),
            max_in_flight: max_concurrency.min(sink.transport.max_in_flight()).max(1),
            encoder: sink.encoder,
            transport: sink.transport,
            row: telemetry.ledger.row(component),
            queue,
            limits,
            health,
            phase,
            open: Vec::new(),
            open_records: 0,
            until: None,
            is_full: false,
            rest: VecDeque::new(),
            halves: VecDeque::new(),
            whole: None,
            isolates: true,
            in_flight: Window::default(),
            busy: Vec::new(),
        }
    }

    /// Delivers until the queue is closed and everything is settled.
    pub async fn run(mut self) {
        loop {
            self.fill();
            let has_room = self.in_flight.len() < self.max_in_flight;
            let is_due = self.is_full || self.hurries() || self.until.is_some_and(|until| until <= Instant::now());
            if has_room && is_due && !self.open.is_empty() {
                self.dispatch();
                continue;
            }
            if self.open.is_empty() && self.in_flight.is_empty() && self.queue.is_closed() && self.queue.is_empty() {
                return;
            }
            let until = self.until.filter(|_| has_room);
            let mut phase = self.phase.clone();
            let runs = !phase.is_handover() && phase.phase() < Phase::Finish;
            tokio::select! {
                sent = self.in_flight.next(), if !self.in_flight.is_empty() => self.settle(sent),
                () = self.queue.changed(), if !self.is_full => {}
                () = sleep_until(until) => {}
                // Neither a shutdown nor a handover waits for more records.
                () = phase.handover_or_reached(Phase::Finish), if runs => {}
            }
        }
    }

    /// Whether a body is sent without waiting for more records.
    fn hurries(&self) -> bool {
        self.phase.is_handover() || (self.phase.phase() >= Phase::Finish && self.queue.is_closed())
    }

    /// Adds what is there to the open body.
    fn fill(&mut self) {
        while !self.is_full {
            if self.open.is_empty()
                && let Some(half) = self.next_half()
            {
                self.whole = Some(half.whole);
                for Piece { pending, records } in half.pieces {
                    self.add(pending, records, usize::MAX, usize::MAX);
                }
                self.is_full = true;
                return;
            }
            let Some(Piece { pending, records }) = self.next_piece() else { return };
            self.add(pending, records, self.limits.bytes, self.limits.records);
        }
    }

    /// The first half, unless one of its streams is in flight.
    fn next_half(&mut self) -> Option<Half<B>> {
        let first = self.halves.front()?;
        let is_busy = first.pieces.iter().any(|piece| self.busy.contains(&piece.pending.batch.stream()));
        if is_busy {
            return None;
        }
        self.queue.rescan();
        self.halves.pop_front()
    }

    /// Records of a stream that has none in flight and none before them.
    fn next_piece(&mut self) -> Option<Piece<B>> {
        let (busy, halves) = (&self.busy, &self.halves);
        let of_half = |half: &Half<B>, stream| half.pieces.iter().any(|piece| piece.pending.batch.stream() == stream);
        let is_busy = |stream| busy.contains(&stream) || halves.iter().any(|half| of_half(half, stream));
        if let Some(index) = self.rest.iter().position(|piece| !is_busy(piece.pending.batch.stream())) {
            self.queue.rescan();
            return self.rest.remove(index);
        }
        let rest = &self.rest;
        let has_rest = |stream| rest.iter().any(|piece| piece.pending.batch.stream() == stream);
        loop {
            let batch = self.queue.pop_unless(&|stream| is_busy(stream) || has_rest(stream))?;
            let left = batch.records();
            if left > 0 {
                return Some(Piece { records: 0..left, pending: Rc::new(Pending { batch, left: Cell::new(left) }) });
            }
            // A batch whose records were all dropped by stages.
            self.queue.done(&batch);
        }
    }

    fn add(&mut self, pending: Rc<Pending<B>>, records: Range<usize>, max: usize, max_records: usize) {
        let room = max_records.saturating_sub(self.open_records);
        let end = records.end.min(records.start.saturating_add(room));
        let next = self.encoder.encode(&pending.batch, records.start..end, max);
        if next > records.start {
            self.open.push(Piece { pending: pending.clone(), records: records.start..next });
            self.open_records += next - records.start;
            self.until.get_or_insert_with(|| Instant::now() + self.limits.age);
        }
        if next < records.end {
            self.rest.push_front(Piece { pending, records: next..records.end });
            self.is_full = true;
        }
        self.is_full |= self.encoder.size() >= max || room <= end - records.start;
    }

    /// Sends the open body.
    fn dispatch(&mut self) {
        let pieces = std::mem::take(&mut self.open);
        let whole = self.whole.take();
        (self.open_records, self.until, self.is_full) = (0, None, false);
        let body = match self.encoder.finish() {
            Ok(body) => body,
            Err(error) => return self.reject(&pieces, Reason::Rejected, &error),
        };
        for stream in pieces.iter().map(|piece| piece.pending.batch.stream()) {
            if !self.busy.contains(&stream) {
                self.busy.push(stream);
            }
        }
        let (receiver, transport) = (self.receiver.clone(), self.transport.clone());
        self.in_flight.push(async move {
            let body: Body = body;
            let settled = receiver.deliver(&*transport, &body).await;
            Sent { pieces, whole, settled }
        });
    }

    fn settle(&mut self, Sent { pieces, whole, settled }: Sent<B>) {
        self.queue.rescan();
        for piece in &pieces {
            let stream = piece.pending.batch.stream();
            if let Some(index) = self.busy.iter().position(|busy| *busy == stream) {
                self.busy.swap_remove(index);
            }
        }
        let records: usize = pieces.iter().map(|piece| piece.records.len()).sum();
        let splits = whole.as_ref().map_or(0, |whole| whole.splits.get());
        let splits_max = match settled {
            Settled::TooLarge { .. } | Settled::Rejected { .. } if self.isolates => SPLITS_MAX,
            Settled::TooLarge { .. } => SPLITS_MAX_IN_VAIN,
            _ => 0,
        };
        if records > 1 && splits < splits_max {
            return self.split(pieces, records / 2, whole);
        }
        match settled {
            Settled::Delivered => {
                self.isolates = true;
                whole.iter().for_each(|whole| whole.accepted.set(true));
                self.row.deliver(records as u64);
                self.done(&pieces);
            }
            Settled::TooLarge { error } | Settled::Rejected { error } => self.reject(&pieces, Reason::Rejected, &error),
            Settled::Expired { error } => self.reject(&pieces, Reason::Expired, &error),
        }
        if let Some(whole) = whole {
            whole.parts.set(whole.parts.get().saturating_sub(1));
            self.isolates &= whole.parts.get() > 0 || whole.accepted.get();
        }
    }

    fn split(&mut self, pieces: Vec<Piece<B>>, count: usize, whole: Option<Rc<Whole>>) {
        let new = || Rc::new(Whole { splits: Cell::new(0), parts: Cell::new(1), accepted: Cell::new(false) });
        let whole = whole.unwrap_or_else(new);
        whole.splits.set(whole.splits.get() + 1);
        whole.parts.set(whole.parts.get() + 1);
        let (first, second) = halves(pieces, count);
        self.halves.push_front(Half { pieces: second, whole: whole.clone() });
        self.halves.push_front(Half { pieces: first, whole });
    }

    fn reject(&mut self, pieces: &[Piece<B>], reason: Reason, error: &str) {
        let records: usize = pieces.iter().map(|piece| piece.records.len()).sum();
        self.row.drop_records(reason, records as u64);
        let text = match reason {
            Reason::Expired => format!("records dropped after the last retry: {error}"),
            _ => format!("records rejected by the receiver and dropped: {error}"),
        };
        self.health.fault(&self.id, text);
        let reason = reason.as_str();
        tracing::error!(component = self.id, records, reason, error, "records not delivered and dropped");
        self.done(pieces);
    }

    fn done(&self, pieces: &[Piece<B>]) {
        for Piece { pending, records } in pieces {
            pending.left.set(pending.left.get().saturating_sub(records.len()));
            if pending.left.get() == 0 {
                self.queue.done(&pending.batch);
            }
        }
    }
}

/// Splits a body after this number of records.
fn halves<B>(pieces: Vec<Piece<B>>, mut count: usize) -> (Vec<Piece<B>>, Vec<Piece<B>>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for Piece { pending, records } in pieces {
        let middle = records.start + count.min(records.len());
        count -= middle - records.start;
        for (half, range) in [(&mut first, records.start..middle), (&mut second, middle..records.end)] {
            if !range.is_empty() {
                half.push(Piece { pending: pending.clone(), records: range });
            }
        }
    }
    (first, second)
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
