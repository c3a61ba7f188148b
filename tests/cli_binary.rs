//! The command line through the real binary: what it prints, and how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Longest wait for anything in here.
const PATIENCE: Duration = Duration::from_secs(20);

fn pulsegate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

/// How it ended, and what it printed.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn run(args: &[&str]) -> Ended {
    pulsegate(args)
        .output()
        .expect("the binary can be started")
        .into()
}

fn file(text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("p.toml");
    std::fs::write(&path, text).expect("the file can be written");
    let path = path.to_str().expect("temporary folders are UTF-8").to_owned();
    (folder, path)
}

/// An address at which nobody listens.
fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

// ---------------------------------------------------------------------------------------------------------------------
// check, and what every command has
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn help_and_version_end_well_and_teach() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0), "{}", help.err);
    for verb in [
        "run", "check", "status", "switch", "pin", "unpin", "failback", "hold", "resume", "events",
    ] {
        assert!(
            help.out.contains(&format!("\n  {verb} ")),
            "{verb} is not in\n{}",
            help.out
        );
        let help = run(&[verb, "--help"]);
        assert_eq!(help.code, Some(0), "{verb}: {}", help.err);
        assert!(help.out.contains("Usage: pulsegate "), "{verb}: {}", help.out);
    }
    for verb in ["run", "check", "status", "switch"] {
        let help = run(&[verb, "--help"]);
        assert!(
            help.out.contains(&format!("Examples:\n  pulsegate {verb}")),
            "{}",
            help.out
        );
    }
    let version = run(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert_eq!(version.out, format!("pulsegate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    for args in [
        &[][..],
        &["swich"],
        &["run", "--replicas", "a=redis://a"],
        &["switch"],
        &["status", "extra"],
    ] {
        let ended = run(args);
        assert_eq!(ended.code, Some(64), "{args:?}: {}", ended.err);
        assert!(
            ended.out.is_empty() && ended.err.contains("Usage: "),
            "{args:?}: {}",
            ended.err
        );
    }
}

#[test]
fn check_prints_a_summary_of_a_good_configuration() {
    let minimal = concat!(env!("CARGO_MANIFEST_DIR"), "/config/minimal.toml");
    let ended = run(&["check", "--config", minimal]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    let want = "\
configuration is good
listener   127.0.0.1:6379; at most 10000 clients, 1 worker
replica    local at redis://127.0.0.1:6381; weight 100, preferred
replica    remote at redis://127.0.0.1:6382; weight 99
detection  heartbeats every 500ms, silent after 3s, probes every 1s; connect within 1s (3 refusals are a verdict), \
answer within 5s; channels pulsegate…
failover   fence within 1s, else abort; 10s between switches; when isolated stay
failback   reads in steps of [10, 50, 100] % for 30s, then writes, after 1m of proof; lag up to 500ms is in sync
hold       2s for at most 10000 commands and 64MiB
admin      http://127.0.0.1:9379; no token; pins do not survive a restart
log        text, info
";
    assert_eq!(ended.out, want);
    // The file can be named in the environment, and without any file flags are enough.
    let ended: Ended = pulsegate(&["check"])
        .env("PULSEGATE_CONFIG", minimal)
        .output()
        .expect("it starts")
        .into();
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), want));
    let ended = run(&[
        "check",
        "--listen",
        "127.0.0.1:0",
        "--replica",
        "a=redis://u:hunter2@a",
        "--replica",
        "b=redis://b",
    ]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(
        ended
            .out
            .contains("replica    a at redis://a:6379 as u; weight 100, preferred\n"),
        "{}",
        ended.out
    );
    assert!(!ended.out.contains("hunter2"), "{}", ended.out);
}

#[test]
fn a_bad_configuration_ends_with_64_and_every_problem() {
    let (_folder, path) =
        file("[listener]\nworkrs = 1\n[[replica]]\nname = \"a\"\nurl = \"redis://a\"\nweight = \"x\"\n");
    let want = format!(
        "pulsegate: error: 3 problems in the configuration\n\
         {path}:2: listener.workrs: unknown key; did you mean \"workers\"?\n\
         {path}:6: replica[0].weight = \"x\": a string where a whole number is needed, from 1 to 1000000\n\
         PULSEGATE_HOLD__TIMEOUT: hold.timeout = \"2\": a duration needs a unit; write e.g. \"250ms\", \"3s\", \"1m\"\n"
    );
    for verb in ["check", "run"] {
        let ended: Ended = pulsegate(&[verb, "--config", &path])
            .env("PULSEGATE_HOLD__TIMEOUT", "2")
            .output()
            .expect("it starts")
            .into();
        assert_eq!((ended.code, ended.out.as_str()), (Some(64), ""), "{verb}");
        assert_eq!(ended.err, want, "{verb}");
    }
    let ended = run(&["run"]);
    assert_eq!(ended.code, Some(64));
    assert!(ended.err.contains("at least one is needed"), "{}", ended.err);
}

