//! Finds the files to read. In: patterns, and changes of their directories. Out: open files, identified by device and inode.
//! Files that are read to their end are closed to make room and remembered by size and time. Limits: `max_files` open files;
//! scanning takes at most one part in `SCAN_SHARE` of a core.

use super::Config;
use super::ReadFrom;
use super::resting::{Resting, RestingFiles};
use super::tail::{Opened, Tail};
use super::walk::{Match, Patterns, Walk, cannot_read};
use super::watch::{Change, Watch};
use crate::batch::Stream;
use crate::checkpoint::{Checkpoints, FileId};
use crate::pipeline::Pipeline;
use crate::telemetry::{FILES_OPEN, FILES_WAITING};
use base::sync::lock;
use base::telemetry::Gauge;
use rustix::fs::OFlags;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a file has no new data before it is closed for a waiting file, and how often that is checked while files wait.
const QUIET: Duration = Duration::from_millis(200);
const REFILL_EVERY: Duration = Duration::from_millis(50);
/// Log files may use one in this many of the process's file descriptors.
const DESCRIPTOR_SHARE: u64 = 2;
/// A scan that took one millisecond is followed by an interval of at least this many.
const SCAN_SHARE: u32 = 50;
/// The part in health for changes of directories.
const WATCH: &str = "watch";
/// A burst of changes causes one scan.
const SETTLE: Duration = Duration::from_millis(5);

/// Finds the files of one source.
pub struct Finder {
    config: Config,
    patterns: Patterns,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    tails: RefCell<Vec<Rc<Tail>>>,
    /// Files that are not open, as they were when they were read to their end or skipped.
    resting: Arc<Mutex<RestingFiles>>,
    /// Files with unread data that wait to be opened, the oldest first.
    waiting: RefCell<VecDeque<Match>>,
    max_files: usize,
    files_open: Gauge,
    files_waiting: Gauge,
    watch: RefCell<Option<Watch>>,
    opened: Notify,
    scan_took: Cell<Duration>,
    /// Files that were reported as skipped: compressed files, pipes, devices.
    reported: RefCell<HashSet<FileId>>,
}

/// The result of one scan of the patterns.
struct ScanResult {
    /// Files that are open, under their present name.
    seen: HashMap<FileId, PathBuf>,
    /// Files with unread data, the oldest first.
    fresh: Vec<Match>,
    directories: Vec<PathBuf>,
    unreadable: Option<String>,
    /// Pipes and the like that match, and their type.
    special: Vec<(PathBuf, FileId, String)>,
    /// Open files whose directory is missing.
    away: Vec<FileId>,
    /// Files with a checkpoint that no longer have a name.
    lost: Vec<FileId>,
    /// Closed files that no pattern matches any more.
    removed: Vec<FileId>,
}

impl Finder {
    pub fn new(config: Config, pipeline: Rc<Pipeline>, checkpoints: Checkpoints) -> Finder {
        let finder = Finder {
            tails: RefCell::default(),
            resting: Arc::default(),
            waiting: RefCell::default(),
            max_files: (config.max_files as usize).min(max_open_files()),
            watch: RefCell::default(),
            opened: Notify::new(),
            scan_took: Cell::new(Duration::ZERO),
            reported: RefCell::default(),
            patterns: Patterns::new(&config.include, &config.exclude),
            files_open: pipeline.gauge(&FILES_OPEN),
            files_waiting: pipeline.gauge(&FILES_WAITING),
            config,
            pipeline,
            checkpoints,
        };
        finder.start_watching();
        finder
    }

    pub fn tails(&self) -> Vec<Rc<Tail>> {
        self.tails.borrow().clone()
    }

    /// A file was opened.
    pub async fn found(&self) {
        self.opened.notified().await;
    }

    /// Opens new files, scans periodically and when a directory has changed, and opens waiting files when there is room.
    pub async fn run(self: Rc<Self>) {
        let mut due = Instant::now() + self.config.scan_interval.0;
        loop {
            let mut watch = self.watch.take();
            let refill = if self.waiting.borrow().is_empty() { self.config.scan_interval.0 } else { REFILL_EVERY };
            let changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let seen = tokio::select! {
                () = tokio::time::sleep_until(due.min(Instant::now() + refill).into()) => Ok(Vec::new()),
                seen = changed => seen,
            };
            let seen = seen.unwrap_or_else(|error| {
                self.cannot_watch(&error);
                watch = None;
                Vec::new()
            });
            self.watch.replace(watch);
            if !seen.is_empty() {
                let paths = self.follow(seen).await;
                self.open_now(paths).await;
                due = due.min(Instant::now() + SETTLE.max(self.interval_min()));
            }
            if Instant::now() >= due {
                self.scan(false).await;
                due = Instant::now() + self.config.scan_interval.0.max(self.interval_min());
            } else {
                self.refill().await;
            }
        }
    }

