//! fork and exec from a plan. In: an `ExecPlan`, made while allocation is still allowed. Out: a child, or the error of
//! its exec. Both refuse where the process has a second thread, since a fork would copy locks that nobody opens.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Everything exec needs, as the kernel reads it. The pointers point into the strings beside them.
pub struct ExecPlan {
    candidates: Vec<CString>,
    _argv: Vec<CString>,
    _envp: Vec<CString>,
    argv_pointers: Vec<*const libc::c_char>,
    envp_pointers: Vec<*const libc::c_char>,
}

/// What the child does between fork and exec.
pub struct ChildSetup<'a> {
    pub stdout: Option<BorrowedFd<'a>>,
    pub stderr: Option<BorrowedFd<'a>>,
    /// Begins a session of its own, so that signals can reach the whole group.
    pub new_session: bool,
    pub mask: &'a crate::signal::SavedMask,
}

/// What fork returned.
pub enum Fork {
    Parent { child: i32 },
    Child,
}

impl ExecPlan {
    /// Resolves the command against PATH now, as execvp would at the time of the call. Errors: a NUL in an argument.
    pub fn new<E: AsRef<std::ffi::OsStr>>(
        command: &[E],
        environment: &[(std::ffi::OsString, std::ffi::OsString)],
    ) -> io::Result<ExecPlan> {
        let owned = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| io::Error::other("a NUL byte stands in the command or environment"))
        };
        let argv = command.iter().map(|part| owned(part.as_ref().as_bytes())).collect::<io::Result<Vec<_>>>()?;
        let program = argv.first().ok_or_else(|| io::Error::other("the command is empty"))?.to_bytes().to_vec();
        let envp = environment
            .iter()
            .map(|(name, value)| owned(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<Vec<_>>>()?;
        let candidates = if program.contains(&b'/') {
            vec![owned(&program)?]
        } else {
            let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes().to_vec());
            let path = path.unwrap_or_else(|| b"/usr/local/bin:/usr/bin:/bin".to_vec());
            let in_folder =
                |folder: &[u8]| owned(&[if folder.is_empty() { b"." } else { folder }, b"/", &program].concat());
            path.split(|byte| *byte == b':').map(in_folder).collect::<io::Result<Vec<_>>>()?
        };
        let pointers =
            |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(ExecPlan {
            candidates,
            argv_pointers: pointers(&argv),
            envp_pointers: pointers(&envp),
            _argv: argv,
            _envp: envp,
        })
    }

    /// Replaces this process. Returns only where it could not: the error that says most (EACCES before ENOENT).
    fn exec(&self) -> i32 {
        let mut error = libc::ENOENT;
        for path in &self.candidates {
            // SAFETY: all three point to NUL-terminated memory that `self` owns; the arrays end with a null pointer.
            unsafe { libc::execve(path.as_ptr(), self.argv_pointers.as_ptr(), self.envp_pointers.as_ptr()) };
            match io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOENT) {
                libc::ENOENT | libc::ENOTDIR => {}
                other => error = other,
            }
        }
        error
    }
}

/// How many threads this process has, from the links of its task folder.
fn is_single_threaded() -> bool {
    let path: &CStr = c"/proc/self/task";
    // Each thread is a folder, and a folder has two links of its own. Without /proc nothing can be told.
    rustix::fs::stat(path).map_or(true, |stat| stat.st_nlink <= 3)
}

/// Forks a process that has one thread; the child goes on with a copy of everything.
pub fn fork() -> io::Result<Fork> {
    if !is_single_threaded() {
        return Err(io::Error::other("a process with several threads cannot be forked safely"));
    }
    // SAFETY: there is no other thread whose locks the copy could find taken.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child }),
    }
}

/// Starts a child from a plan. Exec's error number arrives on `status` (close-on-exec: it reads as closed on success).
pub fn start(plan: &ExecPlan, setup: &ChildSetup<'_>, status: &OwnedFd) -> io::Result<i32> {
    match fork()? {
        Fork::Parent { child } => Ok(child),
        Fork::Child => {
            let error = match prepare(setup) {
                Ok(()) => plan.exec(),
                Err(error) => error,
            };
            let bytes = error.to_ne_bytes();
            // SAFETY: writes four bytes of the stack, then ends the child without running the parent's exit handlers.
            unsafe {
                libc::write(status.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(127)
            }
        }
    }
}

fn prepare(setup: &ChildSetup<'_>) -> Result<(), i32> {
    let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    for (fd, target) in [(setup.stdout, libc::STDOUT_FILENO), (setup.stderr, libc::STDERR_FILENO)] {
        // SAFETY: duplicates a descriptor that the borrow keeps open.
        if fd.is_some_and(|fd| unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0) {
            return Err(failed());
        }
    }
    // SAFETY: a call without memory.
    if setup.new_session && unsafe { libc::setsid() } < 0 {
        return Err(failed());
    }
    setup.mask.restore_for_exec();
    Ok(())
}

/// Sends any signal, realtime ones too, to a process or to its group.
pub fn kill(pid: i32, signal: i32, group: bool) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::other("no process of ours"));
    }
    // SAFETY: a call without memory; the target is a process or group above 1.
    match unsafe { libc::kill(if group { -pid } else { pid }, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a forked child at once with a code: no destructors of the parent's copies run.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 4
    #[test]
    fn a_command_is_looked_up_along_the_path_of_its_own_environment() {
        let environment = [("PATH".into(), "/a:/b:".into())];
        let plan = ExecPlan::new(&["tool", "-x"], &environment).expect("no NUL");
        let names: Vec<&str> = plan.candidates.iter().filter_map(|path| path.to_str().ok()).collect();
        assert_eq!(names, ["/a/tool", "/b/tool", "./tool"]);
        assert_eq!(plan.argv_pointers.len(), 3);
        assert!(ExecPlan::new(&["a\0b"], &environment).is_err());
        assert!(ExecPlan::new::<&str>(&[], &environment).is_err());
    }

    /// covers: foundation 4
    #[test]
    fn a_process_with_threads_refuses_to_fork() {
        let (hold, release) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || release.recv());
        assert!(fork().is_err());
        drop(hold);
        assert!(thread.join().is_ok());
    }
}
