//! The filter of system calls. In: whether programs may run, and whether Landlock holds signals back. Out: two filters in force, for
//! this thread and all that come from it. Bounds: what is not on the list below answers EPERM and never ends the process, since
//! a new C library must not take the sidecar down; x86_64 and aarch64. The list itself is in `calls.rs`.

use crate::calls::*;
use crate::{Grants, Holds};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;

/// A number with no rule is allowed with any arguments, one with rules when one of them matches. The kernel remembers the first kind
/// and does not run the filter for it again, so that reading, writing and waiting cost next to nothing.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;
type Outcome<T> = Result<T, BackendError>;

pub(crate) fn restrict(grants: &Grants, holds: &mut Holds) {
    let applied = filters(Rights::new(grants, holds))
        .map_err(seccompiler::Error::from)
        .and_then(|filters| filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)));
    match applied {
        Ok(()) => holds.seccomp = true,
        Err(error) => holds.lack(format!("system calls are not filtered: {error}")),
    }
    if grants.programs && !holds.signals {
        holds.lack(
            "a program that we start and that hangs cannot be ended by us: signals cannot be limited to it".to_string(),
        );
    }
}

/// What the list depends on.
#[derive(Debug, Clone, Copy)]
struct Rights {
    programs: bool,
    /// May send signals: safe where Landlock keeps them among us and what we start.
    signals: bool,
    /// Our own pid.
    pid: u32,
}

impl Rights {
    fn new(grants: &Grants, holds: &Holds) -> Self {
        let programs = grants.programs;
        Self { programs, signals: programs && holds.signals, pid: std::process::id() }
    }
}

/// In the order in which they are applied.
fn filters(rights: Rights) -> Outcome<[BpfProgram; 2]> {
    Ok([
        filter(absent(rights.programs), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))?,
        filter(allowed(rights)?, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)?,
    ])
}