    fn start_watching(&self) {
        match Watch::new() {
            Ok(watch) => drop(self.watch.replace(Some(watch))),
            Err(error) => self.cannot_watch(&error),
        }
    }

    /// Without a watch, scans continue.
    fn cannot_watch(&self, error: &io::Error) {
        let text = format!(
            "cannot create an inotify instance ({error}); falling back to scanning: short-lived files may be missed (fs.inotify.max_user_instances)"
        );
        self.fault(WATCH, Some(&text));
    }

    fn interval_min(&self) -> Duration {
        self.scan_took.get() * SCAN_SHARE
    }

    fn matches(&self, path: &Path) -> bool {
        self.patterns.match_path(path)
    }

    /// Applies changes of names in their order. Returns the paths of files that may be new, under their present names.
    async fn follow(&self, changes: Vec<Change>) -> Vec<PathBuf> {
        // An event does not identify the file that had the name; the file that has the name now does.
        let checked = tokio::task::spawn_blocking(move || {
            let id = |path: &PathBuf| std::fs::metadata(path).ok().map(|meta| FileId::of(&meta));
            let current = |change: &Change| match change {
                Change::Appeared(_) | Change::Overflow => None,
                Change::Disappeared(path, to) => id(to.as_ref().unwrap_or(path)),
            };
            changes.into_iter().map(|change| (current(&change), change)).collect::<Vec<_>>()
        });
        let mut paths = Vec::new();
        for (current, change) in checked.await.unwrap_or_default() {
            match change {
                Change::Appeared(path) if self.matches(&path) => paths.push(path),
                Change::Appeared(_) => {}
                Change::Overflow => tracing::warn!(
                    component = self.pipeline.id(),
                    "inotify queue overflow (IN_Q_OVERFLOW): short-lived files may have been missed"
                ),
                Change::Disappeared(path, Some(to)) => self.renamed(path, to, current, &mut paths),
                Change::Disappeared(path, None) => self.removed(&path, current),
            }
        }
        paths
    }

    /// A file has another name. `current`: the file that has that name now.
    fn renamed(&self, path: PathBuf, to: PathBuf, current: Option<FileId>, paths: &mut Vec<PathBuf>) {
        let is_it = |tail: &Tail| current.map_or_else(|| tail.is_at(&path), |current| tail.id == current);
        if let Some(tail) = self.tails.borrow().iter().find(|tail| is_it(tail)) {
            return tail.lost_name(Some(to));
        }
        let mut resting = lock(&self.resting);
        let known = current.or_else(|| resting.at(&path));
        if known.is_some_and(|id| resting.rename(id, to.clone())) || !self.matches(&path) {
            return;
        }
        match current {
            Some(_) => paths.push(to),
            None => self.pipeline.missed_file(&path, 0),
        }
    }

    /// A file was removed, or moved to a directory that is not watched. `current`: the file that has its name now.
    fn removed(&self, path: &Path, current: Option<FileId>) {
        let is_it = |tail: &Tail| tail.is_at(path) && current != Some(tail.id);
        if let Some(tail) = self.tails.borrow().iter().find(|tail| is_it(tail)) {
            return tail.lost_name(None);
        }
        let mut resting = lock(&self.resting);
        match resting.at(path).filter(|id| current != Some(*id)) {
            Some(id) => drop(resting.rename(id, PathBuf::new())),
            None if self.matches(path) => self.pipeline.missed_file(path, 0),
            None => {}
        }
    }

    /// Opens new files without a scan, since they may be renamed soon.
    async fn open_now(&self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        let find = move || {
            let mut walk = Walk::new(&[], &[]);
            paths.into_iter().for_each(|path| walk.path(path));
            walk.matches
        };
        let Ok(found) = tokio::task::spawn_blocking(find).await else { return };
        let known = |id: FileId| self.tails.borrow().iter().any(|tail| tail.id == id);
        let new: Vec<Match> = found.into_iter().filter(|file| !known(file.id)).collect();
        self.waiting.borrow_mut().extend(new);
        self.refill().await;
    }

