//! The system calls that have no safe wrapper: fork, exec, the signal mask and the shared page of the capture ring. In:
//! plans made of plain memory. Out: safe functions. This is the only crate that may hold unsafe code; it imports nothing
//! of ours, and each block says why it is sound. Nothing here allocates after its plan was made.
#![allow(unsafe_code, reason = "the crate that unsafe code is kept to")]

pub mod process;
pub mod home;
pub mod signal;
pub mod shared;
pub mod ring;
pub mod memory;
pub mod ready;
