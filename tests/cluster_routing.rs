//! Slot routing against real servers: routes and refusals as a cluster's node decides, split requests as one plain server
//! answers them, SCAN over several servers, CLUSTER's answers in a node's own words.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/resp_calls.rs"]
mod resp_calls;
#[path = "support/resp_server.rs"]
mod resp_server;

use std::collections::{BTreeSet, HashMap};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pulsegate::proxy::cluster::{Itself, Plan, Router, Split};
use pulsegate::replica::{Address, Layout, Shard, ShardId, SlotRange};
use pulsegate::resp::command::{self, CommandInfo, KeySet, lookup, lookup_sub};
use pulsegate::resp::{
    Request, RequestScanner, Scan, args, encode_command, error_code, reply_elements, reply_text, slot,
};
use resp_calls::{Random, ask, call, connect, seed};
use resp_server::{DEADLINE, Server};

/// Slots above this one have no owner in the cluster of these tests.
const LAST_OWNED: u16 = 14_000;

/// Shards that begin at these slots and end before the next one's, the last one at `last`; each with a node of its own.
fn layout(starts: &[u16], last: u16) -> Layout {
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([last]);
    let shards = starts
        .iter()
        .zip(ends)
        .enumerate()
        .map(|(n, (&first, last))| Shard {
            slots: vec![SlotRange { first, last }],
            node: Some(Address::Tcp {
                host: format!("db{n}"),
                port: 6379,
            }),
        });
    Layout::new(shards.collect())
}

fn request(frame: &[u8]) -> Request {
    match RequestScanner::new().scan(frame) {
        Ok(Scan::Complete(request)) => request,
        other => panic!("{other:?}: {}", frame.escape_ascii()),
    }
}

fn info(frame: &[u8]) -> Option<&'static CommandInfo> {
    let mut words = args(frame);
    let info = lookup(words.next()?)?;
    let sub = words.next().filter(|_| info.is_container());
    sub.map_or(Some(info), |sub| lookup_sub(info, sub).or(Some(info)))
}

fn plan(router: &Router, frame: &[u8]) -> Plan {
    router.plan(info(frame), frame, &request(frame))
}