    /// Scans the patterns on a thread that may block, and opens new files.
    pub async fn scan(&self, first: bool) {
        let began = Instant::now();
        let sought = if first { self.checkpoints.files_of(self.pipeline.name()) } else { Vec::new() };
        // A source with a checkpoint has started before: files that are new since then are read from the beginning.
        let at_end = first && sought.is_empty() && self.config.read_from == ReadFrom::End;
        let scan = {
            let (config, resting) = (self.config.clone(), self.resting.clone());
            let open: HashMap<FileId, PathBuf> = self.tails().iter().map(|tail| (tail.id, tail.path())).collect();
            move || scan_patterns(&config, &open, &resting, &sought)
        };
        let Ok(result) = tokio::task::spawn_blocking(scan).await else { return };
        self.report(&result);
        let now = Instant::now();
        for tail in self.tails.borrow().iter() {
            if result.away.contains(&tail.id) {
                tail.seen_at.set(now);
            } else if let Some(path) = result.seen.get(&tail.id) {
                tail.set_path(path.clone());
            }
        }
        if let Some(watch) = self.watch.borrow_mut().as_mut() {
            let unwatched = watch.set_directories(&result.directories);
            self.fault(WATCH, unwatched.as_deref());
        }
        self.enqueue(result.fresh, at_end);
        self.refill().await;
        self.scan_took.set(began.elapsed());
    }

    fn report(&self, result: &ScanResult) {
        for file in &result.lost {
            let bytes = self.checkpoints.unacknowledged(self.pipeline.name(), *file);
            self.checkpoints.forget(self.pipeline.name(), *file);
            if bytes > 0 {
                self.pipeline.missed_file(Path::new(&format!("inode {}", file.inode)), bytes);
            }
        }
        result.removed.iter().for_each(|file| self.checkpoints.closed(self.pipeline.name(), *file));
        for (path, id, error) in &result.special {
            if self.reported.borrow_mut().insert(*id) {
                let (component, path) = (self.pipeline.id(), path.display());
                tracing::warn!(component, %path, error, "skipping a file that cannot be read");
            }
        }
        self.fault("files", result.unreadable.as_deref());
    }

    /// Reports the fault of a part, or its recovery.
    fn fault(&self, part: &str, text: Option<&str>) {
        let part = format!("{} {part}", self.pipeline.id());
        match text {
            Some(text) => {
                if self.pipeline.health().fault(&part, text) {
                    tracing::warn!(
                        component = self.pipeline.id(),
                        error = text,
                        "log files skipped or possibly missed"
                    );
                }
            }
            None => drop(self.pipeline.health().recovered(&part)),
        }
    }

    /// Queues files to be opened.
    fn enqueue(&self, fresh: Vec<Match>, at_end: bool) {
        let mut waiting = self.waiting.borrow_mut();
        *waiting = fresh.into();
        if at_end {
            // Reading starts at their present end, whenever they are opened.
            for file in waiting.iter() {
                self.remember(file.id, file.size, file.modified, file.path.clone(), Some(file.size));
            }
        }
    }

    /// Opens as many files as the limit allows; files that are read to their end are closed to make room.
    async fn refill(&self) {
        let waiting = self.waiting.borrow().len();
        let room = || self.max_files.saturating_sub(self.tails.borrow().len());
        if waiting > room() {
            self.close_idle(waiting - room());
        }
        let now: Vec<Match> = {
            let mut waiting = self.waiting.borrow_mut();
            let count = room().min(waiting.len());
            waiting.drain(..count).collect()
        };
        if !now.is_empty() {
            let opened = tokio::task::spawn_blocking(move || now.into_iter().map(open).collect::<Vec<_>>());
            for opened in opened.await.unwrap_or_default() {
                match opened {
                    Ok(opened) => self.add(opened),
                    Err((file, _)) if !file.path.exists() => {}
                    Err((file, error)) => self.fault("open", Some(&cannot_read(&file.path, &error))),
                }
            }
            self.opened.notify_one();
        }
        let remaining = self.waiting.borrow().len();
        self.files_open.set(self.tails.borrow().len() as u64);
        self.files_waiting.set(remaining as u64);
        let text = (remaining > 0).then(|| match self.config.max_files as usize {
            most if most <= self.max_files => format!(
                "max_files = {most} reached: {remaining} files with unread data are waiting; raise max_files or narrow `include`"
            ),
            _ => format!(
                "{remaining} files are waiting: too many open files, only {} file descriptors available (ulimit -n); raise the limit",
                self.max_files
            ),
        });
        self.fault("max_files", text.as_deref());
    }

    fn add(&self, opened: Opened) {
        // Another scan may have found it while this one was in progress.
        if self.tails.borrow().iter().any(|tail| tail.id == opened.id) {
            return;
        }
        let resting = lock(&self.resting).remove(opened.id);
        self.checkpoints.opened(self.pipeline.name(), opened.id);
        let (path, id) = (opened.path.clone(), opened.id);
        let begin = resting.as_ref().and_then(|file| file.begin);
        let tail =
            Tail::over(opened, &self.pipeline, &self.checkpoints, self.config.max_line_bytes, Stream::None, begin);
        match tail {
            Ok(tail) => {
                self.fault("open", None);
                self.tails.borrow_mut().push(Rc::new(tail));
            }
            Err(error) => {
                if let Some(file) = resting {
                    lock(&self.resting).insert(id, file);
                }
                self.fault("open", Some(&cannot_read(&path, &error)));
            }
        }
    }

