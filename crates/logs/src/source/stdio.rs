//! The app's output, read from the capture rings. In: bytes that the supervisor wrote. Out: batches of lines. The rings survive a
//! killed worker, and store how far each sink has acknowledged; a ring that overflowed reports how many lines were lost.

use super::file::{Opened, Tail};
use super::{CHUNK, SourceConfig, Start, Unacknowledged, max_line_bytes};
use crate::ack::AckTracker;
use crate::batch::Stream;
use crate::checkpoint::{Checkpoints, FileId};
use crate::framer::Framer;
use crate::pipeline::Pipeline;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::runtime::scope::Scope;
use base::runtime::state::{Mark, Marked, StateDir};
use base::telemetry::reason::Reason;
use config::diag::Diagnostic;
use config::registry::{Entry, Kind};
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use sys::ring::Ring;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// Reads stdout and stderr of the wrapped app line by line; both still reach Outrigger's stdout and stderr unchanged. Works in
/// wrap mode only (`outrigger run -- command`). Each stream has a bounded ring in memory: if no sink accepts lines for so long
/// that it is full, the oldest lines are dropped, counted under `buffer_full`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The ring of each of the two streams.
    #[serde(default)]
    pub buffer: RingConfig,
    /// Longer lines are truncated and marked `truncated`.
    #[serde(default = "max_line_bytes")]
    pub max_line_bytes: ByteSize,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RingConfig {
    /// The size of each ring, at least 128KiB; memory is used only for waiting lines. When it is full, the oldest lines are
    /// dropped, counted under `buffer_full`. Default: 16MiB, at most 1/32 of the container's memory.
    #[serde(default)]
    pub max_bytes: Option<ByteSize>,
}

impl Kind for Config {
    fn example() -> &'static str {
        "stdio: {}\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let companion = "; for an app in another container, read its files instead";
        entry.requires_app("`stdio`", companion).into_iter().collect()
    }

    /// A chunk of each stream. The rings are memory of the container, not of the worker.
    fn memory(&self) -> ByteSize {
        ByteSize(2 * CHUNK as u64)
    }
}

impl SourceConfig for Config {
    fn start(&self, start: Start<'_>) {
        let Some((stdout, stderr)) = start.inputs.rings.clone() else {
            // The plan rejects `stdio` without a wrapped app; here the app was started before the source was configured.
            let text = "stdout/stderr capture was not enabled when the app started; restart Outrigger to enable it";
            start.health.fault(start.pipeline.id(), text);
            return;
        };
        let Some(wake) = start.inputs.wake.take() else { return };
        let wake = match Wake::new(wake) {
            Ok(wake) => wake,
            Err(error) => return start.health.panicked(&format!("cannot open the wake pipe: {error}")),
        };
        start.running.helpers.push(start.scope.spawn("wake", wake.clone().run()));
        for (ring, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            let pipeline = start.pipeline.clone();
            let backlog = Backlog::new(&start.inputs.state, pipeline.name(), stream);
            let shared = Shared {
                ring: ring.clone(),
                stream,
                wake: wake.clone(),
                config: self.clone(),
                checkpoints: start.checkpoints.clone(),
                backlog: backlog.clone(),
            };
            let run = run(shared, pipeline.clone(), start.scope.clone(), start.phase.clone());
            start.running.readers.push(start.scope.spawn("stdio", run));
            let source = pipeline.clone();
            let persist = move || backlog.persist(&ring, source.name(), &source.required_sinks());
            start.running.backlogs.push(Unacknowledged { pipeline, persist: Box::new(persist) });
        }
    }

    /// Rings count as memory of the container, which is primarily for the app.
    fn capture_bytes(&self, container: Option<u64>) -> Option<u64> {
        let most = container.map_or(u64::MAX, |limit| limit / CAPTURE_SHARE);
        Some(self.buffer.max_bytes.map_or(CAPTURE.min(most), |buffer| buffer.0).max(CAPTURE_MIN))
    }
}

/// The default size of a ring, and its maximum share of a container's memory.
const CAPTURE: u64 = 16 << 20;
const CAPTURE_SHARE: u64 = 32;

