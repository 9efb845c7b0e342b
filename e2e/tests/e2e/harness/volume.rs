//! A folder of a scene as a volume of its own with little room, as a `tmpfs` that only the program under test sees: for
//! what happens when a disk is full. In: a folder and a size. Out: the program started on it, and the folder's files as
//! this process reaches them. Gone with the program; skipped where nothing can be mounted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::outrigger::binary;
use super::{Outrigger, Scene, Wait, peer};

pub const NO_VOLUME: &str = "not root, or a file system cannot be mounted in a namespace of its own";

pub struct Volume {
    folder: PathBuf,
    script: String,
}

impl Volume {
    /// `size` as tmpfs(5) reads it; `filled` bytes of it are taken at the start, by a file `filler`.
    pub fn new(scene: &Scene, folder: &str, size: &str, filled: usize) -> Option<Self> {
        let unshare = peer("unshare")?;
        let try_it = ["--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs tmpfs /tmp"];
        if !std::process::Command::new(&unshare).args(try_it).output().is_ok_and(|output| output.status.success()) {
            return None;
        }
        let path = scene.path(folder);
        std::fs::create_dir_all(&path).expect("the scene takes folders");
        let (shown, binary, unshare) = (path.display(), binary(), unshare.display());
        let mount = format!("mount -t tmpfs -o size={size} tmpfs '{shown}'");
        let fill = format!("head -c {filled} /dev/zero > '{shown}/filler' 2> /dev/null");
        let inner =
            scene.script("on-the-volume", &format!("#!/bin/sh\n{mount} || exit 99\n{fill}\nexec '{binary}' \"$@\"\n"));
        let outer = format!("#!/bin/sh\nexec {unshare} --mount --propagation private '{}' \"$@\"\n", inner.display());
        let script = scene.script("with-a-volume", &outer).display().to_string();
        Some(Self { folder: path, script })
    }

    /// Starts the program as `Outrigger::start` does, with the folder on the volume.
    #[track_caller]
    pub fn start(&self, scene: &Scene, body: &str) -> Outrigger {
        Outrigger::start_binary(&self.script, scene, "outrigger.yaml", body, &[], Wait::Ready, |_| {})
    }

    /// A file of the volume, as this process reaches it while the program runs.
    pub fn path(&self, outrigger: &Outrigger, name: &str) -> PathBuf {
        let folder = self.folder.strip_prefix("/").expect("a scene has an absolute path");
        PathBuf::from(format!("/proc/{}/root", outrigger.pid())).join(folder).join(name)
    }

    /// Takes all the room that is left.
    pub fn fill(&self, outrigger: &Outrigger) {
        let filler = OpenOptions::new().create(true).append(true).open(self.path(outrigger, "filler"));
        let mut filler = filler.expect("the volume has names left");
        while filler.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    }

    /// Gives the room of the filler back.
    pub fn free(&self, outrigger: &Outrigger) {
        std::fs::remove_file(self.path(outrigger, "filler")).expect("the filler is there");
    }
}
