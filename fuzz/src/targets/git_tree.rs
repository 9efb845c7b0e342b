//! A hostile repository: refs and objects that git never writes, and the tree of a commit that is to be published. In: lines that
//! describe the repository. Out: nothing is written outside the candidate's own directory; the published tree is within its
//! limits and contains only files, directories and links that stay inside it; a rejected tree leaves nothing.
//!
//! A line is one of these; `%0a` is a byte in a name or a text, `{out}` the path of a file next to the candidate, `@` an ID:
//!
//! ```text
//! 100644 NAME TEXT    an entry of the directory, with any mode; 120000 is a link to TEXT
//! 40000 NAME          opens a directory, `..` closes it; `same NAME` is another entry with the last closed directory
//! tree TEXT           the bytes of the outermost tree instead; `@` is the ID of a file, in 20 bytes
//! commit TEXT         the commit's text; `@` is the ID of the tree
//! tag TEXT            a tag's text, and from then on `@` in refs is its ID; `@` is the ID of the commit, or of the previous tag
//! ref NAME TEXT       a ref; `@` is the ID of the commit
//! HEAD TEXT, packed TEXT   the file HEAD, a line of packed-refs
//! want REF, path PATH      `ref` and `path` of the configuration
//! ```

use crate::assemble::unescape;
use crate::attempt::{bucket, outline, shape};
use crate::scratch;
use config::registry::{Configured, Entry, Kind as _};
use gix::objs::{Kind, Write as _};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use sync::candidate::{Candidate, Limits};
use sync::store::{Fetched, StoreConfig as _, git};

pub const WORDS: &[&str] = &[
    "100644 ",
    "100755 ",
    "100664 a x\n",
    "120000 l ",
    "120000 l ..\n",
    "120000 e x/l/../../x\n",
    "160000 s\n",
    "40000 ",
    "40000 x\n",
    "..\n",
    "same y\n",
    "tree 100644 a%00@",
    "commit tree @\nx",
    "commit tree @%0aauthor a <a> 0 +0000%0acommitter a <a> 0 +0000%0a%0am",
    "tag object @%0atype commit%0atag v%0a%0am",
    "ref refs/heads/main @\n",
    "ref refs/heads/main ref: refs/heads/other\n",
    "HEAD ref: refs/heads/main\n",
    "HEAD ref: HEAD\n",
    "HEAD @\n",
    "packed @ refs/heads/main\n",
    "packed # pack-refs with: peeled fully-peeled sorted\n",
    "packed ^@\n",
    "want HEAD\n",
    "want main\n",
    "want refs/heads/main\n",
    "want @\n",
    "path x\n",
    "path ../x/./y\n",
    "..",
    "../",
    ".",
    "/",
    "{out}",
    ".git",
    "..%2f..%2fx",
    "%00",
    "%0a",
    "%ff",
    "%5c",
    "@",
    "x/l",
];

const LIMITS: Limits = Limits { max_files: 40, max_bytes: 4 << 10 };

/// A file next to the candidate, and its content.
const BESIDE: (&str, &[u8]) = ("beside", b"untouched");

/// Inputs after which the repository is re-created, since objects accumulate.
const RUNS_MAX: usize = 200;

struct Place {
    directory: PathBuf,
    repository: gix::Repository,
    runs: usize,
}

thread_local! {
    static PLACE: std::cell::RefCell<Option<Place>> = const { std::cell::RefCell::new(None) };
}

pub fn run(input: &[u8]) {
    PLACE.with_borrow_mut(|place| {
        if place.as_ref().is_none_or(|place| place.runs >= RUNS_MAX)
            && let Some(old) = place.replace(Place::new())
        {
            // Remaining files are removed with the scratch directory.
            let _ = fs::remove_dir_all(&old.directory);
        }
        if let Some(place) = place {
            place.runs += 1;
            place.one(input);
        }
    });
}

impl Place {
    fn new() -> Place {
        let directory = scratch::directory("git_tree");
        fs::create_dir(directory.join("stage")).expect("a directory");
        fs::write(directory.join("stage").join(BESIDE.0), BESIDE.1).expect("a file");
        let repository = gix::init_bare(directory.join("repository")).expect("a repository");
        Place { directory, repository, runs: 0 }
    }

