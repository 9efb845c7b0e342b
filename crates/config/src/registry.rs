//! Kinds and their registries. A registry is a configuration entry whose key is its kind, alongside the keys that all kinds
//! share. One file per kind implements `Kind` and the trait of its registry; one line in the registry generates the schema, the
//! checks, `outrigger explain`, and the way to the kind's Config. Nothing else names a kind.

use crate::diag::Diagnostic;
use crate::needs::Needs;
use crate::tree::Node;
use crate::unit::ByteSize;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The input of `outrigger explain` for one kind; its text is the doc comment of the kind's `Config`.
pub struct KindInfo {
    pub name: &'static str,
    pub example: fn() -> &'static str,
    pub schema: fn() -> serde_json::Value,
}

/// What every kind's `Config` says about itself. The trait of a registry adds how the kind is built.
pub trait Kind: fmt::Debug + Send + Sync {
    /// A minimal valid entry, as written in the file.
    fn example() -> &'static str
    where
        Self: Sized;

    /// Checks what the schema cannot.
    fn check(&self, _entry: &Entry<'_>) -> Vec<Diagnostic> {
        Vec::new()
    }

    /// Checks what only the system shows, such as a certificate, before anything is started.
    fn check_system(&self) -> Result<(), String> {
        Ok(())
    }

    /// Paths, ports and programs; the sandbox is made from them. `id`: the path of the entry in the file.
    fn needs(&self, _id: &str) -> Needs {
        Needs::default()
    }

    /// The memory that it keeps while it is idle or waits for the other side, in addition to the buffers of shared keys.
    fn memory(&self) -> ByteSize {
        ByteSize(0)
    }
}

/// An entry of the file during its check.
pub struct Entry<'a> {
    /// Its path in the file.
    pub id: &'a str,
    /// The value of the kind's key.
    pub node: &'a Node,
    pub configured: Configured,
}

/// Which parts of the configuration that kinds of other parts depend on are there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Configured {
    /// A command: Outrigger starts the app, and can signal it and read its output.
    pub app: bool,
    /// The section `proxy`.
    pub proxy: bool,
}

impl Entry<'_> {
    /// An error at a key below the kind's, or at the deepest existing key above it.
    pub fn error(&self, keys: &[&str], text: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.node.at(keys).place, text)
    }

    /// An error at the entry if Outrigger does not start the app.
    pub fn requires_app(&self, what: &str, alternative: &str) -> Option<Diagnostic> {
        (!self.configured.app).then(|| {
            self.error(&[], format!("{what} requires a wrapped app, but no command is configured"))
                .help(format!("set app.command, or run `outrigger run -- command`{alternative}"))
        })
    }

    /// An error at the entry if there is no proxy.
    pub fn requires_proxy(&self, what: &str) -> Option<Diagnostic> {
        (!self.configured.proxy).then(|| {
            self.error(&[], format!("{what}, but no proxy is configured"))
                .help("add a `proxy` section, or remove this source")
        })
    }
}

/// The Config of an entry as the trait of its registry, with the name of its kind.
pub struct Named<T: ?Sized> {
    name: &'static str,
    config: Arc<T>,
}

impl<T: ?Sized> Named<T> {
    pub fn new(name: &'static str, config: Arc<T>) -> Named<T> {
        Named { name, config }
    }

    /// The kind's key in the file.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl<T: ?Sized> Clone for Named<T> {
    fn clone(&self) -> Named<T> {
        Named { name: self.name, config: self.config.clone() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl<T: ?Sized> Deref for Named<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.config
    }
}

/// A component of a plan, for what is done with every component.
pub struct PlannedKind<'p> {
    /// Its path in the file.
    pub id: String,
    pub kind: &'p dyn Kind,
    /// The bytes of its buffer, and of its bodies, that shared keys allow.
    pub buffer: u64,
    pub bodies: u64,
}

impl PlannedKind<'_> {
    pub fn needs(&self) -> Needs {
        self.kind.needs(&self.id)
    }

    /// The memory that it keeps while it is idle or waits for the other side.
    pub fn memory(&self) -> u64 {
        self.kind.memory().0.saturating_add(self.buffer).saturating_add(self.bodies)
    }

    /// An error that only the system shows, with the component.
    pub fn check_system(&self) -> Option<String> {
        self.kind.check_system().err().map(|error| format!("{}: {error}", self.id))
    }
}

