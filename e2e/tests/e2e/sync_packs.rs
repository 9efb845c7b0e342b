//! Revisions that are small on the wire and large when unpacked, and packs that git never creates. In: hand-made objects and
//! packs. Out: each is rejected with its error, within bounded time and memory, and the next good commit is published. Bounded by
//! a file of 200 MB, which costs 200 kB on the wire.

use std::fs;
use std::time::Duration;

use crate::harness::PATIENCE;
use crate::harness::git::hostile::{Followed, REFUSED};
use crate::harness::git::objects::{FILE, FOLDER, SUBMODULE};
use crate::harness::git::pack_server::with_lying_file;

const NO_GIT: &str = "git is not installed";

/// A few objects that expand to more directories, files or submodules than any disk can hold: each is rejected within `UNFOLDED`.
/// Guarantee: revision-limits-hold
#[test]
fn a_tree_that_expands_without_end_is_rejected() {
    let mut followed = need!(Followed::start(", max_files: 100"), NO_GIT);
    let repository = &followed.repository;
    let (blob, commit) = (repository.blob(b"a blob\n"), repository.id_of("main"));
    let leaves = [
        ("files", repository.tree(&[(FILE, "file", &blob)])),
        ("empty directories", repository.tree(&[])),
        ("submodules", repository.tree(&[(SUBMODULE, "module", &commit)])),
    ];
    let mut wrong = Vec::new();
    for (case, leaf) in leaves {
        let tree = (0..12).fold(leaf, |below, _| {
            let names = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
            followed.repository.tree(&names.map(|name| (FOLDER, name, below.as_str())))
        });
        let commit = followed.repository.commit(&tree);
        followed.check_commit(&mut wrong, case, &commit, &["max_files"], UNFOLDED);
        let log = followed.outrigger.stderr.len();
        wrong.extend((log > 1 << 20).then(|| format!("{case}: the Outrigger log has {log} bytes")));
    }
    followed.finish(&wrong);
}

/// A hundred files are allowed, and as many may be written before the tree is rejected.
const UNFOLDED: Duration = Duration::from_secs(10);

/// A file larger than the limit of a revision is rejected by the size in its header: the worker does not unpack it.
/// Guarantee: revision-limits-hold
#[test]
fn a_file_above_the_limit_is_not_unpacked() {
    let followed = need!(Followed::start(""), NO_GIT);
    let huge = followed.repository.blob(&vec![0; 200 << 20]);
    assert_rejected_within(followed, &huge, 64);
}

/// The same if the file is packed as a delta of another one: the delta's header has the size of the result (gitformat-pack).
#[test]
fn a_delta_above_the_limit_is_not_unpacked() {
    let followed = need!(Followed::start(", max_bytes: 1MiB"), NO_GIT);
    let repository = &followed.repository;
    let mut content = vec![0; 64 << 20];
    let base = repository.blob(&content);
    content.extend_from_slice(b"and a little more\n");
    let huge = repository.blob(&content);
    let tree = repository.tree(&[(FILE, "base", &base), (FILE, "huge", &huge)]);
    repository.set_ref("refs/heads/large", &repository.write_with(&["commit-tree", "-m", "x", &tree], b""));
    repository.write_with(&["repack", "-a", "-d", "-f", "-q"], b"");
    let deltas = repository.write_with(&["cat-file", "--batch-check=%(deltabase)", "--batch-all-objects"], b"");
    assert!(deltas.contains(&base) || deltas.contains(&huge), "one of the two is a delta of the other");
    assert_rejected_within(followed, &huge, 32);
}

#[track_caller]
fn assert_rejected_within(mut followed: Followed, huge: &str, most_mib: u64) {
    let tree = followed.repository.tree(&[(FILE, "huge", huge)]);
    let mut wrong = Vec::new();
    let commit = followed.repository.commit(&tree);
    followed.check_commit(&mut wrong, "a huge file", &commit, &["max_bytes"], PATIENCE);
    let peak = peak_mib(followed.worker);
    wrong.extend((peak >= most_mib).then(|| format!("the worker used {peak} MiB of memory, the limit is {most_mib}")));
    followed.finish(&wrong);
}

/// Peak resident memory of a process (proc_pid_status: VmHWM).
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has VmHWM");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
    kib / 1024
}

/// Servers that send packs which git never creates: entries of another type than their mode, commits without a tree, false sizes,
/// truncated packs. Each is rejected, the worker keeps running, and a faulty server gets at most two fetches per poll.
#[test]
fn invalid_packs_are_rejected_without_a_crash() {
    let mut followed = need!(Followed::start_with_packs(), NO_GIT);
    let repository = &followed.repository;
    let (blob, bad_commit) = (repository.blob(b"good\n"), repository.object("commit", b"tree \n"));
    let (odd, good) = (repository.tree(&[(FOLDER, "entry.odd", &blob)]), repository.tree(&[(FILE, "good", &blob)]));
    let (odd_commit, plain) = (repository.commit(&odd), repository.commit(&good));
    let valid = repository.pack(&[&plain, &good, &blob]);
    let mut other_end = valid.clone();
    *other_end.last_mut().expect("a pack has an end") ^= 1;
    let packs = [
        ("an entry of another type", &odd_commit, repository.pack(&[&odd_commit, &odd, &blob])),
        ("a commit without a tree", &bad_commit, repository.pack(&[&bad_commit])),
        ("a size of half of u64::MAX", &plain, with_lying_file(&valid, u64::MAX / 2)),
        ("a size of a terabyte", &plain, with_lying_file(&valid, 1 << 40)),
        ("a size of three gigabytes", &plain, with_lying_file(&valid, 3 << 30)),
        ("a truncated pack", &plain, valid[..valid.len() / 2].to_vec()),
        ("a pack with another checksum", &plain, other_end),
        ("an empty pack", &plain, Vec::new()),
        ("a pack of arbitrary bytes", &plain, vec![0x55; 1000]),
        ("a pack without the requested commit", &plain, repository.pack(&[&blob])),
    ];
    let mut wrong = Vec::new();
    for (case, commit, pack) in packs {
        followed.server().offer(commit, pack);
        followed.check_commit(&mut wrong, case, commit, &[], REFUSED);
    }
    let (fetches, polls) = (followed.server().fetches(), polls(&followed));
    wrong.extend((fetches > 2 * polls + 2).then(|| format!("{fetches} fetches in {polls} polls of the store")));
    followed.finish(&wrong);
}

/// Polls of the store with another result than `unchanged`.
fn polls(followed: &Followed) -> usize {
    let metrics = followed.outrigger.get("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with("outrigger_sync_polls_total{"));
    let counted = lines.filter(|line| !line.contains("\"unchanged\"")).filter_map(|line| line.rsplit(' ').next());
    counted.filter_map(|count| count.parse::<usize>().ok()).sum()
}
