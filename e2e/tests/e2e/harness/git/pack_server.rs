//! A git server of protocol 2 over HTTP (gitprotocol-v2, gitprotocol-http) that has one branch and sends a given pack, whatever
//! its content. In: a commit and a pack. Out: refs and that pack. Limits: the packs of one test; a request that is not part of
//! the protocol gets 400.

use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::harness::RawApp;
use crate::harness::raw_app::{Next, Seen};
use crate::harness::wire::Wire;

use super::Repository;
use super::objects::{deflated, id_bytes, output_of};

pub struct PackServer {
    app: RawApp,
    offer: Arc<Mutex<Offer>>,
}

#[derive(Clone, Default)]
struct Offer {
    commit: String,
    pack: Vec<u8>,
}

impl PackServer {
    pub fn start() -> Self {
        let offer: Arc<Mutex<Offer>> = Arc::default();
        let app = RawApp::start({
            let offer = offer.clone();
            move |seen, wire| {
                let offer = offer.lock().expect("no holder panics").clone();
                answer(&offer, seen, wire)
            }
        });
        Self { app, offer }
    }

    pub fn url(&self) -> String {
        format!("http://{}/config.git", self.app.address())
    }

    pub fn offer(&self, commit: &str, pack: Vec<u8>) {
        *self.offer.lock().expect("no holder panics") = Offer { commit: commit.to_owned(), pack };
    }

    /// The commit with all objects that it refers to.
    pub fn offer_commit(&self, repository: &Repository, commit: &str) {
        self.offer(commit, repository.packed(&["--revs"], &[commit]));
    }

    /// How often a pack was requested.
    pub fn fetches(&self) -> usize {
        let fetches = |seen: &Seen| String::from_utf8_lossy(&seen.body.bytes).contains("command=fetch");
        self.app.seen().iter().filter(|seen| fetches(seen)).count()
    }
}

fn answer(offer: &Offer, seen: &Seen, wire: &mut Wire<TcpStream>) -> Next {
    let request = String::from_utf8_lossy(&seen.body.bytes).into_owned();
    let (kind, body) = if seen.head.target().ends_with("/info/refs?service=git-upload-pack") {
        ("advertisement", advertisement())
    } else if request.contains("command=ls-refs") {
        ("result", [line(format!("{} refs/heads/main\n", offer.commit)), FLUSH.to_vec()].concat())
    } else if request.contains("command=fetch") {
        ("result", fetched(offer, &request))
    } else {
        let rejected = wire.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        return rejected.map_or(Next::Close, |()| Next::Keep);
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-{kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    wire.send([head.into_bytes(), body].concat()).map_or(Next::Close, |()| Next::Keep)
}

const FLUSH: &[u8] = b"0000";
const DELIMITER: &[u8] = b"0001";

fn line(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [format!("{:04x}", text.len() + 4).as_bytes(), text].concat()
}

fn advertisement() -> Vec<u8> {
    let lines = ["version 2\n", "agent=pack-server\n", "ls-refs=unborn\n", "fetch=shallow\n", "object-format=sha1\n"];
    let first = [line("# service=git-upload-pack\n"), FLUSH.to_vec()].concat();
    [first, lines.iter().flat_map(line).collect(), FLUSH.to_vec()].concat()
}

/// A client that has not sent `done` yet gets `ready` anyway, followed by the pack.
fn fetched(offer: &Offer, request: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if !request.contains("0009done\n") && !request.contains("0008done") {
        body.extend([line("acknowledgments\n"), line("ready\n"), DELIMITER.to_vec()].concat());
    }
    body.extend([line("shallow-info\n"), line(format!("shallow {}\n", offer.commit)), DELIMITER.to_vec()].concat());
    body.extend(line("packfile\n"));
    offer.pack.chunks(60_000).for_each(|chunk| body.extend(line([b"\x01", chunk].concat())));
    body.extend(FLUSH);
    body
}

impl Repository {
    /// A pack of exactly these objects (gitformat-pack).
    pub fn pack(&self, ids: &[&str]) -> Vec<u8> {
        self.packed(&[], ids)
    }

    fn packed(&self, options: &[&str], ids: &[&str]) -> Vec<u8> {
        let command = super::git_command(&self.bare(), &[&["pack-objects", "--stdout", "-q"], options].concat());
        output_of(command, (ids.join("\n") + "\n").as_bytes())
    }
}

/// A pack with one more file, whose header states this size and whose content has a few bytes.
pub fn with_lying_file(pack: &[u8], size: u64) -> Vec<u8> {
    let mut longer = pack[..pack.len() - 20].to_vec();
    longer[11] += 1;
    let mut rest = size >> 4;
    let mut header = vec![0x30 | low_bits(size, 4)];
    while rest > 0 {
        *header.last_mut().expect("the header has a first byte") |= 0x80;
        header.push(low_bits(rest, 7));
        rest >>= 7;
    }
    longer.extend(header);
    longer.extend(deflated(b"short\n"));
    let digest = output_of(Command::new("sha1sum"), &longer);
    longer.extend(id_bytes(&String::from_utf8_lossy(&digest)[..40]));
    longer
}

fn low_bits(number: u64, bits: u32) -> u8 {
    u8::try_from(number & ((1 << bits) - 1)).expect("seven bits at most")
}
