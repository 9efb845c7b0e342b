//! From `app` to the supervisor's plan. In: the checked configuration, its tree for locations, the command line. Out: a flat
//! `Plan`, or every error in the section.

use super::{App, OnTimeout, RestartPolicy, user};
use config::diag::Diagnostic;
use config::tree::{Entry, Node, Value};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use supervisor::plan::{Plan, Restart, Rewrite, Rewrites};
use sys::process::Command;

/// Variables of Outrigger's own start that the app must not inherit: they refer to Outrigger's watchdog, file descriptors and
/// state.
const OUTRIGGER_VARIABLES: [&str; 8] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PIDFDID",
    "STATE_DIRECTORY",
];

/// The parts of the remaining configuration that affect the app.
pub struct Context<'a> {
    /// Empty for a companion.
    pub command: &'a [OsString],
    pub capture_bytes: Option<u64>,
    /// Variables that the configuration uses in secrets.
    pub secret_variables: &'a [String],
}

pub fn plan(app: &App, context: &Context<'_>, tree: &Node) -> Result<Plan, Vec<Diagnostic>> {
    let mut findings = Vec::new();
    let user = app.user.as_deref().and_then(|text| {
        let found = user::user(text);
        found.map_err(|error| findings.push(Diagnostic::error(tree.at(&["user"]).place, error))).ok()
    });
    let rewrites = rewrites(app, tree, &mut findings);
    let wrapped = !context.command.is_empty();
    if wrapped && app.external.is_some() {
        let text = "`external` is for an app in another container, but a command is configured";
        findings.push(Diagnostic::error(tree.at(&["external"]).place, text).help("remove `external`, or the command"));
    }
    if app.external.as_ref().is_some_and(|external| external.is_empty()) {
        findings.push(
            Diagnostic::error(tree.at(&["external"]).place, "`external` is empty")
                .help("set `exit_code_file`, `process_name` or `pid_file`"),
        );
    }
    for name in app.environment.set.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
        let place = tree.at(&["environment", "set", name]).place;
        let text = format!("`{}` is not a valid variable name", name.escape_debug());
        findings.push(Diagnostic::error(place, text).help("a name has at least one character, no `=` and no NUL byte"));
    }
    if context.command.iter().any(|part| part.as_bytes().contains(&0)) {
        let place = tree.at(&["command"]).place;
        findings.push(Diagnostic::error(place, "an argument of the command contains a NUL byte"));
    }
    if !findings.is_empty() {
        return Err(findings);
    }
    let command = wrapped.then(|| Command {
        argv: context.command.iter().map(|part| part.clone().into_vec()).collect(),
        environment: environment(app, context.secret_variables),
        parent_death: app.signals.parent_death.map_or(0, |signal| signal.number()),
        // The supervisor's own working directory is `/`.
        directory: directory(app).map(|path| path.into_os_string().into_vec()),
        user,
    });
    Ok(Plan {
        app: command,
        capture_bytes: context.capture_bytes.filter(|_| wrapped),
        awaits_end: app.external.is_some(),
        pty: app.tty,
        group: app.signals.process_group,
        rewrites,
        stop_signal: app.stop.signal.number(),
        drain: app.stop.drain_timeout.0,
        grace: app.stop.grace_period.0,
        deadline: app.stop.timeout.0,
        gate: app.start.timeout.0,
        gate_fails: app.start.on_timeout == OnTimeout::Fail,
        restart: Restart {
            when: match app.restart.policy {
                RestartPolicy::Never => supervisor::plan::When::Never,
                RestartPolicy::OnFailure => supervisor::plan::When::OnFailure,
                RestartPolicy::Always => supervisor::plan::When::Always,
            },
            wait: app.restart.backoff.0,
            wait_max: app.restart.max_backoff.0,
            max: app.restart.max_restarts.unwrap_or(0),
            reset: app.restart.reset_after.0,
        },
        success: app.success_exit_codes.clone(),
        written: Vec::new(),
        oom_file: base::system::cgroup::oom_file().map(|path| path.into_os_string().into_vec()),
    })
}

/// Warnings for keys that have no effect, since another container starts the app.
pub fn without_effect(wrapped: bool, tree: &Node) -> Vec<Diagnostic> {
    const KEYS: [&str; 6] = ["working_directory", "user", "environment", "tty", "signals", "restart"];
    let Value::Map(entries) = &tree.value else { return Vec::new() };
    let ignored = entries.iter().filter(|entry| !wrapped && KEYS.contains(&entry.key.as_str()));
    let finding = |entry: &Entry| {
        let text = format!("`{}` has no effect: it requires a wrapped app, but no command is configured", entry.key);
        Diagnostic::warning(entry.key_place, text).help("set app.command or a command after `--`, or remove the key")
    };
    ignored.map(finding).collect()
}

/// The app's working directory; a relative path is relative to Outrigger's own at its start.
fn directory(app: &App) -> Option<PathBuf> {
    match &app.working_directory {
        Some(path) => std::path::absolute(path).ok(),
        None => std::env::current_dir().ok(),
    }
}

