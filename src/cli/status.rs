//! `pulsegate status`: the admin server's `/status`, for people.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{Method, StatusCode};
use tokio::time::sleep;

use super::client::{AdminClient, QUICK};
use super::{AdminArgs, Failure, print};
use crate::control::status::{ReplicaStatus, Status};

/// Time between two looks with `--watch`.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many of the newest switches the table shows.
const SWITCHES_SHOWN: usize = 5;

/// Prints the status, once or again and again.
pub(super) async fn status(args: &AdminArgs, json: bool, watch: bool) -> Result<(), Failure> {
    let client = AdminClient::new(args)?;
    let mut shown = look(&client, json).await?;
    if !watch {
        return Ok(print(shown.trim_end())?);
    }
    let clear = !json && io::stdout().is_terminal();
    loop {
        if clear {
            // Cursor home, clear to the end: what was there stays in the terminal's history once only.
            print(&format!("\x1b[H\x1b[J{}", shown.trim_end()))?;
        } else {
            print(shown.trim_end())?;
        }
        sleep(LOOK_EVERY).await;
        // A restart of the sidecar is something to watch, not the end of watching.
        shown = match look(&client, json).await {
            Ok(shown) => shown,
            Err(failure) if json => {
                super::report(&failure);
                continue;
            }
            Err(failure) => failure.message,
        };
    }
}

async fn look(client: &AdminClient, json: bool) -> Result<String, Failure> {
    let (text, status) = fetch_both(client).await?;
    Ok(if json { text } else { table(&status, now_ms()) })
}

/// The status of now.
pub(super) async fn fetch(client: &AdminClient) -> Result<Status, Failure> {
    Ok(fetch_both(client).await?.1)
}

async fn fetch_both(client: &AdminClient) -> Result<(String, Status), Failure> {
    let (code, body) = client.ask(Method::GET, "/status", None, QUICK).await?;
    if code != StatusCode::OK {
        return Err(client.unavailable(&format!("/status answered {code}")));
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    match serde_json::from_str(&text) {
        Ok(status) => Ok((text, status)),
        Err(error) => Err(client.unavailable(&format!("/status is not as Pulsegate writes it: {error}"))),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the ages in a table for people are counted from now"
)]
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time of the admin API, in UTC.
pub(super) fn clock(ms: u64) -> String {
    // The format ends with the year 9999; a server that says more is shown as the end of time.
    let last = 253_402_300_799_999;
    let at = UNIX_EPOCH + Duration::from_millis(ms.min(last));
    humantime::format_rfc3339_millis(at).to_string()
}

/// A duration in one or two units: `12s`, `3m 5s`, `2h 10m`.
fn age(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then) / 1000;
    let (big, small) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3600 => ((seconds / 60, "m"), (seconds % 60, "s")),
        3600..86_400 => ((seconds / 3600, "h"), (seconds % 3600 / 60, "m")),
        _ => ((seconds / 86_400, "d"), (seconds % 86_400 / 3600, "h")),
    };
    format!("{}{} {}{}", big.0, big.1, small.0, small.1)
}

/// Milliseconds with as many digits as they are worth.
fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// The whole picture; `now` in milliseconds since 1970.
fn table(status: &Status, now: u64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_table(&mut out, status, now);
    out
}

