//! A sharded replica behind one plain endpoint: the answers are those of one server, whatever moves or fails meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pulsegate::replica::Layout;
use pulsegate::resp::{reply_elements, slot};
use pulsegate::route::Feedback;

use crate::cluster::Cluster;
use crate::plane::{LOCAL, Plane, REMOTE, bulk};
use crate::redis_server::Server;
use crate::support::{App, PATIENCE, now};

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

pub(crate) async fn one_replica() -> (Cluster, Plane) {
    let cluster = Cluster::start(3).await;
    let layout = cluster.layout(0).await;
    assert_eq!(layout.len(), 3);
    let plane = Plane::before(&[cluster.nodes[0].port], 1, vec![layout]).await;
    (cluster, plane)
}

/// A script of commands, in lines; K is a key anywhere, T one of those that share a slot, V a value, N a number.
const LINES: &[&str] = &[
    "SET K V",
    "GET K",
    "INCR K",
    "APPEND K V",
    "STRLEN K",
    "GETSET K V",
    "SETNX K V",
    "GETRANGE K 0 2",
    "INCRBY K N",
    "DEL K",
    "DEL K K K K",
    "UNLINK K K K",
    "EXISTS K K K K K",
    "TOUCH K K",
    "MGET K K K K K K",
    "MSET K V K V K V",
    "LPUSH L:K V V",
    "RPUSH L:K V",
    "LPOP L:K",
    "LRANGE L:K 0 -1",
    "LLEN L:K",
    "BLPOP L:K 0.001",
    "LPUSH L:K V",
    "HSET H:K f V g V",
    "HGET H:K f",
    "HGETALL H:K",
    "HINCRBY H:K n N",
    "SADD S:K N N",
    "SISMEMBER S:K N",
    "SCARD S:K",
    "SMEMBERS S:K",
    "ZADD Z:K N V",
    "ZRANGE Z:K 0 -1 WITHSCORES",
    "ZSCORE Z:K V",
    "XADD X:K * f V",
    "XLEN X:K",
    "TYPE K",
    "TYPE L:K",
    "PERSIST K",
    "EXPIRE K 1000",
    "OBJECT ENCODING K",
    "LPUSH K V",
    "GET",
    "MSET K V K",
    "NOSUCH K V",
    "SINTERSTORE S:T S:T S:T",
    "SADD S:T N N",
    "RENAME T T",
    "SET T V",
    "COPY T T REPLACE",
    "MSETNX T V T V",
    "LMOVE L:T L:T LEFT RIGHT",
    "RPUSH L:T V",
    "SORT S:T STORE L:T",
    "PFADD P:K V",
    "PFCOUNT P:K",
    "SETBIT B:K 7 1",
    "BITCOUNT B:K",
    "GETDEL K",
    "EVAL \"return redis.call('INCR',KEYS[1])\" 1 C:K",
    "EVAL \"return ARGV[1]\" 0 V",
    "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 K",
    "SCRIPT LOAD \"return 1\"",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
    "DBSIZE",
    "KEYS *1*",
    "PING",
    "ECHO V",
    "PUBLISH ch V",
    "SPUBLISH K V",
    "RANDOMKEY x",
    "SCAN notacursor",
    "GETEX K PERSIST",
    "MULTI|SET T V|GET T|INCR T|EXEC",
    "MULTI|EXEC",
    "MULTI|DISCARD",
    "WATCH T|MULTI|SET T V|EXEC",
    "WATCH T|UNWATCH",
    "MULTI|PING|SET T V|EXEC",
    "MULTI|NOSUCH|SET T V|EXEC",
    "WATCH K|GET K|MULTI|EXEC",
    "HELLO 2",
    "CLIENT SETNAME V",
    "CLIENT GETNAME",
    "WAIT 0 0",
    "XREAD COUNT 1 STREAMS X:K 99999999999999-0",
    "OBJECT HELP",
    "COMMAND COUNT",
    "EXEC",
    "LASTSAVE x",
    "FLUSHALL x",
];

fn script(random: &mut Random, commands: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < commands {
        let group = LINES[random.below(LINES.len())];
        for line in group.split('|') {
            let mut out = String::new();
            for (n, word) in line.split(' ').enumerate() {
                let word = match word {
                    "V" => format!("v{}", random.below(100)),
                    "N" => random.below(50).to_string(),
                    word if n > 0 && word.ends_with('K') && (word.len() == 1 || word.ends_with(":K")) => {
                        format!("{}{}", &word[..word.len() - 1], random.below(60))
                    }
                    word if n > 0 && word.ends_with('T') && (word.len() == 1 || word.ends_with(":T")) => {
                        format!("{}{{t}}{}", &word[..word.len() - 1], random.below(5))
                    }
                    word => word.to_owned(),
                };
                out += if n > 0 { " " } else { "" };
                out += &word;
            }
            // Ids of streams are numbers of their own kind: the same on both sides.
            lines.push(out.replace(" * f", &format!(" {}-1 f", lines.len() + 1)));
        }
    }
    lines
}

