//! One attachment of a syncer: from connecting to the first error. The select loop only waits; batches are formed and
//! accounted for in [`Outbox`], which is pure.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::books::{Books, field};
use super::position::Position;
use super::server::{Applied, Server};
use super::stream::{Effect, Psync, SourceStream, Unit};
use super::tape::Message;
use super::{Link, LinkControl, SyncError, SyncerState};

/// A source hears from us this often (as a replica of its own would tell it).
const ACK_EVERY: Duration = Duration::from_millis(500);
/// A source that is silent for this long is dialled again; it pings every ten seconds.
const SOURCE_SILENCE: Duration = Duration::from_secs(30);
/// Largest batch, in effects and in bytes: what one script may keep the destination busy with.
const BATCH: (usize, usize) = (512, 512 << 10);
/// Bytes held here before the source has to wait.
const HELD_MOST: usize = 64 << 20;
/// A cut waits this long for the batch under way, so that what was sent is also known.
const LAST_BATCH: Duration = Duration::from_millis(500);

/// What was last known of a destination, for as long as its process lives.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    run: String,
    position: Position,
}

/// Everything is in place: the stream delivers what comes after the outbox's place.
struct Attached {
    stream: SourceStream,
    destination: Server,
    /// An idle connection to the destination, whose end tells at once that the destination has ended.
    canary: TcpStream,
    /// The destination's process.
    run: String,
    outbox: Outbox,
}

type InFlight = Pin<Box<dyn Future<Output = Result<Applied, SyncError>> + Send>>;

