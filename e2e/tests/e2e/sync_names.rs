//! Names in a configuration and in a repository that are the same or nearly the same: directories, refs, targets and URLs. Each
//! is unambiguous, or is reported as an error. Bounded by one start of Outrigger for each pair of names.

use std::fs;
use std::process::Command;

use crate::harness::git::objects::FILE;
use crate::harness::git::{Repository, git, published_commit, sync_state};
use crate::harness::outrigger::{configuration, outrigger};
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, until, within};

const NO_GIT: &str = "git is not installed";

const DIRECTORY_OF: &str = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: main, path: "@path@", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/settings" } } }
"#;

/// Directories of one commit whose names differ only in characters that a file name cannot hold, and two long names that differ
/// at their end: a changed `path` publishes the other directory. Revisions of different paths are stored in different
/// directories, and the last segment of the link's target stays the commit.
#[test]
fn a_changed_path_publishes_that_directory() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let long = |end: &str| format!("{}/{end}", "a-dirname-of-20-char".repeat(4));
    let (first, second) = (long("first"), long("second"));
    let paths = ["eu-west", "eu_west", "eu/west", "eu west", "eu.west", &first, &second];
    let files: Vec<String> = paths.iter().map(|path| format!("{path}/a.conf")).collect();
    let files: Vec<(&str, &str, &str)> =
        files.iter().zip(paths).map(|(file, path)| (FILE, file.as_str(), path)).collect();
    let commit = repository.commit(&repository.tree_of(&files));
    scene.set("url", repository.file_url());
    scene.set("path", paths[0]);
    let outrigger = Outrigger::start(&scene, DIRECTORY_OF, &[]);
    let (to, mut wrong, mut targets) = (scene.path("out/settings"), Vec::new(), Vec::new());
    for path in paths {
        scene.set("path", path);
        scene.write("outrigger.yaml", configuration(&scene, DIRECTORY_OF));
        let content = || fs::read_to_string(to.join("a.conf")).unwrap_or_default();
        if !within(5 * SECOND, || content() == path) {
            wrong.push(format!("{path}: {} is published", content()));
        }
        let target = fs::read_link(&to).expect("what is published is a link");
        if target.file_name().is_none_or(|name| *name != *commit) || target.components().count() != 3 {
            wrong.push(format!("{path}: the link points to {}", target.display()));
        }
        targets.push(target);
    }
    targets.sort();
    targets.dedup();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(targets.len(), paths.len(), "each path has its own directory: {targets:?}");
    outrigger.finish();
}

/// A revision's directory is named after its commit for every selection: without `path` and with several spellings of one.
#[test]
fn the_link_ends_in_the_commit_for_every_path() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    scene.set("url", repository.file_url());
    let mut wrong = Vec::new();
    for path in ["", ".", "orders", "orders/", "./orders"] {
        scene.set("path", path);
        let body =
            if path.is_empty() { DIRECTORY_OF.replace(", path: \"@path@\"", "") } else { DIRECTORY_OF.to_owned() };
        let outrigger = Outrigger::start(&scene, &body, &[]);
        let name = published_commit(&scene.path("out/settings")).unwrap_or_default();
        wrong.extend((name != repository.id_of("main")).then(|| format!("{path:?}: {name}")));
        outrigger.finish();
    }
    assert_eq!(wrong, Vec::<String>::new());
}

const REF: &str = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: "@ref@", interval: 200ms } }, publish: { symlink: { path: "@dir@/out/@to@" } } }
"#;

/// What a ref of the configuration resolves to: the commit, or the error.
fn resolved(scene: &Scene, url: &str, reference: &str) -> Result<String, String> {
    scene.set("url", url);
    scene.set("ref", reference);
    // A new target each time: if a store fails, the last revision of the target is restored.
    let name = format!("target-{}", fs::read_dir(scene.path("out")).map_or(0, |entries| entries.count()));
    scene.set("to", &name);
    let to = scene.path("out").join(name);
    let outrigger = Outrigger::start_and(scene, REF, &[], Wait::Nothing);
    let mut state = (String::new(), String::new());
    until(PATIENCE, "a revision or an error", || {
        state = sync_state(&outrigger);
        published_commit(&to).is_some() || state.0 == "degraded"
    });
    outrigger.finish();
    published_commit(&to).ok_or(state.1)
}

