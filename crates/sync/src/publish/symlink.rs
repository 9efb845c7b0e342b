//! Publication by one atomic rename. In: a finished candidate. Out: the link `path` points to it. Readers that opened the
//! directory before keep a complete old revision; the current and the previous one are retained, older ones are removed after
//! `GRACE`.
//! The published revision is never deleted and never written to.
//!
//! Layout next to the link: `.NAME.revisions/SELECTION/REVISION/…`, with all revisions of one selection (all of a repository, or
//! a directory of it), and `candidate-*` while a candidate is written. The last part of the link's target is the revision's name.

use super::{PublishConfig, Target};
use crate::candidate::{Candidate, Limits};
use crate::files::remove;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use schemars::JsonSchema;
use serde::Deserialize;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a revision that is no longer published is retained for its readers.
const GRACE: Duration = Duration::from_secs(60);

/// Revisions retained in addition to the published one, whatever their age.
const KEEP: usize = 1;

/// Publishes each revision as a separate directory, and atomically replaces a symlink to it: a reader sees one complete revision
/// or the next. The revisions are next to the link, in `.NAME.revisions`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The symlink, an absolute path such as /etc/orders. An existing file or directory with this name is an error.
    pub path: PathBuf,
}

impl Kind for Config {
    fn example() -> &'static str {
        "symlink: { path: /etc/orders }\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let is_valid = self.path.is_absolute() && self.path.file_name().is_some();
        let text = || format!("`path` must be an absolute path with a name, found `{}`", self.path.display());
        let help = "give the path of the link itself, such as /etc/orders";
        (!is_valid).then(|| entry.error(&["path"], text()).help(help)).into_iter().collect()
    }

    /// The link is replaced by a rename in its directory, and the revisions are next to it.
    fn needs(&self, _id: &str) -> Needs {
        let mut needs = Needs::default();
        needs.write_file(&self.path());
        needs
    }
}

impl PublishConfig for Config {
    fn path(&self) -> PathBuf {
        config::needs::normal(&self.path)
    }

    fn occupied(&self) -> Vec<PathBuf> {
        let path = self.path();
        revisions_of(&path).into_iter().chain([path]).collect()
    }

    fn cache(&self) -> PathBuf {
        let path = self.path();
        revisions_of(&path).unwrap_or(path).join(".cache")
    }

    fn open(&self) -> io::Result<Box<dyn Target>> {
        Ok(Box::new(Symlink::open(&self.path())?))
    }
}

/// A link and its revisions.
#[derive(Clone, Debug)]
struct Symlink {
    to: PathBuf,
    revisions: PathBuf,
}

