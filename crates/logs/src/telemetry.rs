//! Metrics of the log pipeline that are not common to all components. In: nothing. Out: their names, labels and help texts.

use base::telemetry::MetricDesc;
use base::telemetry::component::LABELS;

pub static REMOVED_FILES: MetricDesc = MetricDesc::counter(
    "outrigger_logs_removed_files_total",
    &LABELS,
    "Files removed before every sink had received them.",
);
pub static REMOVED_BYTES: MetricDesc = MetricDesc::counter(
    "outrigger_logs_removed_bytes_total",
    &LABELS,
    "Bytes of removed files that a sink did not receive, as far as known.",
);
pub static FILES_OPEN: MetricDesc =
    MetricDesc::gauge("outrigger_logs_files_open", &LABELS, "Open files of a file source.");
pub static FILES_WAITING: MetricDesc =
    MetricDesc::gauge("outrigger_logs_files_waiting", &LABELS, "Files waiting because `max_files` is reached.");
pub static TRUNCATED: MetricDesc =
    MetricDesc::counter("outrigger_logs_truncated_records_total", &LABELS, "Records cut at `max_line_bytes`.");

/// All of them, for the documentation.
pub static METRICS: [&MetricDesc; 5] = [&REMOVED_FILES, &REMOVED_BYTES, &FILES_OPEN, &FILES_WAITING, &TRUNCATED];
