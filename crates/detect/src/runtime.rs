//! Detects the runtime of a process: Java, Python, nginx and so on. In: its name, its program and its arguments. Out: a runtime,
//! and the evidence for it. Of the arguments it shows only the name of a script or module. Limits: a program's section headers
//! are read up to `SECTIONS_MAX` and `NAMES_MAX` bytes.

use crate::process::{Process, arguments};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const SECTIONS_MAX: usize = 256 << 10;
const NAMES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    pub name: &'static str,
    /// The evidence, as the end of a sentence.
    pub evidence: String,
    /// The name of the script, archive or module that it runs.
    pub script: Option<String>,
    /// The signal for a graceful stop, if it is not SIGTERM.
    pub stop: Option<&'static str>,
}

/// Program name, runtime, whether it speaks a protocol other than HTTP, and its signal for a graceful stop.
const PROGRAMS: [(&str, &str, bool, Option<&str>); 31] = [
    ("java", "Java", false, None),
    ("node", "Node", false, None),
    ("nodejs", "Node", false, None),
    ("bun", "Bun", false, None),
    ("deno", "Deno", false, None),
    ("python", "Python", false, None),
    ("pypy", "Python", false, None),
    ("gunicorn", "Python", false, None),
    ("uvicorn", "Python", false, None),
    ("ruby", "Ruby", false, None),
    ("puma", "Ruby", false, None),
    ("php-fpm", "PHP-FPM", true, Some("SIGQUIT")),
    ("php", "PHP", false, None),
    ("perl", "Perl", false, None),
    ("dotnet", ".NET", false, None),
    ("beam.smp", "Erlang", false, None),
    ("nginx", "nginx", false, Some("SIGQUIT")),
    ("httpd", "Apache", false, None),
    ("apache2", "Apache", false, None),
    ("haproxy", "HAProxy", false, Some("SIGUSR1")),
    ("envoy", "Envoy", false, None),
    ("redis-server", "Redis", true, None),
    ("valkey-server", "Valkey", true, None),
    ("postgres", "PostgreSQL", true, Some("SIGINT")),
    ("mysqld", "MySQL", true, None),
    ("mariadbd", "MariaDB", true, None),
    ("mongod", "MongoDB", true, None),
    ("memcached", "memcached", true, None),
    ("sshd", "OpenSSH", true, None),
    ("master", "Postfix", true, None),
    ("smtpd", "Postfix", true, None),
];

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "zsh", "busybox"];

/// Extensions of scripts and archives whose name may be shown.
const SCRIPTS: [&str; 12] = ["java", "py", "js", "mjs", "cjs", "ts", "rb", "jar", "sh", "php", "pl", "dll"];

/// Whether a process of this name speaks a protocol other than HTTP, so that a GET would only disturb it.
pub fn speaks_no_http(process: &str) -> bool {
    program_of(process).is_some_and(|(_, _, speaks_other, _)| *speaks_other)
}

pub fn of_process(process: &Process) -> Option<Runtime> {
    let program = std::fs::read_link(format!("/proc/{}/exe", process.pid)).ok();
    let program = program.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let program = program.map(|name| name.trim_end_matches(" (deleted)").to_string());
    identify(&process.name, program.as_deref(), &arguments(process.pid)).or_else(|| {
        let file = File::open(format!("/proc/{}/exe", process.pid)).ok()?;
        has_section(&file, b".go.buildinfo").then(|| Runtime {
            name: "Go",
            evidence: "its program has the section .go.buildinfo".into(),
            script: None,
            stop: None,
        })
    })
}

fn identify(name: &str, program: Option<&str>, arguments: &[String]) -> Option<Runtime> {
    let found = script_of(arguments);
    let script = found.as_ref().map(|script| format!(" and runs {script}")).unwrap_or_default();
    let known = program.and_then(|program| Some((program_of(program)?, format!("its program is {program}{script}"))));
    let known = known.or_else(|| Some((program_of(name)?, format!("its name is {name}{script}"))));
    if let Some(((_, runtime, _, stop), evidence)) = known {
        return Some(Runtime { name: runtime, evidence, script: found, stop: *stop });
    }
    let shell = program.filter(|program| SHELLS.contains(program))?;
    Some(Runtime {
        name: "a shell script",
        evidence: format!("its program is {shell}{script}"),
        script: found,
        stop: None,
    })
}

/// Matches `python3.11`, `php-fpm8.2` and `node22` without their version.
fn program_of(name: &str) -> Option<&'static (&'static str, &'static str, bool, Option<&'static str>)> {
    // Servers set process titles such as `nginx: master process` and `postgres: checkpointer`.
    let name = name.split(':').next().unwrap_or(name).trim();
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    PROGRAMS.iter().find(|(known, ..)| *known == name || *known == bare)
}