/// Declares `struct Entry`: one optional field per kind, and the shared fields, each with the kinds that it does not apply to.
/// `Entry::kind` returns the Config as the trait of the registry, and `Entry::KINDS` lists the kinds.
///
/// ```text
/// config::registry! {
///     /// Where samples go.
///     pub entry SinkEntry, configs dyn SinkConfig {
///         prometheus => prometheus::Config,
///         remote_write => remote_write::Config,
///     } shared {
///         /// Samples that wait.
///         #[serde(default)]
///         pub buffer: BufferConfig, not for prometheus;
///     }
/// }
/// ```
#[macro_export]
macro_rules! registry {
    (
        $(#[$about:meta])*
        pub entry $entry:ident, configs dyn $trait:path {
            $($(#[$kind_about:meta])* $name:ident $(as $word:literal)? => $config:ty),+ $(,)?
        } shared {
            $($(#[$shared_about:meta])* pub $shared:ident: $shared_type:ty $(, not for $($other:ident)|+)?;)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(extend("x-kinds" = [$($crate::kind_word!($name $(, $word)?)),+]))]
        pub struct $entry {
            $($(#[$kind_about])* $(#[serde(rename = $word)])? #[serde(default)] pub $name: Option<$config>,)+
            $(
                $(#[$shared_about])*
                $(#[schemars(extend("x-without-effect-on" = [$(stringify!($other)),+]))])?
                pub $shared: $shared_type,
            )*
        }

        impl $entry {
            /// The Config of its kind; none only if the schema check was skipped.
            pub fn kind(&self) -> Option<$crate::registry::Named<dyn $trait>> {
                $(if let Some(config) = &self.$name {
                    let name = $crate::kind_word!($name $(, $word)?);
                    return Some($crate::registry::Named::new(name, std::sync::Arc::new(config.clone())));
                })+
                None
            }

            /// Every kind of this registry, in reading order.
            pub const KINDS: &'static [$crate::registry::KindInfo] = &[$($crate::registry::KindInfo {
                name: $crate::kind_word!($name $(, $word)?),
                example: <$config as $crate::registry::Kind>::example,
                schema: $crate::load::schema_of::<$config>,
            }),+];
        }
    };
}

/// The key of a kind in the file: the name of its module, or another word if that name is a Rust keyword.
#[macro_export]
macro_rules! kind_word {
    ($name:ident) => {
        stringify!($name)
    };
    ($name:ident, $word:literal) => {
        $word
    };
}

/// The rules for every registry; the tests of each subsystem call this with their own registries.
pub fn assert_laws<E: serde::de::DeserializeOwned + schemars::JsonSchema>(kinds: &[KindInfo]) {
    assert!(!kinds.is_empty());
    for kind in kinds {
        let schema = (kind.schema)();
        let about = schema["description"].as_str().unwrap_or("");
        assert!(about.len() > 40, "the Config of `{}` is documented in a sentence or more", kind.name);
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let documented = property["description"].as_str().is_some_and(|text| text.len() > 10);
            assert!(documented, "`{}.{key}` has a doc comment", kind.name);
        }
        let load = |text: &str| crate::load::load::<E>("example", text, &crate::interpolate::Lookup::HERE);
        let example = (kind.example)();
        if let Err(report) = load(example) {
            panic!("the example of `{}` is valid:\n{}", kind.name, report.render());
        }
        let entry = crate::load::schema_of::<E>();
        for (key, property) in entry["properties"].as_object().into_iter().flatten() {
            let refused = load(&format!("{}\n{key}: {{}}\n", example.trim_end())).err();
            let text = refused.map(|report| report.render()).unwrap_or_default();
            let expected = format!("`{key}` has no effect on `{}`", kind.name);
            let mut others = crate::schema::strings(&property["x-without-effect-on"]);
            let applies = others.all(|other| other != kind.name);
            assert!(text.contains(&expected) != applies, "{expected}: {}:\n{text}", !applies);
        }
    }
}
