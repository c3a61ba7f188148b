//! One client's connection to one shard: commands go in, and each answer comes back to whoever is owed it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::READ_SIZE;
use crate::resp::{Answers, push};

/// A shard that does not accept within this is dead.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// What was heard of a shard: an answer, or its connection's end.
pub(super) struct Heard {
    pub(super) shard: usize,
    /// Which of the client's connections to that shard.
    pub(super) birth: u64,
    pub(super) answer: Option<Bytes>,
}

/// The connection, and what is awaited from it.
pub(super) struct Upstream {
    pub(super) birth: u64,
    out: mpsc::UnboundedSender<Bytes>,
    /// One per command under way: whether its answer is for the client.
    awaited: VecDeque<bool>,
    /// Answers for the client whose turn has not come.
    pub(super) answers: VecDeque<Bytes>,
    /// Hears channels.
    pub(super) subscribed: bool,
    /// Has watched keys or an open transaction.
    pub(super) transacting: bool,
    task: JoinHandle<()>,
}

impl Upstream {
    pub(super) async fn connect(
        addr: SocketAddr,
        shard: usize,
        birth: u64,
        heard: mpsc::Sender<Heard>,
    ) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(addr)).await??;
        stream.set_nodelay(true)?;
        let (out, commands) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            // Either way it ended: the connection is of no use any more.
            let _ = carry(stream, shard, birth, commands, &heard).await;
            let end = Heard {
                shard,
                birth,
                answer: None,
            };
            // An error means that the client is gone.
            let _ = heard.send(end).await;
        });
        Ok(Self {
            birth,
            out,
            awaited: VecDeque::new(),
            answers: VecDeque::new(),
            subscribed: false,
            transacting: false,
            task,
        })
    }

    pub(super) fn send(&mut self, command: Bytes, for_client: bool) {
        self.awaited.push_back(for_client);
        // An error means that the connection has ended, which is heard as well.
        let _ = self.out.send(command);
    }

    /// Takes an answer; gives it back when it is a message, which nobody is owed.
    pub(super) fn take(&mut self, answer: Bytes) -> Option<Bytes> {
        if (answer.first() == Some(&b'>') || self.subscribed) && is_message(&answer) {
            return Some(answer);
        }
        if self.awaited.pop_front().unwrap_or(false) {
            self.answers.push_back(answer);
        }
        None
    }

    /// Whether the client notices its end.
    pub(super) fn is_missed(&self) -> bool {
        self.subscribed || self.transacting || !self.answers.is_empty() || self.awaited.contains(&true)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether it comes without having been asked for; confirmations of subscriptions do not.
fn is_message(answer: &Bytes) -> bool {
    let confirmations: [&[u8]; 6] = [
        b"subscribe",
        b"unsubscribe",
        b"psubscribe",
        b"punsubscribe",
        b"ssubscribe",
        b"sunsubscribe",
    ];
    let messages: [&[u8]; 3] = [b"message", b"pmessage", b"smessage"];
    match push(answer) {
        Some((kind, _)) if answer.first() == Some(&b'>') => !confirmations.contains(&&*kind),
        Some((kind, _)) => messages.contains(&&*kind),
        None => false,
    }
}

async fn carry(
    mut stream: TcpStream,
    shard: usize,
    birth: u64,
    mut commands: mpsc::UnboundedReceiver<Bytes>,
    heard: &mpsc::Sender<Heard>,
) -> io::Result<()> {
    let (mut reads, mut writes) = stream.split();
    let writing = async {
        while let Some(command) = commands.recv().await {
            writes.write_all(&command).await?;
        }
        io::Result::Ok(())
    };
    let reading = async {
        let mut answers = Answers::default();
        loop {
            while let Some(answer) = answers.next().map_err(io::Error::other)? {
                let one = Heard {
                    shard,
                    birth,
                    answer: Some(answer),
                };
                if heard.send(one).await.is_err() {
                    return Ok(());
                }
            }
            answers.buffer.reserve(READ_SIZE);
            if reads.read_buf(&mut answers.buffer).await? == 0 {
                return io::Result::Ok(());
            }
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}
