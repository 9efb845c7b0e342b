//! The system calls that have no safe wrapper: fork, exec, the signal mask and the shared page of the capture ring. In:
//! plans in plain memory. Out: safe functions. This is the only crate that may contain unsafe code. It imports no other crate
//! of the workspace, and each block explains why it is sound. Nothing here allocates once its plan is built.
#![allow(unsafe_code, reason = "the only crate that may contain unsafe code")]

pub mod process;
pub mod home;
pub mod signal;
pub mod shared;
pub mod ring;
pub mod memory;
pub mod ready;