/// A ring holds at least one chunk of the supervisor.
const CAPTURE_MIN: u64 = 128 << 10;

/// The inputs of the reader of one stream.
struct Shared {
    ring: Ring,
    stream: Stream,
    wake: Rc<Wake>,
    config: Config,
    checkpoints: Checkpoints,
    backlog: Backlog,
}

/// The supervisor's signal that the rings have more: a pipe, read by one task that notifies the readers of both streams.
struct Wake {
    pipe: pipe::Receiver,
    notify: Notify,
    /// The supervisor has exited: nothing more follows.
    is_closed: Cell<bool>,
}

impl Wake {
    fn new(fd: OwnedFd) -> io::Result<Rc<Wake>> {
        Ok(Rc::new(Wake {
            pipe: pipe::Receiver::from_owned_fd(fd)?,
            notify: Notify::new(),
            is_closed: Cell::new(false),
        }))
    }

    async fn run(self: Rc<Wake>) {
        let mut bytes = [0u8; 256];
        while self.pipe.readable().await.is_ok() {
            let ended = loop {
                match self.pipe.try_read(&mut bytes) {
                    Ok(0) => break true,
                    Ok(count) if count == bytes.len() => {}
                    Ok(_) => break false,
                    Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
                }
            };
            self.is_closed.set(ended);
            self.notify.notify_waiters();
            if ended {
                return;
            }
        }
    }
}

/// Reads one stream until it is closed, or until a handover or the phase `Close`.
async fn run(shared: Shared, pipeline: Rc<Pipeline>, scope: Scope, mut phase: PhaseWatch) {
    let Shared { ring, stream, wake, config, .. } = &shared;
    shared.backlog.replay(&shared, &pipeline, &scope).await;
    let sinks: Vec<(usize, String)> =
        pipeline.sinks().map(|(index, sink)| (index, slot_name(pipeline.name(), sink))).collect();
    let known: Vec<Option<u64>> = sinks.iter().map(|(_, sink)| ring.acknowledged(sink)).collect();
    // A sink without an offset is new since the worker was replaced: it starts at the offset of the most advanced sink.
    let newest = known.iter().flatten().copied().max().unwrap_or(0);
    let mut starts = vec![0; pipeline.sink_count()];
    for ((index, _), known) in sinks.iter().zip(&known) {
        if let Some(start) = starts.get_mut(*index) {
            *start = known.unwrap_or(newest);
        }
    }
    let mut position = known.iter().map(|known| known.unwrap_or(newest)).min().unwrap_or(ring.head());
    let mut lines = lines_before(ring, &sinks, &known);
    let marks: Marks = Rc::default();
    let tracker = tracker(ring, &sinks, &starts, marks.clone());
    let mut framer = Framer::new(pipeline.name().into(), None, *stream, config.max_line_bytes.as_usize(), position);
    let read_before = ring.read_to();
    let mut chunk = vec![0u8; CHUNK];
    let mut lossy = false;
    loop {
        let notified = wake.notify.notified();
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        let Ok(read) = ring.read(&mut position, &mut chunk) else {
            return pipeline.failed("cannot read the stdout/stderr capture buffer");
        };
        let bytes = chunk.get(..read.bytes).unwrap_or(&[]);
        let start = position - bytes.len() as u64;
        if read.lost > 0 {
            lossy = true;
            framer.jump(start);
            // Lines that a previous worker had read and no sink had acknowledged.
            let now = ring.lines_read_before(start).unwrap_or(lines);
            // The line in which the remaining bytes begin is skipped.
            pipeline.lost(Reason::BufferFull, now.saturating_sub(lines) + 1);
            lines = now;
        }
        let newlines = memchr::memchr_iter(b'\n', bytes).count() as u64;
        note_first_reading(ring, start, bytes, newlines);
        lines += newlines;
        if let Some(batch) = framer.take(bytes) {
            marks.borrow_mut().push_back((batch.base + batch.bytes.len() as u64, lines));
            pipeline.push(batch, &tracker, read_before).await;
        }
        if !bytes.is_empty() && !phase.is_handover() {
            continue;
        }
        if lossy && let Some(lines) = ring.take_lines_lost() {
            pipeline.lost(Reason::BufferFull, lines);
            lossy = false;
        }
        let is_finished = (ring.is_closed() || wake.is_closed.get()) && position == ring.head();
        if is_finished {
            if let Some(batch) = framer.finish() {
                pipeline.push(batch, &tracker, read_before).await;
            }
            return;
        }
        tokio::select! {
            () = notified => {}
            () = phase.handover_or_reached(Phase::Close) => return,
        }
        if phase.is_handover() {
            return;
        }
    }
}

