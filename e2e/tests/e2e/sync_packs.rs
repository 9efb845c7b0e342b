//! Revisions that are small on the way and large when they arrive, and packs that no git makes. Hand-made objects and packs come
//! in; each is refused by what is wrong with it, within a time and a memory that are bounded, and the next good commit is
//! published. Bounded by a file of 200 MB, which costs 200 kB on the wire.

use std::fs;
use std::time::Duration;

use crate::harness::PATIENCE;
use crate::harness::git::hostile::{Followed, REFUSED};
use crate::harness::git::objects::{FILE, FOLDER, SUBMODULE};
use crate::harness::git::pack_server::with_lying_file;

const NO_GIT: &str = "git is not installed";

/// A few objects that unfold into more folders, files or submodules than any disk has: each is refused in a moment.
/// covers: faults 3
#[test]
fn a_tree_that_unfolds_without_end_is_refused_in_a_moment() {
    let mut followed = need!(Followed::start(", max_files: 100"), NO_GIT);
    let repository = &followed.repository;
    let (blob, commit) = (repository.blob(b"a blob\n"), repository.id_of("main"));
    let leaves = [
        ("files", repository.tree(&[(FILE, "file", &blob)])),
        ("empty folders", repository.tree(&[])),
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
        wrong.extend((log > 1 << 20).then(|| format!("{case}: our log has {log} bytes")));
    }
    followed.finish(&wrong);
}

/// A hundred files are allowed, and as many may be written before the tree is refused.
const UNFOLDED: Duration = Duration::from_secs(10);

/// A file that is larger than a whole revision may be is refused by its size, which stands in its header: the worker does not
/// unpack it.
/// covers: faults 3
#[test]
fn a_file_above_the_limit_is_refused_without_being_read() {
    let followed = need!(Followed::start(""), NO_GIT);
    let huge = followed.repository.blob(&vec![0; 200 << 20]);
    assert_refused_small(followed, &huge, 64);
}

/// The same where the file is packed as a delta of another one, whose result has its size in the delta's own header
/// (gitformat-pack).
/// covers: faults 3
#[test]
fn a_file_above_the_limit_is_refused_without_being_read_from_a_delta() {
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
    assert_refused_small(followed, &huge, 32);
}

#[track_caller]
fn assert_refused_small(mut followed: Followed, huge: &str, most_mib: u64) {
    let tree = followed.repository.tree(&[(FILE, "huge", huge)]);
    let mut wrong = Vec::new();
    let commit = followed.repository.commit(&tree);
    followed.check_commit(&mut wrong, "a huge file", &commit, &["max_bytes"], PATIENCE);
    let peak = peak_mib(followed.worker);
    wrong.extend((peak >= most_mib).then(|| format!("the worker had {peak} MiB of memory, and may have {most_mib}")));
    followed.finish(&wrong);
}

/// The most memory that a process ever had (proc_pid_status: VmHWM).
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has a peak");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
    kib / 1024
}

/// Servers that send packs which no git makes: entries that are not what their mode says, commits without a tree, sizes that are
/// lies, packs that are cut off. Each is refused, the worker lives on, and a server that answers wrongly is not asked on and on.
/// covers: faults 3
#[test]
fn a_pack_that_no_git_makes_is_refused_and_the_worker_lives_on() {
    let mut followed = need!(Followed::start_with_packs(), NO_GIT);
    let repository = &followed.repository;
    let (blob, bad_commit) = (repository.blob(b"good\n"), repository.object("commit", b"tree \n"));
    let (odd, good) = (repository.tree(&[(FOLDER, "entry.odd", &blob)]), repository.tree(&[(FILE, "good", &blob)]));
    let (odd_commit, plain) = (repository.commit(&odd), repository.commit(&good));
    let whole = repository.pack(&[&plain, &good, &blob]);
    let mut other_end = whole.clone();
    *other_end.last_mut().expect("a pack has an end") ^= 1;
    let packs = [
        ("an entry of another kind", &odd_commit, repository.pack(&[&odd_commit, &odd, &blob])),
        ("a commit without a tree", &bad_commit, repository.pack(&[&bad_commit])),
        ("a size of half of all numbers", &plain, with_lying_file(&whole, u64::MAX / 2)),
        ("a size of a terabyte", &plain, with_lying_file(&whole, 1 << 40)),
        ("a size of three gigabytes", &plain, with_lying_file(&whole, 3 << 30)),
        ("a pack that is cut off", &plain, whole[..whole.len() / 2].to_vec()),
        ("a pack with another checksum", &plain, other_end),
        ("a pack of nothing", &plain, Vec::new()),
        ("a pack of other bytes", &plain, vec![0x55; 1000]),
        ("a pack without what was asked for", &plain, repository.pack(&[&blob])),
    ];
    let mut wrong = Vec::new();
    for (case, commit, pack) in packs {
        followed.server().offer(commit, pack);
        followed.check_commit(&mut wrong, case, commit, &[], REFUSED);
    }
    let (fetches, polls) = (followed.server().fetches(), polls(&followed));
    wrong.extend((fetches > 2 * polls + 2).then(|| format!("{fetches} fetches in {polls} looks at the store")));
    followed.finish(&wrong);
}

/// How often the store was asked and did not say that nothing is new.
fn polls(followed: &Followed) -> usize {
    let metrics = followed.outrigger.get("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with("outrigger_sync_polls_total{"));
    let counted = lines.filter(|line| !line.contains("\"unchanged\"")).filter_map(|line| line.rsplit(' ').next());
    counted.filter_map(|count| count.parse::<usize>().ok()).sum()
}
