//! The macro that declares a registry: a configuration entry whose key is its kind, alongside the keys that all kinds
//! share. One line per kind generates the schema, the checks, `outrigger explain` and the dispatch.

/// The input of `outrigger explain` for one kind; its text is the doc comment of the kind's `Config`.
pub struct KindInfo {
    pub name: &'static str,
    pub example: &'static str,
    pub schema: fn() -> serde_json::Value,
}

/// Implemented by each kind's `Config`, next to its code.
pub trait Kind {
    /// A minimal valid entry, as written in the file.
    const EXAMPLE: &'static str;
}

/// Declares `struct Entry` (one optional field per kind, and the shared fields), `enum KindConfig`, and `KINDS`.
///
/// ```text
/// config::registry! {
///     /// Where records come from.
///     pub entry SourceEntry, kind SourceKind {
///         stdio => Stdio(stdio::Config),
///         file => File(file::Config),
///     } shared {
///         /// Stages of this source only.
///         pub stages: Vec<StageEntry>,
///     }
/// }
/// ```
#[macro_export]
macro_rules! registry {
    (
        $(#[$about:meta])*
        pub entry $entry:ident, kind $kind:ident {
            $($(#[$kind_about:meta])* $name:ident $(as $word:literal)? => $variant:ident($config:ty)),+ $(,)?
        } shared {
            $($(#[$shared_about:meta])* pub $shared:ident: $shared_type:ty),* $(,)?
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(extend("x-kinds" = [$($crate::kind_word!($name $(, $word)?)),+]))]
        pub struct $entry {
            $($(#[$kind_about])* $(#[serde(rename = $word)])? #[serde(default)] pub $name: Option<$config>,)+
            $($(#[$shared_about])* pub $shared: $shared_type,)*
        }

        /// The kind of an entry.
        #[derive(Clone, Debug)]
        pub enum $kind {
            $($variant($config)),+
        }

        impl $kind {
            /// Its key in the file.
            pub fn name(&self) -> &'static str {
                match self {
                    $($kind::$variant(_) => $crate::kind_word!($name $(, $word)?),)+
                }
            }
        }

        impl $entry {
            /// The kind and its Config; none only if the schema check was skipped.
            pub fn kind(&self) -> Option<$kind> {
                $(if let Some(config) = &self.$name {
                    return Some($kind::$variant(config.clone()));
                })+
                None
            }

            /// Every kind of this registry, in reading order.
            pub const KINDS: &'static [$crate::registry::KindInfo] = &[$($crate::registry::KindInfo {
                name: $crate::kind_word!($name $(, $word)?),
                example: <$config as $crate::registry::Kind>::EXAMPLE,
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
        if let Err(report) = crate::load::load::<E>("example", kind.example, &crate::interpolate::Lookup::HERE) {
            panic!("the example of `{}` is valid:\n{}", kind.name, report.render());
        }
    }
}
