//! How revisions are published. A kind is one file here and one line in the registry.

pub mod symlink;

config::registry! {
    /// A way to publish: its kind.
    pub entry PublishEntry, kind PublishKind {
        /// A symlink that is replaced.
        symlink => Symlink(symlink::Config),
    } shared {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_keeps_its_laws() {
        config::registry::assert_laws::<PublishEntry>(PublishEntry::KINDS);
    }
}