fn filter(calls: Calls, otherwise: SeccompAction, matching: SeccompAction) -> Outcome<BpfProgram> {
    SeccompFilter::new(calls, otherwise, matching, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Calls that look as if the kernel did not know them. The C library then uses `clone` for `clone3`, whose flags lie in memory where
/// no filter sees them; and a newer library than ours does without what came after our list.
fn absent(programs: bool) -> Calls {
    let later = if programs { AFTER_OUR_LIST } else { 0..0 };
    later.chain([libc::SYS_clone3]).map(|call| (call, Vec::new())).collect()
}

fn allowed(rights: Rights) -> Outcome<Calls> {
    let mut groups =
        vec![MEMORY, THREADS, SIGNALS, TIME, IDENTITY, WAITING, STREAMS, FILES, FOLDERS, NETWORK, OLD_CALLS];
    if rights.programs {
        groups.extend([PROGRAMS, OLD_CALLS_OF_PROGRAMS]);
    }
    if rights.signals {
        groups.push(SIGNALS_TO_PROGRAMS);
    }
    let mut calls: Calls = groups.concat().into_iter().map(|call| (call, Vec::new())).collect();
    calls.extend(with_conditions(rights)?);
    // The first filter answers these, and its error counts only where this one would let them pass.
    calls.extend(absent(rights.programs));
    Ok(calls)
}

/// The calls that depend on their arguments.
fn with_conditions(rights: Rights) -> Outcome<Calls> {
    let prctls = [PRCTLS, if rights.programs { PRCTLS_OF_PROGRAMS } else { &[] }].concat();
    let mut calls = Calls::from([
        (libc::SYS_socket, sockets()?),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?),
        (libc::SYS_clone, vec![rule([new_threads(rights.programs)?])?]),
        // Ourselves, by name or as "the caller".
        (libc::SYS_tgkill, one_of(0, &[u64::from(rights.pid)])?),
        (libc::SYS_prlimit64, one_of(0, &[0, u64::from(rights.pid)])?),
        (libc::SYS_ioctl, one_of(1, IOCTLS)?),
        (libc::SYS_fcntl, one_of(1, FCNTLS)?),
        (libc::SYS_prctl, one_of(0, &prctls)?),
    ]);
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        // TCP Fast Open connects without the question that Landlock answers.
        calls.insert(call, vec![rule([without(flags, libc::MSG_FASTOPEN as u64)?])?]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let rules = match rights.programs {
            true => Vec::new(),
            // Nothing that a fault wrote into our memory becomes code: the binary is static and compiles nothing.
            false => vec![rule([without(2, libc::PROT_EXEC as u64)?])?],
        };
        calls.insert(call, rules);
    }
    Ok(calls)
}

/// Unix sockets, TCP and UDP by their usual protocol. Raw and packet sockets, netlink, vsock and the rest are refused, and so are other
/// protocols with the type of TCP (MPTCP, SCTP), whose connections Landlock does not see.
fn sockets() -> Outcome<Vec<SeccompRule>> {
    /// The bits of a type that are no flags (SOCK_CLOEXEC, SOCK_NONBLOCK).
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

/// Threads, and with `programs` processes; never a namespace.
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

/// The kernel takes 32 bits of each argument that is looked at here, and so does the filter.
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
    const ALONE: Rights = Rights { programs: false, signals: false, pid: PID };
    const WITH_PROGRAMS: Rights = Rights { programs: true, signals: true, pid: PID };
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// What the kernel would do with a call: the error, or nothing where it passes.
    fn judge(rights: Rights, call: i64, arguments: [u64; 6]) -> Option<u32> {
        let filters = filters(rights).expect("the list compiles");
        // The strictest action wins, and among equals the one of the filter that came last.
        let seen = filters.iter().rev().map(|filter| run(filter, call, arguments)).min_by_key(|action| action >> 16);
        match seen {
            Some(ALLOW) => None,
            Some(action) if action & 0xffff_0000 == ERRNO => Some(action & 0xffff),
            other => panic!("call {call} is answered by {other:x?}, which is neither leave nor an error"),
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
                code => panic!("the filter holds an instruction {code:#x} that this model does not know"),
            }
        }
    }

    const EPERM: Option<u32> = Some(1);
    const ENOSYS: Option<u32> = Some(38);

    #[test]
    fn calls_that_reach_other_processes_or_the_kernel_are_refused_with_and_without_programs() {
        let refused = [
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
        for call in refused {
            for rights in [ALONE, WITH_PROGRAMS] {
                assert_eq!(judge(rights, call, [0; 6]), EPERM, "call {call} with {rights:?}");
            }
        }
    }

    #[test]
    fn programs_and_signals_are_allowed_only_where_granted() {
        let scoped_only = Rights { signals: false, ..WITH_PROGRAMS };
        let check = |call, alone, programs, unscoped| {
            let seen = [ALONE, WITH_PROGRAMS, scoped_only].map(|rights| judge(rights, call, [0; 6]));
            assert_eq!(seen, [alone, programs, unscoped], "call {call}");
        };
        check(libc::SYS_execve, EPERM, None, None);
        check(libc::SYS_execveat, EPERM, None, None);
        check(libc::SYS_wait4, EPERM, None, None);
        check(libc::SYS_waitid, EPERM, None, None);
        check(libc::SYS_kill, EPERM, None, EPERM);
        check(libc::SYS_pidfd_send_signal, EPERM, None, EPERM);
        check(libc::SYS_clone3, ENOSYS, ENOSYS, ENOSYS);
        // Later than our list: a program's newer C library has to fall back.
        check(libc::SYS_mseal, EPERM, ENOSYS, ENOSYS);
    }

    #[test]
    fn calls_that_do_many_things_are_judged_by_their_arguments() {
        let judge = |rights, call, given: &[i64]| {
            let mut arguments = [0; 6];
            arguments.iter_mut().zip(given).for_each(|(argument, value)| *argument = *value as u64);
            judge(rights, call, arguments)
        };
        let check = |call, given: &[i64], alone, programs| {
            let seen = [judge(ALONE, call, given), judge(WITH_PROGRAMS, call, given)];
            assert_eq!(seen, [alone, programs], "call {call} with {given:x?}");
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
    fn no_call_stands_on_the_list_both_freely_and_with_a_condition() {
        let groups = [MEMORY, THREADS, SIGNALS, TIME, IDENTITY, WAITING, STREAMS, FILES, FOLDERS, NETWORK, OLD_CALLS];
        let more = [PROGRAMS, OLD_CALLS_OF_PROGRAMS, SIGNALS_TO_PROGRAMS];
        let free: Vec<i64> = [groups.concat(), more.concat()].concat();
        let distinct: BTreeSet<i64> = free.iter().copied().collect();
        assert_eq!(free.len(), distinct.len(), "a call stands on two lists");
        let with_conditions = with_conditions(ALONE).expect("the list compiles");
        for (call, rules) in with_conditions {
            assert!(!distinct.contains(&call), "call {call} is also allowed with any arguments");
            assert!(!rules.is_empty(), "call {call} has no condition where no program may run");
        }
        for call in free {
            assert_eq!(judge(WITH_PROGRAMS, call, [u64::MAX; 6]), None, "call {call}");
        }
    }
}
