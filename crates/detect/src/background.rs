//! Apps that move to the background: the command exits, and a process of it keeps running unsupervised. In: a command. Out: the
//! option that runs the program in the foreground, according to its manual.

use std::ffi::OsString;
use std::path::Path;

/// Programs that move to the background by default or by an option, and what runs them in the foreground.
const FLAGS: [(&str, &str); 22] = [
    ("apache2", "-D FOREGROUND"),
    ("cron", "-f"),
    ("crond", "-f, or -n with cronie"),
    ("dnsmasq", "--keep-in-foreground"),
    ("gunicorn", "no --daemon, and no `daemon` in its configuration"),
    ("haproxy", "-db, and no -D or `daemon` in its configuration"),
    ("httpd", "-D FOREGROUND"),
    ("keepalived", "--dont-fork"),
    ("memcached", "no -d"),
    ("mongod", "no --fork, and no `fork: true` in its configuration"),
    ("named", "-f"),
    ("nginx", "-g \"daemon off;\", or `daemon off;` in its configuration"),
    ("php-fpm", "--nodaemonize"),
    ("redis-server", "--daemonize no"),
    ("rsyslogd", "-n"),
    ("squid", "--foreground"),
    ("sshd", "-D"),
    ("supervisord", "--nodaemon"),
    ("unbound", "-d"),
    ("uwsgi", "no `daemonize`"),
    ("valkey-server", "--daemonize no"),
    ("varnishd", "-F"),
];

/// Advice for a command that moved to the background.
pub fn advice(command: &[OsString]) -> String {
    let program = command.first().and_then(|program| Path::new(program).file_name()?.to_str()).unwrap_or("");
    // `php-fpm8.2` is php-fpm.
    let plain = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    match FLAGS.iter().find(|(name, _)| *name == plain) {
        Some((name, flag)) => format!("run it in the foreground ({name}: {flag})"),
        None => {
            "run it in the foreground: most programs have an option for it, such as -f, -n, --foreground or --no-daemon"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &str, part: &str) {
        let advice = advice(&[command.into(), "-x".into()]);
        assert!(advice.contains(part), "{command}: {advice}");
    }

    #[test]
    fn advice_is_specific_for_known_programs() {
        check("/usr/sbin/nginx", "daemon off;");
        check("redis-server", "--daemonize no");
        check("php-fpm8.2", "php-fpm: --nodaemonize");
        check("./own-server", "--foreground");
        assert!(FLAGS.is_sorted_by_key(|(name, _)| *name), "sorted by name");
    }
}
