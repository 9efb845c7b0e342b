//! Each key of an earlier version, and each of another tool, gets the correct name as its hint. The test loops over the table of
//! hints: a row without a case here fails.

use crate::config::Config;
use config::interpolate::Lookup;
use config::renamed::RENAMED;
use std::collections::BTreeSet;

/// A location in the file, and the keys that are inserted there, each with the key of its hint.
const CASES: &[(&str, &[(&str, &str)])] = &[
    (
        "app: { @: 1 }",
        &[
            ("args", "command"),
            ("cmd", "command"),
            ("directory", "working_directory"),
            ("end", "external"),
            ("env", "environment"),
            ("exit", "success_exit_codes"),
            ("stop_signal", "stop.signal"),
            ("terminal", "tty"),
            ("workdir", "working_directory"),
            ("working_dir", "working_directory"),
        ],
    ),
    ("app: { environment: { @: 1 } }", &[("remove", "unset"), ("keep", "pass")]),
    ("app: { signals: { @: 1 } }", &[("group", "process_group")]),
    ("app: { start: { @: 1 } }", &[("wait", "timeout")]),
    (
        "app: { restart: { @: 1 } }",
        &[
            ("attempts", "max_restarts"),
            ("backoff_max", "max_backoff"),
            ("max", "max_restarts"),
            ("max_retries", "max_restarts"),
            ("num_retries", "max_restarts"),
            ("reset", "reset_after"),
            ("wait", "backoff"),
            ("wait_max", "max_backoff"),
            ("when", "policy"),
        ],
    ),
    (
        "app: { stop: { @: 1 } }",
        &[("deadline", "timeout"), ("drain", "drain_timeout"), ("grace", "grace_period"), ("timeout_secs", "timeout")],
    ),
    ("app: { external: { @: 1 } }", &[("process", "process_name"), ("tombstone", "exit_code_file")]),
    ("state: { @: 1 }", &[("max", "max_bytes")]),
    ("sandbox: { @: 1 }", &[("read", "allow_read"), ("write", "allow_write"), ("connect", "allow_connect")]),
    (
        "admin: { @: 1 }",
        &[
            ("address", "listen"),
            ("bind", "listen"),
            ("group", "socket_group"),
            ("hosts", "allowed_hosts"),
            ("mode", "socket_mode"),
            ("perms", "socket_mode"),
            ("probes", "probes_listen"),
        ],
    ),
    ("logs: { sources: { a: { stdio: { @: 1 } } } }", &[("line_max", "max_line_bytes")]),
    (
        "logs: { sources: { a: { file: { @: 1 } } } }",
        &[
            ("files_max", "max_files"),
            ("paths", "include"),
            ("poll", "poll_interval"),
            ("scan", "scan_interval"),
            ("start", "read_from"),
        ],
    ),
    ("logs: { sinks: { a: { blackhole: {}, @: 1 } } }", &[("from", "inputs"), ("max_events", "batch.max_records")]),
    (
        "logs: { sinks: { a: { blackhole: {}, batch: { @: 1 } } } }",
        &[("max", "max_bytes"), ("max_events", "max_records"), ("timeout_secs", "max_age"), ("wait", "max_age")],
    ),
    ("logs: { sinks: { a: { blackhole: {}, buffer: { @: 1 } } } }", &[("max", "max_bytes")]),
    (
        "logs: { sinks: { a: { loki: { @: 1 } } } }",
        &[
            ("address", "url"),
            ("client", "next to `url`"),
            ("endpoint", "url"),
            ("host", "url"),
            ("tenant", "tenant_id"),
            ("tenantid", "tenant_id"),
            ("uri", "url"),
        ],
    ),
    (
        "logs: { sinks: { a: { http: { url: \"http://h/\", tls: { @: 1 } } } } }",
        &[("ca_crt", "ca_file"), ("crt_file", "cert_file")],
    ),
    (
        "logs: { sinks: { a: { file: { path: /a, @: 1 } } } }",
        &[("keep", "rotate.max_files"), ("max", "rotate.max_bytes")],
    ),
    (
        "metrics: { sources: { a: { scrape: { url: \"http://h/\", @: 1 } } } }",
        &[
            ("body_max", "max_body_bytes"),
            ("client", "next to `url`"),
            ("every", "interval"),
            ("frequency", "interval"),
            ("period", "interval"),
            ("scrape_interval", "interval"),
            ("scrape_timeout", "timeout"),
            ("series_max", "max_series"),
        ],
    ),
    ("metrics: { sources: { a: { scrape: { url: \"http://h/\" }, @: 1 } } }", &[("every", "interval")]),
    ("metrics: { sinks: { a: { remote_write: { url: \"http://h/\", @: 1 } } } }", &[("labels", "external_labels")]),
    (
        "metrics: { sinks: { a: { remote_write: { url: \"http://h/\" }, @: 1 } } }",
        &[("buffer_max", "buffer.max_bytes")],
    ),
    (
        "sync: { a: { publish: { symlink: { path: /a } }, store: { git: { url: \"git://h/\" } }, @: 1 } }",
        &[
            ("bytes_max", "max_bytes"),
            ("every", "store.git.interval"),
            ("files_max", "max_files"),
            ("interval", "store.git.interval"),
        ],
    ),
    (
        "sync: { a: { store: { git: { url: \"git://h/\" } }, @: 1 } }",
        &[
            ("dest", "publish.symlink.path"),
            ("destination", "publish.symlink.path"),
            ("link", "publish.symlink.path"),
            ("path", "publish.symlink.path"),
            ("root", "publish.symlink.path"),
            ("to", "publish.symlink.path"),
        ],
    ),
    ("sync: { a: { @: 1 } }", &[("from", "store")]),
    (
        "sync: { a: { store: { git: { @: 1 } } } }",
        &[("branch", "ref"), ("period", "interval"), ("repo", "url"), ("rev", "ref")],
    ),
    (
        "proxy: { listeners: { a: { listen: \"127.0.0.1:1\", @: 1 } } }",
        &[
            ("connections_max", "max_connections"),
            ("head_max", "max_header_bytes"),
            ("head_timeout", "request_headers_timeout"),
            ("max_request_headers_kb", "max_header_bytes"),
            ("to", "cluster"),
            ("upstream", "cluster"),
        ],
    ),
    (
        "proxy: { clusters: { a: { @: 1 } } }",
        &[
            ("address", "endpoints"),
            ("idle_timeout", "pool.idle_timeout"),
            ("lb_policy", "balance"),
            ("pool_idle", "pool.idle_timeout"),
            ("pool_max", "pool.max_idle"),
            ("response_timeout", "response_headers_timeout"),
        ],
    ),
    (
        "@: 1",
        &[
            ("api", "admin"),
            ("data_dir", "state.dir"),
            ("scrape_configs", "metrics.sources"),
            ("sinks", "logs.sinks"),
            ("sources", "logs.sources"),
            ("static_resources", "proxy"),
            ("transforms", "logs.stages"),
        ],
    ),
    ("logs: { @: 1 }", &[("transforms", "stages")]),
    ("app: { @: 1, port: 1 }", &[("cwd", "working_directory")]),
    ("logs: { sources: { a: { @: 1 } } }", &[("tail", "file")]),
    ("logs: { sinks: { a: { @: 1 } } }", &[("console", "stdout"), ("null", "blackhole")]),
    (
        "logs: { sinks: { a: { http: { url: \"http://h/\", @: 1 } } } }",
        &[("basic_auth", "auth"), ("bearer_token", "auth"), ("tls_config", "tls"), ("tls_settings", "tls")],
    ),
    ("logs: { sinks: { a: { file: { path: /a, @: {} } } } }", &[("max_size", "rotate.max_bytes")]),
    ("logs: { sinks: { a: { http: { url: \"http://h/\", tls: { @: x } } } } }", &[("ca", "ca_file")]),
    ("metrics: { sources: { a: { @: 1 } } }", &[("internal_metrics", "self"), ("prometheus_scrape", "scrape")]),
    (
        "metrics: { sources: { a: { scrape: { @: 1 } } } }",
        &[
            ("body_size_limit", "max_body_bytes"),
            ("metrics_path", "url"),
            ("remote_timeout", "timeout"),
            ("sample_limit", "max_series"),
            ("targets", "url"),
        ],
    ),
    (
        "metrics: { sinks: { a: { @: 1 } } }",
        &[("prometheus_exporter", "prometheus"), ("prometheus_remote_write", "remote_write")],
    ),
    ("metrics: { sinks: { a: { prometheus: { @: 1 } } } }", &[("listen_address", "listen")]),
    ("sync: { a: { @: {} } }", &[("exechook_command", "notify")]),
    (
        "sync: { a: { store: { git: { url: \"git://h/\", @: 1 } } } }",
        &[
            ("poll_interval", "interval"),
            ("ssh_key_file", "ssh.key_file"),
            ("ssh_known_hosts_file", "ssh.known_hosts_file"),
        ],
    ),
    (
        "proxy: { clusters: { a: { balance: {}, @: 1 } } }",
        &[("load_assignment", "endpoints"), ("servers", "endpoints"), ("targets", "endpoints")],
    ),
    ("proxy: { clusters: { a: { endpoints: [], @: 1 } } }", &[("load_balancing", "balance")]),
];

