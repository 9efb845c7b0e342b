//! Hints for keys that have another name in Outrigger: keys of earlier versions and of other tools. They are only hints: no name
//! in this table is accepted. A hint is given if its key exists at that location, so one name may have several hints.

use crate::diag::nearest;

/// A name that users may write, and the keys that it may mean, as paths relative to the location of the name.
pub const RENAMED: &[(&str, &[&str])] = &[
    // Keys of earlier versions.
    ("body_max", &["max_body_bytes"]),
    ("buffer_max", &["buffer.max_bytes"]),
    ("bytes_max", &["max_bytes"]),
    ("client", CLIENT),
    ("connect", &["allow_connect"]),
    ("connections_max", &["max_connections"]),
    ("deadline", &["timeout"]),
    ("directory", &["working_directory"]),
    ("drain", &["drain_timeout"]),
    ("end", &["external"]),
    ("every", INTERVAL),
    ("exit", &["success_exit_codes"]),
    ("files_max", &["max_files"]),
    ("from", &["inputs", "store"]),
    ("grace", &["grace_period"]),
    ("group", &["process_group", "socket_group"]),
    ("head_max", &["max_header_bytes"]),
    ("head_timeout", &["request_headers_timeout"]),
    ("hosts", &["allowed_hosts"]),
    ("keep", &["pass", "rotate.max_files"]),
    ("labels", &["external_labels"]),
    ("line_max", &["max_line_bytes"]),
    ("max", &["max_bytes", "max_restarts", "rotate.max_bytes"]),
    ("mode", &["socket_mode"]),
    ("poll", &["poll_interval"]),
    ("pool_idle", &["pool.idle_timeout"]),
    ("pool_max", &["pool.max_idle"]),
    ("probes", &["probes_listen"]),
    ("process", &["process_name"]),
    ("read", &["allow_read"]),
    ("remove", &["unset"]),
    ("reset", &["reset_after"]),
    ("response_timeout", &["response_headers_timeout"]),
    ("scan", &["scan_interval"]),
    ("series_max", &["max_series"]),
    ("start", &["read_from"]),
    ("tenant", &["tenant_id"]),
    ("terminal", &["tty"]),
    ("to", &["cluster", "publish.symlink.path"]),
    ("tombstone", &["exit_code_file"]),
    ("wait", &["max_age", "backoff", "timeout"]),
    ("wait_max", &["max_backoff"]),
    ("when", &["policy"]),
    ("write", &["allow_write"]),
    // Names of Envoy, Vector, Fluent Bit, Prometheus, git-sync, Kubernetes and systemd.
    ("address", &["url", "listen", "endpoints"]),
    ("api", &["admin"]),
    ("args", &["command"]),
    ("attempts", &["max_retries", "max_restarts"]),
    ("backoff_max", &["max_backoff"]),
    ("basic_auth", &["auth"]),
    ("bearer_token", &["auth"]),
    ("bind", &["listen"]),
    ("body_size_limit", &["max_body_bytes"]),
    ("branch", &["ref"]),
    ("ca", &["ca_file"]),
    ("ca_crt", &["ca_file"]),
    ("cmd", &["command"]),
    ("console", &["stdout"]),
    ("crt_file", &["cert_file"]),
    ("cwd", &["working_directory"]),
    ("data_dir", &["state.dir"]),
    ("dest", PUBLISH),
    ("destination", PUBLISH),
    ("endpoint", URL),
    ("env", &["environment"]),
    ("exechook_command", &["notify"]),
    ("frequency", INTERVAL),
    ("host", URL),
    ("idle_timeout", &["pool.idle_timeout"]),
    ("internal_metrics", &["self"]),
    ("interval", &["store.git.interval"]),
    ("lb_policy", &["balance"]),
    ("link", PUBLISH),
    ("listen_address", &["listen"]),
    ("load_assignment", &["endpoints"]),
    ("load_balancing", &["balance"]),
    ("max_events", &["max_records", "batch.max_records"]),
    ("max_request_headers_kb", &["max_header_bytes"]),
    ("max_retries", &["max_restarts"]),
    ("max_size", &["rotate.max_bytes", "max_bytes"]),
    ("metrics_path", URL),
    ("null", &["blackhole"]),
    ("num_retries", &["max_retries", "max_restarts"]),
    ("path", &["include", "publish.symlink.path"]),
    ("paths", &["include"]),
    ("period", INTERVAL),
    ("perms", &["mode", "socket_mode"]),
    ("poll_interval", INTERVAL),
    ("prometheus_exporter", &["prometheus"]),
    ("prometheus_remote_write", &["remote_write"]),
    ("prometheus_scrape", &["scrape"]),
    ("remote_timeout", &["timeout"]),
    ("repo", URL),
    ("rev", &["ref"]),
    ("root", PUBLISH),
    ("sample_limit", &["max_series"]),
    ("scrape_configs", &["metrics.sources"]),
    ("scrape_interval", INTERVAL),
    ("scrape_timeout", &["timeout"]),
    ("servers", &["endpoints"]),
    ("sinks", &["logs.sinks"]),
    ("sources", &["logs.sources"]),
    ("ssh_key_file", &["ssh.key_file"]),
    ("ssh_known_hosts_file", &["ssh.known_hosts_file"]),
    ("static_resources", &["proxy"]),
    ("stop_signal", &["stop.signal"]),
    ("tail", &["file"]),
    ("targets", &["url", "endpoints"]),
    ("tenantid", &["tenant_id"]),
    ("timeout_secs", &["timeout", "max_age"]),
    ("tls_config", &["tls"]),
    ("tls_settings", &["tls"]),
    ("transforms", &["stages", "logs.stages"]),
    ("upstream", &["cluster"]),
    ("uri", URL),
    ("workdir", &["working_directory"]),
    ("working_dir", &["working_directory"]),
];

const CLIENT: &[&str] = &["timeout"];
const INTERVAL: &[&str] = &["interval", "store.git.interval"];
const PUBLISH: &[&str] = &["publish.symlink.path"];
const URL: &[&str] = &["url"];

/// The replacement for an unknown key.
pub struct Hint {
    /// The text after `help:`.
    pub help: String,
    /// The intended key as a path, if it is unambiguous.
    pub key: Option<String>,
}

/// `knows` returns whether a path, relative to the location of `name`, is a known key.
pub fn hint(name: &str, known: &[&str], knows: impl Fn(&str) -> bool) -> Option<Hint> {
    let rows = RENAMED.iter().filter(|(old, _)| *old == name);
    let renamed = rows.flat_map(|(_, keys)| keys.iter()).find(|key| knows(key));
    if name == "client" && renamed.is_some() {
        let help = "its keys are next to `url`: timeout, connect_timeout, headers, auth, tls".to_string();
        return Some(Hint { help, key: None });
    }
    if let Some(key) = renamed {
        let help = match key.split_once('.') {
            Some(_) => format!("it is called `{key}`: write `{}`", nested(key)),
            None => format!("it is called `{key}`"),
        };
        return Some(Hint { help, key: Some(key.to_string()) });
    }
    nearest(name, known.iter().copied())
        .map(|near| Hint { help: format!("did you mean `{near}`?"), key: Some(near.to_string()) })
}

/// `pool: { max_idle: … }` for `pool.max_idle`.
fn nested(path: &str) -> String {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    keys.iter().rev().fold(format!("{last}: …"), |inner, key| format!("{key}: {{ {inner} }}"))
}
