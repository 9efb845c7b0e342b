//! The app's output, read from the capture rings. In: bytes that the supervisor wrote. Out: batches of lines. The rings
//! outlive a killed worker, and keep how far each sink has acknowledged; a ring that overflowed tells how many lines went.

use super::file::{Opened, Tail};
use super::{CHUNK, max_line_bytes};
use crate::ack::AckTracker;
use crate::batch::Stream;
use crate::checkpoint::{Checkpoints, FileId};
use crate::framer::Framer;
use crate::pipeline::Pipeline;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::runtime::scope::Scope;
use base::runtime::state::{Mark, Marked, StateDir};
use base::telemetry::reason::Reason;
use config::registry::Kind;
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

/// Reads what the wrapped app writes to stdout and stderr, line by line, while it still reaches our own stdout and stderr
/// unchanged. Works in wrap mode only (`outrigger run -- command`). Each stream has a bounded ring in memory: when no sink
/// takes lines for so long that it is full, the oldest go, counted under `overwritten`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The ring of each of the two streams.
    #[serde(default)]
    pub buffer: RingConfig,
    /// A longer line is cut to its beginning and marked `truncated`.
    #[serde(default = "max_line_bytes")]
    pub max_line_bytes: ByteSize,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RingConfig {
    /// The size of each ring, at least 128KiB; memory is used only as far as lines wait. When it is full, the oldest lines are
    /// dropped, counted under `buffer_full`. Default: 16MiB, at most 1/32 of the container's memory.
    #[serde(default)]
    pub max_bytes: Option<ByteSize>,
}

impl Kind for Config {
    const EXAMPLE: &'static str = "stdio: {}\n";
}

impl Config {
    /// The size of a ring. Rings count as the container's memory, which is first of all the app's.
    pub fn capture_bytes(&self, container: Option<u64>) -> u64 {
        let most = container.map_or(u64::MAX, |limit| limit / CAPTURE_SHARE);
        self.buffer.max_bytes.map_or(CAPTURE.min(most), |buffer| buffer.0).max(CAPTURE_MIN)
    }
}

/// A ring where nothing is said, and its share of a container.
const CAPTURE: u64 = 16 << 20;
const CAPTURE_SHARE: u64 = 32;

/// A ring holds at least one chunk of the supervisor's.
const CAPTURE_MIN: u64 = 128 << 10;

/// What one stream's reader needs.
pub struct Shared {
    pub ring: Ring,
    pub stream: Stream,
    pub wake: Rc<Wake>,
    pub config: Config,
    pub checkpoints: Checkpoints,
    pub left: Backlog,
}

/// The supervisor's signal that the rings have more: a pipe, read by one task that tells the readers of both streams.
pub struct Wake {
    pipe: pipe::Receiver,
    bell: Notify,
    /// The supervisor is gone: nothing more will come.
    gone: Cell<bool>,
}

impl Wake {
    pub fn new(fd: OwnedFd) -> io::Result<Rc<Wake>> {
        Ok(Rc::new(Wake { pipe: pipe::Receiver::from_owned_fd(fd)?, bell: Notify::new(), gone: Cell::new(false) }))
    }

    pub async fn ring(self: Rc<Wake>) {
        let mut seen = [0u8; 256];
        while self.pipe.readable().await.is_ok() {
            let ended = loop {
                match self.pipe.try_read(&mut seen) {
                    Ok(0) => break true,
                    Ok(count) if count == seen.len() => {}
                    Ok(_) => break false,
                    Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
                }
            };
            self.gone.set(ended);
            self.bell.notify_waiters();
            if ended {
                return;
            }
        }
    }
}

