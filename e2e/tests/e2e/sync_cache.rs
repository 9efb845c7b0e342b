//! The repository into which a store fetches is a cache: whatever happens to it, the next commit is published. In: an aborted
//! fetch, some fifty kinds of damage, and content that another process put there. Out: the published revision. Bounded by one
//! commit for each kind of damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::git::objects::falsify;
use crate::harness::git::relay::{Pace, Relay};
use crate::harness::git::{Repository, git, published, published_commit};
use crate::harness::process::{Running, Signal, send_signal};
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, until, within};

const NO_DAEMON: &str = "git-daemon is not installed";

const SETTINGS: &str = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: main, path: orders/, interval: 100ms } }, publish: { symlink: { path: "@dir@/out/settings" } } }
"#;

/// A repository behind a relay, and the Outrigger that follows it.
struct Followed {
    scene: Scene,
    repository: Repository,
    relay: Relay,
    _daemon: Running,
}

impl Followed {
    fn create() -> Option<Self> {
        let scene = Scene::new();
        let repository = Repository::create(&scene)?;
        let (daemon, url) = repository.daemon(&scene)?;
        let relay = Relay::start(&format!("127.0.0.1:{}", scene.value("git_daemon")), Pace::Free);
        scene.set("url", url.replace(&format!("127.0.0.1:{}", scene.value("git_daemon")), &relay.address()));
        Some(Self { scene, repository, relay, _daemon: daemon })
    }

    fn start(&self) -> Outrigger {
        Outrigger::start(&self.scene, SETTINGS, &[])
    }

    fn is_at(&self, generation: usize) -> bool {
        published(&self.scene.path("out/settings")) == Ok(Some(generation))
    }

    #[track_caller]
    fn await_generation(&self, generation: usize, after: &str) {
        until(PATIENCE, &format!("generation {generation} after {after}"), || self.is_at(generation));
    }

    fn cache(&self) -> PathBuf {
        self.scene.path("state/sync/settings/git")
    }
}

/// The relay stalls a fetch in the middle of the pack; then the worker is killed, Outrigger is stopped, or all of its processes
/// are killed: each time the next worker publishes this revision and the one after it.
#[test]
fn an_aborted_fetch_stops_no_later_one() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let mut outrigger = followed.start();
    followed.await_generation(1, "the start");
    for (generation, end) in [(2, "kill -9 of the worker"), (4, "a stop"), (6, "kill -9 of all")] {
        followed.repository.add_noise(1 << 20);
        followed.relay.pace(Pace::SilentAfter(300_000));
        let held = followed.relay.silent();
        followed.repository.push(generation);
        followed.relay.await_silent(held + 1);
        outrigger = match end {
            "a stop" => {
                let exit = outrigger.terminate(40 * SECOND);
                assert!(exit.took < 10 * SECOND, "a fetch does not delay the stop: {:?}", exit.took);
                followed.relay.pace(Pace::Free);
                followed.start()
            }
            "kill -9 of all" => {
                outrigger.kill_all();
                followed.relay.pace(Pace::Free);
                followed.start()
            }
            _ => {
                let worker = outrigger.worker();
                send_signal(worker, Signal::KILL);
                followed.relay.pace(Pace::Free);
                outrigger.await_other(worker, PATIENCE);
                outrigger
            }
        };
        followed.await_generation(generation, end);
        followed.repository.push(generation + 1);
        followed.await_generation(generation + 1, end);
    }
    outrigger.finish();
}

