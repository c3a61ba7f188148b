//! What a cluster's node is told to publish. In a cluster, messages travel the nodes' own bus and are not in a node's
//! replication stream (Redis 7.0 to this day), so they are overheard with MONITOR instead. A tape owns that connection, and
//! keeps what it heard for the syncers of that node: each plays it at its own pace, also after a cut.
//!
//! Order is kept towards what was written before: a message carries an offset of the stream that is not before it.
//! What the rig's own scripts publish is not on the tape, so nothing loops.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::position::{Lineage, Position};
use super::scripts::MARK;
use super::stream::Effect;
use crate::endpoint::Endpoint;
use crate::resp::command;
use crate::slots::{Owners, slot};

/// Bytes kept; older ones are lost to those who have not played them, as with a backlog.
const KEPT_MOST: usize = 16 << 20;
/// Longest line of MONITOR that is believed: a command is as long as it likes.
const LINE_MOST: usize = 256 << 20;
/// Room for one read.
const READ_SIZE: usize = 64 << 10;
const RETRY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(2);

/// One published message.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Its number; each is one more than the one before.
    pub(super) number: u64,
    pub(super) effect: Effect,
    pub(super) slot: u16,
    /// The slot was the node's own when it was published.
    pub(super) own: bool,
    /// The source's replication id, and an offset that was reached after it was published.
    pub(super) id: Arc<str>,
    pub(super) offset: u64,
}

impl Message {
    /// Whether a reader of the stream who has come so far has all that was written before it. Of another stream, which
    /// has ended, nothing more comes.
    pub(super) fn is_due(&self, reached: &Position) -> bool {
        *self.id != *reached.id || self.offset <= reached.offset
    }
}

#[derive(Debug, Default)]
struct Reel {
    messages: VecDeque<Message>,
    bytes: usize,
    next: u64,
}

