//! Objects of a repository created by hand, for trees and commits that no work tree produces. In: contents. Out: ids. Objects are
//! written directly to the bare repository that the servers read (`git hash-object -w --literally`), without a check of their
//! content. Limits: what one test writes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::{Repository, git_command};

pub const FILE: &str = "100644";
pub const EXECUTABLE: &str = "100755";
pub const FOLDER: &str = "40000";
pub const LINK: &str = "120000";
pub const SUBMODULE: &str = "160000";

/// One entry of a tree: its mode as encoded in the tree, its name, and the id of its object.
pub type Entry<'a> = (&'a str, &'a str, &'a str);

impl Repository {
    pub fn blob(&self, content: &[u8]) -> String {
        self.object("blob", content)
    }

    /// A tree with exactly these entries in exactly this order, even if they are invalid.
    pub fn tree(&self, entries: &[Entry<'_>]) -> String {
        self.object("tree", &tree_bytes(entries))
    }

    /// A tree with subdirectories: of each file or link its mode, its path and its content, in git's order (gitformat-index: a
    /// directory is sorted as if its name ended in `/`).
    pub fn tree_of(&self, files: &[(&str, &str, &str)]) -> String {
        let mut directories: BTreeMap<&str, Vec<(&str, &str, &str)>> = BTreeMap::new();
        let mut entries = Vec::new();
        for (mode, path, content) in files {
            match path.split_once('/') {
                Some((directory, below)) => directories.entry(directory).or_default().push((mode, below, content)),
                None => entries.push((*mode, *path, self.blob(content.as_bytes()))),
            }
        }
        entries.extend(directories.into_iter().map(|(name, files)| (FOLDER, name, self.tree_of(&files))));
        entries.sort_by_key(|(mode, name, _)| format!("{name}{}", if *mode == FOLDER { "/" } else { "" }));
        let entries: Vec<Entry<'_>> = entries.iter().map(|(mode, name, id)| (*mode, *name, id.as_str())).collect();
        self.tree(&entries)
    }

    pub fn object(&self, kind: &str, content: &[u8]) -> String {
        self.write_with(&["hash-object", "-w", "-t", kind, "--literally", "--stdin"], content)
    }

    /// Commits this tree and points `main` at the commit.
    pub fn commit(&self, tree: &str) -> String {
        let identity = "t <t@localhost> 1700000000 +0000";
        let text = format!("tree {tree}\nauthor {identity}\ncommitter {identity}\n\nby hand\n");
        let commit = self.object("commit", text.as_bytes());
        self.set_ref("refs/heads/main", &commit);
        commit
    }

    /// Points a ref at an object. git itself rejects a branch that does not point to a commit, so this writes the file directly.
    pub fn set_ref(&self, name: &str, id: &str) {
        let path = self.bare().join(name);
        std::fs::create_dir_all(path.parent().expect("a ref has a parent directory"))
            .expect("the repository is writable");
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, format!("{id}\n")).expect("the repository is writable");
        std::fs::rename(&temporary, &path).expect("the repository is writable");
    }

    /// The object to which a name resolves, according to git itself.
    pub fn id_of(&self, name: &str) -> String {
        self.write_with(&["rev-parse", "--verify", "--quiet", name], b"")
    }

    /// Runs git in the bare repository with this input, and returns the line that it prints.
    pub fn write_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = output_of(git_command(&self.bare(), arguments), input);
        String::from_utf8(output).expect("ids are text").trim().to_owned()
    }
}

/// Runs a command with this input, and returns its stdout.
pub fn output_of(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command starts");
    child.stdin.take().expect("its input is a pipe").write_all(input).expect("the command reads its input");
    let output = child.wait_with_output().expect("the command ends");
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Stores other content under an object's id, as a loose object with this header (gitformat-loose): the id is the hash of the
/// content, and a reader that does not verify the hash accepts any content.
pub fn falsify(repository: &Path, id: &str, header: &str, content: &[u8]) {
    let directory = repository.join("objects").join(&id[..2]);
    std::fs::create_dir_all(&directory).expect("the repository is writable");
    let path = directory.join(&id[2..]);
    // git creates its objects read-only; there may be none yet.
    std::fs::remove_file(&path).ok();
    std::fs::write(&path, deflated(&[header.as_bytes(), content].concat())).expect("the repository is writable");
}

pub fn deflated(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}

/// The content of a tree with these entries: for each its mode, its name and the bytes of its id.
pub fn tree_bytes(entries: &[Entry<'_>]) -> Vec<u8> {
    let entry = |(mode, name, id): &Entry<'_>| [format!("{mode} {name}\0").into_bytes(), id_bytes(id)].concat();
    entries.iter().flat_map(entry).collect()
}

pub fn id_bytes(id: &str) -> Vec<u8> {
    let pairs = (0..id.len() / 2).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16));
    pairs.collect::<Result<_, _>>().expect("an id consists of hexadecimal digits")
}