    /// A compressed rotated file was read before its compression, or is older than the source.
    fn skip_compressed(&self, tail: &Tail, format: &str) {
        if self.reported.borrow_mut().insert(tail.id) {
            let (component, path) = (self.pipeline.id(), tail.path());
            let path = path.display();
            tracing::info!(component, %path, format, "skipping a compressed file; add it to `exclude` to silence this message");
        }
        if let Some((size, modified)) = tail.facts() {
            self.remember(tail.id, size, modified, tail.path(), None);
        }
        self.checkpoints.forget(self.pipeline.name(), tail.id);
        self.tails.borrow_mut().retain(|open| open.id != tail.id);
    }

    /// Closes up to `count` files that are read to their end.
    fn close_idle(&self, count: usize) {
        let tails = self.tails();
        for tail in tails.iter().filter(|tail| tail.is_idle(QUIET)).take(count) {
            if let Some((size, modified)) = tail.facts() {
                self.remember(tail.id, size, modified, tail.path(), None);
                self.checkpoints.at_rest(self.pipeline.name(), tail.id);
                self.tails.borrow_mut().retain(|open| open.id != tail.id);
            }
        }
    }

    fn remember(&self, id: FileId, size: u64, modified: i64, path: PathBuf, begin: Option<u64>) {
        lock(&self.resting).insert(id, Resting { size, modified, path, begin, is_missing: false });
    }

    /// Closes files that are read to their end, matched by no pattern for a while, and delivered.
    pub async fn close_ended(&self) {
        for tail in self.tails() {
            if let Some(format) = tail.compressed() {
                self.skip_compressed(&tail, format);
                continue;
            }
            tail.note_read_periodically();
            if !tail.has_ended() || !tail.end(&self.pipeline).await {
                continue;
            }
            match tail.is_deleted() {
                true => self.checkpoints.forget(self.pipeline.name(), tail.id),
                false => self.checkpoints.closed(self.pipeline.name(), tail.id),
            }
            self.tails.borrow_mut().retain(|open| open.id != tail.id);
        }
    }
}

/// Finds all files that match, by their known state. `sought`: files with a checkpoint that may have been renamed while no worker
/// was running.
fn scan_patterns(
    config: &Config,
    open: &HashMap<FileId, PathBuf>,
    resting: &Mutex<RestingFiles>,
    sought: &[FileId],
) -> ScanResult {
    let mut walk = Walk::new(&config.exclude, sought);
    config.include.iter().for_each(|pattern| walk.pattern(pattern));
    let Walk { matches, mut directories, special, unreadable, .. } = walk;
    directories.sort();
    directories.dedup();
    let ids: HashSet<FileId> = matches.iter().map(|file| file.id).collect();
    let lost = |file: &&FileId| !ids.contains(file) && !open.contains_key(file);
    // A directory that is missing now may appear later with all its files.
    let complete = unreadable.is_none() && directories.iter().all(|directory| directory.is_dir());
    let lost = if complete { sought.iter().filter(lost).copied().collect() } else { Vec::new() };
    let (seen, mut fresh): (Vec<Match>, Vec<Match>) = matches.into_iter().partition(|file| open.contains_key(&file.id));
    let mut resting = lock(resting);
    let removed = resting.retain(|id| ids.contains(&id));
    fresh.retain(|file| {
        let known = resting.get(file.id);
        known.is_none_or(|known| (known.size, known.modified) != (file.size, file.modified))
    });
    fresh.sort_by_key(|file| file.modified);
    let is_away = |path: &Path| path.parent().is_some_and(|directory| !directory.exists());
    let away = open.iter().filter(|(_, path)| is_away(path)).map(|(id, _)| *id).collect();
    let seen = seen.into_iter().map(|file| (file.id, file.path)).collect();
    ScanResult { seen, fresh, directories, unreadable, special, away, lost, removed }
}

/// How many files may be open.
fn max_open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / DESCRIPTOR_SHARE).unwrap_or(usize::MAX).max(1)
}

/// Another file may take the name between stat and open: the open file is identified again.
fn open(found: Match) -> Result<Opened, (Match, io::Error)> {
    let opened = base::system::file::open_regular(&found.path, OpenOptions::new().read(true), OFlags::empty());
    match opened.and_then(|file| Ok((FileId::of(&file.metadata()?), file))) {
        Ok((id, file)) => Ok(Opened { path: found.path, id, file }),
        Err(error) => Err((found, error)),
    }
}
