//! Granted programs. In: the directory, the compiled `attempt.c`, the pid of the test, and a port that is not granted.
//! Out: a line for each attempt; the output of `attempt` is printed unchanged. Limits: each program exits or is killed.

use crate::{attempt, enter, grants, paths};
use sandbox::Grants;
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Location of the loader and its libraries on Debian and most other distributions.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

pub fn run(directory: &Path, rest: &[String]) {
    let [attempts, test, port] = rest else { panic!("scenario programs needs a program, a pid and a port") };
    let mut execute = paths(LIBRARIES);
    execute.extend(paths(&["/bin/sh", "/usr/bin/ssh", "/bin/sleep"]));
    execute.push(PathBuf::from(attempts));
    // ssh looks up its user.
    let read = paths(&["/etc/passwd", "/etc/nsswitch.conf"]);
    let holds = enter(&Grants { read, execute, programs: true, ..grants(directory) });

    attempt("a shell", prints(Command::new("/bin/sh").args(["-c", "echo x"]), "x"));
    attempt(
        "a shell pipeline",
        prints(Command::new("/bin/sh").args(["-c", "(echo y) | (read line; echo $line)"]), "y"),
    );
    if Path::new("/usr/bin/ssh").exists() {
        attempt("ssh", prints(Command::new("/usr/bin/ssh").arg("-V"), "OpenSSH"));
    }
    attempt("a program that is not granted", Command::new("/bin/ls").output());
    attempt("a program copied to a writable directory", run_copy(directory, attempts));
    attempt("kill a hung program", kill_hung(holds.signals));
    let outside = directory.join("out/file");
    attempt(
        "a file outside, by a program",
        prints(Command::new("/bin/sh").args(["-c", "exec <\"$0\""]).arg(outside), ""),
    );
    // It prints a line per attempt.
    let status = Command::new(attempts).args([test, port]).stdin(Stdio::null()).status();
    attempt("raw calls", status);
}

fn prints(command: &mut Command, expect: &str) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match output.status.success() && text.starts_with(expect) {
        true => Ok(()),
        false => Err(Error::other(format!("{}: {}", output.status, text.trim().replace('\n', " ")))),
    }
}

/// A writable file must not be executable.
fn run_copy(directory: &Path, program: &str) -> io::Result<()> {
    let copy = directory.join("in/copy");
    // The program is readable, since the execute grant includes reading.
    std::fs::copy(program, &copy)?;
    Command::new(copy).output().map(|_| ())
}

fn kill_hung(may_signal: bool) -> io::Result<()> {
    if !may_signal {
        return Ok(());
    }
    let mut child = Command::new("/bin/sleep").arg("60").spawn()?;
    child.kill()?;
    child.wait().map(|_| ())
}
