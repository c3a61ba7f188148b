//! The sidecar under test, an application of raw sockets, and a load whose every write carries a token of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use pulsegate::resp::{ReplyScan, ReplyScanner, encode_command};
use rig::{Rig, RigOptions};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything may take that has no bound of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(12);

/// A moment, for measuring.
#[expect(clippy::disallowed_methods, reason = "tests measure")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Two regions, `local` and `remote`.
pub(crate) async fn two_regions() -> Rig {
    Rig::start(RigOptions::count(2)).await.expect("the rig starts")
}

/// The `[[replica]]` tables of `rig`, the first region preferred.
pub(crate) fn replicas(rig: &Rig) -> String {
    let table = |region: &rig::Region| {
        let (name, url) = (region.name(), region.url());
        format!("[[replica]]\nname = \"{name}\"\nurl = \"{url}\"\n")
    };
    rig.regions().iter().map(table).collect()
}

/// `[[replica]]` tables with a profile before them.
pub(crate) fn with_profile(replicas: &str, profile: &str) -> String {
    format!("[detection]\nprofile = \"{profile}\"\n{replicas}")
}

/// The running binary.
pub(crate) struct Sidecar {
    child: Child,
    /// Where applications connect.
    pub(crate) addr: SocketAddr,
    admin: String,
    log: Arc<Mutex<Vec<String>>>,
    _dir: TempDir,
    config: std::path::PathBuf,
}

impl Sidecar {
    /// Starts it in front of `rig`, the first region preferred; `toml` is added to the configuration's top.
    pub(crate) async fn start(rig: &Rig, profile: &str, toml: &str) -> Sidecar {
        Sidecar::with_replicas(&replicas(rig), profile, toml).await
    }

    /// Starts it with these `[[replica]]` tables.
    pub(crate) async fn with_replicas(replicas: &str, profile: &str, toml: &str) -> Sidecar {
        Sidecar::configured(&with_profile(replicas, profile), toml, None).await
    }

    /// Starts it with these `[detection]` and `[[replica]]` tables, and as many file descriptors at most.
    pub(crate) async fn configured(tables: &str, toml: &str, open_files: Option<u32>) -> Sidecar {
        let dir = TempDir::new().expect("a folder");
        let config = dir.path().join("pulsegate.toml");
        let has = |table: &str| toml.contains(table);
        let mut text = String::from(toml);
        if !has("[listener]") {
            text += "\n[listener]\nbind = [\"127.0.0.1:0\"]\n";
        }
        text += &format!(
            "\n[admin]\nbind = \"127.0.0.1:0\"\nstate_file = \"{}\"\n[log]\nformat = \"json\"\n{tables}",
            dir.path().join("pin").display()
        );
        std::fs::write(&config, text).expect("the configuration is written");
        let (child, addr, admin, log) = Sidecar::spawn(&config, open_files).await;
        let sidecar = Sidecar {
            child,
            addr,
            admin,
            log,
            _dir: dir,
            config,
        };
        sidecar.wait("a route", |s| s["active"].is_string()).await;
        sidecar
    }

