//! Runs closures on another thread, only for tests (feature `fault-injection`): an injected fault must happen on the thread under
//! test. In: a thread's name and a closure. Out: the closure runs inside that thread's main future, so a panic is a panic of
//! that thread. Limits: none are needed; a test posts one closure.

use crate::sync::lock;
use std::future::Future;
use std::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Fault = Box<dyn FnOnce() + Send>;

static MAILBOXES: Mutex<Vec<(String, UnboundedSender<Fault>)>> = Mutex::new(Vec::new());

/// Posts a closure; false if no thread of that name accepts one.
pub fn post(thread: &str, fault: impl FnOnce() + Send + 'static) -> bool {
    let mailboxes = lock(&MAILBOXES);
    let found = mailboxes.iter().find(|(name, _)| name == thread);
    found.is_some_and(|(_, sender)| sender.send(Box::new(fault)).is_ok())
}

/// Runs a thread's work and, concurrently, the closures posted to it.
pub(crate) async fn with_mailbox(thread: String, work: impl Future<Output = ()>) {
    let (sender, posted) = unbounded_channel();
    lock(&MAILBOXES).push((thread, sender));
    tokio::select! {
        () = work => {}
        () = run(posted) => {}
    }
}

async fn run(mut posted: UnboundedReceiver<Fault>) {
    while let Some(fault) = posted.recv().await {
        fault();
    }
}