    fn one(&self, input: &[u8]) {
        let script = Script::read(input, &self.directory.join("stage").join(BESIDE.0));
        let Some(commit) = self.write(&script) else { return };
        let (root, stage_directory) = (self.directory.join("stage/candidate"), self.directory.join("stage"));
        // The files of a failed run.
        let _ = fs::remove_dir_all(&root);
        let config = serde_json::json!({
            "url": format!("file://{}", self.directory.join("repository").display()),
            "ref": script.want.replace('@', &commit.to_string()),
            "path": script.path,
        });
        let config: git::Config = serde_json::from_value(config).expect("a configuration of the store");
        let tree = config::tree::parse("{}").expect("an empty mapping");
        let entry = Entry { id: "sync.fuzz.store", node: &tree, configured: Configured::default() };
        if !config.check(&entry).is_empty() {
            return;
        }
        let mut store = config.build(self.directory.join("cache"), LIMITS.max_bytes).expect("a store");
        let mut stage = || Candidate::new(root.clone(), LIMITS).map_err(|error| error.to_string());
        match store.fetch(None, &mut stage) {
            Ok((Fetched::New { revision }, Some(candidate))) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
                let parts: Vec<&str> = revision.split('/').collect();
                let is_name = |part: &&str| !part.is_empty() && part.chars().all(plain);
                assert!(
                    parts.len() == 2 && parts.iter().all(is_name),
                    "`{revision}` becomes a directory in a directory"
                );
                match candidate.finish() {
                    Ok(path) => {
                        assert_eq!(path, root);
                        check(&root);
                        fs::remove_dir_all(&root).expect("the published tree can be removed");
                    }
                    // The targets of links are known only at the end.
                    Err(error) => {
                        let (root, text) = (root.display().to_string(), error.to_string());
                        shape(outline(&text));
                        assert!(text.contains("leads out"), "a candidate can be synced: {text} in {root}");
                    }
                }
            }
            Ok((fetched, candidate)) => {
                panic!("expected a new revision, got {fetched:?}, {}", candidate.is_some())
            }
            Err(error) => {
                shape((outline(&error.text), error.wait.is_some()));
                let is_line = !error.text.is_empty() && !error.text.chars().any(char::is_control);
                assert!(is_line, "an error is a line: {:?}", error.text);
            }
        }
        let left: Vec<_> =
            fs::read_dir(&stage_directory).expect("a directory").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, [BESIDE.0], "nothing remains next to the candidate");
        assert_eq!(
            fs::read(stage_directory.join(BESIDE.0)).ok().as_deref(),
            Some(BESIDE.1),
            "nothing is written next to the candidate"
        );
    }

    /// Writes the objects and refs; `None` if the file system rejects a name.
    fn write(&self, script: &Script) -> Option<gix::ObjectId> {
        let git = self.repository.git_dir();
        for name in ["refs", "packed-refs"] {
            let path = git.join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        fs::create_dir_all(git.join("refs/heads")).ok()?;
        let put = |kind, bytes: &[u8]| self.repository.objects.write_buf(kind, bytes).expect("an object");
        let file = put(Kind::Blob, b"x");
        let tree = match &script.raw_tree {
            Some(raw) => put(Kind::Tree, &replace(raw, file.as_bytes())),
            None => script.entries.tree(&put),
        };
        let commit = put(Kind::Commit, &replace(&script.commit, tree.to_string().as_bytes()));
        let tip = script.tags.iter().fold(commit, |tip, tag| put(Kind::Tag, &replace(tag, tip.to_string().as_bytes())));
        let with_id = |text: &[u8]| replace(text, tip.to_string().as_bytes());
        fs::write(git.join("HEAD"), with_id(&script.head)).ok()?;
        if !script.packed.is_empty() {
            fs::write(git.join("packed-refs"), with_id(&script.packed)).ok()?;
        }
        for (name, text) in &script.refs {
            let path = git.join(name);
            fs::create_dir_all(path.parent()?).ok()?;
            fs::write(path, with_id(text)).ok()?;
        }
        Some(tip)
    }
}

/// `@` stands for an ID.
fn replace(text: &[u8], id: &[u8]) -> Vec<u8> {
    text.split(|byte| *byte == b'@').collect::<Vec<_>>().join(id)
}

/// The published tree is within its limits, and no link escapes it.
fn check(root: &Path) {
    let (mut files, mut bytes, mut links) = (0, 0, 0);
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("an entry"));
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                assert_eq!(mode, 0o755, "{path:?}");
                directories.push(path);
            } else if meta.is_symlink() {
                files += 1;
                links += 1;
                check_link(root, &path);
            } else {
                assert!(meta.is_file(), "{path:?} is neither a file, a directory nor a link");
                assert!(matches!(mode, 0o644 | 0o755), "{path:?}: {mode:o}");
                files += 1;
                bytes += meta.len();
            }
        }
    }
    shape(("published", bucket(files), bucket(bytes as usize), bucket(links)));
    assert!(files <= LIMITS.max_files && bytes <= LIMITS.max_bytes, "{files} files, {bytes} bytes");
}

/// Follows a link as the kernel would: no step leaves the root, through any other links.
fn check_link(root: &Path, link: &Path) {
    let mut here = link.parent().expect("a link is in a directory").to_path_buf();
    let push = |todo: &mut Vec<PathBuf>, target: &Path| {
        todo.extend(target.components().rev().map(|part| PathBuf::from(part.as_os_str())));
    };
    let (mut todo, mut steps) = (Vec::new(), 0);
    let shown = || format!("{} -> {}", link.display(), fs::read_link(link).unwrap_or_default().display());
    push(&mut todo, &fs::read_link(link).expect("a link has a target"));
    while let Some(part) = todo.pop() {
        steps += 1;
        if steps > 200 {
            return;
        }
        match part.components().next() {
            Some(Component::ParentDir) => {
                assert!(here != root, "the link {} escapes the published tree", shown());
                here.pop();
            }
            Some(Component::Normal(name)) => {
                let next = here.join(name);
                match fs::read_link(&next) {
                    Ok(target) => push(&mut todo, &target),
                    Err(_) => here = next,
                }
            }
            Some(Component::RootDir) => panic!("the link {} escapes the published tree", shown()),
            _ => {}
        }
    }
}