impl Symlink {
    /// Creates the directory for revisions. Errors contain what prevents it.
    fn open(to: &Path) -> io::Result<Symlink> {
        let revisions = revisions_of(to).ok_or_else(|| io::Error::other("the path has no name"))?;
        match fs::symlink_metadata(to) {
            Ok(meta) if !meta.is_symlink() => {
                return Err(io::Error::other(format!(
                    "{} exists and is not a symlink; remove it, or publish below it, such as to {}/current",
                    to.display(),
                    to.display()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", to.display()))),
        }
        fs::create_dir_all(&revisions)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", revisions.display())))?;
        if !fs::symlink_metadata(&revisions)?.is_dir() {
            return Err(io::Error::other(format!("{} is not a directory; remove it", revisions.display())));
        }
        let target = Symlink { to: to.to_path_buf(), revisions };
        target.sweep();
        Ok(target)
    }

    /// Every existing revision, with the time when it was created or last published.
    fn all(&self) -> Vec<(SystemTime, PathBuf)> {
        let directories = |directory: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let is_other = |name: &str| name.starts_with("candidate-") || name.starts_with('.');
            directories.filter(|entry| !is_other(&entry.file_name().to_string_lossy())).map(|e| e.path()).collect()
        };
        // Before there were selections, revisions were stored directly here: their names begin with a commit id.
        let is_revision = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.len() >= COMMIT && name.bytes().take(COMMIT).all(|byte| byte.is_ascii_hexdigit())
        };
        let (old, selections): (Vec<PathBuf>, Vec<PathBuf>) =
            directories(&self.revisions).into_iter().partition(is_revision);
        let revisions = old.into_iter().chain(selections.iter().flat_map(|selection| directories(selection)));
        revisions.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect()
    }

    /// Replaces the link by renaming a new one over it.
    fn point(&self, revision: &str) -> io::Result<()> {
        let Some(parent) = self.to.parent() else { return Err(io::Error::other("the path has no parent directory")) };
        let target = Path::new(self.revisions.file_name().unwrap_or_default()).join(revision);
        let temporary = parent.join(format!(".{}", unique("link")));
        symlink(&target, &temporary)?;
        fs::rename(&temporary, &self.to).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        sync(parent)
    }

    /// Removes revisions that are no longer needed. A failure costs disk space, which the next publication frees.
    fn collect(&self, published: &str) {
        let published = self.revisions.join(published);
        let mut old = self.all();
        old.retain(|(_, path)| *path != published);
        old.sort();
        old.reverse();
        for (modified, path) in old.into_iter().skip(KEEP) {
            if modified.elapsed().is_ok_and(|age| age > GRACE) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    /// Removes candidates that a crash left behind.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.revisions).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("candidate-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Target for Symlink {
    /// What the link points to, as `SELECTION/REVISION`, if its directory exists.
    fn published(&self) -> Option<String> {
        let target = fs::read_link(&self.to).ok()?;
        let name = target.strip_prefix(self.revisions.file_name()?).ok()?.to_str()?.to_string();
        self.revisions.join(&name).is_dir().then_some(name)
    }

    /// When the link was created.
    fn published_at(&self) -> Option<SystemTime> {
        fs::symlink_metadata(&self.to).ok()?.modified().ok()
    }

    /// To the newest revision.
    fn restore(&self) -> io::Result<Option<String>> {
        if fs::symlink_metadata(&self.to).is_ok() {
            return Ok(self.published());
        }
        let newest = self.all().into_iter().max();
        match newest.as_ref().and_then(|(_, path)| path.strip_prefix(&self.revisions).ok()?.to_str()) {
            Some(revision) => self.point(revision).map(|()| Some(revision.to_string())),
            None => Ok(None),
        }
    }

    fn candidate(&self, limits: Limits) -> io::Result<Candidate> {
        Candidate::new(self.revisions.join(unique("candidate")), limits)
    }

    fn publish(&self, candidate: Candidate, revision: &str) -> io::Result<()> {
        let finished = candidate.finish()?;
        let directory = self.revisions.join(revision);
        let selection = directory.parent().unwrap_or(&self.revisions);
        let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        fs::create_dir_all(selection).map_err(with_path)?;
        // The published revision is never written to. Any other with this name may be partially removed.
        if self.published().as_deref() == Some(revision) {
            fs::remove_dir_all(&finished)?;
        } else {
            remove(&directory).map_err(with_path)?;
            fs::rename(&finished, &directory).map_err(with_path)?;
        }
        sync(selection)?;
        sync(&self.revisions)?;
        // Its grace period starts now, not when it was created. A failure shortens the grace period, and nothing else.
        if let Some(previous) = self.published() {
            let _ = File::open(self.revisions.join(previous))
                .and_then(|directory| directory.set_modified(SystemTime::now()));
        }
        self.point(revision)?;
        self.collect(revision);
        Ok(())
    }
}

/// The directory next to a link that contains its revisions.
fn revisions_of(to: &Path) -> Option<PathBuf> {
    Some(to.parent()?.join(format!(".{}.revisions", to.file_name()?.to_string_lossy())))
}

/// Digits of a commit id.
const COMMIT: usize = 40;

fn unique(word: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{word}-{}-{}", std::process::id(), now.as_nanos())
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LIMITS: Limits = Limits { max_files: 100, max_bytes: 1 << 20 };

    fn temp(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("outrigger-publish-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    fn publish(target: &Symlink, revision: &str) {
        let mut candidate = target.candidate(LIMITS).expect("a candidate");
        for name in ["a", "b"] {
            candidate.file(Path::new(name), revision.as_bytes(), false).expect("written");
        }
        target.publish(candidate, revision).expect("published");
    }

    /// Guarantee: publication-atomic
    #[test]
    fn a_held_directory_is_always_one_revision() {
        let dir = temp("readers");
        let to = dir.join("current");
        let target = Symlink::open(&to).expect("a target");
        assert_eq!(target.published(), None);
        publish(&target, "all/r0");
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (to, stop) = (to.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut seen = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let held = fs::canonicalize(&to).expect("always exists");
                    let read = |name: &str| fs::read_to_string(held.join(name)).expect("complete");
                    assert_eq!(read("a"), read("b"));
                    seen += 1;
                }
                seen
            })
        };
        for revision in 1..100 {
            publish(&target, &format!("all/r{revision}"));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("no torn read") > 0);
        assert_eq!(target.published().as_deref(), Some("all/r99"));
        publish(&target, "all/r98");
        let reopened = Symlink::open(&to).expect("reopened");
        assert_eq!(reopened.published().as_deref(), Some("all/r98"));
        fs::remove_file(&to).expect("the link exists");
        assert!(reopened.restore().is_ok_and(|restored| restored.is_some()), "a lost link is restored");
        assert!(reopened.published().is_some());
        let _ = fs::remove_dir_all(&dir);
    }

    #[test]
    fn an_existing_directory_is_never_replaced() {
        let dir = temp("inway");
        let to = dir.join("current");
        fs::create_dir(&to).expect("a directory");
        assert!(Symlink::open(&to).is_err_and(|error| error.to_string().contains("not a symlink")));
        let _ = fs::remove_dir_all(&dir);
    }
}
