//! One shard: a server, the relay in front of it, and ways to talk to both.
//!
//! It owns process and relay. It knows nothing of slots, and of no other shard.

mod faults;
pub(crate) mod process;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use redis::{RedisResult, Value};
use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::options::{Form, RigOptions};
use crate::relay::{NetworkFaults, Relay};
use crate::slots::SlotRange;
use crate::syncer::RefusalLock;
use process::{Boot, Process, ReservedPort};

/// The rig's own commands (faults, `command`) wait this long for an answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(2);
/// Saving and ending takes at most this long.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// A shard's state at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct ShardStatus {
    /// Its relay, or the server where the relay is bypassed.
    pub addr: SocketAddr,
    /// The server itself.
    pub direct_addr: SocketAddr,
    /// The server's process, while it runs.
    pub pid: Option<u32>,
    /// `master_repl_offset`; none when the server does not answer.
    pub offset: Option<u64>,
    /// The slots that it owns.
    pub slots: Vec<SlotRange>,
    /// What its relay does.
    pub network: NetworkFaults,
}

/// One shard of a [`Region`](crate::Region), or all of it.
#[derive(Debug)]
pub struct Shard {
    name: String,
    password: Option<String>,
    bypass: bool,
    server: SocketAddr,
    relay: Relay,
    process: Mutex<Process>,
    /// As long as commands take their time (faults, restarts), `process` is held; the pid is readable meanwhile.
    pid: AtomicU32,
    direct: Endpoint,
    control: Endpoint,
    pub(crate) refusals: RefusalLock,
    /// Where other nodes of its cluster reach it, when it is one.
    bus: Option<ReservedPort>,
}

impl Shard {
    pub(crate) fn new(name: &str, options: &RigOptions, bypass: bool) -> anyhow::Result<Self> {
        let password = options.password.clone();
        let mut process = Process::new(name, password.clone())?;
        let server = process.addr();
        let relay = Relay::start(server)?;
        let bus = (options.form == Form::Cluster)
            .then(ReservedPort::take)
            .transpose()?;
        if let Some(bus) = &bus {
            let announced = if bypass || options.announce_servers {
                server
            } else {
                relay.addr()
            };
            process.join_cluster(bus.addr(), announced);
        }
        process.arguments(&options.server_args);
        let direct = Endpoint::tcp(&server.ip().to_string(), server.port(), password.as_deref())?;
        let control = Endpoint::unix(&process.socket_path(), password.as_deref())?;
        Ok(Self {
            name: name.to_owned(),
            password,
            bypass,
            server,
            relay,
            process: Mutex::new(process),
            pid: AtomicU32::new(0),
            direct,
            control,
            refusals: RefusalLock::default(),
            bus,
        })
    }

    /// Where other nodes of its cluster reach it.
    pub(crate) fn bus(&self) -> Option<SocketAddr> {
        self.bus.as_ref().map(ReservedPort::addr)
    }