/// A directory as the lines describe it: mode, name, and content.
#[derive(Default)]
struct Directory(Vec<(Vec<u8>, Vec<u8>, Content)>);

enum Content {
    Bytes(Vec<u8>),
    Directory(Directory),
    /// The previous directory.
    Same,
}

impl Directory {
    fn tree(&self, put: &dyn Fn(Kind, &[u8]) -> gix::ObjectId) -> gix::ObjectId {
        let (mut bytes, mut last) = (Vec::new(), None);
        for (mode, name, content) in &self.0 {
            let id = match content {
                Content::Bytes(content) => put(Kind::Blob, content),
                Content::Directory(directory) => *last.insert(directory.tree(put)),
                Content::Same => last.unwrap_or_else(|| put(Kind::Tree, b"")),
            };
            for part in [mode, &b" "[..], name, b"\0", id.as_bytes()] {
                bytes.extend_from_slice(part);
            }
        }
        put(Kind::Tree, &bytes)
    }
}

struct Script {
    entries: Directory,
    raw_tree: Option<Vec<u8>>,
    commit: Vec<u8>,
    tags: Vec<Vec<u8>>,
    head: Vec<u8>,
    refs: Vec<(PathBuf, Vec<u8>)>,
    packed: Vec<u8>,
    want: String,
    path: Option<String>,
}

/// The only `@` is the ID of the tree.
const COMMIT: &[u8] = b"tree @\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nm\n";

/// Nested directories that a script can open: more than are accepted.
const DEPTH_MAX: usize = 80;

impl Script {
    fn read(input: &[u8], out: &Path) -> Script {
        let mut script = Script {
            entries: Directory::default(),
            raw_tree: None,
            commit: COMMIT.to_vec(),
            tags: Vec::new(),
            head: b"ref: refs/heads/main\n".to_vec(),
            refs: vec![("refs/heads/main".into(), b"@\n".to_vec())],
            packed: Vec::new(),
            want: "HEAD".into(),
            path: None,
        };
        let mut open = vec![(Vec::new(), Vec::new(), Directory::default())];
        for line in input.split(|byte| *byte == b'\n') {
            let mut words = line.splitn(3, |byte| *byte == b' ').map(|word| text(word, out));
            let (word, first) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let second = words.next();
            let rest =
                [&first[..], if second.is_some() { b" " } else { b"" }, second.as_deref().unwrap_or(&[])].concat();
            script.line(&word, first, second.unwrap_or_default(), rest, &mut open);
        }
        while open.len() > 1 {
            close(&mut open);
        }
        script.entries = open.pop().map(|(.., directory)| directory).unwrap_or_default();
        script
    }

    fn line(&mut self, word: &[u8], first: Vec<u8>, second: Vec<u8>, rest: Vec<u8>, open: &mut Vec<Opened>) {
        match word {
            b"tree" => self.raw_tree = Some(rest),
            b"commit" => self.commit = rest,
            b"tag" => self.tags.push(rest),
            b"HEAD" => self.head = rest,
            b"packed" => self.packed.extend([&rest[..], b"\n"].concat()),
            b"want" => self.want = String::from_utf8_lossy(&rest).into_owned(),
            b"path" => self.path = Some(String::from_utf8_lossy(&rest).into_owned()),
            b"ref" => {
                let name = Path::new(std::ffi::OsStr::from_bytes(&first));
                let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
                if plain && name.starts_with("refs") && !first.contains(&0) && first.len() < 200 {
                    self.refs.push((name.to_path_buf(), second));
                }
            }
            b".." if open.len() > 1 => close(open),
            b"same" => entry(open, b"40000".to_vec(), first, Content::Same),
            b"40000" if open.len() < DEPTH_MAX => open.push((word.to_vec(), first, Directory::default())),
            mode if !mode.is_empty() && mode.iter().all(u8::is_ascii_digit) => {
                entry(open, mode.to_vec(), first, Content::Bytes(second));
            }
            _ => {}
        }
    }
}

type Opened = (Vec<u8>, Vec<u8>, Directory);

fn entry(open: &mut [Opened], mode: Vec<u8>, name: Vec<u8>, content: Content) {
    if let Some((.., directory)) = open.last_mut() {
        directory.0.push((mode, name, content));
    }
}

fn close(open: &mut Vec<Opened>) {
    if let Some((mode, name, directory)) = open.pop() {
        entry(open, mode, name, Content::Directory(directory));
    }
}

/// A word with its escapes and `{out}` replaced.
fn text(word: &[u8], out: &Path) -> Vec<u8> {
    const OUT: &[u8] = b"{out}";
    let mut bytes = unescape(word);
    if let Some(at) = bytes.windows(OUT.len()).position(|part| part == OUT) {
        bytes.splice(at..at + OUT.len(), out.as_os_str().as_bytes().iter().copied());
    }
    bytes
}
