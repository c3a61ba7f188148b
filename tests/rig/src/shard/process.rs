//! The `redis-server` process of one shard: started, signalled, reaped. It owns the child and its data directory.
//!
//! It never decides when: that is the shard's and the faults' business. Three things make it dependable:
//! 1. The port is held by a bound socket that never listens, for as long as the rig lives. Nobody else can be given
//!    the port while the server is down, and connecting to it meanwhile is refused, as it should be.
//! 2. Children are started by one thread that lives as long as the process. `setpriv --pdeathsig KILL` (where it
//!    exists) ends a child when the *thread* that started it ends, and runtime threads come and go.
//! 3. `Drop` kills and reaps, also while a test panics.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::endpoint::Endpoint;

/// How long a server may take to answer after its start, loading aside.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// A cluster's node that is silent for so long is taken for dead by the others.
const CLUSTER_NODE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A port of 127.0.0.1 that stays ours while others may listen on it by agreement (`SO_REUSEADDR`).
#[derive(Debug)]
pub(crate) struct ReservedPort {
    _socket: tokio::net::TcpSocket,
    addr: SocketAddr,
}

impl ReservedPort {
    pub(crate) fn take() -> anyhow::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .context("no free port on 127.0.0.1")?;
        let addr = socket.local_addr()?;
        Ok(Self {
            _socket: socket,
            addr,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens on the reserved port.
    pub(crate) fn listen(&self) -> std::io::Result<tokio::net::TcpListener> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.addr)?;
        socket.listen(1024)
    }
}

/// How a server comes up.
#[derive(Clone, Debug)]
pub(crate) enum Boot {
    /// Empty, and on its unix socket only: nobody can write before the backlog exists.
    Hidden,
    /// From the saved file, on its port from the first moment; with more arguments.
    Saved(Vec<String>),
}

/// One shard's server, running or not.
#[derive(Debug)]
pub(crate) struct Process {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: ReservedPort,
    password: Option<String>,
    extra: Vec<String>,
}

impl Process {
    pub(crate) fn new(name: &str, password: Option<String>) -> anyhow::Result<Self> {
        let place = std::env::temp_dir();
        // A unix socket's path has 107 bytes at most; a deep TMPDIR leaves too few.
        let place = if place.as_os_str().len() > 60 {
            PathBuf::from("/tmp")
        } else {
            place
        };
        let dir = tempfile::Builder::new()
            .prefix(&format!("rig-{}-", &name[..name.len().min(16)].replace('/', "-")))
            .tempdir_in(&place)
            .with_context(|| format!("{}: cannot make a data directory", place.display()))?;
        Ok(Self {
            child: None,
            dir,
            port: ReservedPort::take()?,
            password,
            extra: Vec::new(),
        })
    }

    /// Makes it a cluster's node, which others reach at `bus`, and which tells clients to come to `announced`.
    pub(crate) fn join_cluster(&mut self, bus: SocketAddr, announced: SocketAddr) {
        let words = [
            ("enabled", "yes".to_owned()),
            ("require-full-coverage", "no".to_owned()),
            ("node-timeout", CLUSTER_NODE_TIMEOUT.as_millis().to_string()),
            // A master that gives its last slot away stays one.
            ("allow-replica-migration", "no".to_owned()),
            ("port", bus.port().to_string()),
            ("announce-bus-port", bus.port().to_string()),
            ("announce-ip", announced.ip().to_string()),
            ("announce-port", announced.port().to_string()),
        ];
        for (name, value) in words {
            self.extra.extend([format!("--cluster-{name}"), value]);
        }
    }

