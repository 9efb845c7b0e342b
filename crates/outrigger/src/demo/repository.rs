//! The demo's git repository, created and committed to without the program `git`.

use gix::bstr::BString;
use gix::objs::tree::{Entry, EntryKind};
use std::path::Path;

/// A bare repository with one commit on `main`.
pub fn create(path: &Path, greeting: &str) -> Result<(), String> {
    let options = gix::open::Options::isolated();
    gix::ThreadSafeRepository::init_opts(path, gix::create::Kind::Bare, Default::default(), options)
        .map_err(|error| error.to_string())?;
    // Independent of the default of this machine, the demo's branch is `main`.
    std::fs::write(path.join("HEAD"), "ref: refs/heads/main\n").map_err(|error| error.to_string())?;
    commit(path, greeting)
}

/// Commits a new greeting.
pub fn commit(path: &Path, greeting: &str) -> Result<(), String> {
    let repository = gix::open_opts(path, gix::open::Options::isolated().with(gix::sec::Trust::Full))
        .map_err(|error| error.to_string())?;
    let write = || -> gix::error::Result<()> {
        let blob = repository.write_blob(format!("{greeting}\n"))?.detach();
        let entry = Entry { mode: EntryKind::Blob.into(), filename: BString::from("greeting.txt"), oid: blob };
        let tree = repository.write_object(gix::objs::Tree { entries: vec![entry] })?.detach();
        let parents: Vec<gix::ObjectId> = repository.head_id().ok().map(|id| id.detach()).into_iter().collect();
        let time = gix::date::Time::now_utc();
        let name = gix::actor::Signature { name: "demo".into(), email: "demo@example.com".into(), time };
        let mut buffer = gix::date::parse::TimeBuf::default();
        let author = name.to_ref(&mut buffer);
        repository.commit_as(author, author, "refs/heads/main", format!("greeting: {greeting}"), tree, parents)?;
        Ok(())
    };
    write().map_err(|error| error.to_string())
}
