//! Errands for a thread of ours from another, for tests alone (feature `fault-injection`): a fault that is injected has to happen on the
//! thread that is to have it. In: a thread's name and a closure. Out: the closure run inside that thread's main future, where a
//! panic is that thread's own. Bound: none is needed; a test posts one errand.

use crate::sync::lock;
use std::future::Future;
use std::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Errand = Box<dyn FnOnce() + Send>;

static BOXES: Mutex<Vec<(String, UnboundedSender<Errand>)>> = Mutex::new(Vec::new());

/// Whether there is such a thread that still takes errands.
pub fn post(thread: &str, errand: impl FnOnce() + Send + 'static) -> bool {
    let boxes = lock(&BOXES);
    let found = boxes.iter().find(|(name, _)| name == thread);
    found.is_some_and(|(_, sender)| sender.send(Box::new(errand)).is_ok())
}

/// Runs a thread's work, and what is posted to it meanwhile.
pub(crate) async fn beside(thread: String, work: impl Future<Output = ()>) {
    let (sender, posted) = unbounded_channel();
    lock(&BOXES).push((thread, sender));
    tokio::select! {
        () = work => {}
        () = run(posted) => {}
    }
}

async fn run(mut posted: UnboundedReceiver<Errand>) {
    while let Some(errand) = posted.recv().await {
        errand();
    }
}
