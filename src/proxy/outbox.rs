//! The bytes a link has accepted and not yet seen answered: first unwritten, then written and kept until the reply.
//!
//! Keeping what was written costs nothing (it is the batch that the write used) and is what makes it possible to send
//! a read again on another replica. Frames are never split over chunks, so each can be handed back as one slice.
//! Pure: no socket, no clock.
//!
//! ```text
//!   released      written, unanswered        unwritten
//! ────────────┬──────────────────────────┬──────────────┬──▶ bytes
//!            base                     written          end
//! ```

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BytesMut};

/// Small frames share chunks of this size; a larger frame is a chunk of its own.
const CHUNK: usize = 32 * 1024;

/// Least room of a chunk, so that one that has been used is worth keeping.
const SPARE: usize = 512;

/// At most so many chunks go into one vectored write.
const SLICES: usize = 16;

/// See the module's documentation. All positions count bytes since the link was opened.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<BytesMut>,
    /// Position of the first byte of `chunks[0]`.
    base: u64,
    /// Up to here the socket has taken the bytes.
    written: u64,
    /// One past the last byte.
    end: u64,
    /// Chunks before this one are wholly written.
    writing: usize,
    /// Of chunk `writing`, so many bytes are written.
    writing_at: usize,
    /// An emptied chunk, kept so that a steady load allocates nothing.
    spare: Option<BytesMut>,
}

impl Outbox {
    /// Adds one frame, copied.
    pub fn append(&mut self, frame: &[u8]) {
        self.end += frame.len() as u64;
        if let Some(last) = self.chunks.back_mut()
            && last.len() + frame.len() <= CHUNK.max(last.capacity())
        {
            last.extend_from_slice(frame);
            return;
        }
        let mut chunk = self
            .spare
            .take()
            .unwrap_or_else(|| BytesMut::with_capacity(frame.len().max(SPARE)));
        chunk.extend_from_slice(frame);
        self.chunks.push_back(chunk);
    }

    /// Adds one large frame without copying it.
    pub fn append_owned(&mut self, frame: BytesMut) {
        self.end += frame.len() as u64;
        self.chunks.push_back(frame);
    }

    /// Whether something waits to be written.
    pub fn has_unwritten(&self) -> bool {
        self.written < self.end
    }

    /// Bytes that wait to be written.
    pub fn unwritten(&self) -> u64 {
        self.end - self.written
    }

    /// Fills `slices` with the first unwritten bytes and calls `write` with them.
    pub fn with_unwritten<R>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let mut skip = self.writing_at;
        for chunk in self.chunks.range(self.writing..).take(SLICES) {
            slices[count] = IoSlice::new(&chunk[skip..]);
            skip = 0;
            count += 1;
        }
        write(&slices[..count])
    }

    /// The socket has taken `n` more bytes.
    pub fn advance(&mut self, mut n: usize) {
        self.written += n as u64;
        debug_assert!(self.written <= self.end);
        while n > 0 {
            let left = self.chunks[self.writing].len() - self.writing_at;
            if n < left {
                self.writing_at += n;
                return;
            }
            n -= left;
            // The last chunk stays current while there is room: later frames are appended to it.
            if self.writing + 1 == self.chunks.len() {
                self.writing_at = self.chunks[self.writing].len();
                debug_assert_eq!(n, 0);
                return;
            }
            self.writing += 1;
            self.writing_at = 0;
        }
    }

    /// Position of the oldest byte that is still kept.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Position up to which the socket has taken the bytes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The oldest kept bytes, as far as they lie together: they begin with a whole frame.
    pub fn front(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }

    /// All kept bytes, the oldest first; each piece holds whole frames.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| &chunk[..])
    }

    /// Lets go of the oldest `len` bytes, whole frames: they are answered, or handed over.
    pub fn release(&mut self, mut len: usize) {
        while len > 0 {
            let Some(front) = self.chunks.front() else { return };
            let part = len.min(front.len());
            self.release_front(part);
            len -= part;
        }
    }

    fn release_front(&mut self, len: usize) {
        self.base += len as u64;
        let Some(front) = self.chunks.front_mut() else {
            return;
        };
        front.advance(len);
        if self.writing == 0 {
            // Also right for bytes handed over unwritten: they do not count as written, they are gone.
            self.writing_at = self.writing_at.saturating_sub(len);
        }
        self.written = self.written.max(self.base);
        if front.is_empty() {
            let mut chunk = self.chunks.pop_front().unwrap_or_default();
            if self.writing == 0 {
                self.writing_at = 0;
            } else {
                self.writing -= 1;
            }
            chunk.clear();
            // `try_reclaim` gets the whole allocation back once nothing else refers to it.
            if self.spare.is_none() && chunk.try_reclaim(SPARE) && chunk.capacity() <= 2 * CHUNK {
                self.spare = Some(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        AppendOwned(usize),
        Write(usize),
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1usize..200).prop_map(Step::Append),
            1 => (1usize..50_000).prop_map(Step::Append),
            1 => (1usize..50_000).prop_map(Step::AppendOwned),
            4 => (1usize..60_000).prop_map(Step::Write),
            4 => Just(Step::Release),
        ]
    }

    proptest! {
        /// Against a naive model: one flat vector of bytes and a queue of frame lengths.
        #[test]
        fn matches_a_flat_vector(steps in proptest::collection::vec(step(), 1..200)) {
            let mut outbox = Outbox::default();
            let (mut all, mut lens) = (Vec::new(), VecDeque::new());
            let (mut written, mut released) = (0usize, 0usize);
            let mut fill = 0u8;
            for step in steps {
                match step {
                    Step::Append(n) | Step::AppendOwned(n) => {
                        fill = fill.wrapping_add(1);
                        let frame: Vec<u8> = (0..n).map(|i| fill.wrapping_add(i as u8)).collect();
                        all.extend_from_slice(&frame);
                        lens.push_back(n);
                        if matches!(step, Step::AppendOwned(_)) {
                            outbox.append_owned(BytesMut::from(&frame[..]));
                        } else {
                            outbox.append(&frame);
                        }
                    }
                    Step::Write(max) => {
                        let seen = outbox.with_unwritten(|slices| slices.iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>());
                        prop_assert!(all[written..].starts_with(&seen));
                        prop_assert_eq!(seen.is_empty(), written == all.len());
                        let n = max.min(seen.len());
                        outbox.advance(n);
                        written += n;
                    }
                    Step::Release => {
                        if let Some(&len) = lens.front()
                            && released + len <= written {
                                prop_assert_eq!(&outbox.front()[..len], &all[released..released + len]);
                                outbox.release(len);
                                released += len;
                                lens.pop_front();
                            }
                    }
                }
                prop_assert_eq!(outbox.has_unwritten(), written < all.len());
                prop_assert_eq!(outbox.unwritten() as usize, all.len() - written);
                prop_assert_eq!(outbox.base() as usize, released);
                prop_assert_eq!(outbox.written() as usize, written);
            }
            // A condemned link hands every frame back, written or not.
            while let Some(len) = lens.pop_front() {
                prop_assert_eq!(&outbox.front()[..len], &all[released..released + len]);
                outbox.release(len);
                released += len;
            }
            prop_assert_eq!(outbox.base() as usize, all.len());
        }
    }
}
