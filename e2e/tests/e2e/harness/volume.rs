//! A directory of a scene as a separate small volume, a `tmpfs` that only the program under test sees: for tests with a full
//! disk. In: a directory and a size. Out: the program started with it, and the paths of the volume's files for this process.
//! Limits: the volume exists as long as the program; a test is skipped if mounts are not possible.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::outrigger::binary;
use super::{Outrigger, Scene, Wait, peer};

pub const NO_VOLUME: &str = "not root, or a file system cannot be mounted in a separate namespace";

pub struct Volume {
    directory: PathBuf,
    script: String,
}

impl Volume {
    /// `size` is in the format of tmpfs(5); a file `filler` uses `filled` bytes of it at the start.
    pub fn new(scene: &Scene, directory: &str, size: &str, filled: usize) -> Option<Self> {
        let unshare = peer("unshare")?;
        let try_it = ["--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs tmpfs /tmp"];
        if !std::process::Command::new(&unshare).args(try_it).output().is_ok_and(|output| output.status.success()) {
            return None;
        }
        let path = scene.path(directory);
        std::fs::create_dir_all(&path).expect("the scene is writable");
        let (shown, binary, unshare) = (path.display(), binary(), unshare.display());
        let mount = format!("mount -t tmpfs -o size={size} tmpfs '{shown}'");
        let fill = format!("head -c {filled} /dev/zero > '{shown}/filler' 2> /dev/null");
        let inner =
            scene.script("on-the-volume", &format!("#!/bin/sh\n{mount} || exit 99\n{fill}\nexec '{binary}' \"$@\"\n"));
        let outer = format!("#!/bin/sh\nexec {unshare} --mount --propagation private '{}' \"$@\"\n", inner.display());
        let script = scene.script("with-a-volume", &outer).display().to_string();
        Some(Self { directory: path, script })
    }

    /// Starts the program as `Outrigger::start` does, with the directory on the volume.
    #[track_caller]
    pub fn start(&self, scene: &Scene, body: &str) -> Outrigger {
        Outrigger::start_binary(&self.script, scene, "outrigger.yaml", body, &[], Wait::Ready, |_| {})
    }

    /// The path of a file on the volume for this process, while the program runs.
    pub fn path(&self, outrigger: &Outrigger, name: &str) -> PathBuf {
        let directory = self.directory.strip_prefix("/").expect("a scene has an absolute path");
        PathBuf::from(format!("/proc/{}/root", outrigger.pid())).join(directory).join(name)
    }

    /// Uses all of the free space.
    pub fn fill(&self, outrigger: &Outrigger) {
        let filler = OpenOptions::new().create(true).append(true).open(self.path(outrigger, "filler"));
        let mut filler = filler.expect("the volume has a free inode");
        while filler.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    }

    /// Frees the space of the filler.
    pub fn free(&self, outrigger: &Outrigger) {
        std::fs::remove_file(self.path(outrigger, "filler")).expect("the filler exists");
    }
}
