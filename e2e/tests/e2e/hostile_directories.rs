//! Directories that others may write to: of log files, of the state, of what sync publishes, of the admin socket. In
//! them lie pipes, devices, directories, links, huge, forbidden and changing files, and names that are not UTF-8;
//! expected is that what is good in them works beside that, and that nothing is written through a link. Bounded by one
//! start for each kind.

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

/// How soon something new in a directory is seen, with a look five times a second or so.
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

/// Among files that match, whatever they are, the good ones are read; so are those that come later, and one whose name
/// is not UTF-8.
/// covers: faults 9
#[test]
fn hostile_log_files_hold_nobody_up() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    let (directory, aside) = (scene.path("in"), scene.path("aside"));
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Changing);
    let lay_one = |kind: Kind| lay(kind, &directory.join(format!("{kind:?}.log")), &aside, b"n=000009\n");
    let laid: Vec<Laid> = kinds.filter_map(lay_one).collect();
    scene.write("in/good.log", "n=000000\n");
    fs::write(odd_name(&directory, ".log"), "n=000001\n").expect("the scene takes files");
    let outrigger = Outrigger::start(&scene, LOGS, &[]);
    limit_memory(outrigger.pid());
    let worker = outrigger.worker();
    let came = |number: usize| within(SEEN, || receiver.numbers("n=").contains(&number));
    findings.check(came(0), || "the good file is not read".to_owned());
    findings.check(came(1), || "the file whose name is not UTF-8 is not read".to_owned());
    let error_text = observe(&outrigger, worker, SECOND);
    let stderr = outrigger.stderr.clone();
    findings.check(error_text.is_none(), || {
        format!("with hostile files among the logs: {error_text:?}, {}", stderr.text())
    });
    for (name, what) in [("Fifo.log", "a named pipe"), ("Zero.log", "a device"), ("ToZero.log", "a device")] {
        let path = directory.join(name).display().to_string();
        let said = || stderr.lines().iter().any(|line| line.contains(&path) && line.contains(what));
        findings.check(!directory.join(name).exists() || within(SEEN, said), || {
            format!("nothing says that {path} is {what}")
        });
    }
    scene.write("in/later.log", "n=000002\n");
    findings.check(came(2), || "a file that came later is not read".to_owned());
    let exit = outrigger.finish();
    findings.check(exit.took < 2 * SEEN, || format!("the end took {:?}", exit.took));
    drop(laid);
}

/// A path without wildcards means one file: what lies there and is none is a fault of the source, until a file is there.
/// covers: faults 9
#[test]
fn a_named_log_file_that_is_none_is_degraded() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    let outrigger = Outrigger::start(&scene, &LOGS.replace("*.log", "app.log"), &[]);
    let path = scene.path("in/app.log");
    for (number, kind) in [Kind::Fifo, Kind::Zero, Kind::Directory, Kind::ToZero].into_iter().enumerate() {
        let Some(laid) = lay(kind, &path, &scene.path("aside"), b"") else { continue };
        let shown = path.display().to_string();
        let reports = within(SEEN, || is_degraded(&outrigger, "logs.sources.files", &shown));
        findings.check(reports, || format!("{kind:?} is not said"));
        drop(laid);
        scene.write("in/app.log", format!("n={number:06}\n"));
        let read = within(SEEN, || receiver.numbers("n=").contains(&number));
        findings.check(read, || format!("the file after {kind:?} is not read"));
        fs::remove_file(&path).expect("it is our file");
    }
    outrigger.finish();
}

/// A file that becomes a pipe between two looks at it, or shrinks and grows while it is read, takes nothing from the
/// others.
/// covers: faults 9
#[test]
fn changing_log_files_hold_nobody_up() {
    let (scene, receiver, mut findings) = (Scene::new(), LogReceiver::start(), Findings::default());
    scene.set("receiver", receiver.address());
    scene.write("in/good.log", "n=000000\n");
    let outrigger = Outrigger::start(&scene, LOGS, &[]);
    limit_memory(outrigger.pid());
    let worker = outrigger.worker();
    let laid = ["1.log", "2.log", "3.log", "4.log"].map(|name| {
        lay(Kind::Swapped, &scene.path("in").join(name), &scene.path(&format!("aside {name}")), b"a line\n")
    });
    let mut growing = fs::File::create(scene.path("in/growing.log")).expect("the scene takes files");
    let mut error_text = None;
    for _ in 0..30 {
        growing.write_all(&b"a line\n".repeat(20_000)).expect("the scene takes bytes");
        error_text = error_text.or(observe(&outrigger, worker, Duration::from_millis(50)));
        growing.set_len(7).expect("the file can be truncated");
    }
    findings.check(error_text.is_none(), || format!("with changing files among the logs: {error_text:?}"));
    scene.write("in/later.log", "n=000001\n");
    let came = within(SEEN, || receiver.numbers("n=").contains(&1));
    findings.check(came, || "a file that came later is not read".to_owned());
    drop(laid);
    outrigger.terminate(PATIENCE);
}

