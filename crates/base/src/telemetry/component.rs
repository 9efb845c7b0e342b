//! The identity of a component in health, ledger, metrics and log: its path in the configuration, its kind and its type.

/// The labels of every component metric.
pub const LABELS: [&str; 3] = ["component_id", "component_kind", "component_type"];

/// One source, stage, sink or store.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Component {
    /// Its path in the configuration, such as `logs.sinks.main`.
    pub id: String,
    /// Its kind: `source`, `stage`, `sink` or `store`.
    pub kind: &'static str,
    /// Its type, the key in its entry, such as `loki`.
    #[serde(rename = "type")]
    pub type_name: &'static str,
}

impl Component {
    pub fn source(id: String, type_name: &'static str) -> Component {
        Component { id, kind: "source", type_name }
    }

    pub fn stage(id: String, type_name: &'static str) -> Component {
        Component { id, kind: "stage", type_name }
    }

    pub fn sink(id: String, type_name: &'static str) -> Component {
        Component { id, kind: "sink", type_name }
    }

    pub fn store(id: String, type_name: &'static str) -> Component {
        Component { id, kind: "store", type_name }
    }

    /// The values of `LABELS`.
    pub fn labels(&self) -> [&str; 3] {
        [&self.id, self.kind, self.type_name]
    }
}