/// A kind of damage: its name, and the function that causes it in a bare repository.
pub type Damage = (&'static str, fn(&Path));

pub const DAMAGES: &[Damage] = &[
    ("a lock of `shallow`", |cache| write(cache, "shallow.lock", "")),
    ("a lock of the ref", |cache| write(cache, "refs/outrigger/target.lock", "")),
    ("a lock of `packed-refs`", |cache| write(cache, "packed-refs.lock", "")),
    ("an empty HEAD", |cache| write(cache, "HEAD", "")),
    ("no HEAD", |cache| remove(&cache.join("HEAD"))),
    ("a HEAD that refers to itself", |cache| write(cache, "HEAD", "ref: HEAD\n")),
    ("a directory as HEAD", |cache| directory_for(cache, "HEAD")),
    ("an empty config", |cache| write(cache, "config", "")),
    ("no config", |cache| remove(&cache.join("config"))),
    ("a config of objects with another hash", |cache| {
        write(
            cache,
            "config",
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n",
        );
    }),
    ("a directory as config", |cache| directory_for(cache, "config")),
    ("no objects", |cache| remove(&cache.join("objects"))),
    ("a file as objects", |cache| file_for(cache, "objects")),
    ("objects that were deleted", |cache| remove(&cache.join("objects/pack"))),
    ("a file as the directory of packs", |cache| file_for(cache, "objects/pack")),
    ("truncated packs", |cache| packs(cache, "pack", |bytes| bytes.truncate(bytes.len() / 2))),
    ("empty packs", |cache| packs(cache, "pack", Vec::clear)),
    ("packs with corrupt bytes", |cache| packs(cache, "pack", |bytes| flip(bytes))),
    ("truncated indices", |cache| packs(cache, "idx", |bytes| bytes.truncate(bytes.len() / 2))),
    ("empty indices", |cache| packs(cache, "idx", Vec::clear)),
    ("indices with corrupt bytes", |cache| packs(cache, "idx", |bytes| flip(bytes))),
    ("packs without an index", |cache| each(cache, "idx", remove)),
    ("indices without a pack", |cache| each(cache, "pack", remove)),
    ("a corrupt multi-pack-index", |cache| write(cache, "objects/pack/multi-pack-index", "MIDXnothing")),
    ("missing alternates", |cache| write(cache, "objects/info/alternates", "/no/such/objects\n")),
    ("a corrupt commit-graph", |cache| write(cache, "objects/info/commit-graph", "CGPHnothing")),
    ("no refs", |cache| remove(&cache.join("refs"))),
    ("a file as refs", |cache| file_for(cache, "refs")),
    ("an empty ref", |cache| write(cache, "refs/outrigger/target", "")),
    ("a corrupt ref", |cache| write(cache, "refs/outrigger/target", "nothing\n")),
    ("a ref to a missing object", |cache| write(cache, "refs/outrigger/target", &format!("{}\n", "1".repeat(40)))),
    ("a ref to itself", |cache| write(cache, "refs/outrigger/target", "ref: refs/outrigger/target\n")),
    ("a directory as the ref", |cache| directory_for(cache, "refs/outrigger/target")),
    ("a file as the directory of the ref", |cache| file_for(cache, "refs/outrigger")),
    ("a corrupt `shallow`", |cache| write(cache, "shallow", "\0nothing\n")),
    ("a `shallow` with a missing object", |cache| write(cache, "shallow", &format!("{}\n", "2".repeat(40)))),
    ("a directory as `shallow`", |cache| directory_for(cache, "shallow")),
    ("corrupt `packed-refs`", |cache| write(cache, "packed-refs", "# pack-refs with: peeled\n\0\u{1}zz\n")),
    ("a directory as `packed-refs`", |cache| directory_for(cache, "packed-refs")),
    ("an empty directory", |cache| directory_for(cache, "")),
    ("a file", |cache| file_for(cache, "")),
    ("a link to nothing", |cache| {
        remove(cache);
        std::os::unix::fs::symlink("/no/such/directory", cache).expect("the state directory is writable");
    }),
    ("a read-only directory", |cache| mode(cache, 0o555)),
    ("an unreadable directory", |cache| mode(cache, 0)),
    ("read-only packs", |cache| mode(&cache.join("objects/pack"), 0o555)),
    ("unreadable objects", |cache| mode(&cache.join("objects"), 0)),
    ("read-only refs", |cache| mode(&cache.join("refs/outrigger"), 0o500)),
    ("an unreadable HEAD", |cache| mode(&cache.join("HEAD"), 0)),
];

fn write(cache: &Path, name: &str, text: &str) {
    let path = cache.join(name);
    fs::create_dir_all(path.parent().expect("the path is in the cache")).expect("the cache is writable");
    fs::write(path, text).expect("the cache is writable");
}

fn remove(path: &Path) {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    // The path may not exist.
    removed.ok();
}

fn directory_for(cache: &Path, name: &str) {
    let path = if name.is_empty() { cache.to_owned() } else { cache.join(name) };
    remove(&path);
    fs::create_dir_all(path.join("inside")).expect("the cache is writable");
}

fn file_for(cache: &Path, name: &str) {
    let path = if name.is_empty() { cache.to_owned() } else { cache.join(name) };
    remove(&path);
    fs::write(path, "a file\n").expect("the cache is writable");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the test owns the file");
}

fn each(cache: &Path, kind: &str, change: impl Fn(&Path)) {
    let entries = fs::read_dir(cache.join("objects/pack")).into_iter().flatten().flatten();
    let of_kind = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|have| have == kind));
    of_kind.for_each(|path| change(&path));
}

fn packs(cache: &Path, kind: &str, change: fn(&mut Vec<u8>)) {
    each(cache, kind, |path| {
        let mut bytes = fs::read(path).expect("the cache can be read");
        change(&mut bytes);
        // git creates these files read-only, and a mapped file must not change: a new file replaces it.
        remove(path);
        fs::write(path, bytes).expect("the cache is writable");
    });
}

fn flip(bytes: &mut [u8]) {
    bytes.iter_mut().skip(8).step_by(7).for_each(|byte| *byte = !*byte);
}

