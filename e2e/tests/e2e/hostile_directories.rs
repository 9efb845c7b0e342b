//! Directories that other users may write to: of log files, of the state, of what sync publishes, of the admin socket. They
//! contain pipes, devices, directories, links, huge, forbidden and changing files, and names that are not UTF-8. Valid
//! files next to them must work, and nothing may be written through a link. Bounded by one start for each kind.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::findings::outcomes;
use crate::harness::git::{Repository, published};
use crate::harness::hostile::{Kind, Laid, lay, limit_memory, observe};
use crate::harness::outrigger::{binary, configuration};
use crate::harness::process::is_alive;
use crate::harness::status::is_degraded;
use crate::harness::{Findings, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, within};

/// How soon a new file in a directory is seen, with about five scans a second.
const SEEN: Duration = Duration::from_secs(8);

/// A name that is not UTF-8, in a directory.
fn odd_name(directory: &Path, end: &str) -> std::path::PathBuf {
    directory.join(OsStr::from_bytes(&[b"caf\xe9", end.as_bytes()].concat()))
}

const LOGS: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
logs:
  sources: { files: { file: { include: ["@dir@/in/*.log"], poll_interval: 50ms, scan_interval: 20ms } } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } } }
"#;

/// Among matching files of any kind, the valid ones are read; so are those that appear later, and one whose name is not
/// UTF-8.
#[test]
fn hostile_log_files_block_no_other_file() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    let (directory, aside) = (scene.path("in"), scene.path("aside"));
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Changing);
    let lay_one = |kind: Kind| lay(kind, &directory.join(format!("{kind:?}.log")), &aside, b"n=000009\n");
    let laid: Vec<Laid> = kinds.filter_map(lay_one).collect();
    scene.write("in/good.log", "n=000000\n");
    fs::write(odd_name(&directory, ".log"), "n=000001\n").expect("the scene is writable");
    let outrigger = Outrigger::start(&scene, LOGS, &[]);
    limit_memory(outrigger.pid());
    let worker = outrigger.worker();
    let arrived = |number: usize| within(SEEN, || receiver.numbers("n=").contains(&number));
    findings.check(arrived(0), || "the valid file is not read".to_owned());
    findings.check(arrived(1), || "the file whose name is not UTF-8 is not read".to_owned());
    let failure = observe(&outrigger, worker, SECOND);
    let stderr = outrigger.stderr.clone();
    findings.check(failure.is_none(), || format!("with hostile files among the logs: {failure:?}, {}", stderr.text()));
    for (name, what) in [("Fifo.log", "a named pipe"), ("Zero.log", "a device"), ("ToZero.log", "a device")] {
        let path = directory.join(name).display().to_string();
        let is_reported = || stderr.lines().iter().any(|line| line.contains(&path) && line.contains(what));
        findings.check(!directory.join(name).exists() || within(SEEN, is_reported), || {
            format!("no message reports that {path} is {what}")
        });
    }
    scene.write("in/later.log", "n=000002\n");
    findings.check(arrived(2), || "a file that appeared later is not read".to_owned());
    let exit = outrigger.finish();
    findings.check(exit.took < 2 * SEEN, || format!("the stop took {:?}", exit.took));
    drop(laid);
}

/// A path without wildcards refers to one file: anything else at the path is a fault of the source, until a file exists.
#[test]
fn a_log_path_that_is_not_a_file_is_degraded() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    let outrigger = Outrigger::start(&scene, &LOGS.replace("*.log", "app.log"), &[]);
    let path = scene.path("in/app.log");
    for (number, kind) in [Kind::Fifo, Kind::Zero, Kind::Directory, Kind::ToZero].into_iter().enumerate() {
        let Some(laid) = lay(kind, &path, &scene.path("aside"), b"") else { continue };
        let shown = path.display().to_string();
        let is_reported = within(SEEN, || is_degraded(&outrigger, "logs.sources.files", &shown));
        findings.check(is_reported, || format!("{kind:?} is not reported"));
        drop(laid);
        scene.write("in/app.log", format!("n={number:06}\n"));
        let read = within(SEEN, || receiver.numbers("n=").contains(&number));
        findings.check(read, || format!("the file after {kind:?} is not read"));
        fs::remove_file(&path).expect("the test owns the file");
    }
    outrigger.finish();
}

