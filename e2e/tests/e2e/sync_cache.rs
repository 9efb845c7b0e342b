//! The repository of our own into which a store fetches is a cache: whatever happens to it, the next commit is published. In come a
//! fetch that is cut off, some fifty kinds of damage, and content that somebody else put there; out goes what is published. Bounded
//! by one commit for each kind of damage.

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

/// A repository behind a relay, and the program that follows it.
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

/// A fetch is under way, which the relay holds back in the middle of the pack; then the worker is killed, the program is stopped,
/// all of it is killed: each time the revision is published by whoever comes next, and so is the one after it.
/// covers: faults 3
#[test]
fn a_fetch_that_is_cut_off_stops_no_later_one() {
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
                assert!(exit.took < 10 * SECOND, "a fetch holds no stop up: {:?}", exit.took);
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

/// A kind of damage: its name, and what makes it in a bare repository.
pub type Damage = (&'static str, fn(&Path));

pub const DAMAGES: &[Damage] = &[
    ("a lock beside `shallow`", |cache| write(cache, "shallow.lock", "")),
    ("a lock beside the ref", |cache| write(cache, "refs/outrigger/target.lock", "")),
    ("a lock beside `packed-refs`", |cache| write(cache, "packed-refs.lock", "")),
    ("an empty HEAD", |cache| write(cache, "HEAD", "")),
    ("no HEAD", |cache| remove(&cache.join("HEAD"))),
    ("a HEAD that names itself", |cache| write(cache, "HEAD", "ref: HEAD\n")),
    ("a folder as HEAD", |cache| folder_for(cache, "HEAD")),
    ("an empty config", |cache| write(cache, "config", "")),
    ("no config", |cache| remove(&cache.join("config"))),
    ("a config of objects with another hash", |cache| {
        write(
            cache,
            "config",
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n",
        );
    }),
    ("a folder as config", |cache| folder_for(cache, "config")),
    ("no objects", |cache| remove(&cache.join("objects"))),
    ("a file as objects", |cache| file_for(cache, "objects")),
    ("objects that were deleted", |cache| remove(&cache.join("objects/pack"))),
    ("a file as the folder of packs", |cache| file_for(cache, "objects/pack")),
    ("packs cut off", |cache| packs(cache, "pack", |bytes| bytes.truncate(bytes.len() / 2))),
    ("empty packs", |cache| packs(cache, "pack", Vec::clear)),
    ("packs with other bytes in them", |cache| packs(cache, "pack", |bytes| flip(bytes))),
    ("indices cut off", |cache| packs(cache, "idx", |bytes| bytes.truncate(bytes.len() / 2))),
    ("empty indices", |cache| packs(cache, "idx", Vec::clear)),
    ("indices with other bytes in them", |cache| packs(cache, "idx", |bytes| flip(bytes))),
    ("packs without an index", |cache| each(cache, "idx", remove)),
    ("indices without a pack", |cache| each(cache, "pack", remove)),
    ("an index of several packs of other bytes", |cache| write(cache, "objects/pack/multi-pack-index", "MIDXnothing")),
    ("alternates that are not there", |cache| write(cache, "objects/info/alternates", "/no/such/objects\n")),
    ("a graph of commits of other bytes", |cache| write(cache, "objects/info/commit-graph", "CGPHnothing")),
    ("no refs", |cache| remove(&cache.join("refs"))),
    ("a file as refs", |cache| file_for(cache, "refs")),
    ("an empty ref", |cache| write(cache, "refs/outrigger/target", "")),
    ("a ref of other bytes", |cache| write(cache, "refs/outrigger/target", "nothing\n")),
    ("a ref to what is not there", |cache| write(cache, "refs/outrigger/target", &format!("{}\n", "1".repeat(40)))),
    ("a ref to itself", |cache| write(cache, "refs/outrigger/target", "ref: refs/outrigger/target\n")),
    ("a folder as the ref", |cache| folder_for(cache, "refs/outrigger/target")),
    ("a file as the folder of the ref", |cache| file_for(cache, "refs/outrigger")),
    ("a `shallow` of other bytes", |cache| write(cache, "shallow", "\0nothing\n")),
    ("a `shallow` of what is not there", |cache| write(cache, "shallow", &format!("{}\n", "2".repeat(40)))),
    ("a folder as `shallow`", |cache| folder_for(cache, "shallow")),
    ("`packed-refs` of other bytes", |cache| write(cache, "packed-refs", "# pack-refs with: peeled\n\0\u{1}zz\n")),
    ("a folder as `packed-refs`", |cache| folder_for(cache, "packed-refs")),
    ("an empty folder", |cache| folder_for(cache, "")),
    ("a file", |cache| file_for(cache, "")),
    ("a link to nothing", |cache| {
        remove(cache);
        std::os::unix::fs::symlink("/no/such/folder", cache).expect("the state directory takes a link");
    }),
    ("a folder that takes nothing", |cache| mode(cache, 0o555)),
    ("a folder that shows nothing", |cache| mode(cache, 0)),
    ("packs that take nothing", |cache| mode(&cache.join("objects/pack"), 0o555)),
    ("objects that show nothing", |cache| mode(&cache.join("objects"), 0)),
    ("refs that take nothing", |cache| mode(&cache.join("refs/outrigger"), 0o500)),
    ("a HEAD that cannot be read", |cache| mode(&cache.join("HEAD"), 0)),
];

fn write(cache: &Path, name: &str, text: &str) {
    let path = cache.join(name);
    fs::create_dir_all(path.parent().expect("it lies in the cache")).expect("the cache takes folders");
    fs::write(path, text).expect("the cache takes files");
}

fn remove(path: &Path) {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    // What is to be missing may be missing already.
    removed.ok();
}

fn folder_for(cache: &Path, name: &str) {
    let path = if name.is_empty() { cache.to_owned() } else { cache.join(name) };
    remove(&path);
    fs::create_dir_all(path.join("inside")).expect("the cache takes folders");
}

fn file_for(cache: &Path, name: &str) {
    let path = if name.is_empty() { cache.to_owned() } else { cache.join(name) };
    remove(&path);
    fs::write(path, "a file\n").expect("the cache takes files");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is our file");
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
        // git makes them read-only, and a mapped file must not change: another takes its place.
        remove(path);
        fs::write(path, bytes).expect("the cache takes files");
    });
}

