//! Revisions that no honest work tree gives: links that lead out through other links, entries that are not what their mode says,
//! names that git keeps for itself, content that is not what its id promises. Hand-made objects come in; each is refused by name,
//! the worker lives on, and the next good commit is published. Bounded by some twenty commits per test.

use std::fs;

use crate::harness::git::hostile::{Followed, REFUSED};
use crate::harness::git::objects::{EXECUTABLE, Entry, FILE, FOLDER, LINK, falsify, tree_bytes};
use crate::harness::{PATIENCE, until};

const NO_GIT: &str = "git is not installed";

/// Each link of these trees stays inside by the count of its own names, and leads out through another one.
/// covers: faults 3
#[test]
fn a_link_that_leads_out_through_another_link_is_refused_by_name() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    followed.scene.write("secret", "not for readers of the revision\n");
    let cases: [&[(&str, &str, &str)]; 6] = [
        &[(LINK, "a/h/up", "../.."), (LINK, "leak", "a/h/up/../../etc/passwd")],
        &[(LINK, "a/b/c/d/up", "../../../.."), (LINK, "leak", "a/b/c/d/up/../../../secret")],
        &[(FILE, "a/file", ""), (LINK, "b/c/side", "../../a"), (LINK, "leak", "b/c/side/../../etc/passwd")],
        &[(LINK, "0/leak", "../z/h/up/../../etc/passwd"), (LINK, "z/h/up", "../..")],
        &[
            (LINK, "a/b/first", "../../c/d/second"),
            (LINK, "c/d/second", "../.."),
            (LINK, "leak", "a/b/first/../../etc"),
        ],
        &[(LINK, "dot", "."), (LINK, "leak", "dot/dot/dot/../../../etc/passwd")],
    ];
    let mut wrong = Vec::new();
    for files in cases {
        let tree = followed.repository.tree_of(files);
        followed.check(&mut wrong, &format!("{files:?}"), &tree, &["leak"]);
    }
    followed.finish(&wrong);
}

/// Links that stay inside are published as ever: through another link, to nothing, and in a circle they are at least looked at
/// in a moment.
/// covers: faults 3
#[test]
fn a_link_that_stays_inside_through_another_link_is_published() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let circle = [(LINK, "first", "second/x"), (LINK, "second", "first/y"), (LINK, "self", "self")];
    followed.repository.commit(&followed.repository.tree_of(&circle));
    followed.corrects().expect("a circle holds nobody up");
    let files = [
        (LINK, "a/h/up", "../.."),
        (FILE, "a/file", "inside\n"),
        (LINK, "good", "a/h/up/a/file"),
        (LINK, "gone", "a/no"),
    ];
    let commit = followed.repository.commit(&followed.repository.tree_of(&files));
    until(PATIENCE, "the links are published", || followed.is_published(&commit));
    let read = fs::read_to_string(followed.to().join("good"));
    assert_eq!(read.ok().as_deref(), Some("inside\n"), "through two links");
    assert!(followed.to().join("gone").is_symlink());
    followed.finish(&[]);
}

/// An entry's mode says one kind, and the object is another one; or there is no object. Nothing of it reaches the worker.
/// covers: faults 3
#[test]
fn an_entry_that_is_not_what_its_mode_says_is_refused_by_name() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, tree, commit) = (repository.blob(b"a blob\n"), repository.tree(&[]), repository.id_of("main"));
    let missing = "1".repeat(40);
    let cases = [
        ("a folder that is a blob", FOLDER, &blob),
        ("a socket that is a blob", "140000", &blob),
        ("a folder that is a commit", FOLDER, &commit),
        ("a file that is a tree", FILE, &tree),
        ("a file that is a commit", EXECUTABLE, &commit),
        ("a link that is a tree", LINK, &tree),
        ("a file that is missing", FILE, &missing),
        ("a folder that is missing", FOLDER, &missing),
    ];
    let mut wrong = Vec::new();
    for (number, (case, mode, id)) in cases.into_iter().enumerate() {
        let tree = followed.repository.tree(&[(mode, "entry.odd", id)]);
        let tree = if number % 2 == 0 { tree } else { followed.repository.tree(&[(FOLDER, "folder", &tree)]) };
        followed.check(&mut wrong, case, &tree, if *id == missing { &[] } else { &["entry.odd"] });
    }
    followed.finish(&wrong);
}