/// Counts newlines in bytes that no worker has read before.
fn note_first_reading(ring: &Ring, start: u64, bytes: &[u8], newlines: u64) {
    let known = ring.read_to().saturating_sub(start).min(bytes.len() as u64) as usize;
    let counted = memchr::memchr_iter(b'\n', bytes.get(..known).unwrap_or(&[])).count() as u64;
    ring.note_read(start + bytes.len() as u64, newlines - counted);
}

/// The ends of batches in flight, and the newlines that were read before each.
type Marks = Rc<RefCell<VecDeque<(u64, u64)>>>;

/// The newlines that were read before the offset at which a worker starts.
fn lines_before(ring: &Ring, sinks: &[(usize, String)], known: &[Option<u64>]) -> u64 {
    let positions = sinks.iter().zip(known).filter_map(|((_, sink), known)| Some(((*known)?, sink)));
    positions.min().map_or(0, |(_, sink)| ring.lines_acknowledged(sink))
}

fn slot_name(source: &str, sink: &str) -> String {
    format!("{source}/{sink}")
}

fn tracker(ring: &Ring, sinks: &[(usize, String)], starts: &[u64], marks: Marks) -> Rc<AckTracker> {
    let newest = sinks.iter().map(|(_, sink)| ring.lines_acknowledged(sink)).max().unwrap_or(0);
    for (index, sink) in sinks {
        let is_known = ring.acknowledged(sink).is_some();
        let lines = if is_known { ring.lines_acknowledged(sink) } else { newest };
        // If there are more sinks than slots, the others start at the newest offset after the worker was replaced.
        ring.acknowledge(sink, starts.get(*index).copied().unwrap_or(0), lines);
    }
    let (ring, sinks) = (ring.clone(), sinks.to_vec());
    let least = move |ring: &Ring, sinks: &[(usize, String)]| {
        sinks.iter().filter_map(|(_, name)| ring.acknowledged(name)).min()
    };
    let released = Cell::new(least(&ring, &sinks).unwrap_or(0));
    let on_progress = move |sink: usize, offset: u64| {
        if let Some((_, name)) = sinks.iter().find(|(index, _)| *index == sink) {
            let marks = marks.borrow();
            let passed = marks.partition_point(|(end, _)| *end <= offset);
            let lines = passed.checked_sub(1).and_then(|last| marks.get(last)).map_or(0, |(_, lines)| *lines);
            ring.acknowledge(name, offset.min(ring.head()), lines);
        }
        let least = least(&ring, &sinks).unwrap_or(0);
        let mut marks = marks.borrow_mut();
        while marks.front().is_some_and(|(end, _)| *end < least) {
            marks.pop_front();
        }
        released.set(ring.release(released.get(), least));
    };
    AckTracker::new(starts, Box::new(on_progress))
}

/// App output that the required sinks had not acknowledged at shutdown: persisted in the state directory, and read first after
/// the next start. Limits: the capacity of the ring each time, and `state.max_bytes` in total.
#[derive(Clone)]
struct Backlog {
    path: Option<PathBuf>,
    max: u64,
}

impl Backlog {
    fn new(state: &StateDir, source: &str, stream: Stream) -> Backlog {
        Backlog {
            path: state.path(&format!("logs/backlog/{source}.{}", stream.as_str().unwrap_or("none"))),
            max: state.max(),
        }
    }

