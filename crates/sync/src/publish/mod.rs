//! How revisions are published. A kind is one file here and one line in the registry.

pub mod symlink;

config::registry! {
    /// A way to publish: its kind.
    pub entry PublishEntry, kind PublishKind {
        /// A symlink that is replaced atomically.
        symlink => Symlink(symlink::Config),
    } shared {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<PublishEntry>(PublishEntry::KINDS);
    }
}