fn write_table(out: &mut String, status: &Status, now: u64) -> std::fmt::Result {
    let reads: Vec<String> = status
        .read
        .iter()
        .map(|(name, percent)| format!("{name} {percent} %"))
        .collect();
    let active = status.active.as_deref().unwrap_or("none yet");
    write!(out, "active {active}")?;
    if !reads.is_empty() {
        write!(out, ", reads {}", reads.join(", "))?;
    }
    writeln!(out, ", epoch {}", status.epoch)?;
    if let Some(pinned) = &status.pinned {
        writeln!(out, "pinned to {pinned}: stays there until unpinned")?;
    }
    if status.holding {
        writeln!(out, "holding: commands wait")?;
    }
    if status.tilt {
        writeln!(
            out,
            "tilt: this sidecar stalled, so it only observes until its evidence is fresh"
        )?;
    }
    writeln!(out)?;
    let mut rows = vec![
        [
            "", "REPLICA", "HEALTH", "FITNESS", "RTT", "FOR", "LINKS", "REASON",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.replicas.iter().map(|replica| row(status, replica, now)));
    write_rows(out, &rows)?;

    let mut heading = "\nbroken\n";
    for fault in &status.faults {
        writeln!(out, "{heading}  {}, for {}", fault.words, age(now, fault.since))?;
        heading = "";
    }

    let mut heading = "\nlinks without fresh heartbeats\n";
    for replica in &status.replicas {
        for link in replica.links.iter().filter(|link| !link.up) {
            let heard = match link.last_heard_ms {
                Some(at) => format!("last heard {} ago", age(now, at)),
                None => "never heard".to_owned(),
            };
            let shard = link.shard;
            writeln!(
                out,
                "{heading}  {} → {}, shard {shard}: {heard}",
                replica.name, link.to
            )?;
            heading = "";
        }
    }

    let checks = status.replicas.iter().filter_map(|replica| {
        let rest = replica.rest.as_ref()?;
        let asked = rest
            .at
            .map_or("not yet".to_owned(), |at| format!("{} ago", age(now, at)));
        let name = format!("  {}", replica.name);
        Some([name, rest.state.clone(), asked, rest.words.clone()])
    });
    let checks: Vec<[String; 4]> = checks.collect();
    if !checks.is_empty() {
        writeln!(out, "\nREST checks of the clusters")?;
        write_rows(out, &checks)?;
    }

    if !status.last_switches.is_empty() {
        writeln!(out, "\nnewest switches")?;
        let rows: Vec<[String; 5]> = status
            .last_switches
            .iter()
            .rev()
            .take(SWITCHES_SHOWN)
            .map(|switch| {
                let fence = switch
                    .fence_ms
                    .map_or(String::new(), |ms| format!(", fence {}", milliseconds(ms)));
                let times = format!(
                    "detected in {}{fence}, switched in {}",
                    milliseconds(switch.detect_ms),
                    milliseconds(switch.switch_ms)
                );
                let from = switch.from.as_deref().unwrap_or("nothing");
                [
                    format!("  {}", clock(switch.at)),
                    format!("{from} → {}", switch.to),
                    switch.reason.clone(),
                    times,
                    switch.why.clone(),
                ]
            })
            .collect();
        write_rows(out, &rows)?;
    }
    Ok(())
}

fn row(status: &Status, replica: &ReplicaStatus, now: u64) -> [String; 8] {
    let marker = if status.active.as_ref() == Some(&replica.name) {
        "*"
    } else {
        " "
    };
    let up = replica.links.iter().filter(|link| link.up).count();
    [
        marker.to_owned(),
        replica.name.clone(),
        replica.health.clone(),
        replica.fitness.clone(),
        replica.rtt_ms.map_or("-".to_owned(), milliseconds),
        age(now, replica.since),
        format!("{up}/{}", replica.links.len()),
        replica.reason.clone(),
    ]
}

/// Columns as wide as their widest cell, two spaces apart; the last is not padded.
fn write_rows<const N: usize>(out: &mut String, rows: &[[String; N]]) -> std::fmt::Result {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == N {
                line.push_str(cell);
            } else {
                write!(line, "{cell:<width$}  ", width = widths[i])?;
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::RestStatus;

    const NOW: u64 = 1_700_000_000_000;

    fn example() -> Status {
        let text = r#"{
            "epoch": 3, "active": "remote", "read": {"remote": 100}, "holding": false, "pinned": null, "tilt": false,
            "replicas": [
                {"name": "local", "health": "down", "fitness": "unknown", "reason": "connection refused, 3 times",
                 "since": 1699999988000, "rtt_ms": null, "shards": [],
                 "links": [{"to": "local", "shard": 0, "lag_ms": null, "last_heard_ms": 1699999988000, "up": false},
                           {"to": "remote", "shard": 0, "lag_ms": null, "last_heard_ms": null, "up": false}]},
                {"name": "remote", "health": "healthy", "fitness": "in_sync", "reason": "all evidence is fresh",
                 "since": 1699990000000, "rtt_ms": 0.42, "shards": [],
                 "links": [{"to": "remote", "shard": 0, "lag_ms": 0.3, "last_heard_ms": 1699999999900, "up": true}]}
            ],
            "last_switches": [
                {"epoch": 1, "from": null, "to": "local", "reason": "startup", "why": "first", "at": 1699990000000,
                 "detect_ms": 0.0, "fence_ms": null, "switch_ms": 0.0},
                {"epoch": 3, "from": "local", "to": "remote", "reason": "refused", "why": "3 refusals",
                 "at": 1699999988000, "detect_ms": 103.4, "fence_ms": 1.25, "switch_ms": 2.0}
            ]
        }"#;
        serde_json::from_str(text).expect("the example is a status")
    }

    #[test]
    fn the_table_shows_everything_that_matters() {
        let want = "\
active remote, reads remote 100 %, epoch 3

   REPLICA  HEALTH   FITNESS  RTT     FOR     LINKS  REASON
   local    down     unknown  -       12s     0/2    connection refused, 3 times
*  remote   healthy  in_sync  0.4 ms  2h 46m  1/1    all evidence is fresh

links without fresh heartbeats
  local → local, shard 0: last heard 12s ago
  local → remote, shard 0: never heard

newest switches
  2023-11-14T22:13:08.000Z  local → remote   refused  detected in 103 ms, fence 1.2 ms, switched in 2.0 ms  3 refusals
  2023-11-14T19:26:40.000Z  nothing → local  startup  detected in 0.0 ms, switched in 0.0 ms                first
";
        assert_eq!(table(&example(), NOW), want);
    }

    #[test]
    fn what_stands_out_is_said_above_the_table() {
        let mut status = example();
        status.pinned = Some("remote".to_owned());
        status.holding = true;
        status.tilt = true;
        status.active = None;
        let text = table(&status, NOW);
        assert!(
            text.starts_with("active none yet, reads remote 100 %, epoch 3\npinned to remote"),
            "{text}"
        );
        assert!(text.contains("\nholding: commands wait\ntilt: "), "{text}");
        assert!(!text.contains('*'), "{text}");
    }

    #[test]
    fn rest_checks_have_lines_of_their_own() {
        let mut status = example();
        status.replicas[0].rest = Some(RestStatus {
            state: "unavailable".to_owned(),
            words: "503 no_quorum".to_owned(),
            at: Some(NOW - 3000),
        });
        status.replicas[1].rest = Some(RestStatus {
            state: "unknown".to_owned(),
            words: "not asked yet".to_owned(),
            at: None,
        });
        let want = "\nREST checks of the clusters\n  local   unavailable  3s ago   503 no_quorum\n  remote  unknown      \
                    not yet  not asked yet\n\nnewest";
        let text = table(&status, NOW);
        assert!(text.contains(want), "{text}");
    }

    #[test]
    fn ages_have_at_most_two_units() {
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (3599, "59m 59s"),
            (7300, "2h 1m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(age(seconds * 1000, 0), want);
        }
        assert_eq!(age(0, 5000), "0s", "a clock that differs from the server's");
    }
}
