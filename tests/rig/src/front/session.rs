//! One client of a front: its commands go to the shards, the answers come back in the order of the commands.
//!
//! ```text
//! bytes → request → class and slot → shard's connection ──▶ answers ─┐
//!                 └────────────────▶ owed: who answers, in order ────┴─▶ client
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, watch};

use super::local::{Class, classify, state_name};
use super::upstream::{Heard, Upstream};
use super::{Plan, READ_SIZE, State, cluster};
use crate::commands::Route;
use crate::resp::{bulk, command, take_request};

/// Commands under way before the client has to wait.
const OWED_MOST: usize = 10_000;
/// Answers of shards that are under way here.
const HEARD_MOST: usize = 1024;

const DOWN: &str = "CLUSTERDOWN Hash slot not served";
const CROSSING: &str = "CROSSSLOT Keys in request don't hash to the same slot";

/// Who answers a command.
enum Owed {
    /// This text.
    Text(Bytes),
    /// PING with these words.
    Pong(Vec<Bytes>),
    /// CLUSTER with these words.
    Cluster(Vec<Bytes>),
    /// The shard.
    Shard(usize),
    /// The shard; it is what the client then hears in all that is told.
    Confirmed(usize, usize),
    /// The shard; when it agrees, the connection is authenticated, and of this version.
    Agreed(usize, Option<u8>),
}

/// A transaction of the client.
enum Transaction {
    None,
    /// Without a command so far, so without a shard.
    Begun,
    At(usize),
    /// Refused already: EXEC will say so. The shard that knows of it.
    Broken(Option<usize>),
}

/// What the client hears.
#[derive(Default)]
struct Heards {
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    sharded: BTreeSet<Bytes>,
}

struct Session {
    plan: Arc<Plan>,
    client: OwnedWriteHalf,
    out: BytesMut,
    upstreams: Vec<Option<Upstream>>,
    births: u64,
    heard: mpsc::Sender<Heard>,
    owed: VecDeque<Owed>,
    /// What every connection to a shard has to be told first.
    state: Vec<(Vec<u8>, Bytes)>,
    transaction: Transaction,
    hears: Heards,
    authenticated: bool,
    /// Version of the protocol: as asked for, and as agreed.
    asked: u8,
    version: u8,
    quitting: bool,
}

/// Serves one client until it leaves, or the front is down.
pub(super) async fn serve(client: TcpStream, plan: Arc<Plan>, state: watch::Receiver<State>) {
    let _ = client.set_nodelay(true);
    let (mut reads, client) = client.into_split();
    let (heard, mut answers) = mpsc::channel(HEARD_MOST);
    let mut session = Session {
        upstreams: plan.shards.iter().map(|_| None).collect(),
        authenticated: !plan.guarded,
        plan,
        client,
        out: BytesMut::new(),
        births: 0,
        heard,
        owed: VecDeque::new(),
        state: Vec::new(),
        transaction: Transaction::None,
        hears: Heards::default(),
        asked: 2,
        version: 2,
        quitting: false,
    };
    let mut buffer = BytesMut::new();
    let ended: io::Result<()> = async {
        loop {
            // A front that hangs does nothing; one that is down ends this task.
            if state.clone().wait_for(|&state| state == State::Up).await.is_err() {
                return Ok(());
            }
            session.deliver().await?;
            if session.quitting && session.owed.is_empty() {
                return Ok(());
            }
            buffer.reserve(READ_SIZE);
            tokio::select! {
                read = reads.read_buf(&mut buffer), if !session.quitting && session.owed.len() < OWED_MOST => {
                    if read? == 0 {
                        return Ok(());
                    }
                    state.clone().wait_for(|&state| state == State::Up).await.map_err(io::Error::other)?;
                    session.requests(&mut buffer).await?;
                }
                Some(heard) = answers.recv() => session.hear(heard)?,
            }
        }
    }
    .await;
    if let Err(error) = ended {
        tracing::trace!(%error, "a client's connection ends");
    }
}