/// Something of each job that uses the state directory.
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
    notify: [ { http: { url: "http://@receiver@/told" } } ]
"#;

const APP: [&str; 3] = ["sh", "-c", "echo n=000000; exec sleep 300"];

/// The files of the state directory, but for those that stand in the way of all others.
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

/// Starts beside hostile files of the state. The first trouble, or that somebody was written to through a link.
fn trouble_with_state(names: &[&str], kind: Kind, through: &str) -> Option<String> {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let repository = Repository::create(&scene)?;
    // A store that is reached by a network has a cache.
    let daemon = repository.daemon(&scene);
    scene.set("url", daemon.as_ref().map_or_else(|| repository.file_url(), |(_, url)| url.clone()));
    scene.set("receiver", receiver.address());
    scene.write("in/good.log", "n=000001\n");
    scene.write("state/mark", "");
    fs::write(odd_name(&scene.path("state"), ""), "odd").expect("the scene takes files");
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
        let reports = outcomes(&outrigger);
        outrigger.kill_all();
        return Some(format!("not ready: {reports}"));
    }
    if !is_alive(outrigger.pid()) {
        let exit = outrigger.wait(PATIENCE);
        let named = names.iter().any(|name| exit.stderr.contains(name));
        return (exit.code != 1 || !named).then(|| format!("it ended with {}: {}", exit.code, exit.stderr));
    }
    let error_text = observe(&outrigger, outrigger.worker(), Duration::from_millis(300));
    let both = || [0, 1].iter().all(|number| receiver.numbers("n=").contains(number));
    let error_text = error_text
        .or((!within(SEEN, both)).then(|| format!("of the lines came {:?}", receiver.messages())))
        .or((!within(SEEN, || published(&scene.path("to/current")) == Ok(Some(1)))).then(|| "not published".to_owned()))
        .or_else(|| unsaid(&scene, &outrigger, names, kind))
        .or((kind == Kind::Outside && fs::read(aside.join("good")).ok().as_deref() != Some(b"precious"))
            .then(|| "what a link leads to was written to".to_owned()));
    if error_text.is_some() {
        outrigger.kill_all();
        return error_text;
    }
    let exit = outrigger.finish();
    (exit.took > SEEN).then(|| format!("the end took {:?}", exit.took))
}

/// A file that stands in the way of what should be kept is replaced by a good one, or the status or the log names it.
fn unsaid(scene: &Scene, outrigger: &Outrigger, names: &[&str], kind: Kind) -> Option<String> {
    let reports = outrigger.get("/status").text() + &outrigger.stderr.text();
    let is_in_the_way = |name: &&&str| {
        let Ok(meta) = fs::symlink_metadata(scene.path("state").join(name)) else { return false };
        let is_wrong = match kind {
            Kind::Fifo => meta.file_type().is_fifo(),
            Kind::Zero | Kind::Full => meta.file_type().is_char_device(),
            Kind::Loop | Kind::ToZero => meta.is_symlink(),
            Kind::Directory => meta.is_dir() && !name.ends_with("git") && !STATE_DIRECTORIES.contains(*name),
            _ => false,
        };
        // A black box is written when something goes wrong, the stderr of this app is empty, and a path needs no cache.
        let needs_cache = !scene.value("url").starts_with("file:");
        let is_unused = name.starts_with("black_box") || name.ends_with("app.stderr");
        let is_used = !is_unused && (needs_cache || !name.ends_with("git"));
        // `lock` and `probe` are words of their own, too.
        let is_named =
            if name.contains('.') { reports.contains(**name) } else { reports.contains(&format!("state/{name}")) };
        is_wrong && is_used && !is_named
    };
    let silent: Vec<_> = names.iter().filter(is_in_the_way).collect();
    (!silent.is_empty()).then(|| format!("{silent:?} stay in the way, and neither status nor log names them"))
}

/// All files of a group at once and, where that has trouble, each alone, so that the finding says which.
fn check_state(names: &[&str]) {
    let mut findings = Findings::default();
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Changing);
    let cases = kinds.map(|kind| (kind, "aside")).chain([(Kind::Outside, "state/keep")]);
    for (kind, through) in cases {
        let Some(error_text) = trouble_with_state(names, kind, through) else { continue };
        let alone = |name: &&str| Some(format!("{name} ({})", trouble_with_state(&[name], kind, through)?));
        let alone: Vec<String> = names.iter().filter(|_| names.len() > 1).filter_map(alone).collect();
        findings.check(false, || format!("{names:?} as {kind:?} by {through}: {error_text}; alone: {alone:?}"));
    }
}

