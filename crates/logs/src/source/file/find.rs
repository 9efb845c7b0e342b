//! Which files are read. In: patterns, and changes of their folders. Out: open files, known by device and inode. Files that are
//! read to their end give way to others and are remembered by size and time. Bounds: `max_files` open files; scanning takes at most
//! one part in `SCAN_SHARE` of a core.

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

/// How long a file has nothing new before it gives way to one that waits, and how often that is looked at while files wait.
const QUIET: Duration = Duration::from_millis(200);
const REFILL_EVERY: Duration = Duration::from_millis(50);
/// The part of the descriptors of the process that files may take.
const DESCRIPTOR_SHARE: u64 = 2;
/// A scan that took a millisecond is followed by a pause of at least this many.
const SCAN_SHARE: u32 = 50;
/// What health calls the changes of folders.
const WATCH: &str = "watch";
/// A burst of changes leads to one scan.
const SETTLE: Duration = Duration::from_millis(5);

/// Finds the files of one source.
pub struct Finder {
    config: Config,
    patterns: Patterns,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    tails: RefCell<Vec<Rc<Tail>>>,
    /// Files that are not open, as they were when they were read to their end or passed over.
    resting: Arc<Mutex<RestingFiles>>,
    /// Files that have something to read and no place, the oldest first.
    waiting: RefCell<VecDeque<Match>>,
    max_files: usize,
    files_open: Gauge,
    files_waiting: Gauge,
    watch: RefCell<Option<Watch>>,
    news: Notify,
    scan_took: Cell<Duration>,
    /// Files that were said to be passed over: compressed ones, pipes, devices.
    said: RefCell<HashSet<FileId>>,
}

/// What one look at the patterns gave.
struct Looked {
    /// Files that are open, under the name that they have now.
    seen: HashMap<FileId, PathBuf>,
    /// Files that have something to read, the oldest first.
    fresh: Vec<Match>,
    directories: Vec<PathBuf>,
    unreadable: Option<String>,
    /// Pipes and the like that match, and what they are.
    special: Vec<(PathBuf, FileId, String)>,
    /// Open files whose whole folder is away.
    away: Vec<FileId>,
    /// Files with a position that have no name any more.
    lost: Vec<FileId>,
    /// Files at rest that no pattern matches any more.
    removed: Vec<FileId>,
}

impl Finder {
    pub fn new(config: Config, pipeline: Rc<Pipeline>, checkpoints: Checkpoints) -> Finder {
        let finder = Finder {
            tails: RefCell::default(),
            resting: Arc::default(),
            waiting: RefCell::default(),
            max_files: (config.max_files as usize).min(descriptors()),
            watch: RefCell::default(),
            news: Notify::new(),
            scan_took: Cell::new(Duration::ZERO),
            said: RefCell::default(),
            patterns: Patterns::new(&config.include, &config.exclude),
            files_open: pipeline.gauge(&FILES_OPEN),
            files_waiting: pipeline.gauge(&FILES_WAITING),
            config,
            pipeline,
            checkpoints,
        };
        finder.begin_to_watch();
        finder
    }

    pub fn tails(&self) -> Vec<Rc<Tail>> {
        self.tails.borrow().clone()
    }

    /// A file was opened.
    pub async fn found(&self) {
        self.news.notified().await;
    }