/// The file name of the script, archive or module in the arguments. Other arguments may contain secrets; these do not.
fn script_of(arguments: &[String]) -> Option<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut rest = arguments.iter().skip(1);
    let mut shown = None;
    while let Some(argument) = rest.next() {
        if argument == "-m" {
            shown = rest.next().cloned();
            break;
        }
        let path = Path::new(argument);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        if SCRIPTS.contains(&extension) && !argument.contains('=') {
            shown = path.file_name().map(|name| name.to_string_lossy().into_owned());
            break;
        }
    }
    shown.filter(|shown| shown.len() <= 80 && shown.chars().all(is_word))
}

/// Whether a 64-bit ELF program in host byte order has a section of that name (elf(5)).
fn has_section(file: &File, name: &[u8]) -> bool {
    let find = || -> Option<bool> {
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0).ok()?;
        let native = if cfg!(target_endian = "little") { 1 } else { 2 };
        if !header.starts_with(b"\x7fELF") || header.get(4..6)? != [2, native] {
            return None;
        }
        let at = u64::from_ne_bytes(header.get(0x28..0x30)?.try_into().ok()?);
        let half = |index: usize| Some(usize::from(u16::from_ne_bytes(header.get(index..index + 2)?.try_into().ok()?)));
        let (size, count, names) = (half(0x3a)?, half(0x3c)?, half(0x3e)?);
        if size < 64 || size * count > SECTIONS_MAX {
            return None;
        }
        let mut table = vec![0; size * count];
        file.read_exact_at(&mut table, at).ok()?;
        let section = table.get(names * size..(names + 1) * size)?;
        let long = |index: usize| Some(u64::from_ne_bytes(section.get(index..index + 8)?.try_into().ok()?));
        let mut strings = vec![0; usize::try_from(long(0x20)?).ok()?.min(NAMES_MAX)];
        file.read_exact_at(&mut strings, long(0x18)?).ok()?;
        let mut starts = table
            .chunks_exact(size)
            .filter_map(|section| usize::try_from(u32::from_ne_bytes(section.get(..4)?.try_into().ok()?)).ok());
        Some(
            starts.any(|start| {
                strings.get(start..).is_some_and(|rest| rest.split(|byte| *byte == 0).next() == Some(name))
            }),
        )
    };
    find().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, program: &str, arguments: &[&str], expect: Option<(&str, &str)>) {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let seen = identify(name, (!program.is_empty()).then_some(program), &arguments);
        let seen = seen.as_ref().map(|runtime| (runtime.name, runtime.evidence.as_str()));
        assert_eq!(seen, expect, "{name} {program} {arguments:?}");
    }

    #[test]
    fn runtime_is_detected_by_program_and_arguments() {
        check(
            "orders",
            "python3.11",
            &["orders", "/srv/app.py"],
            Some(("Python", "its program is python3.11 and runs app.py")),
        );
        let module = ["python3", "-m", "http.server", "8080"];
        check("python3", "python3", &module, Some(("Python", "its program is python3 and runs http.server")));
        let archive = ["java", "-Xmx1g", "-jar", "orders.jar"];
        check("java", "java", &archive, Some(("Java", "its program is java and runs orders.jar")));
        check("nginx", "", &["nginx: master process"], Some(("nginx", "its name is nginx")));
        check("php-fpm8.2", "php-fpm8.2", &[], Some(("PHP-FPM", "its program is php-fpm8.2")));
        check(
            "run.sh",
            "dash",
            &["/bin/sh", "./run.sh"],
            Some(("a shell script", "its program is dash and runs run.sh")),
        );
        check("orders", "orders", &["./orders"], None);
    }

    #[test]
    fn only_the_script_of_the_arguments_is_shown() {
        for arguments in [
            &["python3", "-c", "secret = 'hunter2'"][..],
            &["node", "--token=hunter2.js"],
            &["ruby", "hunter2"],
            &["python3", "-m", "mod; hunter2\n"],
            &["sh", "-c", "curl -u me:hunter2 host/x.sh"],
        ] {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            let shown = script_of(&arguments).unwrap_or_default();
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn elf_parser_finds_sections_and_rejects_garbage() {
        let own = File::open("/proc/self/exe").expect("own executable");
        assert!(has_section(&own, b".text") && !has_section(&own, b".go.buildinfo"));
        let path = std::env::temp_dir().join(format!("detect-elf-{}", std::process::id()));
        let mut header = vec![0; 64];
        own.read_exact_at(&mut header, 0).expect("a header");
        for (offset, bytes) in [(0x28, vec![0xff; 8]), (0x3a, vec![0xff; 6]), (0, b"#!/bin/sh".to_vec())] {
            let mut broken = header.clone();
            broken[offset..offset + bytes.len()].copy_from_slice(&bytes);
            std::fs::write(&path, &broken).expect("enough space");
            assert!(!has_section(&File::open(&path).expect("just written"), b".text"));
        }
        std::fs::remove_file(&path).expect("own file");
    }

    #[test]
    fn databases_are_not_probed() {
        assert!(speaks_no_http("redis-server") && speaks_no_http("postgres") && speaks_no_http("php-fpm8.2"));
        assert!(!speaks_no_http("nginx") && !speaks_no_http("python3") && !speaks_no_http("orders"));
    }
}