fn environment(app: &App, secret_variables: &[String]) -> Vec<Vec<u8>> {
    let configured = &app.environment;
    let is = |list: &[String], name: &OsString| list.iter().any(|known| name.as_os_str() == known.as_str());
    let is_inherited = |name: &OsString| {
        let secret = is(secret_variables, name) && !is(&configured.pass, name);
        let set = configured.set.keys().any(|known| name.as_os_str() == known.as_str());
        let own = OUTRIGGER_VARIABLES.iter().any(|own| name == own) && !is(&configured.pass, name);
        let handover = name == supervisor::worker::INHERIT || name == supervisor::RESUME;
        let default_home = name == "HOME" && sys::home::is_given();
        !own && !handover && !default_home && !is(&configured.unset, name) && !secret && !set
    };
    let entry = |name: &[u8], value: &[u8]| [name, b"=", value].concat();
    let inherited = std::env::vars_os().filter(|(name, _)| is_inherited(name));
    let inherited = inherited.map(|(name, value)| entry(name.as_bytes(), value.as_bytes()));
    inherited
        .chain(configured.set.iter().map(|(name, value)| entry(name.as_bytes(), value.reveal().as_bytes())))
        .collect()
}

fn rewrites(app: &App, tree: &Node, findings: &mut Vec<Diagnostic>) -> Rewrites {
    let mut rewrites = Vec::new();
    for (from, to) in &app.signals.rewrite {
        let location = tree.at(&["signals", "rewrite", from]).place;
        let mut number = |name: &str| {
            let found = signal(name);
            if found.is_none() {
                let text = format!("`{name}` is not a signal that can be forwarded");
                findings.push(
                    Diagnostic::error(location, text).help("write SIGTERM, SIGHUP, SIGRTMIN+3 …; or none, or upgrade"),
                );
            }
            found
        };
        let to = match to.as_str() {
            "none" => Some(Rewrite::Drop),
            "upgrade" => Some(Rewrite::Upgrade),
            name => number(name).map(Rewrite::To),
        };
        rewrites.extend(number(from).zip(to));
    }
    Rewrites(rewrites)
}

/// Signals by name, as signal(7) numbers them on x86 and ARM; KILL, STOP and CHLD cannot be rewritten.
fn signal(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 28] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CONT", 18),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    let short = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        // The C library reserves the first two.
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    NAMES.iter().find(|(known, _)| *known == short).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(yaml: &str, command: &[&str]) -> Result<Plan, Vec<Diagnostic>> {
        let loaded = config::load::load::<App>("test", yaml, &config::interpolate::Lookup::HERE);
        let loaded = loaded.unwrap_or_else(|report| panic!("{}", report.render()));
        let command: Vec<OsString> = command.iter().map(OsString::from).collect();
        let context =
            Context { command: &command, capture_bytes: Some(1 << 20), secret_variables: &["PATH".to_string()] };
        plan(&loaded.config, &context, &loaded.tree)
    }

    #[test]
    fn rewrites_use_signal_names_and_reject_others() {
        let plan =
            planned("signals: { rewrite: { SIGTERM: QUIT, HUP: none, SIGUSR2: upgrade, RTMIN+3: SIGINT } }", &["app"]);
        let rewrites = plan.expect("valid").rewrites;
        assert_eq!((rewrites.of(15), rewrites.of(1)), (Rewrite::To(3), Rewrite::Drop));
        assert_eq!((rewrites.of(12), rewrites.of(37)), (Rewrite::Upgrade, Rewrite::To(2)));
        let findings =
            planned("signals: { rewrite: { SIGKILL: SIGTERM, SIGTERM: STOP } }", &["app"]).expect_err("two errors");
        assert_eq!(findings.len(), 2);
    }

    #[test]
    fn the_app_gets_secret_variables_only_with_pass() {
        let has = |yaml: &str, name: &str| {
            let app = planned(yaml, &["app"]).expect("valid").app.expect("wrapped");
            let entry = app.environment.iter().find(|entry| entry.starts_with(format!("{name}=").as_bytes()));
            entry.map(|entry| String::from_utf8_lossy(entry).into_owned())
        };
        assert_eq!(has("{}", "PATH"), None, "used in a secret");
        assert!(has("environment: { pass: [PATH] }", "PATH").is_some());
        assert_eq!(has("environment: { set: { PATH: /x } }", "PATH").as_deref(), Some("PATH=/x"));
        assert_eq!(has("environment: { pass: [PATH], unset: [PATH] }", "PATH"), None);
    }

    #[test]
    fn keys_of_a_wrapped_app_warn_without_a_command() {
        let yaml = "port: 80\nuser: nobody\nrestart: { policy: always }\nstop: { grace_period: 1s }\n";
        let loaded = config::load::load::<App>("test", yaml, &config::interpolate::Lookup::HERE).expect("valid");
        let findings = without_effect(false, &loaded.tree);
        let lines: Vec<_> = findings.iter().map(|finding| finding.place.map(|place| place.line)).collect();
        assert_eq!(lines, [Some(2), Some(3)]);
        assert_eq!(without_effect(true, &loaded.tree).len(), 0);
    }

    #[test]
    fn external_is_rejected_with_a_command() {
        assert!(planned("external: { exit_code_file: /x }", &["app"]).is_err());
        assert_eq!(planned("external: { exit_code_file: /x }", &[]).expect("valid").app, None);
    }
}
