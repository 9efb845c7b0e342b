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

#[path = "e2e/lifecycle.rs"]
mod lifecycle;

#[path = "e2e/apps.rs"]
mod apps;

#[path = "e2e/logs.rs"]
mod logs;

#[path = "e2e/file_source.rs"]
mod file_source;

#[path = "e2e/metrics.rs"]
mod metrics;

#[path = "e2e/sync.rs"]
mod sync;

#[path = "e2e/proxy.rs"]
mod proxy;

#[path = "e2e/proxy_faults.rs"]
mod proxy_faults;

#[path = "e2e/bad_config.rs"]
mod bad_config;

#[path = "e2e/bad_peers.rs"]
mod bad_peers;

#[path = "e2e/admin.rs"]
mod admin;

#[path = "e2e/reload.rs"]
mod reload;

#[path = "e2e/chaos.rs"]
mod chaos;
