//! Real client libraries and programs, unmodified: the same program is run against a server directly and through Pulsegate,
//! and what it says must agree. `make test` installs what they need.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gate.rs"]
mod gate;
#[path = "support/python.rs"]
mod python;
#[path = "clients/redis_rs.rs"]
mod redis_rs;
#[path = "support/resp_server.rs"]
mod resp_server;
#[path = "clients/sharded.rs"]
mod sharded;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use gate::Gate;
use resp_server::Server;

/// A server, and Pulsegate in front of another one.
struct World {
    _servers: [Server; 2],
    _gate: Gate,
    ports: [u16; 2],
}

impl World {
    fn new(toml: &str) -> World {
        let (direct, direct_port) = listening();
        let (behind, behind_port) = listening();
        let gate = Gate::start(&format!("url = \"redis://127.0.0.1:{behind_port}\""), toml);
        World {
            ports: [direct_port, gate.addr.port()],
            _servers: [direct, behind],
            _gate: gate,
        }
    }

    /// What a program says on both sides agrees, and it comes to its end.
    fn agrees(&self, program: impl Fn(u16) -> String) {
        let [direct, through] = self.ports.map(program);
        agree(&direct, &through);
    }
}

/// Both transcripts are the same, and whole.
fn agree(direct: &str, through: &str) {
    println!("{direct}");
    let mut lines = direct.lines().zip(through.lines());
    if let Some((direct, through)) = lines.find(|(direct, through)| direct != through) {
        panic!("direct:  {direct}\nthrough: {through}");
    }
    assert_eq!(direct.lines().count(), through.lines().count());
    let last = direct.trim_end().trim_end_matches(['"', '\'']);
    assert!(last.ends_with("reached"), "it does not come to its end");
}

fn listening() -> (Server, u16) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    (
        Server::start(Path::new("redis-server"), &["--port", &port.to_string()]),
        port,
    )
}

/// What a program said; one that fails fails the test.
fn said(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{said}\n{complained}");
    said.into_owned()
}

fn clients() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn node(program: &str, port: u16, protocol: &str, words: &[&str]) -> String {
    let installed = clients().join("node_modules/.package-lock.json");
    assert!(
        installed.is_file(),
        "{} is missing: run make test",
        installed.display()
    );
    let mut node = Command::new("node");
    node.arg(clients().join(program))
        .args([&port.to_string(), protocol]);
    said(node.args(words))
}

fn redis_py(kind: &str, port: u16, protocol: &str, words: &[&str]) -> String {
    let mut python = python::run("tests/clients/redis_py.py");
    python.args([&port.to_string(), kind, protocol]);
    said(python.args(words))
}

#[test]
fn redis_py_resp2() {
    World::new("").agrees(|port| redis_py("sync", port, "2", &[]));
}

#[test]
fn redis_py_resp3() {
    World::new("").agrees(|port| redis_py("sync", port, "3", &[]));
}

#[test]
fn redis_py_asyncio_resp2() {
    World::new("").agrees(|port| redis_py("async", port, "2", &[]));
}

#[test]
fn redis_py_asyncio_resp3() {
    World::new("").agrees(|port| redis_py("async", port, "3", &[]));
}

#[test]
fn redis_py_dedicated() {
    World::new("[upstream]\nmode = \"dedicated\"\n").agrees(|port| redis_py("sync", port, "3", &[]));
}

#[test]
fn node_redis_resp2() {
    World::new("").agrees(|port| node("node_redis.mjs", port, "2", &[]));
}

#[test]
fn node_redis_resp3() {
    World::new("").agrees(|port| node("node_redis.mjs", port, "3", &[]));
}

#[test]
fn ioredis_resp2() {
    World::new("").agrees(|port| node("ioredis.mjs", port, "2", &[]));
}

#[test]
fn ioredis_resp3() {
    World::new("").agrees(|port| node("ioredis.mjs", port, "3", &[]));
}

#[test]
fn redis_cli() {
    let world = World::new("");
    let script = std::fs::read_to_string(clients().join("redis_cli.txt")).unwrap();
    for options in [&[][..], &["-3"], &["--no-raw"], &["-3", "--json"], &["-n", "5"]] {
        world.agrees(|port| piped(port, options, script.as_bytes()) + "reached\n");
    }
}

#[test]
fn redis_cli_mass_insertion() {
    let world = World::new("");
    let mut commands = Vec::new();
    for n in 0..50_000 {
        let key = format!("mass:{}", n % 1000);
        commands.extend(pulsegate::resp::encode_command(&[b"INCR", key.as_bytes()]));
    }
    world.agrees(|port| {
        let said = piped(port, &["--pipe"], &commands);
        let sum = piped(port, &[], b"get mass:0\nget mass:999\ndel mass:0\n");
        format!("{said}{sum}reached\n")
    });
}

fn piped(port: u16, options: &[&str], input: &[u8]) -> String {
    let mut cli = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cli.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let out = cli.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    })
}

#[test]
fn redis_benchmark() {
    let world = World::new("");
    for options in [&[][..], &["-P", "16"], &["-3"], &["-d", "400", "-r", "1000"]] {
        let mut tests = Vec::new();
        for port in world.ports {
            let mut benchmark = Command::new("redis-benchmark");
            benchmark.args(["-p", &port.to_string(), "-n", "1000", "-c", "20", "--csv"]);
            let out = benchmark.args(options).output().unwrap();
            let (said, complained) = (
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr),
            );
            assert!(
                out.status.success(),
                "{options:?}: {}\n{said}\n{complained}",
                out.status
            );
            assert!(
                !said.contains("Error") && !complained.contains("Error"),
                "{said}\n{complained}"
            );
            let names = said
                .lines()
                .skip(1)
                .map(|line| line.split("\",").next().unwrap_or_default().to_owned());
            tests.push(names.collect::<Vec<_>>());
        }
        assert!(tests[0].len() > 15, "{tests:?}");
        assert_eq!(tests[0], tests[1]);
    }
}

/// The `redis` crate.
#[test]
fn redis_rs_resp2() {
    World::new("").agrees(|port| redis_rs::plain(port, "resp2", &[]).unwrap());
}

#[test]
fn redis_rs_resp3() {
    World::new("").agrees(|port| redis_rs::plain(port, "resp3", &[]).unwrap());
}
