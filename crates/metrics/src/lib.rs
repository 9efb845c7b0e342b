//! The app's metrics: collect → shape → keep → export. In: the app's exposition page, /proc, the proxy's counters, our own.
//! Out: one merged page, and remote write. Inputs are merged typed, never as text; a series is interned once per target.

pub mod config;
pub mod plan;
pub mod run;
mod sources;
pub mod telemetry;
pub mod series;
pub mod text;
pub mod source;
pub mod sink;
pub mod sink_options;
