//! Objects of a repository made by hand, for trees and commits that no work tree gives. Contents come in, ids go out; they are
//! written straight into the bare repository that the servers read (`git hash-object -w --literally`), without a check of what
//! they say. Bounded by what one test writes.

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

/// One entry of a tree: its mode as the tree spells it, its name, and the object that it names.
pub type Entry<'a> = (&'a str, &'a str, &'a str);

impl Repository {
    pub fn blob(&self, content: &[u8]) -> String {
        self.object("blob", content)
    }

    /// A tree with exactly these entries in exactly this order, whatever they name.
    pub fn tree(&self, entries: &[Entry<'_>]) -> String {
        self.object("tree", &tree_bytes(entries))
    }

    /// A tree with folders below it: of each file or link its mode, its path and its content, in git's order (gitformat-index:
    /// a folder stands as if its name ended in `/`).
    pub fn tree_of(&self, files: &[(&str, &str, &str)]) -> String {
        let mut folders: BTreeMap<&str, Vec<(&str, &str, &str)>> = BTreeMap::new();
        let mut entries = Vec::new();
        for (mode, path, content) in files {
            match path.split_once('/') {
                Some((folder, below)) => folders.entry(folder).or_default().push((mode, below, content)),
                None => entries.push((*mode, *path, self.blob(content.as_bytes()))),
            }
        }
        entries.extend(folders.into_iter().map(|(name, files)| (FOLDER, name, self.tree_of(&files))));
        entries.sort_by_key(|(mode, name, _)| format!("{name}{}", if *mode == FOLDER { "/" } else { "" }));
        let entries: Vec<Entry<'_>> = entries.iter().map(|(mode, name, id)| (*mode, *name, id.as_str())).collect();
        self.tree(&entries)
    }

    pub fn object(&self, kind: &str, content: &[u8]) -> String {
        self.write_with(&["hash-object", "-w", "-t", kind, "--literally", "--stdin"], content)
    }

    /// A commit of this tree becomes what `main` names.
    pub fn commit(&self, tree: &str) -> String {
        let people = "t <t@localhost> 1700000000 +0000";
        let text = format!("tree {tree}\nauthor {people}\ncommitter {people}\n\nby hand\n");
        let commit = self.object("commit", text.as_bytes());
        self.set_ref("refs/heads/main", &commit);
        commit
    }

    /// Points a ref at an object; git itself refuses a branch that names no commit, so that the file is written as it stands.
    pub fn set_ref(&self, name: &str, id: &str) {
        let path = self.bare().join(name);
        std::fs::create_dir_all(path.parent().expect("a ref lies in a folder")).expect("the repository takes folders");
        let beside = path.with_extension("new");
        std::fs::write(&beside, format!("{id}\n")).expect("the repository takes a ref");
        std::fs::rename(&beside, &path).expect("the repository takes a ref");
    }

    /// What a name stands for, as git itself reads it.
    pub fn id_of(&self, name: &str) -> String {
        self.write_with(&["rev-parse", "--verify", "--quiet", name], b"")
    }

    /// Runs git in the bare repository with this on its input, and gives the line that it prints.
    pub fn write_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = output_of(git_command(&self.bare(), arguments), input);
        String::from_utf8(output).expect("ids are text").trim().to_owned()
    }
}

/// Runs a command with this on its input, and gives what it prints.
pub fn output_of(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command starts");
    child.stdin.take().expect("its input is a pipe").write_all(input).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Puts other content under an object's id, as a loose object with this header (gitformat-loose): git names content by its hash,
/// and whoever does not ask for the hash takes as it is what lies there.
pub fn falsify(repository: &Path, id: &str, header: &str, content: &[u8]) {
    let folder = repository.join("objects").join(&id[..2]);
    std::fs::create_dir_all(&folder).expect("the repository takes folders");
    let path = folder.join(&id[2..]);
    // git makes its objects read-only, and none may be there yet.
    std::fs::remove_file(&path).ok();
    std::fs::write(&path, deflated(&[header.as_bytes(), content].concat())).expect("the repository takes an object");
}

pub fn deflated(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

/// What a tree of these entries consists of: for each its mode, its name and the bytes of its id.
pub fn tree_bytes(entries: &[Entry<'_>]) -> Vec<u8> {
    let entry = |(mode, name, id): &Entry<'_>| [format!("{mode} {name}\0").into_bytes(), id_bytes(id)].concat();
    entries.iter().flat_map(entry).collect()
}

pub fn id_bytes(id: &str) -> Vec<u8> {
    let pairs = (0..id.len() / 2).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16));
    pairs.collect::<Result<_, _>>().expect("an id is written in hexadecimal digits")
}
