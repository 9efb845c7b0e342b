//! Outrigger's metrics about sync. In: the published revisions. Out: names, labels and help texts, and the families of revisions,
//! whose labels change. Limits: one point for each configured entry.

use base::feeds::revisions::Revisions;
use base::telemetry::MetricDesc;
use base::telemetry::family::{Family, Gather};
use std::time::UNIX_EPOCH;

pub static POLLS: MetricDesc = MetricDesc::counter(
    "outrigger_sync_polls_total",
    &["entry", "store", "result"],
    "Polls of a store: unchanged, changed, failure.",
);
pub static LAST_SUCCESS: MetricDesc = MetricDesc::gauge(
    "outrigger_sync_last_success_timestamp_seconds",
    &["entry", "store"],
    "Time of the last successful poll.",
);
pub static REVISION: MetricDesc =
    MetricDesc::gauge("outrigger_sync_revision_info", &["entry", "revision"], "Published revision; always 1.");
pub static PUBLISHED: MetricDesc = MetricDesc::gauge(
    "outrigger_sync_published_timestamp_seconds",
    &["entry"],
    "Publication time of the current revision.",
);
pub static PUBLICATIONS: MetricDesc =
    MetricDesc::counter("outrigger_sync_publications_total", &["entry", "result"], "Publications: success, failure.");
pub static NOTIFICATIONS: MetricDesc = MetricDesc::counter(
    "outrigger_sync_notifications_total",
    &["entry", "type", "result"],
    "Notifications: success, failure.",
);

/// The published revisions, as metrics.
pub struct PublishedRevisions(pub Revisions);

/// For the docs.
pub static METRICS: [&MetricDesc; 6] = [&POLLS, &LAST_SUCCESS, &REVISION, &PUBLISHED, &PUBLICATIONS, &NOTIFICATIONS];

impl Gather for PublishedRevisions {
    fn gather(&self, families: &mut Vec<Family>) {
        let (mut revisions, mut times) = (REVISION.family(), PUBLISHED.family());
        for published in self.0.list() {
            if let Some(revision) = &published.revision {
                revisions.points.push(REVISION.point(&[&published.entry, revision], 1.0));
            }
            if let Some(since) = published.published_at.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
                times.points.push(PUBLISHED.point(&[&published.entry], since.as_secs() as f64));
            }
        }
        families.extend([revisions, times]);
    }
}
