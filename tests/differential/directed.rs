//! What random scripts cannot compare: what depends on a second session, on the order of two, or on a replica.

use std::path::Path;
use std::time::Duration;

use pulsegate::resp::{encode_command, reply_text};

use super::gate::Gate;
use super::lane::{Lane, Side, show};
use super::resp_server::{DEADLINE, Server};
use super::script::Random;
use super::{redis, server, url};

/// A session that says one line after the other.
struct Session(Lane);

impl Session {
    fn new(side: &Side) -> Session {
        Session(Lane::connect(side, DEADLINE))
    }

    /// All that comes up to the frame that holds `last`.
    fn hears(&mut self, said: &[u8], last: Option<&str>) -> Vec<String> {
        let frames = self.0.exchange(said, last.map(str::as_bytes), &mut Random(0));
        frames.unwrap().iter().map(|frame| show(frame)).collect()
    }

    /// All that comes of these lines, and of a PING.
    fn says(&mut self, lines: &[&str]) -> Vec<String> {
        let mut bytes: Vec<u8> = lines.iter().flat_map(|line| encoded(line)).collect();
        bytes.extend(encoded("PING ~end"));
        self.hears(&bytes, Some("~end"))
    }
}

fn encoded(line: &str) -> Vec<u8> {
    encode_command(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// The same on both sides.
fn agree(direct: &Server, gate: &Gate, program: impl Fn(&Side) -> Vec<String>) {
    let direct = program(&Side::Direct(direct.socket()));
    let through = program(&Side::Through(gate.addr));
    println!("{direct:#?}");
    assert_eq!(direct, through);
}

#[test]
fn one_session_hears_what_another_does() {
    let (direct, behind) = (redis(&[]), redis(&[]));
    let gate = Gate::start(&url(&behind), "");
    agree(&direct, &gate, |side| {
        let (mut one, mut two) = (Session::new(side), Session::new(side));
        let mut heard = one.says(&["SUBSCRIBE a b", "PSUBSCRIBE a*", "SSUBSCRIBE a"]);
        heard.extend(two.says(&["PUBLISH a 1", "SPUBLISH a 2", "PUBLISH b last"]));
        heard.extend(one.hears(b"", Some("last")));
        heard.extend(one.says(&["UNSUBSCRIBE a b", "PUNSUBSCRIBE a*", "SUNSUBSCRIBE a", "GET x"]));
        heard.extend(two.says(&["PUBLISH a 3"]));
        // A broadcast of invalidations, which a server sends when it has nothing else to do.
        heard.extend(one.says(&["CLIENT SETNAME one"]));
        one.says(&["HELLO 3"]);
        heard.extend(one.says(&["CLIENT TRACKING ON BCAST PREFIX k"]));
        heard.extend(two.says(&["SET k:1 v", "SET other v"]));
        heard.extend(one.hears(b"", Some("k:1")));
        heard.extend(one.says(&["CLIENT TRACKING OFF", "CLIENT GETNAME"]));
        // MONITOR, with what others say in between.
        heard.extend(one.says(&["MONITOR"])[..1].to_vec());
        heard.extend(two.says(&["ECHO ~watched"]));
        let seen = one.hears(b"", Some("~watched"));
        heard.push(seen.last().unwrap().split(']').next_back().unwrap().to_owned());
        heard.push(one.hears(&encoded("RESET"), Some("RESET")).pop().unwrap());
        heard.extend(one.says(&["GET x"]));
        heard
    });
}

#[test]
fn blocked_sessions_are_served_in_turn() {
    let (direct, behind) = (redis(&[]), redis(&[]));
    let gate = Gate::start(&url(&behind), "");
    agree(&direct, &gate, |side| {
        let (mut one, mut two) = (Session::new(side), Session::new(side));
        let id = one.says(&["CLIENT ID"])[0]
            .trim_matches([':', '\\', 'r', 'n'])
            .to_owned();
        // An id that was asked for stays true.
        for _ in 0..3 {
            assert!(
                one.says(&["GET x", "MULTI", "GET x", "EXEC", "CLIENT ID"])
                    .contains(&format!(":{id}\\r\\n"))
            );
        }
        let mut bytes = encoded("BLPOP queue 20");
        bytes.extend(encoded("PING ~end"));
        let pushed = std::thread::spawn({
            let side = side.clone();
            move || {
                let mut three = Session::new(&side);
                until(&mut two, "INFO clients", |info| {
                    info.contains("blocked_clients:1")
                });
                three.says(&["RPUSH queue item", "GET x"])
            }
        });
        let mut heard = one.hears(&bytes, Some("~end"));
        heard.extend(pushed.join().unwrap());
        let unblocked = std::thread::spawn({
            let side = side.clone();
            move || {
                let mut two = Session::new(&side);
                until(&mut two, "INFO clients", |info| {
                    info.contains("blocked_clients:1")
                });
                two.says(&[
                    &format!("CLIENT UNBLOCK {id} ERROR"),
                    &format!("CLIENT UNBLOCK {id}"),
                ])
            }
        });
        heard.extend(one.hears(&bytes, Some("~end")));
        heard.extend(unblocked.join().unwrap());
        heard
    });
}

/// Asks until the answer is right.
fn until(session: &mut Session, question: &str, is_right: impl Fn(&str) -> bool) {
    let begun = super::now();
    loop {
        let mut bytes = encoded(question);
        bytes.extend(encoded("PING ~end"));
        let frames = session.0.exchange(&bytes, Some(b"~end"), &mut Random(0)).unwrap();
        let info = String::from_utf8_lossy(reply_text(&frames[0]).unwrap()).into_owned();
        if is_right(&info) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "{question} goes on to say {info}");
    }
}

/// WAIT speaks of the writes of its own connection, which here have gone over another.
#[test]
fn wait_is_for_the_sessions_writes() {
    let replicated = || {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let master = server(Path::new("redis-server"), &["--port", &port]);
        let replica = server(Path::new("redis-server"), &["--replicaof", "127.0.0.1", &port]);
        (master, replica)
    };
    let ((direct, direct_replica), (behind, behind_replica)) = (replicated(), replicated());
    let gate = Gate::start(&url(&behind), "");
    for (side, replica) in [
        (Side::Direct(direct.socket()), &direct_replica),
        (Side::Through(gate.addr), &behind_replica),
    ] {
        let mut session = Session::new(&side);
        let begun = super::now();
        while session.says(&["SET k v", "WAIT 1 500"])[1] != ":1\\r\\n" {
            assert!(begun.elapsed() < DEADLINE, "the replica never follows {side:?}");
        }
        // A fresh session, whose writes share a link; one of its own it has given back before the last of them.
        let mut session = Session::new(&side);
        session.says(&["SET k v"]);
        until(&mut session, "INFO replication", |info| {
            let number = |label: &str| {
                let behind = info.split(label).nth(1).unwrap_or_default();
                behind.split([',', '\r']).next().unwrap_or_default().to_owned()
            };
            number(",offset=") == number("master_repl_offset:")
        });
        session.says(&["MULTI", "EXEC", "GET k"]);
        // From here on the replica hears nothing.
        replica.signal("-STOP");
        let heard = session.says(&["SET k w", "WAIT 1 100", "GET k"]);
        replica.signal("-CONT");
        assert_eq!(
            heard[..3],
            ["+OK\\r\\n", ":0\\r\\n", "$1\\r\\nw\\r\\n"],
            "{side:?}"
        );
    }
}

/// Nobody who has not logged in can close what others share.
#[test]
fn strangers_are_refused_as_the_server_does() {
    let (direct, behind) = (
        redis(&["--requirepass", "secret"]),
        redis(&["--requirepass", "secret"]),
    );
    // Its operators have forgotten the password; the applications have not.
    let gate = Gate::start(&url(&behind), "");
    agree(&direct, &gate, |side| {
        let mut first = Session::new(side);
        let mut heard = first.hears(&encoded("GET x"), Some("NOAUTH"));
        let mut stranger = Session::new(side);
        heard.extend(stranger.hears(&encoded("MSET a b c d e f g h i j k l"), None));
        let mut stranger = Session::new(side);
        heard.extend(stranger.hears(&encoded(&format!("SET a {}", "x".repeat(17_000))), None));
        heard.extend(first.hears(&encoded("GET y"), Some("NOAUTH")));
        heard.extend(first.hears(&encoded("AUTH wrong"), Some("WRONGPASS")));
        heard.extend(first.hears(&encoded("AUTH secret"), Some("OK")));
        heard.extend(first.says(&["MSET a b c d e f g h i j k l", "GET a", "SELECT 2", "GET a"]));
        heard.extend(first.hears(&encoded("RESET"), Some("RESET")));
        heard.extend(first.hears(&encoded("GET a"), Some("NOAUTH")));
        heard
    });
}

/// A comparison that could not fail would be worth nothing: here one side lacks a command.
#[test]
fn a_difference_is_found() {
    let (direct, behind) = (redis(&[]), redis(&["--rename-command", "GETDEL", "NO"]));
    let gate = Gate::start(&url(&behind), "");
    let sides = [Side::Direct(direct.socket()), Side::Through(gate.addr)];
    let say = |line: &str| super::Step::Say(line.split(' ').map(|w| w.as_bytes().to_vec()).collect());
    let steps = [
        say("set {P}a 1"),
        say("get {P}a"),
        say("getdel {P}a"),
        say("get {P}a"),
        super::Step::Wait,
    ];
    let found = super::run(&steps, "p", 0, &sides, Duration::from_secs(5));
    assert!(found.unwrap_err().said.starts_with("frame 2 of 5"));
    let (shortest, _) = super::shrink(steps.to_vec(), 0, 0, &sides);
    assert_eq!(shortest, [say("getdel {P}a"), super::Step::Wait]);
}
