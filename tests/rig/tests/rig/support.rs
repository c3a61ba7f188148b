//! Clients of the rig's regions, and questions that the tests ask.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value};
use rig::{Endpoint, Rig, RigOptions, SlotRange};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long anything may take that has no bound of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What does not answer for so long is silent; a local server answers within a few milliseconds.
pub(crate) const SILENCE: Duration = Duration::from_millis(250);

pub(crate) async fn regions(count: usize) -> Rig {
    start(RigOptions::count(count)).await
}

pub(crate) async fn start(options: RigOptions) -> Rig {
    Rig::start(options).await.expect("the rig starts")
}

pub(crate) async fn converged(rig: &Rig) {
    rig.wait_converged(PATIENCE).await.expect("converges");
}

/// A command to the server itself.
pub(crate) async fn tell<T: FromRedisValue>(rig: &Rig, region: &str, words: &[&str]) -> T {
    let value = rig.region(region).command(words).await;
    let value = value.unwrap_or_else(|error| panic!("{region}: {words:?}: {error}"));
    redis::from_redis_value(value).unwrap_or_else(|error| panic!("{region}: {words:?}: {error}"))
}

/// A number out of a section of INFO.
pub(crate) async fn info(rig: &Rig, region: &str, section: &str, field: &str) -> u64 {
    let text: String = tell(rig, region, &["INFO", section]).await;
    let value = text
        .lines()
        .find_map(|line| line.trim_end().strip_prefix(field)?.strip_prefix(':'));
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("{field} in {text}"))
}

/// An application: it connects as one does, through the relay.
pub(crate) async fn application(rig: &Rig, region: &str) -> MultiplexedConnection {
    let endpoint = Endpoint::from_url(&rig.region(region).url()).expect("a URL");
    endpoint.connect(PATIENCE).await.expect("connects")
}

pub(crate) async fn ask(connection: &mut MultiplexedConnection, words: &[&str]) -> RedisResult<Value> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query_async(connection).await
}

/// The code of the error that the server answers.
pub(crate) async fn refusal(connection: &mut MultiplexedConnection, words: &[&str]) -> String {
    let error = ask(connection, words).await.expect_err("is refused");
    error
        .code()
        .unwrap_or_else(|| panic!("{words:?}: {error}"))
        .to_owned()
}

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A key or channel of these slots.
pub(crate) fn name_in(slots: SlotRange) -> String {
    (0..)
        .map(|n| format!("beat:{n}"))
        .find(|name| slots.contains(rig::slot(name.as_bytes())))
        .expect("there are names for every slot")
}

/// A bare connection, for what a client library would hide.
pub(crate) struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(addr: std::net::SocketAddr) -> std::io::Result<Self> {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(addr)).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends an inline command.
    pub(crate) async fn say(&mut self, line: &str) {
        self.stream
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .expect("the connection takes bytes");
    }

    /// The next line; none when nothing comes in time.
    pub(crate) async fn line(&mut self, patience: Duration) -> std::io::Result<Option<String>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            match tokio::time::timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
                Err(_) => return Ok(None),
                Ok(Ok(0)) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => drop(read?),
            }
        }
    }

    /// A command with a reply of one line.
    pub(crate) async fn ask(&mut self, line: &str) -> String {
        self.say(line).await;
        let heard = self.line(PATIENCE).await.expect("the connection stands");
        heard.unwrap_or_else(|| panic!("no answer to {line}"))
    }

    pub(crate) async fn is_silent(&mut self) -> bool {
        self.line(SILENCE).await.expect("the connection stands").is_none()
    }
}

/// An array of texts and numbers, without the lengths.
pub(crate) async fn frame(raw: &mut Raw) -> Vec<String> {
    let head = raw.line(PATIENCE).await.unwrap().expect("an answer");
    let count: usize = head.trim_start_matches(['*', '>']).parse().expect("an array");
    let mut words = Vec::new();
    for _ in 0..count {
        let line = raw.line(PATIENCE).await.unwrap().expect("an element");
        words.push(if line.starts_with('$') {
            raw.line(PATIENCE).await.unwrap().expect("a text")
        } else {
            line
        });
    }
    words
}

/// A subscriber on the server itself, and the messages it hears, in order, each with its moment.
pub(crate) struct Ear(Raw);

