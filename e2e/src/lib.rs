//! Deliberately empty: the package is its one integration binary, `tests/e2e.rs`, which drives the real program against
//! real peers. Nothing comes in, nothing goes out, and no crate depends on it.