fn line(text: &str) -> Vec<u8> {
    encode_command(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

fn one(stream: &mut UnixStream, frame: &[u8]) -> Vec<u8> {
    ask(stream, &[frame.to_vec()]).remove(0)
}

/// A cluster of one node that owns slots up to `last`.
#[expect(
    clippy::disallowed_methods,
    reason = "waits for the cluster to serve, with a deadline"
)]
fn cluster(last: u16) -> Server {
    // The cluster bus cannot do without a port of its own.
    let bus = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let options = "--cluster-enabled yes --bind 127.0.0.1 --cluster-require-full-coverage no \
                   --cluster-announce-ip 127.0.0.1 --cluster-announce-port 7123 --cluster-announce-bus-port 17123 \
                   --cluster-port";
    let options: Vec<&str> = options.split(' ').chain([bus.as_str()]).collect();
    let server = Server::start(Path::new("redis-server"), &options);
    let mut stream = connect(&server);
    let given = one(&mut stream, &line(&format!("CLUSTER ADDSLOTSRANGE 0 {last}")));
    assert_eq!(given, b"+OK\r\n");
    let deadline = Instant::now() + DEADLINE;
    while !reply_text(&one(&mut stream, &line("CLUSTER INFO")))
        .unwrap()
        .starts_with(b"cluster_state:ok")
    {
        assert!(Instant::now() < deadline, "the cluster serves");
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

fn keyslot(stream: &mut UnixStream, key: &[u8]) -> u16 {
    let reply = one(stream, &encode_command(&[b"CLUSTER", b"KEYSLOT", key]));
    std::str::from_utf8(reply_text(&reply).unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

fn with_subcommands() -> impl Iterator<Item = &'static CommandInfo> {
    command::all().iter().flat_map(|info| match info.is_container() {
        true => info.subcommands,
        false => std::slice::from_ref(info),
    })
}

/// Commands whose nonsense a node reads in another way than Pulsegate: words in the place of others, a count that is none.
/// Only what the node refuses in any case counts as such.
const LENIENT: &[&str] = &[
    "georadius",
    "georadiusbymember",
    "migrate",
    "xread",
    "xreadgroup",
    "zdiffstore",
    "zinterstore",
    "zunionstore",
];

/// Inside MULTI a node looks at slots and carries nothing out, so every command can be tried.
#[test]
fn routes_and_refusals_are_those_of_a_node() {
    let server = cluster(LAST_OWNED);
    let layout = layout(&[0, 3000, 6000, 9000, 12_000], LAST_OWNED);
    let router = Router::new(layout.clone(), false);
    let mut stream = connect(&server);
    let seed = seed();
    let (mut crossing, mut unowned, mut routed) = (0, 0, 0);
    for (index, info) in with_subcommands()
        .filter(|info| info.keys != KeySet::None)
        .enumerate()
    {
        let mut random = Random(seed.wrapping_add(index as u64));
        let calls = if info.keys == KeySet::First { 10 } else { 100 };
        let frames: Vec<Vec<u8>> = (0..calls)
            .map(|_| {
                let words = call(&mut random, info);
                encode_command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
            })
            .collect();
        let tried: Vec<Vec<u8>> = frames
            .iter()
            .flat_map(|frame| [line("MULTI"), frame.clone(), line("DISCARD")])
            .collect();
        let said = ask(&mut stream, &tried);
        let questions: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| {
                encode_command(
                    &[&b"COMMAND"[..], b"GETKEYS"]
                        .into_iter()
                        .chain(args(frame))
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        let keys = ask(&mut stream, &questions);
        for ((frame, said), keys) in frames.iter().zip(said.chunks_exact(3)).zip(keys) {
            assert_eq!((&said[0][..], &said[2][..]), (&b"+OK\r\n"[..], &b"+OK\r\n"[..]));
            let plan = plan(&router, frame);
            let agrees = match (error_code(&said[1]), &plan) {
                (Some(b"CROSSSLOT"), Plan::Refused(error)) => {
                    crossing += 1;
                    *error == said[1]
                }
                (Some(b"CLUSTERDOWN"), Plan::Refused(error)) => {
                    unowned += 1;
                    *error == said[1]
                }
                (Some(b"CROSSSLOT" | b"CLUSTERDOWN"), _) => false,
                // Newer servers' commands, a wrong number of arguments: any shard says so.
                (Some(_), _) => true,
                // COMMAND GETKEYS knows nothing of sharded channels.
                (None, Plan::One(_)) if matches!(info.keys, KeySet::Routed(_)) => true,
                (None, plan) => {
                    // It says that PFMERGE with one key has none.
                    let alone = args(frame).nth(1).filter(|_| info.name == "pfmerge");
                    let first = reply_elements(&keys).next().and_then(reply_text).or(alone);
                    let owner = first.and_then(|key| layout.owner(keyslot(&mut stream, key)));
                    match (first, plan) {
                        (Some(_), Plan::One(shard)) => {
                            routed += 1;
                            owner == Some(*shard)
                        }
                        (None, Plan::Any) => true,
                        _ => false,
                    }
                }
            };
            let strict = !LENIENT.contains(&info.name);
            // Of several STOREs and STOREDISTs a node takes the last; Pulsegate wants all of them in one slot.
            let stores = args(frame)
                .filter(|word| word.to_ascii_uppercase().starts_with(b"STORE"))
                .count();
            let mut is_nonsense = || stores > 1 || error_code(&one(&mut stream, frame)).is_some();
            assert!(
                agrees || !strict && is_nonsense(),
                "RESP_SEED={seed}: {plan:?} for {}, which answers {}",
                frame.escape_ascii(),
                said[1].escape_ascii()
            );
        }
    }
    assert!(
        crossing > 500 && unowned > 200 && routed > 500,
        "{crossing} {unowned} {routed}"
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Split and joined
// ---------------------------------------------------------------------------------------------------------------------

/// A shard in memory that knows what a node knows: which slots are its own, and that a request has keys of one.
struct InMemory {
    id: ShardId,
    data: HashMap<Vec<u8>, Vec<u8>>,
}

impl InMemory {
    fn answer(&mut self, layout: &Layout, frame: &[u8], resp3: bool) -> Vec<u8> {
        let words: Vec<&[u8]> = args(frame).collect();
        let step = if words[0].eq_ignore_ascii_case(b"MSET") {
            2
        } else {
            1
        };
        let keys: Vec<&[u8]> = words[1..].iter().step_by(step).copied().collect();
        let slots: BTreeSet<u16> = keys.iter().map(|key| slot(key)).collect();
        assert_eq!(
            slots.len(),
            1,
            "a node would say CROSSSLOT to {}",
            frame.escape_ascii()
        );
        assert_eq!(
            slots.first().and_then(|slot| layout.owner(*slot)),
            Some(self.id),
            "a node would say MOVED"
        );
        let count =
            |found: Vec<bool>| format!(":{}\r\n", found.into_iter().filter(|one| *one).count()).into_bytes();
        match words[0].to_ascii_uppercase().as_slice() {
            b"MGET" => {
                let nil = if resp3 { &b"_\r\n"[..] } else { b"$-1\r\n" };
                let value = |key: &&[u8]| match self.data.get(*key) {
                    Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
                    None => nil.to_vec(),
                };
                let values: Vec<Vec<u8>> = keys.iter().map(value).collect();
                [format!("*{}\r\n", keys.len()).as_bytes(), &values.concat()].concat()
            }
            b"EXISTS" | b"TOUCH" => count(keys.iter().map(|key| self.data.contains_key(*key)).collect()),
            b"DEL" | b"UNLINK" => count(keys.iter().map(|key| self.data.remove(*key).is_some()).collect()),
            b"MSET" => {
                let pairs = words[1..].chunks_exact(2);
                self.data
                    .extend(pairs.map(|pair| (pair[0].to_vec(), pair[1].to_vec())));
                b"+OK\r\n".to_vec()
            }
            other => panic!("{}", other.escape_ascii()),
        }
    }
}

/// The parts go to their shards, those of one shard in order; the replies come in any order.
fn carried_out(
    split: Split,
    shards: &mut [InMemory],
    layout: &Layout,
    random: &mut Random,
    resp3: bool,
) -> Vec<u8> {
    let Split { parts, mut joiner } = split;
    assert!(
        parts
            .windows(2)
            .all(|two| (two[0].shard, two[0].slot) < (two[1].shard, two[1].slot))
    );
    let mut replies: Vec<(usize, Vec<u8>)> = parts
        .iter()
        .map(|part| shards[usize::from(part.shard.0)].answer(layout, &part.frame, resp3))
        .enumerate()
        .collect();
    loop {
        let (part, reply) = replies.swap_remove(random.below(replies.len()));
        if let Some(joined) = joiner.put(part, &reply) {
            assert!(replies.is_empty(), "an answer before the last reply");
            return joined.to_vec();
        }
    }
}

#[test]
fn split_requests_are_answered_as_by_one_plain_server() {
    let server = Server::redis();
    let layout = layout(&[0, 5461, 10_923], 16_383);
    let router = Router::new(layout.clone(), true);
    let seed = seed();
    for resp3 in [false, true] {
        let mut shards: Vec<InMemory> = layout
            .shards()
            .map(|(id, _)| InMemory {
                id,
                data: HashMap::new(),
            })
            .collect();
        let mut stream = connect(&server);
        one(&mut stream, &line("FLUSHALL"));
        one(&mut stream, &line(if resp3 { "HELLO 3" } else { "HELLO 2" }));
        let mut random = Random(seed);
        let (mut splits, mut wholes, mut most) = (0, 0, 0);
        for step in 0..3000 {
            let name = random.pick(&["MGET", "mget", "EXISTS", "TOUCH", "DEL", "UNLINK", "MSET", "MSET"]);
            let mut words = vec![name.as_bytes().to_vec()];
            let keys = 1 + if random.below(50) == 0 {
                random.below(400)
            } else {
                random.below(8)
            };
            for _ in 0..keys {
                // Few enough that keys come twice, and slots too.
                words.push(format!("{}{{{}}}", random.below(3), random.below(30)).into_bytes());
                if name == "MSET" {
                    words.push(format!("\r\n{}", random.next()).into_bytes());
                }
            }
            if random.below(40) == 0 {
                words.pop();
            }
            let frame = encode_command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let want = one(&mut stream, &frame);
            let got = match plan(&router, &frame) {
                Plan::Split(split) => {
                    splits += 1;
                    most = most.max(split.parts.len());
                    carried_out(*split, &mut shards, &layout, &mut random, resp3)
                }
                // An odd number of words, or none: any server says so.
                Plan::Any => want.clone(),
                Plan::One(_) if want.starts_with(b"-ERR wrong number") => want.clone(),
                Plan::One(shard) => {
                    wholes += 1;
                    shards[usize::from(shard.0)].answer(&layout, &frame, resp3)
                }
                Plan::Refused(error) => error.to_vec(),
                other => panic!("{other:?}"),
            };
            assert_eq!(
                got.escape_ascii().to_string(),
                want.escape_ascii().to_string(),
                "RESP_SEED={seed}, step {step}: {}",
                frame.escape_ascii()
            );
        }
        assert!(
            splits > 1000 && wholes > 200 && most > 25,
            "{splits} {wholes} {most}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// SCAN
// ---------------------------------------------------------------------------------------------------------------------

struct Walk {
    found: BTreeSet<Vec<u8>>,
    calls: usize,
}

/// Walks to the end; before call `at`, `change` happens, which may give another router.
fn walk(
    streams: &mut [UnixStream],
    mut router: Router,
    at: usize,
    change: impl Fn(&mut [UnixStream]) -> Option<Router>,
) -> Walk {
    let (mut cursor, mut walk) = (
        b"0".to_vec(),
        Walk {
            found: BTreeSet::new(),
            calls: 0,
        },
    );
    loop {
        if walk.calls == at
            && let Some(other) = change(streams)
        {
            router = other;
        }
        let frame = encode_command(&[b"SCAN", &cursor, b"COUNT", b"100"]);
        let Plan::Scan(step) = plan(&router, &frame) else {
            panic!("SCAN is walked")
        };
        let reply = one(&mut streams[usize::from(step.shard.0)], &step.frame);
        let reply = step.reply(&reply);
        let parts: Vec<&[u8]> = reply_elements(&reply).collect();
        walk.found
            .extend(reply_elements(parts[1]).map(|key| reply_text(key).unwrap().to_vec()));
        cursor = reply_text(parts[0]).unwrap().to_vec();
        walk.calls += 1;
        assert!(walk.calls < 1000, "the walk ends");
        if cursor == b"0" {
            return walk;
        }
    }
}

#[test]
fn a_walk_over_several_servers_finds_every_key_even_when_slots_move_meanwhile() {
    let servers: Vec<Server> = (0..3).map(|_| Server::redis()).collect();
    let mut streams: Vec<UnixStream> = servers.iter().map(connect).collect();
    let before = layout(&[0, 5461, 10_923], 16_383);
    // The last shard gives half of its slots to the first two.
    let after = Layout::new(
        before
            .shards()
            .map(|(id, shard)| {
                let mut shard = shard.clone();
                match id.0 {
                    0 => shard.slots.push(SlotRange {
                        first: 10_923,
                        last: 12_000,
                    }),
                    1 => shard.slots.push(SlotRange {
                        first: 12_001,
                        last: 13_500,
                    }),
                    _ => shard.slots[0].first = 13_501,
                }
                shard
            })
            .collect(),
    );
    let keys: BTreeSet<Vec<u8>> = (0..3000).map(|n| format!("key:{n}").into_bytes()).collect();
    let owner = |layout: &Layout, key: &[u8]| usize::from(layout.owner(slot(key)).unwrap().0);
    for (shard, stream) in streams.iter_mut().enumerate() {
        let own = keys.iter().filter(|key| owner(&before, key) == shard);
        let sets: Vec<Vec<u8>> = own.map(|key| encode_command(&[b"SET", key, b"v"])).collect();
        ask(stream, &sets);
    }
    let router = Router::new(before.clone(), true);
    let quiet = walk(&mut streams, router.clone(), 0, |_| None);
    assert_eq!(quiet.found, keys);
    // The first shard's part of the walk is over by then.
    let moved = walk(&mut streams, router, quiet.calls / 2, |streams| {
        for key in &keys {
            let (from, to) = (owner(&before, key), owner(&after, key));
            if from != to {
                one(&mut streams[from], &encode_command(&[b"DEL", key]));
                one(&mut streams[to], &encode_command(&[b"SET", key, b"v"]));
            }
        }
        Some(Router::new(after.clone(), true))
    });
    assert_eq!(moved.found, keys);
    assert!(moved.calls > quiet.calls, "it began anew");
}

// ---------------------------------------------------------------------------------------------------------------------
// What CLUSTER says
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn pulsegate_speaks_of_itself_as_a_node_does() {
    let server = cluster(16_383);
    let router = Router::new(layout(&[0, 5461, 10_923], 16_383), true);
    let itself = Itself {
        host: "127.0.0.1",
        port: 7123,
    };
    let local = |text: &str, resp3| {
        let frame = line(text);
        match plan(&router, &frame) {
            Plan::Local(local) => local.answer(&frame, itself, resp3),
            other => panic!("{text}: {other:?}"),
        }
    };
    let text = |reply: &[u8]| String::from_utf8(reply.to_vec()).unwrap();
    for resp3 in [false, true] {
        let mut stream = connect(&server);
        one(&mut stream, &line(if resp3 { "HELLO 3" } else { "HELLO 2" }));
        let id = text(reply_text(&one(&mut stream, &line("CLUSTER MYID"))).unwrap());
        let own = text(reply_text(&local("CLUSTER MYID", resp3)).unwrap());
        assert!(
            own.len() == id.len() && own.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{own}"
        );
        for question in [
            "CLUSTER SLOTS",
            "CLUSTER SHARDS",
            "CLUSTER NODES",
            "CLUSTER INFO",
            "CLUSTER LINKS",
            "CLUSTER MYID",
            "CLUSTER REPLICAS SELF",
            "CLUSTER SLAVES SELF",
            "CLUSTER REPLICAS nobody",
            "CLUSTER KEYSLOT {foo}bar",
            "READONLY",
            "READWRITE",
            "ASKING",
        ] {
            let theirs = text(&one(&mut stream, &line(&question.replace("SELF", &id))));
            let ours = text(&local(&question.replace("SELF", &own), resp3));
            assert!(!theirs.starts_with("-ERR unknown"), "{theirs}");
            assert_eq!(ours, theirs.replace(&id, &own), "{question}");
        }
    }
}
