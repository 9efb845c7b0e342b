//! A git repository over file://, git://, http(s):// or ssh. In: a URL, a ref and a path. Out: the tree of the commit that the
//! ref points to. A poll costs one listing of refs; only a new commit is fetched, without its history (depth 1), into a bare
//! repository that is the cache, and `tree.rs` writes its tree: no index, no checkout, no other program than ssh. Limits:
//! `RESPONSE_MAX` for a response over HTTP, `PACKS_MAX` packs before the cache is re-created.

mod reports;
mod request;
mod ssh;
mod transport;
mod tree;

use super::{Failure, Fetched, Store, StoreConfig};
use crate::candidate::Candidate;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use config::unit::TimeSpan;
use gix::bstr::{BString, ByteSlice as _};
use gix::remote::Direction;
use schemars::JsonSchema;
use serde::Deserialize;
use std::cell::Cell;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

net::http_client! {
    /// Follows a branch, tag or commit of a git repository, or one directory of it. Transports: `file://` (read directly),
    /// `git://`, `http://`, `https://` and `ssh://` (requires the program `ssh`). A tag or a commit id pins the revision; a
    /// branch is followed forward and backward. Submodules and large-file pointers are not resolved.
    pub struct Config {
        /// The repository, such as `https://host/path`, `ssh://user@host/path`, `git://host/path` or `file:///srv/config.git`.
        pub url: String,
        /// The branch, tag or full commit id.
        #[serde(default = "head", rename = "ref")]
        pub reference: String,
        /// The directory of the repository that is published. Default: all of it.
        #[serde(default)]
        pub path: Option<PathBuf>,
        /// How often the repository is polled, at least 100ms.
        #[serde(default = "interval")]
        pub interval: TimeSpan,
        /// The key and the known hosts for `ssh://`.
        #[serde(default)]
        pub ssh: Ssh,
    }
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// The private key. Default: ssh's own.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The trusted hosts; an unknown one is always rejected. Default: ssh's own.
    #[serde(default)]
    pub known_hosts_file: Option<PathBuf>,
}