/// A node's messages; the recording ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Tape {
    reel: Arc<Mutex<Reel>>,
    /// The number of the next message.
    end: watch::Receiver<u64>,
    recording: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Tape {
    /// Records what the server, of that number in its region, is told to publish.
    pub(crate) fn record(server: Endpoint, owners: Arc<RwLock<Owners>>, shard: usize) -> Self {
        let (ended, end) = watch::channel(0);
        let (records, recording) = watch::channel(false);
        let reel = Arc::default();
        let recorder = Recorder {
            server,
            owners,
            shard,
            reel: Arc::clone(&reel),
            ended,
        };
        let task = tokio::spawn(async move {
            loop {
                let broken = recorder.run(&records).await;
                tracing::trace!(error = ?broken, "the tape stops");
                records.send_replace(false);
                tokio::time::sleep(RETRY).await;
            }
        });
        Self {
            reel,
            end,
            recording,
            task,
        }
    }

    /// Waits until it records.
    ///
    /// # Errors
    /// After `patience`.
    pub(crate) async fn recording(&self, patience: Duration) -> anyhow::Result<()> {
        let mut recording = self.recording.clone();
        let begun = tokio::time::timeout(patience, recording.wait_for(|&records| records)).await;
        anyhow::ensure!(matches!(begun, Ok(Ok(_))), "MONITOR has no answer");
        Ok(())
    }

    /// The number of the next message, and its changes.
    pub(crate) fn end(&self) -> watch::Receiver<u64> {
        self.end.clone()
    }

    /// The first message that is still there of this number or a later one.
    pub(super) fn from(&self, number: u64) -> Option<Message> {
        let reel = self.reel.lock().unwrap_or_else(PoisonError::into_inner);
        let first = reel.messages.front()?.number;
        let at = usize::try_from(number.saturating_sub(first)).ok()?;
        reel.messages.get(at).cloned()
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Recorder {
    server: Endpoint,
    owners: Arc<RwLock<Owners>>,
    shard: usize,
    reel: Arc<Mutex<Reel>>,
    ended: watch::Sender<u64>,
}

impl Recorder {
    /// Records until something breaks.
    async fn run(&self, records: &watch::Sender<bool>) -> anyhow::Result<()> {
        let mut socket = tokio::time::timeout(PATIENCE, self.server.dial()).await??;
        if let Some(words) = self.server.auth() {
            let words: Vec<&str> = ["AUTH"].into_iter().chain(words).collect();
            socket.write_all(&command(&words)).await?;
        }
        socket.write_all(&command(&["MONITOR"])).await?;
        let mut asking = self.server.connect(PATIENCE).await?;
        let (mut incoming, mut lines) = (Incoming::default(), Lines::default());
        loop {
            let mut heard = Vec::new();
            while let Some(line) = incoming.line()? {
                match line.first() {
                    Some(b'-') => anyhow::bail!("{}", String::from_utf8_lossy(&line)),
                    // Those of AUTH and MONITOR look alike, but only what is after MONITOR's matters.
                    Some(b'+') if line[..] == b"+OK"[..] => drop(records.send_replace(true)),
                    _ => heard.extend(lines.digest(&line)),
                }
            }
            if !heard.is_empty() {
                let info: String = redis::cmd("INFO")
                    .arg("server")
                    .arg("replication")
                    .query_async(&mut asking)
                    .await?;
                let lineage =
                    Lineage::parse(&info).ok_or_else(|| io::Error::other("INFO says too little"))?;
                self.keep(heard, &lineage.id, lineage.offset);
            }
            incoming.buffer.reserve(READ_SIZE);
            if socket.read_buf(&mut incoming.buffer).await? == 0 {
                anyhow::bail!("the node has ended");
            }
        }
    }

    fn keep(&self, heard: Vec<Vec<Bytes>>, id: &str, offset: u64) {
        let id: Arc<str> = id.into();
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reel = self.reel.lock().unwrap_or_else(PoisonError::into_inner);
        for args in heard {
            let slot = args.get(1).map_or(0, |channel| slot(channel));
            reel.bytes += weight(&args);
            let number = reel.next;
            reel.next += 1;
            reel.messages.push_back(Message {
                number,
                effect: Effect { db: 0, args },
                slot,
                own: owners.of(slot) == self.shard,
                id: Arc::clone(&id),
                offset,
            });
        }
        while reel.bytes > KEPT_MOST
            && let Some(oldest) = reel.messages.pop_front()
        {
            reel.bytes -= weight(&oldest.effect.args);
        }
        self.ended.send_replace(reel.next);
    }
}

fn weight(args: &[Bytes]) -> usize {
    args.iter().map(Bytes::len).sum::<usize>() + 128
}

/// Bytes that become lines; where a long one has been searched for its end is remembered.
#[derive(Debug, Default)]
struct Incoming {
    buffer: BytesMut,
    searched: usize,
}

impl Incoming {
    fn line(&mut self) -> io::Result<Option<Bytes>> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(end) = found else {
            self.searched = self.buffer.len();
            if self.searched > LINE_MOST {
                return Err(io::Error::other("an endless line"));
            }
            return Ok(None);
        };
        let mut line = self.buffer.split_to(self.searched + end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Ok(Some(line))
    }
}

/// What MONITOR's lines say, one after the other. Pure.
#[derive(Debug, Default)]
struct Lines {
    /// The last script was the rig's own; the commands of a script follow it.
    own_script: bool,
}

impl Lines {
    /// The words of a PUBLISH or SPUBLISH that is not the rig's own.
    fn digest(&mut self, line: &[u8]) -> Option<Vec<Bytes>> {
        // +1700000000.123456 [0 127.0.0.1:60866] "SET" "key" "value"
        let open = line.iter().position(|&byte| byte == b'[')?;
        let rest = &line[open..];
        let close = rest.windows(3).position(|three| three == b"] \"")?;
        let in_script = rest[..close].ends_with(b" lua");
        let mut words = &rest[close + 2..];
        let name = word(&mut words)?.to_ascii_lowercase();
        if !in_script {
            self.own_script = name.starts_with(b"eval") && is_own(words);
        }
        let message = matches!(name.as_slice(), b"publish" | b"spublish");
        if !message || self.own_script {
            return None;
        }
        let (channel, text) = (word(&mut words)?, word(&mut words)?);
        Some(vec![name.into(), channel.into(), text.into()])
    }
}

/// Whether a script, given as MONITOR writes it, is the rig's own.
fn is_own(script: &[u8]) -> bool {
    let script = script.strip_prefix(b" \"").unwrap_or(script);
    let after_flags = match script.strip_prefix(b"#!lua") {
        Some(rest) => {
            let line_end = rest.windows(2).position(|two| two == b"\\n");
            line_end.map_or(rest, |end| &rest[end + 2..])
        }
        None => script,
    };
    after_flags.starts_with(MARK.as_bytes())
}

/// Takes one quoted word off the front, and undoes the quoting (`sdscatrepr`).
fn word(words: &mut &[u8]) -> Option<Vec<u8>> {
    let mut rest = words.trim_ascii_start().strip_prefix(b"\"")?;
    let mut word = Vec::new();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => break,
            b'\\' => {
                let (&escaped, after) = rest.split_first()?;
                rest = after;
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'a' => 7,
                    b'b' => 8,
                    b'x' => {
                        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                        rest = &rest[2..];
                        u8::from_str_radix(digits, 16).ok()?
                    }
                    plain => plain,
                });
            }
            plain => word.push(plain),
        }
    }
    *words = rest;
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Vec<Vec<Bytes>> {
        let mut state = Lines::default();
        lines
            .iter()
            .filter_map(|line| state.digest(line.as_bytes()))
            .collect()
    }

    #[test]
    fn messages_are_heard_as_they_were_published() {
        let line = r#"+1700000000.123456 [0 127.0.0.1:60866] "SPublish" "a] \"b\"" "\x00\r\n\\ \xff""#;
        let words: [&[u8]; 3] = [b"spublish", b"a] \"b\"", b"\x00\r\n\\ \xff"];
        assert_eq!(heard(&[line]), [words.map(Bytes::from_static)]);
        assert_eq!(
            heard(&[
                r#"+1.2 [0 1.1.1.1:1] "SET" "publish" "x""#,
                r#"+1.2 [0 1.1.1.1:1] "PUBLISH" "x""#,
                "+1.2 nonsense",
                ""
            ]),
            Vec::<Vec<Bytes>>::new()
        );
    }

    #[test]
    fn a_message_waits_for_what_was_written_before_it() {
        let message = Message {
            number: 0,
            effect: Effect { db: 0, args: vec![] },
            slot: 0,
            own: true,
            id: "id".into(),
            offset: 100,
        };
        let reached = |id: &str, offset| Position {
            run: "run".to_owned(),
            id: id.to_owned(),
            offset,
            db: 0,
        };
        assert!(!message.is_due(&reached("id", 99)));
        assert!(message.is_due(&reached("id", 100)));
        assert!(message.is_due(&reached("later", 0)), "its stream has ended");
    }

    #[test]
    fn the_rigs_own_scripts_are_not_heard_and_others_are() {
        let inside = r#"+1.2 [0 lua] "SPUBLISH" "c" "m""#;
        let outside = r#"+1.2 [0 1.1.1.1:1] "SPUBLISH" "c" "m""#;
        let own = r#"+1.2 [0 1.1.1.1:1] "EVAL" "-- rig\nlocal first" "0""#;
        let flagged = r##"+1.2 [0 1.1.1.1:1] "EVAL" "#!lua flags=allow-oom\n-- rig\nlocal" "0""##;
        let others = r#"+1.2 [0 1.1.1.1:1] "EVALSHA" "abc" "0""#;
        let count = |lines: &[&str]| heard(lines).len();
        assert_eq!(count(&[own, inside, inside]), 0);
        assert_eq!(count(&[flagged, inside]), 0);
        assert_eq!(count(&[own, inside, outside]), 1);
        assert_eq!(count(&[own, inside, others, inside]), 1);
    }
}
