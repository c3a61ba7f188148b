//! One connection through the relay: two pumps, one per direction, and what ends them.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Direction, Weather};

/// One chunk: also the most that a stall or a half-open direction has already taken from its sender.
const CHUNK: usize = 64 << 10;
/// Bytes under way in a delayed direction before its sender has to wait.
const UNDER_WAY_MOST: usize = 8 << 20;

/// Carries one accepted connection until it ends or is reset.
pub(super) async fn carry(mut client: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let mut reset = weather.clone();
    let born = reset.borrow().generation;
    let mut upstream = None;
    let ended = tokio::select! {
        // The reset first: the healing that resets also unblocks, and what was held back must not get through.
        biased;
        _ = reset.wait_for(|weather| weather.generation != born) => {
            Err(io::ErrorKind::ConnectionReset.into())
        }
        ended = both_ways(&mut client, server, &mut upstream, weather) => ended,
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
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    unblocked(&mut weather, |weather| weather.faults.stall).await?;
    let upstream = upstream.insert(TcpStream::connect(server).await?);
    upstream.set_nodelay(true)?;
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = upstream.split();
    let ended = tokio::try_join!(
        pump(client_reads, server_writes, Direction::ToServer, weather.clone()),
        pump(server_reads, client_writes, Direction::ToClient, weather.clone()),
    );
    // The end of a connection is a message as well: it does not get through where nothing does.
    unblocked(&mut weather, |weather| {
        weather.faults.stall || weather.faults.half_open.is_some()
    })
    .await?;
    ended.map(|_| ())
}

async fn unblocked(
    weather: &mut watch::Receiver<Weather>,
    blocked: impl Fn(&Weather) -> bool,
) -> io::Result<()> {
    weather
        .wait_for(|weather| !blocked(weather))
        .await
        .map(drop)
        .map_err(|_| io::ErrorKind::ConnectionReset.into())
}

/// Carries one direction until its end, which it passes on.
async fn pump(
    mut reads: impl AsyncRead + Unpin,
    mut writes: impl AsyncWrite + Unpin,
    direction: Direction,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = reads.read(&mut buffer).await?;
        let mut now = *weather.borrow();
        if now.faults.blocks(direction) {
            unblocked(&mut weather, |weather| weather.faults.blocks(direction)).await?;
            now = *weather.borrow();
        }
        if count == 0 && now.faults.delay(direction).is_zero() {
            return writes.shutdown().await;
        }
        if now.faults.delay(direction).is_zero() {
            write(&mut writes, &buffer[..count], &mut weather).await?;
        } else {
            let first = buffer[..count].to_vec();
            if delayed(first, &mut reads, &mut writes, direction, &mut weather).await? {
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
    weather: &mut watch::Receiver<Weather>,
) -> io::Result<bool> {
    let mut under_way = VecDeque::from([(Instant::now(), first)]);
    let mut bytes = 0;
    let mut buffer = vec![0; CHUNK];
    while let Some((sent, _)) = under_way.front() {
        let due = *sent + weather.borrow_and_update().faults.delay(direction);
        let ended = under_way.back().is_some_and(|(_, chunk)| chunk.is_empty());
        tokio::select! {
            () = sleep_until(due) => {
                unblocked(weather, |weather| weather.faults.blocks(direction)).await?;
                let Some((_, chunk)) = under_way.pop_front() else { break };
                if chunk.is_empty() {
                    return Ok(true);
                }
                bytes -= chunk.len().min(bytes);
                write(writes, &chunk, weather).await?;
            }
            count = reads.read(&mut buffer), if !ended && bytes < UNDER_WAY_MOST => {
                let count = count?;
                bytes += count;
                under_way.push_back((Instant::now(), buffer[..count].to_vec()));
            }
            changed = weather.changed() => {
                changed.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
            }
        }
    }
    Ok(false)
}

async fn write(
    writes: &mut (impl AsyncWrite + Unpin),
    chunk: &[u8],
    weather: &mut watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut rest = chunk;
    while !rest.is_empty() {
        let dribble = weather.borrow().faults.dribble;
        let Some((size, pause)) = dribble else {
            return writes.write_all(rest).await;
        };
        let (piece, later) = rest.split_at(size.clamp(1, rest.len()));
        writes.write_all(piece).await?;
        rest = later;
        let next = Instant::now() + pause;
        // A pause ends early when the dribble is healed or changed.
        let changed = weather.wait_for(|weather| weather.faults.dribble != dribble);
        tokio::select! {
            () = sleep_until(next) => {}
            healed = changed => drop(healed.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?),
        }
    }
    Ok(())
}
