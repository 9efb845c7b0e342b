//! Names under which log files are found: names that are not UTF-8, that are removed and restored, copies, compressed
//! files, symlinks, directories that cannot be listed, and more files than may be open. In: files written by the test.
//! Out: the lines that a receiver got and the content of `/status`. Bounded by some thousand files and by the ten seconds
//! for which a file without a name is watched.

use std::ffi::OsStr;
use std::fs::{OpenOptions, Permissions, create_dir_all, rename, set_permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant, SystemTime};

use crate::harness::log_files::{LogFiles, append, missing_and_repeated, numbered, outcome, warnings};
use crate::harness::outrigger::binary;
use crate::harness::{Outrigger, PATIENCE, SECOND, Wait, get, until, within};

const FAST: &str = "poll_interval: 50ms, scan_interval: 200ms";
const NO_LANDLOCK: &str = "this kernel has no Landlock";

/// Names that are not UTF-8 are supported: of a file, of its parent directory, and below a directory matched by `**`.
#[test]
fn names_that_are_not_utf8_are_read() {
    let files = LogFiles::new(&["in", "sub", "deep"], &["in/*.log", "sub/*/a.log", "deep/**/*.log"], FAST);
    let directory = |parent: &str, name: &[u8]| {
        let directory = files.path(parent).join(OsStr::from_bytes(name));
        create_dir_all(&directory).expect("the file system accepts any bytes");
        directory
    };
    let paths = [
        files.path("in").join(OsStr::from_bytes(b"caf\xe9.log")),
        directory("sub", b"\xff\xfe").join("a.log"),
        directory("deep", b"d\xc3").join(OsStr::from_bytes(b"\x80.log")),
    ];
    append(&paths[0], "before file\n");
    let outrigger = files.start();
    append(&paths[0], "file\n");
    append(&paths[1], "directory\n");
    append(&paths[2], "both\n");
    files.append("in/z.log", "last\n");
    files.await_message("last");
    let names = ["before file", "file", "directory", "both"];
    within(3 * SECOND, || names.iter().all(|name| files.has(name)));
    let missing: Vec<&str> = names.into_iter().filter(|name| !files.has(name)).collect();
    assert_eq!(missing, [""; 0], "lines of files whose names are not UTF-8; the logs are {:?}", outcome(&outrigger));
    outrigger.finish();
    assert_eq!(files.receiver.len(), 5, "nothing arrived twice");
}

/// A file without a name is read for as long as a process writes to it, and a line whose file was unreachable for longer
/// than that is still one line.
#[test]
fn file_without_a_name_is_read_until_it_is_idle() {
    let files = LogFiles::new(&["in", "other"], &["in/*.log", "other/*.log"], FAST);
    let writer = |name: &str| OpenOptions::new().create(true).append(true).open(files.path(name)).expect("a log");
    let (mut renamed, mut away) = (writer("in/a.log"), writer("other/a.log"));
    let outrigger = files.start();
    renamed.write_all(b"n=000000\n").expect("the log can be written");
    away.write_all(b"whole\nfirst half, ").expect("the log can be written");
    files.receiver.wait_for(2, PATIENCE);
    rename(files.path("in/a.log"), files.path("in/a.log.1")).expect("the log can be renamed");
    rename(files.path("other"), files.path("other.away")).expect("the directory can be renamed");
    let began = Instant::now();
    let mut lines = 1;
    while began.elapsed() < 14 * SECOND {
        renamed.write_all(numbered(lines..lines + 1).as_bytes()).expect("the log can be written");
        lines += 1;
        // why: the pace of an app that keeps writing for longer than a file without a name is watched
        std::thread::sleep(Duration::from_millis(500));
    }
    rename(files.path("other.away"), files.path("other")).expect("the directory can be renamed");
    away.write_all(b"second half\n").expect("the log can be written");
    files.append("other/z.log", "last\n");
    files.await_message("last");
    within(3 * SECOND, || files.sorted().len() == lines && files.has("first half, second half"));
    let halves: Vec<String> =
        files.receiver.messages().into_iter().filter(|message| message.contains("half")).collect();
    let numbers = files.sorted();
    outrigger.finish();
    let (missing, _) = missing_and_repeated(&numbers, 0..lines);
    assert!(
        missing == 0 && halves == ["first half, second half"],
        "{missing} of {lines} lines are missing; halves: {halves:?}"
    );
    assert_eq!(files.receiver.len(), lines + 3, "nothing arrived twice");
}

