//! The enabled parts of Outrigger: each with its section of the configuration, and a check that it has worked once.
//!
//! In: the paths and ports of one start. Out: the complete configuration. Nothing is started here.

use std::path::Path;

use crate::running::status;

/// A part of the configuration that can be used alone or with the others.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    /// Output of the app and a file, to an HTTP receiver.
    Logs,
    /// Output of the app only, to a blackhole sink: the cost of capturing and framing.
    Capture,
    Metrics,
    Sync,
    Proxy,
}

pub const ALL: [Part; 4] = [Part::Logs, Part::Metrics, Part::Sync, Part::Proxy];

/// Paths and ports of one start of Outrigger.
pub struct Places<'a> {
    pub directory: &'a Path,
    pub repository: &'a str,
    /// The port of the receiver, which is also the app's.
    pub receiver: u16,
    pub ports: Ports,
}

#[derive(Clone, Copy)]
pub struct Ports {
    pub listen: u16,
    pub admin: u16,
    pub page: u16,
}

pub fn configuration(parts: &[Part], places: &Places) -> String {
    let (place, receiver, admin) = (places.directory.display(), places.receiver, places.ports.admin);
    let mut text = format!(
        r#"app: {{ port: {receiver}, stop: {{ drain_timeout: 1s, grace_period: 2s, timeout: 5s }} }}
state: {{ dir: "{place}/state" }}
admin: {{ listen: "127.0.0.1:{admin}", socket: "{place}/admin.sock" }}
"#
    );
    for part in parts {
        text.push_str(&part.text(places));
    }
    text
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Capture => "capture",
            Self::Metrics => "metrics",
            Self::Sync => "sync",
            Self::Proxy => "proxy",
        }
    }

    /// Paths of the receiver that receive a request when the part has worked.
    pub fn requests(self) -> &'static [&'static str] {
        match self {
            Self::Logs => &["/lines"],
            Self::Metrics => &["/metrics", "/api/v1/write"],
            Self::Capture | Self::Sync | Self::Proxy => &[],
        }
    }

    /// Whether the part's work other than its requests has been observed.
    pub fn has_worked(self, directory: &Path, ports: Ports) -> bool {
        match self {
            Self::Logs | Self::Capture => true,
            Self::Metrics => status(ports.page, "/metrics") == Some(200),
            Self::Sync => directory.join("settings/settings.yaml").is_file(),
            Self::Proxy => status(ports.listen, "/") == Some(200),
        }
    }

    fn text(self, places: &Places) -> String {
        let Places { directory, repository, receiver, ports: Ports { listen, page, .. } } = places;
        let place = directory.display();
        match self {
            Self::Logs => format!(
                r#"logs:
  sources:
    app: {{ stdio: {{}} }}
    files: {{ file: {{ include: ["{place}/logs/*.log"], read_from: beginning }} }}
  sinks:
    main: {{ http: {{ url: "http://127.0.0.1:{receiver}/lines", compression: gzip }}, inputs: [app, files] }}
"#
            ),
            Self::Capture => {
                "logs:\n  sources: { app: { stdio: {} } }\n  sinks: { nowhere: { blackhole: {} } }\n".into()
            }
            Self::Metrics => format!(
                r#"metrics:
  sources:
    app: {{ scrape: {{ url: "http://127.0.0.1:{receiver}/metrics", interval: 5s }} }}
    process: {{ process: {{}} }}
    self: {{ self: {{}} }}
  sinks:
    page: {{ prometheus: {{ listen: "127.0.0.1:{page}" }} }}
    central: {{ remote_write: {{ url: "http://127.0.0.1:{receiver}/api/v1/write" }} }}
"#
            ),
            Self::Sync => format!(
                r#"sync:
  settings: {{ store: {{ git: {{ url: "{repository}", ref: main, path: orders/, interval: 10s }} }}, publish: {{ symlink: {{ path: "{place}/settings" }} }} }}
"#
            ),
            Self::Proxy => format!(
                r#"proxy:
  threads: 1
  listeners: {{ inbound: {{ listen: "127.0.0.1:{listen}", direction: inbound, cluster: app }} }}
"#
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_only_its_parts_sections() {
        let ports = Ports { listen: 1, admin: 2, page: 3 };
        let places = Places { directory: Path::new("/f"), repository: "file:///r", receiver: 4, ports };
        let sections = |parts: &[Part]| -> Vec<String> {
            let text = configuration(parts, &places);
            let own = |line: &&str| !line.starts_with(' ');
            text.lines().filter(own).filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
        };
        assert_eq!(sections(&[]), ["app", "state", "admin"]);
        assert_eq!(sections(&ALL), ["app", "state", "admin", "logs", "metrics", "sync", "proxy"]);
    }
}
