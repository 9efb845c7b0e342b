//! From the Config to a valid Plan: addresses parsed, clusters resolved, the app's own cluster created.

use crate::balance::{self, BalanceConfig};
use crate::config::{APP, Cluster, Config, Direction};
use base::system::listen::Listen;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Configured, Entry, Named, PlannedKind};
use config::tree::Node;
use config::unit::Address;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct Plan {
    pub threads: usize,
    pub listeners: Vec<Arc<ListenerPlan>>,
    pub clusters: Vec<Arc<ClusterPlan>>,
}

#[derive(Debug)]
pub struct ListenerPlan {
    pub name: String,
    /// Its path in the configuration, which is its id in health.
    pub id: String,
    pub address: SocketAddr,
    pub direction: Direction,
    /// Index into `clusters`.
    pub cluster: usize,
    pub max_connections: usize,
    pub max_header_bytes: usize,
    pub request_headers_timeout: Duration,
    pub idle_timeout: Duration,
}

#[derive(Debug)]
pub struct ClusterPlan {
    pub name: String,
    /// Its path in the configuration, which is its id in health.
    pub id: String,
    pub endpoints: Vec<SocketAddr>,
    /// The `Host` for a request without one: the first endpoint.
    pub authority: String,
    pub balance: Named<dyn BalanceConfig>,
    pub connect_timeout: Duration,
    pub response_headers_timeout: Duration,
    pub pool_idle_timeout: Duration,
    pub pool_max_idle: usize,
}

impl Plan {
    /// What its listeners and clusters need from the system.
    pub fn needs(&self) -> Needs {
        let listen = self.listeners.iter().map(|listener| Listen {
            name: format!("proxy/{}", listener.name),
            owner: format!("proxy.listeners.{}", listener.name),
            key: "listen",
            address: listener.address,
            count: self.threads,
        });
        let endpoints = self.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        Needs { listen: listen.collect(), connect: endpoints.map(SocketAddr::port).collect(), ..Needs::default() }
    }

    /// Its components, for what is done with every component.
    pub fn components(&self) -> Vec<PlannedKind<'_>> {
        let mut components = Vec::new();
        for cluster in &self.clusters {
            components.push(PlannedKind {
                id: format!("{}.balance", cluster.id),
                kind: &*cluster.balance,
                buffer: 0,
                bodies: 0,
            });
        }
        components
    }

    /// Checks what the schema cannot, such as names that must exist. `root` is the tree of the `proxy` section.
    pub fn new(
        config: &Config,
        app_port: Option<u16>,
        configured: Configured,
        root: &Node,
    ) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut clusters: Vec<(String, Cluster)> =
            config.clusters.iter().map(|(n, c)| (n.clone(), c.clone())).collect();
        if let Some(taken) = clusters.iter().find(|(name, _)| name == APP) {
            let place = root.at(&["clusters", &taken.0]).place;
            findings.push(
                Diagnostic::error(place, "the cluster name `app` is reserved for the app")
                    .help("choose another name, or set app.port"),
            );
        }
        if let Some(port) = app_port {
            clusters.push((
                APP.into(),
                Cluster { endpoints: vec![Address(([127, 0, 0, 1], port).into())], ..Cluster::default() },
            ));
        }
        let mut listeners = Vec::new();
        for (name, listener) in &config.listeners {
            let Some(cluster) = clusters.iter().position(|(name, _)| *name == listener.cluster) else {
                findings.push(unknown_cluster(name, &listener.cluster, &clusters, root));
                continue;
            };
            listeners.push(Arc::new(ListenerPlan {
                id: format!("proxy.listeners.{name}"),
                name: name.clone(),
                address: listener.listen.0,
                direction: listener.direction(),
                cluster,
                max_connections: listener.max_connections as usize,
                max_header_bytes: listener.max_header_bytes.as_usize().clamp(1 << 10, 1 << 20),
                request_headers_timeout: listener.request_headers_timeout.0,
                idle_timeout: listener.idle_timeout.0,
            }));
        }
        for (index, listener) in listeners.iter().enumerate() {
            if let Some(other) = listeners[..index].iter().find(|other| other.address == listener.address) {
                let place = root.at(&["listeners", &listener.name, "listen"]).place;
                let message = format!("`{}`: address already used by listener `{}`", listener.address, other.name);
                findings.push(Diagnostic::error(place, message).help("give each listener its own address"));
            }
        }
        findings.extend(check_kinds(config, configured, root));
        if !findings.is_empty() {
            return Err(findings);
        }
        let clusters = clusters.into_iter().map(|(name, cluster)| Arc::new(ClusterPlan::new(name, &cluster))).collect();
        Ok(Plan { threads: usize::from(config.threads), listeners, clusters })
    }
}

