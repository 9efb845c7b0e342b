//! The files of an app in a separate container on a shared volume: the exit code file, and the file with its process ID. In: the
//! bytes of such a file. Out: any exit code file is an exit, with the code that was written; a number other than 0 never becomes
//! success; a process ID is one that can be watched.

use crate::app::end::{code_of, read_exit_code_file, read_pid};
use crate::attempt::shape;
use crate::scratch;
use std::path::PathBuf;

pub const WORDS: &[&str] =
    &["0", "1", "137", "143", "255", "\n", "\r\n", " ", "-", "+", "\u{feff}", "exit 1", "\0", "\t", "1234"];

/// Both readers skip files of a previous run; these are of this run.
const NOT_BEFORE: i64 = 0;

/// Neither of the two files is longer.
const FILE_MAX: usize = 65;

thread_local! {
    static FILE: PathBuf = scratch::directory("end_files").join("file");
}

fn ascii_blank(c: char) -> bool {
    c.is_ascii_whitespace()
}

pub fn run(input: &[u8]) {
    FILE.with(|path| {
        std::fs::write(path, input).expect("the scratch directory is writable");
        let mut error = None;
        let code = read_exit_code_file(path, &mut error).map(|(_, text)| code_of(path, &text));
        let pid = read_pid(path, NOT_BEFORE, &mut error);
        shape((code.map(|code| code == 0), pid.map(|pid| pid.signum()), input.len().min(12)));

        // A longer file is not a valid number.
        let short = input.get(..FILE_MAX).map_or(input, |_| b"");
        let number =
            std::str::from_utf8(short).ok().and_then(|text| text.trim_matches(ascii_blank).parse::<i128>().ok());
        let code = code.expect("any exit code file is an exit of the app");
        assert!((0..256).contains(&code), "{code} is not an exit code");
        let signed = input.trim_ascii().starts_with(b"+") || input.trim_ascii().starts_with(b"-");
        match number {
            Some(number @ 0..256) if !signed => assert_eq!(i128::from(code), number, "the code that was written"),
            // A signed 0 is as invalid as any other signed number.
            Some(number) => assert_ne!(code, 0, "the app wrote {number}, which is not success"),
            None => {}
        }
        if let Some(pid) = pid {
            assert!(pid > 0, "{pid} is not a process");
            assert_eq!(Some(i128::from(pid)), number, "the process that was written");
        }
    });
}