fn report(text: &str) -> String {
    match config::load::load::<Config>("outrigger.yaml", text, &Lookup::HERE) {
        Ok(_) => panic!("`{text}` is valid"),
        Err(report) => report.render(),
    }
}

#[test]
fn old_and_foreign_keys_get_the_right_hint() {
    let mut tested = BTreeSet::new();
    for (location, names) in CASES {
        for (name, hint) in *names {
            let report = report(&location.replace('@', name));
            assert!(report.contains(&format!("unknown key `{name}`")), "{location}: {name}:\n{report}");
            let expected = if hint.contains('`') { (*hint).to_string() } else { format!("it is called `{hint}`") };
            assert!(report.contains(&expected), "{location}: {name}: {expected}\n{report}");
            tested.insert(*name);
        }
    }
    let rows: BTreeSet<&str> = RENAMED.iter().map(|(name, _)| *name).collect();
    let untested: Vec<_> = rows.difference(&tested).collect();
    assert!(untested.is_empty(), "each row of the table has a case: {untested:?}");
}

#[test]
fn a_misplaced_key_gets_its_location() {
    let sibling = report("logs: { sinks: { a: { loki: { url: \"http://h/\", buffer: {} } } } }");
    assert!(sibling.contains("it belongs next to `loki`, not in it"), "{sibling}");
    let inside = report("logs: { sinks: { a: { loki: { url: \"http://h/\" }, tenant_id: x } } }");
    assert!(inside.contains("it is a key of `loki`: write `loki: { tenant_id: … }`"), "{inside}");
    let scalar = report("logs: { sources: { a: { stdio: { buffer: 16MiB } } } }");
    assert!(scalar.contains("write `buffer: { max_bytes: 16MiB }`"), "{scalar}");
    let kind = report("logs: { sinks: { a: { type: loki } } }");
    assert!(kind.contains("the kind is the key itself"), "{kind}");
}

/// A secret stays hidden under an old key.
#[test]
fn a_secret_under_an_old_key_is_hidden() {
    let text =
        "logs: { sinks: { a: { http: { url: \"http://h/\", client: { auth: { bearer: { token: hunter2 } } } } } } }";
    let report = report(text);
    assert!(report.contains("unknown key `client`") && !report.contains("hunter2"), "{report}");
}