    /// Opens what comes, scans from time to time and when a folder has changed, and gives places to files that wait for one.
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
                // A burst of changes leads to one scan.
                due = due.min(Instant::now() + SETTLE.max(self.pause()));
            }
            if Instant::now() >= due {
                self.scan(false).await;
                due = Instant::now() + self.config.scan_interval.0.max(self.pause());
            } else {
                self.refill().await;
            }
        }
    }

    fn begin_to_watch(&self) {
        match Watch::new() {
            Ok(watch) => drop(self.watch.replace(Some(watch))),
            Err(error) => self.cannot_watch(&error),
        }
    }

    /// Without a watch the scans go on.
    fn cannot_watch(&self, error: &io::Error) {
        let text = format!(
            "cannot create an inotify instance ({error}); falling back to scanning: short-lived files may be missed (fs.inotify.max_user_instances)"
        );
        self.fault(WATCH, Some(&text));
    }

    fn pause(&self) -> Duration {
        self.scan_took.get() * SCAN_SHARE
    }

    fn means(&self, path: &Path) -> bool {
        self.patterns.mean(path)
    }

    /// Takes names that came and went, in their order. Answers where files are that may be new, under the names that they have now.
    async fn follow(&self, changes: Vec<Change>) -> Vec<PathBuf> {
        // A name tells nothing of who had it a moment ago: what is there now does.
        let looked = tokio::task::spawn_blocking(move || {
            let id = |path: &PathBuf| std::fs::metadata(path).ok().map(|meta| FileId::of(&meta));
            let place = |change: &Change| match change {
                Change::Came(_) | Change::Lost => None,
                Change::Gone(path, to) => id(to.as_ref().unwrap_or(path)),
            };
            changes.into_iter().map(|change| (place(&change), change)).collect::<Vec<_>>()
        });
        let mut paths = Vec::new();
        for (here, change) in looked.await.unwrap_or_default() {
            match change {
                Change::Came(path) if self.means(&path) => paths.push(path),
                Change::Came(_) => {}
                Change::Lost => tracing::warn!(
                    source = self.pipeline.name(),
                    "inotify queue overflow (IN_Q_OVERFLOW): short-lived files may have been missed"
                ),
                Change::Gone(path, Some(to)) => self.moved(path, to, here, &mut paths),
                Change::Gone(path, None) => self.removed(&path, here),
            }
        }
        paths
    }

    /// A file has another name. `here`: who has that now.
    fn moved(&self, path: PathBuf, to: PathBuf, here: Option<FileId>, paths: &mut Vec<PathBuf>) {
        let is_it = |tail: &Tail| here.map_or_else(|| tail.is_at(&path), |here| tail.id == here);
        if let Some(tail) = self.tails.borrow().iter().find(|tail| is_it(tail)) {
            return tail.lost_name(Some(to));
        }
        let mut resting = lock(&self.resting);
        let known = here.or_else(|| resting.at(&path));
        if known.is_some_and(|id| resting.rename(id, to.clone())) || !self.means(&path) {
            return;
        }
        match here {
            Some(_) => paths.push(to),
            None => self.pipeline.missed_file(&path, 0),
        }
    }

    /// A file is removed, or has gone where nobody looks. `here`: who has its name now.
    fn removed(&self, path: &Path, here: Option<FileId>) {
        let is_it = |tail: &Tail| tail.is_at(path) && here != Some(tail.id);
        if let Some(tail) = self.tails.borrow().iter().find(|tail| is_it(tail)) {
            return tail.lost_name(None);
        }
        let mut resting = lock(&self.resting);
        match resting.at(path).filter(|id| here != Some(*id)) {
            Some(id) => drop(resting.rename(id, PathBuf::new())),
            None if self.means(path) => self.pipeline.missed_file(path, 0),
            None => {}
        }
    }

    /// Opens what has come without a look at everything else: its name may be another one soon.
    async fn open_now(&self, came: Vec<PathBuf>) {
        if came.is_empty() {
            return;
        }
        let look = move || {
            let mut walk = Walk::new(&[], &[]);
            came.into_iter().for_each(|path| walk.path(path));
            walk.matches
        };
        let Ok(found) = tokio::task::spawn_blocking(look).await else { return };
        let known = |id: FileId| self.tails.borrow().iter().any(|tail| tail.id == id);
        let new: Vec<Match> = found.into_iter().filter(|file| !known(file.id)).collect();
        self.waiting.borrow_mut().extend(new);
        self.refill().await;
    }

    /// Looks at the patterns on a thread that may block, and opens what is new.
    pub async fn scan(&self, first: bool) {
        let began = Instant::now();
        let sought = if first { self.checkpoints.files_of(self.pipeline.name()) } else { Vec::new() };
        // A source that has a position has started before: what is new since then is read whole.
        let at_end = first && sought.is_empty() && self.config.read_from == ReadFrom::End;
        let look = {
            let (config, resting) = (self.config.clone(), self.resting.clone());
            let open: HashMap<FileId, PathBuf> = self.tails().iter().map(|tail| (tail.id, tail.path())).collect();
            move || look(&config, &open, &resting, &sought)
        };
        let Ok(looked) = tokio::task::spawn_blocking(look).await else { return };
        self.report(&looked);
        let now = Instant::now();
        for tail in self.tails.borrow().iter() {
            if looked.away.contains(&tail.id) {
                tail.seen_at.set(now);
            } else if let Some(path) = looked.seen.get(&tail.id) {
                tail.set_path(path.clone());
            }
        }
        if let Some(watch) = self.watch.borrow_mut().as_mut() {
            let unwatched = watch.set_directories(&looked.directories);
            self.fault(WATCH, unwatched.as_deref());
        }
        self.wait(looked.fresh, at_end);
        self.refill().await;
        self.scan_took.set(began.elapsed());
    }

    fn report(&self, looked: &Looked) {
        for file in &looked.lost {
            let bytes = self.checkpoints.unacknowledged(self.pipeline.name(), *file);
            self.checkpoints.forget(self.pipeline.name(), *file);
            if bytes > 0 {
                self.pipeline.missed_file(Path::new(&format!("inode {}", file.inode)), bytes);
            }
        }
        looked.removed.iter().for_each(|file| self.checkpoints.closed(self.pipeline.name(), *file));
        for (path, id, what) in &looked.special {
            if self.said.borrow_mut().insert(*id) {
                tracing::warn!(source = self.pipeline.name(), file = %path.display(), error = what, "skipping a file that cannot be read");
            }
        }
        self.fault("files", looked.unreadable.as_deref());
    }

    /// Says that a part is not well, or is again.
    fn fault(&self, part: &str, text: Option<&str>) {
        let part = format!("{} {part}", self.pipeline.id());
        match text {
            Some(text) => {
                if self.pipeline.health().fault(&part, text) {
                    tracing::warn!(source = self.pipeline.name(), error = text, "log files skipped or possibly missed");
                }
            }
            None => drop(self.pipeline.health().recovered(&part)),
        }
    }

    /// Puts files in line for a place.
    fn wait(&self, fresh: Vec<Match>, at_end: bool) {
        let mut waiting = self.waiting.borrow_mut();
        *waiting = fresh.into();
        if at_end {
            // They are begun where they end now, whenever their turn comes.
            for file in waiting.iter() {
                self.remember(file.id, file.size, file.modified, file.path.clone(), Some(file.size));
            }
        }
    }

    /// Opens as many as may be open; files that are read to their end make room.
    async fn refill(&self) {
        let waiting = self.waiting.borrow().len();
        let room = || self.max_files.saturating_sub(self.tails.borrow().len());
        if waiting > room() {
            self.rest(waiting - room());
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
            self.news.notify_one();
        }
        let left = self.waiting.borrow().len();
        self.files_open.set(self.tails.borrow().len() as u64);
        self.files_waiting.set(left as u64);
        let text = (left > 0).then(|| match self.config.max_files as usize {
            most if most <= self.max_files => format!(
                "max_files = {most} reached: {left} files with unread data are waiting; raise max_files or narrow `include`"
            ),
            _ => format!(
                "{left} files are waiting: too many open files, only {} file descriptors available (ulimit -n); raise the limit",
                self.max_files
            ),
        });
        self.fault("max_files", text.as_deref());
    }

    fn add(&self, opened: Opened) {
        // Another scan may have found it while this one was under way.
        if self.tails.borrow().iter().any(|tail| tail.id == opened.id) {
            return;
        }
        let resting = lock(&self.resting).remove(opened.id);
        self.checkpoints.opened(self.pipeline.name(), opened.id);
        let (path, id) = (opened.path.clone(), opened.id);
        let begin = resting.as_ref().and_then(|file| file.begin);
        let over =
            Tail::over(opened, &self.pipeline, &self.checkpoints, self.config.max_line_bytes, Stream::None, begin);
        match over {
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

    /// A rotated file that was compressed was read before that, or is older than we are.
    fn pass_over(&self, tail: &Tail, format: &str) {
        if self.said.borrow_mut().insert(tail.id) {
            let (source, path) = (self.pipeline.name(), tail.path());
            let file = path.display();
            tracing::info!(source, %file, format, "skipping a compressed file; add it to `exclude` to silence this message");
        }
        if let Some((size, modified)) = tail.facts() {
            self.remember(tail.id, size, modified, tail.path(), None);
        }
        self.checkpoints.forget(self.pipeline.name(), tail.id);
        self.tails.borrow_mut().retain(|open| open.id != tail.id);
    }

    /// Closes up to `count` files that are read to their end.
    fn rest(&self, count: usize) {
        let tails = self.tails();
        for tail in tails.iter().filter(|tail| tail.may_rest(QUIET)).take(count) {
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

    /// Lets go of files that are read to their end, matched by no pattern for a while, and delivered.
    pub async fn close_ended(&self) {
        for tail in self.tails() {
            if let Some(format) = tail.packed() {
                self.pass_over(&tail, format);
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

/// All files that match, told apart by what is known of them. `sought`: files with a position that may have been renamed while
/// nobody looked.
fn look(config: &Config, open: &HashMap<FileId, PathBuf>, resting: &Mutex<RestingFiles>, sought: &[FileId]) -> Looked {
    let mut walk = Walk::new(&config.exclude, sought);
    config.include.iter().for_each(|pattern| walk.pattern(pattern));
    let Walk { matches, mut directories, special, unreadable, .. } = walk;
    directories.sort();
    directories.dedup();
    let ids: HashSet<FileId> = matches.iter().map(|file| file.id).collect();
    let lost = |file: &&FileId| !ids.contains(file) && !open.contains_key(file);
    // A folder that is not there now may come with everything in it.
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
    Looked { seen, fresh, directories, unreadable, special, away, lost, removed }
}

/// How many files may be open.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / DESCRIPTOR_SHARE).unwrap_or(usize::MAX).max(1)
}

/// Between stat and open the name may have gone to another file: the open one tells who it is.
fn open(found: Match) -> Result<Opened, (Match, io::Error)> {
    let opened = base::system::file::open_regular(&found.path, OpenOptions::new().read(true), OFlags::empty());
    match opened.and_then(|file| Ok((FileId::of(&file.metadata()?), file))) {
        Ok((id, file)) => Ok(Opened { path: found.path, id, file }),
        Err(error) => Err((found, error)),
    }
}
