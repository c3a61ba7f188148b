//! One connection through the relay: two pumps, one per direction, and what ends them.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Direction, NetworkFaults, Weather};

/// One chunk: also the most that a stall or a half-open direction has already taken from its sender.
const CHUNK: usize = 64 << 10;
/// Bytes under way in a delayed direction before its sender has to wait.
const UNDER_WAY_MOST: usize = 8 << 20;

/// What one connection sees of the weather. Every look fails once the connection has to reset: the healing that resets
/// also unblocks, and what was held back must not get through.
#[derive(Clone)]
struct Outlook {
    weather: watch::Receiver<Weather>,
    born: u64,
}

impl Outlook {
    fn new(weather: watch::Receiver<Weather>) -> Self {
        let born = weather.borrow().generation;
        Self { weather, born }
    }

    /// The faults at the moment.
    fn now(&mut self) -> io::Result<NetworkFaults> {
        let now = *self.weather.borrow_and_update();
        if now.generation == self.born {
            Ok(now.faults)
        } else {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    /// The faults, once they are as wanted.
    async fn until(&mut self, wanted: impl Fn(&NetworkFaults) -> bool) -> io::Result<NetworkFaults> {
        loop {
            let now = self.now()?;
            if wanted(&now) {
                return Ok(now);
            }
            self.changed().await?;
        }
    }

    async fn changed(&mut self) -> io::Result<()> {
        // An error means that the relay is gone.
        self.weather
            .changed()
            .await
            .map_err(|_| io::ErrorKind::ConnectionReset.into())
    }

    async fn reset(mut self) -> io::Error {
        loop {
            if let Err(reset) = self.until(|_| false).await {
                return reset;
            }
        }
    }
}

/// Carries one accepted connection until it ends or is reset.
pub(super) async fn carry(mut client: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let outlook = Outlook::new(weather);
    let mut upstream = None;
    let ended = tokio::select! {
        ended = both_ways(&mut client, server, &mut upstream, outlook.clone()) => ended,
        reset = outlook.reset() => Err(reset),
    };
    if ended.is_err() {
        // Closing with linger zero sends a reset. A socket that is already gone needs none.
        let _ = client.set_zero_linger();
        if let Some(upstream) = upstream {
            let _ = upstream.set_zero_linger();
        }
    }
}

async fn both_ways(
    client: &mut TcpStream,
    server: SocketAddr,
    upstream: &mut Option<TcpStream>,
    mut outlook: Outlook,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    outlook.until(|faults| !faults.stall).await?;
    let upstream = upstream.insert(TcpStream::connect(server).await?);
    upstream.set_nodelay(true)?;
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = upstream.split();
    let ended = tokio::try_join!(
        pump(client_reads, server_writes, Direction::ToServer, outlook.clone()),
        pump(server_reads, client_writes, Direction::ToClient, outlook.clone()),
    );
    // The end of a connection is a message as well: it does not get through where nothing does.
    outlook
        .until(|faults| !faults.stall && faults.half_open.is_none())
        .await?;
    ended.map(|_| ())
}

/// Carries one direction until its end, which it passes on.
async fn pump(
    mut reads: impl AsyncRead + Unpin,
    mut writes: impl AsyncWrite + Unpin,
    direction: Direction,
    mut outlook: Outlook,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = reads.read(&mut buffer).await?;
        let now = outlook.until(|faults| !faults.blocks(direction)).await?;
        if count == 0 && now.delay(direction).is_zero() {
            return writes.shutdown().await;
        }
        if now.delay(direction).is_zero() {
            write(&mut writes, &buffer[..count], &mut outlook).await?;
        } else {
            let first = buffer[..count].to_vec();
            if delayed(first, &mut reads, &mut writes, direction, &mut outlook).await? {
                return writes.shutdown().await;
            }
        }
    }
}

/// Carries chunks that each arrive later by the delay, until none is under way; says whether the end has come.
/// An empty chunk is the end.
async fn delayed(
    first: Vec<u8>,
    reads: &mut (impl AsyncRead + Unpin),
    writes: &mut (impl AsyncWrite + Unpin),
    direction: Direction,
    outlook: &mut Outlook,
) -> io::Result<bool> {
    let mut under_way = VecDeque::from([(Instant::now(), first)]);
    let mut bytes = 0;
    let mut buffer = vec![0; CHUNK];
    while let Some((sent, _)) = under_way.front() {
        let due = *sent + outlook.now()?.delay(direction);
        let ended = under_way.back().is_some_and(|(_, chunk)| chunk.is_empty());
        tokio::select! {
            () = sleep_until(due) => {
                outlook.until(|faults| !faults.blocks(direction)).await?;
                let Some((_, chunk)) = under_way.pop_front() else { break };
                if chunk.is_empty() {
                    return Ok(true);
                }
                bytes -= chunk.len().min(bytes);
                write(writes, &chunk, outlook).await?;
            }
            count = reads.read(&mut buffer), if !ended && bytes < UNDER_WAY_MOST => {
                let count = count?;
                bytes += count;
                under_way.push_back((Instant::now(), buffer[..count].to_vec()));
            }
            changed = outlook.changed() => changed?,
        }
    }
    Ok(false)
}

async fn write(
    writes: &mut (impl AsyncWrite + Unpin),
    chunk: &[u8],
    outlook: &mut Outlook,
) -> io::Result<()> {
    let mut rest = chunk;
    while !rest.is_empty() {
        let dribble = outlook.now()?.dribble;
        let Some((size, pause)) = dribble else {
            return writes.write_all(rest).await;
        };
        let (piece, later) = rest.split_at(size.clamp(1, rest.len()));
        writes.write_all(piece).await?;
        rest = later;
        let next = Instant::now() + pause;
        // A pause ends early when the dribble is healed or changed.
        tokio::select! {
            () = sleep_until(next) => {}
            healed = outlook.until(|faults| faults.dribble != dribble) => drop(healed?),
        }
    }
    Ok(())
}
