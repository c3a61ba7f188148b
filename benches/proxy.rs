//! What the data plane's pure parts cost for each command: its place among the replies, and its bytes on the way to the
//! replica. Run with `cargo bench --bench proxy`.

use divan::Bencher;
use divan::counter::ItemsCount;
use pulsegate::proxy::outbox::Outbox;
use pulsegate::proxy::pipeline::{Pipeline, Turn};

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