impl Link {
    /// Attaches and applies until something breaks; says what.
    pub(super) async fn session(&mut self) -> SyncError {
        let mut wanted = self.wanted.clone();
        let attached = tokio::select! {
            attached = self.attach() => attached,
            _ = wanted.wait_for(LinkControl::stopped) => return SyncError::Cut,
        };
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) => return error,
        };
        match self.pump(attached).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Connects to both and finds the place from which to go on; copies first where there is none.
    async fn attach(&self) -> Result<Attached, SyncError> {
        let canary = self.to.endpoint.dial().await.map_err(SyncError::Destination)?;
        let mut destination = Server::connect(&self.to, &self.books_of).await?;
        let mut here = destination.books().await?;
        if here.debt.is_some() {
            self.pay_debt(&mut destination, &here).await?;
            here = destination.books().await?;
        }
        let mut source = Server::connect(&self.from, &self.books_of).await?;
        let there = source.books().await?;
        self.restore_flushed_books(&mut destination, &mut here).await?;

        let resume = self.place_to_resume(&here, &there);
        let mut stream = SourceStream::open(&self.from.endpoint).await?;
        let from = resume
            .as_ref()
            .map(|place| (place.id.as_str(), place.offset, place.db));
        let outbox = match (stream.psync(from).await?, resume) {
            (Psync::Continue { id }, Some(place)) => {
                self.progress.send_modify(|status| status.partial_resyncs += 1);
                let place = Position {
                    id: id.unwrap_or(place.id),
                    run: there.lineage.run,
                    ..place
                };
                Outbox::new(place, here.from.remove(&self.from.id))
            }
            (Psync::Full { id, offset }, _) => {
                self.progress.send_modify(|status| status.full_resyncs += 1);
                self.set_state(SyncerState::Copying);
                tracing::info!(from = self.from.id, to = self.to.id, id, offset, "copying");
                let place = self.copy(&mut stream, &mut source, &mut destination, &id).await?;
                Outbox::new(place.clone(), Some(place))
            }
            (Psync::Continue { .. }, None) => {
                return Err(SyncError::Protocol(
                    "the source continues what was not begun".to_owned(),
                ));
            }
        };
        Ok(Attached {
            stream,
            destination,
            canary,
            run: here.lineage.run,
            outbox,
        })
    }

    /// A FLUSHALL takes the books along. When the destination is still the process we know, we remember our page.
    async fn restore_flushed_books(
        &self,
        destination: &mut Server,
        here: &mut Books,
    ) -> Result<(), SyncError> {
        let Some(seen) = self.seen.as_ref().filter(|seen| seen.run == here.lineage.run) else {
            return Ok(());
        };
        if !here.from.contains_key(&self.from.id) && here.rebuilt.is_none() {
            destination
                .apply(&field(&self.from.id), None, &seen.position, &[])
                .await?;
            here.from.insert(self.from.id.clone(), seen.position.clone());
        }
        Ok(())
    }

    async fn pump(&mut self, attached: Attached) -> Result<Infallible, SyncError> {
        let Attached {
            mut stream,
            destination,
            mut canary,
            run,
            mut outbox,
        } = attached;
        let books_field = field(&self.from.id);
        let mut in_flight: Option<InFlight> = None;
        let mut acks = interval(ACK_EVERY);
        acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut wanted = self.wanted.clone();
        let mut link = *wanted.borrow_and_update();
        if link.stopped() {
            return Err(SyncError::Cut);
        }
        // How far the stream and the tape have been read; what is due goes further.
        let (mut reached, mut played) = (outbox.acked.clone(), self.played);
        let mut tape = self.from.tape.as_ref().map(|tape| tape.end());
        self.record(&run, &outbox);
        self.set_state(SyncerState::Streaming);
        loop {
            while let Some(mut unit) = stream.next_unit()? {
                (reached.offset, reached.db) = (unit.end, unit.db);
                self.scope.narrow(&mut unit, link.rest);
                outbox.push(unit, Instant::now());
            }
            while let Some(message) = self.next_message(played, &reached) {
                played = message.number + 1;
                let hears = self.scope.hears(&message, link.rest);
                outbox.push(Unit::message(message, hears, &reached), Instant::now());
            }
            if in_flight.is_none()
                && let Some(batch) = outbox.take_due(Instant::now(), link.delay)
            {
                let before = outbox.recorded.clone();
                let (mut server, field) = (destination.clone(), books_field.clone());
                in_flight = Some(Box::pin(async move {
                    server
                        .apply(&field, before.as_ref(), &batch.after, &batch.effects)
                        .await
                }));
            }
            // What is sent is played. Rather lost than twice: what becomes of a batch may stay unknown.
            self.played = outbox.played.unwrap_or(self.played);
            if outbox.ack_owed() {
                stream.ack(outbox.acked.offset).await?;
            }
            self.record(&run, &outbox);
            let due = if in_flight.is_none() {
                outbox.next_due(link.delay)
            } else {
                None
            };
            tokio::select! {
                filled = stream.fill(), if outbox.bytes < HELD_MOST => {
                    filled?;
                    heard = Instant::now();
                }
                applied = finish(&mut in_flight) => {
                    in_flight = None;
                    self.account(&outbox, &applied?);
                    outbox.done();
                }
                () = until(due) => {}
                () = more(&mut tape) => {}
                _ = canary.read_u8() => return Err(SyncError::Destination(std::io::ErrorKind::UnexpectedEof.into())),
                _ = acks.tick() => {
                    if heard.elapsed() > SOURCE_SILENCE {
                        return Err(SyncError::silent("the source has gone silent"));
                    }
                    stream.ack(outbox.acked.offset).await?;
                }
                changed = wanted.changed() => {
                    link = *wanted.borrow_and_update();
                    if changed.is_err() || link.stopped() {
                        if in_flight.is_some()
                            && let Ok(Ok(applied)) = timeout(LAST_BATCH, finish(&mut in_flight)).await
                        {
                            self.account(&outbox, &applied);
                            outbox.done();
                            self.record(&run, &outbox);
                        }
                        return Err(SyncError::Cut);
                    }
                }
            }
        }
    }

    /// The next message of the source's tape, once the stream is read as far as when it was published.
    fn next_message(&self, number: u64, reached: &Position) -> Option<Message> {
        let message = self.from.tape.as_ref()?.from(number)?;
        message.is_due(reached).then_some(message)
    }

    fn record(&mut self, run: &str, outbox: &Outbox) {
        let same = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.position == outbox.acked && seen.run == run);
        if self.progress.borrow().messages != self.played {
            self.progress.send_modify(|status| status.messages = self.played);
        }
        if !same {
            self.seen = Some(Seen {
                run: run.to_owned(),
                position: outbox.acked.clone(),
            });
            self.progress.send_modify(|status| {
                status.replid.clone_from(&outbox.acked.id);
                status.offset = outbox.acked.offset;
                run.clone_into(&mut status.to_run);
            });
        }
    }

    fn account(&self, outbox: &Outbox, applied: &Applied) {
        let refused: u64 = outbox.sent.as_ref().map_or(0, |sent| sent.refused);
        let count: usize = outbox.sent.as_ref().map_or(0, |sent| sent.effects);
        if applied.failed + refused > 0 {
            let (from, to) = (&self.from.id, &self.to.id);
            tracing::warn!(
                from,
                to,
                failed = applied.failed,
                refused,
                first = applied.first,
                "effects failed"
            );
        }
        self.progress.send_modify(|status| {
            status.applied += count as u64 - applied.failed.min(count as u64);
            status.failed += applied.failed + refused;
            if applied.failed > 0 {
                status.last_error = Some(applied.first.clone());
            }
        });
    }
}

