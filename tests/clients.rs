//! Real client libraries and programs, unmodified: the same program is run against a server directly and through Pulsegate,
//! and what it says must agree. `make test` installs what they need.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gate.rs"]
mod gate;
#[path = "support/python.rs"]
mod python;
#[path = "support/resp_server.rs"]
mod resp_server;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use gate::Gate;
use redis::{Commands, PushInfo, RedisResult, Value};
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
        println!("{direct}");
        let mut lines = direct.lines().zip(through.lines());
        if let Some((direct, through)) = lines.find(|(direct, through)| direct != through) {
            panic!("direct:  {direct}\nthrough: {through}");
        }
        assert_eq!(direct.lines().count(), through.lines().count());
        let last = direct.trim_end().trim_end_matches(['"', '\'']);
        assert!(last.ends_with("reached"), "it does not come to its end");
    }
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

fn node(program: &str, protocol: &str) {
    let installed = clients().join("node_modules/.package-lock.json");
    assert!(
        installed.is_file(),
        "{} is missing: run make test",
        installed.display()
    );
    World::new("").agrees(|port| {
        let mut node = Command::new("node");
        said(
            node.arg(clients().join(program))
                .args([&port.to_string(), protocol]),
        )
    });
}

fn redis_py(kind: &str, protocol: &str, toml: &str) {
    World::new(toml).agrees(|port| {
        let mut python = python::run("tests/clients/redis_py.py");
        said(python.args([&port.to_string(), kind, protocol]))
    });
}

#[test]
fn redis_py_resp2() {
    redis_py("sync", "2", "");
}

#[test]
fn redis_py_resp3() {
    redis_py("sync", "3", "");
}

#[test]
fn redis_py_asyncio_resp2() {
    redis_py("async", "2", "");
}

#[test]
fn redis_py_asyncio_resp3() {
    redis_py("async", "3", "");
}

#[test]
fn redis_py_dedicated() {
    redis_py("sync", "3", "[upstream]\nmode = \"dedicated\"\n");
}

#[test]
fn node_redis_resp2() {
    node("node_redis.mjs", "2");
}

#[test]
fn node_redis_resp3() {
    node("node_redis.mjs", "3");
}

#[test]
fn ioredis_resp2() {
    node("ioredis.mjs", "2");
}

#[test]
fn ioredis_resp3() {
    node("ioredis.mjs", "3");
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
    World::new("").agrees(|port| redis_rs(port, "resp2").unwrap());
}

#[test]
fn redis_rs_resp3() {
    World::new("").agrees(|port| redis_rs(port, "resp3").unwrap());
}

fn redis_rs(port: u16, protocol: &str) -> RedisResult<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/?protocol={protocol}"))?;
    let mut said = String::new();
    let mut say = |label: &str, what: &dyn std::fmt::Debug| {
        let _ = writeln!(said, "{label}: {what:?}");
    };
    let mut c = client.get_connection()?;
    c.set_read_timeout(Some(Duration::from_secs(20)))?;
    say("set", &c.set::<_, _, Value>("text", "value")?);
    say("get", &c.get::<_, Value>("text")?);
    say("missing", &c.get::<_, Value>("missing")?);
    say("list", &c.rpush::<_, _, Value>("list", &[1, 2, 3])?);
    say(
        "hash",
        &c.hset_multiple::<_, _, _, Value>("hash", &[("f", "v"), ("g", "w")])?,
    );
    say("hash", &c.hgetall::<_, Value>("hash")?);
    say("zset", &c.zadd::<_, _, _, Value>("scores", "a", 1.5)?);
    say("score", &c.zscore::<_, _, Value>("scores", "a")?);
    say(
        "wrong type",
        &c.lpush::<_, _, Value>("text", "x").map_err(|e| e.to_string()),
    );
    say(
        "unknown",
        &redis::cmd("NOSUCH")
            .query::<Value>(&mut c)
            .map_err(|e| e.to_string()),
    );
    let mut pipe = redis::pipe();
    for n in 0..100 {
        pipe.rpush("piped", n).ignore();
    }
    say("pipeline", &pipe.llen("piped").query::<Value>(&mut c)?);
    let transaction = redis::pipe()
        .atomic()
        .incr("count", 1)
        .get("count")
        .query::<Value>(&mut c)?;
    say("transaction", &transaction);
    let mut other = client.get_connection()?;
    let mut rounds = 0;
    let watched: Value = redis::transaction(&mut c, &["guarded"], |c, pipe| {
        rounds += 1;
        if rounds == 1 {
            other.set::<_, _, ()>("guarded", "theirs")?;
        }
        let before: Option<String> = c.get("guarded")?;
        pipe.set("guarded", format!("{before:?}, mine"))
            .get("guarded")
            .query(c)
    })?;
    say("watch", &(rounds, watched));
    say(
        "eval",
        &redis::cmd("EVAL")
            .arg("return {1, 'two', {3}}")
            .arg(0)
            .query::<Value>(&mut c)?,
    );
    say("blpop", &c.blpop::<_, Value>("list", 1.0)?);
    say("blpop in vain", &c.blpop::<_, Value>("nothing", 0.05)?);
    let mut names: Vec<String> = c.scan_match::<_, String>("*i*")?.collect::<RedisResult<_>>()?;
    names.sort();
    say("scan", &names);
    {
        let mut ear = c.as_pubsub();
        ear.subscribe(&["news", "more"])?;
        ear.psubscribe("ne*")?;
        say("publish", &other.publish::<_, _, Value>("news", "text")?);
        for _ in 0..2 {
            let message = ear.get_message()?;
            let pattern: Option<String> = message.get_pattern()?;
            say(
                "heard",
                &(
                    pattern,
                    message.get_channel_name(),
                    message.get_payload::<String>()?,
                ),
            );
        }
        ear.unsubscribe("news")?;
    }
    say("after the subscription", &c.get::<_, Value>("text")?);
    aio(&client, &mut say)?;
    say("end", &"reached");
    Ok(said)
}

/// One connection that many tasks share, with pushes in RESP3.
fn aio(client: &redis::Client, say: &mut impl FnMut(&str, &dyn std::fmt::Debug)) -> RedisResult<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (pushes, mut pushed) = tokio::sync::mpsc::unbounded_channel::<PushInfo>();
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(20)))
            .set_response_timeout(Some(Duration::from_secs(20)));
        let resp3 = client.get_connection_info().redis_settings().protocol() == redis::ProtocolVersion::RESP3;
        let config = if resp3 {
            config.set_push_sender(pushes)
        } else {
            config
        };
        let mut c = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let mut c = c.clone();
            tasks.spawn(async move {
                redis::cmd("INCR")
                    .arg("together")
                    .query_async::<i64>(&mut c)
                    .await
            });
        }
        let mut most = 0;
        while let Some(n) = tasks.join_next().await {
            most = most.max(n.unwrap()?);
        }
        say("at once", &most);
        if resp3 {
            c.subscribe("shared").await?;
            say(
                "publish",
                &redis::cmd("PUBLISH")
                    .arg("shared")
                    .arg("x")
                    .query_async::<Value>(&mut c)
                    .await?,
            );
            for _ in 0..2 {
                let push = tokio::time::timeout(Duration::from_secs(20), pushed.recv()).await;
                let push = push.expect("in time").expect("the connection lives");
                say("push", &(push.kind, push.data));
            }
            say(
                "beside it",
                &redis::cmd("GET").arg("text").query_async::<Value>(&mut c).await?,
            );
        }
        Ok(())
    })
}
