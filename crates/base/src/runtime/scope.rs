//! Structured concurrency on current-thread runtimes: the only module that spawns a task or a thread. In: a name and a
//! future. Out: its completion; a panic is caught, counted and reported. Limits: a scope aborts its tasks when it is
//! dropped; a thread's runtime has at most `BLOCKING_MAX` threads for blocking calls.

use crate::runtime::health::Health;
use slab::Slab;
use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};

/// Threads per runtime for blocking calls, such as fsync and git.
pub const BLOCKING_MAX: usize = 4;

/// Tasks of one owner on this thread. Dropping the last clone aborts running tasks.
#[derive(Clone)]
pub struct Scope {
    inner: Rc<Inner>,
}

struct Inner {
    name: String,
    health: Arc<Health>,
    tasks: Rc<RefCell<Slab<AbortHandle>>>,
}

impl Scope {
    pub fn new(name: impl Into<String>, health: Arc<Health>) -> Scope {
        Scope { inner: Rc::new(Inner { name: name.into(), health, tasks: Rc::default() }) }
    }

    /// Starts one of many similar tasks, such as a connection: a panic terminates only that task.
    pub fn spawn_each(&self, task: &'static str, future: impl Future<Output = ()> + 'static) {
        let owner = self.inner.name.clone();
        let caught = CatchPanic { future: Box::pin(future) };
        self.start(async move {
            if let Err(error) = caught.await {
                tracing::error!(owner, task, error, "task panicked and was terminated; other tasks keep running");
            }
        });
    }

    /// Starts a task. A panic in it marks the subsystem failed and is logged; it never unwinds into the runtime.
    pub fn spawn(&self, task: &'static str, future: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        let owner = self.inner.name.clone();
        let health = self.inner.health.clone();
        let caught = CatchPanic { future: Box::pin(future) };
        self.start(async move {
            if let Err(error) = caught.await {
                tracing::error!(owner, task, error, "task panicked; subsystem marked failed, other tasks keep running");
                health.panicked(&format!("task {task} of {owner} panicked: {error}"));
            }
        })
    }

    fn start(&self, future: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        let key = self.inner.tasks.borrow().vacant_key();
        let entry = TaskEntry { tasks: self.inner.tasks.clone(), key };
        // No task runs before the current task returns to the runtime: the key is still vacant below.
        let handle = tokio::task::spawn_local(async move {
            let _entry = entry;
            future.await;
        });
        self.inner.tasks.borrow_mut().insert(handle.abort_handle());
        handle
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Not while `tasks` is borrowed: a runtime that shuts down drops a task when it is aborted, and its entry with it.
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        tasks.iter().for_each(|(_, task)| task.abort());
    }
}

/// The entry of a task in its scope, removed when the task finishes: a handle retains the memory of a finished task.
struct TaskEntry {
    tasks: Rc<RefCell<Slab<AbortHandle>>>,
    key: usize,
}

impl Drop for TaskEntry {
    fn drop(&mut self) {
        let _handle = self.tasks.borrow_mut().try_remove(self.key);
    }
}

struct CatchPanic<F> {
    future: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for CatchPanic<F> {
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(panic_text(payload.as_ref()))),
        }
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Starts a named thread with its own current-thread runtime and runs one future on it.
pub fn thread<F>(
    name: &str,
    health: Arc<Health>,
    make: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>>
where
    F: Future<Output = ()> + 'static,
{
    let owner = name.to_string();
    std::thread::Builder::new().name(name.to_string()).stack_size(THREAD_STACK).spawn(move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_MAX)
            .thread_stack_size(THREAD_STACK)
            .event_interval(EVENT_INTERVAL)
            .build_local(tokio::runtime::LocalOptions::default());
        let beat = health.beat(&owner);
        let runtime = match built {
            Ok(runtime) => runtime,
            Err(error) => {
                return health.panicked(&format!("cannot create the Tokio runtime of thread {owner}: {error}"));
            }
        };
        #[cfg(feature = "fault-injection")]
        let make = {
            let thread = owner.clone();
            || crate::runtime::fault_mailbox::with_mailbox(thread, make())
        };
        let main = async move {
            tokio::task::spawn_local(count_beats(beat));
            make().await;
        };
        if let Err(error) = runtime.block_on(CatchPanic { future: Box::pin(main) }) {
            tracing::error!(owner, error, "main task of a thread panicked; subsystem marked failed");
            health.panicked(&format!("{owner} panicked: {error}"));
        }
    })
}

/// Increments the heartbeat while this thread makes progress.
async fn count_beats(beat: Arc<AtomicU64>) {
    loop {
        beat.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Interval of the heartbeat of a thread.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);

/// Enough for the deepest call (git's tree walk); only touched pages use memory.
const THREAD_STACK: usize = 2 << 20;

/// Task polls between two polls of the sockets: Tokio's default, set explicitly because the proxy depends on it.
const EVENT_INTERVAL: u32 = 61;

#[cfg(test)]
mod tests {
    use super::*;

    fn on_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn panic_is_reported_and_other_tasks_continue() {
        on_runtime(async {
            let health = Health::new("test");
            let scope = Scope::new("test", health.clone());
            let bad = scope.spawn("bad", async { panic!("broken on purpose") });
            let good = scope.spawn("good", async { tokio::task::yield_now().await });
            assert!(bad.await.is_ok() && good.await.is_ok());
            assert!(health.current().message.contains("broken on purpose"));
            assert!(!health.live());
        });
    }

    #[test]
    fn scope_retains_no_finished_tasks() {
        on_runtime(async {
            let scope = Scope::new("test", Health::new("test"));
            let endless = scope.spawn("endless", std::future::pending());
            for _ in 0..100 {
                scope.spawn_each("short", async {});
            }
            let last = scope.spawn("last", async {});
            assert!(last.await.is_ok());
            assert_eq!(scope.inner.tasks.borrow().len(), 1, "only the endless task");
            let aborted = scope.spawn("aborted", std::future::pending());
            aborted.abort();
            assert!(aborted.await.is_err());
            assert_eq!(scope.inner.tasks.borrow().len(), 1, "an aborted task is removed");
            drop(scope);
            assert!(endless.await.is_err_and(|error| error.is_cancelled()));
        });
    }

    #[test]
    fn dropping_a_scope_aborts_its_tasks() {
        on_runtime(async {
            let scope = Scope::new("test", Health::new("test"));
            let endless = scope.spawn("endless", std::future::pending());
            drop(scope);
            assert!(endless.await.is_err_and(|error| error.is_cancelled()));
        });
    }
}
