//! The system call filter. In: whether programs may run, and whether Landlock confines signals. Out: two active filters, for this
//! thread and all its descendants. Limits: a call that is not on the list returns EPERM and never kills the process, since a new
//! C library must not crash the sidecar; x86_64 and aarch64. The list itself is in `calls.rs`.

use crate::calls::*;
use crate::{Grants, Holds};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;

/// A call with no rule is allowed with any arguments, a call with rules if one of them matches. The kernel caches the first kind
/// and does not run the filter for it again, so reading, writing and waiting have almost no overhead.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;
type Outcome<T> = Result<T, BackendError>;

pub(crate) fn restrict(grants: &Grants, holds: &mut Holds) {
    let applied = filters(Permissions::new(grants, holds))
        .map_err(seccompiler::Error::from)
        .and_then(|filters| filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)));
    match applied {
        Ok(()) => holds.seccomp = true,
        Err(error) => holds.report_missing(format!("system calls are not filtered: {error}")),
    }
    if grants.programs && !holds.signals {
        holds.report_missing(
            "Outrigger cannot kill a hung program that it started: signals cannot be confined to the sandbox"
                .to_string(),
        );
    }
}

/// The inputs of the list.
#[derive(Debug, Clone, Copy)]
struct Permissions {
    programs: bool,
    /// May send signals: safe if Landlock confines them to the worker and its programs.
    signals: bool,
    /// The pid of the worker.
    pid: u32,
}

impl Permissions {
    fn new(grants: &Grants, holds: &Holds) -> Self {
        let programs = grants.programs;
        Self { programs, signals: programs && holds.signals, pid: std::process::id() }
    }
}

/// In the order in which they are applied.
fn filters(permissions: Permissions) -> Outcome<[BpfProgram; 2]> {
    Ok([
        filter(absent(permissions.programs), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))?,
        filter(allowed(permissions)?, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)?,
    ])
}

fn filter(calls: Calls, otherwise: SeccompAction, matching: SeccompAction) -> Outcome<BpfProgram> {
    SeccompFilter::new(calls, otherwise, matching, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Calls that return ENOSYS, as if the kernel did not implement them. The C library then uses `clone` instead of `clone3`, whose
/// flags are in memory that no filter can read. A newer C library avoids calls that are newer than the list.
fn absent(programs: bool) -> Calls {
    let later = if programs { NEWER_CALLS } else { 0..0 };
    later.chain([libc::SYS_clone3]).map(|call| (call, Vec::new())).collect()
}

fn allowed(permissions: Permissions) -> Outcome<Calls> {
    let mut groups =
        vec![MEMORY, THREADS, SIGNALS, TIME, IDENTITY, WAITING, STREAMS, FILES, DIRECTORIES, NETWORK, OLD_CALLS];
    if permissions.programs {
        groups.extend([PROGRAMS, OLD_CALLS_OF_PROGRAMS]);
    }
    if permissions.signals {
        groups.push(SIGNALS_TO_PROGRAMS);
    }
    let mut calls: Calls = groups.concat().into_iter().map(|call| (call, Vec::new())).collect();
    calls.extend(with_conditions(permissions)?);
    // The first filter returns ENOSYS for these, which has effect only if this filter allows them.
    calls.extend(absent(permissions.programs));
    Ok(calls)
}

/// The calls that depend on their arguments.
fn with_conditions(permissions: Permissions) -> Outcome<Calls> {
    let prctls = [PRCTLS, if permissions.programs { PRCTLS_OF_PROGRAMS } else { &[] }].concat();
    let mut calls = Calls::from([
        (libc::SYS_socket, sockets()?),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?),
        (libc::SYS_clone, vec![rule([new_threads(permissions.programs)?])?]),
        // This process, by pid or as 0 ("the caller").
        (libc::SYS_tgkill, one_of(0, &[u64::from(permissions.pid)])?),
        (libc::SYS_prlimit64, one_of(0, &[0, u64::from(permissions.pid)])?),
        (libc::SYS_ioctl, one_of(1, IOCTLS)?),
        (libc::SYS_fcntl, one_of(1, FCNTLS)?),
        (libc::SYS_prctl, one_of(0, &prctls)?),
    ]);
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        // TCP Fast Open connects without the check that Landlock hooks into.
        calls.insert(call, vec![rule([without(flags, libc::MSG_FASTOPEN as u64)?])?]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let rules = match permissions.programs {
            true => Vec::new(),
            // Injected data must not become executable: the binary is static and generates no code.
            false => vec![rule([without(2, libc::PROT_EXEC as u64)?])?],
        };
        calls.insert(call, rules);
    }
    Ok(calls)
}

/// Unix sockets, and TCP and UDP with their default protocol. Raw and packet sockets, netlink, vsock and all others are denied,
/// and so are other protocols with the socket type of TCP (MPTCP, SCTP), whose connections Landlock does not restrict.
fn sockets() -> Outcome<Vec<SeccompRule>> {
    /// The bits of a type without its flags (SOCK_CLOEXEC, SOCK_NONBLOCK).
    const TYPE: u64 = 0xf;
    let with_type = |family: i32, kind: i32| -> Outcome<[SeccompCondition; 2]> {
        Ok([is(0, family as u64)?, condition(1, SeccompCmpOp::MaskedEq(TYPE), kind as u64)?])
    };
    let mut rules = Vec::new();
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        rules.push(rule(with_type(libc::AF_UNIX, kind)?)?);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
            for protocol in [0, protocol] {
                let [family, kind] = with_type(family, kind)?;
                rules.push(rule([family, kind, is(2, protocol as u64)?])?);
            }
        }
    }
    Ok(rules)
}