fn flip(bytes: &mut [u8]) {
    bytes.iter_mut().skip(8).step_by(7).for_each(|byte| *byte = !*byte);
}

/// Makes each kind of damage by `damage`, pushes a commit, and gives the kinds after which it was not published.
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
            mode_of_all(&followed.cache());
            remove(&followed.cache());
            outrigger = followed.start();
            followed.await_generation(generation, "a new cache");
        }
    }
    outrigger.finish();
    unhealed
}

/// The store is asked ten times a second; a cache that is begun anew costs one more fetch.
pub const HEALED: Duration = Duration::from_secs(6);

/// Lets a cache be removed in which a damage took rights away.
fn mode_of_all(cache: &Path) {
    if !cache.is_dir() {
        return;
    }
    mode(cache, 0o755);
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        mode_of_all(&entry.path());
    }
}

/// Damage while the program runs.
/// covers: faults 3
#[test]
fn a_cache_that_is_damaged_while_it_is_used_is_begun_anew() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let damages: Vec<&Damage> = DAMAGES.iter().collect();
    assert_eq!(unhealed(&followed, &damages, false), Vec::<String>::new());
}

/// Damage that the program finds when it starts: every fourth kind, since each costs a start.
/// covers: faults 3
#[test]
fn a_cache_that_is_damaged_at_the_start_is_begun_anew() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let damages: Vec<&Damage> = DAMAGES.iter().step_by(4).collect();
    assert_eq!(unhealed(&followed, &damages, true), Vec::<String>::new());
}

/// The cache has all of the next commit, but under the id of one file other content than the commit names.
/// covers: faults 3
#[test]
fn content_that_does_not_have_the_hash_of_its_id_is_not_published() {
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
    assert_eq!(
        published(&followed.scene.path("out/settings")),
        Ok(Some(2)),
        "what is published is what the commit names"
    );
    outrigger.finish();
}

/// Copies all objects of a repository into another, but for one file of the present commit, whose id gets other content.
fn plant(repository: &Repository, into: &Path) {
    let (from, objects) = (format!("{}/objects/.", repository.bare().display()), into.join("objects"));
    let copied = Command::new("cp").args(["-r", &from]).arg(objects).status();
    assert!(copied.is_ok_and(|status| status.success()), "the objects can be copied");
    let other = b"generation=999999\n";
    falsify(into, &repository.id_of("main:orders/a.conf"), &format!("blob {}\0", other.len()), other);
}

/// The same without a state directory to write to.
fn start_without_state(followed: &Followed, temporary: &Path) -> Outrigger {
    followed.scene.write("no-folder", "");
    let body = format!("{SETTINGS}state: {{ dir: \"@dir@/no-folder/state\" }}\n");
    Outrigger::start_with(&followed.scene, &body, &[], Wait::Ready, |command| {
        command.env("TMPDIR", temporary);
    })
}

/// Without a state directory the cache lies in the temporary directory, where any user makes files: somebody has put a
/// repository with other content there, under each name that can be foreseen.
/// covers: faults 3
#[test]
fn a_repository_of_others_in_the_temporary_directory_is_not_used() {
    let followed = need!(Followed::create(), NO_DAEMON);
    let (scene, repository) = (&followed.scene, &followed.repository);
    let temporary = scene.path("tmp");
    let planted = temporary.join("planted.git");
    git(&scene.path("git"), &["init", "--quiet", "--bare", &planted.display().to_string()]);
    plant(repository, &planted);
    let next = Running::start(&["true"]).pid();
    for pid in next..next + 3000 {
        let name = format!("outrigger-{pid}-settings.git");
        std::os::unix::fs::symlink(&planted, temporary.join(name)).expect("the temporary directory takes links");
    }
    let outrigger = start_without_state(&followed, &temporary);
    let published_commit = published_commit(&scene.path("out/settings"));
    assert!(published_commit.is_some_and(|name| name.starts_with(&repository.id_of("main"))));
    assert_eq!(published(&scene.path("out/settings")), Ok(Some(1)), "what is published is what the commit names");
    outrigger.finish();
}
