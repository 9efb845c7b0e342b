//! Own metrics of the metrics pipeline that not every component has. In: nothing. Out: their names, labels and help texts.

use base::telemetry::MetricDesc;
use base::telemetry::component::LABELS;

pub static SERIES: MetricDesc = MetricDesc::gauge("outrigger_metrics_series", &LABELS, "Series known.");

/// For the docs.
pub static METRICS: [&MetricDesc; 1] = [&SERIES];
