//! What an app in a container of its own leaves for us on a shared volume: the tombstone with its exit code, and the file with its
//! process id. In: the bytes of such a file. Out: any tombstone is an end, with a code that is the one written; a number other than 0
//! never becomes success; a process id is one that can be watched.

use crate::app::end::{code_of, read_pid, read_tombstone};
use crate::attempt::shape;
use crate::scratch;
use std::path::PathBuf;

pub const WORDS: &[&str] =
    &["0", "1", "137", "143", "255", "\n", "\r\n", " ", "-", "+", "\u{feff}", "exit 1", "\0", "\t", "1234"];

/// Both readers leave out files of a life before; these are of this one.
const NOT_BEFORE: i64 = 0;

/// More is in neither of the two files.
const FILE_MAX: usize = 65;

thread_local! {
    static FILE: PathBuf = scratch::folder("end_files").join("file");
}

fn ascii_blank(c: char) -> bool {
    c.is_ascii_whitespace()
}

pub fn run(input: &[u8]) {
    FILE.with(|path| {
        std::fs::write(path, input).expect("the scratch folder takes a small file");
        let mut error = None;
        let code = read_tombstone(path, &mut error).map(|(_, text)| code_of(path, &text));
        let pid = read_pid(path, NOT_BEFORE, &mut error);
        shape((code.map(|code| code == 0), pid.map(|pid| pid.signum()), input.len().min(12)));

        // A longer file is no number of ours.
        let short = input.get(..FILE_MAX).map_or(input, |_| b"");
        let number =
            std::str::from_utf8(short).ok().and_then(|text| text.trim_matches(ascii_blank).parse::<i128>().ok());
        let code = code.expect("a tombstone is an end of the app, whatever it holds");
        assert!((0..256).contains(&code), "{code} is no exit code");
        let signed = input.trim_ascii().starts_with(b"+") || input.trim_ascii().starts_with(b"-");
        match number {
            Some(number @ 0..256) if !signed => assert_eq!(i128::from(code), number, "the code that was written"),
            // A signed 0 is as odd as any other.
            Some(number) => assert_ne!(code, 0, "the app wrote {number}, which is no success"),
            None => {}
        }
        if let Some(pid) = pid {
            assert!(pid > 0, "{pid} is no process");
            assert_eq!(Some(i128::from(pid)), number, "the process that was written");
        }
    });
}
