//! Access to the system: files, listening sockets, the control group, users, the output of commands.

pub mod cgroup;
pub mod file;
pub mod groups;
pub mod listen;
pub mod output;
pub mod process;