/// What git itself selects for a name that a branch and a tag share.
fn selected_by_git(scene: &Scene, url: &str, name: &str) -> String {
    git(&scene.path("work"), &["fetch", "--quiet", url, name]);
    let text = fs::read_to_string(scene.path("work/.git/FETCH_HEAD")).expect("git records what it fetched");
    text.split_whitespace().next().expect("an id comes first").to_owned()
}

/// Git's own choice, or an error with both refs and without Outrigger's internal ref.
fn is_unambiguous(commit_or_error: &Result<String, String>, name: &str, selected: &str) -> bool {
    let has_ref = |text: &str, kind: &str| text.contains(&format!("refs/{kind}/{name}"));
    match commit_or_error {
        Ok(commit) => commit == selected,
        Err(text) => has_ref(text, "heads") && has_ref(text, "tags") && !text.contains("refs/outrigger"),
    }
}

/// A tag and a branch have the same name: what git itself selects is published (the tag, by the order of gitrevisions), or the
/// error contains both. Every transport behaves the same, and a full ref name is unambiguous.
#[test]
fn a_tag_named_like_the_branch_is_unambiguous() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, git_url) = need!(repository.daemon(&scene), "git-daemon is not installed");
    let (_http, http_url) = need!(repository.http(&scene), "git-http-backend or python3 is not installed");
    let old = repository.id_of("main");
    repository.set_ref("refs/tags/main", &old);
    repository.push(2);
    let new = repository.id_of("refs/heads/main");
    // A common release layout: a branch, and an annotated tag on an older commit of it.
    repository.set_ref("refs/heads/release", &new);
    repository.write_with(&["tag", "-a", "-m", "x", "release", &old], b"");
    let (mut wrong, mut published) = (Vec::new(), Vec::new());
    for url in [&repository.file_url(), &git_url, &http_url] {
        for name in ["main", "release"] {
            let outcome = resolved(&scene, url, name);
            // An annotated tag is peeled to its commit.
            assert!(name == "release" || selected_by_git(&scene, url, name) == old, "git selects the tag");
            wrong.extend((!is_unambiguous(&outcome, name, &old)).then(|| format!("{url} {name}: {outcome:?}")));
            published.push(outcome.is_ok());
        }
    }
    published.dedup();
    wrong.extend((published.len() > 1).then(|| "one transport publishes what another rejects".to_owned()));
    for url in [&repository.file_url(), &git_url] {
        for (name, commit) in [("refs/heads/main", &new), ("heads/main", &new), ("refs/tags/release", &old)] {
            let outcome = resolved(&scene, url, name);
            wrong.extend((outcome.as_ref() != Ok(commit)).then(|| format!("{url} {name}: {outcome:?}")));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// The tag appears while the branch is followed, and the branch advances.
#[test]
fn a_tag_named_like_the_branch_blocks_no_update() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, url) = need!(repository.daemon(&scene), "git-daemon is not installed");
    let first = repository.id_of("main");
    repository.push(2);
    scene.set("url", &url);
    scene.set("ref", "main");
    scene.set("to", "settings");
    let outrigger = Outrigger::start(&scene, REF, &[]);
    let to = scene.path("out/settings");
    repository.set_ref("refs/tags/main", &first);
    repository.push(3);
    let mut outcome = Err(String::new());
    let settled = within(PATIENCE, || {
        let (state, text) = sync_state(&outrigger);
        outcome = if state == "ok" { Ok(published_commit(&to).unwrap_or_default()) } else { Err(text) };
        is_unambiguous(&outcome, "main", &first)
    });
    assert!(settled, "the tag's commit is published, or the error has both refs: {outcome:?}");
    std::fs::remove_file(repository.bare().join("refs/tags/main")).expect("the tag is a file");
    until(PATIENCE, "the branch without the tag", || {
        published_commit(&to).as_deref() == Some(repository.id_of("refs/heads/main").as_str())
    });
    outrigger.finish();
}