    /// The region's name, with the shard's number where there are several: `local/1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where applications and monitors connect: the relay, or the server where the relay is bypassed.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        if self.bypass {
            self.server
        } else {
            self.relay.addr()
        }
    }

    /// The server itself: for counting and asserting, whatever the relay does.
    #[must_use]
    pub fn direct_addr(&self) -> SocketAddr {
        self.server
    }

    /// [`addr`](Self::addr) as `redis://[:password@]host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(self.addr())
    }

    /// [`direct_addr`](Self::direct_addr) as a URL.
    #[must_use]
    pub fn direct_url(&self) -> String {
        self.url_of(self.server)
    }

    fn url_of(&self, addr: SocketAddr) -> String {
        url_of(addr, self.password.as_deref())
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    /// Runs one command on the server itself, over a new connection; waits two seconds for the answer.
    ///
    /// # Errors
    /// As the server or the network gives them.
    pub async fn command(&self, words: &[&str]) -> RedisResult<Value> {
        let mut connection = self.direct.connect(COMMAND_PATIENCE).await?;
        cmd(words).query_async(&mut connection).await
    }

    /// A connection to the server itself; replies may take two seconds.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connection(&self) -> RedisResult<redis::aio::MultiplexedConnection> {
        self.direct.connect(COMMAND_PATIENCE).await
    }

    pub(crate) fn direct(&self) -> &Endpoint {
        &self.direct
    }

    pub(crate) fn control(&self) -> &Endpoint {
        &self.control
    }

    /// Runs one command past the TCP port: also while that is closed.
    pub(crate) async fn order(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut connection = self
            .control
            .connect(COMMAND_PATIENCE)
            .await
            .with_context(|| self.name.clone())?;
        cmd(words)
            .query_async(&mut connection)
            .await
            .with_context(|| format!("{}: {}", self.name, words.first().unwrap_or(&"")))
    }

    /// `INFO` of the sections that tell process and stream.
    pub(crate) async fn info(&self, patience: Duration) -> RedisResult<String> {
        let mut connection = self.control.connect(patience).await?;
        redis::cmd("INFO")
            .arg("server")
            .arg("replication")
            .query_async(&mut connection)
            .await
    }

    /// The relay, where applications pass it.
    pub(crate) fn network(&self) -> anyhow::Result<&Relay> {
        anyhow::ensure!(!self.bypass, "{}: its applications bypass the relay", self.name);
        Ok(&self.relay)
    }

    /// The relay's faults at the moment.
    pub(crate) fn faults(&self) -> NetworkFaults {
        self.relay.faults()
    }

    pub(crate) async fn status(&self, slots: Vec<SlotRange>) -> ShardStatus {
        let info = self.info(Duration::from_millis(300)).await.unwrap_or_default();
        ShardStatus {
            addr: self.addr(),
            direct_addr: self.server,
            pid: self.pid(),
            offset: info_field(&info, "master_repl_offset").and_then(|offset| offset.parse().ok()),
            slots,
            network: self.faults(),
        }
    }

    /// Starts empty, with a backlog from its first byte, and not reachable yet.
    pub(crate) async fn boot_hidden(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        self.boot(&mut process, &Boot::Hidden).await?;
        let mut connection = self.control.connect(COMMAND_PATIENCE).await?;
        // A backlog exists once a replica has asked. What follows the first line of the answer is of no interest.
        let answer: String = redis::cmd("PSYNC")
            .arg("?")
            .arg("-1")
            .query_async(&mut connection)
            .await?;
        anyhow::ensure!(
            answer.starts_with("FULLRESYNC"),
            "{}: PSYNC answered {answer:?}",
            self.name
        );
        Ok(())
    }

    /// Opens the port to all.
    pub(crate) async fn open(&self) -> anyhow::Result<()> {
        self.order(&["CONFIG", "SET", "port", &self.server.port().to_string()])
            .await?;
        self.relay.server_is(true).await;
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self) {
        let mut process = self.process.lock().await;
        process.kill();
        self.pid.store(0, Ordering::Release);
        self.relay.server_is(false).await;
    }

    /// Ends the server with everything saved, if it runs.
    pub(crate) async fn save_and_end(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        if process.pid().is_none() {
            let file = process.saved_file();
            anyhow::ensure!(
                file.exists(),
                "{}: it is dead and has saved nothing to start from",
                self.name
            );
            return Ok(());
        }
        process.signal(Signal::CONT)?;
        // The connection ends without an answer when it works.
        if let Err(error) = self.order(&["SHUTDOWN", "SAVE", "NOW", "FORCE"]).await {
            tracing::trace!(shard = self.name, %error, "SHUTDOWN");
        }
        process
            .wait_exit(EXIT_PATIENCE)
            .await
            .with_context(|| format!("{}: SHUTDOWN SAVE", self.name))?;
        self.pid.store(0, Ordering::Release);
        self.relay.server_is(false).await;
        Ok(())
    }

    /// Starts from the saved file; it may still be loading afterwards.
    pub(crate) async fn boot_saved(&self, args: Vec<String>) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        self.boot(&mut process, &Boot::Saved(args)).await?;
        self.relay.server_is(true).await;
        Ok(())
    }

    async fn boot(&self, process: &mut MutexGuard<'_, Process>, boot: &Boot) -> anyhow::Result<()> {
        let started = process
            .start(boot)
            .await
            .with_context(|| format!("shard {}", self.name));
        self.pid.store(process.pid().unwrap_or(0), Ordering::Release);
        started
    }

    /// Whether its process is stopped.
    pub(crate) fn is_frozen(&self) -> bool {
        self.pid().is_some_and(is_stopped)
    }

    /// SIGSTOP or SIGCONT; returns when the process has stopped, or goes on.
    pub(crate) async fn freeze(&self, stop: bool) -> anyhow::Result<()> {
        let process = self.process.lock().await;
        process
            .signal(if stop { Signal::STOP } else { Signal::CONT })
            .with_context(|| self.name.clone())?;
        let deadline = Instant::now() + COMMAND_PATIENCE;
        while process.pid().is_some_and(|pid| is_stopped(pid) != stop) {
            anyhow::ensure!(
                Instant::now() < deadline,
                "{}: the process ignores the signal",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Waits until it answers PING, having loaded.
    pub(crate) async fn wait_ready(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while let Err(error) = self.order(&["PING"]).await {
            anyhow::ensure!(Instant::now() < deadline, "{}: not ready: {error:#}", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

fn cmd(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    command.arg(words);
    command
}

/// `redis://[:password@]host:port`.
pub(crate) fn url_of(addr: SocketAddr, password: Option<&str>) -> String {
    match password {
        Some(password) => format!("redis://:{}@{addr}", percent_encoded(password)),
        None => format!("redis://{addr}"),
    }
}

/// The value of a field of INFO.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

/// `/proc/<pid>/stat`: the state follows the name in parentheses.
fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