impl Kind for Config {
    fn example() -> &'static str {
        "git: { url: \"https://git.example/config.git\", ref: main, path: orders/ }\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        use gix::url::Scheme;
        let mut findings = Vec::new();
        match gix::url::parse(self.url.as_bytes().as_bstr()) {
            Err(error) => findings.push(entry.error(&["url"], format!("`url` is not a git URL: {}", chain(&error)))),
            Ok(url)
                if matches!(url.scheme, Scheme::File | Scheme::Git | Scheme::Http | Scheme::Https | Scheme::Ssh) => {}
            Ok(url) => {
                let scheme = url.scheme.as_str();
                let text = format!("unsupported scheme {scheme} in `url`, expected file, git, http, https or ssh");
                findings.push(entry.error(&["url"], text));
            }
        }
        let climbs = |path: &PathBuf| path.components().any(|part| matches!(part, Component::ParentDir));
        if self.path.as_ref().is_some_and(climbs) {
            findings.push(entry.error(&["path"], "`path` must be a directory of the repository, without `..`"));
        }
        if self.reference.is_empty() || self.reference.starts_with('-') {
            findings.push(entry.error(&["ref"], "`ref` must be a branch, a tag or a commit"));
        }
        findings
    }

    fn check_system(&self) -> Result<(), String> {
        Git::new(self.clone(), PathBuf::new(), 0).map(drop)
    }

    /// A directory, a port, or the program ssh with its keys.
    fn needs(&self, _id: &str) -> Needs {
        use gix::url::Scheme;
        let mut needs = Needs::default();
        let Ok(url) = gix::url::parse(self.url.as_bytes().as_bstr()) else { return needs };
        match url.scheme {
            Scheme::File => needs.read.push(local_path(&url)),
            Scheme::Http | Scheme::Https => needs.add(net::needs(&self.url, &self.client())),
            Scheme::Git => {
                needs.add(net::needs("", &self.client()));
                needs.connect.extend([url.port.unwrap_or(GIT_PORT), DNS_PORT]);
            }
            Scheme::Ssh => {
                needs.programs.push("ssh".into());
                needs.connect.extend([url.port.unwrap_or(SSH_PORT), DNS_PORT]);
                [&self.ssh.key_file, &self.ssh.known_hosts_file]
                    .into_iter()
                    .flatten()
                    .for_each(|file| needs.read_replaced(file));
                // ssh's own keys, known hosts and configuration, and the users and names that it looks up.
                needs.read.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh")));
                needs.read.extend(["/etc/ssh", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"].map(PathBuf::from));
                needs.read.extend(["/etc/resolv.conf", "/etc/hosts", "/etc/host.conf"].map(PathBuf::from));
            }
            _ => {}
        }
        needs
    }
}

impl StoreConfig for Config {
    fn interval(&self) -> Duration {
        self.interval.0
    }

    fn build(&self, cache: PathBuf, max_bytes: u64) -> Result<Box<dyn Store>, String> {
        Ok(Box::new(Git::new(self.clone(), cache, max_bytes)?))
    }

    fn describe(&self) -> String {
        format!("{} {}", config::diag::hide_query(&self.url), self.reference)
    }
}

/// IANA's registered ports of the transports.
const GIT_PORT: u16 = 9418;
const SSH_PORT: u16 = 22;
const DNS_PORT: u16 = 53;

fn interval() -> TimeSpan {
    TimeSpan::from_secs(60)
}

fn head() -> String {
    "HEAD".into()
}

/// Each fetch leaves a pack; a cache with more is re-created, which costs one small fetch.
const PACKS_MAX: usize = 16;

pub struct Git {
    config: Config,
    url: gix::Url,
    cache: PathBuf,
    max_bytes: u64,
    /// The object that the ref pointed to at the last poll, and its revision.
    last: Option<(gix::ObjectId, String)>,
}

/// Why a fetch failed.
#[derive(Debug)]
enum Fault {
    /// The server, or the connection to it; with the delay that the server requested.
    Server(String, Option<Duration>),
    /// The content of the commit.
    Content(String),
    /// The cache, which contains nothing that the server does not have.
    Cache(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        let (text, wait) = match fault {
            Fault::Server(text, wait) => (text, wait),
            Fault::Content(text) | Fault::Cache(text) => (text, None),
        };
        // Names of files and texts of servers may contain anything.
        Failure { text: config::diag::one_line(&text), wait }
    }
}

type FetchResult = (Fetched, Option<Candidate>);

impl Git {
    pub fn new(config: Config, cache: PathBuf, max_bytes: u64) -> Result<Git, String> {
        let url = gix::url::parse(config.url.as_bytes().as_bstr()).map_err(|error| chain(&error))?;
        Ok(Git { config, url, cache, max_bytes, last: None })
    }

    /// One attempt, in a repository that has the objects or fetches them.
    fn attempt(
        &mut self,
        repository: &gix::Repository,
        published: Option<&str>,
        stage: &mut dyn FnMut() -> Result<Candidate, String>,
    ) -> Result<FetchResult, Fault> {
        let Some(id) = self.locate(repository, published)? else { return Ok((Fetched::Same, None)) };
        let commit = tree::commit(repository, id)
            .map_err(|fault| fault.about(&format!("`{}` does not point to a commit", self.config.reference)))?;
        let revision = self.revision_name(&commit);
        if published == Some(revision.as_str()) {
            self.last = Some((id, revision));
            return Ok((Fetched::Same, None));
        }
        let mut candidate = stage().map_err(Fault::Content)?;
        tree::write(repository, commit, self.config.path.as_deref(), &mut candidate)?;
        self.last = Some((id, revision.clone()));
        Ok((Fetched::New { revision }, Some(candidate)))
    }

    /// The object that the ref points to now, which is then in the repository. None: nothing new since `published`.
    fn locate(&self, repository: &gix::Repository, published: Option<&str>) -> Result<Option<gix::ObjectId>, Fault> {
        if self.is_local() {
            let id = resolve(repository, &self.config.reference).map_err(|text| Fault::Server(text, None))?;
            return Ok((!self.is_last(&id, published)).then_some(id));
        }
        let (transport, reports) = transport::open(&self.url, &self.config)?;
        let listed = Cell::new(false);
        // The error of the server or of the connection is the reason. Without one the cache may be damaged, and also if the
        // server closed the connection in a request that is built from the cache.
        self.receive(repository, transport, published, &listed).map_err(|text| match reports.take() {
            Some(report) if listed.get() && report.kind == std::io::ErrorKind::UnexpectedEof => {
                Fault::Cache(report.text)
            }
            Some(report) => Fault::Server(report.text, report.wait),
            None if text.contains(TOO_LARGE) => {
                let max = config::unit::ByteSize(self.max_bytes);
                Fault::Content(format!("an object of the commit is larger than max_bytes = {max}"))
            }
            None => Fault::Cache(text),
        })
    }

    fn is_local(&self) -> bool {
        self.url.scheme == gix::url::Scheme::File
    }

    /// Lists the refs, and fetches the commit if it is new.
    fn receive(
        &self,
        repository: &gix::Repository,
        transport: Box<dyn gix_transport::client::blocking_io::Transport>,
        published: Option<&str>,
        listed: &Cell<bool>,
    ) -> Result<Option<gix::ObjectId>, String> {
        let remote = self.remote(repository)?;
        let connection = remote.to_connection_with_transport(transport);
        let prepared =
            connection.prepare_fetch(gix::progress::Discard, Default::default()).map_err(|error| chain(&error))?;
        let missing = || format!("the repository has no ref `{}`", self.config.reference);
        let mappings = &prepared.ref_map().mappings;
        // gitrevisions(7): a name below refs/ takes precedence over a tag, and a tag over a branch.
        let precedence = |mapping: &&gix::remote::fetch::refmap::Mapping| {
            let name = mapping.remote.as_name().and_then(|name| name.strip_prefix(b"refs/"));
            match name {
                Some(name) if name == self.config.reference.as_bytes() => 0,
                Some(name) if name.starts_with(b"tags/") => 1,
                _ => 2,
            }
        };
        let chosen = mappings.iter().min_by_key(precedence).ok_or_else(missing)?;
        let id = chosen.remote.as_id().ok_or_else(missing)?.to_owned();
        if self.is_last(&id, published) {
            return Ok(None);
        }
        listed.set(true);
        let depth = gix::remote::fetch::Shallow::DepthAtRemote(std::num::NonZeroU32::MIN);
        prepared
            .with_shallow(depth)
            .receive(gix::progress::Discard, &AtomicBool::new(false))
            .map_err(|error| chain(&error))?;
        Ok(Some(id))
    }

    fn is_last(&self, id: &gix::ObjectId, published: Option<&str>) -> bool {
        self.last.as_ref().is_some_and(|(seen, revision)| seen == id && published == Some(revision.as_str()))
    }

    fn remote<'r>(&self, repository: &'r gix::Repository) -> Result<gix::Remote<'r>, String> {
        let name = &self.config.reference;
        let is_full_name =
            name == "HEAD" || name.starts_with("refs/") || gix::ObjectId::from_hex(name.as_bytes()).is_ok();
        let refspecs: Vec<BString> = match is_full_name {
            true => vec![format!("+{name}:refs/outrigger/target").into()],
            false => vec![
                format!("+refs/{name}:refs/outrigger/whole").into(),
                format!("+refs/tags/{name}:refs/outrigger/tag").into(),
                format!("+refs/heads/{name}:refs/outrigger/branch").into(),
            ],
        };
        repository
            .remote_at(self.url.clone())
            .and_then(|remote| remote.with_refspecs(refspecs.iter().map(|spec| spec.as_bstr()), Direction::Fetch))
            .map(|remote| remote.with_fetch_tags(gix::remote::fetch::Tags::None))
            .map_err(|error| chain(&error))
    }

    /// The repository to read from, and whether it may be damaged and can be re-created: the cache, unless it was just created. A
    /// cache that cannot be opened, or has too many packs, is re-created here.
    fn repository(&self) -> Result<(gix::Repository, bool), String> {
        if self.is_local() {
            return Ok((self.open(&local_path(&self.url))?, false));
        }
        let packs = std::fs::read_dir(self.cache.join("objects/pack")).map_or(0, |entries| entries.count() / 2);
        match self.open(&self.cache) {
            Ok(repository) if packs <= PACKS_MAX => Ok((repository, true)),
            _ => Ok((self.recreate()?, false)),
        }
    }

    /// Only the repository's own configuration applies, not that of the environment or of a home directory.
    fn options(&self) -> gix::open::Options {
        let limit = self.max_bytes.max(OBJECT_MIN);
        gix::open::Options::isolated().config_overrides([format!("gitoxide.objects.allocLimit={limit}")])
    }

    fn open(&self, path: &Path) -> Result<gix::Repository, String> {
        let options = self.options().with(gix::sec::Trust::Full);
        let mut repository = gix::open_opts(path, options)
            .map_err(|error| format!("cannot open {} as a git repository: {}", path.display(), chain(&error)))?;
        // The name of a revision identifies its content: `git replace` is ignored.
        repository.objects.ignore_replacements = true;
        Ok(repository)
    }

    fn recreate(&self) -> Result<gix::Repository, String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("cannot create the cache {}: {error}", self.cache.display());
        crate::files::remove(&self.cache).map_err(|error| failed(&error))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.cache).map_err(|error| failed(&error))?;
        gix::ThreadSafeRepository::init_opts(&self.cache, gix::create::Kind::Bare, Default::default(), self.options())
            .map(Into::into)
            .map_err(|error| failed(&chain(&error)))
    }
}

