//! What an event changes in the state: one file for each kind of event.

mod app;
mod message;
mod signal;
mod stop;
mod worker;