impl Ear {
    pub(crate) async fn open(rig: &Rig, region: &str, channel: &str) -> Self {
        Self::open_at(rig.region(region).direct_addr(), channel).await
    }

    pub(crate) async fn open_at(addr: std::net::SocketAddr, channel: &str) -> Self {
        let mut raw = Raw::connect(addr).await.expect("connects");
        assert_eq!(raw.ask(&format!("SUBSCRIBE {channel}")).await, "*3");
        for _ in 0..5 {
            raw.line(PATIENCE)
                .await
                .expect("stands")
                .expect("the rest of the confirmation");
        }
        Self(raw)
    }

    /// The next message; none when none comes in time.
    pub(crate) async fn next(&mut self, patience: Duration) -> Option<String> {
        self.0.line(patience).await.expect("the connection stands")?;
        let mut last = None;
        for _ in 0..6 {
            last = self.0.line(PATIENCE).await.expect("the connection stands");
        }
        last
    }

    /// Messages until, and without, this one.
    pub(crate) async fn until(&mut self, end: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.next(PATIENCE).await {
                Some(message) if message == end => return heard,
                Some(message) => heard.push(message),
                None => panic!("{end} was not heard, only {} messages", heard.len()),
            }
        }
    }
}

/// An application that counts (`INCR counter`) and notes unique tokens (`RPUSH tokens …`) until told to stop. A token is
/// `<writer>:<n>`; one whose write had no answer is of unknown outcome.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Written>,
}

#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) acked: Vec<String>,
    pub(crate) unknown: Vec<String>,
}

impl Writer {
    pub(crate) fn start(rig: &Rig, region: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, name, ended) = (
            rig.region(region).direct_url(),
            region.to_owned(),
            Arc::clone(&stop),
        );
        let task = tokio::spawn(async move {
            let endpoint = Endpoint::from_url(&url).expect("a URL");
            let (mut written, mut connection) = (Written::default(), None);
            for n in 0_u64.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let token = format!("{name}:{n}");
                let open = match connection.take() {
                    Some(open) => open,
                    None => match endpoint.connect(PATIENCE).await {
                        Ok(open) => open,
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                            continue;
                        }
                    },
                };
                let mut open: MultiplexedConnection = open;
                let both = redis::pipe()
                    .atomic()
                    .incr("counter", 1)
                    .rpush("tokens", &token)
                    .clone();
                match both.query_async::<()>(&mut open).await {
                    Ok(()) => {
                        written.acked.push(token);
                        connection = Some(open);
                    }
                    Err(_) => written.unknown.push(token),
                }
                // A steady application; a tight loop starves the syncers of a small machine.
                tokio::task::yield_now().await;
            }
            written
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic")
    }
}

/// Waits until the region has so many tokens.
pub(crate) async fn has_tokens(rig: &Rig, region: &str, more_than: u64) {
    eventually("tokens arrive", || async {
        tell::<u64>(rig, region, &["LLEN", "tokens"]).await > more_than
    })
    .await;
}

/// The region's tokens with how often each is there, having checked the counter against them.
pub(crate) async fn tokens(rig: &Rig, region: &str) -> BTreeMap<String, u64> {
    let list: Vec<String> = tell(rig, region, &["LRANGE", "tokens", "0", "-1"]).await;
    let counter: Option<u64> = tell(rig, region, &["GET", "counter"]).await;
    assert_eq!(
        counter.unwrap_or(0),
        list.len() as u64,
        "{region}: counter and tokens"
    );
    list.into_iter().fold(BTreeMap::new(), |mut counts, token| {
        *counts.entry(token).or_insert(0) += 1;
        counts
    })
}

/// Checks that the region has each acknowledged token exactly once, those of unknown outcome at most once, and no others.
pub(crate) async fn exactly_once(rig: &Rig, region: &str, written: &[&Written]) {
    let mut found = tokens(rig, region).await;
    for token in written.iter().flat_map(|one| &one.acked) {
        assert_eq!(
            found.remove(token),
            Some(1),
            "{region}: acknowledged token {token}"
        );
    }
    for token in written.iter().flat_map(|one| &one.unknown) {
        assert!(
            found.remove(token).is_none_or(|times| times == 1),
            "{region}: token {token} of unknown outcome"
        );
    }
    assert!(found.is_empty(), "{region}: nobody wrote {found:?}");
}
