//! fork and exec from a plan. In: an `ExecPlan`, built while allocation is still allowed. Out: a child, or the step of its start
//! that failed. Fork fails if the process has a second thread, since the child would copy locks that no thread releases.

use crate::signal::SavedSignals;
use std::ffi::OsStr;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// A program as the user specifies it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    pub directory: Option<Vec<u8>>,
    pub user: Option<User>,
    /// The signal that it receives when its parent exits; 0 for none.
    pub parent_death: i32,
}

/// The user that a child switches to before its exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Everything exec needs, in the form the kernel reads. The pointers point into the strings of the same struct.
pub struct ExecPlan {
    candidates: Vec<CString>,
    _argv: Vec<CString>,
    _envp: Vec<CString>,
    argv_pointers: Vec<*const libc::c_char>,
    envp_pointers: Vec<*const libc::c_char>,
    directory: Option<CString>,
    user: Option<User>,
    parent_death: i32,
}

/// Session, process group and terminal of a child.
#[derive(Clone, Copy, Debug)]
pub enum Session<'a> {
    /// A new session, so that signals can reach the entire group and no terminal sends it any.
    New,
    /// The session and process group of Outrigger, as without a wrapper.
    Ours,
    /// The session of Outrigger, and a new process group in the background of the terminal.
    Background,
    /// The session of Outrigger, and a new process group in the foreground of the terminal.
    Foreground(BorrowedFd<'a>),
    /// A new session with this controlling terminal.
    Terminal(BorrowedFd<'a>),
}

/// What the child does between fork and exec.
pub struct ChildSetup<'a> {
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: Option<BorrowedFd<'a>>,
    pub stderr: Option<BorrowedFd<'a>>,
    pub session: Session<'a>,
    pub signals: &'a SavedSignals,
}

/// Why the exec of a child failed, by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    Exec(i32),
    Directory(i32),
    User(i32),
    /// A file descriptor, a session, a terminal or the fork itself.
    Setup(i32),
}

/// What fork returned.
pub enum Fork {
    Parent { child: i32 },
    Child,
}

impl ExecPlan {
    /// Resolves the command against PATH of its own environment, as execvp does. Errors: a NUL byte in an argument.
    pub fn new(command: &Command) -> io::Result<ExecPlan> {
        let owned =
            |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::other("NUL byte in the command or environment"));
        let argv = command.argv.iter().map(|part| owned(part)).collect::<io::Result<Vec<_>>>()?;
        let envp = command.environment.iter().map(|entry| owned(entry)).collect::<io::Result<Vec<_>>>()?;
        let program = argv.first().ok_or_else(|| io::Error::other("the command is empty"))?.to_bytes().to_vec();
        let candidates = if program.contains(&b'/') {
            vec![owned(&program)?]
        } else {
            let path = command.environment.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
            let path = path.unwrap_or(b"/usr/local/bin:/usr/bin:/bin");
            let in_directory = |directory: &[u8]| {
                owned(&[if directory.is_empty() { b"." } else { directory }, b"/", &program].concat())
            };
            path.split(|byte| *byte == b':').map(in_directory).collect::<io::Result<Vec<_>>>()?
        };
        let pointers =
            |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(ExecPlan {
            candidates,
            argv_pointers: pointers(&argv),
            envp_pointers: pointers(&envp),
            _argv: argv,
            _envp: envp,
            directory: command.directory.as_deref().map(owned).transpose()?,
            user: command.user.clone(),
            parent_death: command.parent_death,
        })
    }

    /// Replaces this process. Returns only on failure, with the most specific error (EACCES before ENOENT).
    pub fn exec(&self) -> i32 {
        let mut error = libc::ENOENT;
        for path in &self.candidates {
            // SAFETY: all three point to NUL-terminated memory that `self` owns; the arrays end with a null pointer.
            unsafe { libc::execve(path.as_ptr(), self.argv_pointers.as_ptr(), self.envp_pointers.as_ptr()) };
            match last_error() {
                libc::ENOENT | libc::ENOTDIR => {}
                other => error = other,
            }
        }
        error
    }

    /// The program's file, if it exists. If it does, ENOENT of exec refers to its interpreter.
    pub fn file(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStrExt as _;
        let directory =
            self.directory.as_deref().map_or(Path::new(""), |path| Path::new(OsStr::from_bytes(path.to_bytes())));
        let mut files = self.candidates.iter().map(|path| directory.join(OsStr::from_bytes(path.to_bytes())));
        files.find(|path| path.is_file())
    }

    /// Like `exec`, but runs a text file without `#!` with a shell, as execvp does (POSIX.1-2024, exec; a binary of another
    /// architecture is not a text file). Only for a child, which may allocate.
    fn exec_as_shell_would(&self) -> i32 {
        let error = self.exec();
        let text = self.candidates.iter().find(|path| error == libc::ENOEXEC && is_text(path));
        if let Some(path) = text {
            let arguments = self.argv_pointers.iter().skip(1);
            let argv: Vec<_> = [SHELL.as_ptr(), path.as_ptr()].into_iter().chain(arguments.copied()).collect();
            // SAFETY: as in `exec`; the shell's name is a constant, and the last of the arguments is the null pointer.
            unsafe { libc::execve(SHELL.as_ptr(), argv.as_ptr(), self.envp_pointers.as_ptr()) };
        }
        error
    }
}

