/* Tries system calls that have no safe wrapper in Rust. In: the pid of a process outside and a TCP port that is not granted.
 * Out: a line for each call, its name and `ok` or the number of the error. Bound: started outside of a sandbox, it changes nothing but
 * itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static void say(const char *name, long result) {
    if (result < 0) printf("%s\t%d\n", name, errno);
    else printf("%s\tok\n", name);
    fflush(stdout);
}

int main(int count, char **given) {
    if (count != 3) return 2;
    int other = atoi(given[1]), port = atoi(given[2]);
    char bytes[256] = {0};
    struct iovec here = {bytes, 8}, there = {(void *)main, 8};

    say("ptrace", ptrace(PTRACE_SEIZE, other, 0, 0));
    say("process_vm_readv", syscall(SYS_process_vm_readv, other, &here, 1, &there, 1, 0));
    say("kill", kill(other, 0));
    say("tgkill", syscall(SYS_tgkill, other, other, 0));
    say("mount", mount("none", "/no/such/folder", "tmpfs", 0, 0));
    say("setns", syscall(SYS_setns, 0, 0));
    say("clone with a namespace", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    say("clone3", syscall(SYS_clone3, bytes, 0));
    say("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    say("add_key", syscall(SYS_add_key, "user", "outrigger", "x", 1, -99));
    say("bpf", syscall(SYS_bpf, 0, bytes, 72));
    say("perf_event_open", syscall(SYS_perf_event_open, bytes, 0, -1, -1, 0));
    say("io_uring_setup", syscall(SYS_io_uring_setup, 2, bytes));
    say("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1));
    say("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, bytes, O_RDONLY));
    say("personality", syscall(SYS_personality, 0xffffffff));
    say("raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    say("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    say("typing on a terminal", ioctl(0, TIOCSTI, "x"));
    say("signals by descriptor", fcntl(0, F_SETOWN, other));

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = socket(AF_INET, SOCK_STREAM, 0);
    say("connect", connect(one, (struct sockaddr *)&address, sizeof address));
    int two = socket(AF_INET, SOCK_STREAM, 0);
    say("connect by a first send", sendto(two, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof address));
    int three = socket(AF_INET, SOCK_STREAM, 262 /* IPPROTO_MPTCP */);
    say("connect by several ways", three < 0 ? -1 : connect(three, (struct sockaddr *)&address, sizeof address));
    say("unshare", unshare(CLONE_NEWUSER));
    return 0;
}
