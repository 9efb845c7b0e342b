//! The endpoint that Prometheus scrapes: all sources merged, typed. In: the last snapshot of each source. Out: the text format
//! 0.0.4 on /metrics. Local sources are collected again at each scrape, so that their values are as old as the scrape.

use super::{Context, Running, Sink, SinkConfig};
use crate::sources::Sources;
use crate::text;
use base::runtime::health::Health;
use base::runtime::lifecycle::PhaseWatch;
use base::runtime::scope::Scope;
use base::system::listen::Listen;
use base::telemetry::ledger::Row;
use config::needs::Needs;
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
    fn example() -> &'static str {
        "prometheus: { listen: \"127.0.0.1:9464\" }\n"
    }

    fn needs(&self, id: &str) -> Needs {
        let (owner, address) = (id.to_string(), self.listen.0);
        let listen = Listen { name: socket_name(id), owner, key: "prometheus.listen", address, count: 1 };
        Needs { listen: vec![listen], ..Needs::default() }
    }
}

impl SinkConfig for Config {
    fn build(&self, context: &Context<'_>) -> Result<Rc<dyn Sink>, String> {
        let id = context.component.id.clone();
        let mut group = context.sockets.tcp(&socket_name(&id), self.listen.0, 1)?;
        let socket = group.pop().ok_or("no socket")?;
        Ok(Rc::new(Prometheus {
            id,
            socket: TcpListener::from_std(socket).map_err(|error| error.to_string())?,
            sources: context.sources.clone(),
            row: context.telemetry.ledger.row(context.component),
            health: context.health.clone(),
            scope: context.scope.clone(),
        }))
    }

    fn is_pulled(&self) -> bool {
        true
    }
}

/// The name under which workers hand over the socket.
fn socket_name(id: &str) -> String {
    format!("metrics/{}", id.rsplit('.').next().unwrap_or(id))
}

struct Prometheus {
    id: String,
    socket: TcpListener,
    sources: Rc<Sources>,
    row: Arc<Row>,
    health: Arc<Health>,
    scope: Scope,
}

impl Sink for Prometheus {
    fn run(self: Rc<Prometheus>, _phase: PhaseWatch) -> Running {
        Box::pin(async move {
            let server = Server::default();
            loop {
                let slot = server.slot().await;
                let stream = match self.socket.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let sink = self.clone();
                let respond = move |request: Request| sink.clone().respond(request);
                self.scope.spawn_each("exposition", slot.serve(stream, respond));
            }
        })
    }
}

/// The delay after an accept that failed for lack of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Prometheus {
    async fn respond(self: Rc<Prometheus>, request: Request) -> Response {
        if request.path != "/metrics" {
            return Response::text(404, "the metrics are at /metrics\n");
        }
        if request.method != http::Method::GET && request.method != http::Method::HEAD {
            return Response::text(405, "method not allowed; use GET\n");
        }
        let snapshots = self.sources.latest().await;
        let samples: usize = snapshots.iter().map(|snapshot| snapshot.samples()).sum();
        self.row.receive(samples as u64);
        let mut body = String::new();
        let conflicts = text::write(&snapshots, &mut body);
        self.row.deliver(samples as u64);
        match conflicts.first() {
            Some(first) => {
                let text =
                    format!("{} metrics skipped: conflicting type across sources, e.g. {first}", conflicts.len());
                self.health.fault(&self.id, text);
            }
            None => drop(self.health.recovered(&self.id)),
        }
        Response::new(200, "text/plain; version=0.0.4; charset=utf-8", body)
    }
}
