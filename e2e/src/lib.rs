//! Deliberately empty: the package consists of one integration test binary, `tests/e2e/main.rs`, which runs the real program
//! against real peers. In, out: nothing. No crate depends on it.
