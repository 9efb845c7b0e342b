//! The program with a repository of hostile revisions: it must reject each of them, keep its worker running, and publish the next
//! valid commit. In: commits. Out: failures as text, so that one start serves a list of cases. Limits: that of each wait.

use std::path::PathBuf;
use std::time::Duration;

use super::objects::FILE;
use super::pack_server::PackServer;
use super::{Repository, published_commit, sync_state};
use crate::harness::{Outrigger, PATIENCE, Scene, within};

const SETTINGS: &str = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: main, interval: 100ms } }, publish: { symlink: { path: "@dir@/out/settings" } }@limits@ }
"#;

/// A repository, the program that follows it, and the active worker.
pub struct Followed {
    pub scene: Scene,
    pub repository: Repository,
    pub outrigger: Outrigger,
    pub worker: u32,
    server: Option<PackServer>,
    good: usize,
}

/// How long the check of a hostile revision may take on a busy machine; the store is polled ten times a second.
pub const REFUSED: Duration = Duration::from_secs(6);

impl Followed {
    pub fn start(limits: &str) -> Option<Self> {
        let scene = Scene::new();
        let repository = Repository::create(&scene)?;
        let url = repository.file_url();
        Some(Self::start_from(scene, repository, &url, limits))
    }

    /// With a server that sends any given pack; first that of the current commit.
    pub fn start_with_packs() -> Option<Self> {
        let scene = Scene::new();
        let repository = Repository::create(&scene)?;
        let server = PackServer::start();
        server.offer_commit(&repository, &repository.id_of("main"));
        let url = server.url();
        Some(Self { server: Some(server), ..Self::start_from(scene, repository, &url, "") })
    }

    pub fn start_from(scene: Scene, repository: Repository, url: &str, limits: &str) -> Self {
        scene.set("url", url);
        scene.set("limits", limits);
        let outrigger = Outrigger::start(&scene, SETTINGS, &[]);
        let worker = outrigger.worker();
        Self { scene, repository, outrigger, worker, server: None, good: 0 }
    }

    pub fn to(&self) -> PathBuf {
        self.scene.path("out/settings")
    }

    pub fn is_published(&self, commit: &str) -> bool {
        published_commit(&self.to()).as_deref() == Some(commit)
    }

    /// Waits until the current revision is rejected with all of these words, or returns what happened instead.
    pub fn refuses(&self, commit: &str, words: &[&str], limit: Duration) -> Result<(), String> {
        let mut last = (String::new(), String::new());
        let refused = within(limit, || {
            last = sync_state(&self.outrigger);
            last.0 == "degraded" && words.iter().all(|word| last.1.contains(word)) || self.is_published(commit)
        });
        match self.outrigger.find_worker() {
            _ if self.is_published(commit) => Err("it is published".to_owned()),
            Some(worker) if worker != self.worker => Err("the worker was replaced".to_owned()),
            _ if !refused => Err(format!("not rejected with {words:?}: {last:?}")),
            _ => Ok(()),
        }
    }

    /// A valid commit is published, and sync recovers.
    pub fn corrects(&mut self) -> Result<(), String> {
        self.good += 1;
        let tree = self.repository.tree_of(&[(FILE, "good.conf", &format!("good={:06}\n", self.good))]);
        let commit = self.repository.commit(&tree);
        self.server.iter().for_each(|server| server.offer_commit(&self.repository, &commit));
        let published = within(PATIENCE, || self.is_published(&commit) && sync_state(&self.outrigger).0 == "ok");
        if published { Ok(()) } else { Err(format!("after the corrected push: {:?}", sync_state(&self.outrigger))) }
    }

    /// Commits a hostile tree and then a valid one; failures are added to the list with the name of the case.
    pub fn check(&mut self, wrong: &mut Vec<String>, case: &str, tree: &str, words: &[&str]) {
        let commit = self.repository.commit(tree);
        self.check_commit(wrong, case, &commit, words, REFUSED);
    }

    /// The server of `start_with_packs`.
    pub fn server(&self) -> &PackServer {
        self.server.as_ref().expect("started by `start_with_packs`")
    }

    pub fn check_commit(&mut self, wrong: &mut Vec<String>, case: &str, commit: &str, words: &[&str], limit: Duration) {
        let refused = self.refuses(commit, words, limit);
        let corrected = self.corrects();
        wrong.extend([refused, corrected].into_iter().filter_map(Result::err).map(|why| format!("{case}: {why}")));
        self.worker = self.outrigger.worker();
    }

    #[track_caller]
    pub fn finish(self, wrong: &[String]) {
        self.outrigger.finish();
        assert_eq!(wrong, Vec::<String>::new());
    }
}
