//! The endpoint that Prometheus scrapes: all sources merged, typed. In: the last snapshot of each source. Out: the text format
//! 0.0.4 on /metrics. Local sources are collected again at each scrape, so that their values are as old as the scrape.

use crate::sources::Sources;
use crate::text;
use base::runtime::health::Health;
use base::runtime::scope::Scope;
use base::telemetry::ledger::Row;
use config::registry::Kind;
use config::unit::Address;
use net::serve::{Request, Response, Server};
use schemars::JsonSchema;
use serde::Deserialize;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Exposes /metrics for scraping: the app's metrics with their types, and those of every other source. Series of an app that
/// does not respond are removed. If two sources expose a metric with different types, the type of the first source is used.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on, such as 127.0.0.1:9464.
    pub listen: Address,
}

impl Kind for Config {
    const EXAMPLE: &'static str = "prometheus: { listen: \"127.0.0.1:9464\" }\n";
}

/// Serves the exposition until the scope ends.
pub async fn run(
    name: String,
    socket: TcpListener,
    sources: Rc<Sources>,
    row: Arc<Row>,
    health: Arc<Health>,
    scope: Scope,
) {
    let server = Server::default();
    loop {
        let slot = server.slot().await;
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (sources, row, health, name) = (sources.clone(), row.clone(), health.clone(), name.clone());
        let respond =
            move |request: Request| respond(request, sources.clone(), row.clone(), health.clone(), name.clone());
        scope.spawn_each("exposition", slot.serve(stream, respond));
    }
}

/// The delay after an accept that failed for lack of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

async fn respond(request: Request, sources: Rc<Sources>, row: Arc<Row>, health: Arc<Health>, name: String) -> Response {
    if request.path != "/metrics" {
        return Response::text(404, "the metrics are at /metrics\n");
    }
    if request.method != http::Method::GET && request.method != http::Method::HEAD {
        return Response::text(405, "method not allowed; use GET\n");
    }
    let snapshots = sources.latest().await;
    let samples: usize = snapshots.iter().map(|snapshot| snapshot.samples()).sum();
    row.receive(samples as u64);
    let mut body = String::new();
    let conflicts = text::write(&snapshots, &mut body);
    row.deliver(samples as u64);
    match conflicts.first() {
        Some(first) => {
            let text = format!("{} metrics skipped: conflicting type across sources, e.g. {first}", conflicts.len());
            health.fault(&name, text);
        }
        None => drop(health.recovered(&name)),
    }
    Response::new(200, "text/plain; version=0.0.4; charset=utf-8", body)
}
