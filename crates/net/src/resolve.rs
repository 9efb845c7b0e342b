//! From a host name to a TCP connection. In: a name, a port and a timeout. Out: the first connection that is established. Names
//! are resolved by the hosts file, then by the name servers of resolv.conf; both files are re-read when they change. An address
//! is accepted from any server; a negative answer is accepted only when no previous server can still answer. Addresses of both
//! families are tried concurrently (RFC 8305). Limits: `FILE_MAX` bytes of each file, `SERVERS_MAX` servers, `ADDRESSES_MAX`
//! addresses of a name, `CACHE` answers of each server cached for their TTL.

use crate::error::Error;
use base::sync::lock;
use base::system::file::Stamp;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// More of a hosts file or resolv.conf is not read.
const FILE_MAX: u64 = 1 << 20;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Answers of each name server that are cached for their TTL.
const CACHE: u64 = 32;
/// resolv.conf(5): MAXNS.
const SERVERS_MAX: usize = 3;
/// How long a name server may be silent before the next one is queried too, and before it is queried again.
const SERVER_DELAY: Duration = Duration::from_secs(1);
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait for the addresses of the other family (RFC 8305, 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long one address may delay the next one (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Belongs to one thread's runtime, as the tasks that await answers of name servers do.
#[derive(Default)]
pub struct Resolver {
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// The contents of both files when they were last read.
struct Loaded {
    stamps: [Option<Stamp>; 2],
    hosts: Hosts,
    servers: Vec<Server>,
    /// Why resolv.conf cannot be parsed, if so.
    error: Option<String>,
    /// The texts of both files.
    texts: [Vec<u8>; 2],
}

/// One name server.
#[derive(Clone)]
struct Server {
    address: IpAddr,
    dns: TokioResolver,
}

impl Resolver {
    /// Connects to the first address that responds. Errors contain the host, the name server or the addresses, and the time.
    pub async fn dial(&self, host: &str, port: u16, within: Duration) -> Result<TcpStream, Error> {
        let began = tokio::time::Instant::now();
        let addresses = self.addresses(host, within).await?;
        let shown = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        let left = within.saturating_sub(began.elapsed());
        let (failed, to) = match host.parse::<IpAddr>() {
            Ok(_) => (String::new(), SocketAddr::new(addresses[0], port).to_string()),
            Err(_) => (format!(" ({shown})"), format!("{host}:{port}")),
        };
        match timeout(left, race(addresses, port)).await {
            Ok(Ok(stream)) => {
                // Requests are written in one piece; a socket that rejects the option works without it.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(Error::network(format!("{to}: {error}"))),
            Err(_) => Err(Error::network(format!("connect timeout after {within:?}: {to}{failed}"))),
        }
    }

    /// At least one address.
    async fn addresses(&self, host: &str, within: Duration) -> Result<Vec<IpAddr>, Error> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let loaded = self.loaded();
        let found = loaded.in_hosts_file(host);
        if !found.is_empty() {
            return Ok(found);
        }
        if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
            // RFC 6761, 6.3: never sent to a server.
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        if let Some(error) = &loaded.error {
            return Err(Error::us(format!(
                "cannot resolve {host}: not in {HOSTS}, and cannot parse {RESOLV_CONF}: {error}"
            )));
        }
        let pending = Mutex::new(Vec::new());
        // Each server is queried within the caller's time, such as a scrape of less than a second.
        let delay = SERVER_DELAY.min(within / (loaded.servers.len() as u32 + 1));
        match timeout(within, query_all(&loaded.servers, host, delay, &pending)).await {
            Ok(found) => found.map_err(Error::network),
            Err(_) => {
                let silent = lock(&pending).iter().map(IpAddr::to_string).collect::<Vec<_>>();
                let word = if silent.len() == 1 { "the name server" } else { "the name servers" };
                let silent = silent.join(", ");
                Err(Error::network(format!(
                    "DNS timeout: cannot resolve {host}, no response from {word} {silent} within {within:?}"
                )))
            }
        }
    }

    fn loaded(&self) -> Arc<Loaded> {
        let stamps = [HOSTS, RESOLV_CONF].map(|path| Stamp::of(Path::new(path)));
        let mut loaded = lock(&self.loaded);
        match &*loaded {
            Some(loaded) if loaded.stamps == stamps => loaded.clone(),
            previous => {
                let read = Arc::new(Loaded::read(stamps, previous.as_deref()));
                loaded.insert(read).clone()
            }
        }
    }
}

/// `Resolver::dial` for a thread that may block. The stream blocks as well.
pub fn dial_blocking(host: &str, port: u16, within: Duration) -> Result<std::net::TcpStream, Error> {
    let failed = |error: io::Error| Error::us(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let stream = runtime.block_on(Resolver::default().dial(host, port, within))?.into_std().map_err(failed)?;
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}

impl Loaded {
    /// A file that exists and cannot be read, such as one that was replaced outside the sandbox, keeps its previous content.
    fn read(stamps: [Option<Stamp>; 2], previous: Option<&Loaded>) -> Loaded {
        let read = |path: &str, known: fn(&Loaded) -> &[u8]| match read(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                previous.map_or(Vec::new(), |previous| known(previous).to_vec())
            }
            // A name in another encoding matches nothing, and must not hide those after it.
            text => String::from_utf8_lossy(&text.unwrap_or_default()).into_owned().into_bytes(),
        };
        let texts = [read(HOSTS, |previous| &previous.texts[0]), read(RESOLV_CONF, |previous| &previous.texts[1])];
        let mut hosts = Hosts::default();
        // Text that is UTF-8 can be read.
        let _ = hosts.read_hosts_conf(texts[0].as_slice());
        let (servers, error) = match servers_of(&texts[1]) {
            Ok(servers) => (servers, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Loaded { stamps, hosts, servers, error, texts }
    }

    /// Both families of the hosts file, without a query for one that is missing there.
    fn in_hosts_file(&self, host: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_str_relaxed(host.to_lowercase()) else { return Vec::new() };
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [RecordType::AAAA, RecordType::A].map(of).into_iter().flatten().flat_map(|found| addresses(&found));
        found.take(ADDRESSES_MAX).collect()
    }
}

/// A resolver for each name server: which of them answers, and with what, decides which answer is used.
fn servers_of(text: &[u8]) -> Result<Vec<Server>, NetError> {
    let mut text = text.to_vec();
    let is_server = |line: &[u8]| line.trim_ascii_start().starts_with(b"nameserver");
    if !text.split(|byte| *byte == b'\n').any(is_server) {
        // resolv.conf(5): the default is the server of this machine.
        text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
    }
    let (config, mut options) = parse_resolv_conf(&text)?;
    options.cache_size = CACHE;
    // The hosts file is read here: a name with one family there is not queried for the other.
    options.use_hosts_file = ResolveHosts::Never;
    // A server that drops UDP may answer over TCP.
    options.try_tcp_on_error = true;
    options.timeout = options.timeout.min(QUERY_TIMEOUT);
    let (domain, search, servers) = config.into_parts();
    let one = |server: NameServerConfig| {
        let address = server.ip;
        let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, Default::default()).with_options(options.clone());
        Ok(Server { address, dns: builder.build()? })
    };
    servers.into_iter().take(SERVERS_MAX).map(one).collect()
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// Queries the servers in their order, each when the previous one has failed or is silent for `delay`. `pending` then contains
/// those that have not answered.
async fn query_all(
    servers: &[Server],
    host: &str,
    delay: Duration,
    pending: &Mutex<Vec<IpAddr>>,
) -> Result<Vec<IpAddr>, String> {
    let mut queries: JoinSet<(usize, Result<Vec<IpAddr>, NetError>)> = JoinSet::new();
    let mut answers: Vec<Option<Result<Vec<IpAddr>, NetError>>> = Vec::new();
    let mut overdue = false;
    loop {
        // All queried servers have failed or are silent, or none was queried yet: the next one.
        let failed = answers.iter().all(|answer| matches!(answer, Some(Err(error)) if !is_negative(error)));
        if let Some(server) = servers.get(answers.len()).filter(|_| failed || overdue) {
            let (index, dns, host) = (answers.len(), server.dns.clone(), host.to_string());
            queries.spawn(async move { (index, query(&dns, &host).await) });
            answers.push(None);
        }
        *lock(pending) =
            servers.iter().zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(s, _)| s.address).collect();
        if let Some(decided) = decide(servers, host, &answers) {
            return decided;
        }
        overdue = tokio::select! {
            Some(ended) = queries.join_next() => {
                match ended {
                    Ok((_, Ok(found))) if !found.is_empty() => return Ok(found),
                    Ok((index, answer)) => {
                        if let Some(slot) = answers.get_mut(index) {
                            *slot = Some(answer);
                        }
                    }
                    Err(_) => {}
                }
                false
            }
            () = sleep(delay), if answers.len() < servers.len() => true,
        };
    }
}

/// The result if no server has returned an address: the first negative answer, once no previous server can still return one.
fn decide(
    servers: &[Server],
    host: &str,
    answers: &[Option<Result<Vec<IpAddr>, NetError>>],
) -> Option<Result<Vec<IpAddr>, String>> {
    let mut last = None;
    for (server, answer) in servers.iter().zip(answers) {
        match answer.as_ref()? {
            Ok(_) => {
                return Some(Err(format!("cannot resolve {host}: no A/AAAA records (name server {})", server.address)));
            }
            Err(error) => {
                let text = explain(host, error, server.address);
                if is_negative(error) {
                    return Some(Err(text));
                }
                last = Some(text);
            }
        }
    }
    // No server is left to query.
    (answers.len() == servers.len())
        .then(|| Err(last.unwrap_or_else(|| format!("cannot resolve {host}: no name server"))))
}

/// Whether it is a negative answer, and not a failure to answer.
fn is_negative(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::ResponseCode(code)) => *code == ResponseCode::NXDomain,
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
        }
        _ => false,
    }
}

/// Queries both families concurrently. Once one has arrived, the other has `RESOLUTION_DELAY` left.
async fn query(dns: &TokioResolver, host: &str) -> Result<Vec<IpAddr>, NetError> {
    // Names of containers may contain underscores, which strict host names may not.
    let name = Name::from_str_relaxed(host)?;
    let (six, four) = (dns.lookup(name.clone(), RecordType::AAAA), dns.lookup(name, RecordType::A));
    tokio::pin!(six, four);
    let (six, four) = tokio::select! {
        six = &mut six => match six {
            Ok(six) => (Some(Ok(six)), timeout(RESOLUTION_DELAY, four).await.ok()),
            failed => (Some(failed), Some(four.await)),
        },
        four = &mut four => match four {
            Ok(four) => (timeout(RESOLUTION_DELAY, six).await.ok(), Some(Ok(four))),
            failed => (Some(six.await), Some(failed)),
        },
    };
    let mut families = [six, four].map(|found| found.map(|found| found.map(|found| addresses(&found))));
    let of = |family: &Option<Result<Vec<IpAddr>, NetError>>| match family {
        Some(Ok(found)) => found.clone(),
        _ => Vec::new(),
    };
    let found = interleave(&of(&families[0]), &of(&families[1]));
    match families[1].take().or(families[0].take()) {
        // The IPv4 error is more informative: most names have no IPv6 address.
        Some(Err(error)) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// IPv6 first, then alternating (RFC 8305, 4).
fn interleave(six: &[IpAddr], four: &[IpAddr]) -> Vec<IpAddr> {
    let pairs = (0..six.len().max(four.len())).flat_map(|at| [six.get(at), four.get(at)]);
    pairs.flatten().copied().take(ADDRESSES_MAX).collect()
}

fn addresses(found: &Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// Starts each attempt when the previous one has failed or has taken `ATTEMPT_DELAY`.
async fn race(addresses: Vec<IpAddr>, port: u16) -> Result<TcpStream, String> {
    let several = addresses.len() > 1;
    let (mut attempts, mut waiting) = (JoinSet::new(), addresses.into_iter());
    let mut failures = Vec::new();
    loop {
        let more = match waiting.next() {
            Some(address) => {
                attempts.spawn(async move { (address, TcpStream::connect((address, port)).await) });
                true
            }
            None if attempts.is_empty() => return Err(failures.join("; ")),
            None => false,
        };
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok((_, Ok(stream))) => return Ok(stream),
                Ok((address, Err(error))) if several => failures.push(format!("{address}: {error}")),
                Ok((_, Err(error))) => failures.push(error.to_string()),
                Err(error) => failures.push(error.to_string()),
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

fn explain(host: &str, error: &NetError, server: IpAddr) -> String {
    let code = match error {
        NetError::Dns(DnsError::ResponseCode(code)) => *code,
        NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code,
        NetError::Timeout => return format!("cannot resolve {host}: no response from the name server {server}"),
        other => return format!("cannot resolve {host}: {other} (name server {server})"),
    };
    match code {
        ResponseCode::NXDomain => format!("cannot resolve {host}: NXDOMAIN (name server {server})"),
        ResponseCode::NoError => format!("cannot resolve {host}: no A/AAAA records (name server {server})"),
        ResponseCode::ServFail => format!("cannot resolve {host}: SERVFAIL (name server {server})"),
        ResponseCode::Refused => format!("cannot resolve {host}: REFUSED (name server {server})"),
        code => format!("cannot resolve {host}: `{code}` (name server {server})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn families_alternate_and_ipv6_is_first() {
        let (six, four) = ([address("::2"), address("::3")], [address("1.1.1.1")]);
        assert_eq!(interleave(&six, &four), [address("::2"), address("1.1.1.1"), address("::3")]);
        let many: Vec<IpAddr> = (0..=255).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
        assert_eq!(interleave(&[], &many).len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn next_address_is_tried_if_one_is_unreachable() {
        let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stream =
            race(vec![address("127.0.0.1"), address("127.0.0.3")], port).await.expect("the second address accepts");
        assert_eq!(stream.peer_addr().expect("connected").ip(), address("127.0.0.3"));
        let failed = race(vec![address("127.0.0.1"), address("127.0.0.2")], port).await.expect_err("no listener");
        assert!(failed.contains("127.0.0.1: ") && failed.contains("127.0.0.2: "), "{failed}");
    }

    #[test]
    fn hosts_lookup_allows_underscore_and_upper_case() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf("10.0.0.7 my_app Loki\n::7 loki # IPv6\n".as_bytes()).expect("a hosts file");
        let loaded =
            Loaded { stamps: [None; 2], hosts, servers: Vec::new(), error: None, texts: [Vec::new(), Vec::new()] };
        assert_eq!(loaded.in_hosts_file("my_app"), [address("10.0.0.7")]);
        assert_eq!(loaded.in_hosts_file("LOKI."), [address("::7"), address("10.0.0.7")]);
        assert!(loaded.in_hosts_file("other").is_empty());
    }
}
