//! Texts for messages.

/// `1 sink`, `2 sinks`.
pub fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
