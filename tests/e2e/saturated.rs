//! A load that keeps the machine busy is no fault of anybody: no false alarm, with the profile that decides soonest.
//!
//! `SATURATED_SECONDS=600` makes it ten minutes (a name of `PULSEGATE_…` would be configuration).

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Load, Sidecar, now, two_regions};
use crate::witness::{events, says, switches, text, wait_well};

/// How long in the ordinary run.
const USUAL: Duration = Duration::from_secs(20);

/// Ends with the test.
struct Benchmark(Child);

impl Benchmark {
    /// Clients that ask as fast as they are answered.
    fn start(port: u16) -> Benchmark {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        command.args([
            "-t",
            "get",
            "-c",
            "50",
            "-P",
            "16",
            "-r",
            "1000",
            "-n",
            "2000000000",
            "-q",
        ]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Benchmark(child.expect("redis-benchmark starts"))
    }
}

impl Drop for Benchmark {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ticks of all processors so far: idle ones, and all.
fn ticks() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let line = stat.lines().next().expect("the sum of all processors");
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    (fields[3] + fields[4], fields.iter().take(8).sum())
}

/// Whether an event tells of a fault.
fn is_alarm(event: &Value) -> bool {
    let details = &event["details"];
    match text(&event["kind"]) {
        "health" => details["to"] == "suspect" || details["to"] == "down",
        "link" => details["up"] == false,
        "fitness" => details["to"] != "in_sync",
        "switch" => details["reason"] != "startup",
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saturating_load_raises_no_alarm() {
    let soak = std::env::var("SATURATED_SECONDS").ok();
    let length = soak.map_or(USUAL, |seconds| {
        Duration::from_secs(seconds.parse().expect("seconds"))
    });
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    wait_well(&sidecar, &[1, 1]).await;
    let known = events(&sidecar).await.len();
    let benchmarks = [(); 2].map(|()| Benchmark::start(sidecar.addr.port()));
    let load = Load::start(sidecar.addr, 2);
    let (idle, all) = ticks();
    let end = now() + length;
    while now() < end {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let told = events(&sidecar).await.split_off(known);
        let alarms: Vec<&Value> = told.iter().filter(|event| is_alarm(event)).collect();
        assert!(alarms.is_empty(), "{alarms:#?} among {told:#?}");
    }
    let (still_idle, all_now) = ticks();
    let idle = (still_idle - idle) as f64 / (all_now - all) as f64;
    let replies = sidecar.counter("pulsegate_commands_total").await;
    drop(benchmarks);
    let seen = load.stop().await;
    let told = events(&sidecar).await.split_off(known);
    println!(
        "{length:?} with the machine {:.0} % idle, {replies:.0} commands, longest gap {:?}; told: {told:#?}",
        idle * 100.0,
        seen.gap
    );
    assert!(idle < 0.3, "the machine was {:.0} % idle", idle * 100.0);
    assert!(replies > length.as_secs_f64() * 5000.0, "{replies} commands");
    assert!(seen.errors.is_empty() && seen.closed == 0, "{seen:?}");
    let status = sidecar.status().await;
    assert_eq!(says(&status), "all well");
    assert!(switches(&status).is_empty(), "{status:#}");
}
