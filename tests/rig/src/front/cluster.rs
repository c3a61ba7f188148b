//! The answers to CLUSTER: every shard is at the front's own address. Pure.

use bytes::{Bytes, BytesMut};

use super::Plan;
use crate::resp::bulk;
use crate::slots::{SLOTS, slot};

/// What is said of each shard's node.
fn node_id(shard: usize) -> String {
    format!("{:040x}", shard + 1)
}

/// The answer to `CLUSTER <words…>`, in this version of the protocol.
pub(super) fn answer(plan: &Plan, words: &[Bytes], version: u8) -> Bytes {
    if !plan.cluster_api {
        return Bytes::from_static(b"-ERR This instance has cluster support disabled\r\n");
    }
    let subcommand = words
        .first()
        .map(|word| word.to_ascii_lowercase())
        .unwrap_or_default();
    let mut out = BytesMut::new();
    match (subcommand.as_slice(), words.get(1)) {
        (b"slots", None) => slots(plan, &mut out),
        (b"shards", None) => shards(plan, &mut out, version),
        (b"nodes", None) => bulk(&mut out, nodes(plan).as_bytes()),
        (b"info", None) => bulk(&mut out, info(plan).as_bytes()),
        (b"myid", None) => bulk(&mut out, node_id(0).as_bytes()),
        (b"keyslot", Some(key)) => out.extend_from_slice(format!(":{}\r\n", slot(key)).as_bytes()),
        (b"help", None) => {
            out.extend_from_slice(b"*1\r\n");
            bulk(
                &mut out,
                b"CLUSTER INFO|KEYSLOT <key>|MYID|NODES|SHARDS|SLOTS|HELP",
            );
        }
        _ => out.extend_from_slice(
            b"-ERR unknown subcommand or wrong number of arguments. Try CLUSTER HELP.\r\n",
        ),
    }
    out.freeze()
}

fn slots(plan: &Plan, out: &mut BytesMut) {
    out.extend_from_slice(format!("*{}\r\n", plan.shards.len()).as_bytes());
    for (shard, (_, slots)) in plan.shards.iter().enumerate() {
        out.extend_from_slice(format!("*3\r\n:{}\r\n:{}\r\n*4\r\n", slots.first, slots.last).as_bytes());
        bulk(out, plan.announced.ip().to_string().as_bytes());
        out.extend_from_slice(format!(":{}\r\n", plan.announced.port()).as_bytes());
        bulk(out, node_id(shard).as_bytes());
        out.extend_from_slice(b"*0\r\n");
    }
}

fn shards(plan: &Plan, out: &mut BytesMut, version: u8) {
    let map = |out: &mut BytesMut, fields: usize| {
        let head = if version >= 3 {
            format!("%{fields}\r\n")
        } else {
            format!("*{}\r\n", 2 * fields)
        };
        out.extend_from_slice(head.as_bytes());
    };
    out.extend_from_slice(format!("*{}\r\n", plan.shards.len()).as_bytes());
    let ip = plan.announced.ip().to_string();
    for (shard, (_, slots)) in plan.shards.iter().enumerate() {
        map(out, 2);
        bulk(out, b"slots");
        out.extend_from_slice(format!("*2\r\n:{}\r\n:{}\r\n", slots.first, slots.last).as_bytes());
        bulk(out, b"nodes");
        out.extend_from_slice(b"*1\r\n");
        map(out, 7);
        for (name, value) in [("id", node_id(shard).as_str()), ("ip", &ip), ("endpoint", &ip)] {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"port");
        out.extend_from_slice(format!(":{}\r\n", plan.announced.port()).as_bytes());
        for (name, value) in [("role", "master"), ("health", "online")] {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        }
        bulk(out, b"replication-offset");
        out.extend_from_slice(b":0\r\n");
    }
}

fn nodes(plan: &Plan) -> String {
    let lines = plan.shards.iter().enumerate().map(|(shard, (_, slots))| {
        let (id, addr) = (node_id(shard), plan.announced);
        let flags = if shard == 0 { "myself,master" } else { "master" };
        format!("{id} {addr}@0 {flags} - 0 0 {} connected {slots}\n", shard + 1)
    });
    lines.collect()
}

fn info(plan: &Plan) -> String {
    let shards = plan.shards.len();
    format!(
        "cluster_state:ok\r\ncluster_slots_assigned:{SLOTS}\r\ncluster_slots_ok:{SLOTS}\r\ncluster_slots_pfail:0\r\n\
         cluster_slots_fail:0\r\ncluster_known_nodes:{shards}\r\ncluster_size:{shards}\r\ncluster_current_epoch:{shards}\r\n\
         cluster_my_epoch:1\r\n"
    )
}
