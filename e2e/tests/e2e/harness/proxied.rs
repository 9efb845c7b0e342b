//! Outrigger as a proxy in front of a raw app, for tests of HTTP/1.1. In: an app. Out: a connection through the proxy, and the
//! access records. `finish` asserts that the ledger balances. Limits: one listener, one cluster named `back`.

use super::outrigger::Exit;
use super::raw_app::Seen;
use super::wire::Reply;
use super::{Outrigger, PATIENCE, RawApp, Scene, Wire, until};
use serde_json::Value;
use std::io;
use std::net::TcpStream;

pub struct Proxied {
    pub scene: Scene,
    pub outrigger: Outrigger,
    pub front: String,
}

/// Keys that a test sets in addition to the required ones, such as `idle_timeout: 1s`; several are separated by commas.
#[derive(Clone, Copy, Default)]
pub struct Keys<'k> {
    pub listener: &'k str,
    pub cluster: &'k str,
    pub limits: &'k str,
}

const PROXY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
limits: { @limits@ }
logs: { sources: { access: { proxy: {} } }, sinks: { records: { file: { path: "@dir@/access.log" } } } }
metrics: { sources: { proxy: { proxy: {} } }, sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } } }
proxy:
  threads: 1
  listeners: { front: { listen: "127.0.0.1:@front@", direction: outbound, cluster: back@listener@ } }
  clusters: { back: { endpoints: [@endpoints@], balance: { least_request: {} }@cluster@ } }
"#;

impl Proxied {
    /// In front of the app at this address.
    #[track_caller]
    pub fn to(address: &str) -> Self {
        Self::to_all(&[address])
    }

    #[track_caller]
    pub fn to_all(addresses: &[&str]) -> Self {
        Self::with(addresses, Keys::default())
    }

    #[track_caller]
    pub fn with(addresses: &[&str], keys: Keys<'_>) -> Self {
        let scene = Scene::new();
        let added = |keys: &str| if keys.is_empty() { String::new() } else { format!(", {keys}") };
        scene.set("listener", added(keys.listener));
        scene.set("cluster", added(keys.cluster));
        scene.set("limits", keys.limits);
        let front = format!("127.0.0.1:{}", scene.port("front"));
        scene.port("page");
        scene.set("endpoints", addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", "));
        let outrigger = Outrigger::start(&scene, PROXY, &[]);
        Self { scene, outrigger, front }
    }

    #[track_caller]
    pub fn connect(&self) -> Wire<TcpStream> {
        Wire::connect(&self.front).expect("the proxy accepts connections")
    }

    /// Sends these bytes on a new connection and reads the response to a request of `method`.
    #[track_caller]
    pub fn exchange(&self, bytes: impl AsRef<[u8]>, method: &str) -> Reply {
        let mut wire = self.connect();
        wire.send(bytes).expect("the proxy reads");
        wire.reply(method).expect("the proxy responds")
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Reply {
        self.exchange(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n"), "GET")
    }

    /// Sends these bytes on a new connection. Returns the request that the app received for them, and the client's response.
    #[track_caller]
    pub fn pass(&self, app: &RawApp, bytes: &[u8]) -> (Option<Seen>, io::Result<Reply>) {
        let seen_before = app.seen_count();
        let mut wire = self.connect();
        let method = if bytes.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
        let reply = wire.send(bytes).and_then(|()| wire.reply(method));
        (app.seen().into_iter().nth(seen_before), reply)
    }

    /// The address of the Prometheus sink's /metrics endpoint.
    pub fn page(&self) -> String {
        format!("127.0.0.1:{}", self.scene.value("page"))
    }

    /// The access records so far, as written.
    pub fn records_text(&self) -> String {
        std::fs::read_to_string(self.scene.path("access.log")).unwrap_or_default()
    }

    /// The access records of a path so far, the oldest first.
    #[track_caller]
    pub fn records_of(&self, path: &str) -> Vec<Value> {
        // A record that is still being written has no newline yet.
        let text = self.records_text();
        let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let records = complete.map(|line| serde_json::from_str::<Value>(line).expect("a record is JSON"));
        records.filter(|record| record["path"] == path).collect()
    }

    /// The newest access record of a path, once there is one.
    #[track_caller]
    pub fn record_of(&self, path: &str) -> Value {
        let mut newest = None;
        until(PATIENCE, &format!("an access record of {path}"), || {
            newest = self.records_of(path).pop();
            newest.is_some()
        });
        newest.expect("just found")
    }

    #[track_caller]
    pub fn finish(self) -> Exit {
        self.outrigger.finish()
    }
}
