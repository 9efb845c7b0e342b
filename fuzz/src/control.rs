//! The parts of the binary's `control` that the files compiled here use. No target calls any of it.

use base::runtime::health::Health;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use supervisor::message::{Ended, ToSupervisor};
use tokio::sync::watch;

#[allow(dead_code, reason = "used by `app/ready.rs`, which no target calls")]
pub struct AppFacts {
    pub runs: watch::Sender<bool>,
    pub was_ready: watch::Sender<bool>,
    pub health: Arc<Health>,
    pub restarts: Rc<Cell<u32>>,
    pub restarts_max: u32,
    pub ended: Rc<Cell<Option<Ended>>>,
}

#[allow(dead_code, reason = "used by `app/ready.rs`, which no target calls")]
pub struct Control;

#[allow(dead_code, reason = "used by `app/ready.rs`, which no target calls")]
impl Control {
    pub fn send(&self, _: ToSupervisor<'_>) {}
}
