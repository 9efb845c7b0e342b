//! A real Prometheus that receives remote writes and is asked by its API
//! (prometheus.io/docs/prometheus/latest/querying/api). A scene comes in, answers to queries go out. Bounded by one
//! process and the scene's directory.

use super::process::Running;
use super::{PATIENCE, Scene, get, peer, until};

pub struct Prometheus {
    pub address: String,
    running: Running,
}

impl Prometheus {
    /// It scrapes nothing, and takes what is written to it. `None` where it is not installed.
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

    /// All values of each series that the selector finds, oldest first, over the last ten minutes.
    pub fn values(&self, selector: &str) -> Vec<Vec<f64>> {
        let expression = format!("{selector}[10m]");
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let reply = get(&self.address, &format!("/api/v1/query?query={escaped}")).expect("the API answers");
        let answer = reply.json();
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_else(|| panic!("{expression}: {answer}"));
        let values = |series: &serde_json::Value| series["values"].as_array().cloned().unwrap_or_default();
        let number = |pair: &serde_json::Value| pair[1].as_str().and_then(|text| text.parse().ok());
        found.iter().map(|series| values(series).iter().filter_map(number).collect()).collect()
    }

    pub fn stop(self) {
        self.running.stop();
    }
}