const SHELL: &CStr = c"/bin/sh";

/// Whether a file is executable and starts like text: the check of a shell before it runs a file as a script.
fn is_text(path: &CStr) -> bool {
    if rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_err() {
        return false;
    }
    let mut start = [0u8; 128];
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let read = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    let read = read.and_then(|file| rustix::io::read(&file, &mut start[..]));
    read.is_ok_and(|count| count > 0 && !start.get(..count).unwrap_or(&[]).contains(&0))
}

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Whether this process has a single thread, by the link count of its task directory.
pub(crate) fn is_single_threaded() -> bool {
    let path: &CStr = c"/proc/self/task";
    // Each thread is a subdirectory, and a directory has two links itself. Without /proc the count is unknown.
    rustix::fs::stat(path).map_or(true, |stat| stat.st_nlink <= 3)
}

/// Sets whether other processes of this user may read this process's memory and environment in /proc, and whether it may dump
/// core (PR_SET_DUMPABLE(2const)): normally false, since both contain secrets. An exec resets it to true. While it is false, this
/// process's files in /proc belong to root, so code that has to write one sets true briefly.
pub fn set_readable_by_others(readable: bool) {
    use rustix::process::DumpableBehavior::{Dumpable, NotDumpable};
    // If it fails, this process is as readable as any other program.
    let _ = rustix::process::set_dumpable_behavior(if readable { Dumpable } else { NotDumpable });
}

/// Forks a process that has one thread; the child continues with a copy of everything.
pub fn fork() -> io::Result<Fork> {
    if !is_single_threaded() {
        return Err(io::Error::other("cannot safely fork a process with several threads"));
    }
    // SAFETY: there is no other thread whose locks the child could find held.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child }),
    }
}

/// Starts a child from a plan, and waits until its exec has succeeded or failed. A child that failed is reaped here, so that
/// its exit is not mistaken for the exit of the program.
pub fn start(plan: &ExecPlan, setup: &ChildSetup<'_>) -> Result<i32, StartError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| StartError::Setup(error.raw_os_error()))?;
    match fork().map_err(|error| StartError::Setup(error.raw_os_error().unwrap_or(libc::EAGAIN)))? {
        Fork::Parent { child } => {
            drop(write);
            match start_error(&read) {
                None => Ok(child),
                Some(error) => {
                    let pid = rustix::process::Pid::from_raw(child);
                    let _ = pid.map(|pid| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
                    Err(error)
                }
            }
        }
        Fork::Child => {
            let error = match prepare(plan, setup) {
                Ok(()) => StartError::Exec(plan.exec_as_shell_would()),
                Err(error) => error,
            };
            let (step, number) = match error {
                StartError::Exec(number) => (0, number),
                StartError::Directory(number) => (1, number),
                StartError::User(number) => (2, number),
                StartError::Setup(number) => (3, number),
            };
            let bytes = [step, number].map(i32::to_ne_bytes).concat();
            // SAFETY: writes eight bytes that live here, then exits the child without the parent's exit handlers.
            unsafe {
                libc::write(write.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(127)
            }
        }
    }
}

/// Blocks until exec succeeds, which closes the pipe, or the child writes its error.
fn start_error(status: &OwnedFd) -> Option<StartError> {
    let mut bytes = [0u8; 8];
    let count = loop {
        match rustix::io::read(status, &mut bytes) {
            Ok(count) => break count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    };
    let number = |at: usize| bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map(i32::from_ne_bytes);
    let error = number(4).filter(|_| count == bytes.len())?;
    Some(match number(0)? {
        0 => StartError::Exec(error),
        1 => StartError::Directory(error),
        2 => StartError::User(error),
        _ => StartError::Setup(error),
    })
}

fn prepare(plan: &ExecPlan, setup: &ChildSetup<'_>) -> Result<(), StartError> {
    let check = |result: libc::c_int, error: fn(i32) -> StartError| match result {
        -1 => Err(error(last_error())),
        _ => Ok(()),
    };
    // SAFETY: calls with descriptors that the borrows keep open, and with strings and lists that the plan owns.
    unsafe {
        match setup.session {
            Session::Ours => {}
            Session::New => check(libc::setsid(), StartError::Setup)?,
            Session::Background => check(libc::setpgid(0, 0), StartError::Setup)?,
            Session::Foreground(terminal) => {
                check(libc::setpgid(0, 0), StartError::Setup)?;
                // SIGTTOU is still blocked here, so a background group may do this.
                check(libc::tcsetpgrp(terminal.as_raw_fd(), libc::getpid()), StartError::Setup)?;
            }
            Session::Terminal(terminal) => {
                check(libc::setsid(), StartError::Setup)?;
                check(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0), StartError::Setup)?;
            }
        }
        for (fd, target) in [(setup.stdin, 0), (setup.stdout, 1), (setup.stderr, 2)] {
            if let Some(fd) = fd {
                check(libc::dup2(fd.as_raw_fd(), target), StartError::Setup)?;
            }
        }
        // Before the user changes: Outrigger may have been started in a directory that only its own user may enter.
        if let Some(directory) = &plan.directory {
            check(libc::chdir(directory.as_ptr()), StartError::Directory)?;
        }
        if let Some(user) = &plan.user {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()), StartError::User)?;
            check(libc::setgid(user.gid), StartError::User)?;
            check(libc::setuid(user.uid), StartError::User)?;
        }
        // After the user changes, which clears it (PR_SET_PDEATHSIG, prctl(2)).
        if plan.parent_death != 0 {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, plan.parent_death), StartError::Setup)?;
        }
    }
    setup.signals.restore_for_exec();
    Ok(())
}