    /// Adds to its command line.
    pub(crate) fn arguments(&mut self, more: &[String]) {
        self.extra.extend_from_slice(more);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub(crate) fn saved_file(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the server and waits until it answers on its unix socket (`PONG` or `LOADING`).
    pub(crate) async fn start(&mut self, boot: &Boot) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.is_none(), "the server already runs");
        let binary = server_binary()?;
        let log = self.dir.path().join("server.log");
        let mut args: Vec<String> = [
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            &self.socket_path().to_string_lossy(),
            "--dir",
            &self.dir.path().to_string_lossy(),
            "--save",
            "",
            "--appendonly",
            "no",
            "--rdbcompression",
            "no",
            "--repl-diskless-sync",
            "no",
            "--repl-backlog-size",
            "64mb",
            "--repl-backlog-ttl",
            "0",
        ]
        .map(str::to_owned)
        .to_vec();
        match boot {
            Boot::Hidden => {
                let _ = std::fs::remove_file(self.saved_file());
                args.extend(["--port".to_owned(), "0".to_owned()]);
            }
            Boot::Saved(more) => {
                args.extend(["--port".to_owned(), self.addr().port().to_string()]);
                args.extend(more.iter().cloned());
            }
        }
        if let Some(password) = &self.password {
            args.extend(["--requirepass".to_owned(), password.clone()]);
        }
        args.extend(self.extra.iter().cloned());

        let out = std::fs::File::create(&log).with_context(|| format!("{}", log.display()))?;
        let mut command = wrapped(&binary);
        command
            .args(&args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Its own group: a Ctrl-C in the terminal is for the rig, which then ends its servers.
            .process_group(0);
        let child = spawn_from_lasting_thread(command)
            .await
            .with_context(|| format!("{}: cannot be started", binary.display()))?;
        self.child = Some(child);
        self.wait_answering(&log).await
    }

    async fn wait_answering(&mut self, log: &Path) -> anyhow::Result<()> {
        let endpoint = Endpoint::unix(&self.socket_path(), self.password.as_deref())?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.child = None;
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(3).collect();
                anyhow::bail!("the server ended at its start ({status}): {}", tail.join(" | "));
            }
            let why = match ping(&endpoint).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == Some("LOADING") => return Ok(()),
                Err(error) => error,
            };
            anyhow::ensure!(
                Instant::now() < deadline,
                "the server does not answer after its start: {why}"
            );
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().context("the server does not run")?;
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("a pid out of range")?;
        kill_process(pid, signal)?;
        Ok(())
    }

    /// SIGKILL, and reaps; nothing happens when it does not run.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both can only fail when the child is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for an exit that was asked for in another way.
    pub(crate) async fn wait_exit(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while let Some(child) = self.child.as_mut() {
            if child.try_wait()?.is_some() {
                self.child = None;
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "the server does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn ping(endpoint: &Endpoint) -> redis::RedisResult<()> {
    let mut connection = endpoint.connect(Duration::from_secs(1)).await?;
    redis::cmd("PING").query_async(&mut connection).await
}

/// The server's program: `$REDIS_SERVER`, or `redis-server` on the PATH.
fn server_binary() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("REDIS_SERVER").filter(|name| !name.is_empty()) {
        return on_path(Path::new(&binary))
            .with_context(|| format!("REDIS_SERVER={}: no such program", binary.to_string_lossy()));
    }
    on_path(Path::new("redis-server"))
        .context("redis-server is not on the PATH: apt-get install redis-server (or set REDIS_SERVER)")
}

fn on_path(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

fn wrapped(binary: &Path) -> Command {
    match on_path(Path::new("setpriv")) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(binary);
            command
        }
        None => Command::new(binary),
    }
}

type Order = (Command, oneshot::Sender<std::io::Result<Child>>);

async fn spawn_from_lasting_thread(command: Command) -> std::io::Result<Child> {
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                if let Err(Ok(mut unwanted)) = reply.send(command.spawn()) {
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        });
        orders
    });
    let (reply, child) = oneshot::channel();
    let gone = || std::io::Error::other("the thread that starts servers has ended");
    orders.send((command, reply)).map_err(|_| gone())?;
    child.await.map_err(|_| gone())?
}
