//! Names under which log files are found: names that are no text, that leave and come back, copies, packed files,
//! links, folders that cannot be listed, and more files than may be open. In: files written by the test. Out: the lines
//! that a receiver got and what `/status` says. Bounded by some thousand files and by the ten seconds for which a file
//! without a name is watched.

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

/// A name that is not UTF-8 is a name: of a file, of a folder above it, and below a folder that is found by `**`.
/// covers: faults 4
#[test]
fn names_that_are_not_utf8_are_read() {
    let files = LogFiles::new(&["in", "sub", "deep"], &["in/*.log", "sub/*/a.log", "deep/**/*.log"], FAST);
    let folder = |above: &str, name: &[u8]| {
        let folder = files.path(above).join(OsStr::from_bytes(name));
        create_dir_all(&folder).expect("the file system takes any bytes");
        folder
    };
    let paths = [
        files.path("in").join(OsStr::from_bytes(b"caf\xe9.log")),
        folder("sub", b"\xff\xfe").join("a.log"),
        folder("deep", b"d\xc3").join(OsStr::from_bytes(b"\x80.log")),
    ];
    append(&paths[0], "before file\n");
    let outrigger = files.start();
    append(&paths[0], "file\n");
    append(&paths[1], "folder\n");
    append(&paths[2], "both\n");
    files.append("in/z.log", "last\n");
    files.await_message("last");
    let names = ["before file", "file", "folder", "both"];
    within(3 * SECOND, || names.iter().all(|name| files.has(name)));
    let missing: Vec<&str> = names.into_iter().filter(|name| !files.has(name)).collect();
    assert_eq!(missing, [""; 0], "lines of files whose names are not UTF-8; the logs are {:?}", outcome(&outrigger));
    outrigger.finish();
    assert_eq!(files.receiver.len(), 5, "nothing came twice");
}

/// A file that has lost its name is read for as long as somebody writes to it, and a line whose file was away for
/// longer than that is one line.
/// covers: faults 4
#[test]
fn a_file_without_a_name_is_read_until_it_rests() {
    let files = LogFiles::new(&["in", "folder"], &["in/*.log", "folder/*.log"], FAST);
    let writer = |name: &str| OpenOptions::new().create(true).append(true).open(files.path(name)).expect("a log");
    let (mut renamed, mut away) = (writer("in/a.log"), writer("folder/a.log"));
    let outrigger = files.start();
    renamed.write_all(b"n=000000\n").expect("the log can be written");
    away.write_all(b"whole\nfirst half, ").expect("the log can be written");
    files.receiver.wait_for(2, PATIENCE);
    rename(files.path("in/a.log"), files.path("in/a.log.1")).expect("the log can be renamed");
    rename(files.path("folder"), files.path("folder.away")).expect("the folder can be renamed");
    let began = Instant::now();
    let mut lines = 1;
    while began.elapsed() < 14 * SECOND {
        renamed.write_all(numbered(lines..lines + 1).as_bytes()).expect("the log can be written");
        lines += 1;
        // why: the pace of an app that goes on writing for longer than a file without a name is watched
        std::thread::sleep(Duration::from_millis(500));
    }
    rename(files.path("folder.away"), files.path("folder")).expect("the folder can be renamed");
    away.write_all(b"second half\n").expect("the log can be written");
    files.append("folder/z.log", "last\n");
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
    assert_eq!(files.receiver.len(), lines + 3, "nothing came twice");
}

