/* Tries system calls that have no safe wrapper in Rust. In: the pid of a process outside and a TCP port that is not granted.
 * Out: a line for each call, with its name and `ok` or the errno. Limits: started outside a sandbox, it changes only its own
 * process. */
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

static void report(const char *name, long result) {
    if (result < 0) printf("%s\t%d\n", name, errno);
    else printf("%s\tok\n", name);
    fflush(stdout);
}

int main(int count, char **given) {
    if (count != 3) return 2;
    int other = atoi(given[1]), port = atoi(given[2]);
    char bytes[256] = {0};
    struct iovec local = {bytes, 8}, remote = {(void *)main, 8};

    report("ptrace", ptrace(PTRACE_SEIZE, other, 0, 0));
    report("process_vm_readv", syscall(SYS_process_vm_readv, other, &local, 1, &remote, 1, 0));
    report("kill", kill(other, 0));
    report("tgkill", syscall(SYS_tgkill, other, other, 0));
    report("mount", mount("none", "/no/such/directory", "tmpfs", 0, 0));
    report("setns", syscall(SYS_setns, 0, 0));
    report("clone with a namespace", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    report("clone3", syscall(SYS_clone3, bytes, 0));
    report("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    report("add_key", syscall(SYS_add_key, "user", "outrigger", "x", 1, -99));
    report("bpf", syscall(SYS_bpf, 0, bytes, 72));
    report("perf_event_open", syscall(SYS_perf_event_open, bytes, 0, -1, -1, 0));
    report("io_uring_setup", syscall(SYS_io_uring_setup, 2, bytes));
    report("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1));
    report("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, bytes, O_RDONLY));
    report("personality", syscall(SYS_personality, 0xffffffff));
    report("raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    report("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    report("type on a terminal", ioctl(0, TIOCSTI, "x"));
    report("signals by file descriptor", fcntl(0, F_SETOWN, other));

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = socket(AF_INET, SOCK_STREAM, 0);
    report("connect", connect(one, (struct sockaddr *)&address, sizeof address));
    int two = socket(AF_INET, SOCK_STREAM, 0);
    report("connect by TCP Fast Open", sendto(two, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof address));
    int three = socket(AF_INET, SOCK_STREAM, 262 /* IPPROTO_MPTCP */);
    report("connect by MPTCP", three < 0 ? -1 : connect(three, (struct sockaddr *)&address, sizeof address));
    report("unshare", unshare(CLONE_NEWUSER));
    return 0;
}
