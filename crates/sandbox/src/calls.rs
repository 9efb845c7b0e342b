//! The system calls of Outrigger, by purpose: those of the C library, the runtime and its own code. In: nothing. Out: lists of
//! call numbers, and of arguments for multiplexed calls. Limits: a call on no list is denied (`seccomp.rs`). A call that creates
//! an object of a new kind, or reaches another process, needs a condition there and is not listed here.

use libc::c_long;

/// Memory, except mapping (see `seccomp.rs`).
pub(crate) const MEMORY: &[c_long] =
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_msync];

/// Threads, their locks and their exit; of the scheduler only queries.
pub(crate) const THREADS: &[c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_getcpu,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
];

/// Receiving signals. Sending them is restricted separately.
pub(crate) const SIGNALS: &[c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_restart_syscall,
];

/// Clocks (most reads never enter the kernel) and timers.
pub(crate) const TIME: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
];

/// Identity, resource usage and randomness.
pub(crate) const IDENTITY: &[c_long] = &[
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrandom,
];

/// Waiting for file descriptors that this process already owns.
pub(crate) const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // A handle to detect the exit of an external app; it gives no control over the app.
    libc::SYS_pidfd_open,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Data through file descriptors of any kind.
pub(crate) const STREAMS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
];

/// Open files, opening files if Landlock allows it, and memfds.
pub(crate) const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_memfd_create,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
];

/// Directory entries, and modes, owners and times of files. Without capabilities an owner cannot give a file away.
pub(crate) const DIRECTORIES: &[c_long] = &[
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    SYS_RENAMEAT,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
];

/// Existing sockets. `seccomp.rs` restricts which may be created and how they may send.
pub(crate) const NETWORK: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
];

/// Starting a program, and the additional calls of a dynamically linked one such as ssh or a shell.
pub(crate) const PROGRAMS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_set_tid_address,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_getpriority,
    libc::SYS_mincore,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
];

/// Killing a hung program. Only if Landlock confines signals to the sandbox.
pub(crate) const SIGNALS_TO_PROGRAMS: &[c_long] = &[libc::SYS_kill, libc::SYS_pidfd_send_signal];

/// Older variants of the calls above that only x86_64 has and its C library still uses.
#[cfg(target_arch = "x86_64")]
pub(crate) const OLD_CALLS: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLD_CALLS: &[c_long] = &[];

/// `arch_prctl` gives a new program its thread-local storage.
#[cfg(target_arch = "x86_64")]
pub(crate) const OLD_CALLS_OF_PROGRAMS: &[c_long] =
    &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_arch_prctl, libc::SYS_alarm, libc::SYS_pause];
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLD_CALLS_OF_PROGRAMS: &[c_long] = &[];

/// libc does not define these two on every architecture.
#[cfg(target_arch = "x86_64")]
const SYS_RENAMEAT: c_long = libc::SYS_renameat;
#[cfg(not(target_arch = "x86_64"))]
const SYS_RENAMEAT: c_long = 38;
const SYS_FCHMODAT2: c_long = 452;
/// From 424 on, call numbers are the same on all architectures. The range extends past the newest kernels.
pub(crate) const NEWER_CALLS: std::ops::Range<i64> = 453..520;

// ---- Arguments of multiplexed calls ----

/// Blocking mode, bytes available, terminal attributes and size, and reflink copies of a file. Not TIOCSTI, which injects
/// input into a terminal.
pub(crate) const IOCTLS: &[u64] =
    &[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, TCGETS2, libc::TIOCGWINSZ, libc::FICLONE];
/// Used by newer C libraries and by rustix instead of TCGETS; the same number on both architectures.
const TCGETS2: u64 = 0x802c_542a;

/// Flags, locks, duplicates and pipe sizes. Not F_SETOWN and F_SETSIG, which make the kernel send signals for the caller.
pub(crate) const FCNTLS: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_GETLK as u64,
    libc::F_SETLK as u64,
    libc::F_SETLKW as u64,
    libc::F_OFD_GETLK as u64,
    libc::F_OFD_SETLK as u64,
    libc::F_OFD_SETLKW as u64,
    libc::F_GETPIPE_SZ as u64,
    libc::F_SETPIPE_SZ as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
];

/// Names of threads and memory, and queries of the caller's own privileges.
pub(crate) const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_SECCOMP as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_CAPBSET_READ as u64,
    PR_GET_AUXV,
];
/// The auxiliary vector that the kernel passed at exec; rustix reads it on first use.
const PR_GET_AUXV: u64 = 0x4155_5856;
/// Calls that a program uses to restrict itself further.
pub(crate) const PRCTLS_OF_PROGRAMS: &[u64] =
    &[libc::PR_SET_DUMPABLE as u64, libc::PR_SET_NO_NEW_PRIVS as u64, libc::PR_SET_PDEATHSIG as u64];
