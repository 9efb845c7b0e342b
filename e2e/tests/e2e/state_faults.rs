//! State written by another version: each file of the state directory carries its version, and a file with an unsupported version
//! is not read. In: a state directory that the product itself wrote, with the versions raised. Out: a start without that file, a
//! warning with the file's name, and a count. Bounded by a handful of small files.

use std::path::{Path, PathBuf};

use crate::harness::git::Repository;
use crate::harness::process::Signal;
use crate::harness::status::warns_of;
use crate::harness::{
    Answer, Exposition, LogReceiver, Next, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, ledger_row, until, within,
};

/// All files below the state directory, except the lock and the git caches, which have git's format.
fn state_files(scene: &Scene) -> Vec<PathBuf> {
    let mut directories = vec![scene.path("state")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                directories.extend((!name.ends_with("git")).then_some(path));
            } else if name != "lock" {
                files.push(path);
            }
        }
    }
    files
}

/// The one file whose name contains the word.
#[track_caller]
fn state_file(scene: &Scene, word: &str) -> PathBuf {
    let files = state_files(scene);
    let found = files.iter().find(|path| path.to_string_lossy().contains(word)).cloned();
    found.unwrap_or_else(|| panic!("a file of {word} in {files:?}"))
}

/// The same content with an unsupported version; `None` if it carries no version.
fn with_unsupported_version(bytes: &[u8]) -> Option<Vec<u8>> {
    if let Ok(serde_json::Value::Object(mut object)) = serde_json::from_slice(bytes) {
        // A file that Outrigger never reads may carry the version of the program.
        let newer = match object.get("version")? {
            serde_json::Value::String(_) => "1000.0.0".into(),
            version => (version.as_u64()? + 1000).into(),
        };
        object.insert("version".into(), newer);
        return serde_json::to_vec(&object).ok();
    }
    slots_with_unsupported_version(bytes).or_else(|| header_with_unsupported_version(bytes))
}

/// A readable first line that ends with the version, such as `outrigger checkpoints 1`.
fn header_with_unsupported_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n').filter(|end| *end <= 200)?;
    let line = std::str::from_utf8(&bytes[..end]).ok().filter(|line| line.to_lowercase().contains("outrigger"))?;
    let start = line.rfind(|c: char| !c.is_ascii_digit())? + 1;
    let version: u64 = line[start..].parse().ok()?;
    let raised = format!("{}{}", &line[..start], version + 1000);
    Some([raised.as_bytes(), &bytes[end..]].concat())
}

/// Slots of 64 bytes, each with the mark `ORC1` and a hash of the slot (FNV-1a, 64 bits) at its end.
fn slots_with_unsupported_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut slots = bytes.to_vec();
    let mut found = false;
    for slot in slots.chunks_exact_mut(64).filter(|slot| slot[52..56] == *b"1CRO") {
        found = true;
        slot[52] = b'9';
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = slot[..56].iter().fold(0xcbf2_9ce4_8422_2325, step);
        slot[56..].copy_from_slice(&hash.to_le_bytes());
    }
    found.then_some(slots)
}

#[track_caller]
fn raise_version(path: &Path) {
    let bytes = std::fs::read(path).expect("the file exists");
    let raised = with_unsupported_version(&bytes);
    let raised = raised.unwrap_or_else(|| panic!("{} has no version: {}", path.display(), bytes.escape_ascii()));
    std::fs::write(path, raised).expect("the file is writable");
}

/// A warning contains the file's name, and a counter of Outrigger's metrics counts the file.
#[track_caller]
fn assert_ignored(outrigger: &Outrigger, path: &Path) {
    let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    until(PATIENCE, "a warning contains the file's name", || warns_of(&outrigger.stderr.text(), &name));
    let page = Exposition::of(&outrigger.admin).expect("the admin listener has metrics");
    let counted = page.sum(|series| series.name.starts_with("outrigger_state_") && series.name.ends_with("_total"));
    assert_eq!(counted, Some(1.0), "exactly one file is counted");
}

const BODY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 4s } }
logs:
  sources: { app: { stdio: {} }, files: { file: { include: ["@dir@/in.log"] } } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 1MiB, max_age: 50ms } } }
"#;

/// The checkpoints have another version: the log file is read from its beginning instead of from a guessed offset.
/// Guarantee: newer-state-not-read
#[test]
fn unsupported_checkpoints_are_not_read() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    scene.write("in.log", "n=000000\nn=000001\n");
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    receiver.wait_for(2, PATIENCE);
    until(PATIENCE, "both are delivered", || ledger_row(&outrigger.admin, "logs.sinks.main")["delivered"] == 2);
    outrigger.finish();
    let path = state_file(&scene, "checkpoints");
    raise_version(&path);
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    receiver.wait_for(4, PATIENCE);
    assert_eq!(receiver.numbers("n="), [0, 1, 0, 1]);
    assert_ignored(&outrigger, &path);
    outrigger.finish();
    let outrigger = Outrigger::start(&scene, BODY, &["sh", "-c", "echo n=000002; exec sleep 300"]);
    receiver.wait_for(5, PATIENCE);
    assert_eq!(receiver.numbers("n="), [0, 1, 0, 1, 2], "checkpoints of this version are used from then on");
    outrigger.finish();
}