/// A file that becomes a pipe between two checks, or shrinks and grows while it is read, does not affect the remaining
/// files.
#[test]
fn changing_log_files_block_no_other_file() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    scene.write("in/good.log", "n=000000\n");
    let outrigger = Outrigger::start(&scene, LOGS, &[]);
    limit_memory(outrigger.pid());
    let worker = outrigger.worker();
    let laid = ["1.log", "2.log", "3.log", "4.log"].map(|name| {
        lay(Kind::Swapped, &scene.path("in").join(name), &scene.path(&format!("aside {name}")), b"a line\n")
    });
    let mut growing = fs::File::create(scene.path("in/growing.log")).expect("the scene is writable");
    let mut failure = None;
    for _ in 0..30 {
        growing.write_all(&b"a line\n".repeat(20_000)).expect("the scene is writable");
        failure = failure.or(observe(&outrigger, worker, Duration::from_millis(50)));
        growing.set_len(7).expect("the file can be truncated");
    }
    findings.check(failure.is_none(), || format!("with changing files among the logs: {failure:?}"));
    scene.write("in/later.log", "n=000001\n");
    let arrived = within(SEEN, || receiver.numbers("n=").contains(&1));
    findings.check(arrived, || "a file that appeared later is not read".to_owned());
    drop(laid);
    outrigger.terminate(PATIENCE);
}

/// A component of each job that uses the state directory.
const STATE: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources:
    app:   { stdio: {} }
    files: { file: { include: ["@dir@/in/*.log"], poll_interval: 50ms, scan_interval: 100ms } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } } }
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, interval: 500ms } }
    publish: { symlink: { path: "@dir@/to/current" } }
    notify: [ { http: { url: "http://@receiver@/notified" } } ]
"#;

const APP: [&str; 3] = ["sh", "-c", "echo n=000000; exec sleep 300"];

/// The files of the state directory, except those that block all others.
const STATE_FILES: [&str; 6] = [
    "logs/checkpoints",
    "logs/backlog/app.stdout",
    "logs/backlog/app.stderr",
    "sync/settings/state.json",
    "sync/settings/git",
    "black_box/0.json",
];

/// Its directories.
const STATE_DIRECTORIES: [&str; 3] = ["logs", "sync", "black_box"];

/// Starts with hostile state files. Returns the first error, or that a file was written through a link.
fn error_with_state(names: &[&str], kind: Kind, through: &str) -> Option<String> {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let repository = Repository::create(&scene)?;
    // A store that is reached over the network has a cache.
    let daemon = repository.daemon(&scene);
    scene.set("url", daemon.as_ref().map_or_else(|| repository.file_url(), |(_, url)| url.clone()));
    scene.set("receiver", receiver.address());
    scene.write("in/good.log", "n=000001\n");
    scene.write("state/mark", "");
    fs::write(odd_name(&scene.path("state"), ""), "odd").expect("the scene is writable");
    let aside = scene.path(through);
    let lay_one = |name: &&str| lay(kind, &scene.path("state").join(name), &aside, b"precious");
    let laid: Vec<Laid> = names.iter().filter_map(lay_one).collect();
    if laid.len() < names.len() {
        return None;
    }
    let outrigger = Outrigger::start_and(&scene, STATE, &APP, Wait::Nothing);
    limit_memory(outrigger.pid());
    let is_ready = || outrigger.status_of("/ready") == 200 || !is_alive(outrigger.pid());
    if !within(SEEN, is_ready) {
        let output = outcomes(&outrigger);
        outrigger.kill_all();
        return Some(format!("not ready: {output}"));
    }
    if !is_alive(outrigger.pid()) {
        let exit = outrigger.wait(PATIENCE);
        let named = names.iter().any(|name| exit.stderr.contains(name));
        return (exit.code != 1 || !named).then(|| format!("it exited with {}: {}", exit.code, exit.stderr));
    }
    let failure = observe(&outrigger, outrigger.worker(), Duration::from_millis(300));
    let both = || [0, 1].iter().all(|number| receiver.numbers("n=").contains(number));
    let failure = failure
        .or((!within(SEEN, both)).then(|| format!("of the lines arrived {:?}", receiver.messages())))
        .or((!within(SEEN, || published(&scene.path("to/current")) == Ok(Some(1)))).then(|| "not published".to_owned()))
        .or_else(|| unreported(&scene, &outrigger, names, kind))
        .or((kind == Kind::Outside && fs::read(aside.join("good")).ok().as_deref() != Some(b"precious"))
            .then(|| "the target of a link was written".to_owned()));
    if failure.is_some() {
        outrigger.kill_all();
        return failure;
    }
    let exit = outrigger.finish();
    (exit.took > SEEN).then(|| format!("the stop took {:?}", exit.took))
}

