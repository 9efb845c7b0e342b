//! Outrigger as a proxy in front of a raw app, for the cases of HTTP/1.1: an app comes in, a connection through the proxy
//! goes out. It ends with the assertion that the ledger balances. One listener, one cluster named `back`.

use super::outrigger::Exit;
use super::wire::Reply;
use super::{Outrigger, Scene, Wire};
use std::net::TcpStream;

pub struct Proxied {
    pub scene: Scene,
    pub outrigger: Outrigger,
    pub front: String,
}

const PROXY: &str = r#"
app: { stop: { drain: 1s, grace: 2s, deadline: 6s } }
logs: { sources: { access: { proxy: {} } }, sinks: { records: { file: { path: "@dir@/access.log" } } } }
metrics: { sources: { proxy: { proxy: {} } }, sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } } }
proxy:
  threads: 1
  listeners: { front: { listen: "127.0.0.1:@front@", direction: outbound, to: back } }
  clusters: { back: { endpoints: [@endpoints@], balance: { least_request: {} } } }
"#;

impl Proxied {
    /// In front of the app at this address.
    #[track_caller]
    pub fn to(address: &str) -> Self {
        Self::to_all(&[address])
    }

    #[track_caller]
    pub fn to_all(addresses: &[&str]) -> Self {
        let scene = Scene::new();
        let front = format!("127.0.0.1:{}", scene.port("front"));
        scene.port("page");
        scene.set("endpoints", addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", "));
        let outrigger = Outrigger::start(&scene, PROXY, &[]);
        Self { scene, outrigger, front }
    }

    #[track_caller]
    pub fn connect(&self) -> Wire<TcpStream> {
        Wire::connect(&self.front).expect("the proxy takes connections")
    }

    /// Sends these bytes on a connection of their own and reads the answer to a request of `method`.
    #[track_caller]
    pub fn exchange(&self, bytes: impl AsRef<[u8]>, method: &str) -> Reply {
        let mut wire = self.connect();
        wire.send(bytes).expect("the proxy reads");
        wire.reply(method).expect("the proxy answers")
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Reply {
        self.exchange(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n"), "GET")
    }

    #[track_caller]
    pub fn finish(self) -> Exit {
        self.outrigger.finish()
    }
}