/// The backlog of an earlier run would be sent before the lines of this run.
/// Guarantee: newer-state-not-read
#[test]
fn an_unsupported_backlog_is_not_delivered() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(503)));
    scene.set("receiver", receiver.address());
    let outrigger = Outrigger::start_and(&scene, BODY, &["sh", "-c", "echo n=000000; exec sleep 300"], Wait::Started);
    receiver.wait_for_refused(1, PATIENCE);
    outrigger.signal(Signal::TERM);
    outrigger.wait(PATIENCE);
    let path = state_file(&scene, "stdout");
    raise_version(&path);
    receiver.answer(Answer::Accept);
    let outrigger = Outrigger::start_and(&scene, BODY, &["sh", "-c", "echo n=000001; exec sleep 300"], Wait::Started);
    receiver.wait_for(1, PATIENCE);
    assert_eq!(receiver.messages(), ["n=000001"]);
    assert_ignored(&outrigger, &path);
    outrigger.finish();
}

/// Lines without a mark are from the previous release: they are sent first.
#[test]
fn the_previous_releases_backlog_is_delivered() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    scene.write("state/logs/backlog/app.stdout", "n=000000\nn=000001\n");
    let outrigger = Outrigger::start_and(&scene, BODY, &["sh", "-c", "echo n=000002; exec sleep 300"], Wait::Started);
    receiver.wait_for(3, PATIENCE);
    assert_eq!(receiver.numbers("n="), [0, 1, 2]);
    until(PATIENCE, "the backlog file is removed", || !scene.path("state/logs/backlog/app.stdout").exists());
    outrigger.finish();
}

/// Notifications are recorded across restarts. A record with an unsupported version is not read: then the app is notified again.
/// Guarantee: each-revision-notified-once
#[test]
fn only_unsupported_records_repeat_notifications() {
    let (scene, app) = (Scene::new(), RawApp::answering(&[], Next::Keep));
    let _repository = need!(Repository::create(&scene), "git is not installed");
    scene.set("notified", app.address());
    let body = "sync:\n  settings: { store: { git: { url: \"file://@dir@/git/config.git\", ref: main, path: orders/, interval: 100ms } }, \
                publish: { symlink: { path: \"@dir@/settings\" } }, notify: [ { http: { url: \"http://@notified@/\" } } ] }\n";
    let start = || Outrigger::start(&scene, body, &[]);
    let outrigger = start();
    until(PATIENCE, "the app is notified", || app.seen_count() == 1);
    outrigger.finish();
    let path = state_file(&scene, "state.json");
    let text = std::fs::read_to_string(&path).expect("the file exists");
    let outrigger = start();
    until(PATIENCE, "the store was polled", || outrigger.get("/status").json()["health"] == "ok");
    assert!(!within(SECOND, || app.seen_count() > 1), "no notification is repeated");
    outrigger.finish();
    std::fs::write(&path, text).expect("the file is writable");
    raise_version(&path);
    let outrigger = start();
    until(PATIENCE, "the app is notified again", || app.seen_count() == 2);
    assert_ignored(&outrigger, &path);
    outrigger.finish();
}

/// So that a later binary can recognize the format.
#[test]
fn each_state_file_carries_a_version() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let _repository = need!(Repository::create(&scene), "git is not installed");
    scene.set("receiver", receiver.address());
    scene.port("closed");
    scene.write("in.log", "n=000000\n");
    let sync = "sync:\n  settings: { store: { git: { url: \"file://@dir@/git/config.git\", ref: main, path: orders/, interval: 1s } }, \
                publish: { symlink: { path: \"@dir@/settings\" } }, notify: [ { signal: SIGHUP }, { http: { url: \"http://127.0.0.1:@closed@/\" } } ] }\n";
    let script = "trap '' HUP; echo n=000001; while [ ! -e @go@ ]; do sleep 0.05; done; echo n=000002; exit 3";
    let script = script.replace("@go@", &scene.text_path("go"));
    let outrigger = Outrigger::start(&scene, &format!("{BODY}{sync}"), &["sh", "-c", &script]);
    receiver.wait_for(2, PATIENCE);
    let has = |word: &str| state_files(&scene).iter().any(|path| path.to_string_lossy().contains(word));
    until(PATIENCE, "the delivered notification is recorded", || has("sync"));
    receiver.answer(Answer::Status(503));
    scene.write("go", "");
    assert_eq!(outrigger.wait(PATIENCE).code, 3);
    let files = state_files(&scene);
    assert!(files.len() >= 4, "checkpoints, lines, notifications and a black box: {files:?}");
    for path in files {
        let bytes = std::fs::read(&path).expect("the file exists");
        assert!(
            with_unsupported_version(&bytes).is_some(),
            "{} has no version: {}",
            path.display(),
            bytes.escape_ascii()
        );
    }
}
