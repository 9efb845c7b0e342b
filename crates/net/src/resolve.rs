//! From a host name to a TCP connection. In: a name, a port and a time. Out: the first connection that stands. Names come from
//! the hosts file, then from the name servers of resolv.conf; both files are read anew when they change. Addresses of both families
//! are tried beside each other (RFC 8305). Bounds: `FILE_MAX` bytes of each file, `ADDRESSES_MAX` addresses of a name, `CACHE`
//! answers kept for their TTL.

use crate::error::Error;
use base::subsystem::lock;
use hickory_resolver::config::{ResolveHosts, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
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
/// Answers of name servers that are kept for their TTL.
const CACHE: u64 = 32;

/// How long the addresses of the other family are waited for (RFC 8305, 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long one address may keep the next one waiting (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Belongs to one thread's runtime, as the tasks that await answers of name servers do.
#[derive(Default)]
pub struct Resolver {
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// What both files said when they were read last.
struct Loaded {
    stamps: [Option<Stamp>; 2],
    hosts: Hosts,
    /// None: resolv.conf is not understood; `servers` says why.
    dns: Option<TokioResolver>,
    servers: String,
}

/// Tells a file that was changed or replaced.
type Stamp = (u64, u64, i64, i64, u64);

impl Resolver {
    /// Connects to the first address that answers. Errors name the host, the name server or the addresses, and the time.
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
                // Requests are written whole; a socket that refuses the option works without it.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(Error::network(format!("{to}: {error}"))),
            Err(_) => Err(Error::network(format!("no connection to {to}{failed} within {within:?}"))),
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
            // RFC 6761, 6.3: never asked of a server.
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let Some(dns) = &loaded.dns else {
            return Err(Error::us(format!("the name {host} is not in {HOSTS}, and {}", loaded.servers)));
        };
        let silent = || {
            Error::network(format!(
                "the name {host}: no answer from {} within {within:?}",
                loaded.servers
            ))
        };
        match timeout(within, ask(dns, host)).await {
            Ok(Ok(found)) if !found.is_empty() => Ok(found),
            Ok(Ok(_)) => Err(Error::network(format!("the name {host} has no address, says {}", loaded.servers))),
            Ok(Err(NetError::Timeout)) | Err(_) => Err(silent()),
            Ok(Err(error)) => Err(Error::network(explain(host, &error, &loaded.servers))),
        }
    }

    fn loaded(&self) -> Arc<Loaded> {
        let stamps = [HOSTS, RESOLV_CONF].map(|path| stamp(Path::new(path)));
        let mut loaded = lock(&self.loaded);
        match &*loaded {
            Some(loaded) if loaded.stamps == stamps => loaded.clone(),
            _ => loaded.insert(Arc::new(Loaded::read(stamps))).clone(),
        }
    }
}

/// The same for a thread that may block. The stream blocks as well.
pub fn dial_blocking(host: &str, port: u16, within: Duration) -> Result<std::net::TcpStream, Error> {
    let failed = |error: io::Error| Error::us(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let stream = runtime.block_on(Resolver::default().dial(host, port, within))?.into_std().map_err(failed)?;
    stream.set_nonblocking(false).map_err(failed)?;
    Ok(stream)
}

impl Loaded {
    fn read(stamps: [Option<Stamp>; 2]) -> Loaded {
        let mut hosts = Hosts::default();
        // Without the file, or with a line that is not UTF-8, the names before it hold.
        let _ = read(HOSTS).and_then(|text| hosts.read_hosts_conf(text.as_slice()));
        let mut text = read(RESOLV_CONF).unwrap_or_default();
        let names_server = |line: &[u8]| line.trim_ascii_start().starts_with(b"nameserver");
        if !text.split(|byte| *byte == b'\n').any(names_server) {
            // resolv.conf(5): the server of this machine.
            text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
        }
        let built = parse_resolv_conf(&text).and_then(|(config, mut options)| {
            limit(&mut options);
            let servers = config.name_servers().iter().map(|server| server.ip.to_string()).collect::<Vec<_>>();
            let builder = TokioResolver::builder_with_config(config, Default::default()).with_options(options);
            Ok((builder.build()?, servers))
        });
        match built {
            Ok((dns, servers)) => {
                let word = if servers.len() == 1 { "the name server" } else { "the name servers" };
                Loaded { stamps, hosts, dns: Some(dns), servers: format!("{word} {}", servers.join(", ")) }
            }
            Err(error) => {
                Loaded { stamps, hosts, dns: None, servers: format!("{RESOLV_CONF} is not understood: {error}") }
            }
        }
    }

    /// Both families of the hosts file, without asking anybody for the one that is missing there.
    fn in_hosts_file(&self, host: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_str_relaxed(host.to_lowercase()) else { return Vec::new() };
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [RecordType::AAAA, RecordType::A].map(of).into_iter().flatten().flat_map(|found| addresses(&found));
        found.take(ADDRESSES_MAX).collect()
    }
}

fn limit(options: &mut ResolverOpts) {
    options.cache_size = CACHE;
    // We read the hosts file ourselves: a name that stands there in one family is not asked for in the other.
    options.use_hosts_file = ResolveHosts::Never;
    // A server that drops UDP may answer over TCP.
    options.try_tcp_on_error = true;
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len()))
}