    /// Appends what the slowest required sink has not acknowledged. Returns how many of its lines were overwritten.
    fn persist(&self, ring: &Ring, source: &str, required: &[String]) -> io::Result<u64> {
        let positions = required.iter().map(|sink| slot_name(source, sink));
        let least = positions.map(|sink| (ring.acknowledged(&sink).unwrap_or(0), sink)).min();
        let Some((mut position, slowest)) = least.filter(|(position, _)| *position < ring.head()) else { return Ok(0) };
        let Some(path) = &self.path else { return Err(io::Error::other("there is no state directory")) };
        let mut file = base::system::file::open_own(path, OpenOptions::new().create(true).append(true))?;
        if file.metadata()?.len() == 0 {
            file.write_all(MARK.line().as_bytes())?;
        }
        let (size, more) = (file.metadata()?.len(), ring.head() - position);
        if size + more > self.max {
            return Err(io::Error::other(format!(
                "{more} additional bytes would exceed state.max_bytes = {}",
                ByteSize(self.max)
            )));
        }
        let (mut chunk, mut overwritten) = (vec![0u8; CHUNK], 0);
        loop {
            let read = ring.read(&mut position, &mut chunk)?;
            if read.bytes == 0 {
                file.sync_data()?;
                return Ok(overwritten);
            }
            if read.lost > 0 {
                overwritten = ring.lines_overwritten(&slowest, position - read.bytes as u64)?;
            }
            file.write_all(chunk.get(..read.bytes).unwrap_or(&[]))?;
        }
    }

    /// Replays the backlog of a previous run. The file is removed when every sink has acknowledged it; nothing waits for that.
    async fn replay(&self, shared: &Shared, pipeline: &Rc<Pipeline>, scope: &Scope) {
        let Some(path) = self.path.clone() else { return };
        let opened = base::system::file::open_own(&path, OpenOptions::new().read(true));
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(component = pipeline.id(), %error, "cannot read the backlog of a previous run");
                }
                return;
            }
        };
        let Ok(meta) = file.metadata() else { return };
        let (id, size) = (FileId::of(&meta), meta.len());
        let mut first = [0u8; Mark::LINE_MAX];
        let count = file.read_at(&mut first, 0).unwrap_or(0);
        let begin = match MARK.of(first.get(..count).unwrap_or(&[])) {
            Marked::Ours(_) => MARK.line().len() as u64,
            // A backlog in an unknown format is not delivered as lines of the app.
            Marked::Other(_) => {
                let renamed = path.with_extension("left.newer");
                let (component, from, to) = (pipeline.id(), path.display(), renamed.display());
                tracing::warn!(component, path = %from, "backlog has an unsupported newer version; renamed to {to}");
                // If the rename fails, the file is found again at the next start.
                let _ = std::fs::rename(&path, &renamed);
                return pipeline.count_reset("logs/backlog");
            }
            // Version 1 had no mark.
            Marked::None => 0,
        };
        let opened = Opened { path: path.clone(), id, file };
        let checkpoints = shared.checkpoints.clone();
        let tail = Tail::over(opened, pipeline, &checkpoints, shared.config.max_line_bytes, shared.stream, Some(begin));
        let Ok(tail) = tail else { return };
        let mut chunk = super::file::buffer();
        while tail.read(pipeline, &mut chunk).await {
            tokio::task::yield_now().await;
        }
        tail.finish(pipeline).await;
        tracing::info!(component = pipeline.id(), bytes = size, "replaying lines left undelivered by the previous run");
        let pipeline = pipeline.clone();
        scope.spawn("backlog", async move {
            while !tail.acknowledged(size) {
                tokio::time::sleep(REPLAY_POLL).await;
            }
            // A shutdown may have appended more lines: the file then stays for the next start.
            if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == size) {
                checkpoints.forget(pipeline.name(), id);
                // A file that cannot be removed is delivered again: duplicates are better than loss.
                if let Err(error) = std::fs::remove_file(&path) {
                    let (component, path) = (pipeline.id(), path.display());
                    tracing::warn!(component, %error, %path, "cannot remove a delivered backlog file");
                }
            }
        });
    }
}

/// The first line of a backlog file: its version.
const MARK: Mark = Mark { what: "left", version: 2 };

/// How often a replayed backlog is checked for complete delivery.
const REPLAY_POLL: Duration = Duration::from_millis(50);