#[test]
fn what_works_but_perhaps_not_as_wished_is_a_warning() {
    let ended = run(&["check", "--replica", "a=redis://a"]);
    assert_eq!(ended.code, Some(0));
    assert_eq!(
        ended.err,
        "pulsegate: warning: --replica: replica[0].url = \"redis://a\": the only replica: there is nothing to fail \
         over to\n"
    );
}

/// The first line that `run` logs: with one replica, a warning. It is stopped then.
fn first_log_line(more: &[&str]) -> String {
    let mut args = vec![
        "run",
        "--replica",
        "a=redis://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    args.extend(more);
    let mut child = pulsegate(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let err = child.stderr.take().expect("it is piped");
    let (found, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(err).read_line(&mut line);
        let _ = found.send(line);
    });
    let line = line.recv_timeout(PATIENCE);
    let _ = child.kill();
    let _ = child.wait();
    line.expect("it logs something")
}

#[test]
fn the_log_is_lines_with_a_time_as_text_or_json() {
    let warning = "the only replica: there is nothing to fail over to";
    let line = first_log_line(&[]);
    let (time, rest) = line.split_once(' ').expect("a time and more");
    assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
    assert!(
        rest.trim_start().starts_with("WARN ") && rest.contains(warning),
        "{line}"
    );

    let line = first_log_line(&["--log-format", "json"]);
    let object: serde_json::Value = serde_json::from_str(&line).expect("one JSON object a line");
    assert!(
        humantime::parse_rfc3339(object["timestamp"].as_str().unwrap_or_default()).is_ok(),
        "{line}"
    );
    assert_eq!(object["level"], "WARN");
    assert!(
        object["message"]
            .as_str()
            .is_some_and(|text| text.contains(warning)),
        "{line}"
    );
}

#[test]
fn an_address_in_use_ends_with_71_and_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    // Without the level, the warning about the only replica would come first.
    let ended = run(&[
        "run",
        "--replica",
        "a=redis://127.0.0.1:1",
        "--listen",
        &address,
        "--admin",
        "127.0.0.1:0",
        "--log-level",
        "error",
    ]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(71), ""), "{}", ended.err);
    assert!(ended.err.starts_with("pulsegate: error: "), "{}", ended.err);
    assert!(
        ended.err.contains(&address) && ended.err.lines().count() == 1,
        "{}",
        ended.err
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// check --connect, with a real server
// ---------------------------------------------------------------------------------------------------------------------

/// A `redis-server` on a unix socket; ends with this value.
struct Redis {
    child: Child,
    folder: TempDir,
}

impl Redis {
    fn start(options: &[&str]) -> Redis {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
                "r.sock",
            ])
            .args(options)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is installed (apt-get install redis-server)");
        let out = child.stdout.take().expect("it is piped");
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end, so that the server never waits for its log.
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.to_lowercase().contains("ready to accept connections") {
                    let _ = ready.send(());
                }
            }
        });
        let redis = Redis { child, folder };
        is_ready
            .recv_timeout(PATIENCE)
            .expect("redis-server says that it is ready");
        redis
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("r.sock")
    }

    /// `check --connect` with this server as the replica `a`.
    fn check(&self, more: &str) -> Ended {
        let (_folder, path) = file(&format!(
            "[[replica]]\nname = \"a\"\nurl = \"unix:{}\"\n{more}",
            self.socket().display()
        ));
        run(&["check", "--connect", "--config", &path])
    }

    fn password_file(&self, password: &str) -> String {
        let path = self.folder.path().join("password");
        std::fs::write(&path, password).expect("the file can be written");
        format!("password_file = \"{}\"", path.display())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn connect_proves_a_replica_that_works() {
    let redis = Redis::start(&["--requirepass", "hunter2"]);
    let ended = redis.check(&redis.password_file("hunter2\n"));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let line = ended.out.lines().last().unwrap_or_default();
    assert!(line.starts_with("connected  a: connected in "), "{line}");
    assert!(line.contains(" ms, AUTH, PING "), "{line}");
    assert!(line.ends_with(" ms, write, publish and subscribe"), "{line}");
}

#[test]
fn connect_says_which_step_fails_and_why() {
    let failed = |ended: &Ended, want: &str| {
        assert_eq!(ended.code, Some(69), "{}", ended.err);
        assert!(
            ended
                .err
                .contains("pulsegate: error: 1 of 1 replicas cannot be used\nreplica a at unix:"),
            "{}",
            ended.err
        );
        assert!(ended.err.contains(want), "{}", ended.err);
        assert!(!ended.err.contains("hunter"), "{}", ended.err);
    };
    let redis = Redis::start(&["--requirepass", "hunter2"]);
    failed(
        &redis.check(&redis.password_file("hunter3")),
        ": AUTH failed: WRONGPASS ",
    );
    failed(&redis.check(""), ": PING failed: NOAUTH ");
    drop(redis);

    let stale = Redis::start(&["--min-replicas-to-write", "99"]);
    failed(&stale.check(""), ": a write failed: NOREPLICAS ");
    drop(stale);

    let deaf = Redis::start(&[
        "--user",
        "default",
        "on",
        "nopass",
        "+@all",
        "~*",
        "resetchannels",
    ]);
    failed(&deaf.check(""), ": SUBSCRIBE failed: NOPERM ");
    let probing = Redis::start(&[
        "--user",
        "default",
        "on",
        "nopass",
        "+@all",
        "~pulsegate:*",
        "&pulsegate:*",
    ]);
    let ended = probing.check("");
    assert_eq!(
        ended.code,
        Some(0),
        "the documented permissions are enough: {}",
        ended.err
    );
}

#[test]
fn connect_reports_every_replica_that_is_not_one() {
    // One refuses, one speaks something else, one accepts and says nothing.
    let refused = closed_port();
    let web = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (web_at, silent_at) = (
        web.local_addr().expect("it is bound"),
        silent.local_addr().expect("it is bound"),
    );
    thread::spawn(move || {
        for mut stream in web.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let (_folder, path) = file(&format!(
        "[detection]\nresponse_timeout = \"300ms\"\n[[replica]]\nname = \"a\"\nurl = \"redis://{refused}\"\n\
         [[replica]]\nname = \"b\"\nurl = \"redis://{web_at}\"\n[[replica]]\nname = \"c\"\nurl = \"redis://{silent_at}\"\n"
    ));
    let ended = run(&["check", "--connect", "--config", &path]);
    assert_eq!(ended.code, Some(69), "{}", ended.err);
    let lines: Vec<&str> = ended.err.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[0], "pulsegate: error: 3 of 3 replicas cannot be used");
    assert!(
        lines[1].starts_with(&format!("replica a at redis://{refused}: cannot connect to ")),
        "{lines:?}"
    );
    assert_eq!(
        lines[2],
        format!(
            "replica b at redis://{web_at}: PING failed: the answer is not the Redis protocol: is this a Redis?"
        )
    );
    assert_eq!(
        lines[3],
        format!("replica c at redis://{silent_at}: PING failed: no answer in time")
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// The admin API's client, with a server made of fixed answers
// ---------------------------------------------------------------------------------------------------------------------

/// One request as it arrived: its head in one line each, and its body.
#[derive(Debug)]
struct Asked {
    head: Vec<String>,
    body: String,
}

/// Answers the first requests with `answers`, in order; reports each request.
fn server(answers: Vec<(u16, String)>) -> (SocketAddr, mpsc::Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (asked, requests) = mpsc::channel();
    thread::spawn(move || {
        for (code, body) in answers {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            let _ = asked.send(answer(stream, code, &body));
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream, code: u16, body: &str) -> Asked {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket can be shared"));
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line).unwrap_or(0);
        if read == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let length = head
        .iter()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut asked = vec![0; length];
    reader
        .read_exact(&mut asked)
        .expect("the body that was announced");
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {code} X\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Asked {
        head,
        body: String::from_utf8_lossy(&asked).into_owned(),
    }
}

fn status(active: &str, holding: bool) -> String {
    format!(
        r#"{{"epoch":2,"active":"{active}","read":{{"{active}":100}},"holding":{holding},"pinned":null,"tilt":false,
        "replicas":[{{"name":"{active}","health":"healthy","fitness":"in_sync","reason":"fresh","since":1,"rtt_ms":0.5,
        "shards":[],"links":[]}}],"last_switches":[]}}"#
    )
}

fn ok(message: &str) -> (u16, String) {
    (200, format!(r#"{{"ok":true,"message":"{message}"}}"#))
}

#[test]
fn without_an_admin_server_the_clients_end_with_69_and_one_line() {
    let nobody = closed_port();
    let url = format!("http://{nobody}");
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["switch", "a"],
        &["pin", "a"],
        &["unpin"],
        &["failback"],
        &["hold"],
        &["resume"],
        &["events"],
    ] {
        let mut args = args.to_vec();
        args.extend(["--admin", &url]);
        let ended = run(&args);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (Some(69), ""),
            "{args:?}: {}",
            ended.err
        );
        let want = format!("pulsegate: error: no answer from the admin server at {url}: Connection refused");
        assert!(
            ended.err.starts_with(&want) && ended.err.lines().count() == 1,
            "{args:?}: {}",
            ended.err
        );
    }
    let ended = run(&["healthcheck", "--admin", &url]);
    assert_eq!(ended.code, Some(1), "a health check only knows yes and no");
    // Where it is, the environment that configured it says as well.
    let ended: Ended = pulsegate(&["status"])
        .env("PULSEGATE_ADMIN__BIND", nobody.to_string())
        .output()
        .expect("it starts")
        .into();
    assert_eq!(ended.code, Some(69));
    assert!(ended.err.contains(&nobody.to_string()), "{}", ended.err);
    assert_eq!(run(&["status", "--admin", "https://127.0.0.1:1"]).code, Some(64));
}

#[test]
fn status_is_a_table_or_the_json_as_it_is() {
    let (at, requests) = server(vec![(200, status("a", false)), (200, status("a", true))]);
    let ended = run(&["status", "--admin", &at.to_string()]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(
        ended.out.starts_with("active a, reads a 100 %, epoch 2\n"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.contains("\n*  a        healthy  in_sync  0.5 ms"),
        "{}",
        ended.out
    );
    let ended = run(&["status", "--json", "--admin", &at.to_string()]);
    assert_eq!(ended.out, format!("{}\n", status("a", true)));
    let asked = requests.recv_timeout(PATIENCE).expect("it was asked");
    assert_eq!(asked.head[0], "GET /status HTTP/1.1");
    assert!(asked.head.contains(&format!("host: {at}")), "{asked:?}");
}

#[test]
fn something_else_at_the_address_is_told_from_an_admin_server() {
    for (code, body) in [(404, "not found"), (200, "<html>"), (200, "{}")] {
        let (at, _requests) = server(vec![(code, body.to_owned())]);
        let ended = run(&["status", "--admin", &at.to_string()]);
        assert_eq!((ended.code, ended.out.as_str()), (Some(69), ""), "{body}");
        assert!(
            ended
                .err
                .starts_with("pulsegate: error: no answer from the admin server at "),
            "{}",
            ended.err
        );
    }
}

#[test]
fn each_verb_asks_as_the_admin_server_expects() {
    for (args, path, body) in [
        (
            &["switch", "b", "--reason", "work"][..],
            "/switch",
            r#"{"reason":"work","to":"b"}"#,
        ),
        (&["switch", "b"], "/switch", r#"{"reason":"","to":"b"}"#),
        (&["pin", "b"], "/pin", r#"{"replica":"b"}"#),
        (&["unpin"], "/unpin", "{}"),
        (&["failback"], "/failback", "{}"),
        (&["hold"], "/hold", "{}"),
        (&["resume"], "/resume", "{}"),
    ] {
        let (at, requests) = server(vec![ok("as you wish")]);
        let at = at.to_string();
        let mut args = args.to_vec();
        args.extend(["--admin", &at]);
        let ended = run(&args);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (Some(0), "as you wish\n"),
            "{args:?}: {}",
            ended.err
        );
        let asked = requests.recv_timeout(PATIENCE).expect("it was asked");
        assert_eq!(asked.head[0], format!("POST {path} HTTP/1.1"));
        assert_eq!(asked.body, body);
        assert!(
            asked.head.contains(&"content-type: application/json".to_owned()),
            "{asked:?}"
        );
        assert!(
            !asked.head.iter().any(|line| line.starts_with("authorization")),
            "{asked:?}"
        );
    }
}

#[test]
fn a_refusal_is_told_with_its_reason_and_its_own_exit_code() {
    for (code, exit) in [
        (409, 1),
        (404, 1),
        (400, 64),
        (401, 77),
        (403, 77),
        (503, 69),
        (504, 69),
    ] {
        let (at, _requests) = server(vec![(code, r#"{"ok":false,"error":"b is down"}"#.to_owned())]);
        let ended = run(&["switch", "b", "--admin", &at.to_string()]);
        assert_eq!((ended.code, ended.out.as_str()), (Some(exit), ""), "{code}");
        assert_eq!(ended.err, "pulsegate: error: b is down\n", "{code}");
    }
}

#[test]
fn the_token_comes_from_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("token");
    std::fs::write(&path, "t0ken\n").expect("the file can be written");
    let path = path.to_str().expect("temporary folders are UTF-8");
    let (at, requests) = server(vec![ok("done"), ok("done")]);
    let at = at.to_string();
    let ended = run(&["unpin", "--admin", &at, "--token-file", path]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let ended: Ended = pulsegate(&["unpin", "--admin", &at])
        .env("PULSEGATE_ADMIN__TOKEN_FILE", path)
        .output()
        .expect("it starts")
        .into();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    for _ in 0..2 {
        let asked = requests.recv_timeout(PATIENCE).expect("it was asked");
        assert!(
            asked.head.contains(&"authorization: Bearer t0ken".to_owned()),
            "{asked:?}"
        );
    }
    let ended = run(&["unpin", "--admin", &at, "--token-file", "/nope"]);
    assert_eq!(ended.code, Some(64));
}

#[test]
fn wait_returns_when_the_status_shows_it() {
    let (at, requests) = server(vec![
        (200, status("a", false)),
        ok("moving"),
        (200, status("a", true)),
        (200, status("b", true)),
        (200, status("b", false)),
    ]);
    let ended = run(&["switch", "b", "--wait", "--admin", &at.to_string()]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "moving\n"),
        "{}",
        ended.err
    );
    let paths: Vec<String> = requests.iter().map(|asked| asked.head[0].clone()).collect();
    let look = "GET /status HTTP/1.1";
    assert_eq!(paths, [look, "POST /switch HTTP/1.1", look, look, look]);
}

#[test]
fn the_health_check_is_the_servers_word() {
    let (at, requests) = server(vec![(200, "ok\n".to_owned()), (503, "no route yet\n".to_owned())]);
    let at = at.to_string();
    let ended = run(&["healthcheck", "--admin", &at]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "ready\n"));
    let ended = run(&["healthcheck", "--admin", &at]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("no route yet"), "{}", ended.err);
    let asked = requests.recv_timeout(PATIENCE).expect("it was asked");
    assert_eq!(asked.head[0], "GET /readyz HTTP/1.1");
}

#[test]
fn events_are_one_line_each() {
    let event = r#"{"id":1,"at":1700000000000,"kind":"health","message":"a is down","details":{}}"#;
    let stream = format!(": hello\n\nid: 1\nevent: health\ndata: {event}\n\n");
    let (at, requests) = server(vec![(200, stream.clone()), (200, stream.clone()), (200, stream)]);
    let at = at.to_string();
    let ended = run(&["events", "--admin", &at]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "2023-11-14T22:13:20.000Z  health    a is down\n")
    );
    let ended = run(&["events", "--json", "--admin", &at]);
    assert_eq!((ended.code, ended.out), (Some(0), format!("{event}\n")));
    // Who follows wants to know that there is nothing to follow any more.
    let ended = run(&["events", "--follow", "--admin", &at]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(69), "2023-11-14T22:13:20.000Z  health    a is down\n")
    );
    let paths: Vec<String> = requests.iter().map(|asked| asked.head[0].clone()).collect();
    let list = "GET /events?follow=false HTTP/1.1";
    assert_eq!(paths, [list, list, "GET /events?recent=10 HTTP/1.1"]);
}