/// Two entries whose paths resolve to one directory, and targets within each other, are errors.
#[test]
fn equal_or_nested_targets_are_an_error() {
    let scene = Scene::new();
    let accepted = |first: &str, second: &str| {
        let entry = |name: &str, to: &str| {
            format!(
                "  {name}: {{ store: {{ git: {{ url: \"file:///r\" }} }}, publish: {{ symlink: {{ path: \"{to}\" }} }} }}\n"
            )
        };
        let body = format!("sync:\n{}{}", entry("first", first), entry("second", second));
        let file = scene.write("two.yaml", configuration(&scene, &body));
        outrigger(&["validate", "-c", &file.display().to_string()]).0 == 0
    };
    let same = [
        ("/x/cur", "/x/../x/cur"),
        ("/x/y/../cur", "/x/cur"),
        ("/x/cur", "/x/./cur"),
        ("/x/cur", "/x//cur/"),
        ("/x/cur", "/../x/cur"),
        ("/x/cur", "/x/cur/below"),
        ("/x/cur/a/b", "/x/cur"),
        ("/x/cur", "/x/../x/cur/below"),
        ("/x/cur", "/x/.cur.revisions"),
        ("/x/cur", "/x/.cur.revisions/own"),
        ("/x/.cur.revisions/own/link", "/x/cur"),
    ];
    let wrong: Vec<_> = same.iter().filter(|(first, second)| accepted(first, second)).collect();
    assert_eq!(wrong, Vec::<&(&str, &str)>::new(), "valid, and should not be");
    let other = [("/x/cur", "/x/current"), ("/x/cur", "/y/cur"), ("/x/cur", "/x/.other.revisions/own")];
    let wrong: Vec<_> = other.iter().filter(|(first, second)| !accepted(first, second)).collect();
    assert_eq!(wrong, Vec::<&(&str, &str)>::new(), "rejected, and should be valid");
}

/// A `path` with `..` is an error; it is not normalized.
#[test]
fn a_path_with_parent_segments_is_an_error() {
    let scene = Scene::new();
    let accepted = |path: &str| {
        let body = format!(
            "sync: {{ a: {{ store: {{ git: {{ url: \"file:///r\", path: \"{path}\" }} }}, publish: {{ symlink: {{ path: /x/cur }} }} }} }}\n"
        );
        let file = scene.write("path.yaml", configuration(&scene, &body));
        let (code, _, report) = outrigger(&["validate", "-c", &file.display().to_string()]);
        assert!(code == 0 || report.contains("path"), "the report contains the key: {report}");
        code == 0
    };
    let wrong: Vec<&str> =
        ["../a", "a/../b", "..", "a/..", "./../a"].into_iter().filter(|path| accepted(path)).collect();
    assert_eq!(wrong, Vec::<&str>::new(), "valid, and should not be");
    let wrong: Vec<&str> =
        ["a", "a/", "./a", "a/..b", "...", "a//b"].into_iter().filter(|path| !accepted(path)).collect();
    assert_eq!(wrong, Vec::<&str>::new(), "rejected, and should be valid");
}

/// The path of a URL is percent-decoded, as git does for file, git and ssh (RFC 3986, 2.1); the sandbox grants the decoded
/// path for reading.
#[test]
fn a_path_with_escapes_in_a_url_is_decoded() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, url) = need!(repository.daemon(&scene), "git-daemon is not installed");
    let commit = repository.id_of("main");
    let mut wrong = Vec::new();
    for (name, escaped) in [("with space", "with%20space"), ("ä+&", "%C3%A4+%26"), ("100%25", "100%2525")] {
        let copied = Command::new("cp").arg("-r").arg(repository.bare()).arg(scene.path("git").join(name)).status();
        assert!(copied.is_ok_and(|status| status.success()), "the repository can be copied");
        let from_file = format!("file://{}/{escaped}", scene.path("git").display());
        for url in [from_file, url.replace("config.git", escaped)] {
            let outcome = resolved(&scene, &url, "main");
            wrong.extend((outcome.as_ref() != Ok(&commit)).then(|| format!("{url}: {outcome:?}")));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
