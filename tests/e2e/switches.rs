//! Switches of every kind, and what several kinds of session have in common in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::Value;
use rig::Rig;

use crate::support::{App, PATIENCE, Sidecar, now, two_regions};

/// What a write without an answer ends in.
pub(crate) const UNKNOWN: &str = "-OUTCOMEUNKNOWN the command was sent but its replica was lost before it replied; it may or may not be applied\r\n";

/// How the active replica is left.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum How {
    Killed,
    Hung,
    Planned,
}

pub(crate) struct World {
    pub(crate) rig: Rig,
    pub(crate) sidecar: Sidecar,
    pub(crate) how: How,
}

impl World {
    pub(crate) async fn new(how: How, toml: &str) -> World {
        let rig = two_regions().await;
        let sidecar = Sidecar::start(&rig, "fast", toml).await;
        sidecar
            .wait("both in sync", |s| {
                (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
            })
            .await;
        World { rig, sidecar, how }
    }

    pub(crate) async fn app(&self) -> App {
        App::connect(self.sidecar.addr).await
    }

    /// One command on the replica `region` itself, as text.
    pub(crate) async fn on(&self, region: &str, words: &[&str]) -> Value {
        self.rig
            .region(region)
            .command(words)
            .await
            .expect("the replica answers")
    }

    pub(crate) async fn number(&self, region: &str, words: &[&str]) -> i64 {
        redis::from_redis_value(self.on(region, words).await).expect("a number")
    }

    /// The switch, from `local` to `remote`.
    pub(crate) async fn switch(&self) {
        match self.how {
            How::Killed => self.rig.kill("local").await.unwrap(),
            How::Hung => self.rig.hang("local").await.unwrap(),
            How::Planned => {
                self.sidecar
                    .verb(&["switch", "remote"])
                    .await
                    .expect("it is done");
            }
        }
        self.sidecar.wait_active("remote").await;
    }

    /// Waits until `words`, asked of `remote`, yields `wished`.
    pub(crate) async fn until(&self, words: &[&str], wished: i64) {
        let began = now();
        loop {
            let value = self.on("remote", words).await;
            let last = match &value {
                Value::Array(items) => items.last().cloned().expect("an element"),
                other => other.clone(),
            };
            if redis::from_redis_value::<i64>(last).ok() == Some(wished) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{words:?} is {value:?}, not {wished}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Nothing else came, and the connection lives.
    pub(crate) async fn quiet(&self, app: &mut App) {
        assert_eq!(
            app.try_hear(Duration::from_millis(150)).await,
            Err("silence".into())
        );
    }
}

impl World {
    pub(crate) async fn until_blocked(&self, region: &str) {
        let began = now();
        loop {
            let info: String =
                redis::from_redis_value(self.on(region, &["INFO", "clients"]).await).expect("text");
            if info.contains("blocked_clients:1") {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{info}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn until_in_db(&self, db: i64, region: &str, wished: i64) {
        let began = now();
        let script = format!("redis.call('SELECT', {db}) return tonumber(redis.call('GET', 'n') or 0)");
        while self.number(region, &["EVAL", &script, "0"]).await != wished {
            assert!(began.elapsed() < PATIENCE, "{region} has not got there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Several sessions write tokens and read, `deep` commands at once, through the switch.
pub(crate) async fn pipelines(world: &World, deep: usize, sessions: usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for session in 0..sessions {
        let (addr, stop) = (world.sidecar.addr, Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let mut app = App::connect(addr).await;
            let (key, mut next) = (format!("tokens:{session}"), 0);
            let (mut acked, mut unknown) = (Vec::new(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let mut batch = Vec::new();
                for n in next..next + deep {
                    let token = n.to_string();
                    let words: &[&[u8]] = match n % 2 {
                        0 => &[b"RPUSH", key.as_bytes(), token.as_bytes()],
                        _ => &[b"ECHO", token.as_bytes()],
                    };
                    batch.extend_from_slice(&pulsegate::resp::encode_command(words));
                }
                app.send(&batch).await;
                for n in next..next + deep {
                    let reply = app.hear().await;
                    match n % 2 {
                        0 if reply.starts_with(':') => acked.push(n),
                        0 => {
                            assert_eq!(reply, UNKNOWN, "token {n}");
                            unknown.push(n);
                        }
                        _ => assert_eq!(reply, format!("${}\r\n{n}\r\n", n.to_string().len()), "in order"),
                    }
                }
                next += deep;
            }
            (acked, unknown)
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.switch().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut in_all, mut unknown_in_all) = (0, 0);
    let planned = world.how == How::Planned;
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.expect("no session is closed, none gets a wrong reply"));
    }
    if planned {
        world.rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    }
    for (session, (acked, unknown)) in seen.into_iter().enumerate() {
        let there = world
            .on("remote", &["LRANGE", &format!("tokens:{session}"), "0", "-1"])
            .await;
        let there: Vec<usize> = redis::from_redis_value(there).expect("tokens");
        assert!(
            there.is_sorted_by(|a, b| a < b),
            "each once, and none overtook an earlier one"
        );
        in_all += acked.len();
        unknown_in_all += unknown.len();
        if planned {
            assert_eq!(there, acked, "exactly what was acknowledged");
            assert!(unknown.is_empty());
        }
    }
    println!(
        "{:?}: {in_all} writes acknowledged, {unknown_in_all} unknown",
        world.how
    );
    assert!(in_all > deep * sessions, "the pipelines ran");
}

/// Several channels of different slots, in both protocols: heard before and after, confirmed once.
pub(crate) async fn subscriptions(world: &World, subscribe: &str, publish: &str, count: [&str; 2]) {
    let pattern = subscribe == "PSUBSCRIBE";
    let channels = if pattern {
        ["a*", "b*", "c*", "d*"]
    } else {
        ["a", "b", "c", "d"]
    };
    let mut apps = Vec::new();
    for resp3 in [false, true] {
        let mut app = world.app().await;
        if resp3 {
            assert!(app.ask(&["HELLO", "3"]).await.starts_with('%'));
        }
        let mut words = vec![subscribe];
        words.extend(channels);
        app.say(&words).await;
        for channel in channels {
            assert!(
                app.hear()
                    .await
                    .contains(&format!("subscribe\r\n${}\r\n{channel}\r\n", channel.len()))
            );
        }
        apps.push(app);
    }
    world.switch().await;
    let subscribed: Vec<&str> = ["PUBSUB", count[0], count[1]]
        .into_iter()
        .filter(|w| !w.is_empty())
        .collect();
    world.until(&subscribed, if pattern { 4 } else { 2 }).await;
    for channel in ["a", "b", "c", "d"] {
        // Replayed one by one, perhaps, so each is awaited.
        if !pattern {
            world.until(&["PUBSUB", count[0], channel], 2).await;
        }
        world.on("remote", &[publish, channel, "after"]).await;
        for app in &mut apps {
            let message = app.hear().await;
            assert!(
                message.contains("message\r\n")
                    && message.ends_with(&format!("${}\r\n{channel}\r\n$5\r\nafter\r\n", channel.len())),
                "the first thing heard after the switch is a message, not a confirmation: {message:?}"
            );
        }
    }
    for app in &mut apps {
        world.quiet(app).await;
        let un = format!("{}UNSUBSCRIBE", subscribe.trim_end_matches("SUBSCRIBE"));
        app.say(&[&un]).await;
        for _ in channels {
            assert!(app.hear().await.contains("unsubscribe"));
        }
        assert_eq!(
            app.ask(&["PING"]).await,
            "+PONG\r\n",
            "a connection as any other again"
        );
    }
}

/// A MONITOR sees a command of another session.
pub(crate) async fn sees(watcher: &mut App, app: &mut App, what: &str) {
    let began = now();
    loop {
        assert_eq!(
            app.ask(&["ECHO", what]).await,
            format!("${}\r\n{what}\r\n", what.len())
        );
        while let Ok(line) = watcher.try_hear(Duration::from_millis(50)).await {
            assert_ne!(line, "+OK\r\n", "confirmed once");
            if line.contains(&format!("\"ECHO\" \"{what}\"")) {
                return;
            }
        }
        assert!(began.elapsed() < PATIENCE, "{what} was not seen");
    }
}