/// A packed file beside its log is known by its first bytes, whatever it is called, and is no text.
/// covers: faults 4
#[test]
fn packed_files_are_not_read_as_lines() {
    let files = LogFiles::new(&["in"], &["in/a*"], FAST);
    let text = numbered(0..2000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(text.as_bytes()).expect("memory takes bytes");
    let gzip = gzip.finish().expect("memory takes bytes");
    let zstd = zstd::bulk::compress(text.as_bytes(), 3).expect("memory takes bytes");
    // First bytes as in RFC 1952 (2.3.1), RFC 8878 (3.1.1), "The .xz File Format" (2.1.1.1) and bzip2's blocks; lines
    // behind them.
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
    assert_eq!(wrong, [""; 0], "packed files that were read as lines");
    assert_eq!(records.len(), 4);
}

/// A folder that cannot be listed is named, as a file that cannot be read is, and read once it can be.
/// covers: faults 4
#[test]
fn a_folder_that_cannot_be_listed_is_named() {
    let files = LogFiles::new(&["in", "top/open", "top/shut"], &["in/*.log", "top/*/*.log"], FAST);
    let shut = ["in", "top/shut"];
    let allow = |folder: &str, mode: u32| {
        set_permissions(files.path(folder), Permissions::from_mode(mode)).expect("the folder is ours");
    };
    for folder in shut {
        files.append(&format!("{folder}/a.log"), format!("of {folder}\n"));
    }
    files.append("top/open/a.log", "of top/open\n");
    shut.iter().for_each(|folder| allow(folder, 0));
    let outrigger = files.start();
    files.await_message("of top/open");
    // One of several may be named at a time: the next once the first is well.
    let mut silent = Vec::new();
    for folder in shut {
        let named = || {
            let (state, text) = outcome(&outrigger);
            state == "degraded" && text.contains(&files.scene.text_path(folder))
        };
        if !within(5 * SECOND, named) {
            silent.push((folder, outcome(&outrigger)));
        }
        allow(folder, 0o755);
        files.await_message(&format!("of {folder}"));
    }
    assert!(silent.is_empty(), "nothing is said of a folder, and the logs are: {silent:?}");
    until(PATIENCE, "the logs are well again", || outcome(&outrigger).0 == "ok");
    outrigger.finish();
}

/// A link that leads out of what the sandbox allows is reported with the sandbox and the key that allows more; with
/// that key it is read.
/// covers: faults 4
#[test]
fn a_link_out_of_the_sandbox_names_the_key() {
    let cases = [
        ("in/*.log", "in/a.log", "elsewhere/real.log"),
        ("in/*/real.log", "in/sub", "elsewhere"),
        ("in/*/*.log", "in/sub", "elsewhere"),
    ];
    let mut wrong = Vec::new();
    for (pattern, link, target) in cases {
        let files = LogFiles::new(&["in", "elsewhere"], &[pattern], FAST);
        files.append("elsewhere/real.log", "through the link\n");
        symlink(files.path(target), files.path(link)).expect("the scene takes links");
        let outrigger = files.start_apart();
        need!(outrigger.get("/status").json()["sandbox"]["landlock_abi"].as_u64(), NO_LANDLOCK);
        let said = || {
            let logged: Vec<String> = warnings(&outrigger).iter().map(ToString::to_string).collect();
            [vec![outcome(&outrigger).1], logged].concat()
        };
        let named = || outcome(&outrigger).0 == "degraded" && said().iter().any(|s| s.contains("sandbox.allow_read"));
        if !within(5 * SECOND, named) {
            wrong.push((pattern, said()));
        }
        outrigger.finish();
        let files = files.and("sandbox: { allow_read: [\"@dir@/elsewhere\"] }\n");
        let outrigger = files.start_apart();
        files.await_message("through the link");
        outrigger.finish();
    }
    assert!(wrong.is_empty(), "the sandbox and its key are not named: {wrong:?}");
}

/// More files than `max_files` match: the worker lives, and files take turns until all are read.
/// covers: faults 4
#[test]
fn more_files_than_files_max_hurt_nobody() {
    assert_eq!(with_too_many_files(3000, 64, 256), [""; 0]);
}

/// The system allows fewer descriptors than `max_files` files need: the same.
/// covers: faults 4
#[test]
fn fewer_descriptors_than_files_hurt_nobody() {
    assert_eq!(with_too_many_files(300, 256, 128), [""; 0]);
}

/// What goes wrong where so many files match, so many may be open by the configuration, and so many descriptors by the
/// system.
fn with_too_many_files(count: usize, max_files: usize, descriptors: usize) -> Vec<String> {
    let keys = format!("max_files: {max_files}, poll_interval: 100ms, scan_interval: 200ms");
    let files = LogFiles::new(&["in"], &["in/*.log"], &keys);
    let day_ago = SystemTime::now() - Duration::from_secs(86_400);
    for number in 0..count {
        let path = files.scene.write(&format!("in/{number:04}.log"), format!("idle {number}\n"));
        let file = OpenOptions::new().write(true).open(path).expect("the log can be opened");
        file.set_modified(day_ago).expect("the log is ours");
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
        // Ten scans at least, however soon the lines come.
        missing() == 0 && began.elapsed() > 2 * SECOND
    });
    let wrong = [
        (outrigger.find_worker() != Some(worker)).then(|| "the worker was replaced".to_owned()),
        (unanswered > 0).then(|| format!("{unanswered} requests were not answered")),
        (missing() > 0).then(|| format!("{} of 300 lines of the newest files are missing", missing())),
    ];
    outrigger.terminate(40 * SECOND);
    wrong.into_iter().flatten().collect()
}
