//! Revisions that no regular work tree produces: links that escape through other links, entries of another type than their mode,
//! names that git reserves, content that does not match its ID. In: hand-made objects. Out: each is rejected with its name, the
//! worker keeps running, and the next good commit is published. Bounded by some twenty commits per test.

use std::fs;

use crate::harness::git::hostile::{Followed, REFUSED};
use crate::harness::git::objects::{EXECUTABLE, Entry, FILE, FOLDER, LINK, falsify, tree_bytes};
use crate::harness::{PATIENCE, until};

const NO_GIT: &str = "git is not installed";

/// Each link of these trees stays inside by a count of its own segments, and escapes through another link.
/// Guarantee: escaping-revision-rejected
#[test]
fn a_link_escaping_through_a_link_is_rejected() {
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

/// Links that stay inside are published, through another link and dangling ones too; a loop is at least checked quickly.
#[test]
fn a_link_inside_through_a_link_is_published() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let looped = [(LINK, "first", "second/x"), (LINK, "second", "first/y"), (LINK, "self", "self")];
    followed.repository.commit(&followed.repository.tree_of(&looped));
    followed.corrects().expect("a loop does not block the next commit");
    let files = [
        (LINK, "a/h/up", "../.."),
        (FILE, "a/file", "inside\n"),
        (LINK, "good", "a/h/up/a/file"),
        (LINK, "dangling", "a/no"),
    ];
    let commit = followed.repository.commit(&followed.repository.tree_of(&files));
    until(PATIENCE, "the links are published", || followed.is_published(&commit));
    let read = fs::read_to_string(followed.to().join("good"));
    assert_eq!(read.ok().as_deref(), Some("inside\n"), "through two links");
    assert!(followed.to().join("dangling").is_symlink());
    followed.finish(&[]);
}

/// An entry's mode specifies one type, and the object has another one, or is missing. The worker is not affected.
#[test]
fn an_entry_contradicting_its_mode_is_rejected() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, tree, commit) = (repository.blob(b"a blob\n"), repository.tree(&[]), repository.id_of("main"));
    let missing = "1".repeat(40);
    let cases = [
        ("a directory that is a blob", FOLDER, &blob),
        ("a socket that is a blob", "140000", &blob),
        ("a directory that is a commit", FOLDER, &commit),
        ("a file that is a tree", FILE, &tree),
        ("a file that is a commit", EXECUTABLE, &commit),
        ("a link that is a tree", LINK, &tree),
        ("a file that is missing", FILE, &missing),
        ("a directory that is missing", FOLDER, &missing),
    ];
    let mut wrong = Vec::new();
    for (number, (case, mode, id)) in cases.into_iter().enumerate() {
        let tree = followed.repository.tree(&[(mode, "entry.odd", id)]);
        let tree = if number % 2 == 0 { tree } else { followed.repository.tree(&[(FOLDER, "directory", &tree)]) };
        followed.check(&mut wrong, case, &tree, if *id == missing { &[] } else { &["entry.odd"] });
    }
    followed.finish(&wrong);
}

/// Objects that are truncated or do not match the format of their type, including the commit and the ref.
#[test]
fn malformed_objects_are_rejected() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, good) = (repository.blob(b"a blob\n"), repository.id_of("main"));
    let file = |name: &str| [format!("{FILE} {name}\0").into_bytes(), vec![7; 20]].concat();
    let trees: [(&str, Vec<u8>); 5] = [
        ("a tree that is truncated in an ID", file("cut")[..20].to_vec()),
        ("a tree that is truncated in a name", b"100644 cut".to_vec()),
        ("a tree of arbitrary bytes", vec![0xff; 64]),
        ("a mode that is not a number", [b"letter x\0".as_slice(), &[7; 20]].concat()),
        ("a mode of many digits", [b"77777777777777777777777 x\0".as_slice(), &[7; 20]].concat()),
    ];
    let huge = falsify_size(&followed, u64::MAX / 2);
    let mut commits: Vec<(String, String)> = Vec::new();
    for (case, bytes) in &trees {
        commits.push(((*case).to_owned(), followed.repository.object("tree", bytes)));
    }
    commits.push(("a file with a size above any memory".to_owned(), huge));
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
    for (case, id) in [("a ref to a blob", &blob), ("a ref to a missing object", &"3".repeat(40))] {
        followed.repository.set_ref("refs/heads/main", id);
        followed.check_commit(&mut wrong, case, id, &[], REFUSED);
    }
    followed.repository.set_ref("refs/heads/main", &good);
    until(PATIENCE, "the previous commit is published again", || followed.is_published(&good));
    followed.finish(&wrong);
}

/// A tree of one file whose object's header has this size.
fn falsify_size(followed: &Followed, size: u64) -> String {
    let id = "4".repeat(40);
    falsify(&followed.repository.bare(), &id, &format!("blob {size}\0"), b"short\n");
    followed.repository.tree(&[(FILE, "huge", &id)])
}

/// The ID of an object is the hash of its content: if an object of the repository has different content, nothing is published
/// under the commit's ID.
/// Guarantee: content-matches-commit
#[test]
fn content_not_matching_its_id_is_rejected() {
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

/// Names that git reserves and never checks out (git-fsck: hasDotgit, hasDot, hasDotdot, fullPathname,
/// emptyName, duplicateEntries).
/// Guarantee: escaping-revision-rejected
#[test]
fn a_name_git_does_not_check_out_is_rejected() {
    let mut followed = need!(Followed::start(""), NO_GIT);
    let repository = &followed.repository;
    let (blob, other) = (repository.blob(b"a\n"), repository.blob(b"b\n"));
    let directory = repository.tree(&[(FILE, "config", &blob)]);
    let below = repository.tree(&[(FOLDER, ".git", &directory)]);
    let cases: [(&str, Vec<Entry<'_>>, &str); 10] = [
        (".git", vec![(FILE, ".git", &blob)], ".git"),
        (".git as a directory", vec![(FOLDER, ".git", &directory)], ".git"),
        (".git in a directory", vec![(FOLDER, "below", &below)], ".git"),
        (".GIT", vec![(FOLDER, ".GIT", &directory)], ".GIT"),
        (".git as a link", vec![(LINK, ".git", &blob)], ".git"),
        ("..", vec![(FOLDER, "..", &directory)], ".."),
        (".", vec![(FOLDER, ".", &directory)], "."),
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

/// With `git replace` in the repository, git itself shows other content for a commit or a file; the revision's name is the
/// commit's ID, so its content must be the commit's.
#[test]
fn git_replace_does_not_change_what_is_published() {
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
