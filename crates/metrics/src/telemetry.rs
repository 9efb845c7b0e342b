//! Outrigger's metrics about the metrics pipeline, beyond those of every component. In: nothing. Out: names, labels, help texts.

use base::telemetry::MetricDesc;
use base::telemetry::component::LABELS;

pub static SERIES: MetricDesc = MetricDesc::gauge("outrigger_metrics_series", &LABELS, "Known series.");

/// For the docs.
pub static METRICS: [&MetricDesc; 1] = [&SERIES];