/// `listener` refers to a cluster that does not exist.
fn unknown_cluster(listener: &str, cluster: &str, clusters: &[(String, Cluster)], root: &Node) -> Diagnostic {
    let place = root.at(&["listeners", listener, "cluster"]).place;
    let text = format!("unknown cluster `{cluster}` in `proxy.listeners.{listener}.cluster`");
    let mut known: Vec<&str> = clusters.iter().map(|(name, _)| name.as_str()).collect();
    known.dedup();
    let existing = match known.as_slice() {
        [] => String::new(),
        known => format!("; existing clusters: {}", known.join(", ")),
    };
    let help = match (cluster, config::diag::nearest(cluster, known.iter().copied())) {
        (APP, _) => "set app.port to the port that the app listens on".to_string(),
        (_, Some(near)) => format!("did you mean `{near}`?"),
        _ => format!("add it under proxy.clusters{existing}"),
    };
    Diagnostic::error(place, text).help(help)
}

/// What each kind checks by itself.
fn check_kinds(config: &Config, configured: Configured, root: &Node) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (name, cluster) in &config.clusters {
        let Some(kind) = cluster.balance.as_ref().and_then(|entry| entry.kind()) else { continue };
        let id = format!("proxy.clusters.{name}.balance");
        let node = root.at(&["clusters", name, "balance", kind.name()]);
        findings.extend(kind.check(&Entry { id: &id, node, configured }));
    }
    findings
}

impl ClusterPlan {
    fn new(name: String, cluster: &Cluster) -> ClusterPlan {
        ClusterPlan {
            id: format!("proxy.clusters.{name}"),
            name,
            endpoints: cluster.endpoints.iter().map(|endpoint| endpoint.0).collect(),
            authority: cluster.endpoints.first().map_or(String::new(), |endpoint| endpoint.0.to_string()),
            balance: cluster.balance.as_ref().and_then(|entry| entry.kind()).unwrap_or_else(balance::default),
            connect_timeout: cluster.connect_timeout.0,
            response_headers_timeout: cluster.response_headers_timeout.0,
            pool_idle_timeout: cluster.pool.idle_timeout.0,
            pool_max_idle: cluster.pool.max_idle as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::interpolate::Lookup;

    fn check(text: &str, app_port: Option<u16>, expect: Result<usize, &str>) {
        let loaded = config::load::load::<Config>("proxy.yaml", text, &Lookup::HERE);
        let loaded = loaded.unwrap_or_else(|report| panic!("{}", report.render()));
        match (Plan::new(&loaded.config, app_port, Configured::default(), &loaded.tree), expect) {
            (Ok(plan), Ok(clusters)) => assert_eq!(plan.clusters.len(), clusters),
            (Err(findings), Err(part)) => {
                let text =
                    findings.iter().map(|f| format!("{} {:?} {:?}", f.message, f.help, f.place)).collect::<String>();
                assert!(text.contains(part), "{text}");
            }
            (got, want) => panic!("{got:?} {want:?}"),
        }
    }

    #[test]
    fn unknown_names_are_reported_with_location() {
        let app = "listeners: { in: { listen: \"127.0.0.1:1\", direction: inbound, cluster: app } }\n";
        check(app, Some(80), Ok(1));
        check(app, None, Err("set app.port"));
        let two = "listeners:\n  a: { listen: \"127.0.0.1:1\", direction: outbound, cluster: paymnts }\nclusters: { payments: { endpoints: [\"127.0.0.1:2\"] } }\n";
        check(two, None, Err("did you mean `payments`"));
        check(two, None, Err("line: 2"));
        let same = "listeners:\n  a: { listen: \"127.0.0.1:1\", direction: inbound, cluster: app }\n  b: { listen: \"127.0.0.1:1\", direction: inbound, cluster: app }\n";
        check(same, Some(80), Err("address already used by listener `a`"));
    }
}