/// Threads, and with `programs` also processes; never a namespace.
fn new_threads(programs: bool) -> Outcome<SeccompCondition> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    match programs {
        true => without(0, namespaces as u64),
        false => {
            let thread = libc::CLONE_THREAD as u64;
            condition(0, SeccompCmpOp::MaskedEq(namespaces as u64 | thread), thread)
        }
    }
}

fn one_of(argument: u8, values: &[u64]) -> Outcome<Vec<SeccompRule>> {
    values.iter().map(|value| rule([is(argument, *value)?])).collect()
}

fn is(argument: u8, value: u64) -> Outcome<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn without(argument: u8, bits: u64) -> Outcome<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

/// The kernel uses 32 bits of each argument that is checked here, and so does the filter.
fn condition(argument: u8, is: SeccompCmpOp, value: u64) -> Outcome<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value & u64::from(u32::MAX))
}

fn rule<const COUNT: usize>(conditions: [SeccompCondition; COUNT]) -> Outcome<SeccompRule> {
    SeccompRule::new(conditions.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const PID: u32 = 4711;
    const WITHOUT_PROGRAMS: Permissions = Permissions { programs: false, signals: false, pid: PID };
    const WITH_PROGRAMS: Permissions = Permissions { programs: true, signals: true, pid: PID };
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// The error that the kernel would return for a call, or none if it is allowed.
    fn evaluate(permissions: Permissions, call: i64, arguments: [u64; 6]) -> Option<u32> {
        let filters = filters(permissions).expect("the list compiles");
        // The strictest action wins, and among equals the one of the filter that came last.
        let action = filters.iter().rev().map(|filter| run(filter, call, arguments)).min_by_key(|action| action >> 16);
        match action {
            Some(ALLOW) => None,
            Some(action) if action & 0xffff_0000 == ERRNO => Some(action & 0xffff),
            other => panic!("call {call} returns {other:x?}, which is neither ALLOW nor an error"),
        }
    }

    /// The part of classic BPF that the filters use, over `struct seccomp_data` (seccomp(2)).
    fn run(program: &BpfProgram, call: i64, arguments: [u64; 6]) -> u32 {
        let architecture: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = Vec::new();
        data.extend((call as u32).to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                0x20 => {
                    let from = step.k as usize;
                    accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
                }
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(accumulator == step.k),
                0x25 => at += jump(accumulator > step.k),
                0x35 => at += jump(accumulator >= step.k),
                0x06 => return step.k,
                code => panic!("the filter contains an instruction {code:#x} that this model does not support"),
            }
        }
    }

    const EPERM: Option<u32> = Some(1);
    const ENOSYS: Option<u32> = Some(38);

    #[test]
    fn dangerous_calls_are_denied_in_every_mode() {
        let denied = [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
            libc::SYS_tkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_fsopen,
            libc::SYS_mount_setattr,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_sethostname,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_personality,
            libc::SYS_mknodat,
            libc::SYS_truncate,
            libc::SYS_shmget,
            libc::SYS_memfd_secret,
            libc::SYS_seccomp,
        ];
        for call in denied {
            for permissions in [WITHOUT_PROGRAMS, WITH_PROGRAMS] {
                assert_eq!(evaluate(permissions, call, [0; 6]), EPERM, "call {call} with {permissions:?}");
            }
        }
    }

    #[test]
    fn programs_and_signals_require_a_grant() {
        let without_signals = Permissions { signals: false, ..WITH_PROGRAMS };
        let check = |call, without_programs, with_programs, unscoped| {
            let seen = [WITHOUT_PROGRAMS, WITH_PROGRAMS, without_signals]
                .map(|permissions| evaluate(permissions, call, [0; 6]));
            assert_eq!(seen, [without_programs, with_programs, unscoped], "call {call}");
        };
        check(libc::SYS_execve, EPERM, None, None);
        check(libc::SYS_execveat, EPERM, None, None);
        check(libc::SYS_wait4, EPERM, None, None);
        check(libc::SYS_waitid, EPERM, None, None);
        check(libc::SYS_kill, EPERM, None, EPERM);
        check(libc::SYS_pidfd_send_signal, EPERM, None, EPERM);
        check(libc::SYS_clone3, ENOSYS, ENOSYS, ENOSYS);
        // Newer than the list: the newer C library of a program must fall back.
        check(libc::SYS_mseal, EPERM, ENOSYS, ENOSYS);
    }

    #[test]
    fn multiplexed_calls_are_filtered_by_argument() {
        let evaluate = |permissions, call, given: &[i64]| {
            let mut arguments = [0; 6];
            arguments.iter_mut().zip(given).for_each(|(argument, value)| *argument = *value as u64);
            evaluate(permissions, call, arguments)
        };
        let check = |call, given: &[i64], without_programs, with_programs| {
            let seen = [evaluate(WITHOUT_PROGRAMS, call, given), evaluate(WITH_PROGRAMS, call, given)];
            assert_eq!(seen, [without_programs, with_programs], "call {call} with {given:x?}");
        };
        let number = |value: i32| i64::from(value);
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        check(libc::SYS_clone, &[number(thread)], None, None);
        check(libc::SYS_clone, &[number(libc::SIGCHLD)], EPERM, None);
        check(libc::SYS_clone, &[number(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD)], EPERM, None);
        check(libc::SYS_clone, &[number(thread | libc::CLONE_NEWUSER)], EPERM, EPERM);
        check(libc::SYS_clone, &[number(libc::CLONE_NEWUSER | libc::SIGCHLD)], EPERM, EPERM);
        check(libc::SYS_clone, &[number(libc::CLONE_NEWNET | libc::SIGCHLD)], EPERM, EPERM);

        let (unix, inet, inet6) = (number(libc::AF_UNIX), number(libc::AF_INET), number(libc::AF_INET6));
        let (stream, datagram) = (number(libc::SOCK_STREAM), number(libc::SOCK_DGRAM));
        let flags = number(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        check(libc::SYS_socket, &[unix, stream | flags, 0], None, None);
        check(libc::SYS_socket, &[unix, number(libc::SOCK_SEQPACKET), 0], None, None);
        check(libc::SYS_socket, &[inet, stream | flags, 0], None, None);
        check(libc::SYS_socket, &[inet6, stream, number(libc::IPPROTO_TCP)], None, None);
        check(libc::SYS_socket, &[inet6, datagram | flags, number(libc::IPPROTO_UDP)], None, None);
        check(libc::SYS_socket, &[inet, number(libc::SOCK_RAW), number(libc::IPPROTO_ICMP)], EPERM, EPERM);
        check(libc::SYS_socket, &[inet, datagram, number(libc::IPPROTO_ICMP)], EPERM, EPERM);
        check(libc::SYS_socket, &[inet, stream, number(libc::IPPROTO_MPTCP)], EPERM, EPERM);
        check(libc::SYS_socket, &[inet, number(libc::SOCK_SEQPACKET), number(libc::IPPROTO_SCTP)], EPERM, EPERM);
        for family in
            [libc::AF_PACKET, libc::AF_NETLINK, libc::AF_VSOCK, libc::AF_ALG, libc::AF_BLUETOOTH, libc::AF_XDP]
        {
            check(libc::SYS_socket, &[number(family), stream, 0], EPERM, EPERM);
            check(libc::SYS_socket, &[number(family), number(libc::SOCK_RAW), 0], EPERM, EPERM);
        }
        check(libc::SYS_socketpair, &[unix, stream, 0], None, None);
        check(libc::SYS_socketpair, &[inet, stream, 0], EPERM, EPERM);
        let (nosignal, fastopen) = (number(libc::MSG_NOSIGNAL), number(libc::MSG_FASTOPEN));
        check(libc::SYS_sendto, &[3, 0, 0, nosignal], None, None);
        check(libc::SYS_sendto, &[3, 0, 0, nosignal | fastopen], EPERM, EPERM);
        check(libc::SYS_sendmsg, &[3, 0, nosignal], None, None);
        check(libc::SYS_sendmsg, &[3, 0, fastopen], EPERM, EPERM);
        check(libc::SYS_sendmmsg, &[3, 0, 1, fastopen], EPERM, EPERM);

        let (writable, executable) =
            (number(libc::PROT_READ | libc::PROT_WRITE), number(libc::PROT_READ | libc::PROT_EXEC));
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            check(call, &[0, 4096, writable], None, None);
            check(call, &[0, 4096, executable], EPERM, None);
        }

        let pid = i64::from(PID);
        check(libc::SYS_tgkill, &[pid, pid, number(libc::SIGABRT)], None, None);
        check(libc::SYS_tgkill, &[1, 1, number(libc::SIGKILL)], EPERM, EPERM);
        check(libc::SYS_tgkill, &[-1, 1, number(libc::SIGKILL)], EPERM, EPERM);
        check(libc::SYS_prlimit64, &[0], None, None);
        check(libc::SYS_prlimit64, &[1], EPERM, EPERM);
        check(libc::SYS_ioctl, &[0, libc::FIONBIO as i64], None, None);
        check(libc::SYS_ioctl, &[0, libc::TIOCSTI as i64], EPERM, EPERM);
        check(libc::SYS_ioctl, &[0, libc::TIOCLINUX as i64], EPERM, EPERM);
        check(libc::SYS_fcntl, &[0, number(libc::F_SETFL)], None, None);
        check(libc::SYS_fcntl, &[0, number(libc::F_SETOWN)], EPERM, EPERM);
        check(libc::SYS_prctl, &[number(libc::PR_SET_NAME)], None, None);
        check(libc::SYS_prctl, &[number(libc::PR_SET_PTRACER)], EPERM, EPERM);
        check(libc::SYS_prctl, &[number(libc::PR_SET_NO_NEW_PRIVS)], EPERM, None);
        check(libc::SYS_prctl, &[number(libc::PR_SET_PDEATHSIG)], EPERM, None);
    }

    #[test]
    fn conditional_calls_are_not_also_unconditional() {
        let groups =
            [MEMORY, THREADS, SIGNALS, TIME, IDENTITY, WAITING, STREAMS, FILES, DIRECTORIES, NETWORK, OLD_CALLS];
        let more = [PROGRAMS, OLD_CALLS_OF_PROGRAMS, SIGNALS_TO_PROGRAMS];
        let unconditional: Vec<i64> = [groups.concat(), more.concat()].concat();
        let distinct: BTreeSet<i64> = unconditional.iter().copied().collect();
        assert_eq!(unconditional.len(), distinct.len(), "a call is on two lists");
        let with_conditions = with_conditions(WITHOUT_PROGRAMS).expect("the list compiles");
        for (call, rules) in with_conditions {
            assert!(!distinct.contains(&call), "call {call} is also allowed with any arguments");
            assert!(!rules.is_empty(), "call {call} has no condition without programs");
        }
        for call in unconditional {
            assert_eq!(evaluate(WITH_PROGRAMS, call, [u64::MAX; 6]), None, "call {call}");
        }
    }
}