impl Store for Git {
    fn fetch(
        &mut self,
        published: Option<&str>,
        stage: &mut dyn FnMut() -> Result<Candidate, String>,
    ) -> Result<FetchResult, Failure> {
        let (repository, may_be_damaged) = self.repository()?;
        match self.attempt(&repository, published, stage) {
            // A failure that is not the server's: the cache is re-created, once per fetch.
            Err(Fault::Cache(text)) if may_be_damaged => {
                tracing::info!(path = %self.cache.display(), reason = text, "recreating the git cache");
                Ok(self.attempt(&self.recreate()?, published, stage)?)
            }
            result => Ok(result?),
        }
    }
}

impl Fault {
    fn about(self, context: &str) -> Fault {
        match self {
            Fault::Server(text, wait) => Fault::Server(format!("{context}: {text}"), wait),
            Fault::Content(text) => Fault::Content(format!("{context}: {text}")),
            Fault::Cache(text) => Fault::Cache(format!("{context}: {text}")),
        }
    }
}

impl Git {
    /// The selection and the commit's id: the same commit has another content for each `path`.
    fn revision_name(&self, commit: &gix::ObjectId) -> String {
        let path: Option<PathBuf> = self.config.path.as_deref().map(tree::normal);
        match path.filter(|path| !path.as_os_str().is_empty()) {
            None => format!("all/{commit}"),
            Some(path) => {
                let text = path.to_string_lossy();
                // The readable part; the hash distinguishes paths that it does not.
                let shown: String =
                    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(SHOWN_MAX).collect();
                let hash = gix::objs::compute_hash(commit.kind(), gix::object::Kind::Blob, path.as_os_str().as_bytes());
                let hash = hash.map_or(String::new(), |hash| hash.to_hex_with_len(12).to_string());
                format!("{shown}-{hash}/{commit}")
            }
        }
    }
}

/// Commits and trees are objects as well, and may be larger than a small revision.
const OBJECT_MIN: u64 = 16 << 20;

/// The library's error for an object above its limit.
const TOO_LARGE: &str = "too large to fit in memory";

/// Characters of a path in the name of its selection.
const SHOWN_MAX: usize = 40;

/// The directory of a file:// URL, whose path is percent-encoded like any other (RFC 8089, 2).
fn local_path(url: &gix::Url) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(net::percent_decoded(&url.path)))
}

/// The object that a ref points to in a repository that is read directly.
fn resolve(repository: &gix::Repository, reference: &str) -> Result<gix::ObjectId, String> {
    if let Ok(id) = gix::ObjectId::from_hex(reference.as_bytes()) {
        return Ok(id);
    }
    let missing = |error: &dyn std::fmt::Display| format!("the repository has no ref `{reference}`: {error}");
    let mut found = repository.find_reference(reference).map_err(|error| missing(&chain(&error)))?;
    // Tags are not followed here: the library panics on a malformed one.
    found.follow_to_object().map(|id| id.detach()).map_err(|error| missing(&chain(&error)))
}

/// An error with all its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    config::diag::hide_userinfo(&text.replace('\n', " "))
}
