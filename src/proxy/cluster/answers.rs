//! What Pulsegate answers as a cluster of one node, itself, that owns every slot: so clients that route by slot work too,
//! and send everything here.
//!
//! Shapes are those of Redis 7.0 (`cluster.c`): RESP3 has maps and a verbatim text where RESP2 has arrays and strings.

use bytes::{BufMut, Bytes, BytesMut};

use crate::resp::keys::SLOTS;
use crate::resp::{args, slot};

/// What Pulsegate answers without asking a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    /// CLUSTER SLOTS
    Slots,
    /// CLUSTER SHARDS
    Shards,
    /// CLUSTER NODES
    Nodes,
    /// CLUSTER INFO
    Info,
    /// CLUSTER LINKS
    Links,
    /// CLUSTER MYID, MYSHARDID
    MyId,
    /// CLUSTER REPLICAS, SLAVES
    Replicas,
    /// CLUSTER KEYSLOT
    KeySlot,
    /// READONLY, READWRITE, ASKING
    Ok,
}

/// Pulsegate as the application knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Itself<'a> {
    /// The host that it connected to.
    pub host: &'a str,
    /// The TCP port that it connected to.
    pub port: u16,
}

impl Local {
    /// Whether a node's own answer would say which nodes there are, whoever asks.
    pub fn names_nodes(self) -> bool {
        match self {
            Local::Slots | Local::Shards | Local::Nodes | Local::Info | Local::Links | Local::MyId => true,
            Local::Replicas | Local::KeySlot | Local::Ok => false,
        }
    }

    /// The whole reply to the request in `frame` (multibulk, with the right number of arguments).
    pub fn answer(self, frame: &[u8], itself: Itself<'_>, resp3: bool) -> Bytes {
        let mut out = Writer {
            out: BytesMut::with_capacity(256),
            resp3,
        };
        let word = |n: usize| args(frame).nth(n).unwrap_or_default();
        match self {
            Local::Slots => out.slots(itself),
            Local::Shards => out.shards(itself),
            Local::Nodes => out.text(&nodes(itself)),
            Local::Info => out.text(&info()),
            Local::Links => out.header(b'*', 0),
            Local::MyId => out.bulk(&itself.id()),
            Local::Replicas if word(2) == itself.id().as_bytes() => out.header(b'*', 0),
            Local::Replicas => {
                // Line ends would end the error.
                let id = String::from_utf8_lossy(word(2)).replace(['\r', '\n'], " ");
                out.line(&format!("-ERR Unknown node {id}"));
            }
            Local::KeySlot => out.number(slot(word(2)).into()),
            Local::Ok => out.line("+OK"),
        }
        out.out.freeze()
    }
}

impl Itself<'_> {
    /// As long as a node's, and the same whenever it is asked for at this address.
    fn id(&self) -> String {
        let name = format!("pulsegate {}:{}", self.host, self.port);
        sha1_smol::Sha1::from(name).digest().to_string()
    }
}

/// One line for each node: id, address, flags, master, times of ping and pong, epoch, state of the link, slots.
fn nodes(itself: Itself<'_>) -> String {
    // A server's cluster bus is there unless it is told otherwise; nobody connects to it.
    let bus = itself.port.checked_add(10_000).unwrap_or_default();
    let (id, host, port, last) = (itself.id(), itself.host, itself.port, SLOTS - 1);
    format!("{id} {host}:{port}@{bus} myself,master - 0 0 0 connected 0-{last}\n")
}

fn info() -> String {
    let fields = [
        ("cluster_state", "ok".to_owned()),
        ("cluster_slots_assigned", SLOTS.to_string()),
        ("cluster_slots_ok", SLOTS.to_string()),
        ("cluster_slots_pfail", "0".to_owned()),
        ("cluster_slots_fail", "0".to_owned()),
        ("cluster_known_nodes", "1".to_owned()),
        ("cluster_size", "1".to_owned()),
        ("cluster_current_epoch", "0".to_owned()),
        ("cluster_my_epoch", "0".to_owned()),
        ("cluster_stats_messages_sent", "0".to_owned()),
        ("cluster_stats_messages_received", "0".to_owned()),
        ("total_cluster_links_buffer_limit_exceeded", "0".to_owned()),
    ];
    fields.map(|(name, value)| format!("{name}:{value}\r\n")).concat()
}

struct Writer {
    out: BytesMut,
    resp3: bool,
}

impl Writer {
    fn line(&mut self, text: &str) {
        self.out.put_slice(text.as_bytes());
        self.out.put_slice(b"\r\n");
    }

    fn header(&mut self, kind: u8, count: usize) {
        self.line(&format!("{}{count}", char::from(kind)));
    }

    /// A map of so many pairs.
    fn map(&mut self, pairs: usize) {
        if self.resp3 {
            self.header(b'%', pairs);
        } else {
            self.header(b'*', pairs * 2);
        }
    }

    fn bulk(&mut self, text: &str) {
        self.header(b'$', text.len());
        self.line(text);
    }

    /// For people.
    fn text(&mut self, text: &str) {
        if self.resp3 {
            self.header(b'=', text.len() + 4);
            self.line(&format!("txt:{text}"));
        } else {
            self.bulk(text);
        }
    }

    fn number(&mut self, number: u64) {
        self.line(&format!(":{number}"));
    }

    fn slots(&mut self, itself: Itself<'_>) {
        self.header(b'*', 1);
        self.header(b'*', 3);
        self.number(0);
        self.number((SLOTS - 1).into());
        self.header(b'*', 4);
        self.bulk(itself.host);
        self.number(itself.port.into());
        self.bulk(&itself.id());
        // Nothing more is known of the node.
        self.map(0);
    }

    fn shards(&mut self, itself: Itself<'_>) {
        self.header(b'*', 1);
        self.map(2);
        self.bulk("slots");
        self.header(b'*', 2);
        self.number(0);
        self.number((SLOTS - 1).into());
        self.bulk("nodes");
        self.header(b'*', 1);
        self.map(7);
        self.bulk("id");
        self.bulk(&itself.id());
        self.bulk("port");
        self.number(itself.port.into());
        for (name, value) in [("ip", itself.host), ("endpoint", itself.host), ("role", "master")] {
            self.bulk(name);
            self.bulk(value);
        }
        self.bulk("replication-offset");
        self.number(0);
        self.bulk("health");
        self.bulk("online");
    }
}