/// A file that blocks a file of the state is replaced by a valid one, or the status or the log reports it.
fn unreported(scene: &Scene, outrigger: &Outrigger, names: &[&str], kind: Kind) -> Option<String> {
    let output = outrigger.get("/status").text() + &outrigger.stderr.text();
    let is_blocking = |name: &&&str| {
        let Ok(meta) = fs::symlink_metadata(scene.path("state").join(name)) else { return false };
        let is_wrong = match kind {
            Kind::Fifo => meta.file_type().is_fifo(),
            Kind::Zero | Kind::Full => meta.file_type().is_char_device(),
            Kind::Loop | Kind::ToZero => meta.is_symlink(),
            Kind::Directory => meta.is_dir() && !name.ends_with("git") && !STATE_DIRECTORIES.contains(*name),
            _ => false,
        };
        // A black box is written on a failure, the stderr of this app is empty, and a local path needs no cache.
        let needs_cache = !scene.value("url").starts_with("file:");
        let is_unused = name.starts_with("black_box") || name.ends_with("app.stderr");
        let is_used = !is_unused && (needs_cache || !name.ends_with("git"));
        // `lock` and `probe` are ordinary words, too.
        let is_named =
            if name.contains('.') { output.contains(**name) } else { output.contains(&format!("state/{name}")) };
        is_wrong && is_used && !is_named
    };
    let silent: Vec<_> = names.iter().filter(is_blocking).collect();
    (!silent.is_empty()).then(|| format!("{silent:?} are not replaced, and neither status nor log output them"))
}

/// All files of a group together and, if that fails, each alone, so that the finding shows which.
fn check_state(names: &[&str]) {
    let mut findings = Findings::default();
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Changing);
    let cases = kinds.map(|kind| (kind, "aside")).chain([(Kind::Outside, "state/keep")]);
    for (kind, through) in cases {
        let Some(failure) = error_with_state(names, kind, through) else { continue };
        let alone = |name: &&str| Some(format!("{name} ({})", error_with_state(&[name], kind, through)?));
        let alone: Vec<String> = names.iter().filter(|_| names.len() > 1).filter_map(alone).collect();
        findings.check(false, || format!("{names:?} as {kind:?} by {through}: {failure}; alone: {alone:?}"));
    }
}

/// With any kind of file at a path of the state, all jobs work, and what cannot be persisted is reported.
#[test]
fn hostile_state_files_stop_no_job() {
    need_peer!("git");
    check_state(&STATE_FILES);
}

/// The same at the paths of its directories.
#[test]
fn hostile_state_directories_stop_no_job() {
    need_peer!("git");
    check_state(&STATE_DIRECTORIES);
}

/// The lock, without which nothing is persisted.
#[test]
fn a_hostile_lock_stops_no_job() {
    need_peer!("git");
    check_state(&["lock"]);
}

/// The file that tests whether the directory is writable.
#[test]
fn a_hostile_probe_file_stops_no_job() {
    need_peer!("git");
    check_state(&["probe"]);
}

/// The path of a hostile file in the directory of a sync entry, its kind, and whether its entry can publish nevertheless.
struct Place {
    name: &'static str,
    kind: Kind,
    publishes: Publishes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Publishes {
    /// The link exists, and points to the complete revision.
    Always,
    /// The same, or the status reports what blocks it.
    OrNames,
}

/// Placeholders for a name that is not UTF-8, and for the directory of the revision that is going to be published.
const ODD: &str = "a name that is not UTF-8";
const REVISION: &str = "the revision";

/// `current` is the link.
fn places() -> Vec<Place> {
    let mut places = Vec::new();
    let mut add = |name, kinds: &[Kind], publishes| {
        places.extend(kinds.iter().map(|kind| Place { name, kind: *kind, publishes }));
    };
    let no_links = [Kind::Fifo, Kind::Zero, Kind::Directory, Kind::Sparse, Kind::Unreadable];
    add("current", &no_links, Publishes::OrNames);
    add("current", &[Kind::Loop, Kind::Outside, Kind::ToZero], Publishes::Always);
    add(".current.revisions", &[Kind::Directory], Publishes::Always);
    let no_directories = [Kind::Fifo, Kind::Zero, Kind::Loop, Kind::Outside, Kind::ToZero, Kind::Sparse];
    add(".current.revisions", &no_directories, Publishes::OrNames);
    let all = [&no_directories[..], &[Kind::Directory, Kind::Unreadable]].concat();
    add(".current.revisions/candidate-1", &all, Publishes::Always);
    add(ODD, &all, Publishes::Always);
    add(REVISION, &all, Publishes::OrNames);
    places
}

/// With any kind of file in the directory that sync publishes to, each entry publishes, or reports what blocks it; a
/// revision of another user is never used, and nothing is written through a link.
#[test]
fn hostile_files_next_to_the_link_are_harmless() {
    let (scene, mut findings) = (Scene::new(), Findings::default());
    let repository = need!(Repository::create(&scene), "git is not installed");
    // Publishing once gives the name of the revision.
    let entry = |number: usize| {
        let url = repository.file_url();
        format!(
            "  e{number}:\n    store: {{ git: {{ url: \"{url}\", ref: main, path: orders/, interval: 500ms }} }}\n    \
             publish: {{ symlink: {{ path: \"@dir@/{number}/current\" }} }}\n"
        )
    };
    let body = |numbers: std::ops::Range<usize>| {
        let stop = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }\nsync:\n";
        stop.to_owned() + &numbers.map(entry).collect::<String>()
    };
    let first = Outrigger::start(&scene, &body(1000..1001), &[]);
    let revision = fs::read_link(scene.path("1000/current")).expect("published before it was ready");
    first.terminate(PATIENCE);
    let (mut laid, places) = (Vec::new(), places());
    for (number, place) in places.iter().enumerate() {
        let directory = scene.path(&number.to_string());
        let path = match place.name {
            ODD => odd_name(&directory.join(".current.revisions"), ""),
            REVISION => directory.join(&revision),
            name => directory.join(name),
        };
        laid.extend(lay(place.kind, &path, &scene.path(&format!("aside-{number}")), b"precious"));
    }
    let outrigger = Outrigger::start_and(&scene, &body(0..places.len()), &[], Wait::Nothing);
    limit_memory(outrigger.pid());
    let live = within(SEEN, || outrigger.status_of("/live") == 200);
    findings.check(live, || format!("it is not live: {}", outrigger.stderr.text()));
    for (number, place) in places.iter().enumerate() {
        check_place(&mut findings, &scene, &outrigger, number, place);
    }
    let failure = observe(&outrigger, outrigger.worker(), SECOND);
    findings.check(failure.is_none(), || format!("next to hostile files: {failure:?}"));
    outrigger.terminate(PATIENCE);
    drop(laid);
}

