//! Programs that are granted. In: the folder, the compiled `attempt.c`, the pid of the test, a port that is not granted, and programs
//! to run. Out: a line for each; what `attempt` prints goes out as it is. Bound: each program ends by itself or is ended.

use crate::{attempt, enter, grants, paths};
use sandbox::Grants;
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a Debian, and most others, keep the loader and its libraries.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

pub fn run(folder: &Path, rest: &[String]) {
    let [attempts, test, port] = rest else { panic!("programs needs a program, a pid and a port") };
    let mut execute = paths(LIBRARIES);
    execute.extend(paths(&["/bin/sh", "/usr/bin/ssh", "/bin/sleep"]));
    execute.push(PathBuf::from(attempts));
    // ssh looks up who starts it.
    let read = paths(&["/etc/passwd", "/etc/nsswitch.conf"]);
    let holds = enter(&Grants { read, execute, programs: true, ..grants(folder) });

    attempt("a shell", said(Command::new("/bin/sh").args(["-c", "echo x"]), "x"));
    attempt("a pipe of a shell", said(Command::new("/bin/sh").args(["-c", "(echo y) | (read line; echo $line)"]), "y"));
    if Path::new("/usr/bin/ssh").exists() {
        attempt("ssh", said(Command::new("/usr/bin/ssh").arg("-V"), "OpenSSH"));
    }
    attempt("a program that is not granted", Command::new("/bin/ls").output());
    attempt("a program of our own making", made(folder, attempts));
    attempt("end what hangs", end(holds.signals));
    let outside = folder.join("out/file");
    attempt(
        "a file outside, by a program",
        said(Command::new("/bin/sh").args(["-c", "exec <\"$0\""]).arg(outside), ""),
    );
    // Its lines are attempts, too.
    let status = Command::new(attempts).args([test, port]).stdin(Stdio::null()).status();
    attempt("raw calls", status);
}

fn said(command: &mut Command, expect: &str) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match output.status.success() && text.starts_with(expect) {
        true => Ok(()),
        false => Err(Error::other(format!("{} and {}", output.status, text.trim().replace('\n', " ")))),
    }
}

/// What may be written must not be executed.
fn made(folder: &Path, program: &str) -> io::Result<()> {
    let copy = folder.join("in/copy");
    // Readable, since whatever may be executed may be read.
    std::fs::copy(program, &copy)?;
    Command::new(copy).output().map(|_| ())
}

fn end(may_signal: bool) -> io::Result<()> {
    if !may_signal {
        return Ok(());
    }
    let mut hangs = Command::new("/bin/sleep").arg("60").spawn()?;
    hangs.kill()?;
    hangs.wait().map(|_| ())
}