/// Causes each kind of damage, pushes a commit, and returns the kinds after which it was not published.
fn unhealed(followed: &Followed, damages: &[&Damage], at_start: bool) -> Vec<String> {
    let mut unhealed = Vec::new();
    let mut outrigger = followed.start();
    followed.await_generation(1, "the start");
    for (number, (name, damage)) in damages.iter().enumerate() {
        let generation = 2 + number;
        if at_start {
            outrigger.kill_all();
            damage(&followed.cache());
            followed.repository.push(generation);
            outrigger = Outrigger::start_and(&followed.scene, SETTINGS, &[], Wait::Nothing);
        } else {
            damage(&followed.cache());
            followed.repository.push(generation);
        }
        if !within(HEALED, || followed.is_at(generation)) {
            unhealed.push(format!("{name}: {:?}", crate::harness::git::sync_state(&outrigger)));
            outrigger.kill_all();
            restore_modes(&followed.cache());
            remove(&followed.cache());
            outrigger = followed.start();
            followed.await_generation(generation, "a new cache");
        }
    }
    outrigger.finish();
    unhealed
}

/// The store is polled ten times a second; re-creating a cache costs one more fetch.
pub const HEALED: Duration = Duration::from_secs(6);

/// Restores the permissions that a damage removed, so that the cache can be deleted.
fn restore_modes(cache: &Path) {
    if !cache.is_dir() {
        return;
    }
    mode(cache, 0o755);
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        restore_modes(&entry.path());
    }
}

/// Damage while Outrigger runs.
#[test]
fn a_cache_damaged_while_in_use_is_recreated() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let damages: Vec<&Damage> = DAMAGES.iter().collect();
    assert_eq!(unhealed(&followed, &damages, false), Vec::<String>::new());
}

/// Damage that exists when Outrigger starts: every fourth kind, since each costs a start.
#[test]
fn a_cache_damaged_before_the_start_is_recreated() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let damages: Vec<&Damage> = DAMAGES.iter().step_by(4).collect();
    assert_eq!(unhealed(&followed, &damages, true), Vec::<String>::new());
}

/// The cache has all objects of the next commit, but under the ID of one file there is different content.
/// Guarantee: content-matches-commit
#[test]
fn content_with_a_wrong_hash_is_not_published() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let outrigger = followed.start();
    followed.await_generation(1, "the start");
    outrigger.kill_all();
    followed.repository.push(2);
    plant(&followed.repository, &followed.cache());
    let outrigger = followed.start();
    until(PATIENCE, "the next commit", || {
        let published = published_commit(&followed.scene.path("out/settings"));
        published.is_some_and(|name| name.starts_with(&followed.repository.id_of("main")))
    });
    assert_eq!(published(&followed.scene.path("out/settings")), Ok(Some(2)), "the content is the commit's");
    outrigger.finish();
}

/// Copies all objects of a repository into another one, with different content under the ID of one file of the current commit.
fn plant(repository: &Repository, into: &Path) {
    let (from, objects) = (format!("{}/objects/.", repository.bare().display()), into.join("objects"));
    let copied = Command::new("cp").args(["-r", &from]).arg(objects).status();
    assert!(copied.is_ok_and(|status| status.success()), "the objects can be copied");
    let other = b"generation=999999\n";
    falsify(into, &repository.id_of("main:orders/a.conf"), &format!("blob {}\0", other.len()), other);
}

/// The same without a state directory to write to.
fn start_without_state(followed: &Followed, temporary: &Path) -> Outrigger {
    followed.scene.write("no-directory", "");
    let body = format!("{SETTINGS}state: {{ dir: \"@dir@/no-directory/state\" }}\n");
    Outrigger::start_with(&followed.scene, &body, &[], Wait::Ready, |command| {
        command.env("TMPDIR", temporary);
    })
}

/// Without a state directory the cache is in the temporary directory, where any user can create files: another user has put a
/// repository with different content there, under each predictable name.
#[test]
fn a_planted_repository_in_tmp_is_not_used() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let (scene, repository) = (&followed.scene, &followed.repository);
    let temporary = scene.path("tmp");
    let planted = temporary.join("planted.git");
    git(&scene.path("git"), &["init", "--quiet", "--bare", &planted.display().to_string()]);
    plant(repository, &planted);
    let next = Running::start(&["true"]).pid();
    for pid in next..next + 3000 {
        let name = format!("outrigger-{pid}-settings.git");
        std::os::unix::fs::symlink(&planted, temporary.join(name)).expect("the temporary directory is writable");
    }
    let outrigger = start_without_state(&followed, &temporary);
    let published_commit = published_commit(&scene.path("out/settings"));
    assert!(published_commit.is_some_and(|name| name.starts_with(&repository.id_of("main"))));
    assert_eq!(published(&scene.path("out/settings")), Ok(Some(1)), "the content is the commit's");
    outrigger.finish();
}