/// What sync reports for one entry.
fn entry_status(outrigger: &Outrigger, number: usize) -> String {
    let text = outcomes(outrigger);
    text.split("; ").find(|part| part.contains(&format!("e{number}: "))).unwrap_or_default().to_owned()
}

fn check_place(findings: &mut Findings, scene: &Scene, outrigger: &Outrigger, number: usize, place: &Place) {
    let to = scene.path(&format!("{number}/current"));
    let shown = format!("{} as {:?}", place.name, place.kind);
    let is_published = || matches!(published(&to), Ok(Some(1)));
    let is_reported = || place.publishes == Publishes::OrNames && outcomes(outrigger).contains(&format!("/{number}/"));
    let right = within(SEEN, || is_published() || is_reported());
    findings.check(right, || format!("{shown}: {:?}, {}", published(&to), entry_status(outrigger, number)));
    let good = scene.path(&format!("aside-{number}/good"));
    if place.kind == Kind::Outside {
        let text = fs::read(&good).ok();
        findings.check(text.as_deref() == Some(b"precious"), || format!("{shown}: its target has {text:?}"));
    }
}

/// Any kind of file at the path of the admin socket stays unchanged: the start fails, or continues without the socket, and
/// reports the path.
#[test]
fn a_hostile_admin_socket_path_is_reported() {
    let mut findings = Findings::default();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Full) {
        let scene = Scene::new();
        let path = scene.path("run/admin.sock");
        let Some(_laid) = lay(kind, &path, &scene.path("aside"), b"precious") else { continue };
        let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";
        let text = configuration(&scene, body);
        let (file, program) = ("outrigger.yaml", binary());
        let outrigger = Outrigger::start_binary(&program, &scene, file, &text, &[], Wait::Nothing, |_| {});
        limit_memory(outrigger.pid());
        let is_settled = || outrigger.status_of("/ready") == 200 || !is_alive(outrigger.pid());
        if !within(SEEN, is_settled) {
            findings.check(false, || format!("{kind:?}: neither ready nor exited"));
            outrigger.kill_all();
            continue;
        }
        let output = if is_alive(outrigger.pid()) {
            let failure = observe(&outrigger, outrigger.worker(), Duration::from_millis(300));
            findings.check(failure.is_none(), || format!("{kind:?}: {failure:?}"));
            let status = outrigger.get_quietly("/status");
            status + &outrigger.finish().stderr
        } else {
            let exit = outrigger.wait(PATIENCE);
            findings.check(exit.code == 1, || format!("{kind:?}: exit {}", exit.code));
            exit.stderr
        };
        findings.check(output.contains("run/admin.sock"), || format!("{kind:?}: no message has the path: {output}"));
        findings.check(fs::symlink_metadata(&path).is_ok_and(|meta| !meta.file_type().is_socket()), || {
            format!("{kind:?}: it was replaced")
        });
        if kind == Kind::Outside {
            let text = fs::read(scene.path("aside/good")).expect("the target still exists");
            findings.check(text == b"precious", || format!("its target has {text:?}"));
        }
    }
}
