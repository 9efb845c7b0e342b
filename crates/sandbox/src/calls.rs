//! The system calls of our own code, by purpose: the C library's, the runtime's and ours. In: nothing. Out: lists of numbers, and of
//! arguments for calls that do many things. Bounds: what is on no list is refused (`seccomp.rs`); a call that makes something of a
//! new kind, or reaches another process, needs a condition there and has no place here.

use libc::c_long;

/// Memory, but for mapping it (see `seccomp.rs`).
pub(crate) const MEMORY: &[c_long] =
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_msync];

/// Threads, their locks and their ends; the scheduler is only asked.
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

/// Getting signals; sending them is another matter.
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

/// Who and where we are, how much we use, and randomness.
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

/// Waiting for descriptors, of which all are ours already.
pub(crate) const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // A handle to see the end of an app beside us by; it gives no right over it.
    libc::SYS_pidfd_open,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Bytes through descriptors of any kind.
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

/// Files that are open, or are opened where Landlock lets them; memory files among them.
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

/// Names in folders, and the modes, owners and times of what they name. Without capabilities an owner gives nothing away.
pub(crate) const FOLDERS: &[c_long] = &[
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

/// Sockets that exist; which may be made, and how they may send, is in `seccomp.rs`.
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

/// What starting a program takes, and what a dynamically linked one such as ssh or a shell does besides.
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

/// Ending a program that hangs. Only where Landlock lets no signal out of the sandbox.
pub(crate) const SIGNALS_TO_PROGRAMS: &[c_long] = &[libc::SYS_kill, libc::SYS_pidfd_send_signal];

/// The same as above under the names that only x86_64 still has, and that its C library still uses.
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

/// libc does not name these two on every architecture.
#[cfg(target_arch = "x86_64")]
const SYS_RENAMEAT: c_long = libc::SYS_renameat;
#[cfg(not(target_arch = "x86_64"))]
const SYS_RENAMEAT: c_long = 38;
const SYS_FCHMODAT2: c_long = 452;
/// Numbers are the same everywhere from 424 on. The range ends where no kernel is in sight.
pub(crate) const AFTER_OUR_LIST: std::ops::Range<i64> = 453..520;

// ---- Arguments of calls that do many things ----

/// Whether a socket blocks, how much waits in it, whether a descriptor is a terminal and how wide, and copying a file by sharing its
/// blocks. Not TIOCSTI, which types on somebody's terminal.
pub(crate) const IOCTLS: &[u64] =
    &[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, TCGETS2, libc::TIOCGWINSZ, libc::FICLONE];
/// Asked by newer C libraries and by rustix instead of TCGETS; the same number on both architectures.
const TCGETS2: u64 = 0x802c_542a;

/// Flags, locks, copies and pipe sizes. Not F_SETOWN and F_SETSIG, which make the kernel send signals for us.
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

/// Names of threads and of memory, and questions about our own rights.
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
/// The facts that the kernel gave the program at its start; rustix asks for them when it needs the first one.
const PR_GET_AUXV: u64 = 0x4155_5856;
/// What a program uses to protect itself further.
pub(crate) const PRCTLS_OF_PROGRAMS: &[u64] =
    &[libc::PR_SET_DUMPABLE as u64, libc::PR_SET_NO_NEW_PRIVS as u64, libc::PR_SET_PDEATHSIG as u64];