/// A compressed file next to its log is recognized by its first bytes, whatever its name, and is not read as text.
#[test]
fn compressed_files_are_not_read_as_lines() {
    let files = LogFiles::new(&["in"], &["in/a*"], FAST);
    let text = numbered(0..2000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(text.as_bytes()).expect("memory is writable");
    let gzip = gzip.finish().expect("memory is writable");
    let zstd = zstd::bulk::compress(text.as_bytes(), 3).expect("memory is writable");
    // First bytes as in RFC 1952 (2.3.1), RFC 8878 (3.1.1), "The .xz File Format" (2.1.1.1) and bzip2's blocks; lines
    // after them.
    let xz = [b"\xfd7zXZ\0\0\x04".as_slice(), b"\ninside of xz\n"].concat();
    let bzip2 = [b"BZh91AY&SY".as_slice(), b"\xd5\ninside of bzip2\n"].concat();
    files.append("in/a.log", "one\ntwo\n");
    files.scene.write("in/a.log.1.gz", &gzip);
    let outrigger = files.start();
    for (name, bytes) in [("a.log.2.gz", &gzip), ("a-packed", &gzip), ("a.log.3.zst", &zstd), ("a.log.4.xz", &xz)] {
        files.scene.write(&format!("in/{name}"), bytes);
    }
    files.scene.write("in/a.log.5.bz2", bzip2);
    for round in ["three", "four"] {
        files.append(&format!("in/a-{round}"), format!("{round}\n"));
        files.await_message(round);
    }
    outrigger.finish();
    let records = files.receiver.records();
    let mut wrong: Vec<&str> = records.iter().map(|record| record.field("file")).collect();
    wrong.retain(|file| ![".log", "-three", "-four"].iter().any(|end| file.ends_with(end)));
    wrong.dedup();
    assert_eq!(wrong, [""; 0], "compressed files that were read as lines");
    assert_eq!(records.len(), 4);
}

/// A directory that cannot be listed is reported, as a file that cannot be read is, and read once it can be.
#[test]
fn unlistable_directory_is_reported() {
    let files = LogFiles::new(&["in", "top/open", "top/shut"], &["in/*.log", "top/*/*.log"], FAST);
    let shut = ["in", "top/shut"];
    let allow = |directory: &str, mode: u32| {
        set_permissions(files.path(directory), Permissions::from_mode(mode)).expect("the directory is the test's");
    };
    for directory in shut {
        files.append(&format!("{directory}/a.log"), format!("of {directory}\n"));
    }
    files.append("top/open/a.log", "of top/open\n");
    shut.iter().for_each(|directory| allow(directory, 0));
    let outrigger = files.start();
    files.await_message("of top/open");
    // Of several directories one may be reported at a time: the next one after the first has recovered.
    let mut silent = Vec::new();
    for directory in shut {
        let named = || {
            let (state, text) = outcome(&outrigger);
            state == "degraded" && text.contains(&files.scene.text_path(directory))
        };
        if !within(5 * SECOND, named) {
            silent.push((directory, outcome(&outrigger)));
        }
        allow(directory, 0o755);
        files.await_message(&format!("of {directory}"));
    }
    assert!(silent.is_empty(), "directories that are not reported, and the state of the logs: {silent:?}");
    until(PATIENCE, "the logs have recovered", || outcome(&outrigger).0 == "ok");
    outrigger.finish();
}

/// A symlink to a target outside the sandbox is reported with the sandbox and the key that allows more; with that key
/// the target is read.
#[test]
fn symlink_out_of_the_sandbox_reports_the_key() {
    let cases = [
        ("in/*.log", "in/a.log", "elsewhere/real.log"),
        ("in/*/real.log", "in/sub", "elsewhere"),
        ("in/*/*.log", "in/sub", "elsewhere"),
    ];
    let mut wrong = Vec::new();
    for (pattern, link, target) in cases {
        let files = LogFiles::new(&["in", "elsewhere"], &[pattern], FAST);
        files.append("elsewhere/real.log", "through the link\n");
        symlink(files.path(target), files.path(link)).expect("the symlink can be created");
        let outrigger = files.start_apart();
        need!(outrigger.get("/status").json()["sandbox"]["landlock_abi"].as_u64(), NO_LANDLOCK);
        let reports = || {
            let logged: Vec<String> = warnings(&outrigger).iter().map(ToString::to_string).collect();
            [vec![outcome(&outrigger).1], logged].concat()
        };
        let named =
            || outcome(&outrigger).0 == "degraded" && reports().iter().any(|s| s.contains("sandbox.allow_read"));
        if !within(5 * SECOND, named) {
            wrong.push((pattern, reports()));
        }
        outrigger.finish();
        let files = files.and("sandbox: { allow_read: [\"@dir@/elsewhere\"] }\n");
        let outrigger = files.start_apart();
        files.await_message("through the link");
        outrigger.finish();
    }
    assert!(wrong.is_empty(), "reports without the sandbox key: {wrong:?}");
}

/// More files than `max_files` match: the worker keeps running, and files take turns until all are read.
#[test]
fn more_files_than_max_files_are_all_read() {
    assert_eq!(with_too_many_files(3000, 64, 256), [""; 0]);
}

/// The system allows fewer file descriptors than `max_files` files need: the same.
#[test]
fn fewer_descriptors_than_files_read_all_files() {
    assert_eq!(with_too_many_files(300, 256, 128), [""; 0]);
}

/// Returns what fails with this many matching files, this limit of open files in the configuration, and this limit of
/// file descriptors of the system.
fn with_too_many_files(count: usize, max_files: usize, descriptors: usize) -> Vec<String> {
    let keys = format!("max_files: {max_files}, poll_interval: 100ms, scan_interval: 200ms");
    let files = LogFiles::new(&["in"], &["in/*.log"], &keys);
    let day_ago = SystemTime::now() - Duration::from_secs(86_400);
    for number in 0..count {
        let path = files.scene.write(&format!("in/{number:04}.log"), format!("idle {number}\n"));
        let file = OpenOptions::new().write(true).open(path).expect("the log can be opened");
        file.set_modified(day_ago).expect("the log is the test's");
    }
    let limited = format!("#!/bin/sh\nulimit -n {descriptors}\nexec '{}' \"$@\"\n", binary());
    let script = files.scene.script("limited", &limited).display().to_string();
    let body = files.body();
    let outrigger = Outrigger::start_binary(&script, &files.scene, "outrigger.yaml", body, &[], Wait::Ready, |_| {});
    let worker = outrigger.worker();
    for number in 0..30 {
        files.append(&format!("in/new-{number:02}.log"), numbered(number * 10..number * 10 + 10));
    }
    let missing = || missing_and_repeated(&files.sorted(), 0..300).0;
    let (mut unanswered, began) = (0, Instant::now());
    within(PATIENCE, || {
        unanswered += usize::from(get(&outrigger.admin, "/live").is_err());
        // At least ten scans, however early the lines arrive.
        missing() == 0 && began.elapsed() > 2 * SECOND
    });
    let wrong = [
        (outrigger.find_worker() != Some(worker)).then(|| "the worker was replaced".to_owned()),
        (unanswered > 0).then(|| format!("{unanswered} requests got no response")),
        (missing() > 0).then(|| format!("{} of 300 lines of the newest files are missing", missing())),
    ];
    outrigger.terminate(40 * SECOND);
    wrong.into_iter().flatten().collect()
}