async fn finish(in_flight: &mut Option<InFlight>) -> Result<Applied, SyncError> {
    match in_flight {
        Some(batch) => batch.await,
        None => pending().await,
    }
}

async fn more(tape: &mut Option<watch::Receiver<u64>>) {
    if let Some(end) = tape
        && end.changed().await.is_ok()
    {
        return;
    }
    // No tape, or one that has ended: nothing more comes.
    pending::<()>().await;
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// What is to be applied, in order, and how far the destination has acknowledged. Pure.
#[derive(Debug)]
struct Outbox {
    waiting: VecDeque<(Instant, Unit)>,
    /// Bytes waiting.
    bytes: usize,
    sent: Option<Sent>,
    /// All that the destination has; also moved by units without effects, which need no writing.
    acked: Position,
    /// What the books say, if anything.
    recorded: Option<Position>,
    /// The source waits to hear that we are here.
    ack_wanted_at: Option<u64>,
    /// The number after that of the last message of the tape that was taken out.
    played: Option<u64>,
}

#[derive(Debug)]
struct Sent {
    after: Position,
    effects: usize,
    refused: u64,
}

#[derive(Debug)]
struct Batch {
    after: Position,
    effects: Vec<Effect>,
}

impl Outbox {
    fn new(acked: Position, recorded: Option<Position>) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            sent: None,
            acked,
            recorded,
            ack_wanted_at: None,
            played: None,
        }
    }

    fn push(&mut self, unit: Unit, now: Instant) {
        if unit.wants_ack {
            self.ack_wanted_at = Some(unit.end);
        }
        self.bytes += weight(&unit);
        self.waiting.push_back((now, unit));
    }

    fn next_due(&self, delay: Duration) -> Option<Instant> {
        self.waiting.front().map(|(arrived, _)| *arrived + delay)
    }

    /// The next batch of effects that are due; one at a time.
    fn take_due(&mut self, now: Instant, delay: Duration) -> Option<Batch> {
        debug_assert!(self.sent.is_none());
        let (mut after, mut effects) = (self.acked.clone(), Vec::new());
        let (mut bytes, mut refused) = (0, 0);
        while let Some((arrived, unit)) = self.waiting.front() {
            let more = effects.len() + unit.effects.len();
            if *arrived + delay > now
                || (!effects.is_empty() && (more > BATCH.0 || bytes + weight(unit) > BATCH.1))
            {
                break;
            }
            let Some((_, unit)) = self.waiting.pop_front() else {
                break;
            };
            self.bytes -= weight(&unit);
            bytes += weight(&unit);
            refused += unit.refused;
            self.played = unit.message.map(|number| number + 1).or(self.played);
            (after.offset, after.db) = (unit.end, unit.db);
            effects.extend(unit.effects);
        }
        if effects.is_empty() && refused == 0 {
            self.acked = after;
            return None;
        }
        self.sent = Some(Sent {
            after: after.clone(),
            effects: effects.len(),
            refused,
        });
        Some(Batch { after, effects })
    }

    /// The batch is acknowledged.
    fn done(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.recorded = Some(sent.after.clone());
            self.acked = sent.after;
        }
    }

    /// Whether the source's question can be answered now; says so once.
    fn ack_owed(&mut self) -> bool {
        let owed = self.ack_wanted_at.is_some_and(|at| self.acked.offset >= at);
        if owed {
            self.ack_wanted_at = None;
        }
        owed
    }
}

fn weight(unit: &Unit) -> usize {
    unit.effects
        .iter()
        .flat_map(|effect| &effect.args)
        .map(|word| word.len() + 16)
        .sum::<usize>()
        + 64
}

#[cfg(test)]
mod tests;