/// An answer as it is compared: the order of what KEYS and sets bring is nobody's promise.
fn compared(line: &str, reply: &str) -> String {
    let unordered = ["KEYS", "SMEMBERS", "HGETALL"]
        .iter()
        .any(|name| line.starts_with(name));
    if unordered && reply.starts_with('*') {
        let mut elements: Vec<&[u8]> = reply_elements(reply.as_bytes()).collect();
        elements.sort_unstable();
        return format!(
            "{:?}",
            elements
                .iter()
                .map(|e| e.escape_ascii().to_string())
                .collect::<Vec<_>>()
        );
    }
    // Says which connection and what kind of server it is.
    if line == "HELLO 2" {
        return reply[..20].to_owned();
    }
    reply.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_shards_answer_as_one_plain_server() {
    let (_cluster, plane) = one_replica().await;
    let seed = std::env::var("PULSEGATE_SEED").map_or_else(
        |_| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        |seed| seed.parse().unwrap(),
    );
    println!("PULSEGATE_SEED={seed}");
    let mut random = Random(seed);
    let plain = Server::start(&[]).await;
    let plain = ([127, 0, 0, 1], plain.port, plain);
    let (mut through, mut direct) = (plane.app().await, App::connect((plain.0, plain.1).into()).await);
    // Alone, then in pipelines of a thousand.
    for (round, size) in [(0, 1), (1, 7), (2, 1000), (3, 1000), (4, 1000)] {
        let lines = script(&mut random, if size == 1 { 600 } else { 3000 });
        for batch in lines.chunks(size) {
            let bytes = batch.iter().map(|line| format!("{line}\r\n")).collect::<String>();
            let send = async |app: &mut App| {
                app.send(bytes.as_bytes()).await;
                let mut replies = Vec::new();
                for line in batch {
                    match app.try_hear(PATIENCE).await {
                        Ok(reply) => replies.push(reply),
                        Err(error) => panic!("seed {seed}, round {round}: {line}: {error}"),
                    }
                }
                replies
            };
            let (got, want) = tokio::join!(send(&mut through), send(&mut direct));
            for ((line, got), want) in batch.iter().zip(&got).zip(&want) {
                assert_eq!(
                    compared(line, got),
                    compared(line, want),
                    "seed {seed}, round {round}: {line}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_all_shards_is_joined_and_what_cannot_be_is_refused() {
    let (cluster, plane) = one_replica().await;
    let mut app = plane.app().await;
    for n in 0..300 {
        assert_eq!(app.ask(&["SET", &format!("k{n}"), "v"]).await, "+OK\r\n");
    }
    for node in 0..3 {
        let own: usize = cluster.ask(node, &["DBSIZE"]).await;
        assert!((50..150).contains(&own), "{own} of 300 keys on node {node}");
    }
    assert_eq!(app.ask(&["DBSIZE"]).await, ":300\r\n");
    // A whole walk.
    let (mut cursor, mut found) = ("0".to_owned(), std::collections::BTreeSet::new());
    loop {
        let reply = app.ask(&["SCAN", &cursor, "COUNT", "7"]).await;
        let parts: Vec<&[u8]> = reply_elements(reply.as_bytes()).collect();
        let text =
            |frame: &[u8]| String::from_utf8(pulsegate::resp::reply_text(frame).unwrap().to_vec()).unwrap();
        found.extend(reply_elements(parts[1]).map(text));
        cursor = text(parts[0]);
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found.len(), 300);
    assert!(app.ask(&["RANDOMKEY"]).await.starts_with('$'));
    assert_eq!(app.ask(&["FLUSHALL"]).await, "+OK\r\n");
    assert_eq!(app.ask(&["RANDOMKEY"]).await, "$-1\r\n");
    app.ask(&["SET", "only", "1"]).await;
    for _ in 0..5 {
        assert_eq!(app.ask(&["RANDOMKEY"]).await, bulk("only"), "wherever it is");
    }
    for words in [
        &["SINTER", "a", "b"][..],
        &["RENAME", "a", "b"],
        &["MSETNX", "a", "1", "b", "2"],
    ] {
        assert!(app.ask(words).await.starts_with("-CROSSSLOT"), "{words:?}");
    }
    // Pulsegate is the cluster.
    let port = plane.addr.port().to_string();
    for words in [["CLUSTER", "SLOTS"], ["CLUSTER", "SHARDS"], ["CLUSTER", "NODES"]] {
        let reply = app.ask(&words).await;
        assert!(reply.contains(&port) && reply.contains("127.0.0.1"), "{reply}");
        assert!(!reply.contains(&cluster.nodes[1].port.to_string()), "{reply}");
    }
    assert_eq!(app.ask(&["CLUSTER", "KEYSLOT", "foo"]).await, ":12182\r\n");
    for words in [&["READONLY"][..], &["READWRITE"], &["ASKING"]] {
        assert_eq!(app.ask(words).await, "+OK\r\n");
    }
    assert_eq!(app.ask(&["GET", "only"]).await, bulk("1"));
}

/// Keys of three slots, each of another shard.
pub(crate) const KEYS: [&str; 3] = ["c", "foo", "hello"];

#[tokio::test(flavor = "multi_thread")]
async fn sessions_with_links_of_their_own_find_the_shard_of_their_key() {
    let (cluster, plane) = one_replica().await;
    let layout = cluster.layout(0).await;
    let shards: std::collections::BTreeSet<_> = KEYS
        .iter()
        .map(|key| layout.owner(slot(key.as_bytes())))
        .collect();
    assert_eq!(shards.len(), 3, "the keys are of three shards");
    let mut app = plane.app().await;
    let mut other = plane.app().await;
    for key in KEYS {
        let list = format!("list:{{{key}}}");
        app.say(&["BLPOP", &list, "0"]).await;
        other.ask(&["RPUSH", &list, "v"]).await;
        assert!(app.hear().await.contains('v'), "blocked on {list}");
        assert_eq!(app.ask(&["WATCH", key]).await, "+OK\r\n");
        other.ask(&["SET", key, "1"]).await;
        assert_eq!(app.ask(&["MULTI"]).await, "+OK\r\n");
        assert_eq!(app.ask(&["INCR", key]).await, "+QUEUED\r\n");
        assert_eq!(app.ask(&["EXEC"]).await, "*-1\r\n", "the watched key was changed");
        assert_eq!(app.ask(&["MULTI"]).await, "+OK\r\n");
        assert_eq!(app.ask(&["INCR", key]).await, "+QUEUED\r\n");
        assert_eq!(app.ask(&["EXEC"]).await, "*1\r\n:2\r\n");
    }
    // A script that one shard was told is brought to the others.
    assert_eq!(app.ask(&["EVAL", "return 7", "1", KEYS[0]]).await, ":7\r\n");
    let sha = app.ask(&["SCRIPT", "LOAD", "return 8"]).await;
    let known = "88f5a31fc0cf0a2b5d0b3ae6f5d56e9de5cf8e5c";
    for key in KEYS {
        let sha = sha.split("\r\n").nth(1).unwrap();
        assert_eq!(app.ask(&["EVALSHA", sha, "1", key]).await, ":8\r\n");
        assert_eq!(
            app.ask(&["EVALSHA", &sha1("return 7"), "1", key]).await,
            ":7\r\n",
            "{key}"
        );
        assert!(
            app.ask(&["EVALSHA", known, "1", key])
                .await
                .starts_with("-NOSCRIPT")
        );
    }
    // Two shards in one transaction.
    assert_eq!(app.ask(&["MULTI"]).await, "+OK\r\n");
    assert_eq!(app.ask(&["SET", KEYS[0], "x"]).await, "+QUEUED\r\n");
    assert!(app.ask(&["SET", KEYS[1], "x"]).await.starts_with("-CROSSSLOT"));
    assert!(app.ask(&["EXEC"]).await.starts_with("-EXECABORT"));
    assert_eq!(
        app.ask(&["MGET", KEYS[0], KEYS[1]]).await,
        format!("*2\r\n{0}{0}", bulk("2")),
        "nothing was applied"
    );
    assert!(
        app.ask(&["WATCH", KEYS[0], KEYS[1]])
            .await
            .starts_with("-CROSSSLOT")
    );
}

fn sha1(text: &str) -> String {
    sha1_smol::Sha1::from(text).digest().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_subscribers_of_every_kind() {
    let (_cluster, plane) = one_replica().await;
    let mut speaker = plane.app().await;
    let mut listeners = Vec::new();
    for key in KEYS {
        for (subscribe, confirmed) in [
            ("SUBSCRIBE", "subscribe"),
            ("PSUBSCRIBE", "psubscribe"),
            ("SSUBSCRIBE", "ssubscribe"),
        ] {
            let mut app = plane.app().await;
            assert!(app.ask(&[subscribe, key]).await.contains(confirmed));
            listeners.push((subscribe, key, app));
        }
    }
    for key in KEYS {
        speaker.ask(&["PUBLISH", key, "to all"]).await;
        speaker.ask(&["SPUBLISH", key, "to the shard's"]).await;
    }
    for (subscribe, key, app) in &mut listeners {
        let said = app.hear().await;
        let wanted = if *subscribe == "SSUBSCRIBE" {
            "to the shard's"
        } else {
            "to all"
        };
        assert!(
            said.contains(wanted) && said.contains(*key),
            "{subscribe}: {said}"
        );
    }
    // With RESP3 it goes on talking, to all shards.
    let mut app = plane.app().await;
    app.ask(&["HELLO", "3"]).await;
    assert!(app.ask(&["SUBSCRIBE", "news"]).await.contains("subscribe"));
    for key in KEYS {
        assert_eq!(app.ask(&["SET", key, "1"]).await, "+OK\r\n");
    }
    speaker.ask(&["PUBLISH", "news", "late"]).await;
    assert!(app.hear().await.contains("late"), "it listens all the while");
}

/// Follows what nodes say of the layout, as the monitor does.
pub(crate) fn follow_layout(cluster: &Arc<Cluster>, plane: &mut Plane) -> tokio::task::JoinHandle<()> {
    let (cluster, layouts) = (Arc::clone(cluster), plane.layouts.clone());
    let (_, empty) = tokio::sync::mpsc::unbounded_channel();
    let mut feedback = std::mem::replace(&mut plane.feedback, empty);
    tokio::spawn(async move {
        while let Some(told) = feedback.recv().await {
            if let Feedback::Moved { replica: LOCAL } = told {
                let layout = cluster.layout(1).await;
                layouts.send_replace(Arc::from([layout]));
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_under_load_and_nobody_notices() {
    let (cluster, mut plane) = one_replica().await;
    let cluster = Arc::new(cluster);
    let following = follow_layout(&cluster, &mut plane);
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for client in 0..8 {
        let (mut app, stop) = (plane.app().await, Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let keys: Vec<String> = (0..20).map(|n| format!("n:{client}:{n}")).collect();
            let mut counts: HashMap<&String, u64> = HashMap::new();
            while !stop.load(Ordering::Relaxed) {
                // Twice each, so that an order that is not kept shows.
                let mut wanted = Vec::new();
                let mut bytes = String::new();
                for key in keys.iter().chain(&keys) {
                    let count = counts.entry(key).or_default();
                    *count += 1;
                    wanted.push(format!(":{count}\r\n"));
                    bytes += &format!("INCR {key}\r\n");
                }
                app.send(bytes.as_bytes()).await;
                for wanted in wanted {
                    assert_eq!(app.hear().await, wanted);
                }
                let all = app
                    .ask(
                        &[
                            &["MGET"][..],
                            &keys.iter().map(String::as_str).collect::<Vec<_>>(),
                        ]
                        .concat(),
                    )
                    .await;
                assert_eq!(
                    all,
                    format!(
                        "*20\r\n{}",
                        keys.iter()
                            .map(|key| bulk(&counts[key].to_string()))
                            .collect::<String>()
                    )
                );
            }
            counts.values().sum::<u64>()
        }));
    }
    // Slots of these very keys, each to the next node.
    let layout = cluster.layout(0).await;
    for client in 0..8 {
        for n in 0..5 {
            let slot = slot(format!("n:{client}:{n}").as_bytes());
            let from = usize::from(layout.owner(slot).unwrap().0);
            let port = |shard: usize| match &layout.shards().nth(shard).unwrap().1.node {
                Some(pulsegate::replica::Address::Tcp { port, .. }) => *port,
                other => panic!("{other:?}"),
            };
            let at = |port: u16| cluster.nodes.iter().position(|node| node.port == port).unwrap();
            cluster
                .migrate(slot, at(port(from)), at(port((from + 1) % 3)))
                .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for task in tasks {
        written += task.await.unwrap();
    }
    println!("{written} increments, each once and in order, while 40 slots moved");
    assert!(written > 5000);
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_concerns_its_own_slots_only() {
    let (mut cluster, plane) = one_replica().await;
    let layout = cluster.layout(0).await;
    let mut app = plane.app().await;
    let mut listener = plane.app().await;
    listener.ask(&["SUBSCRIBE", "news"]).await;
    for key in KEYS {
        app.ask(&["SET", key, "1"]).await;
    }
    let node_of = |key: &str| {
        let shard = layout.owner(slot(key.as_bytes())).unwrap();
        match &layout.shard(shard).unwrap().node {
            Some(pulsegate::replica::Address::Tcp { port, .. }) => *port,
            other => panic!("{other:?}"),
        }
    };
    let lost = cluster
        .nodes
        .iter()
        .position(|node| node.port == node_of(KEYS[1]))
        .unwrap();
    cluster.nodes[lost].kill();
    let mut waiting = plane.app().await;
    waiting.say(&["GET", KEYS[1]]).await;
    for key in [KEYS[0], KEYS[2]] {
        let began = now();
        let mut other = plane.app().await;
        assert_eq!(other.ask(&["GET", key]).await, bulk("1"));
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "{:?}",
            began.elapsed()
        );
    }
    assert_eq!(
        waiting.try_hear(Duration::from_millis(100)).await,
        Err("silence".into()),
        "it waits"
    );
    // Whichever node carried it, a plain subscription goes on.
    let deadline = now() + PATIENCE;
    loop {
        let mut speaker = plane.app().await;
        speaker.ask(&["PUBLISH", "news", "still"]).await;
        if listener
            .try_hear(Duration::from_millis(100))
            .await
            .is_ok_and(|said| said.contains("still"))
        {
            break;
        }
        assert!(now() < deadline, "no message");
    }
    cluster.nodes[lost]
        .restart(&[
            "--cluster-enabled",
            "yes",
            "--cluster-require-full-coverage",
            "no",
        ])
        .await;
    let mut reply = waiting.hear().await;
    while reply.starts_with("-CLUSTERDOWN") {
        assert!(now() < deadline, "the node does not come back");
        reply = waiting.ask(&["GET", KEYS[1]]).await;
    }
    assert_eq!(reply, "$-1\r\n", "it came back empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_moves_all_shards_and_subscribers() {
    let local = Cluster::start(3).await;
    let remote = Cluster::start(2).await;
    let layouts = vec![local.layout(0).await, remote.layout(0).await];
    let mut plane = Plane::before(&[local.nodes[0].port, remote.nodes[0].port], 1, layouts).await;
    let mut app = plane.app().await;
    let mut listeners = Vec::new();
    for (subscribe, key) in [
        ("SUBSCRIBE", "news"),
        ("SSUBSCRIBE", KEYS[0]),
        ("SSUBSCRIBE", KEYS[1]),
    ] {
        let mut listener = plane.app().await;
        listener.ask(&[subscribe, key]).await;
        listeners.push((subscribe, key, listener));
    }
    app.ask(&["MSET", KEYS[0], "1", KEYS[1], "1", KEYS[2], "1"]).await;
    let _: String = remote.ask(0, &["CLUSTER", "INFO"]).await;
    plane
        .route(|route| {
            route.write = REMOTE;
            route.read = vec![(REMOTE, 100)];
        })
        .await;
    assert_eq!(
        app.ask(&["MGET", KEYS[0], KEYS[1], KEYS[2]]).await,
        "*3\r\n$-1\r\n$-1\r\n$-1\r\n"
    );
    assert_eq!(
        app.ask(&["MSET", KEYS[0], "2", KEYS[1], "2", KEYS[2], "2"]).await,
        "+OK\r\n"
    );
    assert_eq!(app.ask(&["DBSIZE"]).await, ":3\r\n");
    for (subscribe, key, listener) in &mut listeners {
        let publish = if *subscribe == "SSUBSCRIBE" {
            "SPUBLISH"
        } else {
            "PUBLISH"
        };
        let deadline = now() + PATIENCE;
        loop {
            app.ask(&[publish, key, "here"]).await;
            if listener
                .try_hear(Duration::from_millis(50))
                .await
                .is_ok_and(|said| said.contains("here"))
            {
                break;
            }
            assert!(now() < deadline, "{subscribe} {key}: no message after the switch");
        }
    }
    // And to one that is not sharded.
    plane
        .layouts
        .send_replace(Arc::from([Layout::single(), layouts_of(&remote).await]));
}

async fn layouts_of(cluster: &Cluster) -> Layout {
    cluster.layout(0).await
}
