//! What a node answers for a slot that is not, or not wholly, its own.
//!
//! Source: the Redis cluster specification, and `clusterRedirectClient` of Redis 7.0 (`cluster.c`).

use crate::resp::keys::SLOTS;
use crate::resp::{error_code, reply_text};

/// A redirection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    /// Which one.
    pub kind: RedirectKind,
    /// The slot that it speaks of.
    pub slot: u16,
    /// Where the slot is served.
    pub host: Host,
    /// TCP port there; not 0.
    pub port: u16,
}

/// Why the node did not carry the command out. It changed nothing in any case, so the command may be sent elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedirectKind {
    /// The slot belongs to another node, from now on.
    Moved,
    /// The slot is on its way: this one command, behind ASKING.
    Ask,
}

/// The host of a redirection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// The one that answered, at another port: the node does not know its own address.
    Same,
    /// A name or an IP address (IPv6 without brackets), as the cluster announces it.
    Named(String),
    /// The cluster prefers host names and this node has none (`?`): the layout has to be asked for.
    Unknown,
}

/// The longest host that is believed: as a name can be in the DNS.
const HOST_MAX: usize = 253;

impl Redirect {
    /// Reads a whole reply. `None` for whatever is no redirection, and for one that makes no sense.
    pub fn parse(reply: &[u8]) -> Option<Redirect> {
        let kind = match error_code(reply)? {
            b"MOVED" => RedirectKind::Moved,
            b"ASK" => RedirectKind::Ask,
            _ => return None,
        };
        let mut words = std::str::from_utf8(reply_text(reply)?).ok()?.split(' ').skip(1);
        let (slot, address, rest) = (words.next()?, words.next()?, words.next());
        if rest.is_some() {
            return None;
        }
        let slot = number(slot).filter(|slot| *slot < SLOTS)?;
        // An IPv6 address has colons too, and no brackets around it.
        let (host, port) = address.rsplit_once(':')?;
        let port = number(port).filter(|port| *port > 0)?;
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let host = match host {
            "" => Host::Same,
            "?" => Host::Unknown,
            host if is_host(host) => Host::Named(host.to_owned()),
            _ => return None,
        };
        Some(Redirect {
            kind,
            slot,
            host,
            port,
        })
    }
}

/// Whether a reply says that the cluster does not serve the command's slot, or nothing at all: for the moment, if one of
/// its nodes is being replaced or has just started.
pub fn is_cluster_down(reply: &[u8]) -> bool {
    error_code(reply) == Some(b"CLUSTERDOWN")
}

/// Digits only: no sign, no blank.
fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn is_host(text: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.len() <= HOST_MAX && (text.chars().all(name) || text.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<(RedirectKind, u16, Host, u16)> {
        Redirect::parse(format!("-{text}\r\n").as_bytes()).map(|r| (r.kind, r.slot, r.host, r.port))
    }

    fn named(host: &str) -> Host {
        Host::Named(host.to_owned())
    }

    #[test]
    fn redirections_are_read_as_nodes_write_them() {
        use RedirectKind::{Ask, Moved};
        for (text, want) in [
            (
                "MOVED 3999 127.0.0.1:6381",
                (Moved, 3999, named("127.0.0.1"), 6381),
            ),
            ("ASK 0 db-2.example:7000", (Ask, 0, named("db-2.example"), 7000)),
            ("MOVED 16383 ::1:6379", (Moved, 16383, named("::1"), 6379)),
            (
                "MOVED 1 2001:db8::2:1:6379",
                (Moved, 1, named("2001:db8::2:1"), 6379),
            ),
            (
                "MOVED 1 [2001:db8::1]:6379",
                (Moved, 1, named("2001:db8::1"), 6379),
            ),
            ("MOVED 1 :6379", (Moved, 1, Host::Same, 6379)),
            ("MOVED 1 ?:6379", (Moved, 1, Host::Unknown, 6379)),
        ] {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        let bulk = Redirect::parse(b"!25\r\nMOVED 3999 127.0.0.1:6381\r\n");
        assert_eq!(bulk.map(|r| r.slot), Some(3999), "RESP3's long errors too");
    }

    #[test]
    fn nonsense_is_no_redirection() {
        for text in [
            "MOVED",
            "MOVED 1",
            "MOVED 1 host",
            "MOVED 16384 host:1",
            "MOVED -1 host:1",
            "MOVED +1 host:1",
            "MOVED x host:1",
            "MOVED 1 host:0",
            "MOVED 1 host:65536",
            "MOVED 1 host:",
            "MOVED 1 host:1 more",
            "MOVED  1 host:1",
            "MOVED 1 ho st:1",
            "MOVED 1 a/b:1",
            "MOVED 1 1:2:3:1",
            "moved 1 host:1",
            "ERR MOVED 1 host:1",
            "CLUSTERDOWN Hash slot not served",
            "TRYAGAIN Multiple keys request during rehashing of slot",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&format!("MOVED 1 {}:1", "a".repeat(HOST_MAX + 1))), None);
        assert_eq!(Redirect::parse(b"+MOVED 1 host:1\r\n"), None, "no error");
        assert!(is_cluster_down(b"-CLUSTERDOWN The cluster is down\r\n"));
        assert!(!is_cluster_down(b"$11\r\nCLUSTERDOWN\r\n"));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_panic(reply in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut error = b"-MOVED ".to_vec();
            error.extend_from_slice(&reply);
            error.extend_from_slice(b"\r\n");
            for bytes in [&reply, &error] {
                if let Some(redirect) = Redirect::parse(bytes) {
                    prop_assert!(redirect.slot < SLOTS && redirect.port > 0);
                }
            }
        }
    }
}