/// Whatever lies where the state should be kept: all jobs work, and what cannot be kept is said.
/// covers: faults 9
#[test]
fn hostile_state_files_stop_no_job() {
    need_peer!("git");
    check_state(&STATE_FILES);
}

/// The same in the place of its directories.
/// covers: faults 9
#[test]
fn hostile_state_directories_stop_no_job() {
    need_peer!("git");
    check_state(&STATE_DIRECTORIES);
}

/// The lock, without which nothing is kept.
/// covers: faults 9
#[test]
fn a_hostile_lock_stops_no_job() {
    need_peer!("git");
    check_state(&["lock"]);
}

/// The file by which we try whether the directory can be written.
/// covers: faults 9
#[test]
fn a_hostile_probe_file_stops_no_job() {
    need_peer!("git");
    check_state(&["probe"]);
}

/// Where a hostile file lies in the directory of a sync entry, what it is, and whether its entry can publish all the
/// same.
struct Place {
    name: &'static str,
    kind: Kind,
    publishes: Publishes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Publishes {
    /// The link is there, and leads to all of the revision.
    Always,
    /// So it is, or the status names what stands in the way.
    OrNames,
}

/// Stand for a name that is not UTF-8, and for the directory of the revision that is going to be published.
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

/// Whatever lies in the directory that sync publishes to: each entry publishes, or names what stands in its way; a
/// revision is never taken from somebody else, and no link is written through.
/// covers: faults 9
#[test]
fn hostile_files_beside_a_published_link_are_harmless() {
    let (scene, mut findings) = (Scene::new(), Findings::default());
    let repository = need!(Repository::create(&scene), "git is not installed");
    // What a revision is called is found by publishing it once.
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
    let error_text = observe(&outrigger, outrigger.worker(), SECOND);
    findings.check(error_text.is_none(), || format!("beside hostile files: {error_text:?}"));
    outrigger.terminate(PATIENCE);
    drop(laid);
}

/// What sync says of one entry.
fn verdict_of(outrigger: &Outrigger, number: usize) -> String {
    let text = outcomes(outrigger);
    text.split("; ").find(|part| part.contains(&format!("e{number}: "))).unwrap_or_default().to_owned()
}

fn check_place(findings: &mut Findings, scene: &Scene, outrigger: &Outrigger, number: usize, place: &Place) {
    let to = scene.path(&format!("{number}/current"));
    let shown = format!("{} as {:?}", place.name, place.kind);
    let is_published = || matches!(published(&to), Ok(Some(1)));
    let names = || place.publishes == Publishes::OrNames && outcomes(outrigger).contains(&format!("/{number}/"));
    let right = within(SEEN, || is_published() || names());
    findings.check(right, || format!("{shown}: {:?}, {}", published(&to), verdict_of(outrigger, number)));
    let good = scene.path(&format!("aside-{number}/good"));
    if place.kind == Kind::Outside {
        let text = fs::read(&good).ok();
        findings.check(text.as_deref() == Some(b"precious"), || format!("{shown}: its target holds {text:?}"));
    }
}

/// Whatever lies where the admin socket should be is left alone: the start is refused, or goes on without it, and
/// names the path.
/// covers: faults 9
#[test]
fn a_hostile_admin_socket_path_is_named() {
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
        let is_there = || outrigger.status_of("/ready") == 200 || !is_alive(outrigger.pid());
        if !within(SEEN, is_there) {
            findings.check(false, || format!("{kind:?}: neither ready nor ended"));
            outrigger.kill_all();
            continue;
        }
        let reports = if is_alive(outrigger.pid()) {
            let error_text = observe(&outrigger, outrigger.worker(), Duration::from_millis(300));
            findings.check(error_text.is_none(), || format!("{kind:?}: {error_text:?}"));
            let status = outrigger.get_quietly("/status");
            status + &outrigger.finish().stderr
        } else {
            let exit = outrigger.wait(PATIENCE);
            findings.check(exit.code == 1, || format!("{kind:?}: exit {}", exit.code));
            exit.stderr
        };
        findings.check(reports.contains("run/admin.sock"), || format!("{kind:?}: nobody names the path: {reports}"));
        findings.check(fs::symlink_metadata(&path).is_ok_and(|meta| !meta.file_type().is_socket()), || {
            format!("{kind:?}: it was replaced")
        });
        if kind == Kind::Outside {
            let kept = fs::read(scene.path("aside/good")).expect("it is still there");
            findings.check(kept == b"precious", || format!("its target holds {kept:?}"));
        }
    }
}
