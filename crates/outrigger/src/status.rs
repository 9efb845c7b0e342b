//! `outrigger status`: what the page shows, on a terminal, from the admin socket. In: the socket's path. Out: text.

use crate::load::Source;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A status has a line per part; far larger ones are not ours.
const ANSWER_MAX: u64 = 16 << 20;

pub fn status(socket: Option<&Path>, config: &Path) -> i32 {
    let socket = match socket.map(Path::to_path_buf).map_or_else(|| configured(config), Ok) {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match ask(&socket) {
        Ok(status) => {
            // A closed pipe, as of `| head`, is the reader's choice.
            let _ = write!(io::stdout(), "{}", admin::view::terminal(&status));
            i32::from(status["verdict"] == "failed")
        }
        Err(error) => {
            eprintln!("error: no answer from {}: {error}", socket.display());
            eprintln!("  help: is Outrigger running with `admin.socket` set to this path?");
            i32::from(crate::EXIT_MISTAKE)
        }
    }
}

fn configured(config: &Path) -> Result<PathBuf, i32> {
    let (plans, _) = Source::read(config)
        .and_then(|source| source.plans(&["app".into()]))
        .map_err(|report| crate::load::refuse(&report))?;
    plans.config.admin.socket.ok_or_else(|| {
        eprintln!("error: {} names no admin socket", config.display());
        eprintln!("  help: set admin.socket there, or name the socket with --socket");
        i32::from(crate::EXIT_MISTAKE)
    })
}

/// One request of HTTP/1.0: the answer ends with the connection.
fn ask(socket: &Path) -> io::Result<serde_json::Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: outrigger\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    serde_json::from_str(body).map_err(|error| io::Error::other(format!("the answer is no status: {error}")))
}