/// Reads one stream until it has ended, or the stop order says that nothing more will come.
pub async fn run(shared: Shared, pipeline: Rc<Pipeline>, scope: Scope, mut phase: PhaseWatch) {
    let Shared { ring, stream, wake, config, .. } = &shared;
    shared.left.replay(&shared, &pipeline, &scope).await;
    let sinks: Vec<(usize, String)> =
        pipeline.sinks().map(|(index, sink)| (index, slot_name(pipeline.name(), sink))).collect();
    let known: Vec<Option<u64>> = sinks.iter().map(|(_, sink)| ring.acknowledged(sink)).collect();
    // A sink without a position is new to a worker that was replaced: it begins where the most advanced one stands.
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
    let track = track(ring, &sinks, &starts, marks.clone());
    let mut framer = Framer::new(pipeline.name().into(), None, *stream, config.max_line_bytes.as_usize(), position);
    let read_before = ring.read_to();
    let mut chunk = vec![0u8; CHUNK];
    let mut lossy = false;
    loop {
        let bell = wake.bell.notified();
        let mut bell = std::pin::pin!(bell);
        bell.as_mut().enable();
        let Ok(read) = ring.read(&mut position, &mut chunk) else {
            return pipeline.failed("cannot read the stdout/stderr capture buffer");
        };
        let bytes = chunk.get(..read.bytes).unwrap_or(&[]);
        let start = position - bytes.len() as u64;
        if read.lost > 0 {
            lossy = true;
            framer.jump(start);
            // What a worker before this one had read and no sink had taken.
            let now = ring.lines_read_before(start).unwrap_or(lines);
            // The line within which the rest begins is passed over.
            pipeline.lost(Reason::BufferFull, now.saturating_sub(lines) + 1);
            lines = now;
        }
        let newlines = memchr::memchr_iter(b'\n', bytes).count() as u64;
        note_first_reading(ring, start, bytes, newlines);
        lines += newlines;
        if let Some(batch) = framer.take(bytes) {
            marks.borrow_mut().push_back((batch.base + batch.bytes.len() as u64, lines));
            pipeline.push(batch, &track, read_before).await;
        }
        if !bytes.is_empty() && !phase.yields() {
            continue;
        }
        if lossy && let Some(lines) = ring.take_lines_lost() {
            pipeline.lost(Reason::BufferFull, lines);
            lossy = false;
        }
        let over = (ring.is_closed() || wake.gone.get()) && position == ring.head();
        if over {
            if let Some(batch) = framer.finish() {
                pipeline.push(batch, &track, read_before).await;
            }
            return;
        }
        tokio::select! {
            () = bell => {}
            () = phase.yields_or_reached(Phase::Close) => return,
        }
        if phase.yields() {
            return;
        }
    }
}

/// Counts newlines of what no worker has read before.
fn note_first_reading(ring: &Ring, start: u64, bytes: &[u8], newlines: u64) {
    let known = ring.read_to().saturating_sub(start).min(bytes.len() as u64) as usize;
    let old = memchr::memchr_iter(b'\n', bytes.get(..known).unwrap_or(&[])).count() as u64;
    ring.note_read(start + bytes.len() as u64, newlines - old);
}

/// The ends of batches under way, and the newlines that were read before each.
type Marks = Rc<RefCell<VecDeque<(u64, u64)>>>;

/// The newlines that were read before the position at which a worker begins.
fn lines_before(ring: &Ring, sinks: &[(usize, String)], known: &[Option<u64>]) -> u64 {
    let positions = sinks.iter().zip(known).filter_map(|((_, sink), known)| Some(((*known)?, sink)));
    positions.min().map_or(0, |(_, sink)| ring.lines_acknowledged(sink))
}

fn slot_name(source: &str, sink: &str) -> String {
    format!("{source}/{sink}")
}

