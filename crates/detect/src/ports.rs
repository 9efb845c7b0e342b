//! Listening TCP sockets. In: /proc/net/tcp and tcp6, of another process or of this one. Out: ports with their addresses and
//! owners. Limits: `LINES_MAX` lines of each table.

use crate::service::Service;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const LINES_MAX: usize = 100_000;

/// The state of a listening socket (net/tcp_states.h).
const LISTEN: &str = "0A";

/// A port with a listening socket.
#[derive(Clone, Debug)]
pub struct Port {
    pub number: u16,
    pub addresses: Vec<IpAddr>,
    /// Process id and name of the processes that have the socket open; empty if they are not visible.
    pub owners: Vec<(u32, String)>,
    /// In this process's network namespace, so that it can be reached through loopback.
    pub is_local: bool,
    pub service: Service,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub address: SocketAddr,
    pub inode: u64,
}

/// The listening sockets of the network namespace of `pid`, or of this process's namespace.
pub fn listening(pid: Option<u32>) -> Vec<Listening> {
    let of = pid.map_or("self".to_string(), |pid| pid.to_string());
    ["tcp", "tcp6"].iter().flat_map(|table| lines(&format!("/proc/{of}/net/{table}"))).collect()
}

fn lines(path: &str) -> Vec<Listening> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok).take(LINES_MAX);
    lines.filter_map(|line| parse(&line)).collect()
}

/// Columns of proc_net(5): local address is the 2nd, state the 4th, inode the 10th. Addresses are words in host byte order.
fn parse(line: &str) -> Option<Listening> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    if *columns.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = columns.get(1)?.rsplit_once(':')?;
    let word = |start: usize| Some(u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Listening { address: (ip, port).into(), inode: columns.get(9)?.parse().ok()? })
}

impl Port {
    /// Its addresses on loopback, the likeliest first. Empty if it listens only on other addresses.
    pub fn on_loopback(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in &self.addresses {
            match address {
                IpAddr::V4(ip) if ip.is_unspecified() => addresses.push(Ipv4Addr::LOCALHOST.into()),
                // Most sockets on the unspecified IPv6 address accept IPv4 too.
                IpAddr::V6(ip) if ip.is_unspecified() => {
                    addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()])
                }
                ip if ip.is_loopback() => addresses.push(*ip),
                _ => {}
            }
        }
        addresses.sort();
        addresses.dedup();
        addresses.into_iter().map(|ip| (ip, self.number).into()).collect()
    }

    /// Whether other machines can reach it.
    pub fn is_public(&self) -> bool {
        self.addresses.iter().any(|ip| !ip.is_loopback())
    }
}

/// Adds a socket to the list: one entry per port with all its addresses and owners, in the order of port numbers.
pub fn merge(into: &mut Vec<Port>, socket: Listening, owner: Option<(u32, String)>, is_local: bool) {
    let (ip, number) = (socket.address.ip(), socket.address.port());
    let index = match into.binary_search_by_key(&number, |port| port.number) {
        Ok(index) => index,
        Err(index) => {
            let service = Service::NotProbed("not attempted".into());
            into.insert(index, Port { number, addresses: Vec::new(), owners: Vec::new(), is_local, service });
            index
        }
    };
    let Some(port) = into.get_mut(index) else { return };
    port.is_local |= is_local;
    if !port.addresses.contains(&ip) {
        port.addresses.push(ip);
    }
    if let Some(owner) = owner
        && !port.owners.contains(&owner)
    {
        port.owners.push(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    #[cfg(target_endian = "little")]
    fn proc_net_tables_are_parsed() {
        let check = |line: &str, expect: Option<(&str, u64)>| {
            let expect = expect.map(|(text, inode)| (text.parse().expect("an address"), inode));
            assert_eq!(parse(line).map(|seen| (seen.address, seen.inode)), expect, "{line}");
        };
        let rest = "00000000:00000000 00:00000000 00000000  0 0 4242 1 0";
        check(&format!("0: 0100007F:1F90 00000000:0000 0A {rest}"), Some(("127.0.0.1:8080", 4242)));
        check(&format!("0: 0100007F:1F90 0100007F:0001 01 {rest}"), None);
        let six = "00000000000000000000000001000000:0050 00000000000000000000000000000000:0000";
        check(&format!("1: {six} 0A {rest}"), Some(("[::1]:80", 4242)));
        let mapped = "0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000";
        check(&format!("1: {mapped} 0A {rest}"), Some(("127.0.0.1:80", 4242)));
        check("  sl  local_address rem_address   st tx_queue", None);
        check("0: 01:1F90 0:0 0A", None);
    }

    #[test]
    fn own_listening_socket_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        assert!(listening(None).iter().any(|socket| socket.address == address));
        assert!(listening(Some(std::process::id())).iter().any(|socket| socket.address == address));
        assert!(listening(Some(u32::MAX)).is_empty());
    }

    #[test]
    fn only_loopback_addresses_are_used() {
        let check = |addresses: &[&str], expect: &[&str]| {
            let mut ports = Vec::new();
            for address in addresses {
                let address = (address.parse::<IpAddr>().expect("an address"), 80).into();
                merge(&mut ports, Listening { address, inode: 1 }, None, true);
            }
            let reachable: Vec<String> = ports[0].on_loopback().iter().map(ToString::to_string).collect();
            assert_eq!(reachable, expect);
        };
        check(&["0.0.0.0", "::"], &["127.0.0.1:80", "[::1]:80"]);
        check(&["::1"], &["[::1]:80"]);
        check(&["127.0.0.2"], &["127.0.0.2:80"]);
        check(&["10.1.2.3", "2001:db8::1"], &[]);
    }
}
