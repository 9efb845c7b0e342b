//! A kind that does nothing, for each registry. In: nothing. Out: the text of a file for a copy of the project.
//! Bound: each kind needs one path that does not exist and a mebibyte of memory, so that the built program shows both.

/// A registry: its directory, where its kinds are in `outrigger explain`, and the code of a kind beside `Config`.
pub struct Registry {
    pub directory: &'static str,
    pub path: &'static str,
    build: &'static str,
}

/// The memory of each kind.
pub const MEMORY_MIB: u64 = 1;

impl Registry {
    /// The file of a kind `scratch`.
    pub fn file(&self) -> String {
        format!("{CONFIG}{}", self.build)
    }

    /// The path that the kind needs, if the component has this id.
    pub fn needed(id: &str) -> String {
        format!("/nonexistent/{id}")
    }
}

const CONFIG: &str = r#"//! A kind that does nothing. In: nothing. Out: nothing.

use super::*;

/// Does nothing with what it gets; it exists only in a copy of the project.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl config::registry::Kind for Config {
    fn example() -> &'static str {
        "scratch: {}\n"
    }

    fn needs(&self, id: &str) -> config::needs::Needs {
        config::needs::Needs { read: vec![format!("/nonexistent/{id}").into()], ..Default::default() }
    }

    fn memory(&self) -> config::unit::ByteSize {
        config::unit::ByteSize::mib(1)
    }
}

struct Nothing;
"#;

pub const REGISTRIES: [Registry; 9] = [
    Registry {
        directory: "crates/logs/src/source",
        path: "logs.sources",
        build: r#"
impl SourceConfig for Config {
    fn start(&self, _start: Start<'_>) {
        let Nothing = Nothing;
    }
}
"#,
    },
    Registry {
        directory: "crates/logs/src/stage",
        path: "logs.stages",
        build: r#"
impl StageConfig for Config {
    fn build(&self) -> Box<dyn Stage> {
        Box::new(Nothing)
    }
}

impl Stage for Nothing {
    fn apply(&self, _batch: &mut Batch) -> StageOutput {
        StageOutput::default()
    }
}
"#,
    },
    Registry {
        directory: "crates/logs/src/sink",
        path: "logs.sinks",
        build: r#"
use delivery::batch::{Body, Encode, Sending, Transport};
use delivery::outcome::Outcome;

impl SinkConfig for Config {
    fn build(&self) -> Result<Sink<Batch>, String> {
        Ok(Sink { encoder: Box::new(Nothing), transport: std::rc::Rc::new(Nothing) })
    }
}

impl Encode<Batch> for Nothing {
    fn encode(&mut self, _batch: &Batch, records: std::ops::Range<usize>, _max: usize) -> usize {
        records.end
    }

    fn size(&self) -> usize {
        0
    }

    fn finish(&mut self) -> Result<Body, String> {
        Ok(Body::default())
    }
}

impl Transport for Nothing {
    fn send<'a>(&'a self, _body: &'a Body) -> Sending<'a> {
        Box::pin(std::future::ready(Outcome::Delivered))
    }
}
"#,
    },
    Registry {
        directory: "crates/metrics/src/source",
        path: "metrics.sources",
        build: r#"
impl SourceConfig for Config {
    fn interval(&self) -> Duration {
        Duration::from_secs(15)
    }

    fn build(&self, _name: &str, _inputs: &Inputs) -> Result<Rc<dyn Source>, String> {
        Ok(Rc::new(Nothing))
    }
}

impl Source for Nothing {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async { Collected { snapshot: None, dropped: Vec::new(), error: None, up: true } })
    }

    fn end(&self) -> Snapshot {
        Snapshot::default()
    }

    fn is_local(&self) -> bool {
        true
    }
}
"#,
    },
    Registry {
        directory: "crates/metrics/src/sink",
        path: "metrics.sinks",
        build: r#"
impl SinkConfig for Config {
    fn build(&self, _context: &Context<'_>) -> Result<Rc<dyn Sink>, String> {
        Ok(Rc::new(Nothing))
    }
}

impl Sink for Nothing {
    fn run(self: Rc<Nothing>, _phase: PhaseWatch) -> Running {
        Box::pin(std::future::ready(()))
    }
}
"#,
    },
    Registry {
        directory: "crates/sync/src/store",
        path: "sync.store",
        build: r#"
impl StoreConfig for Config {
    fn interval(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn build(&self, _cache: PathBuf, _max_bytes: u64) -> Result<Box<dyn Store>, String> {
        Ok(Box::new(Nothing))
    }

    fn describe(&self) -> String {
        "nothing".into()
    }
}

impl Store for Nothing {
    fn fetch(
        &mut self,
        _published: Option<&str>,
        _stage: &mut dyn FnMut() -> Result<Candidate, String>,
    ) -> Result<(Fetched, Option<Candidate>), Failure> {
        Ok((Fetched::Same, None))
    }
}
"#,
    },
    Registry {
        directory: "crates/sync/src/publish",
        path: "sync.publish",
        build: r#"
impl PublishConfig for Config {
    fn path(&self) -> PathBuf {
        PathBuf::from("/nonexistent")
    }

    fn occupied(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn cache(&self) -> PathBuf {
        PathBuf::from("/nonexistent")
    }

    fn open(&self) -> io::Result<Box<dyn Target>> {
        let Nothing = Nothing;
        Err(io::Error::other("it publishes nothing"))
    }
}
"#,
    },
    Registry {
        directory: "crates/sync/src/notify",
        path: "sync.notify",
        build: r#"
impl NotifyConfig for Config {
    fn describe(&self) -> String {
        "nothing".into()
    }

    fn send<'a>(&'a self, _notification: Notification<'a>) -> Sending<'a> {
        let Nothing = Nothing;
        Box::pin(async { Ok(()) })
    }
}
"#,
    },
    Registry {
        directory: "crates/proxy/src/balance",
        path: "proxy.balance",
        build: r#"
impl BalanceConfig for Config {
    fn build(&self) -> Box<dyn Policy> {
        Box::new(Nothing)
    }
}

impl Policy for Nothing {
    fn pick(&mut self, _endpoints: &[EndpointState], _usable: &dyn Fn(usize) -> bool) -> usize {
        0
    }
}
"#,
    },
];
