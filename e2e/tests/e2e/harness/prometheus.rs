//! A real Prometheus that receives remote writes and is queried by its API
//! (prometheus.io/docs/prometheus/latest/querying/api). In: a scene. Out: results of queries. Limits: one process and the
//! scene's directory.

use super::process::Running;
use super::{PATIENCE, Scene, get, peer, until};

pub struct Prometheus {
    pub address: String,
    running: Running,
}

impl Prometheus {
    /// It scrapes nothing and accepts remote writes. `None` if it is not installed.
    pub fn start(scene: &Scene) -> Option<Self> {
        let program = peer("prometheus")?.display().to_string();
        let address = format!("127.0.0.1:{}", scene.port("prometheus"));
        let config = scene.write("prometheus.yml", "global: { scrape_interval: 1s }\n");
        let running = Running::start(&[
            program,
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", scene.path("tsdb").display()),
            format!("--web.listen-address={address}"),
            "--web.enable-remote-write-receiver".to_owned(),
        ]);
        until(PATIENCE, "Prometheus is ready", || get(&address, "/-/ready").is_ok_and(|reply| reply.status == 200));
        Some(Self { address, running })
    }

    /// All values of each series that matches the selector, oldest first, over the last ten minutes.
    pub fn values(&self, selector: &str) -> Vec<Vec<f64>> {
        let expression = format!("{selector}[10m]");
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let reply = get(&self.address, &format!("/api/v1/query?query={escaped}")).expect("the API responds");
        let response = reply.json();
        let found =
            response["data"]["result"].as_array().cloned().unwrap_or_else(|| panic!("{expression}: {response}"));
        let values = |series: &serde_json::Value| series["values"].as_array().cloned().unwrap_or_default();
        let number = |pair: &serde_json::Value| pair[1].as_str().and_then(|text| text.parse().ok());
        found.iter().map(|series| values(series).iter().filter_map(number).collect()).collect()
    }

    pub fn stop(self) {
        self.running.stop();
    }
}