fn track(ring: &Ring, sinks: &[(usize, String)], starts: &[u64], marks: Marks) -> Rc<AckTracker> {
    let newest = sinks.iter().map(|(_, sink)| ring.lines_acknowledged(sink)).max().unwrap_or(0);
    for (index, sink) in sinks {
        let is_known = ring.acknowledged(sink).is_some();
        let lines = if is_known { ring.lines_acknowledged(sink) } else { newest };
        // More sinks than places: those beyond begin at the newest position after a worker was replaced.
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
            let behind = marks.partition_point(|(end, _)| *end <= offset);
            let lines = behind.checked_sub(1).and_then(|last| marks.get(last)).map_or(0, |(_, lines)| *lines);
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

/// What the app wrote and no required sink had taken when we had to stop: kept in the state directory, and read first after
/// the next start. Bound: the capacity of the ring each time, and `state.max_bytes` in all.
#[derive(Clone)]
pub struct Backlog {
    path: Option<PathBuf>,
    max: u64,
}

impl Backlog {
    pub fn new(state: &StateDir, source: &str, stream: Stream) -> Backlog {
        Backlog {
            path: state.path(&format!("logs/backlog/{source}.{}", stream.as_str().unwrap_or("none"))),
            max: state.max(),
        }
    }

    /// Appends what the slowest required sink has not acknowledged. Answers how many lines of it were overwritten meanwhile.
    pub fn keep(&self, ring: &Ring, source: &str, required: &[String]) -> io::Result<u64> {
        let positions = required.iter().map(|sink| slot_name(source, sink));
        let least = positions.map(|sink| (ring.acknowledged(&sink).unwrap_or(0), sink)).min();
        let Some((mut position, slowest)) = least.filter(|(position, _)| *position < ring.head()) else { return Ok(0) };
        let Some(path) = &self.path else { return Err(io::Error::other("there is no state directory")) };
        let mut file = base::system::file::open_own(path, OpenOptions::new().create(true).append(true))?;
        if file.metadata()?.len() == 0 {
            file.write_all(MARK.line().as_bytes())?;
        }
        let (kept, more) = (file.metadata()?.len(), ring.head() - position);
        if kept + more > self.max {
            return Err(io::Error::other(format!(
                "{more} additional bytes would exceed state.max_bytes = {}",
                ByteSize(self.max)
            )));
        }
        let (mut chunk, mut gone) = (vec![0u8; CHUNK], 0);
        loop {
            let read = ring.read(&mut position, &mut chunk)?;
            if read.bytes == 0 {
                file.sync_data()?;
                return Ok(gone);
            }
            if read.lost > 0 {
                gone = ring.lines_overwritten(&slowest, position - read.bytes as u64)?;
            }
            file.write_all(chunk.get(..read.bytes).unwrap_or(&[]))?;
        }
    }

    /// Reads what an earlier run has kept. The file goes when every sink has it; nobody waits for that.
    async fn replay(&self, shared: &Shared, pipeline: &Rc<Pipeline>, scope: &Scope) {
        let Some(path) = self.path.clone() else { return };
        let opened = base::system::file::open_own(&path, OpenOptions::new().read(true));
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot read the backlog of a previous run");
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
            // What was kept in a form that we do not know is not delivered as if it were lines of the app.
            Marked::Other(_) => {
                let aside = path.with_extension("left.newer");
                let (file, to) = (path.display(), aside.display());
                tracing::warn!(%file, "backlog {file}: unsupported newer version; renamed to {to}");
                // Where it cannot be moved, it is met again.
                let _ = std::fs::rename(&path, &aside);
                return pipeline.restarted("logs/backlog");
            }
            // The first version had no mark.
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
        tracing::info!(source = pipeline.name(), bytes = size, "replaying lines left undelivered by the previous run");
        let pipeline = pipeline.clone();
        scope.spawn("leftover", async move {
            while !tail.acknowledged(size) {
                tokio::time::sleep(REPLAY_LOOK).await;
            }
            // A stop that had more to keep has appended it: then the file stays for the next start.
            if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == size) {
                checkpoints.forget(pipeline.name(), id);
                // A file that cannot be removed is delivered again: better twice than never.
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(%error, file = %path.display(), "cannot remove a delivered backlog file");
                }
            }
        });
    }
}

/// The first line of a leftover: its version.
const MARK: Mark = Mark { what: "left", version: 2 };

/// How often a replayed leftover is asked whether it has been delivered.
const REPLAY_LOOK: Duration = Duration::from_millis(50);
