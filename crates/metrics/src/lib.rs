//! The app's metrics: collect → merge → retain → export. In: the app's exposition, /proc, the counters of the proxy and of
//! Outrigger. Out: one merged exposition, and remote write. Inputs are merged as typed series, never as text; a series is
//! interned once per target.

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