/// Has a program killed when the thread that starts it ends, for any reason (PR_SET_PDEATHSIG, prctl(2)).
pub fn end_with_thread(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let end = || {
        // SAFETY: prctl takes two numbers, and is safe to call between fork and exec.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and touches no memory that fork may copy in an inconsistent state.
    unsafe { command.pre_exec(end) };
}

/// The interpreter in the `#!` line of a script.
pub fn interpreter(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut begin = [0u8; 256];
    let count = std::fs::File::open(path).ok()?.read(&mut begin).ok()?;
    let line = begin.get(..count)?.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    // A carriage return becomes part of the name (Windows line ending); it is shown as `\r`, since it is the error.
    let line: Vec<u8> = line
        .trim_ascii_start()
        .iter()
        .flat_map(|byte| match byte {
            b'\r' => br"\r".to_vec(),
            byte => vec![*byte],
        })
        .collect();
    line.split(|byte| *byte == b' ').next().map(<[u8]>::to_vec).filter(|name| !name.is_empty())
}

/// The running children of this process, with their names. Orphans of the app are re-parented to it (PR_SET_CHILD_SUBREAPER).
pub fn children() -> Vec<(i32, String)> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let alive = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        (!rest.trim_start().starts_with('Z')).then(|| (pid, name.to_string()))
    };
    text.split_whitespace().filter_map(|pid| alive(pid.parse().ok()?)).collect()
}

/// Closes a file descriptor at the next exec. Does nothing for a number that is not open.
pub fn close_on_exec(number: RawFd) {
    // SAFETY: sets the flags of a file descriptor; no memory is involved.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Takes ownership of an inherited file descriptor. None if the number is not open, and for the standard three. Call once for
/// each number, before anything else is opened.
pub fn claim(number: RawFd) -> Option<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return None;
    }
    // SAFETY: sets the flags of a file descriptor; no memory is involved.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and the caller guarantees that nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends any signal, including realtime signals, to a process or to its group.
pub fn kill(pid: i32, signal: i32, group: bool) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::other("invalid pid"));
    }
    // SAFETY: a call without memory; the target is a process or group above 1.
    match unsafe { libc::kill(if group { -pid } else { pid }, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Exits a forked child immediately with a code: no destructors of copied values run.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str], environment: &[&str]) -> Command {
        let bytes = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect();
        Command { argv: bytes(argv), environment: bytes(environment), ..Command::default() }
    }

    #[test]
    fn command_is_looked_up_in_path_of_its_env() {
        let environment = ["PATH=/a:/b:"];
        let plan = ExecPlan::new(&command(&["tool", "-x"], &environment)).expect("no NUL");
        let names: Vec<&str> = plan.candidates.iter().filter_map(|path| path.to_str().ok()).collect();
        assert_eq!(names, ["/a/tool", "/b/tool", "./tool"]);
        assert_eq!(plan.argv_pointers.len(), 3);
        assert!(ExecPlan::new(&command(&["a\0b"], &environment)).is_err());
        assert!(ExecPlan::new(&command(&[], &environment)).is_err());
    }

    #[test]
    fn fork_fails_in_a_multithreaded_process() {
        let (hold, release) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || release.recv());
        assert!(fork().is_err());
        drop(hold);
        assert!(thread.join().is_ok());
    }
}