    async fn spawn(
        config: &std::path::Path,
        open_files: Option<u32>,
    ) -> (Child, SocketAddr, String, Arc<Mutex<Vec<String>>>) {
        let program = env!("CARGO_BIN_EXE_pulsegate");
        let mut command = match open_files {
            None => Command::new(program),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), program]);
                shell
            }
        };
        let mut child = command
            .args(["run", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, addresses) = mpsc::channel();
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(json) = serde_json::from_str::<Value>(&line) {
                    let fields = &json;
                    let message = fields["message"].as_str().unwrap_or_default();
                    if let Some(who) = message.strip_prefix("listening for ") {
                        let address = fields["address"].as_str().unwrap_or_default().to_owned();
                        let _ = found.send((who.to_owned(), address));
                    }
                }
                lines.lock().unwrap().push(line);
            }
        });
        let mut known = HashMap::new();
        while known.len() < 2 {
            match addresses.recv_timeout(PATIENCE) {
                Ok((who, address)) => known.insert(who, address),
                Err(_) => panic!(
                    "pulsegate did not say where it listens: {:#?}",
                    log.lock().unwrap()
                ),
            };
        }
        (
            child,
            known["applications"].parse().expect("an address"),
            format!("http://{}", known["operators"]),
            log,
        )
    }

    /// Runs the command line's verb against this sidecar.
    pub(crate) async fn verb(&self, words: &[&str]) -> Result<String, String> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        let out = command
            .args(words)
            .args(["--admin", &self.admin])
            .output()
            .await
            .expect("the verb runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() {
            Ok(text)
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// `/status`.
    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await).expect("JSON")
    }

    /// `GET path`: the body.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.http("GET", path, "").await.1
    }

    /// `POST path` with a JSON body: the answer's body, as an error unless it is 200.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Result<String, String> {
        match self.http("POST", path, body).await {
            (head, body) if head.starts_with("HTTP/1.1 200 ") => Ok(body),
            (_, body) => Err(body),
        }
    }

    /// One request: the answer's head and body.
    async fn http(&self, method: &str, path: &str, body: &str) -> (String, String) {
        let host = self.admin.trim_start_matches("http://");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(host).await.expect("the admin server listens");
            stream.write_all(request.as_bytes()).await.expect("asks");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answers");
            answer
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        let answer = answer.expect("the admin server answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        (head.to_owned(), body.to_owned())
    }

    /// Whether a line of the log contains `text`.
    pub(crate) fn log_contains(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// The HTTP status of `GET path`; `None` when nobody answers.
    pub(crate) async fn code(&self, path: &str) -> Option<u16> {
        let host = self.admin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let status = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the end of the process; its exit code, and how long it took.
    pub(crate) async fn ended(&mut self) -> (Option<i32>, Duration) {
        let began = now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return (status.code(), began.elapsed());
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A line of `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with(what)).expect("the line");
        line.split_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok())
            .expect("KiB")
            * 1024
    }

    /// CPU time that the process has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split_whitespace()
            .map(|f| f.parse().unwrap_or(0))
            .collect();
        // utime and stime, in ticks of 10 ms.
        Duration::from_millis((fields[11] + fields[12]) * 10)
    }

    /// The sum of a counter over its labels.
    pub(crate) async fn counter(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        text.lines()
            .filter(|l| l.starts_with(name))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until `/status` is as wished; how long it took.
    pub(crate) async fn wait(&self, what: &str, wished: impl Fn(&Value) -> bool) -> Duration {
        let began = now();
        loop {
            let status = self.status().await;
            if wished(&status) {
                return began.elapsed();
            }
            if began.elapsed() > PATIENCE {
                panic!("no {what} within {PATIENCE:?}: {status:#}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until `replica` is active.
    pub(crate) async fn wait_active(&self, replica: &str) -> Duration {
        self.wait(&format!("switch to {replica}"), |s| {
            s["active"] == replica && s["holding"] == false
        })
        .await
    }

    /// Stops it and starts it again with the same configuration and state, on new ports.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        (self.child, self.addr, self.admin, self.log) = Sidecar::spawn(&self.config, None).await;
        self.wait("a route", |s| s["active"].is_string()).await;
    }

    /// Where its configuration is.
    pub(crate) fn config(&self) -> &std::path::Path {
        &self.config
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} is sent");
    }

    /// Waits until the log has a line that contains `text`, after the first `skip` lines; that line's number.
    pub(crate) async fn wait_log(&self, text: &str, skip: usize) -> usize {
        let began = now();
        loop {
            let found = {
                let lines = self.log.lock().unwrap();
                (skip..lines.len()).find(|&line| lines[line].contains(text))
            };
            match found {
                Some(line) => return line,
                None if began.elapsed() > PATIENCE => panic!("no {text:?} in the log"),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn stop(&mut self) {
        self.signal("TERM");
        let began = now();
        while self.child.try_wait().expect("waits").is_none() {
            assert!(began.elapsed() < PATIENCE, "SIGTERM did not end it");
            std::thread::yield_now();
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- pulsegate's log\n{}", self.log.lock().unwrap().join("\n"));
        }
    }
}

/// An application's connection.
pub(crate) struct App {
    stream: TcpStream,
    buf: Vec<u8>,
}

impl App {
    /// Connects to the sidecar, or to a server.
    pub(crate) async fn connect(addr: SocketAddr) -> App {
        App {
            stream: TcpStream::connect(addr).await.expect("connects"),
            buf: Vec::new(),
        }
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .await
            .expect("the connection takes bytes");
    }

    /// Sends a command.
    pub(crate) async fn say(&mut self, words: &[&str]) {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        self.send(&encode_command(&words)).await;
    }

    /// The next reply or push, whole; an error text when the connection closed or stayed silent.
    pub(crate) async fn try_hear(&mut self, patience: Duration) -> Result<String, String> {
        let mut scanner = ReplyScanner::new();
        let end = tokio::time::Instant::now() + patience;
        loop {
            if let ReplyScan::Complete(reply) =
                scanner.scan(&self.buf).map_err(|e| format!("no RESP: {e}"))?
            {
                let frame: Vec<u8> = self.buf.drain(..reply.len).collect();
                return Ok(String::from_utf8_lossy(&frame).into_owned());
            }
            match tokio::time::timeout_at(end, self.stream.read_buf(&mut self.buf)).await {
                Err(_) => return Err("silence".into()),
                Ok(Ok(0)) => return Err("closed".into()),
                Ok(Err(error)) => return Err(format!("closed: {error}")),
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Sends no more, but reads on.
    pub(crate) async fn shut_down(&mut self) {
        self.stream.shutdown().await.expect("the connection lives");
    }

    /// Goes away without a word, as a process that is killed.
    pub(crate) fn reset(self) {
        let linger = Some(Duration::ZERO);
        socket2::SockRef::from(&self.stream)
            .set_linger(linger)
            .expect("a socket");
    }

    /// Waits until there is something to read, and reads none of it.
    pub(crate) async fn wait_readable(&self) {
        tokio::time::timeout(PATIENCE, self.stream.readable())
            .await
            .expect("something comes")
            .expect("the connection lives");
    }

    /// The next reply or push.
    pub(crate) async fn hear(&mut self) -> String {
        self.try_hear(PATIENCE).await.expect("a reply")
    }

    /// A command and its reply.
    pub(crate) async fn ask(&mut self, words: &[&str]) -> String {
        self.say(words).await;
        self.hear().await
    }
}

/// What a load saw.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    /// Tokens whose write was acknowledged.
    pub(crate) acked: Vec<String>,
    /// Error replies by their first word.
    pub(crate) errors: HashMap<String, usize>,
    /// Connections that were closed.
    pub(crate) closed: usize,
    /// Longest time between two successful replies of one client.
    pub(crate) gap: Duration,
    /// Replies in all.
    pub(crate) replies: usize,
}

/// Clients that write tokens and read, one command after the other, until told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Seen>>,
}

impl Load {
    /// Starts `clients` connections.
    pub(crate) fn start(addr: SocketAddr, clients: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|c| tokio::spawn(client(addr, c, Arc::clone(&stop))))
            .collect();
        Load { stop, clients }
    }

    /// Stops and sums up.
    pub(crate) async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.await.expect("the client does not panic");
            all.acked.extend(seen.acked);
            all.closed += seen.closed;
            all.replies += seen.replies;
            all.gap = all.gap.max(seen.gap);
            for (code, n) in seen.errors {
                *all.errors.entry(code).or_default() += n;
            }
        }
        all
    }
}

async fn client(addr: SocketAddr, number: usize, stop: Arc<AtomicBool>) -> Seen {
    let mut app = App::connect(addr).await;
    let (mut seen, mut last) = (Seen::default(), now());
    for n in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let token = format!("{number}:{n}");
        let write = n % 2 == 0;
        if write {
            app.say(&["RPUSH", &format!("tokens:{number}"), &token]).await;
        } else {
            app.say(&["GET", "anything"]).await;
        }
        match app.try_hear(PATIENCE).await {
            Ok(reply) if reply.starts_with('-') => {
                let code = reply[1..]
                    .split([' ', '\r'])
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                *seen.errors.entry(code).or_default() += 1;
            }
            Ok(_) => {
                seen.replies += 1;
                seen.gap = seen.gap.max(last.elapsed());
                last = now();
                if write {
                    seen.acked.push(token);
                }
            }
            Err(_) => {
                seen.closed += 1;
                break;
            }
        }
        // A steady application, not a saturating one.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    seen
}

/// Checks on `region` that no token was applied twice; how many are there.
pub(crate) async fn tokens_once(rig: &Rig, region: &str, clients: usize) -> usize {
    let mut all = 0;
    for client in 0..clients {
        let key = format!("tokens:{client}");
        let value = rig
            .region(region)
            .command(&["LRANGE", &key, "0", "-1"])
            .await
            .expect("the replica answers");
        let tokens: Vec<String> = redis::from_redis_value(value).expect("a list of tokens");
        let mut counts = HashMap::new();
        for token in &tokens {
            *counts.entry(token).or_insert(0) += 1;
        }
        for (token, n) in counts {
            assert_eq!(n, 1, "token {token} was applied {n} times on {region}");
        }
        all += tokens.len();
    }
    all
}
