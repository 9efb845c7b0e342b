//! The end-to-end tests: every test starts the real binary (`OUTRIGGER_BIN`, else `target/ci/outrigger`) beside real
//! apps and real peers, waits for conditions, and ends by asserting that the ledger balances. What comes in is the binary
//! and the peers found on this machine; what goes out is passed, failed, and a line in `OUTRIGGER_SKIPS` for each test
//! whose peer is missing. Every wait has a limit, every process is stopped by the id that started it.

#[macro_use]
#[path = "e2e/harness/mod.rs"]
mod harness;

#[path = "e2e/fixtures.rs"]
mod fixtures;

#[path = "e2e/config_cli.rs"]
mod config_cli;

#[path = "e2e/detect.rs"]
mod detect;

#[path = "e2e/lifecycle.rs"]
mod lifecycle;

#[path = "e2e/init_dumb_init.rs"]
mod init_dumb_init;

#[path = "e2e/init_tini.rs"]
mod init_tini;

#[path = "e2e/init_terminal.rs"]
mod init_terminal;

#[path = "e2e/init_process_compose.rs"]
mod init_process_compose;

#[path = "e2e/init_environment.rs"]
mod init_environment;

#[path = "e2e/memory.rs"]
mod memory;

#[path = "e2e/init_shutdown.rs"]
mod init_shutdown;

#[path = "e2e/init_admin.rs"]
mod init_admin;

#[path = "e2e/init_kubernetes.rs"]
mod init_kubernetes;

#[path = "e2e/apps_table.rs"]
mod apps_table;

#[path = "e2e/apps.rs"]
mod apps;

#[path = "e2e/apps_companion.rs"]
mod apps_companion;

#[path = "e2e/logs.rs"]
mod logs;

#[path = "e2e/file_source.rs"]
mod file_source;

#[path = "e2e/logs_files.rs"]
mod logs_files;

#[path = "e2e/logs_names.rs"]
mod logs_names;

#[path = "e2e/logs_times.rs"]
mod logs_times;

#[path = "e2e/logs_lines.rs"]
mod logs_lines;

#[path = "e2e/logs_faults.rs"]
mod logs_faults;

#[path = "e2e/logs_config.rs"]
mod logs_config;

#[path = "e2e/metrics.rs"]
mod metrics;

#[path = "e2e/metrics_faults.rs"]
mod metrics_faults;

#[path = "e2e/metrics_apps.rs"]
mod metrics_apps;

#[path = "e2e/metrics_receivers.rs"]
mod metrics_receivers;

#[path = "e2e/sync.rs"]
mod sync;

#[path = "e2e/names.rs"]
mod names;

#[path = "e2e/names_addresses.rs"]
mod names_addresses;

#[path = "e2e/names_servers.rs"]
mod names_servers;

#[path = "e2e/names_changes.rs"]
mod names_changes;

#[path = "e2e/sync_cache.rs"]
mod sync_cache;

#[path = "e2e/sync_trees.rs"]
mod sync_trees;

#[path = "e2e/sync_packs.rs"]
mod sync_packs;

#[path = "e2e/sync_names.rs"]
mod sync_names;

#[path = "e2e/sync_wire.rs"]
mod sync_wire;

#[path = "e2e/sync_http.rs"]
mod sync_http;

#[path = "e2e/sync_ssh.rs"]
mod sync_ssh;

#[path = "e2e/proxy.rs"]
mod proxy;

#[path = "e2e/proxy_faults.rs"]
mod proxy_faults;

#[path = "e2e/proxy_targets.rs"]
mod proxy_targets;

#[path = "e2e/proxy_framing.rs"]
mod proxy_framing;

#[path = "e2e/proxy_ends.rs"]
mod proxy_ends;

#[path = "e2e/proxy_records.rs"]
mod proxy_records;

#[path = "e2e/proxy_flood.rs"]
mod proxy_flood;

#[path = "e2e/bad_config.rs"]
mod bad_config;

#[path = "e2e/bad_peers.rs"]
mod bad_peers;

#[path = "e2e/hostile_files.rs"]
mod hostile_files;

#[path = "e2e/admin.rs"]
mod admin;

#[path = "e2e/admin_control.rs"]
mod admin_control;

#[path = "e2e/reload.rs"]
mod reload;

#[path = "e2e/chaos.rs"]
mod chaos;

#[path = "e2e/chaos_worker.rs"]
mod chaos_worker;

#[path = "e2e/upgrade.rs"]
mod upgrade;

#[path = "e2e/soak.rs"]
mod soak;

#[path = "e2e/hostile_directories.rs"]
mod hostile_directories;

#[path = "e2e/sandbox.rs"]
mod sandbox;

#[path = "e2e/image.rs"]
mod image;

#[path = "e2e/pod.rs"]
mod pod;

#[path = "e2e/systemd.rs"]
mod systemd;

#[path = "e2e/life_faults.rs"]
mod life_faults;

#[path = "e2e/config_faults.rs"]
mod config_faults;

#[path = "e2e/reload_faults.rs"]
mod reload_faults;

#[path = "e2e/admin_faults.rs"]
mod admin_faults;

#[path = "e2e/health_faults.rs"]
mod health_faults;

#[path = "e2e/state_faults.rs"]
mod state_faults;
