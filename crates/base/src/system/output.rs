//! Output of commands. In: a text. Out: the text on stdout or stderr. A reader that closes the pipe early, such as `head`, is not
//! an error; any other failure of stdout is an error of the command.

use std::io::{self, ErrorKind, Write as _};

/// Prints to stdout; returns the exit code.
pub fn print(text: &str) -> i32 {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            note(&format!("error: cannot write the output: {error}\n"));
            1
        }
    }
}

/// Prints to stderr; a failure cannot be reported anywhere and is ignored.
pub fn note(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
