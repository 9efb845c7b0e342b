//! What commands print. In: a text. Out: the text on stdout or stderr. A reader that has left early, as `head` does, has what it
//! wanted; any other failure of stdout is an error of the command.

use std::io::{self, ErrorKind, Write as _};

/// Prints to stdout; answers the exit code.
pub fn print(text: &str) -> i32 {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => {
            note(&format!("error: the output cannot be written: {error}\n"));
            1
        }
    }
}

/// Prints to stderr; where nobody reads it there is nobody to tell.
pub fn note(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