/// Objects that are cut off or hold something else than their kind has, up to the commit and the ref.
/// covers: faults 3
#[test]
fn an_object_that_is_malformed_is_refused_and_the_worker_lives_on() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, good) = (repository.blob(b"a blob\n"), repository.id_of("main"));
    let file = |name: &str| [format!("{FILE} {name}\0").into_bytes(), vec![7; 20]].concat();
    let trees: [(&str, Vec<u8>); 5] = [
        ("a tree that is cut off in an id", file("cut")[..20].to_vec()),
        ("a tree that is cut off in a name", b"100644 cut".to_vec()),
        ("a tree of other bytes", vec![0xff; 64]),
        ("a mode that is no number", [b"folder x\0".as_slice(), &[7; 20]].concat()),
        ("a mode of many digits", [b"77777777777777777777777 x\0".as_slice(), &[7; 20]].concat()),
    ];
    let huge = falsify_size(&followed, u64::MAX / 2);
    let mut commits: Vec<(String, String)> = Vec::new();
    for (case, bytes) in &trees {
        commits.push(((*case).to_owned(), followed.repository.object("tree", bytes)));
    }
    commits.push(("a file that says it is larger than any memory".to_owned(), huge));
    let mut wrong = Vec::new();
    for (case, tree) in commits {
        followed.check(&mut wrong, &case, &tree, &[]);
    }
    let tags = [("a tag", "tag"), ("a commit", "commit")];
    for (case, kind) in tags {
        for content in ["", "tree \n", "tree 1\n\nx", "object \n"] {
            let odd = followed.repository.object(kind, content.as_bytes());
            followed.repository.set_ref("refs/heads/main", &odd);
            followed.check_commit(&mut wrong, &format!("{case} with {content:?}"), &odd, &[], REFUSED);
        }
    }
    for (case, id) in [("a ref to a blob", &blob), ("a ref to what is not there", &"3".repeat(40))] {
        followed.repository.set_ref("refs/heads/main", id);
        followed.check_commit(&mut wrong, case, id, &[], REFUSED);
    }
    followed.repository.set_ref("refs/heads/main", &good);
    until(PATIENCE, "back to a commit of before", || followed.is_published(&good));
    followed.finish(&wrong);
}

/// A tree of one file whose object says that it has so many bytes.
fn falsify_size(followed: &Followed, size: u64) -> String {
    let id = "4".repeat(40);
    falsify(&followed.repository.bare(), &id, &format!("blob {size}\0"), b"short\n");
    followed.repository.tree(&[(FILE, "huge", &id)])
}

/// The id of an object is the promise of its content: where an object of the repository has other content, nothing is published
/// under the commit's id.
/// covers: faults 3
#[test]
fn an_object_with_other_content_than_its_id_promises_is_refused() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let mut wrong = Vec::new();
    for (case, kind) in [("a file", "blob"), ("a tree", "tree")] {
        let repository = &followed.repository;
        let (tree, file) = (repository.tree_of(&[(FILE, "a.conf", case)]), repository.blob(case.as_bytes()));
        let (id, content) = match kind {
            "blob" => (&file, b"other".to_vec()),
            _ => (&tree, tree_bytes(&[(FILE, "b.conf", &file)])),
        };
        falsify(&repository.bare(), id, &format!("{kind} {}\0", content.len()), &content);
        followed.check(&mut wrong, case, &tree, &[]);
    }
    followed.finish(&wrong);
}

/// Names that git keeps for itself, which it never checks out (git-fsck: hasDotgit, hasDot, hasDotdot, fullPathname,
/// emptyName, duplicateEntries).
/// covers: faults 3
#[test]
fn a_name_that_git_does_not_check_out_is_refused_by_name() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, other) = (repository.blob(b"a\n"), repository.blob(b"b\n"));
    let folder = repository.tree(&[(FILE, "config", &blob)]);
    let below = repository.tree(&[(FOLDER, ".git", &folder)]);
    let cases: [(&str, Vec<Entry<'_>>, &str); 10] = [
        (".git", vec![(FILE, ".git", &blob)], ".git"),
        (".git as a folder", vec![(FOLDER, ".git", &folder)], ".git"),
        (".git in a folder", vec![(FOLDER, "below", &below)], ".git"),
        (".GIT", vec![(FOLDER, ".GIT", &folder)], ".GIT"),
        (".git as a link", vec![(LINK, ".git", &blob)], ".git"),
        ("..", vec![(FOLDER, "..", &folder)], ".."),
        (".", vec![(FOLDER, ".", &folder)], "."),
        ("no name", vec![(FILE, "", &blob)], ""),
        ("a slash", vec![(FILE, "a/b", &blob)], "a/b"),
        ("a name twice", vec![(FILE, "twice", &blob), (FILE, "twice", &other)], "twice"),
    ];
    let cases = cases.map(|(case, entries, word)| (case, repository.tree(&entries), word));
    let mut wrong = Vec::new();
    for (case, tree, word) in cases {
        followed.check(&mut wrong, case, &tree, &[word]);
    }
    followed.finish(&wrong);
}

/// `git replace` in the repository makes git itself show something else for a commit or a file; the revision's name is the
/// commit's id, and so its content is the commit's.
/// covers: faults 3
#[test]
fn a_replacement_is_not_published_under_the_id_of_what_it_replaces() {
    let followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let commit = |text: &str| repository.commit(&repository.tree_of(&[(FILE, "a.conf", text)]));
    let mut wrong = Vec::new();
    for kind in ["commit", "blob"] {
        let (other, shown) = (commit(&format!("replacement of {kind}\n")), format!("what the {kind} has\n"));
        repository.set_ref("refs/heads/other", &other);
        let replaced =
            repository.write_with(&["commit-tree", "-m", "x", &repository.tree_of(&[(FILE, "a.conf", &shown)])], b"");
        let pair = if kind == "commit" {
            [replaced.clone(), other]
        } else {
            [repository.id_of(&format!("{replaced}:a.conf")), repository.id_of(&format!("{other}:a.conf"))]
        };
        repository.write_with(&["replace", &pair[0], &pair[1]], b"");
        repository.set_ref("refs/heads/main", &replaced);
        until(PATIENCE, "the commit that has a replacement", || followed.is_published(&replaced));
        let read = fs::read_to_string(followed.to().join("a.conf")).unwrap_or_default();
        wrong.extend((read != shown).then_some(read));
    }
    followed.finish(&wrong);
}
