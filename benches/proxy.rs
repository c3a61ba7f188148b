//! What the data plane's pure parts cost for each command: its place among the replies, and its bytes on the way to the
//! replica. Run with `cargo bench --bench proxy`.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use pulsegate::proxy::cluster::{Plan, Router};
use pulsegate::proxy::outbox::Outbox;
use pulsegate::proxy::pipeline::{Pipeline, Turn};
use pulsegate::replica::{Address, Layout, Shard};
use pulsegate::resp::{RequestScanner, Scan, lookup};

fn main() {
    divan::main();
}

const COMMANDS: usize = 1000;
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000001234\r\n";

/// Replies come in the order of their commands, one by one.
#[divan::bench]
fn replies_in_order(bencher: Bencher<'_, '_>) {
    let mut pipeline = Pipeline::default();
    bencher.counter(ItemsCount::new(COMMANDS)).bench_local(move || {
        for _ in 0..COMMANDS {
            let seq = pipeline.push();
            assert!(pipeline.complete(seq, 1) == Turn::Now);
        }
    });
}

/// Replies come in runs of 16, as for an application that pipelines.
#[divan::bench]
fn replies_in_runs(bencher: Bencher<'_, '_>) {
    let mut pipeline = Pipeline::default();
    bencher.counter(ItemsCount::new(COMMANDS)).bench_local(move || {
        for _ in 0..COMMANDS / 16 {
            let first = pipeline.push();
            for _ in 1..16 {
                pipeline.push();
            }
            assert!(pipeline.complete(first, 16) == Turn::Now);
        }
    });
}

/// Every second reply overtakes the one before it and is kept.
#[divan::bench]
fn replies_out_of_order(bencher: Bencher<'_, '_>) {
    let mut pipeline = Pipeline::default();
    let reply = bytes::Bytes::from_static(b"+OK\r\n");
    bencher.counter(ItemsCount::new(COMMANDS)).bench_local(move || {
        for _ in 0..COMMANDS / 2 {
            let (first, second) = (pipeline.push(), pipeline.push());
            assert!(pipeline.complete(second, 1) == Turn::Later);
            pipeline.keep(second, 1, reply.clone());
            assert!(pipeline.complete(first, 1) == Turn::Now);
            assert!(pipeline.pop_ready().is_some());
        }
    });
}

/// Commands join a batch of 50, one write takes them, their replies let them go.
#[divan::bench]
fn bytes_through_the_outbox(bencher: Bencher<'_, '_>) {
    let mut outbox = Outbox::default();
    bencher.counter(ItemsCount::new(COMMANDS)).bench_local(move || {
        for _ in 0..COMMANDS / 50 {
            for _ in 0..50 {
                outbox.append(GET);
            }
            let written = outbox.with_unwritten(|slices| slices.iter().map(|s| s.len()).sum());
            outbox.advance(written);
            for _ in 0..50 {
                outbox.release(GET.len());
            }
        }
    });
}

/// A router for so many shards with nodes of their own.
fn router(shards: u16) -> Router {
    let even = Layout::even(shards);
    let with_nodes = even.shards().map(|(id, shard)| Shard {
        node: Some(Address::Tcp {
            host: "db".to_owned(),
            port: 7000 + id.0,
        }),
        ..shard.clone()
    });
    Router::new(Layout::new(with_nodes.collect()), true)
}

/// Where a request goes, its command's row being known: what slot routing adds to each command.
fn planned(bencher: Bencher<'_, '_>, shards: u16, words: &[&[u8]]) {
    let router = router(shards);
    let frame = pulsegate::resp::encode_command(words);
    let Ok(Scan::Complete(request)) = RequestScanner::new().scan(&frame) else {
        unreachable!("a whole request")
    };
    let info = lookup(words[0]);
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| router.plan(black_box(info), black_box(&frame), &request));
}

#[divan::bench(args = [1, 3])]
fn plan_of_get(bencher: Bencher<'_, '_>, shards: u16) {
    planned(bencher, shards, &[b"GET", b"key:000000001234"]);
}

#[divan::bench(args = [1, 3])]
fn plan_of_ping(bencher: Bencher<'_, '_>, shards: u16) {
    planned(bencher, shards, &[b"PING"]);
}

#[divan::bench(args = [1, 3])]
fn plan_of_mget_in_one_slot(bencher: Bencher<'_, '_>, shards: u16) {
    planned(
        bencher,
        shards,
        &[b"MGET", b"{u}:1", b"{u}:2", b"{u}:3", b"{u}:4"],
    );
}

#[divan::bench(args = [1, 3])]
fn plan_of_mget_in_ten_slots(bencher: Bencher<'_, '_>, shards: u16) {
    let words: [&[u8]; 11] = [
        b"MGET", b"k:0", b"k:1", b"k:2", b"k:3", b"k:4", b"k:5", b"k:6", b"k:7", b"k:8", b"k:9",
    ];
    planned(bencher, shards, &words);
}

/// Ten values, one from each part, back in the order of the keys.
#[divan::bench]
fn join_of_mget_in_ten_parts(bencher: Bencher<'_, '_>) {
    let router = router(3);
    let words: [&[u8]; 11] = [
        b"MGET", b"k:0", b"k:1", b"k:2", b"k:3", b"k:4", b"k:5", b"k:6", b"k:7", b"k:8", b"k:9",
    ];
    let frame = pulsegate::resp::encode_command(&words);
    let Ok(Scan::Complete(request)) = RequestScanner::new().scan(&frame) else {
        unreachable!("a whole request")
    };
    let Plan::Split(split) = router.plan(lookup(b"MGET"), &frame, &request) else {
        unreachable!("keys in several slots")
    };
    let reply = b"*1\r\n$16\r\n0123456789abcdef\r\n";
    bencher
        .with_inputs(|| split.joiner.clone())
        .bench_local_values(|mut joiner| (0..split.parts.len()).find_map(|part| joiner.put(part, reply)));
}