/// Both families at once. Once one is there, the other has `RESOLUTION_DELAY` left.
async fn ask(dns: &TokioResolver, host: &str) -> Result<Vec<IpAddr>, NetError> {
    // Names of containers have underscores, which strict host names have not.
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
        // What went wrong with IPv4 tells more: most names have no IPv6 address.
        Some(Err(error)) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// IPv6 first, then in turn (RFC 8305, 4).
fn interleave(six: &[IpAddr], four: &[IpAddr]) -> Vec<IpAddr> {
    let pairs = (0..six.len().max(four.len())).flat_map(|at| [six.get(at), four.get(at)]);
    pairs.flatten().copied().take(ADDRESSES_MAX).collect()
}

fn addresses(found: &Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// One attempt after the other, each begun when the one before has failed or has taken `ATTEMPT_DELAY`.
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

fn explain(host: &str, error: &NetError, servers: &str) -> String {
    let code = match error {
        NetError::Dns(DnsError::ResponseCode(code)) => *code,
        NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code,
        other => return format!("the name {host}: {servers}: {other}"),
    };
    match code {
        ResponseCode::NXDomain => format!("the name {host} does not exist (NXDOMAIN), says {servers}"),
        ResponseCode::NoError => format!("the name {host} has no address, says {servers}"),
        ResponseCode::ServFail => format!("the name {host}: {servers} answered SERVFAIL"),
        ResponseCode::Refused => format!("the name {host}: {servers} answered REFUSED"),
        code => format!("the name {host}: {servers} answered `{code}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// covers: faults 1
    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let (six, four) = ([address("::2"), address("::3")], [address("1.1.1.1")]);
        assert_eq!(interleave(&six, &four), [address("::2"), address("1.1.1.1"), address("::3")]);
        let many: Vec<IpAddr> = (0..=255).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
        assert_eq!(interleave(&[], &many).len(), ADDRESSES_MAX);
    }

    /// covers: faults 1
    #[tokio::test]
    async fn the_next_address_is_tried_when_one_is_dead() {
        let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stream = race(vec![address("127.0.0.1"), address("127.0.0.3")], port).await.expect("the second one answers");
        assert_eq!(stream.peer_addr().expect("connected").ip(), address("127.0.0.3"));
        let failed = race(vec![address("127.0.0.1"), address("127.0.0.2")], port).await.expect_err("nobody listens");
        assert!(failed.contains("127.0.0.1: ") && failed.contains("127.0.0.2: "), "{failed}");
    }

    /// covers: faults 1
    #[test]
    fn names_with_underscores_and_upper_case_are_found_in_the_hosts_file() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf("10.0.0.7 my_app Loki\n::7 loki # IPv6\n".as_bytes()).expect("a hosts file");
        let loaded = Loaded { stamps: [None; 2], hosts, dns: None, servers: String::new() };
        assert_eq!(loaded.in_hosts_file("my_app"), [address("10.0.0.7")]);
        assert_eq!(loaded.in_hosts_file("LOKI."), [address("::7"), address("10.0.0.7")]);
        assert!(loaded.in_hosts_file("other").is_empty());
    }
}