impl Session {
    async fn requests(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        loop {
            match take_request(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(words)) if words.is_empty() => {}
                Ok(Some(words)) => self.request(words).await,
                Err(error) => {
                    self.say_error(&format!("ERR Protocol error: {error}"));
                    self.quitting = true;
                    return Ok(());
                }
            }
            if self.quitting {
                return Ok(());
            }
        }
    }

    async fn request(&mut self, words: Vec<Bytes>) {
        let class = classify(&words);
        let hears = self.hears.channels.len() + self.hears.patterns.len() + self.hears.sharded.len();
        if hears > 0 && self.asked < 3 && !class.while_subscribed() {
            let name = String::from_utf8_lossy(&words[0]).to_lowercase();
            return self.say_error(&format!(
                "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in \
                 this context"
            ));
        }
        match class {
            Class::Ping if words.len() > 2 => {
                self.say_error("ERR wrong number of arguments for 'ping' command");
            }
            Class::Ping if matches!(self.transaction, Transaction::None) => {
                self.owed.push_back(Owed::Pong(words));
            }
            Class::Cluster => self.owed.push_back(Owed::Cluster(words)),
            Class::Quit => {
                self.owed.push_back(Owed::Text(Bytes::from_static(b"+OK\r\n")));
                self.quitting = true;
            }
            Class::Refused => {
                let name = String::from_utf8_lossy(&words[0]).to_lowercase();
                self.say_error(&format!("ERR command is not allowed: '{name}'"));
            }
            Class::State => self.state(&words).await,
            Class::Everywhere => self.everywhere(&words).await,
            Class::Subscribe | Class::Unsubscribe | Class::Psubscribe | Class::Punsubscribe => {
                self.subscription(class, &words).await;
            }
            Class::Multi if matches!(self.transaction, Transaction::None) => {
                self.transaction = Transaction::Begun;
                self.owed.push_back(Owed::Text(Bytes::from_static(b"+OK\r\n")));
            }
            Class::Multi => self.say_error("ERR MULTI calls can not be nested"),
            Class::Exec | Class::Discard => self.end_transaction(class, &words),
            Class::Unwatch => {
                let open: Vec<usize> = self.open().collect();
                self.send_each(&open, &words).await;
            }
            Class::Ping | Class::Routed | Class::Watch => self.routed(class, &words).await,
        }
    }

    async fn routed(&mut self, class: Class, words: &[Bytes]) {
        let wanted = match (self.plan.commands.route(words), &self.transaction) {
            (Route::Crossing, _) => return self.refuse(CROSSING),
            (Route::Slot(slot), Transaction::At(shard)) if self.plan.shard_of(slot) != *shard => {
                return self.refuse(CROSSING);
            }
            (_, Transaction::Broken(_)) => return self.refuse("ERR the transaction is refused already"),
            (_, Transaction::At(shard)) => Some(*shard),
            (Route::Slot(slot), _) => Some(self.plan.shard_of(slot)),
            (Route::Anywhere, _) => None,
        };
        let begins = matches!(self.transaction, Transaction::Begun);
        let Some(shard) = self.reach(wanted).await else {
            return self.refuse(DOWN);
        };
        let Some(upstream) = self.upstreams[shard].as_mut() else {
            return;
        };
        if begins {
            upstream.send(command(&["MULTI"]), false);
            self.transaction = Transaction::At(shard);
        }
        upstream.transacting |= begins || class == Class::Watch;
        upstream.send(command(words), true);
        self.owed.push_back(Owed::Shard(shard));
    }

    /// An error that also refuses the transaction, if there is one.
    fn refuse(&mut self, error: &str) {
        self.transaction = match self.transaction {
            Transaction::None => Transaction::None,
            Transaction::Begun => Transaction::Broken(None),
            Transaction::At(shard) => Transaction::Broken(Some(shard)),
            Transaction::Broken(shard) => Transaction::Broken(shard),
        };
        self.say_error(error);
    }

    fn end_transaction(&mut self, class: Class, words: &[Bytes]) {
        let exec = class == Class::Exec;
        let transaction = std::mem::replace(&mut self.transaction, Transaction::None);
        let (Transaction::At(shard) | Transaction::Broken(Some(shard))) = transaction else {
            return match transaction {
                Transaction::None if exec => self.say_error("ERR EXEC without MULTI"),
                Transaction::None => self.say_error("ERR DISCARD without MULTI"),
                Transaction::Broken(_) if exec => self.say_aborted(),
                _ if exec => self.owed.push_back(Owed::Text(Bytes::from_static(b"*0\r\n"))),
                _ => self.owed.push_back(Owed::Text(Bytes::from_static(b"+OK\r\n"))),
            };
        };
        let broken = exec && matches!(transaction, Transaction::Broken(_));
        // An upstream with an open transaction ends together with the session.
        if let Some(upstream) = self.upstreams[shard].as_mut() {
            upstream.transacting = false;
            if broken {
                upstream.send(command(&["DISCARD"]), false);
            } else {
                upstream.send(command(words), true);
            }
        }
        if broken {
            self.say_aborted();
        } else {
            self.owed.push_back(Owed::Shard(shard));
        }
    }

    fn say_aborted(&mut self) {
        self.say_error("EXECABORT Transaction discarded because of previous errors.");
    }

    async fn state(&mut self, words: &[Bytes]) {
        let name = state_name(words);
        let version = words
            .get(1)
            .filter(|_| name == b"hello")
            .and_then(|word| match &word[..] {
                b"2" => Some(2),
                b"3" => Some(3),
                _ => None,
            });
        let agrees = name == b"auth" || name == b"hello";
        let mut open: Vec<usize> = self.open().collect();
        if open.is_empty() {
            match self.reach(None).await {
                Some(shard) => open.push(shard),
                None => return self.say_error(DOWN),
            }
        }
        self.asked = version.unwrap_or(self.asked);
        self.send_each(&open, words).await;
        if agrees && let Some(last) = self.owed.back_mut() {
            *last = Owed::Agreed(open[0], version);
        }
        self.state.retain(|(kept, _)| *kept != name);
        self.state.push((name, command(words)));
    }

    async fn everywhere(&mut self, words: &[Bytes]) {
        let mut reached = Vec::new();
        for shard in 0..self.upstreams.len() {
            reached.extend(self.reach(Some(shard)).await);
        }
        self.send_each(&reached, words).await;
    }

    /// Sends it to each of these; the first one's answer is the client's.
    async fn send_each(&mut self, shards: &[usize], words: &[Bytes]) {
        let Some(&first) = shards.first() else {
            return self.routed(Class::Routed, words).await;
        };
        for &shard in shards {
            if let Some(upstream) = self.upstreams[shard].as_mut() {
                upstream.send(command(words), shard == first);
            }
        }
        self.owed.push_back(Owed::Shard(first));
    }

    async fn subscription(&mut self, class: Class, words: &[Bytes]) {
        let name = words[0].to_ascii_lowercase();
        let patterns = matches!(class, Class::Psubscribe | Class::Punsubscribe);
        let sharded = name.starts_with(b"s") && name != b"subscribe";
        let joins = matches!(class, Class::Subscribe | Class::Psubscribe);
        let mut things: Vec<Option<Bytes>> = words[1..].iter().cloned().map(Some).collect();
        if things.is_empty() && joins {
            let name = String::from_utf8_lossy(&name).into_owned();
            return self.say_error(&format!("ERR wrong number of arguments for '{name}' command"));
        }
        if things.is_empty() {
            things = self.set(patterns, sharded).iter().cloned().map(Some).collect();
        }
        if things.is_empty() {
            things.push(None);
        }
        for thing in things {
            let mut shards = Vec::new();
            if patterns && thing.is_some() {
                for shard in 0..self.upstreams.len() {
                    shards.extend(self.reach(Some(shard)).await);
                }
            } else {
                let slot = thing.as_ref().map(|channel| crate::slots::slot(channel));
                let wanted = slot.map(|slot| self.plan.shard_of(slot));
                shards.extend(self.reach(wanted).await);
            }
            let needed = if patterns && joins {
                self.upstreams.len()
            } else {
                1
            };
            if shards.len() < needed {
                self.say_error(DOWN);
                continue;
            }
            let told: Vec<Bytes> = [words[0].clone()].into_iter().chain(thing.clone()).collect();
            for &shard in &shards {
                if let Some(upstream) = self.upstreams[shard].as_mut() {
                    upstream.subscribed |= joins;
                    upstream.send(command(&told), shard == shards[0]);
                }
            }
            if let Some(thing) = thing {
                let set = self.set(patterns, sharded);
                if joins {
                    set.insert(thing)
                } else {
                    set.remove(&thing)
                };
            }
            let count = if sharded {
                self.hears.sharded.len()
            } else {
                self.hears.channels.len() + self.hears.patterns.len()
            };
            self.owed.push_back(Owed::Confirmed(shards[0], count));
        }
    }

    fn set(&mut self, patterns: bool, sharded: bool) -> &mut BTreeSet<Bytes> {
        match (patterns, sharded) {
            (true, _) => &mut self.hears.patterns,
            (_, true) => &mut self.hears.sharded,
            _ => &mut self.hears.channels,
        }
    }

    fn open(&self) -> impl Iterator<Item = usize> {
        (0..self.upstreams.len()).filter(|&shard| self.upstreams[shard].is_some())
    }

    /// Has a connection to that shard, or to the first that is there.
    async fn reach(&mut self, wanted: Option<usize>) -> Option<usize> {
        let candidates = wanted.map_or(0..self.upstreams.len(), |shard| shard..shard + 1);
        for shard in candidates {
            if self.upstreams[shard].is_some() {
                return Some(shard);
            }
            self.births += 1;
            let (addr, _) = self.plan.shards[shard];
            if let Ok(mut upstream) = Upstream::connect(addr, shard, self.births, self.heard.clone()).await {
                for (_, told) in &self.state {
                    upstream.send(told.clone(), false);
                }
                self.upstreams[shard] = Some(upstream);
                return Some(shard);
            }
        }
        None
    }

    fn hear(&mut self, heard: Heard) -> io::Result<()> {
        let tracks = self.state.iter().any(|(name, _)| name == b"client tracking");
        let place = &mut self.upstreams[heard.shard];
        let Some(upstream) = place.as_mut().filter(|upstream| upstream.birth == heard.birth) else {
            return Ok(());
        };
        match heard.answer {
            Some(answer) => self.out.extend(upstream.take(answer).into_iter().flatten()),
            None if upstream.is_missed() || tracks => return Err(io::ErrorKind::ConnectionReset.into()),
            None => *place = None,
        }
        Ok(())
    }

    fn say_error(&mut self, error: &str) {
        self.owed
            .push_back(Owed::Text(Bytes::from(format!("-{error}\r\n"))));
    }

    /// Gives the client what it is owed, as far as it is there.
    async fn deliver(&mut self) -> io::Result<()> {
        while let Some(owed) = self.owed.front() {
            let answer = match owed {
                Owed::Text(text) => text.clone(),
                Owed::Pong(_) | Owed::Cluster(_) if !self.authenticated => {
                    Bytes::from_static(b"-NOAUTH Authentication required.\r\n")
                }
                Owed::Pong(words) => self.pong(words),
                Owed::Cluster(words) => cluster::answer(&self.plan, &words[1..], self.version),
                Owed::Shard(shard) | Owed::Confirmed(shard, _) | Owed::Agreed(shard, _) => {
                    let answers = self.upstreams[*shard]
                        .as_mut()
                        .map(|upstream| &mut upstream.answers);
                    let Some(answer) = answers.and_then(VecDeque::pop_front) else {
                        break;
                    };
                    answer
                }
            };
            let refused = answer.first() == Some(&b'-');
            match self.owed.pop_front() {
                Some(Owed::Confirmed(_, count)) if !refused => {
                    // The shard's count, in the last line, is of what is heard at that shard.
                    let text = answer.strip_suffix(b"\r\n").unwrap_or(&answer);
                    let last = text
                        .iter()
                        .rposition(|&byte| byte == b'\n')
                        .map_or(0, |end| end + 1);
                    self.out.extend_from_slice(&answer[..last]);
                    self.out.extend_from_slice(format!(":{count}\r\n").as_bytes());
                }
                Some(Owed::Agreed(_, version)) => {
                    self.authenticated |= !refused;
                    self.version = version.filter(|_| !refused).unwrap_or(self.version);
                    self.out.extend_from_slice(&answer);
                }
                _ => self.out.extend_from_slice(&answer),
            }
        }
        if !self.out.is_empty() {
            self.client.write_all_buf(&mut self.out).await?;
        }
        Ok(())
    }

    fn pong(&self, words: &[Bytes]) -> Bytes {
        let mut out = BytesMut::new();
        let hears = self.hears.channels.len() + self.hears.patterns.len() + self.hears.sharded.len();
        match words.get(1) {
            word if self.version < 3 && hears > 0 => {
                out.extend_from_slice(b"*2\r\n");
                bulk(&mut out, b"pong");
                bulk(&mut out, word.map_or(&b""[..], |word| word));
            }
            Some(word) => bulk(&mut out, word),
            None => out.extend_from_slice(b"+PONG\r\n"),
        }
        out.freeze()
    }
}
